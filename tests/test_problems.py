"""Problems: their optima, constants and noise are what they say."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl import problems
from jaxfl.problems import canonical, least_squares, logistic, quadratics

EVERY = {
    "canonical": lambda: canonical(),
    "quadratics": lambda: quadratics(zeta=2.0),
    "quadratics, own Hessians": lambda: quadratics(L=3.0, mu=0.05, shared=False),
    "quadratics, alike": lambda: quadratics(zeta=0.0),
    "quadratics, one client": lambda: quadratics(n=1, zeta=0.0),
    "quadratics, one parameter": lambda: quadratics(n=4, d=1),
    "least squares": lambda: least_squares(),
    "least squares, wide": lambda: least_squares(n=12, m=3, d=8, spectrum=np.geomspace(0.01, 1, 8)),
    "logistic": lambda: logistic(),
    "logistic, alike": lambda: logistic(heterogeneity=0.0, l2=1.0),
    "logistic, hardly regular": lambda: logistic(l2=1e-6, heterogeneity=0.5),
}


def gradients(problem, x):
    return derivatives(problem, x)[1]


def derivatives(problem, x):
    """f_i(x), its gradient and its Hessian for every client."""
    rows = jax.tree.map(lambda a: jnp.asarray(a[problem.partition.order]), problem.data)
    out = _derivatives(problem.loss, problem.partition.n, jnp.asarray(x), rows)
    return [np.asarray(a) for a in out]


@partial(jax.jit, static_argnums=(0, 1))
def _derivatives(loss, n, x, rows):
    def local(x):
        return loss(x, rows, jax.random.key(0)).reshape(n, -1).mean(1)

    return local(x), jax.jacrev(local)(x), jax.hessian(local)(x)


@pytest.mark.parametrize("name", EVERY)
def test_what_a_problem_says_of_itself(name):
    p = EVERY[name]()
    size = len(next(iter(p.data.values())))
    p.partition.check(size)
    assert all(len(a) == size and a.dtype == np.float64 for a in p.data.values())
    f, g, hessians = derivatives(p, p.optimum)
    np.testing.assert_allclose(g.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(f.mean(), p.value, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose((g**2).sum(1).mean(), p.heterogeneity, rtol=1e-12, atol=1e-24)
    top = np.linalg.eigvalsh(hessians)[:, -1].max()
    low = np.linalg.eigvalsh(hessians.mean(0))[0]
    assert top <= p.smoothness * (1 + 1e-12) and low >= p.convexity * (1 - 1e-9)
    if "logistic" in name:  # bounds over all x
        at_zero = np.linalg.eigvalsh(derivatives(p, 0 * p.optimum)[2])
        np.testing.assert_allclose(at_zero[:, -1].max(), p.smoothness, rtol=1e-12)
    else:
        np.testing.assert_allclose([top, low], [p.smoothness, p.convexity], rtol=1e-9)


def test_canonical_numbers():
    p = canonical()
    assert p.partition.n == 8 and p.data["a"].shape == p.data["b"].shape == (8, 5)
    np.testing.assert_array_equal(p.data["a"][0], [1, 3.5, 2.5, 1.5, 4])
    b = [0.59104, 1.864078, 1.726419, 0.28224, -1.375532]
    np.testing.assert_allclose(p.data["b"][0], b, atol=1e-6)
    optimum = [-0.071855, 0.189025, 0.127384, -0.032322, -0.123140]
    np.testing.assert_allclose(p.optimum, optimum, atol=1e-6)
    x = np.zeros(5)
    for _ in range(60):  # FedAvg, five full gradients of size 0.1
        y = np.tile(x, (8, 1))
        for _ in range(5):
            y = y - 0.1 * p.data["a"] * (y - p.data["b"])
        x = y.mean(0)
    biased = [-0.037594, 0.159618, 0.165498, 0.011811, -0.088552]
    np.testing.assert_allclose(x, biased, atol=1e-6)
    np.testing.assert_allclose(abs(x - p.optimum).max(), 0.044132, atol=1e-6)


@pytest.mark.parametrize("zeta", [0.0, 0.3, 10.0])
def test_heterogeneity_is_exact(zeta):
    p = quadratics(L=5.0, mu=0.1, zeta=zeta, seed=3)
    for x in np.random.default_rng(0).standard_normal((4, 5)) * 10:  # shared Hessian: at every x
        g = gradients(p, x)
        spread = ((g - g.mean(0)) ** 2).sum(1).mean()
        np.testing.assert_allclose(spread, zeta**2, rtol=1e-12, atol=1e-24)
    own = quadratics(L=5.0, mu=0.1, zeta=zeta, shared=False, seed=3)
    np.testing.assert_allclose(own.heterogeneity, zeta**2, rtol=1e-12, atol=1e-24)
    np.testing.assert_allclose(p.smoothness, 5.0)
    np.testing.assert_allclose(np.linalg.eigvalsh(own.data["a"]), [np.geomspace(0.1, 5, 5)] * 10)


def test_noise_of_the_gradient():
    quiet, noisy = canonical(), canonical(sigma=2.0)
    assert noisy.noise == 4.0
    keys = jax.random.split(jax.random.key(3), 500)

    @jax.jit
    def draw(rows, x):  # [500, 8, 5]
        f = lambda x, key: noisy.loss(x, rows, key)
        return jax.vmap(jax.jacrev(f), (None, 0))(x, keys)

    x = jnp.asarray(quiet.optimum)
    clean = np.array([draw(quiet.data, x), draw(quiet.data, x + 1)])
    np.testing.assert_array_equal(clean, np.broadcast_to(clean[:, :1], clean.shape))
    # The same sample at two points has the same noise.
    both = np.array([draw(noisy.data, x), draw(noisy.data, x + 1)]) - clean
    np.testing.assert_allclose(both[0], both[1], atol=1e-12)
    drawn = both[0].reshape(-1, 5)
    assert abs(drawn.mean(0)).max() <= 5 * 2 / math.sqrt(5 * len(drawn))
    squares = (drawn**2).sum(1)
    assert abs(squares.mean() - 4) <= 5 * squares.std() / math.sqrt(len(drawn))
    other = np.corrcoef(both[0].reshape(500, 40).T) - np.eye(40)
    assert abs(other).max() <= 6 / math.sqrt(500)  # independent among clients and coordinates


def test_equal_shapes_share_a_program():
    traces = []

    def value(loss, x, rows, key):
        traces.append(loss)
        return loss(x, rows, key).mean()

    run = jax.jit(value, static_argnums=0)
    for p in (
        quadratics(),
        quadratics(L=2.0, zeta=0.5, sigma=1.0, seed=4),
        quadratics(shared=False),
    ):
        run(p.loss, jnp.zeros(5), jax.tree.map(jnp.asarray, p.data), jax.random.key(0))
    assert len(traces) == 1
    for p in (logistic(), logistic(l2=0.5, heterogeneity=0.0)):
        run(p.loss, jnp.zeros(5), jax.tree.map(jnp.asarray, p.data), jax.random.key(0))
    assert len(traces) == 2


def test_losses_in_float32():
    for p in (quadratics(sigma=1.0), canonical(), least_squares(), logistic()):
        rows = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), p.data)
        out = jax.eval_shape(p.loss, jnp.zeros(5, jnp.float32), rows, jax.random.key(0))
        assert out.dtype == jnp.float32 and out.shape == (len(p.partition.order),)


def test_least_squares_models():
    p = least_squares(n=400, m=2, d=3, delta=0.0, noise=0.0)
    np.testing.assert_allclose([p.value, p.heterogeneity], 0, atol=1e-20)
    # With whitened features in plenty, grad f_i(x*) = delta (u - u_i) nearly: zeta ~ delta.
    p = least_squares(n=50, m=3000, d=4, delta=0.5, noise=0.0)
    assert math.sqrt(p.heterogeneity) == pytest.approx(0.5, rel=0.1)
    own = np.stack([np.full(3, 0.01), np.full(3, 9.0)])
    x = least_squares(n=2, m=500, d=3, spectrum=own).data["x"].reshape(2, -1)
    np.testing.assert_allclose((x**2).mean(1), [0.01, 9.0], rtol=5 * math.sqrt(2 / 1500))


def test_logistic_heterogeneity():
    y = logistic(n=10, m=40, heterogeneity=1.0).data["y"].reshape(10, 40)
    assert set(y.ravel()) == {-1.0, 1.0}
    assert (abs(y.mean(1)) < 1).sum() <= 1 and (np.diff(y.mean(1)) >= 0).all()
    zeta = [logistic(heterogeneity=h).heterogeneity for h in (0.0, 0.5, 1.0)]
    assert zeta[0] < zeta[1] < zeta[2]
    mixed, ordered = (logistic(heterogeneity=h).optimum for h in (0.0, 1.0))
    np.testing.assert_allclose(mixed, ordered, atol=1e-12)  # the data are the same


def test_seeds():
    for f in (quadratics, least_squares, logistic):
        a, b, c = f(seed=1), f(seed=np.random.default_rng(1)), f(seed=2)
        np.testing.assert_array_equal(a.optimum, b.optimum)
        assert not np.allclose(a.optimum, c.optimum)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: quadratics(mu=0.0), "mu must be above 0 and at most L"),
        (lambda: quadratics(mu=2.0), "mu must be above 0 and at most L"),
        (lambda: quadratics(zeta=-1.0), "zeta must be 0 or more"),
        (lambda: quadratics(n=1), "use zeta=0"),
        (lambda: quadratics(n=0), "n must be at least 1"),
        (lambda: canonical(sigma=math.nan), "sigma must be 0 or more"),
        (lambda: least_squares(n=1, m=4, d=5), "leave d=5 parameters open: use m=5"),
        (lambda: least_squares(spectrum=[1.0, 2.0]), "spectrum must be positive"),
        (lambda: least_squares(spectrum=np.zeros(5)), "spectrum must be positive"),
        (lambda: logistic(l2=0.0), "l2 must be above 0"),
        (lambda: logistic(heterogeneity=2.0), "heterogeneity must be 0 to 1"),
    ],
)
def test_problem_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_newton_refuses_what_it_cannot_solve():
    x, y = 1e9 * np.random.default_rng(0).standard_normal((50, 3)), np.tile([1.0, -1.0], 25)
    with pytest.raises(ValueError, match="Newton's gradient stopped"):
        problems._newton(x, y, 1e-9)
