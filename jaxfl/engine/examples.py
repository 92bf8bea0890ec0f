"""Whether examples and partitions can be local problems."""

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxfl.types import shown

# Bytes from which NumPy asks Linux for large pages, and the alignment with which JAX does not copy.
_LARGE, _ALIGNED = 1 << 22, 64


# Checks that passed, of arrays that live: what they are of, and the identities of the arrays.
_PASSED: set[Any] = set()


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
