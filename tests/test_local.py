"""Local solvers against hand-written loops, oracle transformers against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxfl.components.oracles import (
    blended,
    clipped,
    noised,
    norm,
    proximal,
    sam,
    shifted,
    zeroth_order,
)
from jaxfl.components.solvers import SGD, Clipped, Momentum, Optax, live_steps, train
from jaxfl.engine.client import Sample

RNG = np.random.default_rng(0)
STEPS, B = 6, 3
TARGETS = {"a": RNG.normal(size=(8, 2)), "b": RNG.normal(size=8)}
CURVE = {"a": np.array([1.0, 3.0]), "b": np.array(0.5)}
X = {"a": np.array([3.0, -2.0]), "b": np.array(1.5)}
INDEX = RNG.integers(0, 8, (STEPS, B))
WEIGHT = np.where(np.isin(np.arange(STEPS), (2, 5))[:, None], 0, RNG.random((STEPS, B)))
LR = 0.1
tree = jax.tree.map


def run(f, *args):
    """One program, results on the host."""
    return jax.device_get(jax.jit(f)(*args))


def value(x, xi):
    """Weighted mean of sum_j curve_j (x_j - target_j)^2 / 2; 0 without weights."""
    w = xi.weight / jnp.where(xi.weight.sum() > 0, xi.weight.sum(), 1)
    apart = tree(lambda x, t: jnp.square(x[None] - jnp.asarray(t)[xi.index]), x, TARGETS)
    return w @ (apart["a"] @ CURVE["a"] + apart["b"] * CURVE["b"]) / 2


grad = jax.value_and_grad(value)


def by_hand(x, t):
    """The same for step t as flat NumPy: loss and gradient [3]."""
    w = WEIGHT[t] / WEIGHT[t].sum()
    target = np.concatenate([TARGETS["a"], TARGETS["b"][:, None]], 1)[INDEX[t]]
    curve = np.array([1.0, 3.0, 0.5])
    return w @ (np.square(x - target) @ curve) / 2, w @ ((x - target) * curve)


def flat(x):
    return np.append(x["a"], x["b"])


def samples(weight=WEIGHT):
    return Sample(INDEX, weight, jax.random.split(jax.random.key(1), STEPS))


def clip(g, bound):
    return g * min(1, bound / np.linalg.norm(g))


# Solvers, by hand: memory of 3 numbers each, as the records use it.


def sgd(y, g, m, t, decay=0.0, bound=np.inf):
    return y - LR * (clip(g, bound) + decay * y), m


def momentum(y, g, m, t, beta=0.9, decay=0.0, bound=np.inf):
    m = beta * m + clip(g, bound) + decay * y
    return y - LR * m, m


def adam(y, g, m, t):
    first, second = (0, 0) if t == 0 else m
    first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
    scaled = first / (1 - 0.9 ** (t + 1)), second / (1 - 0.999 ** (t + 1))
    return y - LR * scaled[0] / (np.sqrt(scaled[1]) + 1e-8), (first, second)


SOLVERS = {
    "sgd": (SGD(), sgd),
    "sgd, decay and clip": (
        Clipped(SGD(0.3), 1.1),
        lambda *a: sgd(*a, decay=0.3, bound=1.1),
    ),
    "momentum": (Momentum(), momentum),
    "momentum, decay and clip": (
        Clipped(Momentum(0.7, 0.3), 1.1),
        lambda *a: momentum(*a, beta=0.7, decay=0.3, bound=1.1),
    ),
    "adam": (Optax(optax.adam(1.0)), adam),
}


@pytest.fixture(scope="module")
def trained():
    """Every solver over the samples, in two halves that hand on the memory, and on padding only."""

    def program(solvers, x, xi):
        half = lambda s: tree(lambda a: a[s], xi)
        out = {}
        for name, solver in solvers.items():
            y, loss, memory = train(grad, x, half(slice(3)), LR, solver, solver.init(x))
            then = train(grad, y, half(slice(3, 6)), LR, solver, memory)
            padding = xi._replace(weight=0 * xi.weight)
            frozen = train(grad, y, tree(lambda a: a[:2], padding), LR, solver, memory)
            out[name] = {"first": (y, loss, memory), "second": then, "frozen": frozen}
        return out | {"steps": live_steps(xi)}

    return run(program, {name: s for name, (s, _) in SOLVERS.items()}, X, samples())


@pytest.mark.parametrize("name", SOLVERS)
def test_training_is_the_loop(trained, name):
    """Clipped, then decayed; a sample without weight is skipped altogether, memory included."""
    step, y, m, live, losses = SOLVERS[name][1], flat(X), np.zeros(3), 0, []
    for t in range(STEPS):
        if WEIGHT[t].any():
            loss, g = by_hand(y, t)
            y, m = step(y, g, m, live)
            losses.append(loss)
            live += 1
        if t == 2:
            np.testing.assert_allclose(flat(trained[name]["first"][0]), y, rtol=1e-13)
    got, loss, memory = trained[name]["second"]
    np.testing.assert_allclose(flat(got), y, rtol=1e-13)
    np.testing.assert_allclose(trained[name]["first"][1], np.mean(losses[:2]), rtol=1e-13)
    np.testing.assert_allclose(loss, np.mean(losses[2:]), rtol=1e-13)
    if name.startswith("momentum"):
        np.testing.assert_allclose(flat(memory), m, rtol=1e-13)
    if name == "adam":
        assert memory[0].count == live == trained["steps"] == 4
        np.testing.assert_allclose(flat(memory[0].nu), m[1], rtol=1e-13)


@pytest.mark.parametrize("name", SOLVERS)
def test_padding_freezes_everything(trained, name):
    y, loss, memory = trained[name]["frozen"]
    assert np.isnan(loss)  # nothing was measured
    tree(np.testing.assert_array_equal, (y, memory), trained[name]["first"][::2])


# Oracles ------------------------------------------------------------------------------------------

RHO, MU = 0.3, 0.7
ANCHOR, SHIFT = tree(lambda a: a + 1.0, X), tree(lambda a: a * 0 + 2.0, X)


@pytest.fixture(scope="module")
def asked():
    """Every transformed oracle at X on the first sample; random ones under many keys."""
    keys = jax.random.split(jax.random.key(2), 4000)

    def program(x, xi, keys):
        oracles = {
            "plain": grad,
            "proximal": proximal(grad, MU, ANCHOR),
            "shifted": shifted(grad, SHIFT),
            "blended": blended(grad, 0.2, SHIFT),
            "sam": sam(grad, RHO),
            "clipped": clipped(grad, 0.5),
            "not clipped": clipped(grad, jnp.inf),
            "fedspeed": shifted(proximal(sam(grad, RHO), MU, ANCHOR), SHIFT),
        }
        out = {name: oracle(x, xi) for name, oracle in oracles.items()}
        under = lambda oracle: jax.vmap(lambda key: oracle(x, xi._replace(key=key)))(keys)
        out["noised"] = under(noised(grad, 0.5))
        out["zeroth order"] = under(zeroth_order(value, 0.1))
        out["again"] = noised(grad, 0.5)(x, xi._replace(key=keys[0]))
        return out

    return run(program, X, tree(lambda a: a[0], samples()), keys)


def test_oracles_are_their_formulas(asked):
    x = flat(X)
    loss, g = by_hand(x, 0)
    near, pull = by_hand(x + RHO * g / (np.linalg.norm(g) + 1e-7), 0)[1], MU * (x - flat(ANCHOR))
    want = {
        "plain": g,
        "proximal": g + pull,
        "shifted": g + 2,
        "blended": 0.2 * g + 0.8 * 2,
        "sam": near,
        "clipped": 0.5 * g / np.linalg.norm(g),
        "not clipped": g,
        "fedspeed": near + pull + 2,
    }
    for name, expected in want.items():
        np.testing.assert_allclose(asked[name][0], loss, rtol=1e-13)  # always the plain loss
        np.testing.assert_allclose(flat(asked[name][1]), expected, rtol=1e-12, err_msg=name)


def columns(g):
    return np.concatenate([g["a"], g["b"][:, None]], 1)


def test_noise_is_normal_and_the_samples_own(asked):
    loss, g = by_hand(flat(X), 0)
    z = (columns(asked["noised"][1]) - g) / 0.5
    m = len(z)
    assert (np.abs(z.mean(0)) <= 5 / np.sqrt(m)).all()
    products = z.T @ z / m  # identity: a key per leaf, not one for all
    assert (np.abs(products - np.eye(3)) <= 5 * np.sqrt((1 + np.eye(3)) / m)).all()
    np.testing.assert_array_equal(flat(asked["again"][1]), columns(asked["noised"][1])[0])


def test_zeroth_order_is_unbiased(asked):
    """On a quadratic the two-point slope is exact, and E <g, u> u = g."""
    losses, estimates = asked["zeroth order"]
    _, g = by_hand(flat(X), 0)
    u = columns(estimates)
    error = u.std(0, ddof=1) / np.sqrt(len(u))
    assert (np.abs(u.mean(0) - g) <= 5 * error).all() and (error < 0.2 * np.abs(g).max()).all()
    assert np.isfinite(losses).all()


def test_gradients_through_clipping_norms_and_padding_are_finite():
    """Where g = 0 nothing is divided by 0, not even in the branch that is not taken."""

    def program(zero, xi):
        plain = lambda oracle: (
            lambda g, bound: sum(jnp.sum(a) for a in jax.tree.leaves(oracle(g, bound)))
        )
        clip = plain(lambda g, bound: clipped(lambda x, xi: (0, x), bound)(g, xi)[1])
        at = {bound: jax.grad(clip, (0, 1))(zero, bound) for bound in (1.0, jnp.inf)}

        def end(lr, rho, x):  # with momentum, clipping, SAM and padding
            solver = Clipped(Momentum(), 10.0)
            y, loss, _ = train(sam(grad, rho), x, xi, lr, solver, solver.init(x))
            return loss + y["b"]

        return at, jax.grad(norm)(zero), jax.grad(end, (0, 1, 2))(LR, RHO, X), end(LR, RHO, X)

    at, of_norm, of_end, _ = run(program, tree(lambda a: 0 * a, X), samples())
    tree(lambda a: np.testing.assert_array_equal(a, 1), at[1.0][0])
    for leaf in jax.tree.leaves((at, of_norm, of_end)):
        assert np.isfinite(leaf).all()
    assert of_end[0] != 0 and of_end[1] != 0


def test_dtypes_and_large_norms():
    """The carry keeps its dtypes whatever lr brings; squares are summed in float32 or wider."""
    x = {"a": np.ones(2, jnp.bfloat16), "b": np.float32(1)}
    xi = tree(lambda a: a[:2], samples())
    many = {"a": np.ones(1000, jnp.bfloat16), "b": np.ones((24,), np.float32)}
    oracle = lambda x, xi: (jnp.float32(0), x)

    def program(x, xi, lr, many):
        out = [train(oracle, x, xi, lr, s, s.init(x)) for s in (SGD(), Momentum())]
        return out, norm(many)

    (plain, heavy), length = run(program, x, xi, np.float64(0.5), many)
    for y in (plain[0], heavy[0], heavy[2]):
        assert (y["a"].dtype, y["b"].dtype) == (jnp.bfloat16, np.float32)
    assert (plain[0]["a"] == 0.25).all() and plain[0]["b"] == 0.25
    assert length == 32 and length.dtype == np.float32
