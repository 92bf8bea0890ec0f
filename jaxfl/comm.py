"""Everything that moves between clients: mixing, Gram matrices, rows of stacked models.

The only file that touches matmul precision: with weights of 1/3 in TF32 the rows of a mixing
matrix no longer sum to 1 and the network average drifts.
"""

import math
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxfl.types import Params, Scalar, Stacked

_HIGHEST = jax.lax.Precision.HIGHEST
_BOUND = 1e12  # messages are clipped to this before distances: finite squares, also in float32
_SPARSE = 32  # clients per neighbour beyond which products over all pairs are the slower way
_UNROLL = 16  # columns of a neighbour table that are unrolled; beyond, a scan compiles faster
# Bytes of stacked models beyond which one CPU mixes them by blocks of columns, of a block, and of
# the part of a row in it, below which pages and cache lines cost more than the block saves.
_CACHED, _BLOCK, _PART = 1 << 24, 1 << 22, 1 << 11
_COMPARED = 64  # rows whose comparisons are one kernel; of more, they take long to compile


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
        >>> w = comm.to_near(networks.graph("ring", 6).w)
        >>> print(w.idx[0], w.w[0].round(3))
        [0 1 5] [0.333 0.333 0.333]
    """

    idx: Scalar  # [n, k] sender in slot k of receiver n
    w: Scalar  # [n, k]
    back: Scalar  # [n, k] the slot of row idx[n, k] that points back here, -1 for a one-way edge
    plan: Any = None  # who sends what over a mesh, of `jaxfl.devices.spread`; None: XLA decides


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
        >>> comm.to_near(networks.graph("ring", 6).w).idx[0].tolist()
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


def _clean(x):
    """Leaves as `[n, -1]`, float32 or wider, clipped, non-finite rows 0; and which are finite."""
    leaves = [a.reshape(a.shape[0], -1) for a in jax.tree.leaves(x)]
    finite = jnp.stack([jnp.isfinite(a).all(1) for a in leaves]).all(0)
    wide = jnp.result_type(jnp.float32, *(a.dtype for a in leaves))
    rows = [
        jnp.where(finite[:, None], jnp.clip(a.astype(wide), -_BOUND, _BOUND), 0) for a in leaves
    ]
    return rows, finite


def _medoid(rows, finite):
    """The finite row of least median distance to the others, found around their mean; `[1, -1]`."""
    alive = finite / jnp.maximum(finite.sum(), 1).astype(rows[0].dtype)
    centred = [r - jnp.matmul(alive[None], r, precision=_HIGHEST) for r in rows]
    distance = jnp.where(finite[None], _apart(centred, centred), jnp.inf)
    half = jnp.maximum(finite.sum() - 1, 0) // 2  # the lower median of the finite ones
    score = jnp.where(finite, jnp.sort(distance, axis=1)[:, half], jnp.inf)
    return [r[jnp.argmin(score)][None] for r in rows]


def _sum(parts):
    return reduce(jnp.add, parts)


def _inner(rows, others):
    return _sum(jnp.matmul(r, o.T, precision=_HIGHEST) for r, o in zip(rows, others))


def _squares(rows):
    return _sum(jnp.square(r).sum(1) for r in rows)


def _apart(rows, others):
    """Squared distances `[n, m]` between centred rows."""
    squared = _squares(rows)[:, None] + _squares(others)[None] - 2 * _inner(rows, others)
    return jnp.maximum(squared, 0)


def gram(x: Stacked) -> tuple[Float[Array, "n n"], Bool[Array, " n"]]:
    """Inner products of stacked messages, centred on their medoid, and which messages are finite.

    Centring matters: uncentred float32 loses everything when the messages are large, centring on
    the mean loses everything under attack. Two passes: distances around the mean find the medoid,
    the products are taken around it. Values are clipped to +-1e12 and non-finite ones count as 0.

    Args:
        x: stacked messages, leaves `[n, ...]`.

    Returns:
        `[n, n]` products of `x - x[medoid]` in float32 or wider, and `[n]` finite flags.

    Example:
        >>> products, finite = comm.gram(jnp.array([[0.0], [1.0], [3.0]]))
        >>> products.tolist(), finite.tolist()
        ([[0.0, 0.0, 0.0], [0.0, 1.0, 3.0], [0.0, 3.0, 9.0]], [True, True, True])
    """
    rows, finite = _clean(x)
    rows = [r - c for r, c in zip(rows, _medoid(rows, finite))]
    return _inner(rows, rows), finite


def distances(x: Stacked) -> Float[Array, "n n"]:
    """Squared distances between stacked messages; to or from a non-finite one they are inf.

    Args:
        x: stacked messages, leaves `[n, ...]`.

    Returns:
        `[n, n]`, 0 on the diagonal.

    Example:
        >>> comm.distances(jnp.array([[0.0], [1.0], [jnp.nan]])).tolist()
        [[0.0, 1.0, inf], [1.0, 0.0, inf], [inf, inf, 0.0]]
    """
    squared = _between(x, x)
    return jnp.where(jnp.eye(len(squared), dtype=bool), 0, squared)


def _between(own, x):
    """Squared distances `[n, m]` from rows of own to rows of x, around the medoid of x."""
    rows, finite = _clean(x)
    centre = _medoid(rows, finite)
    rows = [r - c for r, c in zip(rows, centre)]
    if own is x:
        return jnp.where(finite[:, None] & finite[None], _apart(rows, rows), jnp.inf)
    mine, true = _clean(own)
    mine = [r - c for r, c in zip(mine, centre)]
    return jnp.where(true[:, None] & finite[None], _apart(mine, rows), jnp.inf)


def slot_distances(w: Near, x: Any, own: Any = None) -> Float[Array, "n k"]:
    """Squared distance from every receiver's own message to those it receives, by slot.

    Args:
        w: who hears whom.
        x: stacked messages, leaves `[n, ...]`, or `Held`.
        own: what receivers hold of themselves, if x is what they sent.

    Returns:
        `[n, k]`: 0 in slot 0, inf for a non-finite message.

    Example:
        >>> idx, slots = jnp.array([[0, 1], [1, 0]]), jnp.array([[0, 1], [0, 1]])
        >>> w = comm.Near(idx, jnp.full((2, 2), 0.5), slots)
        >>> comm.slot_distances(w, jnp.array([[0.0], [3.0]])).tolist()
        [[0.0, 9.0], [0.0, 9.0]]
    """
    own = x if own is None else own
    n, k = w.idx.shape
    if isinstance(x, Held):
        squared = _held(x)
    elif n > _SPARSE * k:  # few neighbours: the differences themselves
        (mine, true), (rows, finite) = _clean(own), _clean(x)
        slot = lambda j: _squares([o - r[j] for o, r in zip(mine, rows)])
        squared = jax.lax.map(slot, w.idx.T).T
        squared = jnp.where(true[:, None] & finite[w.idx], squared, jnp.inf)
    else:
        squared = _between(own, x)[jnp.arange(n)[:, None], w.idx]
    return squared.at[:, 0].set(0)


def _held(x):
    """Squared distances `[n, k]` of `Held` messages to slot 0, from products of their rows."""
    rows, finite = _clean(x.rows)
    centre = _medoid(*_clean([jnp.matmul(x.coef[:, 0], r, precision=_HIGHEST) for r in rows]))
    # Only rows that are like messages are centred: noise, or any difference of messages, is not.
    near = _squares([r - c for r, c in zip(rows, centre)]) < _squares(rows)
    rows = [jnp.where(near[:, None], r - c, r) for r, c in zip(rows, centre)]
    step = x.coef - x.coef[:, :1]
    left = jnp.where(near, step, 0).sum(-1)  # copies of the centre that did not cancel
    dot = partial(jnp.einsum, precision=_HIGHEST)
    squared = dot("ikm,ml,ikl->ik", step, _inner(rows, rows), step)
    squared += 2 * left * dot("ikm,m->ik", step, _inner(rows, centre)[:, 0])
    squared += left**2 * _squares(centre)[0]
    tainted = ((x.coef != 0) & ~finite[None, None]).any(-1)
    return jnp.where(tainted | tainted[:, :1], jnp.inf, jnp.maximum(squared, 0))


def by_rank(w: Any, x: Stacked, ranks: tuple[int, ...] | None = None) -> Params:
    """Weighted sums of the sorted values of every number of stacked models: medians, trimmed means.

    As `mix`, but `w` weighs ranks instead of clients: w[0] the least value of each number, w[-1]
    the largest. NaN counts as inf. A weight of 0 ignores what has its rank, also inf. Derivatives
    reach the values that were chosen, not `w`.

    On a CPU rows are compared as a whole, in the fixed order of a sorting network: of ten rows a
    hundred times faster than `jnp.sort` along the clients, of fifty twenty times. Elsewhere
    `lax.sort` sorts them.

    Args:
        w: `[n]` weights by rank, or one for each of `ranks`, traced.
        x: stacked models, leaves `[n, ...]`.
        ranks: those that are asked for, static; what others need alone is not computed.

    Returns:
        One model `[...]`, of x's dtypes.

    Example:
        >>> x = jnp.array([[5.0, 1.0], [2.0, jnp.nan], [3.0, 4.0]])
        >>> comm.by_rank(jnp.array([0.5, 0.5]), x, ranks=(0, 1)).tolist()
        [2.5, 2.5]
    """
    if isinstance(x, Held):
        raise TypeError(
            "messages that differ by receiver (Held) have no ranks in common; use an adversary "
            "that sends all the same, such as `SignFlip()`"
        )

    def one(leaf):
        rows = leaf.reshape(len(leaf), -1).astype(_wide(leaf))
        rows = jnp.where(jnp.isnan(rows), jnp.inf, rows)
        y = _ranked(ranks or tuple(range(len(rows))), rows, jnp.asarray(w, rows.dtype))
        return y.reshape(leaf.shape[1:]).astype(leaf.dtype)

    return jax.tree.map(one, x)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _ranked(ranks, x, w):
    if jax.default_backend() != "cpu":
        return _weighted(w, jax.lax.sort(x, dimension=0)[np.array(ranks)]).sum(0)
    if len(x) > _COMPARED:
        return _by_columns(lambda x: _weighted(w, _bitonic(x)[np.array(ranks)]).sum(0), x)
    rows = _compared(x)
    return _sum([_product(w[i], rows[k]) for i, k in enumerate(ranks)])


@_ranked.defjvp
def _(ranks, at, by):
    x, w = at
    weight = jnp.zeros(len(x), w.dtype).at[np.array(ranks)].add(w)
    rank = jnp.argsort(jnp.argsort(x, 0), 0)
    return _ranked(ranks, x, w), _product(weight[rank], by[0]).sum(0)


def _compared(x):
    """The rows sorted, by Batcher's odd-even merges: comparisons that fuse with what reads them.

    Never stack them: each row of a stack would be sorted again.
    """
    rows, n, size = [*x], len(x), 1
    while size < n:
        step = size
        while step:
            for first in range(step % size, n - step, 2 * step):
                for i in range(first, min(first + step, n - step)):
                    if i // (2 * size) == (i + step) // (2 * size):
                        a, b = rows[i], rows[i + step]
                        rows[i], rows[i + step] = jnp.where(b < a, b, a), jnp.where(b < a, a, b)
            step //= 2
        size *= 2
    return rows


def _bitonic(x):
    """The rows sorted, filled up with inf to a power of two, by passes over all of them."""
    n, width = 1 << (len(x) - 1).bit_length(), x.shape[1]
    x = jnp.concatenate([x, jnp.full((n - len(x), width), jnp.inf, x.dtype)])
    for size in range(1, n.bit_length()):
        for step in range(size - 1, -1, -1):
            pairs = x.reshape(-1, 2, 1 << step, width)
            flip = slice(None, None, -1 if step == size - 1 else 1)  # two runs, up and down
            a, b = pairs[:, 0], pairs[:, 1, flip]
            less, more = jnp.where(b < a, b, a), jnp.where(b < a, a, b)[:, flip]
            x = jnp.concatenate([less, more], 1).reshape(n, width)
    return x


def _by_columns(f, x):
    """`f(x)`, one number per column, by blocks of columns that stay in the cache."""
    width = max(1, _BLOCK // 4 // (len(x) * x.dtype.itemsize))
    if x.shape[1] <= width:
        return f(x)

    def block(j, y):
        at = jnp.minimum(j * width, x.shape[1] - width)  # the last one overlaps
        part = jax.lax.dynamic_slice_in_dim(x, at, width, 1)
        return jax.lax.dynamic_update_slice_in_dim(y, f(part), at, 0)

    return jax.lax.fori_loop(0, -(-x.shape[1] // width), block, jnp.zeros_like(x[0]))


def stack(x: Params, n: int) -> Stacked:
    """n copies of one model, leaves `[n, ...]`.

    Example:
        >>> comm.stack({"w": jnp.ones(3)}, 5)["w"].shape
        (5, 3)
    """
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (n, *jnp.shape(a))), x)


def pick(x: Stacked, idx: Int[Array, " s"]) -> Stacked:
    """Rows `idx` of stacked models; an empty slot (`idx = n`) gets some row, its weight is 0.

    Example:
        >>> comm.pick(jnp.array([[1.0], [2.0], [3.0]]), jnp.array([2, 0])).tolist()
        [[3.0], [1.0]]
    """
    return jax.tree.map(lambda a: a.at[idx].get(mode="clip"), x)


def put(x: Stacked, idx: Int[Array, " s"], rows: Stacked) -> Stacked:
    """Stacked models with rows `idx` replaced; an empty slot (`idx = n`) is dropped.

    Example:
        >>> comm.put(jnp.zeros((3, 1)), jnp.array([2, 3]), jnp.ones((2, 1))).tolist()
        [[0.0], [0.0], [1.0]]
    """
    return jax.tree.map(lambda a, r: a.at[idx].set(r.astype(a.dtype), mode="drop"), x, rows)


def where(mask: Array, new: Stacked, old: Stacked) -> Stacked:
    """Rows of `new` where `mask [n]` holds, of `old` elsewhere, bit for bit.

    Example:
        >>> comm.where(jnp.array([True, False]), jnp.ones((2, 1)), jnp.zeros((2, 1))).tolist()
        [[1.0], [0.0]]
    """
    return jax.tree.map(
        lambda a, b: jnp.where(mask.reshape(-1, *(1,) * (b.ndim - 1)), a, b), new, old
    )


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


def bits(message: Params) -> Float[Array, ""]:
    """Size of one message in bits, as float32 (int32 overflows).

    Example:
        >>> float(comm.bits({"w": jnp.zeros((10, 2), jnp.float32), "b": jnp.zeros(2, jnp.float32)}))
        704.0
    """
    return jnp.float32(
        sum(
            8 * jnp.result_type(a).itemsize * math.prod(jnp.shape(a))
            for a in jax.tree.leaves(message)
        )
    )
