"""Rows of clients in a state: `init` marks them, the engine picks and puts them.

`init` wraps what has one row per client, `c_i=clients.rows(zero)`. A round then receives the rows
of its cohort in place of all, and returns them; where everybody takes part, on graphs and events,
these are all rows. Nobody but the engine sees a mark. It says also what is spread over devices, and
what stays on the host when clients are more than a device holds.

What absent clients change too (waiting times, scores) is a plain `[n]` array, by identity.
"""

from typing import Any

import jax

from jaxfl import struct
from jaxfl.engine import comm
from jaxfl.types import Stacked, shown


@struct.dataclass
class Rows:
    """Leaves `[n, ...]` of a state, row i of client i.

    Example:
        >>> from jaxfl.engine.marks import Rows, plain
        >>> plain({"w": jnp.zeros(2), "c": Rows(jnp.ones((3, 2)))})["c"].shape
        (3, 2)
    """

    value: Stacked


def is_rows(a: Any) -> bool:
    """Whether a node of a state is marked."""
    return isinstance(a, Rows)


def _map(f, marked, *trees):
    """`f(marked?, leaf, ...)`; other trees are plain."""

    def one(a, *parts):
        inside = a.value if is_rows(a) else a
        return jax.tree.map(lambda *leaves: f(is_rows(a), *leaves), inside, *parts)

    return jax.tree.map(one, marked, *trees, is_leaf=is_rows)


def plain(marked: Any) -> Any:
    """The state, without marks."""
    return _map(lambda rows, a: a, marked)


def which(marked: Any) -> Any:
    """Which leaves of the plain state have a row per client, as a pytree of bools."""
    return _map(lambda rows, a: rows, marked)


def like(marked: Any, state: Any) -> Any:
    """A plain state with the marks of another.

    Raises:
        ValueError: a state of another structure.
    """
    if jax.tree.structure(state) != (known := jax.tree.structure(plain(marked))):
        raise ValueError(
            f"state must have the structure that `init` makes, {shown(known)}, got "
            f"{shown(jax.tree.structure(state))}; go on with `run(...).state` of the same algorithm"
        )
    return jax.tree.unflatten(jax.tree.structure(marked), jax.tree.leaves(state))


def pick(marked: Any, net: Any) -> Any:
    """The plain state as a round of this net gets it: of rows, those of its cohort."""
    if everybody(net):
        return plain(marked)
    return _map(lambda rows, a: comm.pick(a, net.places) if rows else a, marked)


def put(marked: Any, net: Any, new: Any) -> Any:
    """The marked state after a round that returned `new`."""
    if not everybody(net):
        new = _map(lambda rows, a, b: comm.put(a, net.places, b) if rows else b, marked, new)
    return like(marked, new)


def everybody(net: Any) -> bool:
    """Whether a net has all clients, in order, and says so before it is drawn."""
    return getattr(net, "everybody", not hasattr(net, "idx"))
