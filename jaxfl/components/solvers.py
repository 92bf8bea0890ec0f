"""Local solvers, and the loop that runs a gradient oracle over samples."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxfl import struct
from jaxfl.components.oracles import Oracle, _clip
from jaxfl.engine.client import SHORT, Client, Sample
from jaxfl.engine.fields import hyper
from jaxfl.types import Key, Params, Scalar, Work, shown

Samples = Sample | list[Sample]


# Numbers in a model up to which few steps are compiled one by one, each for the size of its sample.
_SMALL = 1 << 14


@struct.dataclass
class SGD:
    """Stochastic gradient descent with weight decay: y <- y - lr (g + decay y).

    Args:
        decay: weight decay, >= 0, traced.

    Example:
        >>> solver = components.SGD(decay=0.1)
        >>> print(solver.step(jnp.array([1.0]), jnp.array([5.0]), 0.5, ())[0])
        [-1.55]
    """

    decay: Scalar = hyper(0.0)

    def init(self, x: Params) -> tuple[()]:
        """No memory."""
        return ()

    def step(self, y: Params, g: Params, lr: Scalar, memory: Any) -> tuple[Params, Any]:
        """One step."""
        return jax.tree.map(lambda y, g: y - lr * (g + self.decay * y), y, g), memory


@struct.dataclass
class Momentum:
    """Heavy-ball momentum: m <- beta m + g + decay y, y <- y - lr m.

    Args:
        beta: momentum, in [0, 1), traced.
        decay: weight decay, >= 0, traced.

    Example:
        >>> solver = components.Momentum(beta=0.5)
        >>> y, m = solver.step(jnp.array([0.0]), jnp.array([1.0]), 1.0, jnp.array([2.0]))
        >>> y.tolist(), m.tolist()
        ([-2.0], [2.0])
    """

    beta: Scalar = hyper(0.9, high=1.0)
    decay: Scalar = hyper(0.0)

    def init(self, x: Params) -> Params:
        """The momentum, zero."""
        return jax.tree.map(jnp.zeros_like, x)

    def step(self, y: Params, g: Params, lr: Scalar, memory: Params) -> tuple[Params, Params]:
        """One step."""
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
        >>> alg = algorithms.FedAvg(lr=0.01, solver=components.Optax(optax.adam(1.0)))
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


@struct.dataclass
class Clipped:
    """A solver that gets gradients of a bounded norm; weight decay comes after, as in PyTorch.

    Args:
        solver: `SGD()`, `Momentum(...)` or `Optax(...)`.
        bound: on the norm over all leaves, > 0, traced.

    Example:
        >>> solver = components.Clipped(components.SGD(decay=0.1), bound=1.0)
        >>> solver.step(jnp.array([0.0]), jnp.array([5.0]), 0.5, ())[0].tolist()
        [-0.5]
    """

    solver: SGD | Momentum | Optax = SGD()
    bound: Scalar = hyper(1.0)

    def init(self, x: Params) -> Any:
        """The solver's memory."""
        return self.solver.init(x)

    def step(self, y: Params, g: Params, lr: Scalar, memory: Any) -> tuple[Params, Any]:
        """One step."""
        return self.solver.step(y, _clip(g, self.bound), lr, memory)


Solver = SGD | Momentum | Optax | Clipped


def fit(
    how: Any,
    client: Client,
    x: Params,
    key: Key,
    grad: Oracle | None = None,
    memory: Any = None,
) -> tuple[Params, Any, Work]:
    """Local steps of one client from x, as an algorithm's `lr`, `steps`, `epochs`, `solver` say.

    Args:
        how: the algorithm, or whatever else has these four fields.
        client: whose examples.
        x: where to start, `[...]`.
        key: for the samples.
        grad: gradient oracle; by default the client's.
        memory: of the solver; by default fresh.

    Returns:
        The last iterate, the solver's memory, and the work: the loss, averaged over the live steps,
        and how many they are.

    Example:
        >>> clients, x = problems.quadratics(n=4).clients(), jnp.zeros(5)
        >>> local = lambda client, key: components.fit(algorithms.FedAvg(lr=0.1), client, x, key)
        >>> y, memory, work = clients.each(local, key=jax.random.key(0))
        >>> y.shape, work.grads.tolist()
        ((4, 5), [10.0, 10.0, 10.0, 10.0])
    """
    xi = client.samples(key, how.steps, how.epochs)
    memory = how.solver.init(x) if memory is None else memory
    grad = client.grad if grad is None else grad
    y, loss, memory = train(grad, x, xi, how.lr, how.solver, memory)
    return y, memory, Work(loss, live_steps(xi))


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
        >>> xi = jaxfl.engine.client.Sample(jnp.zeros((3, 1), int), jnp.ones((3, 1)), keys)
        >>> sgd = components.SGD()
        >>> y, loss, memory = components.train(square, jnp.array([8.0]), xi, 0.5, sgd, ())
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
        >>> xi = jaxfl.engine.client.Sample(jnp.zeros((3, 2), int), weight, None)
        >>> float(components.live_steps(xi))
        2.0
    """
    return sum((part.weight != 0).any(-1).sum().astype(part.weight.dtype) for part in _stacks(xi))
