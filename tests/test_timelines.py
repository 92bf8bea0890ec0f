"""Schedules against their definition, FedBuff and DADAO on them against theory."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from harness import CLIENTS, KEY, X0, N
from scipy.linalg import expm

from jaxfl import problems
from jaxfl.algorithms.asynchronous.dadao import DADAO, _flow
from jaxfl.algorithms.asynchronous.fedbuff import FedBuff
from jaxfl.algorithms.asynchronous.gossip_learning import GossipLearning
from jaxfl.algorithms.server.fedavg import FedAvg
from jaxfl.engine import marks
from jaxfl.engine.clients import Clients
from jaxfl.engine.simulate import simulate
from jaxfl.networks import Attacked, Everyone, GaussianNoise, first, graphs, packing, spectra
from jaxfl.networks.buffers import arrivals
from jaxfl.networks.clocks import dadao_rates, from_events, poisson, to_events
from jaxfl.networks.messages import from_messages, gossip
from jaxfl.networks.packing import _pack
from jaxfl.networks.timelines import DURATIONS, alike


def plain(timeline):
    """The nets of a timeline as NumPy arrays."""
    return jax.tree.map(np.asarray, timeline.nets)


# Arrivals ------------------------------------------------------------------------------------


def test_laws_have_mean_one():
    for name, law in DURATIONS.items():
        x = law(np.random.default_rng(0), 100_000)
        assert (x >= 0).all() and abs(x.mean() - 1) <= 5 * x.std() / np.sqrt(len(x)), name


@pytest.mark.parametrize("buffer", [1, 3, 7])
def test_arrivals_of_all_clients_by_hand(buffer):
    """With concurrency n, the c earliest arrive and restart together from the new model."""
    n, rounds = 7, 60
    seconds = np.random.default_rng(0).uniform(1, 5, n)
    net = plain(arrivals(n, buffer, rounds, durations="constant", scale=seconds))
    finish, version, now = seconds.copy(), np.zeros(n, int), 0.0
    for t in range(rounds):
        chosen = np.argsort(finish)[:buffer]
        np.testing.assert_array_equal(net.idx[t], chosen)
        np.testing.assert_array_equal(net.age[t], t - version[chosen])
        np.testing.assert_allclose(net.elapsed[t], finish[chosen[-1]] - now)
        now = finish[chosen[-1]]
        version[chosen], finish[chosen] = t + 1, now + seconds[chosen]


def test_arrivals_at_the_same_instant():
    """All are received before anybody restarts, also where 3 * .1 is not .3."""
    ages = plain(arrivals(7, 4, 4, durations="constant", scale=0.1)).age
    np.testing.assert_array_equal(ages, [[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]])
    net = plain(arrivals(2, 1, 12, durations="constant", scale=[0.1, 0.3]))
    np.testing.assert_array_equal(net.age[:, 0], [0, 0, 2, 1] * 3)
    np.testing.assert_array_equal(net.idx[:, 0], [0, 0, 1, 0] * 3)
    np.testing.assert_allclose(net.elapsed, [0.1, 0.1, 0.1, 0.0] * 3, atol=1e-12)


def test_arrivals_keep_the_concurrency():
    n, buffer, concurrency, rounds = 50, 4, 20, 3000
    timeline = arrivals(n, buffer, rounds, concurrency=concurrency, seed=1)
    net = plain(timeline)
    assert timeline.rounds == rounds and timeline.n == n
    assert (np.diff(np.sort(net.idx, 1)) > 0).all() and (net.age >= 0).all()
    pulled = np.arange(rounds)[:, None] - net.age
    # at work in round v: those in training when it opened, and one for all but its last arrival
    opened = np.bincount(pulled.ravel(), minlength=rounds)
    at_work = np.cumsum(opened) - buffer * np.arange(rounds)
    np.testing.assert_array_equal(at_work[: -net.age.max()], concurrency + buffer - 1)
    # a client begins again only after the round of its last arrival has closed
    for i in range(n):
        t, k = np.nonzero(net.idx == i)
        assert (pulled[t[1:], k[1:]] > t[:-1]).all()
    # twenty clients with jobs of mean 1 deliver twenty updates per second
    mean, error = net.elapsed.mean(), net.elapsed.std() / np.sqrt(rounds)
    assert abs(mean - buffer / concurrency) <= 5 * error
    share = np.bincount(net.idx.ravel(), minlength=n) / net.idx.size
    assert abs(share - 1 / n).max() <= 5 * np.sqrt(1 / n / net.idx.size)


def test_fast_clients_come_more_often():
    net = plain(arrivals(10, 2, 500, scale=np.repeat([1.0, 5.0], 5)))
    counts = np.bincount(net.idx.ravel(), minlength=10)
    assert counts[:5].min() > 2 * counts[5:].max()
    assert net.age[net.idx >= 5].mean() > 2 * net.age[net.idx < 5].mean()


def test_arrivals_reject():
    for arguments, match in (
        (dict(buffer=0), "buffer must be between 1 and n = 5, got 0"),
        (dict(buffer=6), "buffer"),
        (dict(buffer=2, concurrency=6), "concurrency"),
        (dict(buffer=2, durations="half_norm"), "did you mean 'half_normal'"),
        (dict(buffer=2, scale=[1, 1, 1, 1, 0]), "scale"),
        (dict(buffer=2, rounds=0), "rounds"),
    ):
        with pytest.raises(ValueError, match=match):
            arrivals(5, **{"rounds": 3, **arguments})
    with pytest.raises(ValueError, match="drawn for 3 rounds, asked for 4"):
        simulate(FedBuff(lr=0.1), CLIENTS, arrivals(N, 2, 3), X0, KEY, rounds=4)


# FedBuff -------------------------------------------------------------------------------------


def test_fedbuff_together_is_fedavg():
    timeline = arrivals(N, N, 5, durations="constant")
    net = plain(timeline)
    assert (net.age == 0).all() and (np.sort(net.idx, 1) == np.arange(N)).all()
    np.testing.assert_array_equal(net.elapsed, 1.0)
    options = dict(lr=0.05, server_lr=0.8, steps=3, weighting="count")
    ours = simulate(FedBuff(max_age=2, **options), CLIENTS, timeline, X0, KEY, rounds=5)
    theirs = simulate(FedAvg(**options), CLIENTS, Everyone(N), X0, KEY, rounds=5)
    np.testing.assert_allclose(ours.state.params, theirs.state.params, atol=1e-12)
    for name in ("loss", "up", "down", "grads"):
        a, b = getattr(ours.history, name), getattr(theirs.history, name)
        np.testing.assert_allclose(a, b, rtol=1e-12, err_msg=name)


def test_fedbuff_by_hand():
    """On quadratics a client moves by w (b - x), w = 1 - (1 - lr a)^steps, from its old model."""
    problem, lr, steps, rounds = problems.canonical(), 0.1, 3, 12
    clients = Clients.make(problem.data, problem.partition, problem.loss, batch=1)
    timeline = arrivals(8, 3, rounds, scale=np.linspace(0.5, 3, 8), seed=2)
    net = plain(timeline)
    oldest = int(net.age.max())
    assert oldest > 2
    alg = FedBuff(lr=lr, server_lr=0.7, exponent=0.8, max_age=oldest, steps=steps)
    x0 = jnp.ones(5)
    run = jax.jit(lambda timeline: simulate(alg, clients, timeline, x0, KEY, rounds=rounds).state)
    a, b = problem.data["a"], problem.data["b"]
    x = [np.ones(5)]
    for idx, age in zip(net.idx, net.age):
        delta = [
            (1 + s) ** -0.8 * (1 - (1 - lr * a[i]) ** steps) * (b[i] - x[-1 - s])
            for i, s in zip(idx, age)
        ]
        x.append(x[-1] + 0.7 * np.mean(delta, 0))
    np.testing.assert_allclose(run(timeline).params, x[-1], atol=1e-12)
    # an older update is refused where it can be seen, and NaN where it cannot
    older = timeline.replace(nets=timeline.nets.replace(age=timeline.nets.age + 1))
    with pytest.raises(ValueError, match=rf"use `FedBuff\(max_age={oldest + 1}\)`"):
        simulate(alg, clients, Attacked(older, first(1, 8), GaussianNoise()), x0, KEY, rounds=2)
    assert np.isnan(run(older).params).all()


# Events --------------------------------------------------------------------------------------


def listed(net):
    """Round, wave, kind, nodes, time, gaps and number of every event, by number."""
    rows = []
    for r, v, k in np.argwhere(net.grad < net.n):
        at = (r, v, k)
        rows.append((net.number[at], r, v, 0, (net.grad[at],), net.at[at], (net.gap[at],)))
    for r, v, k in np.argwhere(net.i < net.n):
        at, gaps = (r, v, k), (net.gap_i[r, v, k], net.gap_j[r, v, k])
        rows.append((net.order[at], r, v, 1, (net.i[at], net.j[at]), net.when[at], gaps))
    return sorted(rows)


def assert_packed(timeline, unit):
    """Every event once, each node's in time order, gaps and rests as the times say."""
    net = plain(timeline)
    rows = listed(net)
    assert [row[0] for row in rows] == list(range(len(rows)))
    where, last = {}, {}
    for number, r, v, kind, nodes, time, gaps in rows:
        for node, gap in zip(nodes, gaps):
            half = 2 * v + kind  # the gradients of a wave come first
            assert half > where.get((r, node), -1), number
            np.testing.assert_allclose(gap, time - last.get((r, node), r * unit), atol=1e-12)
            where[r, node], last[r, node] = half, time
    for r, node in np.ndindex(net.rest.shape):
        rest = (r + 1) * unit - last.get((r, node), r * unit)
        np.testing.assert_allclose(net.rest[r, node], rest, atol=1e-12)
    return net


@pytest.mark.parametrize("cap", [None, (1, 1), (3, 1), (50, 50)])
def test_waves_keep_the_order_of_every_node(cap):
    unit, rounds = 1.5, 6
    timeline = poisson(graphs.torus(12), rounds, edge_rates=1.3, unit=unit, seed=3, cap=cap)
    net = assert_packed(timeline, unit)
    if cap:
        assert (net.grad.shape[-1], net.i.shape[-1]) == cap
    else:
        live = (net.i < 12).sum() + (net.grad < 12).sum()
        assert live > 0.6 * (net.i.size + net.grad.size)  # .62 here, .66 the longest chain first
    again = from_events(*to_events(timeline), 12, rounds=rounds, unit=unit, cap=cap)
    jax.tree.map(np.testing.assert_array_equal, again, timeline)


def list_schedule(past, pair, when, cap):
    """Wave and slot as `_pack` defines them, wave by wave, from all events that are left."""
    count, tail = len(pair), np.zeros(len(pair), int)
    for e in range(count)[::-1]:
        for b in past[:, e][past[:, e] >= 0]:
            tail[b] = max(tail[b], min(3, tail[e] + 1))
    order = sorted(range(count), key=lambda e: (3 - tail[e], e))
    wave, slot, v = np.full(count, -1), np.zeros(count, int), 0
    while (wave < 0).any():
        for kind in (0, 1):  # an exchange may follow a gradient in its wave
            done = np.append(wave >= 0, True)
            ready = [e for e in order if wave[e] < 0 and pair[e] == kind and done[past[:, e]].all()]
            taken = np.zeros(when.max() + 1, int)
            for e in ready:
                if taken[when[e]] < cap[kind]:
                    wave[e], slot[e] = v, taken[when[e]]
                    taken[when[e]] += 1
        v += 1
    return wave, slot


@pytest.mark.parametrize("cap", [None, (1, 1), (4, 9), (1, 300)])
@pytest.mark.parametrize("graph", ["ring", "star", "complete"])
def test_both_ways_to_pack(graph, cap, monkeypatch):
    """They equal the definition, and the fewest waves are not far."""
    n, rounds, packed = 40, 5, []
    graph, plain_pack = graphs.make(graph, n), _pack

    def pack(*arguments):
        got = {}
        for name in ("_one_by_one", "_wave_by_wave"):
            with monkeypatch.context() as patch:
                for other in ("_one_by_one", "_wave_by_wave"):
                    patch.setattr(packing, other, getattr(packing, name))
                got[name] = plain_pack(*arguments)
        np.testing.assert_array_equal(*got.values())
        packed.append((got["_one_by_one"], *arguments))
        return plain_pack(*arguments)

    for module in ("messages", "clocks"):
        monkeypatch.setattr(f"jaxfl.networks.{module}._pack", pack)
    poisson(graph, rounds, edge_rates=40 / graph.number_of_edges(), unit=2.0, cap=cap)
    gossip(graph, rounds, delay=(0, 40), cap=cap[0] if cap else 0)
    assert len(packed) == 2
    for (wave, slot), past, _, pair, when, cap in packed:
        np.testing.assert_array_equal((wave, slot), list_schedule(past, pair, when, cap))
        depth = list_schedule(past, pair, when, (len(pair), len(pair)))[0]
        for r in range(rounds):
            mine, most = wave[when == r], wave[when == r].max() + 1
            assert set(mine) == set(range(most))
            work = np.bincount(pair[when == r], minlength=2) / np.maximum(cap, 1)
            fewest = max(depth[when == r].max() + 1, *np.ceil(work))
            assert fewest <= most <= 1.35 * fewest + 1


def test_how_to_pack_is_chosen_by_width(monkeypatch):
    called = []

    def spied(name):
        pack = getattr(packing, name)
        return lambda *arguments: called.append(name) or pack(*arguments)

    for name in ("_one_by_one", "_wave_by_wave"):
        monkeypatch.setattr(packing, name, spied(name))
    for cap in (None, (1, 1)):
        poisson(graphs.ring(400), 20, cap=cap)
        gossip(graphs.ring(400), 20, cap=cap[0] if cap else 0)
    assert called == 2 * ["_wave_by_wave"] + 2 * ["_one_by_one"]


def test_poisson_counts():
    rates = np.zeros((6, 6))
    for k, (i, j) in enumerate(((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0))):
        rates[i, j] = rates[j, i] = 0.5 * (k + 1)
    gradient, rounds, unit = np.linspace(0.5, 3, 6), 200, 2.0
    timeline = poisson(rates, rounds, gradient_rate=gradient, edge_rates=0.5, unit=unit, seed=4)
    times, i, j = to_events(timeline)
    assert (np.diff(times) > 0).all()
    table = np.zeros((7, 7))
    np.add.at(table, (i, j), 1)
    mean = np.zeros((7, 7))
    mean[:6, :6], mean[:6, 6] = np.triu(rates) * 0.5, gradient
    mean *= rounds * unit
    assert (abs(table - mean) <= 5 * np.sqrt(mean)).all()
    # uniform in time: the mean of k uniform times
    assert abs(times.mean() / (rounds * unit) - 0.5) <= 5 * np.sqrt(1 / 12 / len(times))
    per_round = plain(timeline)
    counts = (per_round.grad < 6).sum((1, 2)) + (per_round.i < 6).sum((1, 2))
    assert abs(counts.var() / counts.mean() - 1) <= 5 * np.sqrt(2 / rounds)
    assert timeline.rounds == rounds and (per_round.elapsed == unit).all()


def test_events_of_your_own():
    times = [0.0, 0.2, 0.2, 0.2, 1.0, 2.5]
    i, j = [0, 0, 2, 1, 1, 2], [3, 1, 3, 3, 2, 3]
    timeline = from_events(np.array(times), np.array(i), np.array(j), 3, rounds=3, waves=4)
    net = assert_packed(timeline, 1.0)
    assert net.grad.shape[:2] == (3, 4)
    np.testing.assert_array_equal(to_events(timeline)[1], i)
    empty = from_events(np.zeros(0), np.zeros(0, int), np.zeros(0, int), 3, rounds=2)
    np.testing.assert_array_equal(empty.nets.rest, 1.0)
    # where k * unit is not exact, gaps still are not negative
    times = np.repeat(0.1 * np.arange(1, 30), 2)
    net = plain(from_events(times, np.arange(58) % 3, np.full(58, 3), 3, rounds=30, unit=0.1))
    assert min(net.gap.min(), net.rest.min()) >= 0


def test_events_reject():
    good = dict(times=np.array([0.1, 0.2]), i=np.array([0, 1]), j=np.array([1, 3]), n=3, rounds=1)
    from_events(**good)
    for wrong, match in (
        (dict(times=np.array([0.2, 0.1])), "sorted"),
        (dict(times=np.array([0.1, 1.1])), r"in \[0, rounds \* unit\]"),
        (dict(i=np.array([0, 3])), "event 1 has i=3"),
        (dict(j=np.array([0, 3])), "event 0 has i=0, j=0"),
        (dict(unit=0.0), "unit"),
        (dict(rounds=0), "rounds"),
        (dict(cap=(0, 2)), r"cap must be two numbers >= 1, got \(0, 2\)"),
    ):
        with pytest.raises(ValueError, match=match):
            from_events(**{**good, **wrong})
    ring = graphs.ring(5)
    with pytest.raises(ValueError, match="waves must be at least"):
        poisson(ring, 5, cap=(1, 1), waves=2)
    for wrong, match in (
        (dict(gradient_rate=-1.0), ">= 0"),
        (dict(edge_rates=np.triu(np.ones((5, 5)))), "off the edges"),
        (dict(edge_rates=np.triu(nx.to_numpy_array(ring))), "symmetric"),
    ):
        with pytest.raises(ValueError, match=match):
            poisson(ring, 2, **wrong)


# DADAO ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, total, chi1, chi2",
    [("ring", 15.35, 26.180, 4.5), ("complete", 6.36, 4.5, 4.5), ("star", 9.0, 9.0, 4.5)],
)
def test_dadao_rates(name, total, chi1, chi2):
    graph = graphs.make(name, 10)
    rates = dadao_rates(graph)
    got = rates["rate"] * graph.number_of_edges()
    np.testing.assert_allclose([got, rates["chi1"] * got], [total, chi1], rtol=1e-3)
    np.testing.assert_allclose([rates["chi1"] * rates["chi2"], rates["chi2"] * got], [0.5, chi2])
    weighted = spectra.laplacian(graph, rates["rate"])
    np.testing.assert_allclose(spectra.chi1(weighted), rates["chi1"])
    half = dadao_rates(graph, 0.5)
    np.testing.assert_allclose(half["chi1"] * half["chi2"], 2.0)
    with pytest.raises(ValueError, match="connected"):
        dadao_rates(nx.Graph([(0, 1), (2, 3)]))


def test_flow_is_the_matrix_exponential():
    nu, slow = 0.5, np.sqrt(0.5 / 20)
    alpha, eta, theta = slow / 4, slow / 8, 1 / (2 * slow)
    m = np.zeros((6, 6))
    m[:2, :2] = eta * np.array([[-1, 1], [1, -1]])
    m[2, 2:4], m[3] = [-alpha, alpha], -theta * np.array([0, nu, 1, 0, 1, 0])
    m[4, 4:], m[5, 4:] = [-alpha, alpha], [eta, -eta]
    gaps = np.array([0.0, 0.01, 0.3, 1.0, 5.0, 100.0])
    want = expm(m * gaps[:, None, None])
    flow = jax.jit(jax.vmap(_flow, in_axes=(0, None, None, None, None)))
    for dtype, tolerance in ((np.float64, 1e-13), (np.float32, 3e-6)):
        got = flow(*(jnp.asarray(a, dtype) for a in (gaps, alpha, eta, theta, nu)))
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, atol=tolerance * abs(want).max())


def one_by_one(timeline):
    """The same events in the same shape, but one per wave in the order of their numbers."""
    net = plain(timeline)
    fields = {k: np.full_like(getattr(net, k), net.n) for k in ("grad", "i", "j")}
    for k in ("number", "order", "at", "gap", "when", "gap_i", "gap_j"):
        fields[k] = np.zeros_like(getattr(net, k))
    used = np.zeros(timeline.rounds, int)
    for number, r, _, kind, nodes, time, gaps in listed(net):
        names = ("i", "j", "order", "when", "gap_i", "gap_j")
        names = names if kind else ("grad", "number", "at", "gap")
        for name, value in zip(names, (*nodes, number, time, *gaps)):
            fields[name][r, used[r], 0] = value
        used[r] += 1
    return timeline.replace(nets=timeline.nets.replace(**jax.tree.map(jnp.asarray, fields)))


def test_waves_equal_one_event_after_the_other():
    """With minibatches and a noisy attacker, whose keys go by the event's number."""
    rates = dadao_rates(graphs.ring(N))
    timeline = poisson(graphs.ring(N), 3, edge_rates=rates["rate"], seed=5, waves=24)
    net = plain(timeline)
    gradients, exchanges = (net.grad < N).sum((1, 2)), (net.i < N).sum((1, 2))
    assert 15 < (gradients + exchanges).max() <= 24
    assert (net.i < N).any((0, 2)).sum() <= 12
    alg = DADAO(smoothness=30.0, convexity=0.1, chi1=rates["chi1"], gradients="minibatch")
    states = []
    for world in (timeline, one_by_one(timeline)):
        network = Attacked(world, first(2, N), GaussianNoise(0.1))
        states.append(simulate(alg, CLIENTS, network, X0, KEY, rounds=3))
    waves, events = states
    assert abs(waves.state.params - X0[None]).max() > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), waves, events)
    np.testing.assert_allclose(waves.history.grads, gradients / N)
    np.testing.assert_allclose(waves.history.up, 2 * exchanges * 64 * len(X0) / N)  # float64


def test_dadao_converges_at_the_same_rate_on_every_graph():
    """And diverges on every graph with half of the communication.

    Rates .051, .048, .045 from these seeds, of which seeds move each by a tenth; bound .020.
    """
    n, rounds, unit = 10, 30, 10.0
    problem = problems.quadratics(n, 4, 20.0, 1.0, 5.0, shared=False, seed=0)
    clients = Clients.make(problem.data, problem.partition, problem.loss, batch=1)
    cases = [(name, factor) for factor in (1.0, 0.5) for name in ("ring", "complete", "star")]
    rates = [dadao_rates(graphs.make(name, n), factor) for name, factor in cases]
    options = dict(unit=unit, cap=(2, 3), waves=130)
    timelines = [
        poisson(graphs.make(name, n), rounds, edge_rates=r["rate"], seed=k, **options)
        for k, ((name, _), r) in enumerate(zip(cases, rates))
    ]
    timelines = jax.tree.map(lambda *a: jnp.stack(a), *timelines)
    alg = DADAO(smoothness=20.0, convexity=1.0, chi1=jnp.array([r["chi1"] for r in rates]))
    optimum = jnp.asarray(problem.optimum)
    error = lambda state: jnp.square(state.params - optimum[None]).sum(1).mean()

    @jax.jit
    @lambda run: jax.vmap(run, in_axes=(DADAO(None, None, 0), 0, None))
    def run(alg, timeline, state):
        options = dict(rounds=rounds, every=1, evaluate=error, state=state)
        return simulate(alg, clients, timeline, jnp.zeros(4), KEY, **options)

    start = marks.plain(DADAO(1.0, 1.0, 1.0).init(jnp.zeros(4), clients, KEY))
    result = run(alg, timelines, start)
    log = np.log(np.asarray(result.evaluations))[:, 4:]
    slopes = -np.polyfit(unit * np.arange(log.shape[1]), log.T, 1)[0]
    bound = np.sqrt(1 / 20) / (8 * np.sqrt(2))  # eta; the paper's theorem as recalled
    assert (slopes[:3] > bound).all() and slopes[:3].max() < 1.3 * slopes[:3].min()
    assert (slopes[3:] < -bound).all()
    # z and Z sum to 0 for ever
    for z in (result.state.z, result.state.z_tilde):
        assert abs(z[:3].sum(1)).max() <= 1e-12 * max(1, abs(z[:3]).max())
    # at the fixed point Y = y = grad f_i(x*) - nu x*, y + z = -nu x* nothing moves
    grad = np.einsum("nij,nj->ni", problem.data["a"], problem.optimum - problem.data["b"])
    x, y = np.broadcast_to(problem.optimum, grad.shape), grad - 0.5 * problem.optimum
    z = -0.5 * problem.optimum - y
    fixed = DADAO.State(*(jnp.asarray(a) for a in (x, x, y, y, z, z)))
    after = run(alg, timelines, fixed).state
    for a, b in zip(after, fixed):
        np.testing.assert_allclose(a[:3], np.broadcast_to(b, (3, *b.shape)), atol=1e-9)


# Messages ------------------------------------------------------------------------------------


def scripted(rounds=7, n=12, unit=1.5, seed=0, count=400):
    """Messages in the order in which they leave: some are lost, some late, many at equal times."""
    rng = np.random.default_rng(seed)
    sent = np.sort(rng.integers(0, int(rounds * unit * 10), count)) / 10
    delay = rng.choice([0.0, 0.1, 0.4, 2.0, np.inf], count)
    i = rng.integers(0, n, count)
    return sent, sent + delay, i, (i + rng.integers(1, n, count)) % n


def assert_delivered(timeline, sent, received, i, j, unit):
    """Every message once, in time; what is read is what its sender had when it left.

    Models are the numbers of the arrivals that made them: waves are run on these numbers, reading
    before writing, and compared with the list.
    """
    net, n = plain(timeline), timeline.n
    came = [k for k in range(len(sent)) if received[k] < timeline.rounds * unit]
    came.sort(key=lambda k: received[k])  # stable: at equal times in the order given
    expected, held, leaving = {}, {node: -1 for node in range(n)}, list(range(len(sent)))
    carries = {}
    for number, k in enumerate(came):
        while leaving and sent[leaving[0]] <= received[k]:
            carries[leaving[0]] = held[i[leaving[0]]]
            leaving.pop(0)
        expected[number] = (int(received[k] / unit), i[k], j[k], held[j[k]], carries[k])
        held[j[k]] = number
    pool, got = np.full(n + net.slots, -1), {}
    for r, wave in np.ndindex(net.i.shape[:2]):
        slots = np.flatnonzero(net.i[r, wave] < n)
        receiver, number = net.i[r, wave, slots], net.number[r, wave, slots]
        assert len(set(receiver)) == len(receiver)
        own, read = pool[receiver], pool[net.source[r, wave, slots]]
        for row in zip(number, receiver, net.j[r, wave, slots], own, read):
            assert row[0] not in got
            got[row[0]] = (r, row[2], row[1], row[3], row[4])
        save = net.save[r, wave, slots]
        assert len(set(save[save >= 0])) == (save >= 0).sum() and save.max(initial=-1) < net.slots
        pool[n + save[save >= 0]] = own[save >= 0]
        pool[receiver] = number
    assert got == expected
    assert pool[:n].tolist() == list(held.values())
    leave = np.zeros((timeline.rounds, n), int)
    np.add.at(leave, ((sent / unit).astype(int), i), 1)
    np.testing.assert_array_equal(net.sent, leave)
    return net


@pytest.mark.parametrize("cap", [0, 1, 3, 40])
def test_messages_arrive_with_what_their_sender_had(cap):
    unit = 1.5
    messages = scripted(unit=unit)
    timeline = from_messages(*messages, 12, rounds=7, unit=unit, cap=cap)
    net = assert_delivered(timeline, *messages, unit)
    assert net.slots > 3 and (net.source >= 12).any()
    assert cap in (0, net.i.shape[-1])
    if not cap:
        assert (net.i < 12).mean() > 0.5
    wider = from_messages(*messages, 12, rounds=7, unit=unit, cap=cap, waves=99)
    assert wider.nets.i.shape[1] == 99
    np.testing.assert_array_equal(np.sort(wider.nets.i, None)[: net.i.size], np.sort(net.i, None))


def test_no_message_at_all():
    timeline = from_messages(*np.zeros((2, 0)), *np.zeros((2, 0), int), 3, rounds=2)
    assert timeline.nets.slots == 0 and (timeline.nets.i == 3).all()
    assert (plain(gossip(graphs.ring(5), 4, drop=1.0)).i == 5).all()


def test_gossip_counts():
    """Numbers, peers, delays and losses as asked for."""
    n, rounds, period, drop, online = 10, 400, 20, 0.1, 0.7
    graph = graphs.star(n)
    timeline = gossip(
        graph, rounds, period=period, delay=(0, 5), drop=drop, online=online, unit=2.0, seed=3
    )
    net = plain(timeline)
    assert (net.sent == 1).all() and (net.elapsed == 2).all()
    live = net.i < n
    pairs = np.zeros((n, n))
    np.add.at(pairs, (net.j[live], net.i[live]), 1)
    share = (1 - drop) * online
    want = nx.to_numpy_array(graph) / nx.to_numpy_array(graph).sum(1, keepdims=True) * rounds
    assert (abs(pairs - want * share) <= 5 * np.sqrt(want * share * (1 - share)) + 5 * 5 / 20).all()
    many = plain(gossip(graphs.complete(n), 200, clock="async", seed=2)).sent.sum(0)
    assert len(set(many)) > 1 and abs(many - 200).max() < 0.5 * 200
    # a delay of one round: nothing arrives in the first, everything of one round in the next
    late = plain(gossip(graphs.ring(n), 300, period=100, delay=(100, 100), seed=4))
    assert (late.i[0] == n).all() and (late.i[1:] < n).sum() == n * 299


def test_gossip_online_is_of_the_step():
    """What arrives at one node in one step finds it online, or not, together."""
    n, rounds = 30, 60
    net = plain(gossip(graphs.star(n), rounds, period=1, online=0.5, seed=1))
    at_hub = (net.i == 0).sum((1, 2))
    assert set(at_hub) == {0, n - 1} and 15 < (at_hub == 0).sum() < 45


def test_messages_reject():
    good = dict(sent=[0.1, 0.2], received=[0.1, np.inf], i=[0, 1], j=[1, 2], n=3, rounds=1)
    make = lambda **o: from_messages(
        **{k: np.array(v) if isinstance(v, list) else v for k, v in {**good, **o}.items()}
    )
    make()
    for wrong, match in (
        (dict(sent=[0.1, 1.0]), "message 1 is sent at 1, received"),
        (dict(received=[0.0, 1.0]), "message 0 is sent at 0.1, received at 0"),
        (dict(received=[0.1, np.nan]), "message 1"),
        (dict(i=[0, 3]), "message 1 has i=3, j=2"),
        (dict(j=[0, 2]), "message 0 has i=0, j=0"),
        (dict(unit=0.0), "unit"),
        (dict(rounds=0), "rounds"),
    ):
        with pytest.raises(ValueError, match=match):
            make(**wrong)
    ring = graphs.ring(5)
    for wrong, match in (
        (dict(period=0), "period"),
        (dict(clock="asynch"), "did you mean 'async'"),
        (dict(delay=(3, 2)), r"delay must be 0 <= low <= high time steps, got \(3, 2\)"),
        (dict(drop=1.1), r"drop must be in \[0, 1\]"),
        (dict(online=-0.1), "online"),
        (dict(cap=-1), "cap must be at least 1, got -1"),
        (dict(cap=1, waves=2), "waves must be at least"),
    ):
        with pytest.raises(ValueError, match=match):
            gossip(ring, 3, **wrong)


# Gossip learning -----------------------------------------------------------------------------


def learn(alg, network, rounds, clients=CLIENTS, x0=X0, key=KEY, **options):
    return simulate(alg, clients, network, x0, key, rounds=rounds, **options)


def test_message_waves_equal_one_message_after_the_other():
    """With minibatches and a noisy attacker, whose keys go by the number of the arrival."""
    messages = scripted(rounds=3, n=N, count=60)
    states = []
    for cap in (0, 1):
        timeline = from_messages(*messages, N, rounds=3, unit=1.5, cap=cap)
        network = Attacked(timeline, first(2, N), GaussianNoise(0.1))
        alg = GossipLearning(lr=0.05, merge="age", slots=15)
        states.append(learn(alg, network, 3))
    assert timeline.nets.i.shape[1] > 8
    waves, events = states
    assert abs(waves.state.params - X0[None]).max() > 1e-2
    for name in ("params", "age"):
        a, b = getattr(waves.state, name), getattr(events.state, name)
        np.testing.assert_allclose(a, b, atol=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), waves.history, events.history
    )


def test_arrivals_are_alike_already():
    worlds = [arrivals(6, 2, 4, seed=seed) for seed in range(2)]
    for world, same in zip(worlds, alike(worlds), strict=True):
        assert same.n == 6
        jax.tree.map(np.testing.assert_array_equal, same.nets, world.nets)


def test_alike_timelines_stack():
    """Filled up, runs are what they were, also mapped over the worlds."""
    worlds = [
        from_messages(*scripted(3, N, seed=k, count=40 + 30 * k), N, rounds=3, unit=1.5)
        for k in range(2)
    ]
    assert worlds[0].nets.i.shape != worlds[1].nets.i.shape
    alg, same = GossipLearning(lr=0.05, slots=15), alike(worlds)
    run = lambda world: learn(alg, world, 3).state
    mapped = jax.vmap(run)(jax.tree.map(lambda *a: jnp.stack(a), *same))
    for k, world in enumerate(worlds):
        want = run(world)
        for name in ("params", "age"):
            got = getattr(mapped, name)[k]
            np.testing.assert_allclose(got, getattr(want, name), atol=1e-12)
    events = [poisson(graphs.ring(N), 2, seed=k, cap=(2, 1 + k)) for k in range(2)]
    for a, b in zip(events, alike(events)):
        jax.tree.map(np.testing.assert_array_equal, to_events(a), to_events(b))
    assert len({world.nets.i.shape for world in alike(events)}) == 1


def test_slots_are_checked():
    timeline = from_messages(*scripted(rounds=3, n=N, count=60), N, rounds=3, unit=1.5)
    needs = timeline.nets.slots
    assert needs > 1
    for world in (timeline, Attacked(timeline, first(1, N), GaussianNoise())):
        with pytest.raises(ValueError, match=rf"use `GossipLearning\(slots={needs}\)`"):
            learn(GossipLearning(lr=0.1, slots=needs - 1), world, 2)
    run = lambda world: learn(GossipLearning(lr=0.1, slots=needs - 1), world, 2).state.params
    with pytest.raises(ValueError, match="models under way"):  # also where values cannot be seen
        jax.eval_shape(run, timeline)


def test_nothing_arrives():
    lost = gossip(graphs.ring(N), 4, drop=1.0)
    run = learn(GossipLearning(lr=0.1), lost, 4)
    np.testing.assert_array_equal(run.state.params, np.tile(X0, (N, 1)))
    assert (run.state.age == 0).all() and (np.asarray(run.history.down) == 0).all()
    assert (np.asarray(run.history.up) == 64 * (len(X0) + 1)).all()
    assert np.isnan(run.history.loss).all() and (np.asarray(run.history.grads) == 0).all()


def apart(n, seed=5):
    """A state whose nodes differ, all of age 3, with nothing under way."""
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(n, 5)))
    return GossipLearning.State(x, jnp.full(n, 3.0), jnp.zeros((n, 5)), jnp.zeros(n))


def test_merging_alone_contracts():
    """lr = 0: one arrival at i is x_i <- (x_i + x_j) / 2, a contraction of all on one."""
    rounds = 15
    timeline = gossip(graphs.complete(N), rounds, period=1000, seed=1)
    start = apart(N)
    run = learn(GossipLearning(lr=0.0), timeline, rounds, state=start)
    x, net = np.array(start.params), plain(timeline)
    rows = [(net.number[k], net.i[k], net.j[k]) for k in zip(*np.nonzero(net.i < N))]
    for _, i, j in sorted(rows):  # without delays, what arrives is what the sender has
        x[i] = (x[i] + x[j]) / 2
    np.testing.assert_allclose(run.state.params, x, atol=1e-13)
    assert np.ptp(x, 0).max() < 0.1 * np.ptp(start.params, 0).max()


def test_models_walk():
    """ "update" without delays: what arrives at i is trained there, whatever i had."""
    rounds, lr = 3, 0.1
    problem = problems.canonical()
    clients = Clients.make(problem.data, problem.partition, problem.loss, batch=1)
    timeline = gossip(graphs.complete(8), rounds, period=1000, seed=2)
    start = apart(8)
    alg = GossipLearning(lr=lr, mode="update")
    run = learn(alg, timeline, rounds, clients, jnp.zeros(5), state=start)
    a, b = problem.data["a"], problem.data["b"]
    x, age, net = np.array(start.params), np.full(8, 3), plain(timeline)
    rows = [(net.number[k], net.i[k], net.j[k]) for k in zip(*np.nonzero(net.i < 8))]
    for _, i, j in sorted(rows):
        x[i], age[i] = x[j] - lr * a[i] * (x[j] - b[i]), age[j] + 1
    np.testing.assert_allclose(run.state.params, x, atol=1e-13)
    np.testing.assert_array_equal(run.state.age, age)


@pytest.mark.parametrize("mode", ["merge_update", "update_merge", "update"])
def test_ages_count_the_longest_history(mode):
    """In a chain of messages 0 -> 1 -> 2 -> ... ages are the steps along it."""
    hop = np.arange(N - 1)
    timeline = from_messages(hop * 0.1, hop * 0.1 + 0.05, hop, hop + 1, N, rounds=1)
    alg = GossipLearning(lr=0.1, mode=mode, epochs=0, steps=3)
    run = learn(alg, timeline, 1)
    np.testing.assert_array_equal(run.state.age, 3 * np.arange(N))
    twice = 2 if mode == "update_merge" else 1
    np.testing.assert_allclose(run.history.grads, twice * 3 * (N - 1) / N)
    np.testing.assert_allclose(run.history.up, 64 * 6 * (N - 1) / N)


def test_older_models_weigh_more():
    timeline = from_messages(*np.array([[0.1], [0.2]]), np.array([0]), np.array([1]), N, rounds=1)
    start = apart(N)._replace(age=jnp.arange(3.0, 3 + N))
    x = np.array(start.params)
    run = learn(GossipLearning(lr=0.0, merge="age"), timeline, 1, state=start).state
    np.testing.assert_allclose(run.params[1], (3 * x[0] + 4 * x[1]) / 7, atol=1e-15)
    np.testing.assert_array_equal(run.params[2:], x[2:])
