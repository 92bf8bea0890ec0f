"""Gram matrices and distances of stacked models, and numbers by their rank."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxfl.engine.mixing import (
    _BLOCK,
    _HIGHEST,
    _SPARSE,
    Held,
    Near,
    _product,
    _sum,
    _weighted,
    _wide,
)
from jaxfl.types import Params, Stacked

_BOUND = 1e12  # messages are clipped to this before distances: finite squares, also in float32


_COMPARED = 64  # rows whose comparisons are one kernel; of more, they take long to compile


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
