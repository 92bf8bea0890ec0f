"""Robust rules against NumPy, under attackers at 1e6, at 1e15 and with NaN."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.graph.monna import nearest_average

from jaxfl.components.aggregators import NearestNeighbours, median, trimmed_mean
from jaxfl.engine import comm, distances
from jaxfl.networks import Dissensus, weights
from jaxfl.networks.adversaries import Send

N, F, D = 12, 3, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D))
BAD = np.arange(N) >= N - F
HONEST = X[~BAD].mean(0)


def nearest_neighbours(w, message, f, own=None):
    """Mixing weights of the rule at every node."""
    near = comm.to_near(w)
    kept = jax.vmap(NearestNeighbours(f).weigh)(comm.slot_distances(near, message, own), near.w)
    return dataclasses.replace(near, w=kept)


def run(f, *args):
    """One program, results on the host."""
    return jax.device_get(jax.jit(f)(*args))


def tree(x):
    return {"a": x[..., :2].reshape(*x.shape[:-1], 2, 1), "b": x[..., 2:]}


def flat(tree):
    return np.concatenate([a.reshape(len(a), -1) for a in (tree["a"], tree["b"])], 1)


def near(w):
    return comm.Near(*weights.neighbours(w))


def attacked(kind):
    sent = X.copy()
    sent[BAD] = {"1e6": 1e6, "1e15": -1e15, "nan": np.nan, "inf": np.inf, "mixed": 1e6}[kind]
    if kind == "mixed":
        sent[-1], sent[-2] = np.nan, X[0] + 50
    return sent


ATTACKS = ("1e6", "1e15", "nan", "inf", "mixed")
MATRICES = {
    "complete": np.full((N, N), 1 / N),
    "slots": np.where(RNG.random((N, N)) < 0.6, 0.1, 0) + 0.4 * np.eye(N),
    "ring": sum(np.roll(np.eye(N), s, 1) for s in (-2, -1, 0, 1, 2)) / 5,
}
GRAPHS = {
    "complete": comm.Dense(MATRICES["complete"]),
    "slots": near(MATRICES["slots"]),
    "ring": comm.Shifts(np.full(5, 0.2), (0, 1, 2, -1, -2), N),
}


@pytest.fixture(scope="module")
def averaged():
    """Every graph, every attack, f mapped from 0 on; and where senders know the truth."""
    sent = tree(np.stack([attacked(kind) for kind in ATTACKS]))

    def program(graphs, sent, own, fs):
        def one(w, message, f, own):
            rule = nearest_neighbours(w, message, f, own=own)
            return rule, comm.mix(rule, message, own=own)

        over = jax.vmap(jax.vmap(one, (None, None, 0, None)), (None, 0, None, None))
        told = lambda w: over(w, sent, fs[F : F + 1], own)
        return {k: (over(w, sent, fs, None), told(w)) for k, w in graphs.items()}

    return run(program, GRAPHS, sent, tree(X), np.arange(6.0))


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_nearest_are_averaged(averaged, graph, attack):
    """All received but the f farthest, as in the oracle; who is not finite never counts."""
    sent, dense = attacked(attack), MATRICES[graph]
    (rule, got), (_, told) = averaged[graph]
    at = ATTACKS.index(attack)
    for i in range(N):
        others = [j for j in np.flatnonzero(dense[i]) if j != i]
        rows = [sent[i]] + [sent[j] for j in others]
        for f in range(6):
            y = flat(jax.tree.map(lambda a: a[at, f], got))[i]  # noqa: B023
            w = rule.w[at, f, i]
            np.testing.assert_allclose(w.sum(), 1, rtol=1e-14)
            assert w[0] > 0
            if BAD[i]:
                continue
            finite = sum(np.isfinite(r).all() for r in rows)
            f = max(f, len(rows) - finite)
            f = min(f, len(rows) - 1)
            np.testing.assert_allclose(y, nearest_average(rows, f), rtol=1e-12)
        rows[0] = X[i]
        left = len(rows) - sum(np.isfinite(r).all() for r in rows)
        y = flat(jax.tree.map(lambda a: a[at, 0], told))[i]  # noqa: B023
        want = nearest_average(rows, min(max(F, left), len(rows) - 1))
        np.testing.assert_allclose(y, want, rtol=1e-12)


@pytest.mark.parametrize("attack", ATTACKS[:4])
def test_monna_gives_the_honest_mean(averaged, attack):
    """Of 12 messages, 3 of them Byzantine, exactly the 9 honest ones are averaged by everyone."""
    got = averaged["complete"][0][1]
    y = flat(jax.tree.map(lambda a: a[ATTACKS.index(attack), F], got))
    np.testing.assert_allclose(y[~BAD], np.broadcast_to(HONEST, (N - F, D)), rtol=0, atol=1e-12)


def test_close_messages_far_from_0_in_float32():
    """At |x| = 1e4 a product without a centre cannot tell a neighbour from an attacker."""
    x = (1e4 + X).astype(np.float32)
    x[BAD] += 3.0
    w = comm.Dense(np.full((N, N), 1 / N, np.float32))
    kept = run(lambda w, x: comm.to_dense(nearest_neighbours(w, x, 3.0)), w, tree(x))
    distance = np.square(x[:, None].astype(float) - x[None]).sum(-1)
    for i in range(N):
        nearest = np.argsort(distance[i])[: N - F]
        np.testing.assert_array_equal(np.flatnonzero(kept[i]), np.sort(nearest))


@pytest.mark.parametrize("graph", ["complete", "slots"])
def test_messages_that_differ_by_receiver(graph):
    """Dissensus as coefficients equals every message written out, slot by slot."""
    w, epsilon = GRAPHS[graph], 1.5
    send = Send(BAD, np.arange(N), np.ones(N, bool), Dissensus(epsilon))

    def program(w, send, x):
        near = comm.to_near(w)
        held = send.replace(near=near)(x, jax.random.key(0))
        rule = nearest_neighbours(w, held, 2.0)
        return near, rule.w, comm.mix(rule, held), comm.mix(w, held)

    near, kept, averaged, gossiped = run(program, w, send, tree(X))
    averaged, gossiped = flat(averaged), flat(gossiped)
    for i in range(N):
        received = (near.w[i] != 0) | (np.arange(len(near.w[i])) == 0)
        slots = [(near.w[i, k], near.idx[i, k]) for k in np.flatnonzero(received)]
        good = [(v, j) for v, j in slots if j != i and not BAD[j]]
        mass = sum(v for v, j in slots if j != i and BAD[j])
        push = X[i] - epsilon * sum(v * (X[j] - X[i]) for v, j in good) / (mass or 1)
        rows = [push if BAD[j] and j != i else X[j] for _, j in slots]
        np.testing.assert_allclose(gossiped[i], sum(v * r for (v, _), r in zip(slots, rows)))
        np.testing.assert_allclose(averaged[i], nearest_average(rows, 2), rtol=1e-12)
        assert (kept[i] > 0).sum() == len(rows) - 2


def test_a_bad_row_among_held_messages():
    """What is made of a NaN row is infinitely far, for those who get any of it."""
    rows = X.copy()
    rows[-1] = np.nan
    k = 4
    coef = np.zeros((N, k, N))
    coef[np.arange(N), 0, np.arange(N)] = 1
    coef[:, 1, 3], coef[:, 2, 5], coef[:, 3, -1] = 1, 1, 0.5
    idx = (np.arange(N)[:, None] + np.arange(k)) % N
    w = comm.Near(idx, np.full((N, k), 0.25), np.zeros((N, k), int))
    held = comm.Held(tree(rows), coef)

    def program(w, held):
        rule = nearest_neighbours(w, held, 0.0)
        return rule.w, comm.mix(rule, held)

    kept, y = run(program, w, held)
    honest = np.arange(N - 1)
    assert (kept[honest] == [1 / 3, 1 / 3, 1 / 3, 0]).all() and (kept[-1] == [1, 0, 0, 0]).all()
    want = (X[honest] + X[3] + X[5]) / 3
    np.testing.assert_allclose(flat(y)[honest], want, rtol=1e-13)
    assert np.isnan(flat(y)[-1]).all()


def test_gradients_reach_the_messages():
    """The selection is piecewise constant; gradients are those of the mean, finite beside NaN."""

    def program(w, x, f):
        out = lambda x: jnp.sum(comm.mix(nearest_neighbours(w, x, f), x)[0])
        return jax.grad(out)(x)

    g = run(program, GRAPHS["complete"], attacked("nan"), 3.0)
    np.testing.assert_allclose(g, np.where(BAD[:, None], 0, 1 / 9) * np.ones((1, D)), rtol=1e-14)


ROWS = (1, 2, 3, 4, 5, 8, 11, 16, 23, 33, 50, 64, 65, 70)


def drawn(k, kind, seed=0):
    """Messages `[k, 7]` and who takes part."""
    rng = np.random.default_rng([k, seed])
    x = rng.normal(size=(k, 7))
    if kind == "ties":
        x = rng.integers(-2, 3, size=(k, 7)) * 1.0
    if kind == "broken":
        x[rng.random(x.shape) < 0.15] = np.nan
        x[rng.random(x.shape) < 0.1] = np.inf
        x[rng.random(x.shape) < 0.1] = -np.inf
    live = rng.random(k) < 0.7
    live[rng.integers(k)] = True
    return x, live


def by_hand(x, live, f=None):
    """NumPy: who takes part, sorted; NaN counts as inf."""
    y = np.sort(np.where(np.isnan(x), np.inf, x)[live], 0)
    with np.errstate(invalid="ignore"):
        if f is None:
            return np.median(y, 0)
        f = min(f, (len(y) - 1) // 2)
        return y[f : len(y) - f].mean(0)


@pytest.fixture(params=["compared", "passes", "sorted"])
def form(request, monkeypatch):
    """The three ways to sort."""
    if request.param == "passes":
        monkeypatch.setattr(distances, "_COMPARED", 0)
        monkeypatch.setattr(distances, "_BLOCK", 1 << 12)  # several blocks of columns
    if request.param == "sorted":
        monkeypatch.setattr(jax, "default_backend", lambda: "other")
    jax.clear_caches()
    yield request.param
    jax.clear_caches()


@pytest.mark.parametrize("k", ROWS)
def test_medians_and_trimmed_means_are_numpys(k):
    """With everybody and with some, ties, NaN and inf; f is traced."""
    program = jax.jit(lambda x, f, live: (median(x, live), trimmed_mean(x, f, live)))
    for kind in ("normal", "ties", "broken"):
        for seed in range(3):
            x, live = drawn(k, kind, seed)
            for who in (live, np.ones(k, bool)):
                for f in (0, 1, k // 4, k):
                    middle, trimmed = program(x, float(f), who)
                    np.testing.assert_array_equal(middle, by_hand(x, who))
                    np.testing.assert_allclose(trimmed, by_hand(x, who, f), rtol=1e-12, atol=1e-13)
    middle, trimmed = program(x, 1.0, np.zeros(k, bool))
    assert (middle == 0).all() and (trimmed == 0).all()


def test_all_forms_agree(form):
    """Comparisons, passes by blocks, `lax.sort`: trees, three dtypes, mapped and scanned."""
    k = 9
    for dtype, kind in ((jnp.float64, "broken"), (jnp.float32, "ties"), (jnp.bfloat16, "normal")):
        x, live = drawn(k, kind)
        x = np.asarray(jnp.asarray(np.tile(x, (1, 20)), dtype).astype(float))  # 140 columns
        wide = {
            "a": jnp.asarray(x[:, :60].reshape(k, 6, 10), dtype),
            "b": jnp.asarray(x[:, 60:], dtype),
        }
        got = jax.jit(median)(wide, live)
        assert got["a"].dtype == dtype and got["a"].shape == (6, 10)
        want = np.asarray(jnp.asarray(by_hand(x, live), dtype).astype(float))
        np.testing.assert_array_equal(got["a"].astype(float).ravel(), want[:60])
        np.testing.assert_array_equal(got["b"].astype(float), want[60:])
        fs = jnp.arange(3.0)
        many = jax.vmap(lambda f: trimmed_mean(wide, f, live)["b"])(fs)  # noqa: B023
        scan = jax.lax.scan(lambda _, f: (_, trimmed_mean(wide, f, live)["b"]), 0, fs)[1]  # noqa: B023
        np.testing.assert_array_equal(many.astype(float), scan.astype(float))
        rtol = 1e-2 if dtype == jnp.bfloat16 else 1e-6
        for f in range(3):
            want = by_hand(x, live, f)[60:]
            np.testing.assert_allclose(many[f].astype(float), want, rtol=rtol, atol=rtol)


def test_who_does_not_take_part_may_hold_anything():
    x, live = drawn(12, "normal")
    spoiled = np.where(live[:, None], x, np.nan)
    np.testing.assert_array_equal(median(spoiled, live), median(x, live))
    np.testing.assert_array_equal(trimmed_mean(spoiled, 1, live), trimmed_mean(x, 1, live))


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_minority_does_not_move_them_far(attack):
    """Every number stays between those of honest clients."""
    sent = attacked(attack)
    for y in (median(sent), trimmed_mean(sent, float(F))):
        assert (y >= X[~BAD].min(0)).all() and (y <= X[~BAD].max(0)).all()


def test_gradients_reach_the_chosen(form):
    """A median passes its cotangent to the middle values, a trimmed mean to those it averages."""
    x, live = drawn(9, "normal")
    x[2] = np.nan
    order = np.argsort(np.where(live[:, None], np.where(np.isnan(x), np.inf, x), np.inf), 0)
    m = live.sum()
    for rule, chosen in (
        (lambda x: median(x, live), range((m - 1) // 2, m // 2 + 1)),
        (lambda x: trimmed_mean(x, 1.0, live), range(1, m - 1)),
    ):
        want = np.zeros_like(x)
        for i in chosen:
            want[order[i], np.arange(7)] += 1 / len(chosen)
        g = jax.grad(lambda x: rule(x).sum())(jnp.asarray(x))  # noqa: B023
        np.testing.assert_allclose(g, want, rtol=1e-14)
    slope = jax.grad(lambda f: trimmed_mean(jnp.nan_to_num(x), f, live).sum())(1.0)
    assert slope == 0


def test_ranks_are_asked_for_by_number():
    x = jnp.asarray(drawn(10, "normal")[0])
    for i in range(10):
        np.testing.assert_array_equal(comm.by_rank(jnp.ones(1), x, ranks=(i,)), jnp.sort(x, 0)[i])
    held = comm.Held(x, jnp.zeros((10, 1, 10)))
    with pytest.raises(TypeError, match="no ranks in common.*SignFlip"):
        comm.by_rank(jnp.ones(10), held)
