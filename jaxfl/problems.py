"""Objectives with a known optimum: f(x) = (1/n) sum_i f_i(x), as data, a partition and a loss.

The losses are functions of this module and everything that varies comes in through the examples, so
problems of the same shape share one compiled program. Parameters are one bare array `[d]`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from jaxfl.data.partitioners import Number, Partition, Seed
from jaxfl.engine.clients import Clients
from jaxfl.types import Count, Key, whole

Loss = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True, eq=False)
class Problem:
    """Local problems and what is known of their mean f.

    Example:
        >>> problem = problems.quadratics(n=4, d=5, L=1.0, mu=0.1, zeta=2.0)
        >>> clients = problem.clients()
        >>> clients.n, problem.smoothness, round(problem.heterogeneity, 6)
        (4, 1.0, 4.0)
    """

    data: dict[str, np.ndarray]  # float64, [N, ...]
    partition: Partition
    loss: Loss  # loss(params [d], examples, key) -> [B]
    optimum: Float[np.ndarray, " d"]  # x*, the minimiser of f
    value: float  # f(x*)
    smoothness: float  # L: every f_i is L-smooth
    convexity: float  # mu: f is mu-strongly convex
    heterogeneity: float  # zeta^2 = (1/n) sum_i |grad f_i(x*)|^2
    noise: float = 0.0  # sigma^2 = E|noise|^2 that the loss itself adds to an example's gradient

    def clients(self, **options: Any) -> Clients:
        """The local problems as `jaxfl.Clients`.

        Args:
            options: of `jaxfl.Clients.make`, such as `batch`.
        """
        return Clients.make(self.data, self.partition, self.loss, **options)


def _even(n: Count, m: Count) -> Partition:
    """m examples for each of n clients, in order."""
    start = np.arange(n, dtype=np.int32) * m
    return Partition(np.arange(n * m, dtype=np.int32), start, np.full(n, m, np.int32))


def _whole(**values: Count) -> list[int]:
    counts = {name: whole(name, value) for name, value in values.items()}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}: {name}=1")
    return list(counts.values())


def _nonnegative(**values: Number) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be 0 or more, and finite; got {value}: {name}=1.0")


# Quadratics ----------------------------------------------------------------------------------


def quadratic_loss(
    params: Float[Array, " d"], examples: dict[str, Array], key: Key
) -> Float[Array, " B"]:
    """(1/2) (x - b)' A (x - b) + <noise, x>, with noise ~ N(0, (sigma^2 / d) I) for each example.

    Args:
        params: x, `[d]`.
        examples: `a` `[B, d, d]`, or `[B, d]` for a diagonal A; `b` `[B, d]`; `sigma` `[B]`, or
            none, which draws no noise.
        key: draws the noise: the same at two points, like the minibatch of a sample.

    Example:
        >>> one = {"a": jnp.ones((1, 2)), "b": jnp.zeros((1, 2)), "sigma": jnp.zeros(1)}
        >>> problems.quadratic_loss(jnp.array([3.0, 4.0]), one, jax.random.key(0)).tolist()
        [12.5]
    """
    a, b = examples["a"], examples["b"]
    r = params[None] - b
    # Sums, not matmuls: float32 matmuls on a GPU are TF32.
    ar = a * r if a.ndim == 2 else (a * r[:, None, :]).sum(-1)
    value = 0.5 * (r * ar).sum(-1)
    if "sigma" not in examples:
        return value
    scale = examples["sigma"] / math.sqrt(len(params))
    noise = jax.random.normal(key, r.shape, params.dtype) * scale[:, None]
    return value + (noise * params[None]).sum(-1)


def _quadratic(
    a: Float[np.ndarray, "n ..."], b: Float[np.ndarray, "n d"], sigma: Number
) -> Problem:
    n, d = b.shape
    full = a if a.ndim == 3 else a[:, :, None] * np.eye(d)
    mean = full.mean(0)
    optimum = np.linalg.solve(mean, (full @ b[:, :, None])[:, :, 0].mean(0))
    r = optimum - b
    gradient = (full @ r[:, :, None])[:, :, 0]
    return Problem(
        data={"a": a, "b": b, "sigma": np.full(n, float(sigma))},
        partition=_even(n, 1),
        loss=quadratic_loss,
        optimum=optimum,
        value=float(0.5 * (r * gradient).sum(1).mean()),
        smoothness=float(np.linalg.eigvalsh(full)[:, -1].max()),
        convexity=float(np.linalg.eigvalsh(mean)[0]),
        heterogeneity=float((gradient**2).sum(1).mean()),
        noise=float(sigma) ** 2,
    )


def quadratics(
    n: Count = 10,
    d: Count = 5,
    L: Number = 1.0,
    mu: Number = 0.1,
    zeta: Number = 1.0,
    sigma: Number = 0.0,
    *,
    shared: bool = True,
    seed: Seed = 0,
) -> Problem:
    """f_i(x) = (1/2) (x - b_i)' A_i (x - b_i) with exact heterogeneity and gradient noise.

    A_i = Q_i diag(lambda) Q_i' with eigenvalues log-spaced from mu to L (mu alone for d = 1).
    Each client has one example.

    Args:
        n: number of clients.
        d: number of parameters.
        L: largest eigenvalue.
        mu: smallest eigenvalue, above 0.
        zeta: (1/n) sum_i |grad f_i - grad f|^2 = zeta^2: at every x if shared, else at x*.
        sigma: the stochastic gradient has E|noise|^2 = sigma^2.
        shared: one Hessian for all clients; otherwise each has its own Q_i, and local steps are
            biased even at the same distance from every b_i.
        seed: a number or a NumPy generator.

    Raises:
        ValueError: not 0 < mu <= L, or `zeta > 0` with one client.

    Example:
        >>> problem = problems.quadratics(n=4, d=3, zeta=1.0, shared=False)
        >>> problem.data["b"].shape, problem.optimum.shape
        ((4, 3), (3,))
    """
    n, d = _whole(n=n, d=d)
    _nonnegative(zeta=zeta, sigma=sigma, L=L)
    if not 0 < mu <= L:
        raise ValueError(f"mu must be above 0 and at most L={L}; got {mu}: mu={0.1 * L:g}")
    if n == 1 and zeta > 0:
        raise ValueError(f"one client cannot differ from the mean; got zeta={zeta}: use zeta=0")
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((1 if shared else n, d, d)))[0]
    a = (q * np.geomspace(mu, L, d)) @ q.swapaxes(1, 2)
    a = np.broadcast_to((a + a.swapaxes(1, 2)) / 2, (n, d, d))
    u, centre = rng.standard_normal((n, d)), rng.standard_normal(d)
    u = u - np.linalg.solve(a.mean(0), (a @ u[:, :, None])[:, :, 0].mean(0))  # now x* = centre
    size = math.sqrt(((a @ u[:, :, None]) ** 2).sum((1, 2)).mean())
    return _quadratic(a, centre + (zeta / size if zeta else 0.0) * u, sigma)


def canonical(sigma: Number = 0.0) -> Problem:
    """The fixed problem on which closed forms are compared: 8 clients, 5 parameters, diagonal A_i.

    f_i(x) = (1/2) sum_j a_ij (x_j - b_ij)^2, a_ij = 1 + ((3 i + 5 j) mod 7) / 2,
    b_ij = 2 sin(1.7 i + 0.9 j + 0.3); the data hold `a` and `b` as `[8, 5]`. With K local steps of
    size lr, FedAvg stops at sum_i w_i b_i / sum_i w_i with w_i = 1 - (1 - lr a_i)^K.

    Args:
        sigma: the stochastic gradient has E|noise|^2 = sigma^2.

    Example:
        >>> problem = problems.canonical()
        >>> problem.partition.n, problem.optimum.shape
        (8, (5,))
    """
    _nonnegative(sigma=sigma)
    i, j = np.arange(8)[:, None], np.arange(5)[None]
    a = 1 + ((3 * i + 5 * j) % 7) / 2
    b = 2 * np.sin(1.7 * i + 0.9 * j + 0.3)
    return _quadratic(a, b, sigma)


# Least squares and logistic regression -------------------------------------------------------


def squared_loss(
    params: Float[Array, " d"], examples: dict[str, Array], key: Key
) -> Float[Array, " B"]:
    """(1/2) (<x_s, params> - y_s)^2 for each example s.

    Example:
        >>> examples = {"x": jnp.array([[1.0, 0.0]]), "y": jnp.array([3.0])}
        >>> problems.squared_loss(jnp.array([1.0, 5.0]), examples, None).tolist()
        [2.0]
    """
    del key
    return 0.5 * ((examples["x"] * params[None]).sum(-1) - examples["y"]) ** 2


def least_squares(
    n: Count = 10,
    m: Count = 20,
    d: Count = 5,
    delta: Number = 1.0,
    noise: Number = 0.1,
    *,
    spectrum: ArrayLike | None = None,
    seed: Seed = 0,
) -> Problem:
    """Linear regression: y = x theta_i + noise, theta_i = theta_0 + delta u_i, u_i of length 1.

    Args:
        n: number of clients.
        m: examples per client.
        d: number of parameters.
        delta: distance of each client's model from the common one.
        noise: standard deviation of the targets.
        spectrum: variances of the features, `[d]`, or `[n, d]` for each client its own
            (default: ones).
        seed: a number or a NumPy generator.

    Raises:
        ValueError: fewer than d examples in all (the optimum would not be unique), or a spectrum of
            another shape.

    Example:
        >>> problem = problems.least_squares(n=4, m=10, d=3)
        >>> problem.data["x"].shape, problem.partition.count.tolist()
        ((40, 3), [10, 10, 10, 10])
    """
    n, m, d = _whole(n=n, m=m, d=d)
    _nonnegative(delta=delta, noise=noise)
    if n * m < d:
        raise ValueError(
            f"n * m = {n * m} examples leave d={d} parameters open: use m={-(-d // n)}"
        )
    rng = np.random.default_rng(seed)
    variance = np.ones(d) if spectrum is None else np.asarray(spectrum, np.float64)
    if variance.shape not in ((d,), (n, d)) or not (variance > 0).all():
        raise ValueError(
            f"spectrum must be positive, [{d}] or [{n}, {d}]; got shape {variance.shape}, "
            f"least {variance.min(initial=math.inf)}: spectrum=np.ones({d})"
        )
    u = rng.standard_normal((n, d))
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    theta = rng.standard_normal(d) + delta * u
    x = rng.standard_normal((n, m, d)) * np.sqrt(np.broadcast_to(variance, (n, d)))[:, None]
    y = (x * theta[:, None]).sum(-1) + noise * rng.standard_normal((n, m))
    flat, target = x.reshape(-1, d), y.ravel()
    optimum = np.linalg.lstsq(flat, target)[0]
    hessians = x.swapaxes(1, 2) @ x / m
    # One refinement by the normal equations brings the gradient to rounding.
    optimum = optimum - np.linalg.solve(
        hessians.mean(0), flat.T @ (flat @ optimum - target) / n / m
    )
    r = x @ optimum - y
    gradients = (x * r[:, :, None]).mean(1)
    return Problem(
        data={"x": flat, "y": target},
        partition=_even(n, m),
        loss=squared_loss,
        optimum=optimum,
        value=float(0.5 * (r**2).mean()),
        smoothness=float(np.linalg.eigvalsh(hessians)[:, -1].max()),
        convexity=float(np.linalg.eigvalsh(hessians.mean(0))[0]),
        heterogeneity=float((gradients**2).sum(1).mean()),
    )


def logistic_loss(
    params: Float[Array, " d"], examples: dict[str, Array], key: Key
) -> Float[Array, " B"]:
    """log(1 + exp(-y_s <x_s, params>)) + (l2_s / 2) |params|^2 for each example s, y = -1 or 1.

    Example:
        >>> examples = {"x": jnp.ones((1, 2)), "y": jnp.ones(1), "l2": jnp.zeros(1)}
        >>> print(problems.logistic_loss(jnp.zeros(2), examples, None).round(2))
        [0.69]
    """
    del key
    margin = examples["y"] * (examples["x"] * params[None]).sum(-1)
    return jax.nn.softplus(-margin) + 0.5 * examples["l2"] * (params**2).sum()


def logistic(
    n: Count = 10,
    m: Count = 50,
    d: Count = 5,
    l2: Number = 1e-2,
    heterogeneity: Number = 1.0,
    *,
    seed: Seed = 0,
) -> Problem:
    """Regularised logistic regression with labels -1 and 1, sorted among the clients.

    x ~ N(0, I) but for a last feature of 1, and y = 1 with probability sigmoid(<x, theta>),
    theta ~ N(0, I). (Without the constant, x -> -x would undo the sorting: clients of one label
    would have the same expected gradient at the optimum as all others.)

    Args:
        n: number of clients.
        m: examples per client.
        d: number of parameters.
        l2: weight of |x|^2 / 2, above 0.
        heterogeneity: the share of each client's examples that come from the pool sorted by label,
            0 (identically distributed) to 1 (all but one client have one label each).
        seed: a number or a NumPy generator.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> problem = problems.logistic(n=4, m=10, d=3, heterogeneity=1.0)
        >>> [float(problem.data["y"][problem.partition.of(i)].mean()) for i in range(4)]
        [-1.0, -0.8, 1.0, 1.0]
    """
    n, m, d = _whole(n=n, m=m, d=d)
    if not 0 < l2 < math.inf:
        raise ValueError(
            f"l2 must be above 0, and finite, for the optimum to be unique; got {l2}: l2=0.01"
        )
    if not 0 <= heterogeneity <= 1:
        raise ValueError(f"heterogeneity must be 0 to 1; got {heterogeneity}: heterogeneity=1.0")
    rng = np.random.default_rng(seed)
    x, theta = rng.standard_normal((n * m, d)), rng.standard_normal(d)
    x[:, -1] = 1
    y = np.where(rng.random(n * m) < 1 / (1 + np.exp(-x @ theta)), 1.0, -1.0)
    chunk = round(heterogeneity * m)
    pool = rng.permutation(n * m)
    ordered, rest = pool[: n * chunk], pool[n * chunk :]
    ordered = ordered[np.argsort(y[ordered], kind="stable")]
    deal = np.concatenate([ordered.reshape(n, chunk), rest.reshape(n, m - chunk)], 1).ravel()
    x, y = x[deal], y[deal]
    optimum = _newton(x, y, l2)
    by_client = x.reshape(n, m, d)
    grams = by_client.swapaxes(1, 2) @ by_client / m
    pull = (_gradients(x, y, optimum)).reshape(n, m, d).mean(1) + l2 * optimum
    return Problem(
        data={"x": x, "y": y, "l2": np.full(n * m, float(l2))},
        partition=_even(n, m),
        loss=logistic_loss,
        optimum=optimum,
        value=float(np.logaddexp(0, -y * (x @ optimum)).mean() + 0.5 * l2 * optimum @ optimum),
        smoothness=float(np.linalg.eigvalsh(grams)[:, -1].max() / 4 + l2),
        convexity=float(l2),
        heterogeneity=float((pull**2).sum(1).mean()),
    )


def _gradients(
    x: Float[np.ndarray, "N d"], y: Float[np.ndarray, " N"], w: Float[np.ndarray, " d"]
) -> Float[np.ndarray, "N d"]:
    return (-y * np.exp(-np.logaddexp(0, y * (x @ w))))[:, None] * x


def _newton(
    x: Float[np.ndarray, "N d"], y: Float[np.ndarray, " N"], l2: Number
) -> Float[np.ndarray, " d"]:
    """The minimiser, to a gradient of 1e-14 or to where rounding stops it."""

    def gradient(w: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
        return _gradients(x, y, w).mean(0) + l2 * w

    w = np.zeros(x.shape[1])
    g = gradient(w)
    for _ in range(100):
        if np.linalg.norm(g) <= 1e-14:
            break
        p = np.exp(-np.logaddexp(0, -(x @ w)))
        hessian = (x.T * (p * (1 - p))) @ x / len(x) + l2 * np.eye(len(w))
        step = np.linalg.solve(hessian, g)
        # For a strictly convex f some fraction of the step shrinks |gradient|.
        for scale in 0.5 ** np.arange(30):
            tried = gradient(w - scale * step)
            if np.linalg.norm(tried) < np.linalg.norm(g):
                w, g = w - scale * step, tried
                break
        else:
            break
    if np.linalg.norm(g) > 1e-10:
        raise ValueError(
            f"l2={l2} is too small: Newton's gradient stopped at {np.linalg.norm(g):g}; use "
            f"l2={10 * l2}"
        )
    return w
