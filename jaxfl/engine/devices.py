"""Many devices: who is where on a mesh, and what moves when neighbours exchange rows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl import struct
from jaxfl.engine import comm, marks
from jaxfl.types import Stacked

_AUTO = jax.sharding.AxisType.Auto


def spread(tree: Any, mesh: jax.sharding.Mesh, axis: str = "clients") -> Any:
    """Clients, a network of nodes, or any pytree by its leading axis, over a mesh's devices.

    `jax.vmap(run)(spread(grid(FedProx, lr=rates), mesh, "sweep"))` spreads a sweep over a second
    axis. On a spread network, neighbours exchange only rows that some node of another device
    needs: number nodes so that neighbours are near each other. Circulant graphs need no plan, a
    full matrix moves everything.

    Args:
        tree: `Clients`; a fixed or periodic graph, also wrapped (`LinkFailures(...)`), concrete;
            or leaves `[sweep, ...]`, such as a `grid` or the keys of several runs.
        mesh: `jax.make_mesh((2, 4), ("sweep", "clients"), axis_types=(AxisType.Auto,) * 2)`.
        axis: of the mesh.

    Raises:
        ValueError: no such axis, axes that are not automatic, a leading axis that is not a
            multiple of its devices.

    Example:
        >>> auto = (jax.sharding.AxisType.Auto,)
        >>> mesh = jax.make_mesh((1,), ("clients",), axis_types=auto)
        >>> clients = jaxfl.spread(problems.quadratics(n=4).clients(), mesh)
        >>> clients.n
        4
    """
    devices = check(mesh, axis)
    if hasattr(tree, "spread"):
        return tree.spread(mesh, axis)
    if hasattr(tree, "kind"):
        return _network(tree, mesh, axis, devices, wrapped=False)
    for path, leaf in jax.tree.leaves_with_path(tree):
        if not np.ndim(leaf) or np.shape(leaf)[0] % devices:
            raise ValueError(
                f"{jax.tree_util.keystr(path) or 'the array'} has shape {np.shape(leaf)}, whose "
                f"leading axis does not spread evenly over {devices} devices; use a multiple, or "
                f"another mesh axis than {axis!r}"
            )
    return place(tree, jax.NamedSharding(mesh, jax.P(axis)))


def check(mesh: jax.sharding.Mesh, axis: str) -> int:
    """The number of devices along an axis of a mesh that can be used here."""
    if axis not in mesh.shape or set(mesh.axis_types) != {_AUTO}:
        raise ValueError(
            f"mesh must have an axis {axis!r} and types Auto, got {dict(mesh.shape)} of types "
            f"{mesh.axis_types}; use `jax.make_mesh(({mesh.size},), ({axis!r},), "
            "axis_types=(jax.sharding.AxisType.Auto,))`"
        )
    return mesh.shape[axis]


def place(tree: Any, over: jax.NamedSharding) -> Any:
    """Arrays on a mesh, also one of several hosts, which all hold the same arrays.

    What is spread over its devices already stays as it is.
    """

    def one(a):
        spread = isinstance(a, jax.Array) and not a.is_fully_replicated
        if spread and a.sharding.device_set == over.device_set:
            return a
        if over.is_fully_addressable:
            return jax.device_put(a, over)
        if jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                one(jax.random.key_data(a)), impl=jax.random.key_impl(a)
            )
        host = np.asarray(a, jnp.result_type(a))
        return jax.make_array_from_callback(host.shape, over, lambda index: host[index])

    return jax.tree.map(one, tree)


def along(over: jax.NamedSharding) -> int:
    """The number of devices that rows are spread over."""
    return over.mesh.shape[over.spec[0]]


def stay(state: Any, over: jax.NamedSharding) -> Any:
    """A marked state whose rows of clients are where these are."""
    here = lambda a, each: jax.lax.with_sharding_constraint(a, over) if each else a
    return marks.like(state, jax.tree.map(here, marks.plain(state), marks.which(state)))


def placed(state: Any, over: jax.NamedSharding) -> Any:
    """The shapes of a marked state with the shardings that it will have."""
    whole = jax.NamedSharding(over.mesh, jax.P())
    put = lambda a, each: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=over if each else whole)
    return marks.like(state, jax.tree.map(put, marks.plain(state), marks.which(state)))


@struct.dataclass
class Exchange:
    """Which rows the devices send each other, for weights by neighbour slot.

    Device p sends rows `send[j][p]` to device p + offsets[j]; each then finds all its neighbours in
    its own rows followed by those received.
    """

    slots: Any  # [n, k] where, among own and received rows, the sender of slot k is
    send: tuple[Any, ...]  # [devices, rows] of every offset: own rows, padded with 0
    offsets: tuple[int, ...] = struct.field(pytree_node=False)
    mesh: Any = struct.field(pytree_node=False)
    axis: str = struct.field(pytree_node=False)

    def mix(self, add: Callable, w: comm.Near, leaf: Stacked, own: Stacked) -> Stacked:
        """`add(w, leaf, own)` where all rows are, one permute per offset."""
        devices = self.mesh.shape[self.axis]

        def here(slots, send, w, leaf, own):
            parts = [leaf]
            for offset, rows in zip(self.offsets, send):
                to = [(p, (p + offset) % devices) for p in range(devices)]
                parts.append(jax.lax.ppermute(leaf[rows[0]], self.axis, to))
            return add(comm.Near(slots, w, slots), jnp.concatenate(parts), own)

        over = jax.P(self.axis)
        local = jax.shard_map(
            here, mesh=self.mesh, in_specs=over, out_specs=over, axis_names={self.axis}
        )
        return local(self.slots, self.send, w.w, leaf, own)


def _exchange(idx, mesh, axis):
    """The plan for neighbours `idx [..., n, k]`; leading axes share offsets and padding."""
    idx, devices = np.asarray(idx), mesh.shape[axis]
    lead, (n, k) = idx.shape[:-2], idx.shape[-2:]
    tables, each = idx.reshape(-1, n, k), n // devices
    rows = {}  # (phase, offset, sender) -> which of its rows, by global number
    for phase, table in enumerate(tables):
        for q in range(devices):
            wanted = np.unique(table[q * each : (q + 1) * each])
            for p in set((wanted // each).tolist()) - {q}:
                rows[phase, (q - p) % devices, p] = wanted[wanted // each == p]
    offsets = tuple(sorted({offset for _, offset, _ in rows}))
    most = [max(len(r) for (_, o, _), r in rows.items() if o == offset) for offset in offsets]
    starts = np.cumsum([each, *most])
    send = [np.zeros((len(tables), devices, size), np.int32) for size in most]
    at = np.zeros((len(tables), devices, n), np.int32)  # of a sender's row at a receiver
    at[:, np.arange(n) // each, np.arange(n)] = np.arange(n) % each
    for (phase, offset, p), r in rows.items():
        j = offsets.index(offset)
        send[j][phase, p, : len(r)] = r - p * each
        at[phase, (p + offset) % devices, r] = starts[j] + np.arange(len(r))
    receiver = np.arange(n)[:, None] // each
    slots = np.stack([rows[receiver, table] for rows, table in zip(at, tables)])
    over = jax.NamedSharding(mesh, jax.P(*(None,) * len(lead), axis))
    put = lambda a: place(a.reshape(*lead, *a.shape[1:]), over)
    return Exchange(put(slots), tuple(map(put, send)), offsets, mesh, axis)


def _network(network, mesh, axis, devices, wrapped):
    if hasattr(network, "network"):
        loses = hasattr(network, "keep")  # its lost links make Shifts a table
        inner = _network(network.network, mesh, axis, devices, wrapped or loses)
        return dataclasses.replace(network, network=inner)
    if network.n % devices:
        raise ValueError(
            f"{network.n} nodes do not spread evenly over {devices} devices; use a multiple, such "
            f"as {network.n + -network.n % devices} nodes"
        )
    w = getattr(network, "w", None)
    if w is None or isinstance(w, comm.Dense) or (isinstance(w, comm.Shifts) and not wrapped):
        return network
    near: Any = comm.to_near(w)
    plan = _exchange(near.idx, mesh, axis)
    return dataclasses.replace(network, w=near.replace(plan=plan))
