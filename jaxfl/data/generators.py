"""Generated federated data sets, with the truth that generated them.

Rows of a client are independent and identically distributed, so its first rows are for training and
its last ones for the test: clients that are made in pairs stay pairs in every part.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxfl.data.partitioners import Number, Seed, _log_dirichlet, _softmax
from jaxfl.data.sets import DATASETS, Dataset, _dataset
from jaxfl.types import Count, whole


def _sizes(n: Count, size: Count | None) -> tuple[int, Any]:
    """Clients and examples of each as ints."""
    n, size = whole("n", n), None if size is None else whole("size", size)
    if n < 1 or (size is not None and size < 1):
        raise ValueError(f"n and size must be at least 1; got n={n}, size={size}: n=30, size=100")
    return n, size


def _clients(
    n: Count, size: Count | None, rng: np.random.Generator, most: Number = math.inf
) -> Int[np.ndarray, " N"]:
    """The client of every example: `size` each, or floor(LogNormal(4, 2)) + 50, at most `most`."""
    if size is None:
        sizes = np.minimum(np.floor(rng.lognormal(4, 2, n)) + 50, most).astype(np.int64)
    else:
        sizes = np.full(n, size)
    return np.repeat(np.arange(n), sizes)


def _each(
    x: Float[np.ndarray, "N d"], client: Int[np.ndarray, " N"], w: Float[np.ndarray, "n d k"]
) -> Float[np.ndarray, "N k"]:
    """Every example through its client's matrix; a gather would need `[N, d, k]`."""
    rows = np.split(x, np.cumsum(np.bincount(client, minlength=len(w)))[:-1])
    return np.concatenate([r @ m for r, m in zip(rows, w, strict=True)])


def _range(**values: Number) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be 0 or more, and finite; got {value}: {name}=1.0")


def synthetic(
    alpha: Number = 1.0,
    beta: Number = 1.0,
    n: Count = 30,
    *,
    d: int = 60,
    classes: int = 10,
    size: Count | None = None,
    iid: bool = False,
    valid: Number = 0.15,
    test: Number = 0.15,
    seed: Seed = 0,
) -> Dataset:
    """Synthetic(alpha, beta): linear classifiers and Gaussian features that differ by client.

    u_i ~ N(0, alpha), B_i ~ N(0, beta), v_i ~ N(B_i, 1)^d, W_i ~ N(u_i, 1), b_i ~ N(u_i, 1),
    x ~ N(v_i, diag(j^-1.2)), y = argmax(x W_i + b_i). (0, 0) is strongly heterogeneous already:
    the W_i differ.

    Args:
        alpha: standard deviation of u_i: how much the classifiers differ.
        beta: standard deviation of B_i: how much the features differ.
        n: number of clients.
        d: number of features.
        classes: number of classes.
        size: examples per client (default: floor(LogNormal(4, 2)) + 50 of them).
        iid: one W and b for all, and v_i = 0.
        valid: share for validation, of each client's examples.
        test: share for the test, of each client's examples.
        seed: a number or a NumPy generator.

    Returns:
        A data set with its natural partition; truth: `w` `[n, d, classes]`, `b` `[n, classes]`,
        `mean` `[n, d]`.

    Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous
        Networks", MLSys 2020, arXiv 1812.06127; its code was read.

    Deviations: the paper calls alpha and beta variances; its code takes them as standard
        deviations, and so do we.

    Example:
        >>> made = data.synthetic(alpha=0.5, beta=0.5, n=4, size=50)
        >>> made.partition.count.tolist(), made.classes
        ([34, 34, 34, 34], 10)
    """
    n, size = _sizes(n, size)
    _range(alpha=alpha, beta=beta)
    rng = np.random.default_rng(seed)
    client = _clients(n, size, rng)
    u, centre = rng.normal(0, alpha, n), rng.normal(0, beta, n)
    mean = rng.normal(centre[:, None], 1, (n, d))
    w = rng.normal(u[:, None, None], 1, (n, d, classes))
    b = rng.normal(u[:, None], 1, (n, classes))
    if iid:
        mean = np.zeros((n, d))
        w[:], b[:] = rng.standard_normal((d, classes)), rng.standard_normal(classes)
    x = mean[client] + rng.standard_normal((len(client), d)) * np.arange(1, d + 1) ** -0.6
    y = (_each(x, client, w) + b[client]).argmax(1).astype(np.int32)
    return _dataset(
        "synthetic",
        x.astype(np.float32),
        y,
        client,
        classes=classes,
        valid=valid,
        test=test,
        rng=None,
        truth={"w": w, "b": b, "mean": mean},
    )


def teacher_student(
    n: Count = 20,
    *,
    rho: Number = 0.5,
    clusters: int | None = None,
    d: int = 20,
    hidden: int = 16,
    classes: int | None = None,
    size: Count = 100,
    shift: Number = 0.0,
    noise: Number = 0.0,
    valid: Number = 0.15,
    test: Number = 0.15,
    seed: Seed = 0,
) -> Dataset:
    """Labels by one-hidden-layer teachers that share a part of their weights.

    Teacher of client i: sqrt(rho) theta_0 + sqrt(1 - rho) xi_z(i), with z(i) = i mod clusters: the
    same size for every rho, 1 for one teacher and 0 for independent ones.
    y = relu(x w1 + b1) w2 + b2 + noise, or its argmax; x ~ N(shift m_i, I), m_i ~ N(0, I).

    Args:
        n: number of clients.
        rho: share of the common teacher, 0 to 1.
        clusters: number of distinct teachers (default: one per client).
        d: number of features.
        hidden: hidden units.
        classes: number of classes (default: a regression).
        size: examples per client.
        shift: how far the clients' features are apart.
        noise: standard deviation added to the teacher's outputs.
        valid: share for validation, of each client's examples.
        test: share for the test, of each client's examples.
        seed: a number or a NumPy generator.

    Returns:
        A data set with its natural partition; truth: the teachers `w1` `[n, d, hidden]`, `b1`,
        `w2`, `b2`, and `cluster` `[n]`.

    Example:
        >>> made = data.teacher_student(4, rho=0.9, d=3, size=10)
        >>> made.train["x"].shape, made.classes
        ((24, 3), None)
    """
    n, size = _sizes(n, size)
    _range(shift=shift, noise=noise)
    if not 0 <= rho <= 1:
        raise ValueError(f"rho must be 0 to 1; got {rho}: rho=0.5")
    clusters = n if clusters is None else clusters
    if not 1 <= clusters <= n:
        raise ValueError(f"clusters must be 1 to n={n}; got {clusters}: clusters={min(2, n)}")
    rng = np.random.default_rng(seed)
    client, cluster = _clients(n, size, rng), np.arange(n) % clusters
    out = 1 if classes is None else classes
    shapes = {"w1": (d, hidden), "b1": (hidden,), "w2": (hidden, out), "b2": (out,)}
    scales = {"w1": d**-0.5, "b1": 1.0, "w2": hidden**-0.5, "b2": 1.0}
    truth: dict[str, np.ndarray] = {"cluster": cluster}
    for name, shape in shapes.items():
        common, own = rng.standard_normal(shape), rng.standard_normal((clusters, *shape))
        truth[name] = scales[name] * (rho**0.5 * common + (1 - rho) ** 0.5 * own)[cluster]
    x = rng.standard_normal((len(client), d)) + shift * rng.standard_normal((n, d))[client]
    h = np.maximum(_each(x, client, truth["w1"]) + truth["b1"][client], 0)
    y = _each(h, client, truth["w2"]) + truth["b2"][client]
    y = y + noise * rng.standard_normal(y.shape)
    y = y[:, 0].astype(np.float32) if classes is None else y.argmax(1).astype(np.int32)
    return _dataset(
        "teacher_student",
        x.astype(np.float32),
        y,
        client,
        classes=classes,
        valid=valid,
        test=test,
        rng=None,
        truth=truth,
    )


def two_moons(
    n: Count = 8,
    *,
    shift: str = "rotate",
    domains: int = 4,
    size: Count = 100,
    noise: Number = 0.1,
    valid: Number = 0.15,
    test: Number = 0.15,
    seed: Seed = 0,
) -> Dataset:
    """Two half circles in the plane, with a shift of features or of the concept between clients.

    - `"rotate"`: client i is turned by 2 pi z / domains about (0.5, 0.25), z = i mod domains.
    - `"flip"`: client i of the second half has the very points of client i - n/2, and the other
      labels: averaged over both, the best one can say is one half everywhere, and the gradient of
      a linear model with zero weights is zero.
    - `"none"`: identically distributed clients.

    Args:
        n: number of clients.
        shift: one of the three above.
        domains: for `"rotate"`, number of angles.
        size: examples per client, half of each moon.
        noise: standard deviation of each coordinate.
        valid: share for validation, of each client's examples.
        test: share for the test, of each client's examples.
        seed: a number or a NumPy generator.

    Returns:
        A data set with its natural partition; truth: `angle` `[n]` in radians, `cluster` `[n]`.

    Example:
        >>> made = data.two_moons(4, domains=4, size=20)
        >>> np.degrees(made.truth["angle"]).tolist()
        [0.0, 90.0, 180.0, 270.0]
    """
    n, size = _sizes(n, size)
    _range(noise=noise)
    if shift not in ("rotate", "flip", "none"):
        raise ValueError(f'shift must be rotate, flip or none; got {shift!r}: shift="rotate"')
    if shift == "flip" and n % 2:
        raise ValueError(f'shift="flip" needs an even number of clients; got n={n}: n={n + 1}')
    if domains < 1:
        raise ValueError(f"domains must be at least 1; got {domains}: domains=4")
    rng = np.random.default_rng(seed)
    client = _clients(n, size, rng)
    drawn = n // 2 if shift == "flip" else n
    y = np.tile(np.arange(size) % 2, drawn)
    t = rng.uniform(0, math.pi, len(y))
    outer, inner = (np.cos(t), np.sin(t)), (1 - np.cos(t), 0.5 - np.sin(t))
    x = np.where(y[:, None] == 0, np.stack(outer, 1), np.stack(inner, 1))
    x = x + noise * rng.standard_normal(x.shape)
    cluster, angle = np.zeros(n, np.int64), np.zeros(n)
    if shift == "flip":
        x, y = np.concatenate([x, x]), np.concatenate([y, 1 - y])
        cluster = np.arange(n) // drawn
    elif shift == "rotate":
        cluster = np.arange(n) % domains
        angle = 2 * math.pi * cluster / domains
        cos, sin = np.cos(angle)[client], np.sin(angle)[client]
        a, b = (x - (0.5, 0.25)).T
        x = np.stack([cos * a - sin * b + 0.5, sin * a + cos * b + 0.25], 1)
    return _dataset(
        "two_moons",
        x.astype(np.float32),
        y.astype(np.int32),
        client,
        classes=2,
        valid=valid,
        test=test,
        rng=None,
        truth={"angle": angle, "cluster": cluster},
    )


def mixture(
    n: Count = 30,
    *,
    components: int = 3,
    d: int = 150,
    alpha: Number = 0.4,
    noise: Number = 0.1,
    size: Count | None = None,
    valid: Number = 0.15,
    test: Number = 0.15,
    seed: Seed = 0,
) -> Dataset:
    """Each example is labelled by one of a few linear classifiers, each client mixing them its way.

    pi_i ~ Dir(alpha, ..., alpha), theta_k ~ U[-1, 1]^d, x ~ U[-1, 1]^d,
    y = round(sigmoid(x theta_k + N(0, noise^2))) with k ~ pi_i.

    Args:
        n: number of clients.
        components: number of classifiers.
        d: number of features.
        alpha: concentration of the mixtures, above 0.
        noise: standard deviation added to the classifier's output.
        size: examples per client (default: min(floor(LogNormal(4, 2)) + 50, 1000) of them).
        valid: share for validation, of each client's examples.
        test: share for the test, of each client's examples.
        seed: a number or a NumPy generator.

    Returns:
        A data set with its natural partition; truth: `pi` `[n, components]`,
        `theta` `[components, d]`.

    Source: Marfoq, Neglia, Bellet, Kameni, Vidal, NeurIPS 2021, arXiv 2108.10252; FedEM's code was
        read.

    Example:
        >>> made = data.mixture(5, components=2, d=10, size=40)
        >>> made.truth["pi"].shape, len(made.train["y"])
        ((5, 2), 140)
    """
    n, size = _sizes(n, size)
    _range(noise=noise)
    if not alpha > 0 or components < 1:
        raise ValueError(
            f"alpha must be above 0, components 1 or more; got {alpha}, {components}: "
            "alpha=0.4, components=3"
        )
    rng = np.random.default_rng(seed)
    client = _clients(n, size, rng, most=1000)
    pi = np.stack([_softmax(row) for row in _log_dirichlet(alpha, (n, components), rng)])
    theta = rng.uniform(-1, 1, (components, d))
    below = np.cumsum(pi, 1)[client, :-1] <= rng.random(len(client))[:, None]
    component = below.sum(1)
    x = rng.uniform(-1, 1, (len(client), d))
    score = (x @ theta.T)[np.arange(len(x)), component] + noise * rng.standard_normal(len(x))
    return _dataset(
        "mixture",
        x.astype(np.float32),
        (score > 0).astype(np.int32),
        client,
        classes=2,
        valid=valid,
        test=test,
        rng=None,
        truth={"pi": pi, "theta": theta},
    )


def planted_regression(
    n: Count = 40,
    *,
    clusters: int = 2,
    d: int = 20,
    size: Count = 15,
    noise: Number = 0.1,
    prior: str = "normal",
    scale: Number = 1.0,
    valid: Number = 0.0,
    test: Number = 0.0,
    seed: Seed = 0,
) -> Dataset:
    """Linear regressions with few planted models: y = x theta_z(i) + noise, z(i) = i mod clusters.

    With `size < d`, as by default, no client can learn its model alone.

    Args:
        n: number of clients.
        clusters: number of planted models.
        d: number of features, x ~ N(0, I).
        size: examples per client, before the split.
        noise: standard deviation of the targets.
        prior: `"normal"`: theta ~ N(0, scale^2 I); `"bernoulli"`: scale times fair coins.
        scale: size of the models.
        valid: share for validation, of each client's examples.
        test: share for the test; none by default, for the truth is known.
        seed: a number or a NumPy generator.

    Returns:
        A data set with its natural partition; truth: `theta` `[clusters, d]`, `cluster` `[n]`.

    Source: Ghosh, Chung, Yin, Ramchandran, NeurIPS 2020, arXiv 2006.04088 (IFCA,
        `prior="bernoulli"`); its code was read.

    Example:
        >>> made = data.planted_regression(6, clusters=2, d=3, size=5)
        >>> made.truth["cluster"].tolist(), made.train["x"].shape
        ([0, 1, 0, 1, 0, 1], (30, 3))
    """
    n, size = _sizes(n, size)
    _range(noise=noise, scale=scale)
    if prior not in ("normal", "bernoulli"):
        raise ValueError(f'prior must be normal or bernoulli; got {prior!r}: prior="normal"')
    if not 1 <= clusters <= n:
        raise ValueError(f"clusters must be 1 to n={n}; got {clusters}: clusters={min(2, n)}")
    rng = np.random.default_rng(seed)
    client, cluster = _clients(n, size, rng), np.arange(n) % clusters
    shape = (clusters, d)
    theta = rng.standard_normal(shape) if prior == "normal" else rng.integers(0, 2, shape)
    theta = scale * theta.astype(np.float64)
    x = rng.standard_normal((len(client), d))
    y = (x * theta[cluster[client]]).sum(1) + noise * rng.standard_normal(len(x))
    return _dataset(
        "planted_regression",
        x.astype(np.float32),
        y.astype(np.float32),
        client,
        classes=None,
        valid=valid,
        test=test,
        rng=None,
        truth={"theta": theta, "cluster": cluster},
    )


DATASETS.update(
    {f.__name__: f for f in (synthetic, teacher_student, two_moons, mixture, planted_regression)}
)
