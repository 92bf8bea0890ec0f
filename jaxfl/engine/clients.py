"""The stacked local problems: whose examples, which samples, how a function meets all clients."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxfl import struct
from jaxfl.engine import comm, devices
from jaxfl.engine.client import _PRECISIONS, Client, _Counted, _Data, _same
from jaxfl.engine.examples import (
    _check_data,
    _check_lists,
    _check_partition,
    _check_static,
    _paged,
    _shapes,
    check_once,
    positions,
)
from jaxfl.engine.marks import Rows, everybody
from jaxfl.engine.parts import Mean, Memory, Uplink
from jaxfl.types import Count, Key, Params, Scalar, Stacked, Work, fork, whole

# Bytes of what all clients return (on a CPU also draw) up to which they run at once, and bytes of a
# block beyond. On the CPU a block should fit the cache; elsewhere it only bounds memory.
_CPU, _ACCELERATOR = (1 << 22, 1 << 22), (1 << 31, 1 << 30)


# Bytes of the examples of a block up to which a CPU, whose cache they fit, copies them there.
_NEAR = 1 << 22
_PLAIN = Uplink()


@struct.dataclass
class Clients:
    """n local problems over one flat copy of the data: a split is a permutation and offsets.

    Build it with `Clients.make`. `clients[net]` is a cohort, `clients.each(f, ...)` applies a
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

    def __getitem__(self, who: Any) -> "Clients":
        """The cohort of a net; or of indices `[s]`, of which n is an empty slot.

        An empty slot computes some client, its weight is 0. Where the net says that everybody takes
        part, these are all clients, in order: nothing moves.
        """
        self._resident()
        if hasattr(who, "places"):
            if everybody(who):
                return dataclasses.replace(self, population=0)
            return self._at(who.places)
        idx = jnp.asarray(who)
        if self.population:
            raise ValueError(
                "a device that holds a chunk's clients finds them by the net, got indices; use "
                "`clients[net]`, or keep all on the device: `Clients.make(..., host=False)`"
            )
        if idx.ndim != 1:
            raise TypeError(
                f"clients[...] takes a net or an array of clients [s], got shape {idx.shape}; for "
                "client i use `clients[jnp.array([i])]`"
            )
        if not isinstance(idx, Tracer) and not ((idx >= 0) & (idx <= self.n)).all():
            raise IndexError(
                f"idx must be in 0..{self.n - 1}, or {self.n} for an empty slot, got "
                f"{idx.min()} to {idx.max()}; for example `clients[jnp.arange({self.n})]`"
            )
        return self._at(idx)

    def _at(self, idx):
        rows = comm.pick((self.start, self.count, self.id), idx)
        if self.over is not None:  # else every device computes the whole cohort
            rows = jax.jit(jax.lax.with_sharding_constraint, static_argnums=1)(rows, self.over)
        start, count, ids = rows
        return dataclasses.replace(self, start=start, count=count, id=ids, population=0)

    def rows(self, x: Params) -> Rows:
        """One row per client of a state, all x: `init` marks so what the engine shall pick and put.

        Example:
            >>> problems.quadratics(n=4).clients().rows(jnp.zeros(5)).value.shape
            (4, 5)
        """
        return Rows(comm.stack(x, self.n))

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
        self, test: float, *, seed: int | np.random.Generator = 0
    ) -> tuple["Clients", "Clients"]:
        """Each client's examples in two, at random: the rest, and the held-out share `test`.

        Host-side. Every client keeps at least one example on both sides; a client with a single
        example has it on both. Held-out examples are not augmented.

        Raises:
            ValueError: a share outside (0, 1).
        """
        if not 0 < test < 1:
            raise ValueError(f"test must be in (0, 1), got {test}; for example `test=0.2`")
        rng = np.random.default_rng(seed)
        order, start, count = (np.asarray(a) for a in (self.data.order, self.start, self.count))
        owner = np.repeat(np.arange(self.n), count)
        order = order[positions(start, count)][np.lexsort((rng.random(len(owner)), owner))]
        held = np.maximum(np.rint(test * count), 1).clip(max=np.maximum(count - 1, 1))
        first = positions(np.zeros_like(count), count) < held[owner]
        rest = ~first | (count == 1)[owner]
        train, tested = (self._over(order[mask], owner[mask]) for mask in (rest, first))
        return train, dataclasses.replace(tested, augment=_same)

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
            w = w * comm.pick(self.count, net.places).astype(w.dtype)
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

    def grads(self, x: Stacked, key: Key) -> tuple[Stacked, Work]:
        """One minibatch gradient per client, at its own model `[n, ...]`."""
        loss, g = self.each(lambda client, x, key: client.grad(x, client.draw(key)), x, key=key)
        return g, Work(loss, 1.0)

    def mean(
        self,
        f: Callable,
        *stacked: Stacked,
        weights: Any,
        send: Any,
        key: Key,
        uplink: Uplink = _PLAIN,
        memory: Any = (),
    ) -> tuple[Any, Any, Any]:
        """What a server makes of the messages of all clients: their weighted mean, or what `uplink`
        says.

        The mean is accumulated over blocks, equal to `mix(weights, send(each(f)))` without keeping
        every message. An adversary that must see all messages needs them all at once, and so do
        other aggregators.

        Args:
            f: one-client function that returns `(message, rest)`.
            stacked: as for `each`.
            weights: `[n]`, of the sum. For a message of several payloads, a tuple, a tuple of as
                many: each payload has its own weights, and passes `send` by itself.
            send: the net's.
            key: for f, send, compression and noise.
            uplink: how messages travel, and what becomes of them.
            memory: of the uplink, with the rows of these clients.

        Returns:
            The model `[...]`, or a tuple of them, the uplink's new memory, and `rest` stacked
            `[n, ...]`, as it was before `send`.
        """
        several = isinstance(weights, tuple)
        weights = weights if several else (weights,)
        if uplink.privacy.private:
            weights = tuple(map(uplink.privacy.weights, weights))
        memory = memory or Memory()
        channel = fork(key, "send")
        channels = channel, *(fork(channel, f"payload {k}") for k in range(1, len(weights)))

        def sending(client, feedback, *rows):
            message, rest = f(client, *rows)
            payloads = message if several else (message,)
            payloads, feedback = uplink.outgoing(payloads, feedback, rows[-1])
            return payloads, (feedback, rest)

        rows = self.start, self.count, self.id, memory.feedback, *stacked
        one, rows, block = self._plan(sending, key, rows)
        if not isinstance(uplink.aggregator, Mean):
            payloads, (feedback, rest) = self._each(one, rows, block)
            sent = tuple(map(send, payloads, channels))
            out, remembered = uplink.incoming(weights, sent, self.id, memory.aggregator)
            memory = Memory(remembered, feedback)
        else:
            out, (feedback, rest) = self._sum(one, rows, block, weights, send, channels)
            memory = memory._replace(feedback=feedback)
        if uplink.privacy.private:
            out = [uplink.privacy.release(total, fork(key, "noise")) for total in out]
        return tuple(out) if several else out[0], memory if any(memory) else (), rest

    def _sum(self, one, rows, block, weights, send, channels):
        """The weighted sums of what arrives of the payloads, and what else the clients return."""

        def arrive(weights, payloads, send, wide=lambda payload: payload):
            one = lambda w, payload, key: comm.mix(w, wide(send(payload, key)))
            return tuple(map(one, weights, payloads, channels))

        if block >= self.n or not send.local:
            payloads, rest = self._each(one, rows, block)
            return arrive(weights, payloads, send), rest

        def add(total, part):
            w, (byzantine, id, live), rows = part
            payloads, rest = jax.vmap(one)(*rows)
            here = send.replace(byzantine=byzantine, id=id, live=live)
            return jax.tree.map(jnp.add, total, arrive(w, payloads, here, wide)), rest

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
                "`clients[net]`, or keep all on the device: `Clients.make(..., host=False)`, "
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
