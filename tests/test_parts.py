"""Aggregators against byzfl's values and NumPy, and the parts of a message's way in runs."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import CLIENTS, ROWS, X0, A, B, D, N, flat, oracle_record, play, record_world
from oracles.personal import partial as partial_sharing
from oracles.problem import LeastSquares
from test_oracles import GOLDEN as X

from jaxfl import networks
from jaxfl.algorithms import DSGD, Choco, FedAvg, FedBN, FedPer, FedProx, LGFedAvg, Scaffold
from jaxfl.components import (
    EF,
    NNM,
    CenteredClipping,
    ClippedGossip,
    Gaussian,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    Momentum,
    MultiKrum,
    NearestNeighbours,
    Private,
    TopK,
    TrimmedMean,
    claim,
    epsilon,
    fit,
)
from jaxfl.engine import comm
from jaxfl.engine.marks import plain
from jaxfl.engine.parts import Heard, aggregate, gossip
from jaxfl.engine.simulate import keys, simulate
from jaxfl.networks import Attacked, Bernoulli, Everyone, SignFlip, Uniform, first, topology

KEY = jax.random.key(3)
# What byzfl 0.0.11 makes of nine vectors, the last two Byzantine.
GOLDEN = {
    "mean": (Mean(), [-0.467778, 0.986667, 0.007778, 0.647778]),
    "median": (Median(), [-0.54, 0.09, -0.62, 0.1]),
    "trimmed mean": (TrimmedMean(2.0), [-0.356, 0.294, -0.196, 0.288]),
    "krum": (Krum(2.0), [0.13, -0.13, 0.64, 0.1]),
    "krum, byzfl": (Krum(2.0, "byzfl"), [0.13, -0.13, 0.64, 0.1]),
    "multi-krum": (MultiKrum(2.0), [-0.356, 0.002, 0.212, 0.496]),
    "multi-krum, byzfl": (
        MultiKrum(2.0, "byzfl"),
        [-0.458571, -0.017143, -0.132857, 0.118571],
    ),
    "geometric median": (
        GeometricMedian(start="own"),
        [-0.348235, 0.1537, 0.12484, 0.359916],
    ),
    "exact geometric median": (
        GeometricMedian(nu=1e-9, steps=1000),
        [-0.354933, 0.149279, 0.137109, 0.373554],
    ),
    "centred clipping": (CenteredClipping(1.0), [-0.167771, 0.089144, 0.008527, 0.146984]),
    "centred clipping, three steps": (
        CenteredClipping(1.0, 3),
        [-0.316507, 0.15632, 0.048191, 0.295875],
    ),
}


def heard(x, w=None):
    """What a server has before it: the change 0 in slot 0, with weight 0."""
    rows = np.concatenate([np.zeros_like(x[:1]), x])
    w = np.full(len(x), 1 / len(x)) if w is None else w
    tree = {"a": rows[:, :2].reshape(len(rows), 2, 1), "b": rows[:, 2:]}
    return Heard(jax.tree.map(jnp.asarray, tree), jnp.append(0.0, w), jnp.arange(len(rows)))


def made(rule, x, w=None):
    memory = (
        rule.init(jax.tree.map(lambda a: a[0], heard(x).rows), len(x))
        if hasattr(rule, "init")
        else ()
    )
    out, memory = jax.jit(aggregate)(rule, heard(x, w), memory)
    return np.concatenate([np.ravel(out["a"]), out["b"]])


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name):
    rule, want = GOLDEN[name]
    np.testing.assert_allclose(made(rule, X), want, atol=1e-6)


def nnm(x, f):
    """The mean of the n - f rows nearest to each, itself included."""
    far = np.square(x[:, None] - x[None]).sum(-1)
    return np.array([x[np.argsort(row)[: len(x) - f]].mean(0) for row in far])


def test_nearest_neighbour_mixing():
    np.testing.assert_allclose(nnm(X, 2)[8], [-1.444286, 0.541429, 0.83, 0.25], atol=1e-6)
    for rule, plain_rule in ((Median(), lambda x: np.median(x, 0)), (Mean(), lambda x: x.mean(0))):
        np.testing.assert_allclose(made(NNM(2.0, rule), X), plain_rule(nnm(X, 2)), rtol=1e-12)
    all_rows = made(NNM(0.0, Krum(2.0)), X)
    np.testing.assert_allclose(all_rows, X.mean(0), rtol=1e-12, err_msg="every row is the mean")


ROBUST = {k: rule for k, (rule, _) in GOLDEN.items() if k != "mean"} | {
    "nnm": NNM(2.0, TrimmedMean(2.0)),
    "nnm, krum": NNM(2.0, Krum(2.0)),
}


@pytest.mark.parametrize("bad", [1e6, -1e15, np.nan, np.inf])
@pytest.mark.parametrize("name", ROBUST)
def test_two_liars_of_nine_do_not_matter(name, bad):
    x = X.copy()
    x[7:] = bad
    got = made(ROBUST[name], x)
    assert np.isfinite(got).all() and np.abs(got - X[:7].mean(0)).max() < 4


@pytest.mark.parametrize("name", [*ROBUST, "mean"])
def test_who_is_not_there_does_not_count(name):
    """Weight 0 is absence, whatever the row holds; and rows may come in any order."""
    rule = (ROBUST | {"mean": Mean()})[name]
    if "clipping" in name:
        rule = dataclasses.replace(rule, tau=100.0)
    few, order = X[:7], np.array([3, 0, 6, 1, 5, 2, 4])
    want = made(rule, few)
    there = np.append(np.full(7, 1 / 7), [0, 0])
    filled = np.concatenate([few, np.full((2, 4), np.nan)])
    np.testing.assert_allclose(made(rule, filled, there), want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(made(rule, few[order]), want, rtol=1e-9, atol=1e-9)
    alone = made(rule, X[:1])
    np.testing.assert_allclose(alone, X[0], atol=1e-9)


def go(alg, network, rounds=30, clients=CLIENTS):
    return simulate(alg, clients, network, X0, KEY, rounds=rounds)


@pytest.mark.parametrize("weights", ["uniform", "count"])
def test_a_linear_rule_by_messages_is_the_mean_by_blocks(weights):
    """Centred clipping that clips nothing takes all messages at once, and gives FedAvg."""
    fed = FedAvg(lr=0.05, weighting=weights)
    wide = fed.replace(aggregator=CenteredClipping(1e9))
    got, want = go(wide, Uniform(N, 3)), go(fed, Uniform(N, 3))
    np.testing.assert_allclose(got.state.params, want.state.params, rtol=1e-10)
    np.testing.assert_array_equal(got.history.up, want.history.up)


@pytest.mark.parametrize("alg", [FedAvg(lr=0.05), FedProx(lr=0.05), Scaffold(lr=0.05)], ids=type)
def test_robust_servers_survive(alg):
    world = Attacked(Everyone(N), first(2, N), SignFlip(1e6))
    honest = go(alg, Everyone(N)).state.params
    for rule in (Median(), Krum(2.0), MultiKrum(2.0), NNM(2.0, TrimmedMean(2.0))):
        got = go(alg.replace(aggregator=rule), world).state
        assert jax.tree.all(jax.tree.map(lambda a: bool(jnp.isfinite(a).all()), got))
        assert np.abs(got.params - honest).max() < 4
    lost = go(alg, world).state.params
    assert not np.abs(lost - honest).max() < 1e3


def test_an_empty_round_moves_no_memory():
    for rule in (CenteredClipping(1.0), Krum(1.0), NNM(1.0, Median())):
        alg = FedAvg(lr=0.05, aggregator=rule, compress=EF(TopK(0.4)), server=Momentum(0.9))
        begin = go(alg, Uniform(N, 3)).state
        end = simulate(
            alg, CLIENTS, networks.Drop(Uniform(N, 3), 1.0), X0, KEY, rounds=3, state=begin
        ).state
        jax.tree.map(np.testing.assert_array_equal, begin, end)


def test_error_feedback_stays_with_the_client():
    """e of a client that is away stays; over all rounds what was sent and what is left is all."""
    alg = FedAvg(lr=0.05, compress=EF(TopK(0.4)))
    begin = go(alg, Uniform(N, 3)).state
    net = Uniform(N, 3)(jnp.int32(30), keys(KEY, 30)[0])
    marked = alg.init(X0, CLIENTS, KEY)
    assert plain(marked).link.feedback[0].shape == (N, D)
    end = simulate(alg, CLIENTS, Uniform(N, 3), X0, KEY, rounds=1, start=30, state=begin).state
    moved = (np.asarray(begin.link.feedback[0]) != np.asarray(end.link.feedback[0])).any(1)
    away = np.setdiff1d(np.arange(N), net.idx)
    assert moved.any() and not moved[away].any()
    sent = np.asarray(go(alg, Uniform(N, 3)).history.up)
    np.testing.assert_allclose(sent, float(alg.compress.bits(X0)))


W = np.asarray(comm.to_dense(topology("erdos_renyi", N, p=0.5, seed=2).w))
Z = np.random.default_rng(1).normal(size=(N, D))


@pytest.mark.parametrize("sparse", [False, True])
def test_every_node_is_a_receiver(sparse, monkeypatch):
    """On a graph: clipped gossip and NNA by distances to the own, Krum by all, the median."""
    if sparse:
        monkeypatch.setattr("jaxfl.engine.distances._SPARSE", 0)  # no products of all pairs
    near = comm.to_near(topology("erdos_renyi", N, p=0.5, seed=2).w)
    sent = Z.copy()
    sent[0] = 1e3
    run = lambda rule: np.asarray(
        jax.jit(partial(gossip))(rule, near, jnp.asarray(sent), jnp.asarray(Z))[0]
    )
    got = {
        k: run(r)
        for k, r in {
            "clip": ClippedGossip(1.0),
            "krum": Krum(1.0, "byzfl"),
            "median": Median(),
            "near": NearestNeighbours(1.0),
            "mean": Mean(),
        }.items()
    }
    for i in range(N):
        who = [i] + [j for j in range(N) if j != i and W[i, j] != 0]
        rows = np.array([Z[i], *(sent[j] for j in who[1:])])
        far = np.linalg.norm(rows - Z[i], axis=1)
        clip = Z[i] + sum(
            W[i, j] * (r - Z[i]) * min(1, 1 / d) for j, r, d in zip(who[1:], rows[1:], far[1:])
        )
        np.testing.assert_allclose(got["clip"][i], clip, rtol=1e-6)
        np.testing.assert_allclose(got["median"][i], np.median(rows, 0), rtol=1e-12)
        kept = rows[np.argsort(far)[: len(rows) - 1]]
        np.testing.assert_allclose(got["near"][i], kept.mean(0), rtol=1e-12)
        squared = np.sort(np.square(rows[:, None] - rows[None]).sum(-1), 1)
        best = np.argmin(squared[:, 1 : max(len(rows) - 1, 2)].sum(1))
        np.testing.assert_allclose(got["krum"][i], rows[best], rtol=1e-12)
        np.testing.assert_allclose(
            got["mean"][i], W[i, i] * Z[i] + sum(W[i, j] * sent[j] for j in who[1:]), rtol=1e-12
        )


def test_graph_methods_take_aggregators():
    ring = topology("ring", N)
    for alg in (DSGD(lr=0.05), Choco(lr=0.05, gamma=0.3)):
        plain_run = go(alg, ring).state.params
        wide = go(alg.replace(aggregator=ClippedGossip(1e9)), ring).state.params
        np.testing.assert_allclose(wide, plain_run, rtol=1e-9, atol=1e-12)
        centred = go(alg.replace(aggregator=CenteredClipping(1.0)), ring).state
        assert np.isfinite(centred.params).all() and jax.tree.leaves(centred.link)[0].shape == (
            N,
            D,
        )


# Privacy ------------------------------------------------------------------------------------------


def test_private_averages():
    """The sum of clipped changes over a constant, and noise of the promised deviation."""
    world, fed = Bernoulli(N, 0.5), FedAvg(lr=0.05)
    moved = lambda clip, size: np.asarray(
        go(fed.replace(privacy=Gaussian(size, clip, 0.0)), Everyone(N), rounds=1).state.params - X0
    )
    mean = go(fed, Everyone(N), rounds=1).state.params - X0
    np.testing.assert_allclose(moved(1e6, N), mean, rtol=1e-12, err_msg="nothing is clipped")
    np.testing.assert_allclose(moved(1e6, 4.0), 2 * mean, rtol=1e-12)
    local = lambda client, key: fit(fed, client, X0, key)[0] - X0
    changes = np.asarray(CLIENTS.each(local, key=jax.random.fold_in(KEY, 0)))
    length = np.linalg.norm(changes, axis=1)
    clip = float(np.median(length))
    clipped = (changes * np.minimum(1, clip / length)[:, None]).sum(0)
    np.testing.assert_allclose(moved(clip, 4.0), clipped / 4.0, rtol=1e-12)
    # nobody comes, and the noise does
    alg = FedAvg(lr=0.05, privacy=Gaussian(size=4.0, clip=0.3, noise=2.0))
    nobody = networks.Drop(Everyone(N), 1.0)
    run = jax.jit(jax.vmap(lambda key: simulate(alg, CLIENTS, nobody, X0, key, rounds=1).state))
    noise = np.asarray(run(jax.random.split(KEY, 2000)).params) - np.asarray(X0)
    spread = noise.std() / (2.0 * 0.3 / 4.0)
    assert abs(spread - 1) < 5 / np.sqrt(2 * noise.size) and abs(noise.mean()) < 5 * 0.15 / 100
    # with nothing but noise, all that the server keeps is the same on other data
    other = CLIENTS.replace(
        data=CLIENTS.data._replace(arrays={**CLIENTS.data.arrays, "b": -CLIENTS.data.arrays["b"]})
    )
    zero = FedAvg(lr=0.05, privacy=Gaussian(size=4.0, clip=1e-30, noise=2e30), server=Momentum(0.9))
    ends = [go(zero, world, clients=c).state for c in (CLIENTS, other)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), *ends)


def test_epsilon():
    """Values of dp_accounting 0.6.0, by Poisson cohorts, full ones, and cohorts of a fixed size."""
    private = lambda size, noise: FedAvg(lr=0.1, privacy=Gaussian(size=size, noise=noise))
    for noise, want in ((0.8, 11.1933), (1.0, 7.0962), (1.5, 3.5225)):
        got = epsilon(private(100.0, noise), Bernoulli(1000, 0.1), 200, 1e-3)
        np.testing.assert_allclose(got, want, rtol=1e-4)
    np.testing.assert_allclose(epsilon(private(8.0, 5.0), Everyone(8), 50, 1e-5), 6.573, rtol=1e-4)
    fixed = epsilon(private(100.0, 2.0), Uniform(1000, 100), 100, 1e-5)
    np.testing.assert_allclose(fixed, 14.0538, rtol=1e-4)
    assert epsilon(FedAvg(lr=0.1), Everyone(8), 50, 1e-5) == np.inf
    assert claim(FedAvg(lr=0.1), Everyone(8), 50) is None


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: claim(FedAvg(lr=0.1, privacy=p), networks.Cyclic(8, 4), 9), "does not draw its"),
        (lambda p: claim(FedAvg(lr=0.1, privacy=p), Uniform(8, 3), 9), r"size=3"),
        (lambda p: claim(FedProx(lr=0.1, privacy=p), Uniform(8, 4), 9), "has not been shown"),
        (lambda p: go(FedAvg(lr=0.1, privacy=p, aggregator=Median()), Uniform(N, 4)), "is no sum"),
        (lambda p: epsilon(FedAvg(lr=0.1, privacy=p), Uniform(8, 4), 9, 1.5), "delta must be in"),
    ],
)
def test_unsound_privacy_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Gaussian(size=4.0))


def test_choco_takes_no_error_feedback():
    with pytest.raises(ValueError, match=r"compress of CHOCO must not remember.*TopK\("):
        go(Choco(lr=0.1, compress=EF(TopK(0.5))), topology("ring", N))


# Masks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "mask", "home"),
    [
        (FedPer, None, [0, 0, 0, 1, 1]),
        (LGFedAvg, None, [1, 1, 1, 0, 0]),
        (FedBN, Private(("*/norm/*", "head/b")), [0, 1, 0, 1, 0]),
    ],
)
def test_shared_leaves_equal_their_oracle(preset, mask, home):
    """The model is {body: {b [1], norm: {s [1]}, w [1]}, head: {b [1], w [1]}}, in this order."""
    body = {"b": X0[:1], "norm": {"s": X0[1:2]}, "w": X0[2:3]}
    params = {"body": body, "head": {"b": X0[3:4], "w": X0[4:]}}
    alg = preset(lr=0.05, server_lr=0.9, steps=3, **({"mask": mask} if mask else {}))
    tape = record_world(Uniform(N, 3))
    run = play(alg, tape, params=params)
    record = oracle_record(run, tape)[1]
    problem, home = LeastSquares(A, B, ROWS), np.array(home, bool)
    want = partial_sharing.run(
        problem, np.asarray(X0), record, lr=0.05, server_lr=0.9, n=N, home=home
    )
    state = run.state.state
    np.testing.assert_allclose(flat(state.params), want[-1]["params"], rtol=1e-10, atol=1e-10)
    rows = np.stack([flat(state.personal[i]) for i in range(N)])
    np.testing.assert_allclose(rows, want[-1]["personal"], rtol=1e-10, atol=1e-10)
    losses = [e["loss"] for e in want]
    np.testing.assert_allclose(run.history.loss, losses, rtol=1e-10, atol=1e-10)
    assert (np.asarray(run.history.up) == 64 * (~home).sum()).all()


def test_private_leaves_stay():
    """Of a model of two leaves one is shared: FedAvg on it, and the other trains at home."""
    params = {"body": X0[:3], "head": X0[3:]}
    alg = FedAvg(lr=0.05, mask=Private("head"))
    run = simulate(alg, CLIENTS, Uniform(N, 3), params, KEY, rounds=30)
    state, up = run.state, np.asarray(run.history.up)
    assert (up == 3 * 64).all() and state.own["body"] is None and state.own["head"].shape == (N, 2)
    np.testing.assert_array_equal(state.params["head"], X0[3:])
    for i in range(N):
        np.testing.assert_array_equal(state.personal[i]["head"], state.own["head"][i])
        np.testing.assert_array_equal(state.personal[i]["body"], state.params["body"])
    assert len(state.personal) == N
    with pytest.raises(ValueError, match="pattern must fit some leaves of the model and not all"):
        simulate(alg.replace(mask=Private("tail*")), CLIENTS, Uniform(N, 3), params, KEY, rounds=1)
