"""Costs are counted where they arise: recomputed from what was drawn, client by client.

Nothing here asks a net what a round costs: who took part, who met whom and whose shard has how many
batches is read off the record of the world, and the rest is loops.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from harness import CLIENTS, COUNTS, KEY, X0, D, N, record_world, squares

from jaxfl import networks, struct
from jaxfl.algorithms import (
    DADAO,
    DSGD,
    Ditto,
    FedAdam,
    FedAvg,
    FedBuff,
    FedProx,
    GossipLearning,
    GradientTracking,
    Scaffold,
)
from jaxfl.components.solvers import SGD, train
from jaxfl.engine import comm
from jaxfl.engine.client import Client
from jaxfl.engine.simulate import simulate
from jaxfl.networks import (
    Bernoulli,
    Churn,
    Cohort,
    Cyclic,
    Drop,
    Events,
    Everyone,
    Graph,
    LinkFailures,
    Links,
    Messages,
    Quorum,
    Uniform,
    arrivals,
    from_events,
    gossip,
    graphs,
    topology,
)
from jaxfl.runs.run import run
from jaxfl.types import Info, Work

ROUNDS = 6
BITS = 64 * D  # of a model, in float64
BATCHES = -(-COUNTS // CLIENTS.batch)  # of an epoch, from 1 to 4
RNG = np.random.default_rng(0)
SPEED = {"compute": RNG.uniform(0.1, 1, N), "latency": RNG.uniform(0, 2, N)}
LINKS = Links(**SPEED, up=RNG.uniform(50, 900, N), down=RNG.uniform(50, 900, N))
RANDOM = topology("erdos_renyi", N, p=0.4, seed=1, links=LINKS)
SLOTS = comm.to_near(RANDOM.w).idx.shape
WIRES = Links(SPEED["compute"], RNG.uniform(0, 2, SLOTS), RNG.uniform(50, 900, SLOTS))
CIRCLE = graphs.make("ring", N)


def go(alg, network, rounds=ROUNDS, clients=CLIENTS, **options):
    return simulate(alg, clients, network, X0, KEY, rounds=rounds, **options).history


def drawn(network):
    """The nets that `go` meets, as plain arrays."""
    return jax.tree.map(np.asarray, record_world(network, ROUNDS).nets)


# What each client does in a round: {client: (gradients, bits up, bits down)} ----------------------


def cohort(net, grads, size):
    return {int(i): (grads[i], size, size) for i in net.idx if i < N}


def edges(w):
    """[receiver, sender] of messages."""
    return (np.asarray(comm.to_dense(w)) != 0) & ~np.eye(N, dtype=bool)


def nodes(net, grads, size, every):
    """Every active node sends along all edges of the graph, whoever is away and whatever fails."""
    sent, heard = every.sum(0) * size, edges(net.w).sum(1) * size
    return {i: (grads[i], sent[i], heard[i]) for i in range(N) if net.active[i]}


def pushed(net, grads, size):
    done = {i: [0, net.sent[i] * size, 0] for i in range(N)}
    for i in net.i[net.i < N]:
        done[int(i)][0] += grads[i]
        done[int(i)][2] += size
    return done


def met(net, size):
    done = {i: [0, 0, 0] for i in range(N)}
    for i in net.grad[net.grad < N]:
        done[int(i)][0] += 1
    for a, b in zip(net.i[net.i < N], net.j[net.i < N], strict=True):
        for i in (int(a), int(b)):
            done[i][1] += size
            done[i][2] += size
    return done


# How long it takes --------------------------------------------------------------------------------


def slowest_client(done):
    """Download, compute, upload, one after the other; the server waits for the last."""
    each = [
        LINKS.compute[i] * grads + 2 * LINKS.latency[i] + up / LINKS.up[i] + down / LINKS.down[i]
        for i, (grads, up, down) in done.items()
    ]
    return max(each, default=0.0)


def slowest_node(done):
    """Compute, then send; a node that sends nothing has no latency."""
    each = [
        LINKS.compute[i] * grads + (LINKS.latency[i] + up / LINKS.up[i] if up else 0)
        for i, (grads, up, _) in done.items()
    ]
    return max(each, default=0.0)


def last_wire(done, net):
    """Every link by itself: what arrives last, or who computes longest."""
    near, ends = comm.to_near(net.w), [0.0]
    for i in range(N):
        ends += [WIRES.compute[i] * done[i][0]] if i in done else []
        for k in range(near.idx.shape[1]):
            j = int(near.idx[i, k])
            if j != i and near.w[i, k] != 0:
                ready = WIRES.compute[j] * done[j][0]
                ends.append(ready + WIRES.latency[i, k] + BITS / WIRES.up[i, k])
    return max(ends)


EPOCHS = {"lr": 0.05, "epochs": 2}
COUNT = {**EPOCHS, "weighting": "count"}
UNEQUAL = Bernoulli(N, np.linspace(0.2, 0.9, N), unbiased=1.0, links=LINKS)
LOSSY = gossip(CIRCLE, ROUNDS, period=10, delay=(0, 15), drop=0.3, online=0.7, seed=5)
EVERY = edges(RANDOM.w)
twice = 2 * BATCHES

# name: algorithm, network, what each client does, how long it takes
WORK = {
    "fedavg": (FedAvg(**COUNT), UNEQUAL, lambda net: cohort(net, twice, BITS)),
    "fedavg, one epoch": (
        FedAvg(lr=0.05, epochs=1),
        UNEQUAL,
        lambda net: cohort(net, BATCHES, BITS),
    ),
    "fedprox": (FedProx(**COUNT), Uniform(N, 3, LINKS), lambda net: cohort(net, twice, BITS)),
    "fedadam": (FedAdam(**COUNT), Cyclic(N, 3, LINKS), lambda net: cohort(net, twice, BITS)),
    "scaffold": (
        Scaffold(**COUNT),
        Drop(Everyone(N, LINKS), 0.5),
        lambda net: cohort(net, twice, 2 * BITS),
    ),
    "ditto": (Ditto(**COUNT), UNEQUAL, lambda net: cohort(net, 2 * twice, BITS)),
    "fedbuff": (
        FedBuff(**COUNT),
        arrivals(N, 3, ROUNDS, seed=2),
        lambda net: cohort(net, twice, BITS),
        lambda net, done: net.elapsed,
    ),
    "dsgd": (DSGD(**EPOCHS), RANDOM, lambda net: nodes(net, twice, BITS, EVERY)),
    "dsgd, failures": (
        DSGD(**EPOCHS),
        LinkFailures(RANDOM, 0.4),
        lambda net: nodes(net, twice, BITS, EVERY),
    ),
    "dsgd, absences": (
        DSGD(**EPOCHS),
        Churn(RANDOM, 0.6),
        lambda net: nodes(net, twice, BITS, EVERY),
    ),
    "dsgd, both": (
        DSGD(**EPOCHS),
        Churn(LinkFailures(RANDOM, 0.4), 0.6),
        lambda net: nodes(net, twice, BITS, EVERY),
    ),
    "dsgd, quorum": (
        DSGD(**EPOCHS),
        Quorum(N, 3, links=LINKS),
        lambda net: nodes(net, twice, BITS, ~np.eye(N, dtype=bool)),
    ),
    "dsgd, wires": (
        DSGD(**EPOCHS),
        Churn(RANDOM.replace(links=WIRES), 0.6),
        lambda net: nodes(net, twice, BITS, EVERY),
        lambda net, done: last_wire(done, net),
    ),
    "gossip learning": (
        GossipLearning(lr=0.05, epochs=2, mode="update_merge", slots=16),
        LOSSY,
        lambda net: pushed(net, 2 * twice, 64 * (D + 1)),
        lambda net, done: net.elapsed,
    ),
    "dadao": (
        DADAO(smoothness=20.0, convexity=1.0, chi1=1.0),
        networks.poisson(CIRCLE, ROUNDS, seed=3),
        lambda net: met(net, BITS),
        lambda net, done: net.elapsed,
    ),
}


@pytest.mark.parametrize("name", WORK)
def test_unequal_work(name):
    """Gradients, bits and seconds of unequal clients, from who did what."""
    alg, network, work, *time = WORK[name]
    history, nets = go(alg, network), drawn(network)
    default = slowest_client if network.kind is Cohort else slowest_node
    seconds = time[0] if time else lambda net, done: default(done)
    rows = []
    for t in range(ROUNDS):
        net = jax.tree.map(lambda a, t=t: a[t], nets)
        done = work(net)
        rows.append((*np.sum([*done.values(), (0, 0, 0)], 0), seconds(net, done)))
    grads, up, down, seconds = np.cumsum(rows, 0).T
    assert len(set(np.diff(seconds))) > 1 or network.kind in (Events, Messages)
    totals = history.totals()
    np.testing.assert_allclose(totals["grads"], grads, rtol=1e-12)
    np.testing.assert_allclose(totals["megabytes"], (up + down) / 8e6, rtol=1e-6)
    np.testing.assert_allclose(np.cumsum(history.up * history.clients), up, rtol=1e-6)
    np.testing.assert_allclose(totals["seconds"], seconds, rtol=1e-5)


# The gradients that a program really evaluates ----------------------------------------------------

_ALWAYS = {Cohort: Everyone(N), Graph: RANDOM}
EVALUATED = {
    case.name: (case.algorithm, _ALWAYS[case.algorithm.needs.net])
    for case in CASES
    if case.algorithm.needs.net in _ALWAYS
}
EVALUATED |= {
    "fedbuff": (FedBuff(**COUNT), arrivals(N, 3, ROUNDS)),
    "ditto-epochs": (Ditto(**COUNT), Uniform(N, 3)),
}


@pytest.mark.parametrize("name", EVALUATED)
def test_gradients_are_those_of_the_program(name, monkeypatch):
    """As many as the program evaluates for clients that take part, in `init` and two rounds."""
    (alg, network), evaluated, grad = EVALUATED[name], [], Client.grad
    nets = drawn(network)

    def logged(client, x, xi):
        jax.debug.callback(lambda *a: evaluated.append(a), client.id, (xi.weight != 0).any())
        return grad(client, x, xi)

    monkeypatch.setattr(Client, "grad", logged)
    # a loss of its own, so that no program without the log is taken
    clients = CLIENTS.replace(loss=lambda params, examples, key: squares(params, examples, key))
    totals, state, start = [], None, 0
    for t in range(2):
        here = set(nets.idx[t].tolist()) if hasattr(nets, "idx") else set(range(N))
        evaluated.clear()
        part = simulate(alg, clients, network, X0, KEY, rounds=1, start=t, state=state)
        jax.effects_barrier()
        state = part.state
        start += sum(bool(live) for i, live in evaluated if int(i) in here)
        totals.append(part.history.totals()["grads"][0])
        assert sum(totals) == pytest.approx(start, rel=1e-12) and start > 0


# `init` -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: Churn(w, 0.5)], ids=["all", "some"])
def test_gradients_of_init(wrap):
    """All nodes compute before round 0, also those that are then away; a resumed run does not."""
    network, alg = wrap(RANDOM), GradientTracking(lr=0.01)
    whole = simulate(alg, CLIENTS, network, X0, KEY, rounds=4)
    nets = drawn(network)
    active = nets.active[:4].sum(1)
    np.testing.assert_allclose(whole.history.totals()["grads"], N + np.cumsum(active))
    net = jax.tree.map(lambda a: a[0], nets)
    first = slowest_node(nodes(net, np.ones(N), 2 * BITS, EVERY))
    np.testing.assert_allclose(whole.history.seconds[0], LINKS.compute.max() + first, rtol=1e-6)
    half = simulate(alg, CLIENTS, network, X0, KEY, rounds=2)
    rest = simulate(alg, CLIENTS, network, X0, KEY, rounds=2, start=2, state=half.state)
    for name in ("grads", "seconds", "clients", "up"):
        both = [getattr(part.history, name) for part in (half, rest)]
        np.testing.assert_array_equal(np.concatenate(both), getattr(whole.history, name))
    chunks = run(alg, CLIENTS, network, X0, KEY, rounds=4, chunk=1)
    np.testing.assert_array_equal(chunks.history.grads, whole.history.grads)


# Nobody -------------------------------------------------------------------------------------------

AWAY = np.ones((ROUNDS, N), bool)
AWAY[[0, 2]] = False
TIMES = np.array([0.1, 0.2, 3.1, 3.2])  # of rounds of 1 s, nothing in 1, 2, 4, 5


def empty(case):
    """A world with rounds of nobody for the row, and which they are; None if it cannot have one."""
    needs = case.algorithm.needs
    if needs.net is Cohort:
        return networks.Available(AWAY, 3), ~AWAY.any(1)
    if needs.net is Graph and not needs.lossless:
        return Churn(case.network, AWAY), ~AWAY.any(1)
    quiet = np.isin(np.arange(ROUNDS), [1, 2, 4, 5])
    if needs.net is Events:
        ends = np.array([0, 1, 3, 4]), np.array([N, 2, N, 5])  # a gradient, an exchange
        return from_events(TIMES, *ends, N, rounds=ROUNDS), quiet
    if needs.net is Messages:
        ends = np.array([0, 1, 3, 4]), np.array([1, 4, 0, 2])
        return networks.from_messages(TIMES, TIMES + 0.5, *ends, N, rounds=ROUNDS), quiet
    return None


@pytest.mark.parametrize("case", [c for c in CASES if empty(c)], ids=str)
def test_nobody(case):
    """Where nobody takes part, or nothing happens, nothing is paid and no loss was measured."""
    network, nobody = empty(case)
    history = go(case.algorithm, network)
    np.testing.assert_array_equal(np.isnan(history.loss), nobody)
    begun = nobody.copy()
    begun[0] &= not getattr(case.algorithm, "init_grads", 0)  # by all, before round 0
    for name in ("up", "down", "grads"):
        assert (getattr(history, name)[begun] == 0).all(), name
        paid = case.up != 0 or name == "grads"
        assert (getattr(history, name)[~nobody] > 0).any() == paid, name
    if network.kind in (Cohort, Graph):
        assert (history.clients[begun] == 0).all() and (history.seconds[begun] == 0).all()
    assert np.isfinite([*history.totals().values()]).all()


def test_what_never_arrives():
    """All messages are lost: they are paid for, and nobody trains."""
    history = go(GossipLearning(lr=0.1), gossip(CIRCLE, ROUNDS, drop=1.0))
    assert np.isnan(history.loss).all() and (history.up > 0).any()


def test_a_mean_over_no_step_is_nan():
    xi = CLIENTS[jnp.arange(1)].each(lambda client, key: client.draws(key, 2), key=KEY)
    xi = jax.tree.map(lambda a: a[0], xi)
    grad = lambda x, xi: (x @ x, 2 * x)
    for weight, want in ((xi.weight, 1.0), (0 * xi.weight, np.nan)):
        y, loss, _ = train(grad, jnp.ones(1), xi._replace(weight=weight), 0.0, SGD(), ())
        np.testing.assert_array_equal([y[0], loss], [1, want])
    still = xi._replace(weight=0 * xi.weight)
    slope = jax.grad(lambda x: train(grad, x, still, 0.1, SGD(), ())[0][0])
    assert slope(jnp.ones(1)) == 1


# Who makes the record -----------------------------------------------------------------------------


def test_info_of_every_net():
    """Costs by slot, 0 where it is empty; the loss is a mean, whatever the scale of the weights."""
    net = Drop(Everyone(N), np.arange(N) % 2)(0, KEY)
    loss, grads = jnp.arange(8.0), jnp.full(N, 3.0)
    info = net.info(Work(loss, grads), up=10.0, down=jnp.arange(8.0), w=7 * net.weight)
    assert info.loss == 3 and info.grads.tolist() == [3, 0] * 4
    assert info.up.tolist() == [10, 0] * 4 and info.down.tolist() == [0, 0, 2, 0, 4, 0, 6, 0]
    assert net.info(Work(loss.at[1].set(jnp.nan), 1.0), up=0.0, down=0.0).loss == 3
    nobody = Drop(Everyone(N), 1.0)(0, KEY).info(Work(loss, grads), up=1.0, down=1.0, aux=loss)
    assert np.isnan(nobody.loss) and not nobody.grads.any() and nobody.aux is loss
    with pytest.raises(ValueError, match=r"loss must be one number per slot.*\(8,\).*`g, work ="):
        net.info(Work(loss.mean(), grads), up=1.0, down=1.0)


@struct.dataclass
class Handmade:
    """An algorithm that fills the record itself."""

    info: Any = struct.field(pytree_node=False)
    needs: ClassVar[Any] = FedAvg.needs

    def init(self, params, clients, key):
        return FedAvg.State(params)

    def round(self, state, clients, net, key):
        return state, self.info(net)


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("loss", lambda net: net.weight, r"report loss as one number, \(\), got shape \(3,\)"),
        ("up", lambda net: jnp.zeros((3, 2)), r"report up .*or \(3,\), got shape \(3, 2\)"),
        ("grads", lambda net: jnp.zeros(8), r"report grads .*use `net.info\("),
    ],
)
def test_a_record_of_another_form_is_refused(field, value, words):
    good = lambda net: Info(1.0, 2.0, 3 * net.weight, 4.0)
    alg = Handmade(lambda net: good(net)._replace(**{field: value(net)}))
    with pytest.raises(ValueError, match=words):
        go(alg, Uniform(N, 3))
