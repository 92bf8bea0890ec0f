"""Robust rules against NumPy, under attackers at 1e6, at 1e15 and with NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.monna import nearest_average

from jaxfl import comm
from jaxfl.networks import Dissensus, weights
from jaxfl.networks.adversaries import Send
from jaxfl.robust import nearest_neighbours

N, F, D = 12, 3, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D))
BAD = np.arange(N) >= N - F
HONEST = X[~BAD].mean(0)


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
