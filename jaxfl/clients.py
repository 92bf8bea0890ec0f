"""The stacked local problems: whose examples, which samples, how a function meets all clients."""

import dataclasses
import math
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxfl import comm, devices
from jaxfl.types import Count, Key, Params, Scalar, Stacked, fork, shown, whole

# Policy -> precision of matrix products; JAX's own default on recent GPUs is TF32.
_PRECISIONS = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}
# Bytes of what all clients return (on a CPU also draw) up to which they run at once, and bytes of a
# block beyond. On the CPU a block should fit the cache; elsewhere it only bounds memory.
_CPU, _ACCELERATOR = (1 << 22, 1 << 22), (1 << 31, 1 << 30)
# Examples of a client up to which their places share 32 bits with a random number, and up to which
# counting who comes before is cheaper than sorting; how many are counted at once.
_PACKED, _RANKED, _SUMMED = 1024, 256, 32
# Local steps that are so few that a loop costs more than to compile each.
SHORT = 2
# Bytes of the examples of a block up to which a CPU, whose cache they fit, copies them there.
_NEAR = 1 << 22
# Bytes from which NumPy asks Linux for large pages, and the alignment with which JAX does not copy.
_LARGE, _ALIGNED = 1 << 22, 64


# Checks that passed, of arrays that live: what they are of, and the identities of the arrays.
_PASSED: set[Any] = set()


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


@struct.dataclass
class Clients:
    """n local problems over one flat copy of the data: a split is a permutation and offsets.

    Build it with `Clients.make`. `clients[idx]` is a cohort, `clients.each(f, ...)` applies a
    one-client function to all, `clients.mean(f, ...)` averages what it returns.

    Example:
        >>> iris = data.load("iris")
        >>> loss = models.cross_entropy(models.make("logistic", iris.train, iris.classes))
        >>> clients = jaxfl.Clients.make(iris.train, data.iid(iris.train["y"], n=5), loss, batch=8)
        >>> clients.n, clients.count.tolist()
        (5, [21, 21, 20, 20, 20])
    """

    data: Any  # shared by all: arrays [N, ...] and their order [N]
    start: Scalar  # [n] first position in the order
    count: Scalar  # [n] number of examples
    id: Scalar  # [n] identity: keys follow it, not the position
    loss: Callable = struct.field(pytree_node=False)
    batch: int | str = struct.field(pytree_node=False, default=32)
    block: int = struct.field(pytree_node=False, default=0)
    largest: int = struct.field(pytree_node=False, default=1)
    augment: Callable = struct.field(pytree_node=False, default=_same)
    precision: str = struct.field(pytree_node=False, default="float32")
    over: Any = struct.field(pytree_node=False, default=None)  # sharding of the client axis
    host: bool = struct.field(pytree_node=False, default=False)  # examples stay with the host
    population: int = struct.field(pytree_node=False, default=0)  # of whom these are one chunk's

    @classmethod
    def make(
        cls,
        data: Any,
        partition: Any,
        loss: Callable,
        *,
        batch: Count | str = 32,
        block: Count = 0,
        augment: Callable = _same,
        precision: str = "float32",
        host: bool = False,
    ) -> "Clients":
        """Local problems from arrays, a partition of their rows and a loss.

        Args:
            data: pytree of arrays with a leading axis of N examples, `{"x": ..., "y": ...}`.
            partition: `jaxfl.data.Partition`, or a tuple of `order [N]`, `start [n]`, `count [n]`.
            loss: `loss(params, examples, key) -> [B]`, one number per example; if it has a
                `check(examples, params, augment, rows)`, as those of `jaxfl.models`, that is asked
                whether the examples fit (labels, tokens) before anything is computed.
            batch: examples of a minibatch; "all" for full gradients: whatever an algorithm draws is
                then every example of the client once, without a random number, and a local epoch
                one step. Each counts as one gradient.
            block: clients computed at once; 0 chooses by backend and size.
            augment: `augment(examples, key) -> examples`, inside the program, per sample; static,
                such as `jaxfl.data.crop_and_flip()`.
            precision: of local training: "float32", "tf32" or "bfloat16" compute. Parameters,
                mixing and state stay in their own dtype.
            host: leave the examples where they are, in memory or memory-mapped
                (`np.load(path, mmap_mode="r")`), and let `run` bring those of a chunk of rounds to
                the device, one chunk ahead. They are checked (NaN, inf, labels) when they are read.

        Raises:
            ValueError: arrays that disagree in length, hold NaN or inf, or are not numbers; labels
                that the model has no output for, tokens that it does not know; empty clients;
                offsets out of range; batch < 1 or block < 0; an unknown precision.
        """
        _check_lists(data)
        arrays = jax.tree.map(np.asanyarray if host else np.asarray, data)  # memmaps stay mapped
        size = _check_data(arrays, finite=not host)
        order, start, count = _check_partition(partition)
        if (count < 1).any():
            raise ValueError(
                f"clients {np.flatnonzero(count < 1)[:5].tolist()} have no example; give the "
                "partitioner a minimum, `dirichlet(labels, n, alpha, minimum=1)`, or leave them "
                "out, as of a test that some have nothing in: `partition.having(1)[0]`"
            )
        if len(order) and (order.min() < 0 or order.max() >= size):
            raise ValueError(
                f"partition.order must index the {size} examples of data, got indices from "
                f"{order.min()} to {order.max()}; partition the same arrays: "
                "`iid(len(data['y']), n)`"
            )
        if (start < 0).any() or (start + count > len(order)).any():
            raise ValueError(
                f"partition.start and count must stay within its order [{len(order)}]; let a "
                "partitioner make them: `iid(len(labels), n)`"
            )
        every = isinstance(batch, str) and batch == "all"
        least = 1 if every else whole("batch", batch)
        if least < 1 or whole("block", block) < 0:
            raise ValueError(
                f'batch must be >= 1 or "all", and block >= 0, got {batch!r} and {block!r}; for '
                "example `batch=32`"
            )
        if precision not in _PRECISIONS:
            raise ValueError(
                f"precision must be one of {[*_PRECISIONS]}, got {precision!r}; for example "
                '`precision="float32"`'
            )
        _check_static(loss=loss, augment=augment)
        if host:
            ids = np.arange(len(start), dtype=np.int32)
            leaves = _Data(arrays, order), start.astype(np.int64), count.astype(np.int32), ids
        else:
            leaves = (
                _Data(jax.tree.map(_paged, arrays), _paged(order.astype(np.int32))),
                jnp.asarray(start, jnp.int32),
                jnp.asarray(count, jnp.int32),
                jnp.arange(len(start), dtype=jnp.int32),
            )
        made = cls(
            *leaves,
            loss=loss,
            batch=batch if batch == "all" else int(batch),
            block=int(block),
            largest=int(count.max()),
            augment=augment,
            precision=precision,
            host=host,
        )
        made.check()
        return made

    def check(self, params: Params = None) -> None:
        """Raises ValueError where examples do not fit the model, as far as `loss.check` says.

        Of examples on the host it sees one, and the others when they are read.

        Args:
            params: of the model; by default those that its `init` makes.
        """
        shapes = [(jnp.shape(a), jnp.result_type(a)) for a in jax.tree.leaves(params)]
        what = self.loss, self.augment, jax.tree.structure(params), *shapes
        self.check_owned(lambda examples, rows: self._fit(examples, rows, params), what)

    def check_owned(self, check: Callable, what: Any) -> None:
        """`check(examples, rows)` of the examples that clients own; it raises ValueError.

        Args:
            check: `rows` is None, or says where the examples are among all.
            what: hashable; what passed is not checked again for it and the same arrays.
        """
        arrays, order = self.data.arrays, self.data.order
        if self.host:
            first = int(order[self.start[0]])
            return check(jax.tree.map(lambda a: a[first : first + 1], arrays), [first])

        def owned():
            try:
                return check(arrays, None)
            except ValueError:
                own = positions(np.asarray(self.start), np.asarray(self.count))
                rows = np.unique(np.asarray(order)[own])
                if len(rows) == len(jax.tree.leaves(arrays)[0]):
                    raise
            check(jax.tree.map(lambda a: np.asarray(a)[rows], arrays), rows)

        check_once(owned, what, (arrays, order, self.start, self.count))

    def _fit(self, examples, rows, params=None):
        check = getattr(self.loss, "check", None)
        if check is not None:
            check(examples, params, None if self.augment is _same else self.augment, rows)

    @property
    def n(self) -> int:
        """Number of clients; all of them, where `run` shows a round only those of its chunk."""
        return self.population or self.start.shape[0]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, idx: ArrayLike) -> "Clients":
        """The cohort `idx`; an empty slot (`idx = n`) computes some client, its weight is 0."""
        self._resident()
        idx = jnp.asarray(idx)
        if idx.ndim != 1:
            raise TypeError(
                f"clients[idx] takes an array of clients [s], got shape {idx.shape}; for client i "
                "use `clients[jnp.array([i])]`"
            )
        if not isinstance(idx, Tracer) and not ((idx >= 0) & (idx <= self.n)).all():
            raise IndexError(
                f"idx must be in 0..{self.n - 1}, or {self.n} for an empty slot, got "
                f"{idx.min()} to {idx.max()}; for example `clients[jnp.arange({self.n})]`"
            )
        rows = comm.pick((self.start, self.count, self.id), idx)
        if self.over is not None:  # else every device computes the whole cohort
            rows = jax.jit(jax.lax.with_sharding_constraint, static_argnums=1)(rows, self.over)
        start, count, ids = rows
        return dataclasses.replace(self, start=start, count=count, id=ids, population=0)

    def _resident(self):
        if self.host:
            raise ValueError(
                "the examples of these clients are on the host, where no program reads them; use "
                "`run(alg, clients, ...)`, which brings them by chunks of rounds, or "
                "`Clients.make(..., host=False)`"
            )

    def spread(self, mesh: jax.sharding.Mesh, axis: str = "clients") -> "Clients":
        """These clients over the devices of a mesh, the data on each of them.

        What a simulation computes per client then stays where the client is, states included;
        XLA moves what `mix` needs.

        Args:
            mesh: `jax.make_mesh((8,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))`,
                or one with further axes.
            axis: the one for clients.

        Raises:
            ValueError: no such axis, axes that are not automatic, or n not a multiple of the
                devices along it.
        """
        self._resident()
        many = devices.check(mesh, axis)
        if self.n % many:
            raise ValueError(
                f"{self.n} clients do not spread evenly over {many} devices; use a multiple, "
                f"such as {self.n + -self.n % many} clients"
            )
        over = jax.NamedSharding(mesh, jax.P(axis))
        start, count, ids = devices.place((self.start, self.count, self.id), over)
        data = devices.place(self.data, jax.NamedSharding(mesh, jax.P()))
        return dataclasses.replace(self, data=data, start=start, count=count, id=ids, over=over)

    def split(
        self, fraction: float, *, seed: int | np.random.Generator = 0
    ) -> tuple["Clients", "Clients"]:
        """Each client's examples in two, at random: the rest, and the held-out `fraction`.

        Host-side. Every client keeps at least one example on both sides; a client with a single
        example has it on both. Held-out examples are not augmented.

        Raises:
            ValueError: a fraction outside (0, 1).
        """
        if not 0 < fraction < 1:
            raise ValueError(
                f"fraction must be in (0, 1), got {fraction}; for example `fraction=0.2`"
            )
        rng = np.random.default_rng(seed)
        order, start, count = (np.asarray(a) for a in (self.data.order, self.start, self.count))
        owner = np.repeat(np.arange(self.n), count)
        order = order[positions(start, count)][np.lexsort((rng.random(len(owner)), owner))]
        held = np.maximum(np.rint(fraction * count), 1).clip(max=np.maximum(count - 1, 1))
        first = positions(np.zeros_like(count), count) < held[owner]
        rest = ~first | (count == 1)[owner]
        train, test = (self._over(order[mask], owner[mask]) for mask in (rest, first))
        return train, dataclasses.replace(test, augment=_same)

    def _over(self, order, owner):
        count = np.bincount(owner, minlength=self.n)
        leaves = order, np.cumsum(count) - count, count
        if not self.host:
            leaves = [jnp.asarray(a, jnp.int32) for a in leaves]
        return dataclasses.replace(
            self,
            data=self.data._replace(order=leaves[0]),
            start=leaves[1],
            count=leaves[2],
            largest=int(count.max()),
        )

    def weights(self, net: Any, weighting: str) -> Float[Array, " s"]:
        """The net's weights over its slots, times example counts if asked, normalised to sum 1.

        All zero if nobody takes part, so that a weighted mean of changes is then 0. Of weights
        1 / (n p_i) this makes a ratio: bounded and consistent, but unbiased only in the limit.
        """
        w = net.weight
        if weighting == "count":
            w = w * comm.pick(self.count, net.idx).astype(w.dtype)
        elif weighting != "uniform":
            raise ValueError(
                f'weighting must be "uniform" or "count", got {weighting!r}; for example '
                '`weighting="count"`'
            )
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
        rows = (self.start, self.count, self.id, *stacked)
        return self._each(*self._plan(f, key, rows))

    def _plan(self, f, key, rows):
        """`f` as a function of the rows, and how many clients at once.

        On a CPU, clients that draw as many examples as they have, copy them into the cache first.
        What they draw is seen where the block is chosen: not if it is given, or for one client.
        """
        drawn: list[int] = []
        counted = lambda client: _Counted(**vars(client), drawn=drawn)
        block = self._block(partial(self._one, f, key, counted), rows, drawn)
        near = jax.default_backend() == "cpu" and sum(drawn) >= self.largest
        near = near and 0 < block * self._examples(drawn) <= _NEAR
        return partial(self._one, f, key, Client.near if near else lambda c: c), rows, block

    def _each(self, one, rows, block):
        if block >= self.n:
            return jax.vmap(one)(*rows)
        out = jax.lax.map(lambda r: jax.vmap(one)(*r), self._blocks(rows, block))
        return self._unblock(out)

    def mean(
        self, f: Callable, *stacked: Stacked, weights: Any, send: Any, key: Key
    ) -> tuple[Any, Any]:
        """The weighted mean of the messages of all clients, accumulated over blocks.

        Equal to `mix(weights, send(each(f)))` without keeping every message. An adversary that
        must see all messages needs them all at once.

        Args:
            f: one-client function that returns `(message, rest)`.
            stacked: as for `each`.
            weights: `[n]`, of the sum. For a message of several payloads, a tuple, a tuple of as
                many: each payload has its own weights, and passes `send` by itself.
            send: the net's.
            key: for f and send.

        Returns:
            The mean message `[...]`, and `rest` stacked `[n, ...]`.
        """
        channel = fork(key, "send")

        def arrive(weights, message, send, wide=lambda payload: payload):
            """The weighted sum of what arrives of a message."""
            one = lambda w, payload, key: comm.mix(w, wide(send(payload, key)))
            if not isinstance(weights, tuple):
                return one(weights, message, channel)
            keys = channel, *(fork(channel, f"payload {k}") for k in range(1, len(weights)))
            return tuple(map(one, weights, message, keys))

        one, rows, block = self._plan(f, key, (self.start, self.count, self.id, *stacked))
        if block >= self.n or not send.local:
            message, rest = self._each(one, rows, block)
            return arrive(weights, message, send), rest

        def add(total, part):
            w, (byzantine, id, live), rows = part
            message, rest = jax.vmap(one)(*rows)
            here = send.replace(byzantine=byzantine, id=id, live=live)
            return jax.tree.map(jnp.add, total, arrive(w, message, here, wide)), rest

        shapes = _shapes(one, rows)[0]
        broad = lambda a: jnp.promote_types(a.dtype, jnp.float32)
        wide = lambda payload: jax.tree.map(lambda a: a.astype(broad(a)), payload)
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, broad(a)), shapes)
        who = (send.byzantine, send.id, send.live)  # what else `send` holds is for all senders
        w = self._blocks(weights, block, fill=jnp.zeros_like)
        parts = (w, *self._blocks((who, rows), block))
        total, rest = jax.lax.scan(add, zero, parts)
        total = jax.tree.map(lambda a, s: a.astype(s.dtype), total, shapes)
        return total, self._unblock(rest)

    def _one(self, f, key, kind, start, count, id, *rows):
        self._resident()
        if self.population:
            raise ValueError(
                "a round asks all clients, of whom the device holds a chunk's; ask a cohort, "
                "`clients[net.idx]`, or keep all on the device: `Clients.make(..., host=False)`, "
                "`run(..., offload=False)`"
            )
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
        return f(kind(client), *rows, jax.random.fold_in(key, id))

    def _groups(self):
        """Over how many devices these clients are spread evenly; a cohort may not be."""
        groups = 1 if self.over is None else devices.along(self.over)
        return groups if self.n % groups == 0 else 1

    def _examples(self, drawn):
        """Bytes of the examples of a client that draws so many, as far as they differ."""
        row = sum(a.nbytes // a.shape[0] for a in jax.tree.leaves(self.data.arrays))
        return min(sum(drawn), self.largest) * row

    def _block(self, one, rows, drawn):
        """Clients at once: all while what they return (on a CPU also what they draw, which `one`
        writes down) is small, else blocks of about equal size."""
        groups = self._groups()
        n, block = self.n // groups, self.block // groups if self.block < self.n else self.n
        if self.block == 0 and n > 1:
            all_at_once, limit = _CPU if jax.default_backend() == "cpu" else _ACCELERATOR
            out = jax.tree.leaves(_shapes(one, rows))
            size = sum(math.prod(a.shape) * a.dtype.itemsize for a in out)
            size += self._examples(drawn) if jax.default_backend() == "cpu" else 0
            block = n if size * n <= all_at_once else limit // size
        blocks = -(-n // max(1, block))
        return groups * -(-n // blocks)

    def _blocks(self, tree, block, fill=lambda a: a):
        """Leaves [n, ...] as [blocks, block, ...], filled up: a remainder would compile twice.

        A block takes as many clients of every device, so that none has to move; the last client
        of each fills up.
        """
        groups = self._groups()
        each = block // groups

        def one(a):
            a = a.reshape(groups, self.n // groups, *a.shape[1:])
            if extra := -a.shape[1] % each:
                last = jnp.broadcast_to(fill(a[:, -1:]), (groups, extra, *a.shape[2:]))
                a = jnp.concatenate([a, last], 1)
            blocks = a.shape[1] // each
            a = a.reshape(groups, blocks, each, *a.shape[2:])
            return jnp.moveaxis(a, 1, 0).reshape(blocks, block, *a.shape[3:])

        return jax.tree.map(one, tree)

    def _unblock(self, tree):
        groups = self._groups()

        def one(a):
            a = a.reshape(a.shape[0], groups, a.shape[1] // groups, *a.shape[2:])
            a = jnp.moveaxis(a, 0, 1).reshape(groups, a.shape[0] * a.shape[2], *a.shape[3:])
            a = a[:, : self.n // groups]
            return a.reshape(self.n, *a.shape[2:])

        return jax.tree.map(one, tree)


def _shapes(one, rows):
    """What `one` returns for one client, without computing it."""
    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), rows)
    return jax.eval_shape(one, *first)


def check_once(check: Callable[[], None], what: Any, tree: Any) -> None:
    """Calls `check`, which raises ValueError, unless it passed for the same arrays.

    What is traced, or on another host, cannot be looked at.

    Args:
        check: of the arrays.
        what: hashable; what else it depends on.
        tree: of the arrays.
    """
    leaves = jax.tree.leaves(tree)
    fixed = [a for a in leaves if isinstance(a, jax.Array)]
    if any(isinstance(a, Tracer | jax.ShapeDtypeStruct) for a in leaves):
        return
    if not all(a.is_fully_addressable for a in fixed):
        return
    known = what, *map(id, leaves)
    if known in _PASSED:
        return
    check()
    if len(fixed) == len(leaves):  # those of NumPy may change
        _PASSED.add(known)
        for a in fixed:
            weakref.finalize(a, _PASSED.discard, known).atexit = False


def _check_lists(data):
    """To JAX a list of numbers is a tree of as many leaves, not an array."""
    for path, a in jax.tree.leaves_with_path(data):
        lists = [i for i, k in enumerate(path) if isinstance(k, jax.tree_util.SequenceKey)]
        if lists and isinstance(a, int | float | complex):
            name = "data" + jax.tree_util.keystr(path[: lists[0]])
            raise ValueError(
                f"{name} must be an array with one row per example, got numbers outside of one; "
                f"make it one: `np.asarray({name})`"
            )


def _check_static(**functions):
    for name, f in functions.items():
        if not callable(f):
            raise ValueError(
                f"{name} must be a function, got {type(f).__name__}; for example "
                "`loss=models.cross_entropy(model)`"
            )
        try:
            hash(f)
        except TypeError:
            raise ValueError(
                f"{name} must be hashable, as everything static; make {type(f).__name__} a frozen "
                "dataclass: `@dataclass(frozen=True)`"
            ) from None


def _paged(a):
    """A copy for programs, in large pages on a CPU, whose table of small ones random rows miss.

    NumPy asks the system for large pages, XLA does not.
    """
    if jax.default_backend() != "cpu" or a.nbytes < _LARGE:
        return jnp.asarray(a)
    dtype = jnp.asarray(a[:0]).dtype  # without x64 not that of a
    memory = np.empty(a.size * dtype.itemsize + _ALIGNED, np.uint8)
    first = -memory.ctypes.data % _ALIGNED
    copy = memory[first : first + a.size * dtype.itemsize].view(dtype).reshape(a.shape)
    copy[...] = a
    return jax.device_put(copy)


def _check_partition(partition):
    order, start, count = (np.asarray(a) for a in partition[:3])
    shapes = {"order": order.shape, "start": start.shape, "count": count.shape}
    if order.ndim != 1 or start.ndim != 1 or start.shape != count.shape or not len(start):
        raise ValueError(
            f"partition must be order [N], start [n], count [n], got shapes {shapes}; let a "
            "partitioner make it: `iid(len(labels), n)`"
        )
    for name, a in zip(shapes, (order, start, count)):
        if a.dtype.kind not in "iu":
            raise ValueError(
                f"partition.{name} must be integers, got {a.dtype}; cast it: `{name}.astype(int)`"
            )
    return order, start, count


def positions(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Where the examples of clients are in the order, `[sum of count]`, one client after another.

    Args:
        start: `[m]`.
        count: `[m]`.
    """
    return np.arange(count.sum()) + np.repeat(start - (np.cumsum(count) - count), count)


def check_finite(name: str, a: np.ndarray, rows: Any = None) -> None:
    """Raises ValueError where an array of examples holds NaN or inf; `rows` are their numbers."""
    if jnp.issubdtype(a.dtype, jnp.inexact) and not np.isfinite(a).all():
        row = int(np.argwhere(~np.isfinite(a))[0][0])
        raise ValueError(
            f"data{name} holds NaN or inf, first in row {row if rows is None else rows[row]}; "
            "clean it: `np.nan_to_num(x)`"
        )


def _check_data(arrays, finite):
    leaves = jax.tree.leaves_with_path(arrays)
    if not leaves:
        raise ValueError('data holds no array; pass `{"x": features, "y": labels}`')
    sizes = {jax.tree_util.keystr(path): a.shape[:1] for path, a in leaves}
    if len(set(sizes.values())) > 1 or () in sizes.values():
        raise ValueError(
            f"all arrays of data must have the same number of rows, got {shown(sizes)}; cut them "
            "to the same examples: `{name: a[rows] for name, a in data.items()}`"
        )
    for path, a in leaves:
        name = jax.tree_util.keystr(path)
        if not (jnp.issubdtype(a.dtype, jnp.number) or a.dtype == bool):
            raise ValueError(
                f"data{name} must hold numbers, got dtype {a.dtype}; encode it first: "
                "`values, codes = np.unique(column, return_inverse=True)`"
            )
        if finite:
            check_finite(name, a)
    return leaves[0][1].shape[0]
