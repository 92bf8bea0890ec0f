"""Gradient oracles `(x, xi) -> (loss, g)`: transformers that take one and return one."""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp

from jaxfl.engine.client import Sample
from jaxfl.types import Params, Scalar, fork

Oracle = Callable[[Params, Sample], tuple[Scalar, Params]]


def norm(g: Params) -> Scalar:
    """Euclidean norm over all leaves of one client, in float32 or wider; its gradient at 0 is 0.

    Example:
        >>> float(components.norm({"w": jnp.array([3.0]), "b": jnp.array([4.0])}))
        5.0
    """
    squared = _squared(g)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def _squared(g):
    # not `vdot`: a matrix product, hence TF32 on GPUs
    wide = lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32))
    return reduce(jnp.add, (jnp.square(wide(a)).sum() for a in jax.tree.leaves(g)))


def _clip(g, bound):
    if bound is None:
        return g
    squared = _squared(g)
    # A double where: the untaken branch must not divide by 0 under a gradient.
    over = squared > jnp.square(jnp.asarray(bound, squared.dtype))
    scale = jnp.where(over, bound / jnp.sqrt(jnp.where(over, squared, 1)), 1)
    return jax.tree.map(lambda a: (a * scale).astype(a.dtype), g)


def proximal(grad: Oracle, mu: Scalar, anchor: Params) -> Oracle:
    """Adds mu (x - anchor), the gradient of mu/2 |x - anchor|^2; the loss stays the plain one.

    Example:
        >>> flat = lambda x, xi: (0.0, jnp.zeros(1))
        >>> grad = components.proximal(flat, mu=0.5, anchor=jnp.array([1.0]))
        >>> grad(jnp.array([3.0]), None)[1].tolist()
        [1.0]
    """

    def prox(x, xi):
        loss, g = grad(x, xi)
        return loss, jax.tree.map(lambda g, x, a: g + mu * (x - a), g, x, anchor)

    return prox


def shifted(grad: Oracle, shift: Params) -> Oracle:
    """Adds a constant vector to every gradient: control variates, duals.

    Example:
        >>> grad = components.shifted(lambda x, xi: (0.0, x), jnp.array([10.0]))
        >>> grad(jnp.array([3.0]), None)[1].tolist()
        [13.0]
    """

    def shift_by(x, xi):
        loss, g = grad(x, xi)
        return loss, jax.tree.map(jnp.add, g, shift)

    return shift_by


def blended(grad: Oracle, alpha: Scalar, m: Params) -> Oracle:
    """alpha g + (1 - alpha) m with a fixed momentum m: FedCM, MIME-like momentum injection.

    Example:
        >>> grad = components.blended(lambda x, xi: (0.0, x), alpha=0.5, m=jnp.array([1.0]))
        >>> grad(jnp.array([3.0]), None)[1].tolist()
        [2.0]
    """

    def blend(x, xi):
        loss, g = grad(x, xi)
        return loss, jax.tree.map(lambda g, m: alpha * g + (1 - alpha) * m, g, m)

    return blend


def sam(grad: Oracle, rho: Scalar) -> Oracle:
    """The gradient at x + rho g / |g| on the same sample, |g| over all leaves of this client.

    A step is two gradients: `work._replace(grads=2 * work.grads)`.

    Example:
        >>> grad = components.sam(lambda x, xi: (0.5 * x @ x, x), rho=0.5)
        >>> f"{grad(jnp.array([3.0]), None)[1][0]:.3f}"
        '3.500'
    """

    def ascend(x, xi):
        loss, g = grad(x, xi)
        scale = rho / (norm(g) + 1e-7)  # the constant of FL-Simulator
        return loss, grad(jax.tree.map(lambda x, g: x + scale * g, x, g), xi)[1]

    return ascend


def clipped(grad: Oracle, bound: Scalar) -> Oracle:
    """Gradients scaled down to norm `bound` where they exceed it.

    Example:
        >>> grad = components.clipped(lambda x, xi: (0.0, x), bound=1.0)
        >>> print(grad(jnp.array([3.0, 4.0]), None)[1].round(3))
        [0.6 0.8]
    """

    def clip(x, xi):
        loss, g = grad(x, xi)
        return loss, _clip(g, bound)

    return clip


def noised(grad: Oracle, sigma: Scalar) -> Oracle:
    """Adds N(0, sigma^2 I) drawn from the sample's key, one key per leaf.

    Example:
        >>> grad = components.noised(lambda x, xi: (0.0, x), sigma=0.0)
        >>> xi = jaxfl.engine.client.Sample(jnp.array([0]), jnp.ones(1), jax.random.key(0))
        >>> grad(jnp.array([3.0, 4.0]), xi)[1].tolist()
        [3.0, 4.0]
    """

    def noise(x, xi):
        loss, g = grad(x, xi)
        leaves, tree = jax.tree.flatten(g)
        keys = jax.random.split(fork(xi.key, "noise"), len(leaves))
        return loss, tree.unflatten(
            [a + sigma * jax.random.normal(k, a.shape, a.dtype) for a, k in zip(leaves, keys)]
        )

    return noise


def zeroth_order(value: Callable[[Params, Sample], Scalar], radius: Scalar) -> Oracle:
    """Two-point estimate (f(x + r u) - f(x - r u)) / 2r * u, u normal, on the same sample.

    Example:
        >>> grad = components.zeroth_order(lambda x, xi: 0.5 * x @ x, radius=0.01)
        >>> xi = jaxfl.engine.client.Sample(jnp.array([0]), jnp.ones(1), jax.random.key(0))
        >>> loss, g = grad(jnp.array([3.0, 4.0]), xi)
        >>> bool(g @ jnp.array([3.0, 4.0]) >= 0)
        True
    """

    def estimate(x, xi):
        leaves, tree = jax.tree.flatten(x)
        keys = jax.random.split(fork(xi.key, "direction"), len(leaves))
        u = tree.unflatten([jax.random.normal(k, a.shape, a.dtype) for a, k in zip(leaves, keys)])
        up = value(jax.tree.map(lambda x, u: x + radius * u, x, u), xi)
        down = value(jax.tree.map(lambda x, u: x - radius * u, x, u), xi)
        slope = (up - down) / (2 * radius)
        return (up + down) / 2, jax.tree.map(lambda u: slope * u, u)

    return estimate
