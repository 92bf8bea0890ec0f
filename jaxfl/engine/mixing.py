"""Weighted sums of stacked models: the records of mixing weights, and the kernels."""

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxfl import struct
from jaxfl.types import Scalar, Stacked

_HIGHEST = jax.lax.Precision.HIGHEST


_SPARSE = 32  # clients per neighbour beyond which products over all pairs are the slower way


_UNROLL = 16  # columns of a neighbour table that are unrolled; beyond, a scan compiles faster


# Bytes of stacked models beyond which one CPU mixes them by blocks of columns, of a block, and of
# the part of a row in it, below which pages and cache lines cost more than the block saves.
_CACHED, _BLOCK, _PART = 1 << 24, 1 << 22, 1 << 11


@struct.dataclass
class Dense:
    """Mixing weights as a full matrix, for graphs that are dense.

    Example:
        >>> comm.mix(comm.Dense(jnp.full((2, 2), 0.5)), jnp.array([[0.0], [2.0]])).tolist()
        [[1.0], [1.0]]
    """

    w: Scalar  # [m, n]: receiver, sender


@struct.dataclass
class Near:
    """Mixing weights by neighbour slot: the own row in slot 0, padding = own index, weight 0.

    Example:
        >>> w = comm.to_near(networks.topology("ring", 6).w)
        >>> print(w.idx[0], w.w[0].round(3))
        [0 1 5] [0.333 0.333 0.333]
    """

    idx: Scalar  # [n, k] sender in slot k of receiver n
    w: Scalar  # [n, k]
    back: Scalar  # [n, k] the slot of row idx[n, k] that points back here, -1 for a one-way edge
    plan: Any = (
        None  # who sends what over a mesh, of `jaxfl.engine.devices.spread`; None: XLA decides
    )


@struct.dataclass
class Shifts:
    """Circulant mixing weights: receiver i puts w[k] on sender i + shifts[k].

    Example:
        >>> w = comm.Shifts(jnp.array([0.5, 0.5]), (0, 1), 3)
        >>> comm.mix(w, jnp.array([[0.0], [2.0], [4.0]])).tolist()
        [[1.0], [3.0], [2.0]]
    """

    w: Scalar  # [k]
    shifts: tuple[int, ...] = struct.field(pytree_node=False)
    n: int = struct.field(pytree_node=False)


@struct.dataclass
class Held:
    """Messages that differ by receiver: slot k of receiver i holds `coef[i, k] @ rows`.

    Example:
        >>> rows, coef = jnp.array([[1.0], [10.0]]), jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> ring = comm.Near(jnp.array([[0], [1]]), jnp.ones((2, 1)), jnp.array([[0], [0]]))
        >>> comm.mix(ring, comm.Held(rows, coef)).tolist()
        [[1.0], [10.0]]
    """

    rows: Stacked  # leaves [m, ...]
    coef: Scalar  # [n, k, m]


Weights = Dense | Near | Shifts


def mix(w: Any, x: Any, own: Any = None) -> Any:
    """Weighted sums of stacked models, exact in float32 on every backend.

    A weight of 0 ignores its row even where that row is NaN or inf. Any other weight on a
    non-finite number makes that number of the receiver non-finite; a matrix or, on a CPU, a vector
    of weights makes its whole leaf NaN. Weights are not normalised here.

    Args:
        w: `[n]` weights (n models to one), or `Dense`, `Near`, `Shifts` (n models to one per row).
        x: stacked models, leaves `[n, ...]`, or `Held` messages by receiver and neighbour slot.
        own: what nodes hold of themselves, where x is what they sent: a liar knows the truth, and
            channel noise does not touch the own model. Free when nothing altered the message.

    Returns:
        One model `[...]` for a weight vector, otherwise stacked models `[m, ...]`, of x's dtypes.

    Example:
        >>> x = {"w": jnp.array([[0.0, 2.0], [4.0, 6.0]])}
        >>> comm.mix(jnp.array([0.5, 0.5]), x)["w"].tolist()
        [2.0, 4.0]
        >>> comm.mix(comm.Dense(jnp.array([[1.0, 0.0], [0.5, 0.5]])), x)["w"].tolist()
        [[0.0, 2.0], [2.0, 4.0]]
    """
    if isinstance(x, Held):  # its own slots are true already
        if not isinstance(w, Weights):
            raise TypeError(
                "messages that differ by receiver (Held) need the weights of a graph: Dense, Near "
                f"or Shifts, got {type(w).__name__}; on a server use ALIE or IPM"
            )
        coef = jnp.einsum("ik,ikm->im", to_near(w).w, x.coef, precision=_HIGHEST)
        return mix(Dense(coef), x.rows)
    if isinstance(w, Near):
        one = partial(_near, w) if w.plan is None else partial(w.plan.mix, _near, w)
    elif isinstance(w, Shifts):
        one = partial(_shifted, w)
    elif isinstance(w, Dense):
        one = partial(_dense, w.w)
    else:
        return jax.tree.map(partial(_mean, w), x)
    return jax.tree.map(one, x, x if own is None else own)


def _wide(leaf):
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _dense(w, leaf, own):
    rows = leaf.reshape(leaf.shape[0], -1).astype(_wide(leaf))
    w = jnp.asarray(w, rows.dtype)
    share = jnp.diagonal(w)
    if own is not leaf:
        w = jnp.where(jnp.eye(len(w), dtype=bool), 0, w)
    y = _matmul(w, rows).reshape(w.shape[0], *leaf.shape[1:])
    return (y if own is leaf else y + _weighted(share, own)).astype(leaf.dtype)


def _mean(w, leaf):
    if jax.default_backend() == "cpu":
        return _dense(w[None], leaf, leaf)[0]
    # A sum that fuses with what made the rows. The loop of `_matmul` would make the host wait.
    return _weighted(w, leaf).sum(0).astype(leaf.dtype)


def _tainted(w, finite):
    """Which receivers hear a row that is not finite, `[m, 1]`."""
    return ((w != 0) & ~finite.all(1)[None]).any(1, keepdims=True)


@jax.custom_jvp
def _matmul(w, rows):
    """`w @ rows` in which a weight of 0 ignores its row, and another makes all of it NaN."""
    y = jnp.matmul(w, rows, precision=_HIGHEST)

    def mask(_):
        finite = jnp.isfinite(rows)
        y = jnp.matmul(w, jnp.where(finite, rows, 0), precision=_HIGHEST)
        return jnp.where(_tainted(w, finite), jnp.nan, y), False

    # Masking costs passes over all rows, and looking costs one row of y: 0 times NaN or inf is NaN,
    # so whatever is not finite shows in every row. A loop of at most one trip: `cond` would copy.
    bad = ~jnp.isfinite(y[:1].sum())
    return jax.lax.while_loop(lambda state: state[1], mask, (y, bad))[0]


@_matmul.defjvp
def _(at, by):
    (w, rows), (dw, drows) = at, by
    # A number that is not finite, or that nobody hears, passes nothing on, nor does a NaN receiver:
    # its cotangent is often NaN, and 0 times it would reach every row.
    finite = jnp.isfinite(rows)
    passed = jnp.where(finite & (w != 0).any(0)[:, None], drows, 0)
    dy = jnp.matmul(dw, jnp.where(finite, rows, 0), precision=_HIGHEST)
    dy = jnp.where(_tainted(w, finite), 0, dy + jnp.matmul(w, passed, precision=_HIGHEST))
    return _matmul(w, rows), dy


@jax.custom_jvp
def _product(w, rows):
    return w * jnp.where(w != 0, rows, 0)


@_product.defjvp
def _(at, by):
    # By w it is the row, at w = 0 too. Said apart: asking the row whether it is finite in the
    # product itself keeps XLA from fusing `roll` into the sum, which then takes twice as long.
    (w, rows), (dw, drows) = at, by
    return _product(w, rows), dw * jnp.where(jnp.isfinite(rows), rows, 0) + _product(w, drows)


def _weighted(w, rows, product=_product):
    w = jnp.asarray(w, _wide(rows)).reshape(-1, *(1,) * (rows.ndim - 1))
    return product(w, rows.astype(w.dtype))


def _near(w, leaf, own):
    if _columns(leaf) and own.dtype == leaf.dtype:
        return _in_blocks(w.idx, w.w, leaf, None if own is leaf else own)
    return _slots(w.idx, w.w, leaf, own)


def _slots(idx, w, leaf, own):
    return _total(idx, w, own, partial(_rows, leaf)).astype(leaf.dtype)


def _total(idx, w, own, rows, product=_product):
    total = _weighted(w[:, 0], own, product)
    if idx.shape[1] <= _UNROLL:
        for k in range(1, idx.shape[1]):
            total = total + _weighted(w[:, k], rows(idx[:, k]), product)
        return total

    def add(total, column):
        return total + _weighted(column[1], rows(column[0]), product), None

    return jax.lax.scan(add, total, (idx[:, 1:].T, w[:, 1:].T))[0]


def _columns(leaf):
    """How many columns a block has; 0 for no blocks."""
    size, n = leaf.dtype.itemsize, leaf.shape[0]
    part = _BLOCK // n // 64 * 64  # whole cache lines
    large = leaf.size * size > _CACHED and _PART <= part < leaf.size // n * size
    # Narrow floats are out: XLA's CPU backend writes a slice of them by converting the whole array.
    return part // size if large and _one_cpu() and leaf.dtype == _wide(leaf) else 0


@jax.custom_jvp
def _in_blocks(idx, w, leaf, own):
    """`_slots` by blocks of columns, in place: a row comes from memory once, not once per slot.

    `own` is None where it is the leaf.
    """
    sent = leaf.reshape(len(leaf), -1)
    x = sent if own is None else own.reshape(sent.shape)
    # Row masks only where a weight is 0. A branch, moreover, ends a fusion: both cores sum a block,
    # where one core alone would sum and write it.
    silent = anywhere((w == 0).any())

    def block(x, at, width):
        def total(product, x):
            rows = x if own is None else sent
            part = lambda i: _parts(rows, i, at, width)
            mine = jax.lax.dynamic_slice_in_dim(x, at, width, 1)
            return _total(idx, w, mine, part, product).astype(x.dtype)

        y = jax.lax.cond(silent, partial(total, _product), partial(total, jnp.multiply), x)
        return jax.lax.dynamic_update_slice_in_dim(x, y, at, 1)

    width = _columns(leaf)
    blocks, rest = divmod(x.shape[1], width)
    if rest:
        x = block(x, blocks * width, rest)
    x = jax.lax.fori_loop(0, blocks, lambda j, x: block(x, j * width, width), x)
    return x.reshape(leaf.shape)


@_in_blocks.defjvp
def _(at, by):
    # Derivatives are of the plain form: the transpose of a loop over slices adds whole arrays.
    plain = lambda w, leaf, own: _slots(at[0], w, leaf, leaf if own is None else own)
    return _in_blocks(*at), jax.jvp(plain, at[1:], by[1:])[1]


def _parts(x, idx, at, width):
    """`x[idx, at : at + width]`."""
    start = jnp.stack([idx, jnp.broadcast_to(jnp.asarray(at, idx.dtype), idx.shape)], 1)
    numbers = jax.lax.GatherDimensionNumbers((1,), (0,), (0, 1))
    return jax.lax.gather(x, start, numbers, (1, width), mode="promise_in_bounds")


def _shifted(w, leaf, own):
    if _columns(leaf) and own.dtype == leaf.dtype:
        return _near(to_near(w), leaf, own)
    # A shift whose weight is 0 is moved but ignored, so that NaN rows stay where they are.
    share = lambda k: jnp.broadcast_to(w.w[k], leaf.shape[:1])
    parts = [
        _weighted(share(k), _rolled(leaf, s % w.n) if s % w.n else own)
        for k, s in enumerate(w.shifts)
    ]
    return _sum(parts).astype(leaf.dtype)


def _rolled(leaf, s):
    """Row i is row i + s. On one CPU a gather fuses better; over devices `roll` moves borders."""
    if _one_cpu():
        return _rows(leaf, (jnp.arange(leaf.shape[0]) + s) % leaf.shape[0])
    return jnp.roll(leaf, -s, 0)


def _one_cpu():
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def _rows(leaf, idx):
    # in bounds: graphs are checked, and a test of every index costs
    return leaf.at[idx].get(mode="promise_in_bounds")


def to_near(w: Weights) -> Near:
    """Any mixing weights by neighbour slot; a dense matrix keeps all n columns.

    Example:
        >>> comm.to_near(networks.topology("ring", 6).w).idx[0].tolist()
        [0, 1, 5]
    """
    if isinstance(w, Near):
        return w
    if isinstance(w, Shifts):
        steps = list(dict.fromkeys([0, *(s % w.n for s in w.shifts)]))  # the own row first
        slots = np.array([steps.index(s % w.n) for s in w.shifts])
        values = jnp.zeros(len(steps), w.w.dtype).at[slots].add(w.w)
        idx = (np.arange(w.n)[:, None] + np.array(steps)) % w.n
        back = [steps.index(-s % w.n) if -s % w.n in steps else -1 for s in steps]
        return Near(
            jnp.asarray(idx, jnp.int32),
            jnp.broadcast_to(values, idx.shape),
            jnp.broadcast_to(jnp.array(back, jnp.int32), idx.shape),
        )
    n = w.w.shape[0]
    idx = (np.arange(n)[:, None] + np.arange(n)) % n
    back = jnp.broadcast_to(jnp.asarray(-np.arange(n) % n, jnp.int32), (n, n))
    return Near(jnp.asarray(idx, jnp.int32), jnp.take_along_axis(w.w, jnp.asarray(idx), 1), back)


def to_dense(w: Weights) -> Float[Array, "n n"]:
    """Any mixing weights as the full matrix `[n, n]`.

    Example:
        >>> w = comm.to_dense(comm.Shifts(jnp.array([0.5, 0.5]), (0, 1), 3))
        >>> w.tolist()
        [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]]
    """
    if isinstance(w, Dense):
        return jnp.asarray(w.w)
    near = to_near(w)
    n = near.idx.shape[0]
    return jnp.zeros((n, n), near.w.dtype).at[jnp.arange(n)[:, None], near.idx].add(near.w)


def _sum(parts):
    return reduce(jnp.add, parts)


@jax.custom_batching.custom_vmap
def anywhere(on: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether a switch is on in any run of a sweep: not batched, so that `cond` stays a branch.

    Example:
        >>> jax.vmap(comm.anywhere)(jnp.array([False, True])).tolist()
        [True, True]
    """
    return on


@anywhere.def_vmap
def _(size, batched, on):
    return anywhere(on.any(0)), False
