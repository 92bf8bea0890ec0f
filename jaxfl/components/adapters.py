"""What of a model a method sees: masks of leaves.

Leaves that are left out are None: an empty part of the tree, which messages, their bits and a
server's optimiser pass over.
"""

from fnmatch import fnmatch
from typing import Any

import jax

from jaxfl import struct
from jaxfl.types import Params


@struct.dataclass
class Everything:
    """All leaves are shared; the default of every `mask=`.

    Example:
        >>> algorithms.FedAvg(lr=0.1).mask
        Everything()
    """

    def shared(self, x: Params) -> Params:
        """x."""
        return x

    def private(self, x: Params) -> tuple[()]:
        """Nothing."""
        return ()

    def join(self, first: Any, x: Params) -> Params:
        """What there is of the first, else x."""
        return first if jax.tree.leaves(first) else x


@struct.dataclass
class Private:
    """Leaves that stay with the client, by the pattern of their path; the others are shared.

    Args:
        pattern: as for file names, of paths like `layers/2/w`: `"*/2/*"`; or several, of which one
            fits. Static.

    Raises:
        ValueError: a pattern that fits no leaf, or all.

    Example:
        >>> mask = components.Private("head*")
        >>> mask.shared({"body": 1.0, "head": 2.0}), mask.private({"body": 1.0, "head": 2.0})
        ({'body': 1.0, 'head': None}, {'body': None, 'head': 2.0})
    """

    pattern: str | tuple[str, ...] = struct.field(pytree_node=False, default="*")

    def shared(self, x: Params) -> Params:
        """x without what is private."""
        return _kept(self, x, False)

    def private(self, x: Params) -> Params:
        """x without what is shared."""
        return _kept(self, x, True)

    def join(self, first: Params, x: Params) -> Params:
        """x, with what there is of the first in its place."""
        return join(first, x)


@struct.dataclass
class Shared:
    """Leaves that are shared, by the pattern of their path; the others stay with the client.

    Args:
        pattern: as that of `Private`, static.

    Raises:
        ValueError: a pattern that fits no leaf, or all.

    Example:
        >>> components.Shared("head*").private({"body": 1.0, "head": 2.0})
        {'body': 1.0, 'head': None}
    """

    pattern: str | tuple[str, ...] = struct.field(pytree_node=False, default="*")

    def shared(self, x: Params) -> Params:
        """x without what is private."""
        return _kept(self, x, True)

    def private(self, x: Params) -> Params:
        """x without what is shared."""
        return _kept(self, x, False)

    def join(self, first: Params, x: Params) -> Params:
        """x, with what there is of the first in its place."""
        return join(first, x)


def _kept(mask, x, inside):
    """Leaves inside the pattern of a mask, or outside; None for the others."""
    patterns = (mask.pattern,) if isinstance(mask.pattern, str) else mask.pattern
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(x)
    ]
    fits = [any(fnmatch(name, p) for p in patterns) for name in names]
    if all(fits) or not any(fits):
        raise ValueError(
            f"pattern must fit some leaves of the model and not all, {mask.pattern!r} fits "
            f"{sum(fits)} of {len(fits)}; they are {', '.join(names[:20])}: for example "
            f"`{type(mask).__name__}({names[-1]!r})`"
        )
    leaves, treedef = jax.tree.flatten(x)
    return treedef.unflatten(
        [a if fit == inside else None for a, fit in zip(leaves, fits, strict=True)]
    )


def join(first: Params, x: Params) -> Params:
    """Two models of which the first lacks leaves, that are None: those of x take their place.

    Example:
        >>> from jaxfl.components.adapters import join
        >>> join({"body": None, "head": 2.0}, {"body": 1.0, "head": 0.0})
        {'body': 1.0, 'head': 2.0}
    """
    return jax.tree.map(lambda a, b: b if a is None else a, first, x, is_leaf=lambda a: a is None)
