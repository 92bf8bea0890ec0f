"""Everything that moves between clients: mixing, Gram matrices, rows of stacked models.

The only file that touches matmul precision: with weights of 1/3 in TF32 the rows of a mixing
matrix no longer sum to 1 and the network average drifts.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxfl.types import Params, Scalar, Stacked

_HIGHEST = jax.lax.Precision.HIGHEST
_BOUND = 1e12  # messages are clipped to this before distances: finite squares, also in float32
_UNROLL = 16  # columns of a neighbour table that are unrolled; beyond, a scan keeps compilation flat


@struct.dataclass
class Dense:
    """Mixing weights as a full matrix, for graphs that are dense."""

    w: Scalar  # [m, n]: receiver, sender


@struct.dataclass
class Near:
    """Mixing weights by neighbour slot: slot 0 is the own row, padding is the own index with weight 0."""

    idx: Scalar  # [n, k] sender in slot k of receiver n
    w: Scalar  # [n, k]
    back: Scalar  # [n, k] the slot of row idx[n, k] that points back here, -1 for a one-way edge


@struct.dataclass
class Shifts:
    """Circulant mixing weights: receiver i puts w[k] on sender i + shifts[k]."""

    w: Scalar  # [k]
    shifts: tuple[int, ...] = struct.field(pytree_node=False)
    n: int = struct.field(pytree_node=False)


@struct.dataclass
class Held:
    """Messages that differ by receiver: slot k of receiver i holds `coef[i, k] @ rows`."""

    rows: Stacked  # leaves [m, ...]
    coef: Scalar  # [n, k, m]


Weights = Dense | Near | Shifts


def mix(w: Any, x: Any, own: Any = None) -> Any:
    """Weighted sums of stacked models, exact in float32 on every backend.

    A weight of 0 ignores its row even where that row is NaN or inf; any other weight on a
    non-finite row makes the whole result of that receiver and leaf NaN. Weights are not
    normalised here.

    Args:
        w: `[n]` weights (n models to one), or `Dense`, `Near`, `Shifts` (n models to one per row).
        x: stacked models, leaves `[n, ...]`, or `Held` messages by receiver and neighbour slot.
        own: what nodes hold of themselves, where x is what they sent: a liar knows the truth, and
            channel noise does not touch the own model. Free when nothing altered the message.

    Returns:
        One model `[...]` for a weight vector, otherwise stacked models `[m, ...]`, of x's dtypes.
    """
    if isinstance(x, Held):  # its own slots are true already
        coef = jnp.einsum("ik,ikm->im", to_near(w).w, x.coef, precision=_HIGHEST)
        return mix(Dense(coef), x.rows)
    if own is not None and own is not x:
        share = _own_share(w)

        def mend(y, own, sent):
            return y + _weighted(share, jnp.where(own == sent, 0, own - sent)).astype(y.dtype)

        return jax.tree.map(mend, mix(w, x), own, x)
    if isinstance(w, Near):
        return jax.tree.map(partial(_near, w), x)
    if isinstance(w, Shifts):
        return jax.tree.map(partial(_shifted, w), x)
    if isinstance(w, Dense):
        return jax.tree.map(partial(_dense, w.w), x)
    return jax.tree.map(lambda leaf: _dense(w[None], leaf)[0], x)


def _own_share(w):
    if isinstance(w, Shifts):
        parts = [w.w[k] for k, s in enumerate(w.shifts) if s % w.n == 0]
        return jnp.broadcast_to(sum(parts, jnp.zeros((), w.w.dtype)), (w.n,))
    return w.w[:, 0] if isinstance(w, Near) else jnp.diagonal(w.w)


def _wide(leaf):
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _dense(w, leaf):
    rows = leaf.reshape(leaf.shape[0], -1).astype(_wide(leaf))
    w = jnp.asarray(w, rows.dtype)
    finite = jnp.isfinite(rows)
    y = jnp.matmul(w, jnp.where(finite, rows, 0), precision=_HIGHEST)
    tainted = ((w != 0) & ~finite.all(1)[None]).any(1)
    y = jnp.where(tainted[:, None], jnp.nan, y)
    return y.astype(leaf.dtype).reshape(w.shape[0], *leaf.shape[1:])


def _weighted(w, rows):
    w = jnp.asarray(w, _wide(rows)).reshape(-1, *(1,) * (rows.ndim - 1))
    return w * jnp.where(w != 0, rows, 0).astype(w.dtype)


def _near(w, leaf):
    total = _weighted(w.w[:, 0], leaf)
    if w.idx.shape[1] <= _UNROLL:
        for k in range(1, w.idx.shape[1]):
            total = total + _weighted(w.w[:, k], leaf[w.idx[:, k]])
    else:

        def add(total, column):
            return total + _weighted(column[1], leaf[column[0]]), None

        total, _ = jax.lax.scan(add, total, (w.idx[:, 1:].T, w.w[:, 1:].T))
    return total.astype(leaf.dtype)


def _shifted(w, leaf):
    # A shift whose weight is 0 is rolled but ignored, so that NaN rows stay where they are.
    parts = [
        _weighted(jnp.broadcast_to(w.w[k], leaf.shape[:1]), jnp.roll(leaf, -s, 0) if s else leaf)
        for k, s in enumerate(w.shifts)
    ]
    return sum(parts[1:], parts[0]).astype(leaf.dtype)


def to_near(w: Weights) -> Near:
    """Any mixing weights by neighbour slot; a dense matrix keeps all n columns."""
    if isinstance(w, Near):
        return w
    if isinstance(w, Shifts):
        own = w.shifts.index(0) if 0 in w.shifts else None
        order = ([own] if own is not None else []) + [k for k in range(len(w.shifts)) if k != own]
        steps = [w.shifts[k] % w.n for k in order]
        values = w.w[jnp.array(order)]
        if own is None:
            steps, values = [0, *steps], jnp.concatenate([jnp.zeros(1, values.dtype), values])
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
    """Any mixing weights as the full matrix `[n, n]`."""
    if isinstance(w, Dense):
        return w.w
    near = to_near(w)
    n = near.idx.shape[0]
    return jnp.zeros((n, n), near.w.dtype).at[jnp.arange(n)[:, None], near.idx].add(near.w)


def _medoid(rows: list[Array], finite) -> Int[Array, ""]:
    """The row of least median distance, found around the mean of the finite rows."""
    alive = finite / jnp.maximum(finite.sum(), 1).astype(rows[0].dtype)
    centred = [r - jnp.matmul(alive[None], r, precision=_HIGHEST) for r in rows]
    distance = _distances(_inner(centred))
    distance = jnp.where(finite[:, None] & finite[None], distance, jnp.inf)
    return jnp.argmin(jnp.median(distance, axis=1))


def _inner(rows):
    return sum(jnp.matmul(r, r.T, precision=_HIGHEST) for r in rows)


def _distances(gram):
    diagonal = jnp.diagonal(gram)
    squared = jnp.maximum(diagonal[:, None] + diagonal[None] - 2 * gram, 0)
    return squared * (1 - jnp.eye(len(gram), dtype=gram.dtype))


def gram(x: Stacked) -> tuple[Float[Array, "n n"], Bool[Array, " n"]]:
    """Inner products of stacked messages, centred on their medoid, and which messages are finite.

    Centring matters: uncentred float32 loses everything when the messages are large, centring on
    the mean loses everything under attack. Two passes: distances around the mean find the medoid,
    the products are taken around it. Values are clipped to +-1e12 and non-finite ones count as 0.

    Args:
        x: stacked messages, leaves `[n, ...]`.

    Returns:
        `[n, n]` products of `x - x[medoid]` in float32 or wider, and `[n]` finite flags.
    """
    leaves = [a.reshape(a.shape[0], -1) for a in jax.tree.leaves(x)]
    finite = jnp.stack([jnp.isfinite(a).all(1) for a in leaves]).all(0)
    wide = jnp.result_type(jnp.float32, *(a.dtype for a in leaves))
    rows = [
        jnp.where(finite[:, None], jnp.clip(a.astype(wide), -_BOUND, _BOUND), 0) for a in leaves
    ]
    medoid = _medoid(rows, finite)
    return _inner([r - r[medoid][None] for r in rows]), finite


def distances(x: Stacked) -> Float[Array, "n n"]:
    """Squared distances between stacked messages; to or from a non-finite one they are inf.

    Args:
        x: stacked messages, leaves `[n, ...]`.

    Returns:
        `[n, n]`, 0 on the diagonal.
    """
    product, finite = gram(x)
    squared = jnp.where(finite[:, None] & finite[None], _distances(product), jnp.inf)
    return jnp.where(jnp.eye(len(squared), dtype=bool), 0, squared)


def slot_distances(w: Near, x: Any, own: Any = None) -> Float[Array, "n k"]:
    """Squared distance from every receiver's own message to those it receives, by slot.

    Args:
        w: who hears whom.
        x: stacked messages, leaves `[n, ...]`, or `Held`.
        own: what receivers hold of themselves, if x is what they sent.

    Returns:
        `[n, k]`: 0 in slot 0, inf for a non-finite message.
    """
    rows = jnp.arange(w.idx.shape[0])[:, None]
    if not isinstance(x, Held) and (own is None or own is x):
        return distances(x)[rows, w.idx]
    if not isinstance(x, Held):
        both = jax.tree.map(lambda x, own: jnp.concatenate([x, own]), x, own)
        return distances(both)[rows + len(rows), w.idx].at[:, 0].set(0)
    product, finite = gram(x.rows)
    step = x.coef - x.coef[:, :1]
    squared = jnp.maximum(jnp.einsum("ikm,ml,ikl->ik", step, product, step, precision=_HIGHEST), 0)
    tainted = ((x.coef != 0) & ~finite).any(-1) | ((x.coef[:, :1] != 0) & ~finite).any(-1)
    return jnp.where(tainted, jnp.inf, squared).at[:, 0].set(0)


def stack(x: Params, n: int) -> Stacked:
    """n copies of one model, leaves `[n, ...]`."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (n, *jnp.shape(a))), x)


def pick(x: Stacked, idx: Int[Array, " s"]) -> Stacked:
    """Rows `idx` of stacked models; an empty slot (`idx = n`) gets some row, its weight is 0."""
    return jax.tree.map(lambda a: a.at[idx].get(mode="clip"), x)


def put(x: Stacked, idx: Int[Array, " s"], rows: Stacked) -> Stacked:
    """Stacked models with rows `idx` replaced; an empty slot (`idx = n`) is dropped."""
    return jax.tree.map(lambda a, r: a.at[idx].set(r.astype(a.dtype), mode="drop"), x, rows)


def where(mask: Array, new: Stacked, old: Stacked) -> Stacked:
    """Rows of `new` where `mask [n]` holds, of `old` elsewhere, bit for bit."""
    return jax.tree.map(
        lambda a, b: jnp.where(mask.reshape(-1, *(1,) * (b.ndim - 1)), a, b), new, old
    )


def bits(message: Params) -> Float[Array, ""]:
    """Size of one message in bits, as float32 (int32 overflows)."""
    return jnp.float32(
        sum(8 * jnp.result_type(a).itemsize * math.prod(jnp.shape(a)) for a in jax.tree.leaves(message))
    )
