"""The stacked local problems: whose examples, which samples, and how a function meets all clients."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxfl import comm
from jaxfl.types import Key, Params, Scalar, Stacked

_PRECISIONS = ("float32", "tf32", "bfloat16")
_BLOCK_BYTES = 1 << 20  # on the CPU a block of messages beyond this leaves the cache


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
    order: Scalar  # [N] client i owns order[start[i] : start[i] + count[i]]


@struct.dataclass
class Client:
    """One local problem, as the function given to `Clients.each` sees it."""

    data: Any
    start: Scalar
    count: Scalar
    id: Scalar
    loss: Callable = struct.field(pytree_node=False)
    batch: int = struct.field(pytree_node=False)
    largest: int = struct.field(pytree_node=False)
    augment: Callable = struct.field(pytree_node=False)
    precision: str = struct.field(pytree_node=False)

    def draw(self, key: Key) -> Sample:
        """A minibatch drawn uniformly with replacement: leaves `[B]`."""
        return jax.tree.map(lambda a: a[0], self.draws(key, 1))

    def draws(self, key: Key, steps: int) -> Sample:
        """Independent minibatches: leaves `[steps, B]`."""
        where, loss = jax.random.split(key)
        # the modulo's bias is below count / 2^32, and costs half of what `randint` does
        size = jnp.maximum(self.count, 1).astype(jnp.uint32)
        index = jax.random.bits(where, (steps, self.batch), jnp.uint32) % size
        weight = jnp.broadcast_to(self.count > 0, index.shape).astype(jnp.result_type(float))
        return Sample(index.astype(jnp.int32), weight, jax.random.split(loss, steps))

    def epochs(self, key: Key, epochs: int) -> Sample:
        """Shuffled local epochs, each example once per epoch: leaves `[epochs * steps, B]`.

        `steps = ceil(largest / B)` for every client, so that shapes agree: a client with fewer
        examples gets padding of weight 0, whole steps of it at the end of each epoch.
        """
        steps = -(-self.largest // self.batch)

        def shuffle(key):
            where, loss = jax.random.split(key)
            u = jax.random.uniform(where, (steps * self.batch,))
            # padding sorts to the end; u < 1 always, so 2 is beyond every example
            index = jnp.argsort(jnp.where(jnp.arange(u.shape[0]) < self.count, u, 2.0))
            weight = (jnp.arange(u.shape[0]) < self.count).astype(u.dtype)
            return Sample(
                index.astype(jnp.int32).reshape(steps, self.batch),
                weight.reshape(steps, self.batch),
                jax.random.split(loss, steps),
            )

        xi = jax.vmap(shuffle)(jax.random.split(key, epochs))
        return jax.tree.map(lambda a: a.reshape(epochs * steps, *a.shape[2:]), xi)

    def samples(self, key: Key, steps: int, epochs: int) -> Sample:
        """What a local loop eats: shuffled epochs if `epochs > 0`, else independent minibatches."""
        return self.epochs(key, epochs) if epochs else self.draws(key, steps)

    def all(self, key: Key) -> Sample:
        """Every example once: leaves `[largest]`."""
        index = jnp.arange(self.largest, dtype=jnp.int32)
        return Sample(index, (index < self.count).astype(jnp.result_type(float)), key)

    def get(self, xi: Sample) -> Any:
        """The examples of a sample, augmented: leaves `[B, ...]`."""
        rows = self.data.order[self.start + jnp.minimum(xi.index, jnp.maximum(self.count - 1, 0))]
        return self.augment(jax.tree.map(lambda a: a[rows], self.data.arrays), xi.key)

    def value(self, x: Params, xi: Sample) -> Scalar:
        """The weighted mean loss over a sample; 0 if every weight is 0."""
        losses = self._losses(x, xi)
        losses = losses.reshape(losses.shape[0], -1).mean(1)  # several tasks: their mean
        weight = xi.weight.astype(losses.dtype)
        total = weight.sum()
        # where on the loss, not the product: padding may hold anything, also NaN
        summed = (weight * jnp.where(weight != 0, losses, 0)).sum()
        return summed / jnp.where(total != 0, total, 1)

    def grad(self, x: Params, xi: Sample) -> tuple[Scalar, Params]:
        """Loss and gradient at x on a sample, the gradient in x's dtypes."""
        return jax.value_and_grad(self.value)(x, xi)

    def _losses(self, x, xi):
        examples = self.get(xi)
        if self.precision == "bfloat16":
            x, examples = jax.tree.map(_to_bfloat16, (x, examples))
        with jax.default_matmul_precision("tensorfloat32" if self.precision == "tf32" else None):
            losses = self.loss(x, examples, xi.key)
        if self.precision == "bfloat16":
            losses = losses.astype(jnp.float32)
        if jnp.ndim(losses) < 1 or losses.shape[0] != xi.weight.shape[0]:
            raise LossShapeError(
                f"loss must return one number per example, shape ({xi.weight.shape[0]},), not "
                f"{jnp.shape(losses)}; leave the mean over examples to the engine: "
                "`return jnp.square(pred - y)` instead of `jnp.square(pred - y).mean()`"
            )
        return losses


def _to_bfloat16(a):
    return a.astype(jnp.bfloat16) if jnp.issubdtype(a.dtype, jnp.floating) else a


@struct.dataclass
class Clients:
    """n local problems over one flat copy of the data: a split is a permutation and offsets.

    Build it with `Clients.make`. `clients[idx]` is a cohort, `clients.each(f, ...)` applies a
    one-client function to all, `clients.mean(f, ...)` averages what it returns.
    """

    data: Any  # shared by all: arrays [N, ...] and their order [N]
    start: Scalar  # [n] first position in the order
    count: Scalar  # [n] number of examples
    id: Scalar  # [n] identity: keys follow it, not the position
    loss: Callable = struct.field(pytree_node=False)
    batch: int = struct.field(pytree_node=False, default=32)
    block: int = struct.field(pytree_node=False, default=0)
    largest: int = struct.field(pytree_node=False, default=1)
    augment: Callable = struct.field(pytree_node=False, default=_same)
    precision: str = struct.field(pytree_node=False, default="float32")

    @classmethod
    def make(
        cls,
        data: Any,
        partition: Any,
        loss: Callable,
        *,
        batch: int = 32,
        block: int = 0,
        augment: Callable = _same,
        precision: str = "float32",
    ) -> "Clients":
        """Local problems from arrays, a partition of their rows and a loss.

        Args:
            data: pytree of arrays with a leading axis of N examples, `{"x": ..., "y": ...}`.
            partition: `jaxfl.data.Partition`, or anything with `order [N]`, `start [n]`, `count [n]`.
            loss: `loss(params, examples, key) -> [B]`, one number per example.
            batch: examples of a minibatch.
            block: clients computed at once; 0 chooses by backend and size.
            augment: `augment(examples, key) -> examples`, inside the program, per sample.
            precision: of local training: "float32", "tf32" or "bfloat16" compute. Parameters,
                mixing and state stay in their own dtype.

        Raises:
            ValueError: arrays that disagree in length, hold NaN or inf, or are not numbers; empty
                clients; offsets out of range; batch < 1 or block < 0; an unknown precision.
        """
        arrays = jax.tree.map(np.asarray, data)
        size = _check_data(arrays)
        order, start, count = (np.asarray(a) for a in partition[:3])
        if (count < 1).any():
            raise ValueError(
                f"clients {np.flatnonzero(count < 1)[:5].tolist()} have no example; give the "
                "partitioner a minimum: `dirichlet(labels, n, alpha, minimum=1)`"
            )
        if len(order) and (order.min() < 0 or order.max() >= size):
            raise ValueError(
                f"partition.order must index the {size} examples of data, got indices from "
                f"{order.min()} to {order.max()}; partition the same arrays: "
                "`iid(len(data['y']), n)`"
            )
        if (start < 0).any() or (start + count > len(order)).any():
            raise ValueError(f"partition.start and count must stay within its order [{len(order)}]")
        if batch < 1 or block < 0:
            raise ValueError(f"batch must be >= 1 and block >= 0, got {batch} and {block}")
        if precision not in _PRECISIONS:
            raise ValueError(f"precision must be one of {_PRECISIONS}, got {precision!r}")
        return cls(
            _Data(jax.tree.map(jnp.asarray, arrays), jnp.asarray(order, jnp.int32)),
            jnp.asarray(start, jnp.int32),
            jnp.asarray(count, jnp.int32),
            jnp.arange(len(start), dtype=jnp.int32),
            loss=loss,
            batch=int(batch),
            block=int(block),
            largest=int(count.max()),
            augment=augment,
            precision=precision,
        )

    @property
    def n(self) -> int:
        """Number of clients."""
        return self.start.shape[0]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, idx: Int[Array, " s"]) -> "Clients":
        """The cohort `idx`; an empty slot (`idx = n`) computes some client, its weight is 0."""
        start, count, ids = comm.pick((self.start, self.count, self.id), jnp.asarray(idx))
        return self.replace(start=start, count=count, id=ids)

    def split(self, fraction: float, *, seed: int = 0) -> tuple["Clients", "Clients"]:
        """Each client's examples in two, at random: the rest, and the held-out `fraction`.

        Host-side. Every client keeps at least one example on both sides; a client with a single
        example has it on both.
        """
        rng = np.random.default_rng(seed)
        order, starts, counts = (np.asarray(a) for a in (self.data.order, self.start, self.count))
        parts: tuple[list, list] = ([], [])
        for start, count in zip(starts, counts, strict=True):
            own = rng.permutation(order[start : start + count])
            held = min(max(1, round(fraction * count)), max(count - 1, 1))
            parts[0].append(own[held:] if count > 1 else own)
            parts[1].append(own[:held])
        return self._over(parts[0]), self._over(parts[1])

    def _over(self, lists):
        count = np.array([len(a) for a in lists], np.int32)
        return self.replace(
            data=self.data._replace(order=jnp.asarray(np.concatenate(lists), jnp.int32)),
            start=jnp.asarray(np.cumsum(count) - count, jnp.int32),
            count=jnp.asarray(count),
            largest=int(count.max()),
        )

    def weights(self, net: Any, weighting: str) -> Float[Array, " s"]:
        """The net's weights over its slots, times example counts if asked, normalised to sum 1.

        All zero if nobody takes part, so that a weighted mean of changes is then 0.
        """
        w = net.weight
        if weighting == "count":
            w = w * comm.pick(self.count, net.idx).astype(w.dtype)
        elif weighting != "uniform":
            raise ValueError(f'weighting must be "uniform" or "count", got {weighting!r}')
        total = w.sum()
        return w / jnp.where(total > 0, total, 1)

    def each(self, f: Callable, *stacked: Stacked, key: Key) -> Any:
        """`f(client, *rows, key)` for every client, stacked.

        Client i gets `fold_in(key, id[i])`, so its randomness does not depend on its slot.

        Args:
            f: one-client function.
            stacked: pytrees with leaves `[n, ...]`; f gets row i.
            key: split by client identity.

        Returns:
            What f returns, with a leading axis n.
        """
        one = partial(self._one, f, key)
        rows = (self.start, self.count, self.id, *stacked)
        block = self._block(one, rows)
        if block >= self.n:
            return jax.vmap(one)(*rows)
        out = jax.lax.map(lambda r: jax.vmap(one)(*r), _blocks(rows, self.n, block))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: self.n], out)

    def mean(
        self, f: Callable, *stacked: Stacked, weights: Float[Array, " n"], send: Any, key: Key
    ) -> tuple[Any, Any]:
        """The weighted mean of the messages of all clients, accumulated over blocks.

        Equal to `mix(weights, send(each(f)))` without keeping every message. An adversary that
        must see all messages needs them all at once.

        Args:
            f: one-client function that returns `(message, rest)`.
            stacked: as for `each`.
            weights: `[n]`, of the sum.
            send: the net's.
            key: for f and send.

        Returns:
            The mean message `[...]`, and `rest` stacked `[n, ...]`.
        """
        work, channel = jax.random.split(key)
        one = partial(self._one, f, work)
        rows = (self.start, self.count, self.id, *stacked)
        block = self._block(one, rows)
        if block >= self.n or not send.local:
            message, rest = self.each(f, *stacked, key=work)
            return comm.mix(weights, send(message, channel)), rest

        def add(total, part):
            w, send, rows = part
            message, rest = jax.vmap(one)(*rows)
            part = comm.mix(w, send(message, channel))
            return jax.tree.map(jnp.add, total, part), rest

        shapes = jax.eval_shape(one, *jax.tree.map(lambda a: a[0], rows))[0]
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        padded = _pad(weights, self.n, block).at[self.n :].set(0).reshape(-1, block)
        total, rest = jax.lax.scan(
            add, zero, (padded, _blocks(send, self.n, block), _blocks(rows, self.n, block))
        )
        return total, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: self.n], rest)

    def _one(self, f, key, start, count, id, *rows):
        client = Client(
            self.data,
            start,
            count,
            id,
            loss=self.loss,
            batch=self.batch,
            largest=self.largest,
            augment=self.augment,
            precision=self.precision,
        )
        return f(client, *rows, jax.random.fold_in(key, id))

    def _block(self, one, rows):
        """Clients at once: all on accelerators and for small models, else what fits the cache."""
        if self.block:
            return self.block
        if jax.default_backend() != "cpu" or self.n == 1:
            return self.n
        out = jax.eval_shape(one, *jax.tree.map(lambda a: a[0], rows))
        size = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(out))
        return self.n if size * self.n <= 8 * _BLOCK_BYTES else max(1, _BLOCK_BYTES // size)


def _pad(a, n, block):
    extra = -n % block
    return jnp.concatenate([a, jnp.broadcast_to(a[-1:], (extra, *a.shape[1:]))]) if extra else a


def _blocks(tree, n, block):
    """Leaves [n, ...] as [blocks, block, ...]; the last row fills up, a remainder compiles twice."""
    return jax.tree.map(lambda a: _pad(a, n, block).reshape(-1, block, *a.shape[1:]), tree)


def _check_data(arrays):
    leaves = jax.tree.leaves_with_path(arrays)
    if not leaves:
        raise ValueError('data holds no array; pass `{"x": features, "y": labels}`')
    sizes = {jax.tree_util.keystr(path): a.shape[:1] for path, a in leaves}
    if len(set(sizes.values())) > 1 or () in sizes.values():
        raise ValueError(f"all arrays of data must have the same number of rows, got {sizes}")
    for path, a in leaves:
        name = jax.tree_util.keystr(path)
        if not (np.issubdtype(a.dtype, np.number) or a.dtype == bool):
            raise ValueError(
                f"data{name} must hold numbers, got dtype {a.dtype}; encode it first: "
                "`values, codes = np.unique(column, return_inverse=True)`"
            )
        if np.issubdtype(a.dtype, np.inexact) and not np.isfinite(a).all():
            row = int(np.argwhere(~np.isfinite(a))[0][0])
            raise ValueError(
                f"data{name} holds NaN or inf, first in row {row}; clean it: `np.nan_to_num(x)`"
            )
    return leaves[0][1].shape[0]
