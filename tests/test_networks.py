"""Networks: cohorts, graphs, failures, churn, adversaries, channels, simulated seconds."""

import itertools
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxfl import networks, problems
from jaxfl.algorithms import Scaffold
from jaxfl.engine import comm
from jaxfl.engine.clients import Clients
from jaxfl.engine.simulate import simulate
from jaxfl.networks import (
    ALIE,
    IPM,
    Attacked,
    Bernoulli,
    Churn,
    Cyclic,
    Dissensus,
    Drop,
    Everyone,
    GaussianNoise,
    Honest,
    LinkFailures,
    Links,
    Noisy,
    Quorum,
    RandomMatching,
    RandomOut,
    Send,
    SignFlip,
    Uniform,
    Weighted,
    alie_z,
    cohorts,
    first,
    from_matrix,
    graphs,
    label_rates,
    markov,
    mixing,
    periodic,
    topology,
    weights,
)
from jaxfl.types import Info

KEY = jax.random.key(5)
DRAWS = 4000
TIGHT = {"rtol": 0, "atol": 1e-12}
RATES = np.array([0.1, 0.2, 0.9, 0.5, 0.4, 1.0])


def matrix(net):
    """What the net's weights do, as a matrix: they mix the unit vectors."""
    w = net.w
    n = w.n if isinstance(w, comm.Shifts) else w.w.shape[0]
    return comm.mix(w, jnp.eye(n))


class Seen(NamedTuple):
    """A net and what its methods say."""

    net: Any
    count: Any
    w: Any = None
    sent: Any = None
    heard: Any = None


def see(net):
    if isinstance(net, networks.Graph):
        return Seen(net, net.participants(), matrix(net), net.sent, net.heard())
    return Seen(net, net.participants())


@jax.jit
def _many(network, ts, keys):
    return jax.vmap(lambda t, key: see(network(t, key)))(ts, keys)


def many(network, t=0, draws=DRAWS):
    """The nets of many keys, rounds t in turn: one program for all networks of one structure."""
    ts = np.resize(np.asarray(t, np.int32), draws)
    return jax.tree.map(np.asarray, _many(network, ts, jax.random.split(KEY, draws)))


@jax.jit
def sent(send, message, key=KEY):
    """What receivers get."""
    return send(message, key)


def within(samples, mean):
    """The mean of the samples, entry by entry, to five standard errors of this very sample."""
    samples = np.asarray(samples, float)
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    assert (abs(samples.mean(0) - mean) <= 5 * error + 1e-12).all(), (samples.mean(0), mean)


def included(idx, n):
    """[draws, n]: who takes part."""
    return (idx[:, :, None] == np.arange(n)).any(1)


# Cohorts.


COHORTS = {
    "everyone": (Everyone(6), 6),
    "uniform": (Uniform(6, 3), 3),
    "uniform, large": (Uniform(1_000_000, 50), 50),
    "bernoulli": (Bernoulli(6, RATES), None),
    "bernoulli, slots": (Bernoulli(6, 0.6, slots=2), None),
    "weighted": (Weighted(RATES, 4), 4),
    "cyclic": (Cyclic(7, 3), None),
    "markov": (markov(6, 3, 50, up=0.3, down=0.4, seed=1), None),
    "drop": (Drop(Uniform(6, 3), 0.3), None),
    "attacked": (Attacked(Uniform(6, 3), first(2, 6), SignFlip()), 3),
}


@pytest.mark.parametrize("name", COHORTS)
def test_cohorts(name):
    network, size = COHORTS[name]
    t = np.arange(DRAWS) % 50
    net, count = many(network, t)[:2]
    live = net.idx < network.n
    assert net.idx.dtype == np.int32 and (net.idx >= 0).all() and (net.idx <= network.n).all()
    np.testing.assert_array_equal(net.weight != 0, live)
    np.testing.assert_array_equal(net.send.live, live)
    np.testing.assert_array_equal(net.t, t)
    np.testing.assert_array_equal(count, live.sum(1))
    for idx, here in zip(net.idx, live):
        assert len(set(idx[here])) == here.sum()
    if size is not None:
        assert (live.sum(1) == size).all()
    else:
        assert len(set(live.sum(1))) > 1
    assert (network.kind, network.static) == (networks.Cohort, True)
    assert network.lossless is not isinstance(network, Drop)


@pytest.mark.parametrize("n, pairs", [(6, 256), (12, 256), (12, 0)])
def test_every_subset_is_equally_likely(n, pairs, monkeypatch):
    """All ways of drawing: the permutation, and redrawing duplicates found by pairs or sorting."""
    monkeypatch.setattr(cohorts, "_PAIRS", pairs)
    draws = 20_000
    idx = many(Uniform(n, 3), draws=draws).net.idx
    subsets = list(itertools.combinations(range(n), 3))
    seen = Counter(map(tuple, np.sort(idx, 1)))
    assert set(seen) == set(subsets)
    p = 1 / len(subsets)
    error = np.sqrt(draws * p * (1 - p))
    assert max(abs(seen[s] - draws * p) for s in subsets) < 5 * error
    within(idx[:, :, None] == np.arange(n), 1 / n)  # every client in every slot
    both = included(idx, n)
    pairs = np.stack([both[:, i] & both[:, j] for i, j in itertools.combinations(range(n), 2)], 1)
    within(pairs, 6 / (n * (n - 1)))


def shapes(jaxpr):
    """Sizes of all arrays in a program, loops and branches included."""
    for equation in jaxpr.eqns:
        for v in (*equation.invars, *equation.outvars):
            yield int(np.prod(v.aval.shape, dtype=np.int64))
        for sub in jaxprs_in_params(equation.params):
            yield from shapes(sub)


def test_a_cohort_of_a_million_costs_a_cohort():
    def largest(network):
        return max(shapes(jax.make_jaxpr(network)(0, KEY).jaxpr))

    assert largest(Uniform(1000, 300)) >= 1000  # the measure sees a permutation
    assert largest(Uniform(1_000_000, 100)) <= 400


def test_a_large_cohort_passes_gradients():
    def total(a):
        def step(x, t):
            net = Uniform(2000, 4)(t, jax.random.fold_in(KEY, t))
            return x + a * comm.mix(net.weight, jnp.ones(4)), None

        return jax.lax.scan(step, 0.0, jnp.arange(3))[0]

    jax.eval_shape(jax.grad(total), 2.0)  # a loop that redraws must not ask for its derivative


def test_bernoulli():
    net = many(Bernoulli(6, RATES, unbiased=1.0)).net
    within(included(net.idx, 6), RATES)
    within(net.weight.sum(1), 1)
    here = net.idx < 6
    np.testing.assert_allclose(net.weight[here], 1 / (6 * RATES[net.idx[here]]), **TIGHT)
    both = included(net.idx, 6)
    within(both[:, 2] & both[:, 3], 0.45)  # independent


def test_bernoulli_beyond_its_slots():
    rate, n, slots = 0.6, 6, 2
    net = many(Bernoulli(n, rate, slots=slots, unbiased=1.0)).net
    came = np.random.default_rng(0).binomial(n, rate, 1_000_000)
    within(included(net.idx, n), np.minimum(came, slots).mean() / n)
    assert net.idx.shape[1] == slots
    within(net.weight.sum(1), 1)
    assert set(many(Bernoulli(n, 0.0, slots=slots)).net.idx.ravel()) == {n}
    slope = jax.jit(jax.grad(lambda r: Bernoulli(3, r, unbiased=1.0)(0, KEY).weight.sum()))
    assert np.isfinite(slope(0.0)) and np.isfinite(slope(0.5))


def test_weighted():
    share = RATES / RATES.sum()
    within(included(many(Weighted(RATES, 1)).net.idx, 6), share)
    idx = many(Weighted(RATES, 2)).net.idx  # the second among the others, by their rates
    within((idx[:, 0] == 5) & (idx[:, 1] == 2), share[5] * share[2] / (1 - share[5]))
    idx = many(Weighted(np.array([1.0, 0, 0, 2.0, 0, 0]), 4)).net.idx
    assert (np.sort(idx, 1) == [0, 3, 6, 6]).all()  # rate 0 leaves its slot empty


def test_cyclic():
    net = many(Cyclic(7, 3), np.arange(6)).net
    np.testing.assert_array_equal(net.idx[:3], [[0, 1, 2], [3, 4, 5], [6, 7, 7]])
    np.testing.assert_array_equal(net.idx[3:6], net.idx[:3])


def test_markov():
    up, down, n, rounds = 0.2, 0.6, 60, 1500
    network = markov(n, 5, rounds, up=up, down=down, seed=3)
    here = np.asarray(network.available)
    assert here.shape == (rounds, n) and network.rounds == rounds and network.n == n
    within(here.mean(0), up / (up + down))  # chains are independent
    assert abs(here[0].mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / n)  # stationary from the start
    for before, p in ((False, up), (True, 1 - down)):
        after = here[1:][here[:-1] == before]
        within(after, p)
    idx = many(network, np.arange(rounds)).net.idx[:rounds]
    assert not (included(idx, n) & ~here).any()
    np.testing.assert_array_equal((idx < n).sum(1), np.minimum(here.sum(1), 5))
    again = markov(n, 5, rounds, up=up, down=down, seed=np.random.default_rng(3))
    np.testing.assert_array_equal(again.available, here)


def test_drop():
    net = many(Drop(Uniform(6, 3), RATES)).net
    within(included(net.idx, 6), (1 - RATES) / 2)
    assert not included(net.idx, 6)[:, 5].any()
    attacked = Attacked(Drop(Uniform(6, 3), 0.5), first(6, 6), SignFlip())
    send = many(attacked).net.send
    np.testing.assert_array_equal(send.byzantine, send.live)  # an empty slot is nobody's


def test_a_lost_upload_leaves_the_clients_state():
    problem = problems.quadratics(6, 2, zeta=1.0, shared=False, seed=0)
    clients = Clients.make(problem.data, problem.partition, problem.loss, batch=1)
    network = Drop(Uniform(6, 3), 0.5)
    run = simulate(Scaffold(lr=0.1, steps=2), clients, network, jnp.zeros(2), KEY, rounds=12)
    np.testing.assert_allclose(run.state.c, run.state.c_i.mean(0), **TIGHT)
    assert run.history.clients.min() < 3 and abs(run.state.c).max() > 0.01


def test_label_rates():
    labels = np.array([0, 0, 1, 2, 2, 2])
    order, start, count = np.arange(6), np.array([0, 2, 4]), np.array([2, 2, 2])
    rates = label_rates(labels, (order, start, count), 1.0)
    np.testing.assert_allclose(rates / rates[0], np.exp([0, -0.75, -1]), **TIGHT)
    np.testing.assert_allclose(rates.mean(), 1, **TIGHT)
    np.testing.assert_allclose(label_rates(labels, (order, start, count), 0.0), 1, **TIGHT)


# Graphs.


def sums_of(w):
    """The strongest of the four properties that matrices [..., n, n] have."""
    close = lambda a, b: np.allclose(a, b, rtol=0, atol=1e-12)
    rows, columns = close(w.sum(-1), 1), close(w.sum(-2), 1)
    if rows and columns:
        return "symmetric" if close(w, np.swapaxes(w, -1, -2)) else "doubly"
    assert rows or columns
    return "row" if rows else "column"


def full(w):
    """A record as a matrix, entry by entry."""
    if isinstance(w, comm.Dense):
        return np.asarray(w.w)
    n = w.n if isinstance(w, comm.Shifts) else len(w.idx)
    out = np.zeros((n, n))
    for i in range(n):
        if isinstance(w, comm.Shifts):
            slots = [((i + shift) % n, value) for shift, value in zip(w.shifts, np.asarray(w.w))]
        else:
            slots = zip(np.asarray(w.idx[i]), np.asarray(w.w[i]))
        for j, value in slots:
            out[i, j] += value
    return out


@pytest.mark.parametrize("name", networks.GRAPHS)
def test_named_graphs(name):
    n = 8
    drawn = graphs.make(name, n, seed=2)
    rule = weights.column_stochastic if drawn.is_directed() else weights.metropolis
    expected = rule(drawn)
    network = topology(name, n, seed=2)
    net = network(0, KEY)
    np.testing.assert_allclose(full(net.w), expected, **TIGHT)
    assert network.sums == sums_of(expected)
    assert network.column == (network.sums == "column")
    assert (network.n, network.kind, network.static, network.lossless) == (
        n, networks.Graph, True, True
    )  # fmt: skip
    assert np.asarray(net.active).all() and np.asarray(net.send.live).all()
    np.testing.assert_array_equal(net.send.id, np.arange(n))
    edges = (expected != 0) & ~np.eye(n, dtype=bool)
    np.testing.assert_array_equal(net.sent, edges.sum(0))
    np.testing.assert_array_equal(net.heard(), edges.sum(1))


def test_weights_by_name():
    ring = weights.metropolis(graphs.ring(6))
    w = full(topology("ring", 6, weights="lazy").w)
    np.testing.assert_allclose(w, networks.lazy(ring), **TIGHT)
    np.testing.assert_allclose(networks.gap(w), networks.gap(ring) / 2, **TIGHT)
    assert networks.mixing_time(w) > networks.mixing_time(ring)
    assert networks.chi1(w) > networks.chi1(ring) and networks.chi2(w) > networks.chi2(ring)
    w = full(topology("ring", 6, weights="constant", alpha=0.1).w)
    np.testing.assert_allclose(np.diag(w), 0.8, **TIGHT)
    directed = topology("exponential", 6, weights="sinkhorn")
    assert directed.sums == "doubly"
    with pytest.warns(UserWarning, match="do not average"):
        assert topology("star", 6, weights="uniform").sums == "row"


def test_records_by_structure():
    assert isinstance(topology("complete", 8).w, comm.Dense)
    assert isinstance(topology("ring", 8).w, comm.Shifts)
    assert isinstance(topology("path", 8).w, comm.Near)


@pytest.mark.parametrize("n", [2, 8])
def test_one_peer(n):
    for name in ("one_peer_exponential", "one_peer_hypercube"):
        network = topology(name, n)
        period = network.w.w.shape[0]
        ws = many(network, 1 + np.arange(2 * period)).w[: 2 * period]
        np.testing.assert_allclose(
            np.linalg.multi_dot([*ws[:period], np.eye(n)]), np.full((n, n), 1 / n), **TIGHT
        )
        np.testing.assert_array_equal(ws[:period], ws[period:])
        assert network.sums == sums_of(ws)


def test_one_peer_ring():
    network = topology("one_peer_ring", 6)
    ws = many(network, np.arange(2)).w[:2]
    np.testing.assert_allclose(ws, weights.peers(graphs.one_peer_ring(6)), **TIGHT)
    assert network.sums == sums_of(ws) == "symmetric"


def points_back(near):
    """`back` of every slot points to the receiver, or says that there is no way back."""
    for idx, back in zip(near.idx, near.back):
        for i, s in np.argwhere(back >= 0):
            assert idx[idx[i, s], back[i, s]] == i
        own = idx == np.arange(len(idx))[:, None]
        assert (back[own] == 0).all()


@pytest.mark.parametrize("n", [2, 7, 8])
def test_random_matching(n):
    net, _, ws, *_ = many(RandomMatching(n))
    assert sums_of(ws) == RandomMatching(n).sums == "symmetric"
    np.testing.assert_array_equal((ws != 0).sum(2).clip(max=2), (ws != 0).sum(2))
    np.testing.assert_array_equal((np.diagonal(ws, axis1=1, axis2=2) == 1).sum(1), n % 2)
    if n % 2 == 0:
        within(ws, np.eye(n) / 2 + (1 - np.eye(n)) / (2 * (n - 1)))
    points_back(jax.tree.map(lambda a: a[:20], net.w))


def test_one_name_is_one_graph():
    """No fixed graph has the name of one that is drawn anew; the defaults of both are equal."""
    assert not set(networks.GRAPHS) & set(networks.TIME_VARYING)
    assert topology("random_out", 8) == RandomOut(8)
    fixed = graphs.random_out_fixed(8)
    assert {d for _, d in fixed.out_degree} == {RandomOut(8).k}
    with pytest.raises(ValueError, match="did you mean 'random_out_fixed'"):
        graphs.make("random_out", 8)


@pytest.mark.parametrize("k", [1, 3])
def test_random_out(k):
    network = topology("random_out", 8, k=k)
    _, _, ws, out, heard = many(network)
    assert network.sums == sums_of(ws) == "column" and network.column == 1
    assert set(np.unique(ws.round(12))) == {0, round(1 / (k + 1), 12)}
    np.testing.assert_array_equal((ws != 0).sum(1), k + 1)
    np.testing.assert_array_equal(out, k)
    np.testing.assert_array_equal(heard, (ws != 0).sum(2) - 1)
    within(ws != 0, np.eye(8) + k / 7 * (1 - np.eye(8)))


def test_periodic():
    one = weights.peers(graphs.one_peer_ring(6))
    two = weights.metropolis(graphs.path(6))
    network = periodic([*one, two])
    ws = many(network, np.arange(6)).w[:6]
    np.testing.assert_allclose(ws, [*one, two, *one, two], **TIGHT)
    assert network.sums == "symmetric" and not network.static and network.lossless
    assert network.w.idx.shape == (3, 6, 3)
    points_back(jax.tree.map(np.asarray, network.w))
    star = weights.column_stochastic(graphs.star(4))
    assert periodic([star, star.T @ np.eye(4) * 0 + star]).column == 1
    assert periodic([star.T, np.full((4, 4), 0.25)]).sums == "row"


@pytest.mark.parametrize("f", [0, 2])
def test_quorum(f):
    n = 7
    bad = np.array([False, True, False, False, True, False, False])
    near = many(Quorum(n, f, bad if f else None)).net.w
    np.testing.assert_array_equal(near.idx[:, :, 0], np.broadcast_to(np.arange(n), (DRAWS, n)))
    assert near.idx.shape[2] == n - f
    assert (np.diff(np.sort(near.idx, 2), axis=2) > 0).all()  # distinct
    np.testing.assert_allclose(near.w, 1 / (n - f), **TIGHT)
    heard = (near.idx[:, :, :, None] == np.arange(n)).any(2)
    if f:
        assert heard[:, :, bad].all()
        honest = heard[:, 0, 2]  # node 0 takes n - f - 1 - 2 of the 4 other honest ones
        within(honest, (n - f - 3) / 4)
        default = many(Quorum(n, f)).net.w.idx
        assert (default[:, 3:] < f).any(2).all()


# Failures and churn.


SYMMETRIC = {
    "shifts": topology("ring", 8),
    "slots": topology("regular", 8, degree=3),
    "dense": topology("complete", 5),
    "matching": RandomMatching(6),
}


@pytest.mark.parametrize("name", SYMMETRIC)
def test_links_fail_in_both_directions(name):
    network, rate = SYMMETRIC[name], 0.3
    failing = LinkFailures(network, rate)
    ws = many(failing).w
    assert failing.sums == sums_of(ws) == "symmetric" and not failing.lossless
    if not network.static:
        return
    whole = full(network.w)
    edges = np.argwhere(np.triu(whole, 1))
    kept = ws[:, edges[:, 0], edges[:, 1]] != 0
    within(kept, 1 - rate)
    pairs = np.stack([kept[:, a] & kept[:, b] for a, b in itertools.combinations(range(5), 2)], 1)
    within(pairs, (1 - rate) ** 2)  # independent
    np.testing.assert_allclose(
        np.where(ws * (1 - np.eye(len(whole))) != 0, ws - whole, 0), 0, **TIGHT
    )
    within(ws, (1 - rate) * whole + rate * np.eye(len(whole)))


def test_no_failures_and_nothing_but_failures():
    ring = topology("ring", 8)
    none, all_ = (many(LinkFailures(ring, r)).w for r in (0.0, 1.0))
    np.testing.assert_allclose(none, np.broadcast_to(full(ring.w), none.shape), **TIGHT)
    np.testing.assert_allclose(all_, np.broadcast_to(np.eye(8), all_.shape), **TIGHT)


@pytest.mark.parametrize(
    "wrap, network, keep, sums",
    [
        (LinkFailures, topology("exponential", 8), "column", "column"),
        (LinkFailures, topology("exponential", 8), "", "row"),
        (LinkFailures, RandomOut(8, 2), "", "column"),
        (LinkFailures, Quorum(6, 2), "", "row"),
        (Churn, topology("exponential", 8), "column", "column"),
        (Churn, topology("ring", 8), "column", "symmetric"),
    ],
)
def test_directed_links_keep_what_is_asked(wrap, network, keep, sums):
    """A lost one-way message stays with its sender (push-sum) or its receiver (gossip)."""
    failing = wrap(network, 0.5, keep)
    ws = many(failing).w
    assert failing.sums == sums == sums_of(ws)
    assert failing.column == (sums == "column")
    assert Attacked(failing).sums == sums
    eye = np.eye(network.n, dtype=bool)
    assert (ws[:, ~eye] == 0).mean() > 0.2 and (ws >= 0).all()


def both_sides(active):
    """How many neighbours on a ring are active, of an active node [draws, n]."""
    return active * (np.roll(active, 1, 1).astype(int) + np.roll(active, -1, 1))


def test_churn():
    n, present = 8, np.linspace(0.3, 1, 8)
    network = Churn(topology("ring", n), present)
    net, count, ws, sent, heard = many(network)
    assert network.sums == sums_of(ws) == "symmetric"
    within(net.active, present)
    np.testing.assert_array_equal(net.send.live, net.active)
    away = ~net.active
    eye = np.broadcast_to(np.eye(n), ws.shape)
    np.testing.assert_array_equal(ws[away], eye[away])
    np.testing.assert_array_equal(ws.swapaxes(1, 2)[away], eye[away])
    both = (net.active[:, :, None] & net.active[:, None]) & ~np.eye(n, dtype=bool)
    whole = np.broadcast_to(full(topology("ring", n).w), ws.shape)
    np.testing.assert_allclose(ws[both], whole[both], **TIGHT)
    np.testing.assert_array_equal(count, net.active.sum(1))
    np.testing.assert_array_equal(sent, 2 * net.active)  # to those who are away, too
    np.testing.assert_array_equal(heard, both_sides(net.active))
    nobody = many(Churn(topology("ring", n), np.zeros(n)))
    assert (nobody.sent == 0).all() and (nobody.heard == 0).all()


def test_nodes_that_stay_away_for_a_while():
    table = markov(6, 1, 30, up=0.2, down=0.2, seed=0).available
    active = many(Churn(topology("ring", 6), table), np.arange(30)).net.active[:30]
    np.testing.assert_array_equal(active, table)


def test_failures_and_churn_compose():
    network = LinkFailures(Churn(topology("torus", 9), 0.7), 0.2)
    net, _, ws, *_ = many(network)
    assert network.sums == sums_of(ws) == "symmetric" and network.n == 9
    off = ws * (1 - np.eye(9)) != 0
    assert not off[~net.active].any() and off.any()


SENDING = {
    "shifts": (topology("ring", 8), 2),
    "slots": (topology("star", 8), [7] + [1] * 7),
    "dense": (topology("complete", 5), 4),
    "one way": (topology("exponential", 8), 3),
    "pushed": (RandomOut(8, 2), 2),
    "in pairs": (RandomMatching(6), 1),
    "quorum": (Quorum(10, 3), 9),
}


@pytest.mark.parametrize("name", SENDING)
def test_what_is_sent_and_what_arrives(name):
    """Whatever is lost was sent; whoever is away sends nothing, and is sent to all the same."""
    network, degree = SENDING[name]
    n, liars = network.n, first(2, network.n)
    keep = "row" if isinstance(network, Quorum) else ""
    churn = Churn(network, 0.6, keep)
    attacked = Attacked(churn, liars, SignFlip())
    for world in (LinkFailures(network, 0.4, keep), attacked, LinkFailures(churn, 0.4, keep)):
        net, _, ws, sent, heard = many(world)
        active = np.broadcast_to(net.active, (DRAWS, n))
        np.testing.assert_array_equal(sent, active * np.broadcast_to(degree, (DRAWS, n)))
        off = ws * (1 - np.eye(n)) != 0
        np.testing.assert_array_equal(heard, off.sum(2))
        assert sent.sum() > heard.sum()
    if name == "quorum":
        np.testing.assert_array_equal(many(network).heard, 6)


# Adversaries and channels.


def send(adversary, channel=None, n=7, f=2):
    """The send of a cohort with two Byzantine clients whose last slot is empty."""
    live = jnp.arange(n) < n - 1
    extra = {} if channel is None else {"channel": channel}
    return Send(jnp.arange(n) < f, jnp.arange(n), live, adversary=adversary, **extra)


def message(n=7, dtype=float):
    rng = np.random.default_rng(0)
    return {
        "a": jnp.asarray(rng.normal(size=(n, 3, 2)) + 2, dtype),
        "b": jnp.asarray(rng.normal(size=n), dtype),
    }


def plain(x):
    return jax.tree.map(np.asarray, x)


FORMULAS = {
    "sign flip": (SignFlip(2.0), lambda own, honest: -2 * own),
    "alie": (
        ALIE(1.5),
        lambda own, honest: np.broadcast_to(
            honest.mean(0) - 1.5 * honest.std(0, ddof=1), own.shape
        ),
    ),
    "ipm": (IPM(0.1), lambda own, honest: np.broadcast_to(-0.1 * honest.mean(0), own.shape)),
    "honest": (Honest(), lambda own, honest: own),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(name):
    adversary, formula = FORMULAS[name]
    x = message()
    y = plain(sent(send(adversary), x))
    for leaf, old in zip(jax.tree.leaves(y), jax.tree.leaves(plain(x))):
        np.testing.assert_allclose(leaf[:2], formula(old[:2], old[2:6]), **TIGHT)
        np.testing.assert_array_equal(leaf[2:], old[2:])  # the empty slot counts for nobody
    # what Byzantine clients would have sent does not matter where they lie
    if not adversary.local:
        odd = jax.tree.map(lambda a: a.at[0].set(jnp.nan), x)
        for a, b in zip(jax.tree.leaves(sent(send(adversary), odd)), jax.tree.leaves(y)):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("adversary", [SignFlip, GaussianNoise, ALIE, IPM])
def test_messages_keep_their_dtype(adversary):
    strength = jnp.asarray(2.0, jnp.float64)
    out = jax.eval_shape(send(adversary(strength), Noisy(strength)), message(dtype="float32"), KEY)
    assert {a.dtype for a in jax.tree.leaves(out)} == {np.dtype("float32")}


def test_gradients_where_all_messages_agree():
    x = jnp.ones((7, 2))
    slope = jax.jit(jax.grad(lambda x, z: send(ALIE(z))(x, KEY).sum(), argnums=(0, 1)))(x, 1.5)
    assert all(np.isfinite(s).all() for s in slope)


@pytest.mark.parametrize("n, f, z", [(25, 5, 0.25335), (20, 8, 0.67449), (10, 2, 0.0)])
def test_golden_z(n, f, z):
    np.testing.assert_allclose(alie_z(n, f), z, atol=5e-6)


def test_gaussian_noise():
    x = message()
    y = jax.jit(jax.vmap(lambda key: send(GaussianNoise(3.0))(x, key)))(
        jax.random.split(KEY, DRAWS)
    )
    for leaf, old in zip(jax.tree.leaves(plain(y)), jax.tree.leaves(plain(x))):
        within(leaf[:, :2], 0)
        within(leaf[:, :2] ** 2, 9)
        np.testing.assert_array_equal(leaf[:, 2:], np.broadcast_to(old[2:], leaf[:, 2:].shape))


def test_noisy_channel():
    x = message()
    y = jax.jit(jax.vmap(lambda key: send(SignFlip(), Noisy(0.5))(x, key)))(
        jax.random.split(KEY, DRAWS)
    )
    clean = plain(sent(send(SignFlip()), x))
    noise = jax.tree.map(lambda a, b: np.asarray(a) - b[None], y, clean)
    for z in jax.tree.leaves(noise):
        within(z, 0)
        within(z**2, 0.25)
    a, b = noise["a"].reshape(DRAWS, 7, 6), noise["b"]
    within(a[:, :, 0] * b, 0)  # leaves, numbers and senders are independent
    within(a[:, :, 0] * a[:, :, 1], 0)
    within(a[:, 0, 0] * a[:, 1, 0], 0)


def test_keys_follow_identities():
    """The same client sends the same noise from any slot, in any cohort."""
    x = jnp.ones((4, 3))
    bad = jnp.asarray(first(2, 4))
    everyone = Send(bad, jnp.arange(4), jnp.ones(4, bool), GaussianNoise(), Noisy(1.0))
    y = plain(sent(everyone, x))
    order = np.array([2, 0, 3, 0])
    some = Send(bad[order], jnp.asarray(order), everyone.live, GaussianNoise(), Noisy(1.0))
    np.testing.assert_array_equal(sent(some, x), y[order])


def wheel(dense):
    """The ring 0-4 and the Byzantine hub 5."""
    w = weights.metropolis(nx.relabel_nodes(nx.wheel_graph(6), lambda i: (i - 1) % 6))
    network = from_matrix(w).replace(w=mixing(w, dense=0.0 if dense else 1.0))
    x = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [-1, 0], [9, 9]], float)
    return w, network, x


def dissensus(w, x, bad, i, epsilon):
    honest = [j for j in range(len(x)) if w[i, j] and j != i and not bad[j]]
    pull = sum(w[i, j] * (x[j] - x[i]) for j in honest)
    return x[i] - epsilon * pull / sum(w[i, j] for j in range(len(x)) if bad[j] and j != i)


@jax.jit
def dissent(network, x):
    net = network(0, KEY)
    held = net.send(x, KEY)
    return comm.to_near(net.w), held, comm.mix(net.w, held)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    "epsilon, b, result",
    [(1.0, (2.5, -1.5), (1, 0)), (1.5, (3.25, -2.25), (1.125, -0.125))],
)
def test_dissensus(dense, epsilon, b, result):
    w, network, x = wheel(dense)
    assert isinstance(network.w, comm.Dense if dense else comm.Near)
    bad = np.arange(6) == 5
    near, held, mixed = dissent(Attacked(network, bad, Dissensus(epsilon)), x)
    got = np.einsum("ikm,md->ikd", held.coef, held.rows)
    slot = np.argmax(np.asarray(near.idx[1]) == 5)
    np.testing.assert_allclose(got[1, slot], b, **TIGHT)
    np.testing.assert_allclose(mixed[1], result, **TIGHT)
    for i in range(5):
        lie = dissensus(w, x, bad, i, epsilon)
        expected = w[i] @ np.where(bad[:, None], lie, x)
        np.testing.assert_allclose(mixed[i], expected, **TIGHT)
        if epsilon == 1:
            np.testing.assert_allclose(mixed[i], x[i], **TIGHT)


@pytest.mark.parametrize("inside", [False, True])
def test_dissensus_knows_the_links_that_failed(inside):
    _, network, x = wheel(dense=False)
    bad = np.arange(6) == 5
    attack = lambda net: Attacked(net, bad, Dissensus(1.5))
    lossy = lambda net: LinkFailures(Churn(net, 0.9), 0.3)
    network = lossy(attack(network)) if inside else attack(lossy(network))

    @jax.jit
    @jax.vmap
    def play(key):
        net = network(0, key)
        return matrix(net), comm.mix(net.w, net.send(jnp.asarray(x), KEY))

    ws, mixed = map(np.asarray, play(jax.random.split(KEY, 30)))
    for w, y in zip(ws, mixed):
        for i in range(5):
            if w[i, 5]:
                expected = w[i] @ np.where(bad[:, None], dissensus(w, x, bad, i, 1.5), x)
                np.testing.assert_allclose(y[i], expected, **TIGHT)
    assert (ws[:, :5, 5] == 0).any() and (ws[:, :5, 5] != 0).any()


def test_noise_on_messages_that_differ_by_receiver():
    w, network, x = wheel(dense=False)

    def mixed(key, sigma):
        attacked = Attacked(network, np.arange(6) == 5, Dissensus(), Noisy(sigma))
        net = attacked(0, KEY)
        return comm.mix(net.w, net.send(jnp.asarray(x), key))

    mixed = jax.jit(jax.vmap(mixed, (0, None)))
    keys = jax.random.split(KEY, DRAWS)
    noise = np.asarray(mixed(keys, 0.5)) - np.asarray(mixed(keys, 0.0))
    within(noise, 0)
    variance = 0.25 * ((w**2).sum(1) - np.diag(w) ** 2)  # the own model is not sent
    within(noise**2, np.broadcast_to(variance[:, None], (6, 2)))


def test_who_is_byzantine():
    bad = np.array([0, 1, 0, 0, 1, 0])  # 0/1 will do
    net = many(Attacked(Uniform(6, 3), bad == 1, SignFlip())).net
    np.testing.assert_array_equal(net.send.byzantine, bad[net.idx] == 1)
    net = many(Attacked(Churn(topology("ring", 6), 0.5), bad, SignFlip())).net
    np.testing.assert_array_equal(net.send.byzantine, (bad == 1) & net.active)
    network = Churn(Attacked(topology("ring", 6), bad, IPM()), 0.5)
    net = np.asarray(jax.vmap(lambda net: net.send.honest())(many(network).net))
    assert (net[:, bad == 1] == 0).all() and 0 < net.mean() < 1
    network = Attacked(topology("ring", 6), channel=Noisy(0.1))  # a channel and no adversary
    assert not network(0, KEY).send.byzantine.any()
    assert (network.kind, network.static, network.lossless) == (networks.Graph, True, True)


# Simulated seconds.


INFO = Info(loss=0.0, up=600.0, down=400.0, grads=3.0)  # the same for all


@jax.jit
def seconds(network, t=0):
    return network(t, KEY).seconds(INFO)


def test_seconds_of_a_cohort():
    links = Links(compute=0.5, latency=0.1, up=100.0, down=200.0)
    assert seconds(Everyone(3, links)) == pytest.approx(1.5 + 0.2 + 6 + 2)
    links = Links(np.array([1.0, 2.0, 3.0]), np.array([9.0, 0.0, 0.0]), 100.0, np.array([50.0] * 3))
    each = np.array([3 + 18, 6, 9]) + 6 + 8.0
    assert seconds(Everyone(3, links)) == pytest.approx(each.max())
    network = Cyclic(3, 2, links)
    net = [seconds(network), seconds(network, 1)]
    np.testing.assert_allclose(net, [each[:2].max(), each[2]])  # empty slots take no time
    assert seconds(Bernoulli(3, 0.0, links=links)) == 0
    assert seconds(Drop(Everyone(3, links), np.array([1.0, 0.0, 0.0]))) == pytest.approx(each[2])


def test_seconds_of_a_graph():
    path = weights.metropolis(graphs.path(3))  # slots: 0-1, 1-0, 1-2, 2-1
    scalar = Links(compute=0.5, latency=0.1, up=100.0)
    assert seconds(from_matrix(path, links=scalar)) == pytest.approx(1.5 + 0.1 + 6)
    one = Links(
        np.array([1.0, 2.0, 0.0]), np.array([0.0, 1.0, 20.0]), np.array([10.0, 100.0, 100.0])
    )
    network = from_matrix(path, links=one)
    each = np.array([3 + 0 + 60, 6 + 1 + 6, 0 + 20 + 6.0])
    assert seconds(network) == pytest.approx(each.max())
    away = Churn(network, np.array([0.0, 1.0, 1.0]))
    assert seconds(away) == pytest.approx(each[1:].max())
    # by link: receiver and slot; a message starts when its sender is ready: the ends of the path
    # send one of 600 bits, the middle two of 300
    idx = np.asarray(comm.to_near(network.w).idx)
    latency, up = np.full(idx.shape, 1.0), np.full(idx.shape, 100.0)
    up[1, list(idx[1]).index(2)] = 10.0
    latency[0, list(idx[0]).index(1)] = 50.0
    one = Links(np.array([1.0, 2.0, 0.0]), latency, up)
    assert seconds(from_matrix(path, links=one)) == pytest.approx(max(6 + 50 + 3, 0 + 1 + 60))
    shared = Links(np.array([1.0, 2.0, 0.0]), latency, np.array([10.0, 100.0, 100.0]))
    assert seconds(from_matrix(path, links=shared)) == pytest.approx(max(6 + 50 + 6, 3 + 1 + 60))
    rates = one.replace(latency=np.array([0.0, 1.0, 20.0]))
    assert seconds(from_matrix(path, links=rates)) == pytest.approx(0 + 20 + 60)
    alone = Churn(from_matrix(path, links=one), np.array([1.0, 0.0, 1.0]))
    assert seconds(alone) == pytest.approx(3)  # nobody to send to


# Arrays are traced.


def test_rates_weights_and_noise_can_be_mapped():
    ring = topology("ring", 6)
    rates = jnp.array([0.0, 0.5, 1.0])

    @jax.jit
    @jax.vmap
    def each(rate):
        kept = (matrix(LinkFailures(ring, rate)(0, KEY)) != 0).sum()
        noise = send(Honest(), Noisy(rate))(jnp.zeros((7, 2)), KEY)
        return kept, noise, Bernoulli(6, rate)(0, KEY).participants()

    kept, noise, counts = each(rates)
    assert kept[0] == 18 and kept[2] == 6 and 6 <= kept[1] <= 18
    np.testing.assert_allclose(noise[1] * 2, noise[2], **TIGHT)
    assert (noise[0] == 0).all() and (noise[2] != 0).all()
    assert counts[0] == 0 and counts[2] == 6
    both = [weights.make(rule, graphs.ring(6)) for rule in ("metropolis", "lazy")]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *map(from_matrix, both))
    np.testing.assert_allclose(jax.vmap(lambda net: matrix(net(0, KEY)))(stacked), both, **TIGHT)


def test_a_new_graph_of_the_same_shape_does_not_recompile():
    step = jax.jit(lambda network, x: comm.mix(network(0, KEY).w, x))
    x = jnp.ones((16, 2))
    for seed in range(3):
        network = topology("regular", 16, degree=4, seed=seed)
        step(LinkFailures(network, seed / 4), x)
    assert step._cache_size() == 1
    for rule in ("metropolis", "lazy", "best_constant"):
        step(topology("ring", 16, weights=rule, links=Links(latency=0.3)), x)
    assert step._cache_size() == 2
    for bad in (first(1, 16), first(5, 16)):
        step(Attacked(topology("ring", 16), bad, SignFlip()), x)
    assert step._cache_size() == 3


def test_gradients():
    x = jnp.arange(12.0).reshape(6, 2)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2))
    def out(rate, sigma, w):
        network = from_matrix(weights.metropolis(graphs.ring(6)))
        network = network.replace(w=network.w.replace(w=w))
        net = Attacked(LinkFailures(Churn(network, 1 - rate), rate), channel=Noisy(sigma))(0, KEY)
        return jnp.square(comm.mix(net.w, net.send(x, KEY))).sum()

    w = jnp.asarray(topology("ring", 6).w.w)
    slopes = out(0.3, 0.1, w)[1]
    assert all(np.isfinite(s).all() for s in slopes)
    assert slopes[0] == 0  # a failure is a threshold
    for k in range(3):
        step = jnp.zeros(3).at[k].set(1e-6)
        slope = (out(0.3, 0.1, w + step)[0] - out(0.3, 0.1, w - step)[0]) / 2e-6
        np.testing.assert_allclose(slopes[2][k], slope, rtol=1e-6)
