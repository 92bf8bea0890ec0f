"""Clients beyond the device: their examples and their state on the host, by chunks of rounds.

Who takes part does not depend on parameters, so all cohorts are drawn first. A chunk of rounds
then runs on its own clients alone: the nets are played back, with the places of clients among them,
while a thread reads the next chunk's examples. Identities, hence keys, stay those of all clients.
"""

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var

from jaxfl import struct
from jaxfl.engine import marks, memory
from jaxfl.engine.clients import Clients
from jaxfl.engine.examples import check_finite, positions
from jaxfl.engine.simulate import _init, init, keys
from jaxfl.networks.checks import speeds
from jaxfl.types import Key, Params, Scalar

_AHEAD = 1  # chunks read while the device works; benchmarks/scale.py tries 0


@struct.dataclass
class _Replay:
    """The nets of one chunk of rounds."""

    nets: Any
    first: Scalar  # its first round
    links: Any  # the slowest of all clients

    def __call__(self, t, key):
        return jax.tree.map(lambda a: a[t - self.first], self.nets)


@struct.dataclass
class _Elsewhere:
    """The data of clients that `init` may only count, and sample without looking."""

    arrays: tuple[()] = ()

    @property
    def order(self):
        raise ValueError(
            "`init` reads the clients' examples, which a device may not hold; give `run` a state: "
            "`run(..., state=state)`"
        )


class Feed:
    """What the chunks of a run get, and what they leave of their clients' state.

    Args:
        alg, clients, network, params, key, state, evaluate: as for `run`.
        spans: first round and number of rounds of every chunk.
        done: how many of them are over; they count for sizes, so that a resumed run has the same.
    """

    def __init__(
        self,
        alg: Any,
        clients: Clients,
        network: Any,
        params: Params,
        key: Key,
        spans: Sequence[tuple[int, int]],
        state: Any,
        evaluate: Callable | None,
        done: int = 0,
    ):
        if not network.kind.server:
            raise ValueError(
                f"{network.kind.__name__} nets have everybody in every round, so clients cannot "
                "stay on the host; use `Clients.make(..., host=False)` and `run(...)` without "
                "`offload`"
            )
        if clients.over is not None:
            raise ValueError(
                f"clients spread over {clients.over.num_devices} devices cannot stay on the host; "
                "use them without `spread`, or `run(...)` without `offload`"
            )
        self.spans, self.data = spans, clients.data
        self.start, self.count, self.id = (  # of all clients
            np.asarray(a) for a in (clients.start, clients.count, clients.id)
        )
        self.nets = _nets(network, key, spans)
        self.links = jax.tree.map(np.max, speeds(network))
        self.members = [_members(nets.idx, clients.n) for nets in self.nets]
        self.slots = min(_up(max(map(len, self.members))), clients.n)
        self.rows = _up(max(int(self.count[m].sum()) for m in self.members))
        self.clients = dataclasses.replace(clients, host=False, population=clients.n)
        self.marked = layout(alg, clients, params, key)
        like, self.stacked = marks.plain(self.marked), marks.which(self.marked)
        self._check(like, evaluate)
        if state is None:
            state = self._init(alg, params, key)
        _check_state(like, state)
        own = lambda a, stacked: np.array(a) if stacked else jnp.array(np.asarray(a))
        self.state = jax.tree.map(own, state, self.stacked)
        self.reader, self.queue = ThreadPoolExecutor(1), deque()
        self.device, self.wide = jax.default_device.value, jax.enable_x64.value  # per thread
        self.asked, self.now = itertools.count(done), done - 1

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *error: Any) -> None:
        self.reader.shutdown(cancel_futures=True)

    def next(self) -> tuple[Clients, Any, Any]:
        """Clients, network and state of the next chunk."""
        self._ask(1)
        self.now += 1
        try:
            clients, network = self.queue.popleft().result()
        except ValueError:
            raise
        except Exception as error:  # whatever the user's arrays raise
            t, rounds = self.spans[self.now]
            raise RuntimeError(
                f"data of rounds {t} to {t + rounds - 1} cannot be read: {error}; check its files, "
                "or load it: `Clients.make({name: np.array(a) for name, a in data.items()}, ...)`"
            ) from error
        self._ask(_AHEAD)
        rows = self._fill(self.members[self.now])
        pick = lambda a, stacked: jnp.array(a[rows]) if stacked else a
        state = jax.tree.map(pick, self.state, self.stacked)
        return clients, network, marks.like(self.marked, state)

    def put(self, state: Any) -> Any:
        """The state of all clients, with the marked state that the chunk left."""
        members, state = self.members[self.now], marks.plain(state)

        def put(a, new, stacked):
            if not stacked:
                return new
            a[members] = np.asarray(new)[: len(members)]
            return a

        self.state = jax.tree.map(put, self.state, state, self.stacked)
        return self.state

    def _ask(self, ahead):
        while len(self.queue) < ahead and (k := next(self.asked)) < len(self.spans):
            self.queue.append(self.reader.submit(self._read, k))

    def _read(self, k):
        """Clients and network of chunk k on the device."""
        with jax.default_device(self.device), jax.enable_x64(self.wide):
            return jax.block_until_ready(jax.device_put(self._chunk(k)))

    def _chunk(self, k):
        members, nets = self.members[k], self.nets[k]
        slots = np.where(nets.idx < self.clients.n, np.searchsorted(members, nets.idx), self.slots)
        nets, first = nets.replace(place=slots.astype(np.int32)), np.int32(self.spans[k][0])
        network = _Replay(nets, first, self.links)
        start, count, data = self.start[members], self.count[members], self.data
        if isinstance(data.order, np.ndarray):
            rows = data.order[positions(start, count)]
            rows, order = np.unique(rows, return_inverse=True)  # ascending, as disks like it
            arrays = jax.tree.map_with_path(partial(_gather, rows, self.rows), data.arrays)
            self.clients._fit(jax.tree.map(lambda a: a[: len(rows)], arrays), rows)
            data = data._replace(arrays=arrays, order=_extend(order.astype(np.int32), self.rows))
            start = np.cumsum(count) - count
        start, count, ids = map(self._fill, (start.astype(np.int32), count, self.id[members]))
        own = dict(data=data, start=start, count=count, id=ids)
        return dataclasses.replace(self.clients, **own), network

    def _fill(self, a):
        """As many slots in every chunk: one program. Nobody's index is a slot that fills up."""
        return _extend(a, self.slots)

    def _init(self, alg, params, key):
        """The first state of all clients, which the device may not hold."""
        who = dataclasses.replace(
            self.clients,
            data=_Elsewhere(),
            start=self.start.astype(np.int32),
            count=self.count,
            id=self.id,
            population=0,
        )
        cpu = jax.local_devices(backend="cpu")[0]
        return marks.plain(_init(*jax.device_put((alg, who, params, key), cpu)))

    def _check(self, like, evaluate):
        """Evaluations may not read rows, of which the device holds a chunk's."""
        if evaluate is None:
            return
        few = lambda a, rows: (self.slots, *a.shape[1:]) if rows else a.shape
        state = jax.tree.map(
            lambda a, rows: jax.ShapeDtypeStruct(few(a, rows), a.dtype), like, self.stacked
        )
        program = jax.make_jaxpr(evaluate)(state).jaxpr
        names = [
            jax.tree_util.keystr(path) if rows else ""
            for path, rows in jax.tree.leaves_with_path(self.stacked)
        ]
        rows = {v: f"state{name}" for v, name in zip(program.invars, names, strict=True) if name}
        if name := _reads(program, rows):
            raise ValueError(
                f"`evaluate` reads {name}, of which the device holds a chunk's clients; evaluate "
                "in a callback, `run(..., callbacks=[lambda t, part: ...])`, or keep all on the "
                "device: `Clients.make(..., host=False)`, `run(..., offload=False)`"
            )


def _reads(program, names):
    """The name of an input that a jaxpr computes with or returns, if there is one."""
    for eqn in program.eqns:
        held = [names.get(v, "") if isinstance(v, Var) else "" for v in eqn.invars]
        inner = memory.opened(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))
        if any(held) and inner is not None and len(inner.invars) == len(held):
            inside = {v: name for v, name in zip(inner.invars, held, strict=True) if name}
            if name := _reads(inner, inside):
                return name
        elif any(held):
            return next(filter(None, held))
    return next((names[v] for v in program.outvars if isinstance(v, Var) and v in names), "")


def layout(alg: Any, clients: Clients, params: Params, key: Key) -> Any:
    """The shapes of the marked state of clients that the device may not hold.

    Raises:
        ValueError: a leaf that has a row per client, and no mark that says so.
    """

    def shapes(n):
        ids = jax.ShapeDtypeStruct((n,), jnp.int32)
        who = dataclasses.replace(
            clients, data=_Elsewhere(), start=ids, count=ids, id=ids, host=False
        )
        return jax.eval_shape(partial(init, alg), who, params, key)

    like, more = shapes(clients.n), shapes(clients.n + 1)
    leaves = jax.tree.leaves_with_path(marks.plain(like))
    grown = jax.tree.leaves(marks.plain(more))
    for (path, a), b, rows in zip(leaves, grown, jax.tree.leaves(marks.which(like)), strict=True):
        if a.shape != b.shape and not rows and a.ndim > 1:
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} must be marked as one row per client to stay "
                f"on the host, got shape {a.shape} for {clients.n} clients; let `init` make it, "
                "`clients.rows(x)`, or use clients on the device: `Clients.make(..., host=False)`, "
                "`run(..., offload=False)`"
            )
    return like


def _check_state(like, state):
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    if shapes(like) != shapes(state):
        raise ValueError(
            f"state must have the shapes that `init` makes, {shapes(like)}, got {shapes(state)}; "
            "go on with `run(...).state` of the same algorithm and clients"
        )


@partial(jax.jit, static_argnames="rounds")
def _draw(network, key, start, *, rounds):
    one = lambda t: network(t, keys(key, t)[0])
    return jax.lax.map(one, start + jnp.arange(rounds, dtype=jnp.int32))


def _nets(network, key, spans):
    """The nets of every chunk; a shorter one is cut from a full one, to compile once."""
    rounds = max(size for _, size in spans)
    nets = []
    for t, size in spans:
        drawn = jax.device_get(_draw(network, key, np.int32(t), rounds=rounds))
        nets.append(jax.tree.map(lambda a, size=size: a[:size], drawn))
    return nets


def _members(idx: Any, n: int) -> np.ndarray:
    found = np.unique(idx[idx < n])
    return found if len(found) else np.zeros(1, idx.dtype)  # nobody came


def _up(size):
    """At most an eighth more, so that other keys and seeds mostly run the same program."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


def _extend(a, size):
    return np.concatenate([a, np.broadcast_to(a[:1], (size - len(a), *a.shape[1:]))])


def _gather(rows, size, path, a):
    out = _aligned((size, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype))
    if out.dtype == a.dtype:
        np.take(a, rows, axis=0, out=out[: len(rows)], mode="clip")  # a copy less than "raise"
    else:
        out[: len(rows)] = np.take(a, rows, axis=0)
    check_finite(jax.tree_util.keystr(path), out[: len(rows)], rows)
    return out


def _aligned(shape, dtype):
    """Zeros where JAX on the CPU needs no copy of its own: at multiples of 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + size].view(dtype).reshape(shape)
