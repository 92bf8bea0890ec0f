"""One local problem: its samples, losses and gradients."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxfl import struct
from jaxfl.types import Key, Params, Scalar, fork

# Policy -> precision of matrix products; JAX's own default on recent GPUs is TF32.
_PRECISIONS = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}


# Examples of a client up to which their places share 32 bits with a random number, and up to which
# counting who comes before is cheaper than sorting; how many are counted at once.
_PACKED, _RANKED, _SUMMED = 1024, 256, 32


# Local steps that are so few that a loop costs more than to compile each.
SHORT = 2


class LossShapeError(ValueError):
    """A loss that does not return one number per example."""


class Sample(NamedTuple):
    """Which examples of one client, opaque to algorithms; ask the same one at two points."""

    index: Scalar  # [B] position among the client's own examples
    weight: Scalar  # [B] 0 for padding
    key: Key  # randomness of the loss and of augmentation


def _same(examples, key):
    return examples


class _Data(NamedTuple):
    """What the local problems share."""

    arrays: Any  # leaves [N, ...], all clients' examples
    order: Any  # [N] client i owns order[start[i] : start[i] + count[i]]; None: start[i] on


@struct.dataclass
class Client:
    """One local problem, as the function given to `Clients.each` sees it."""

    data: Any
    start: Scalar
    count: Scalar
    id: Scalar
    loss: Callable = struct.field(pytree_node=False)
    batch: int | str = struct.field(pytree_node=False)
    largest: int = struct.field(pytree_node=False)
    augment: Callable = struct.field(pytree_node=False)
    precision: str = struct.field(pytree_node=False)

    def draw(self, key: Key) -> Sample:
        """A minibatch drawn uniformly with replacement: leaves `[B]`."""
        return jax.tree.map(lambda a: a[0], self.draws(key, 1))

    def draws(self, key: Key, steps: int) -> Sample:
        """Independent minibatches: leaves `[steps, B]`; every example, if `batch="all"`."""
        keys = jax.random.split(fork(key, "loss"), steps)
        if isinstance(self.batch, str):
            whole = jax.tree.map(lambda a: jnp.broadcast_to(a, (steps, *a.shape)), self.all(()))
            return whole._replace(key=keys)
        # the modulo's bias is below count / 2^32, and costs half of what `randint` does
        size = jnp.maximum(self.count, 1).astype(jnp.uint32)
        index = jax.random.bits(key, (steps, self.batch), jnp.uint32) % size
        weight = jnp.broadcast_to(self.count > 0, index.shape).astype(jnp.result_type(float))
        return Sample(index.astype(jnp.int32), weight, keys)

    def epochs(self, key: Key, epochs: int) -> Sample:
        """Shuffled local epochs, each example once per epoch: leaves `[epochs * steps, B]`.

        `steps = ceil(largest / B)` for every client, so that shapes agree: a client with fewer
        examples gets padding of weight 0, whole steps of it at the end of each epoch. If nobody
        has `batch` examples, `B = largest`. With `batch="all"`, one step per epoch, in order.
        """
        if isinstance(self.batch, str):
            return self.draws(key, epochs)
        batch = min(self.batch, self.largest)
        steps = -(-self.largest // batch)
        place = jnp.arange(steps * batch)

        def shuffle(key):
            index = jnp.concatenate([self._order(key), place[self.largest :]]).astype(jnp.int32)
            weight = (place < self.count).astype(jnp.result_type(float))
            return Sample(
                index.reshape(steps, batch),
                weight.reshape(steps, batch),
                jax.random.split(fork(key, "loss"), steps),
            )

        keys = jax.random.split(key, epochs) if epochs > 1 else key[None]
        xi = jax.vmap(shuffle)(keys)
        return jax.tree.map(lambda a: a.reshape(epochs * steps, *a.shape[2:]), xi)

    def _order(self, key):
        """A random order of the examples, `[largest]`; those beyond `count` come last."""
        place = jnp.arange(self.largest, dtype=jnp.uint32)
        u = jax.random.bits(key, place.shape, jnp.uint32)
        u = jnp.where(place < self.count.astype(jnp.uint32), u, ~jnp.uint32(0))
        if self.largest > _PACKED:
            return jnp.argsort(u)
        low = jnp.uint32(_PACKED - 1)
        u = u & ~low | place  # the place in the low bits: XLA sorts one array faster than two
        if self.largest > _RANKED:
            return jnp.sort(u, stable=False) & low
        # in pieces: XLA writes a longer sum's terms to memory first
        before = [
            (u[None, k : k + _SUMMED] < u[:, None]).sum(1, dtype=jnp.int32)
            for k in range(0, self.largest, _SUMMED)
        ]
        return sum(before[1:], before[0])

    def samples(self, key: Key, steps: int, epochs: int) -> list[Sample]:
        """What a local loop eats: shuffled epochs if `epochs > 0`, else independent minibatches.

        Stacks, one after the other, each of its own width: all in one, but for the last minibatch
        of a single short epoch, which is smaller and then a stack of its own.
        """
        if not epochs:
            return [self.draws(key, steps)]
        xi = self.epochs(key, epochs)
        if isinstance(self.batch, str):
            return [xi]
        steps, rest = len(xi.weight), self.largest % self.batch
        if epochs == 1 and 1 < steps <= SHORT and rest:
            last = Sample(xi.index[-1:, :rest], xi.weight[-1:, :rest], xi.key[-1:])
            return [jax.tree.map(lambda a: a[:-1], xi), last]
        return [xi]

    def all(self, key: Key) -> Sample:
        """Every example once: leaves `[largest]`."""
        index = jnp.arange(self.largest, dtype=jnp.int32)
        return Sample(index, (index < self.count).astype(jnp.result_type(float)), key)

    def get(self, xi: Sample) -> Any:
        """The examples of a sample, augmented: leaves `[B, ...]`."""
        examples = self._rows(xi.index)
        if self.augment is _same:
            return examples
        return self.augment(examples, fork(xi.key, "augment"))

    def _rows(self, index):
        # in bounds: the partition was checked, and a test of every index costs as much as the row
        at = lambda a, i: a.at[i].get(mode="promise_in_bounds")
        rows = self.start + jnp.minimum(index, jnp.maximum(self.count - 1, 0))
        if self.data.order is not None:
            rows = at(self.data.order, rows)
        return jax.tree.map(lambda a: at(a, rows), self.data.arrays)

    def near(self) -> "Client":
        """This client with a copy of its examples, read once and in order: they are then cached."""
        own = self._rows(jnp.arange(self.largest, dtype=jnp.int32))
        return dataclasses.replace(self, data=_Data(own, None), start=jnp.zeros_like(self.start))

    def value(self, x: Params, xi: Sample) -> Scalar:
        """The weighted mean loss over a sample; 0 if every weight is 0."""
        losses = self.losses(x, xi)
        losses = losses.reshape(losses.shape[0], -1).mean(1)  # several tasks: their mean
        weight = xi.weight.astype(losses.dtype)
        total = weight.sum()
        # where on the loss, not the product: padding may hold anything, also NaN
        summed = (weight * jnp.where(weight != 0, losses, 0)).sum()
        return summed / jnp.where(total != 0, total, 1)

    def grad(self, x: Params, xi: Sample) -> tuple[Scalar, Params]:
        """Loss and gradient at x on a sample, the gradient in x's dtypes."""
        return jax.value_and_grad(self.value)(x, xi)

    def losses(self, x: Params, xi: Sample) -> Any:
        """The loss of every example of a sample: `[B]`, or `[B, tasks]`."""
        examples = self.get(xi)
        if self.precision == "bfloat16":
            x, examples = jax.tree.map(_to_bfloat16, (x, examples))
        with jax.default_matmul_precision(_PRECISIONS[self.precision]):
            losses = self.loss(x, examples, xi.key)
        shape = getattr(losses, "shape", None)
        if shape is None or shape[:1] != xi.weight.shape:
            raise LossShapeError(
                f"loss must return one number per example, shape {xi.weight.shape}, not "
                f"{type(losses).__name__ if shape is None else shape}; leave the mean over "
                "examples to the engine: `return jnp.square(pred - y)` instead of "
                "`jnp.square(pred - y).mean()`"
            )
        if not jnp.issubdtype(losses.dtype, jnp.floating):
            raise LossShapeError(
                f"loss must return floating numbers, got {losses.dtype}, whose gradient is 0; for "
                "example `jnp.square(pred - y)` instead of `pred != y`"
            )
        # sums in bfloat16 stop growing at 256
        return losses.astype(jnp.promote_types(losses.dtype, jnp.float32))


@struct.dataclass
class _Counted(Client):
    """A client that writes down how many examples it draws."""

    drawn: list[int] = struct.field(pytree_node=False, kw_only=True)

    def draws(self, key: Key, steps: int) -> Sample:
        self.drawn.append(steps * (self.largest if isinstance(self.batch, str) else self.batch))
        return super().draws(key, steps)

    def epochs(self, key: Key, epochs: int) -> Sample:
        if not isinstance(self.batch, str):  # else by `draws`
            self.drawn.append(epochs * self.largest)
        return super().epochs(key, epochs)


def _to_bfloat16(a):
    return a.astype(jnp.bfloat16) if jnp.issubdtype(a.dtype, jnp.floating) else a
