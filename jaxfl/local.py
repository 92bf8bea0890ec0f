"""Local training: solvers that run a gradient oracle over samples, and transformers of oracles.

A gradient oracle is a function `(x, xi) -> (loss, g)`. A transformer takes one and returns one, so
that FedSpeed is `shifted(proximal(sam(grad, rho), mu, anchor), s)`.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxfl.clients import SHORT, Sample
from jaxfl.simulate import hyper
from jaxfl.types import Params, Scalar, fork, shown

Oracle = Callable[[Params, Sample], tuple[Scalar, Params]]
Samples = Sample | list[Sample]
# Numbers in a model up to which few steps are compiled one by one, each for the size of its sample.
_SMALL = 1 << 14


@struct.dataclass
class SGD:
    """Stochastic gradient descent with weight decay and clipping: y <- y - lr (clip(g) + decay y).

    Args:
        decay: weight decay, >= 0, traced; added after clipping.
        clip: bound on the norm of the gradient, > 0, traced; with None no norm is computed.

    Example:
        >>> solver = local.SGD(decay=0.1, clip=1.0)
        >>> solver.step(jnp.array([0.0]), jnp.array([5.0]), 0.5, ())[0].tolist()
        [-0.5]
    """

    decay: Scalar = hyper(0.0)
    clip: Scalar | None = hyper(None)

    def init(self, x: Params) -> tuple[()]:
        """No memory."""
        return ()

    def step(self, y: Params, g: Params, lr: Scalar, memory: Any) -> tuple[Params, Any]:
        """One step."""
        g = _clip(g, self.clip)
        return jax.tree.map(lambda y, g: y - lr * (g + self.decay * y), y, g), memory


@struct.dataclass
class Momentum:
    """Heavy-ball momentum: m <- beta m + clip(g) + decay y, y <- y - lr m.

    Args:
        beta: momentum, in [0, 1), traced.
        decay: weight decay, >= 0, traced; added after clipping, as PyTorch does.
        clip: bound on the norm of the gradient, > 0, traced; with None no norm is computed.

    Example:
        >>> solver = local.Momentum(beta=0.5)
        >>> y, m = solver.step(jnp.array([0.0]), jnp.array([1.0]), 1.0, jnp.array([2.0]))
        >>> y.tolist(), m.tolist()
        ([-2.0], [2.0])
    """

    beta: Scalar = hyper(0.9, high=1.0)
    decay: Scalar = hyper(0.0)
    clip: Scalar | None = hyper(None)

    def init(self, x: Params) -> Params:
        """The momentum, zero."""
        return jax.tree.map(jnp.zeros_like, x)

    def step(self, y: Params, g: Params, lr: Scalar, memory: Params) -> tuple[Params, Params]:
        """One step."""
        g = _clip(g, self.clip)
        m = jax.tree.map(lambda m, g, y: self.beta * m + g + self.decay * y, memory, g, y)
        return jax.tree.map(lambda y, m: y - lr * m, y, m), m


@struct.dataclass
class Optax:
    """Any optax optimiser as the local solver; its updates are scaled by lr.

    Args:
        optimizer: an `optax.GradientTransformation` built with learning rate 1, static:
            `Optax(optax.adam(1.0))`. The algorithm's `lr` multiplies its updates and stays traced.

    Raises:
        ValueError: no optimiser, or one that asks for more than gradients and parameters.

    Example:
        >>> import optax
        >>> alg = algorithms.FedAvg(lr=0.01, solver=local.Optax(optax.adam(1.0)))
        >>> type(alg.solver).__name__
        'Optax'
    """

    optimizer: Any = struct.field(pytree_node=False)

    def __post_init__(self):
        if not isinstance(self.optimizer, optax.GradientTransformation):
            raise ValueError(
                f"optimizer must be an optax optimiser, got {shown(self.optimizer)}; for example "
                "`Optax(optax.adam(1.0))`"
            )

    def init(self, x: Params) -> Any:
        """The optimiser's state."""
        return self.optimizer.init(x)

    def step(self, y: Params, g: Params, lr: Scalar, memory: Any) -> tuple[Params, Any]:
        """One step."""
        try:
            updates, memory = self.optimizer.update(g, memory, y)
        except TypeError as error:
            if "required keyword" not in str(error):
                raise
            raise ValueError(
                "optimizer must need no more than gradients and parameters, and this one asks for "
                f"values of the loss too ({error}), as lbfgs, linesearches, polyak_sgd and "
                "reduce_on_plateau do; use another, such as `Optax(optax.adam(1.0))`"
            ) from error
        return optax.apply_updates(y, jax.tree.map(lambda u: lr * u, updates)), memory


Solver = SGD | Momentum | Optax


def train(
    grad: Oracle, x: Params, xi: Samples, lr: Scalar, solver: Solver, memory: Any
) -> tuple[Params, Scalar, Any]:
    """Local steps of one client from x, one per sample, with the solver's memory.

    A sample whose weights are all 0 freezes the step: model, memory and loss stay as they are.

    Args:
        grad: gradient oracle.
        x: where to start, `[...]`.
        xi: samples, leaves `[steps, ...]`, or several such stacks, one after the other.
        lr: learning rate.
        solver: `SGD()`, `Momentum(...)` or `Optax(...)`.
        memory: the solver's, `solver.init(x)` for a fresh one.

    Returns:
        The last iterate, the loss averaged over the live steps (NaN if there is none), and the
        memory.

    Example:
        >>> square = lambda x, xi: (0.5 * x @ x, x)
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> xi = jaxfl.clients.Sample(jnp.zeros((3, 1), int), jnp.ones((3, 1)), keys)
        >>> y, loss, memory = local.train(square, jnp.array([8.0]), xi, 0.5, local.SGD(), ())
        >>> y.tolist()
        [1.0]
    """

    def step(carry, xi):
        y, memory = carry
        loss, g = grad(y, xi)
        new = solver.step(y, g, lr, memory)
        live = (xi.weight != 0).any()
        kept = jax.tree.map(lambda a, b: jnp.where(live, a, b).astype(b.dtype), new, carry)
        return kept, jnp.where(live, loss, 0)

    small = sum(a.size for a in jax.tree.leaves(x)) <= _SMALL
    stacks, carry, total = _stacks(xi), (x, memory), 0
    if len(stacks) > 1 and not small:
        stacks = [_joined(stacks)]
    for part in stacks:
        unroll = small and len(part.weight) <= SHORT
        if not unroll:  # a copy of x for the loop to overwrite: else XLA makes two
            carry = jax.lax.optimization_barrier(carry)
        carry, losses = jax.lax.scan(step, carry, part, unroll=unroll)
        total += losses.sum()
    (y, memory), steps = carry, live_steps(xi)
    return y, jnp.where(steps > 0, total / jnp.maximum(steps, 1), jnp.nan), memory


def _stacks(xi):
    return [xi] if isinstance(xi, Sample) else xi


def _joined(xi):
    """Stacks of samples as one, of the width of the first and widest."""

    def wide(a):
        return jnp.pad(a, ((0, 0), (0, xi[0].weight.shape[1] - a.shape[1])))

    parts = [Sample(wide(part.index), wide(part.weight), part.key) for part in xi]
    return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


def live_steps(xi: Samples) -> Scalar:
    """How many of the stacked samples `[steps, ...]` are not all padding, as a float.

    Of one stack or of several.

    Example:
        >>> weight = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
        >>> xi = jaxfl.clients.Sample(jnp.zeros((3, 2), int), weight, None)
        >>> float(local.live_steps(xi))
        2.0
    """
    return sum((part.weight != 0).any(-1).sum().astype(part.weight.dtype) for part in _stacks(xi))


def norm(g: Params) -> Scalar:
    """Euclidean norm over all leaves of one client, in float32 or wider; its gradient at 0 is 0.

    Example:
        >>> float(local.norm({"w": jnp.array([3.0]), "b": jnp.array([4.0])}))
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
        >>> grad = local.proximal(flat, mu=0.5, anchor=jnp.array([1.0]))
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
        >>> grad = local.shifted(lambda x, xi: (0.0, x), jnp.array([10.0]))
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
        >>> grad = local.blended(lambda x, xi: (0.0, x), alpha=0.5, m=jnp.array([1.0]))
        >>> grad(jnp.array([3.0]), None)[1].tolist()
        [2.0]
    """

    def blend(x, xi):
        loss, g = grad(x, xi)
        return loss, jax.tree.map(lambda g, m: alpha * g + (1 - alpha) * m, g, m)

    return blend


def sam(grad: Oracle, rho: Scalar) -> Oracle:
    """The gradient at x + rho g / |g| on the same sample, |g| over all leaves of this client.

    A step is two gradients: `net.info(loss, 2 * live_steps(xi), ...)`.

    Example:
        >>> grad = local.sam(lambda x, xi: (0.5 * x @ x, x), rho=0.5)
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
        >>> grad = local.clipped(lambda x, xi: (0.0, x), bound=1.0)
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
        >>> grad = local.noised(lambda x, xi: (0.0, x), sigma=0.0)
        >>> xi = jaxfl.clients.Sample(jnp.array([0]), jnp.ones(1), jax.random.key(0))
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
        >>> grad = local.zeroth_order(lambda x, xi: 0.5 * x @ x, radius=0.01)
        >>> xi = jaxfl.clients.Sample(jnp.array([0]), jnp.ones(1), jax.random.key(0))
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
