"""Robust rules: from distances between messages to mixing weights, and number by number.

Rules by distance return weights for `comm.mix`, so that they cost O(n^2 d) for the Gram matrix and
nothing of shape [n, n, d] ever exists. A non-finite message has distance inf and weight 0.

Rules by number return the model itself. Who does not take part is left out, whatever its row holds;
of those that do, NaN counts as inf, the largest value there is.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxfl.engine import comm
from jaxfl.types import Params, Scalar, Stacked


def nearest_neighbours(w: comm.Weights, message: Any, f: Scalar, own: Any = None) -> comm.Near:
    """Nearest-neighbour averaging: all received messages but the f farthest from the own one.

    Args:
        w: who hears whom; a slot other than the own with weight 0 was not received.
        message: stacked messages, leaves `[n, ...]`, or `Held`.
        f: how many to leave out, traced.
        own: what receivers hold of themselves, if the message is what they sent.

    Returns:
        `Near` weights, equal over the messages kept; the own one, at distance 0, always is.

    Source: Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust Collaborative Learning
        with Linear Gradient Overhead", ICML 2023, arXiv 2209.10931; the authors' code was read: of
        |V| messages |V| - f are kept.

    Example:
        >>> w = comm.Dense(jnp.full((3, 3), 1 / 3))
        >>> x = jnp.array([[0.0], [1.0], [1e6]])
        >>> comm.mix(components.nearest_neighbours(w, x, 1), x)[:2].tolist()
        [[0.5], [0.5]]
    """
    near = comm.to_near(w)
    n, k = near.idx.shape
    received = (near.w != 0).at[:, 0].set(True)
    distance = jnp.where(received, comm.slot_distances(near, message, own), jnp.inf)
    rank = jnp.argsort(jnp.argsort(distance, axis=1, stable=True), axis=1)
    keep = (rank < received.sum(1, keepdims=True) - f) & jnp.isfinite(distance)
    keep = keep.at[:, 0].set(True).astype(near.w.dtype)
    return dataclasses.replace(near, w=keep / keep.sum(1, keepdims=True))


def median(x: Stacked, live: Any = None) -> Params:
    """The median of every number over the clients that take part; the mean of the middle two.

    Args:
        x: stacked messages, leaves `[n, ...]`.
        live: `[n]`, true or not 0 for who takes part; by default all. Traced.

    Returns:
        One model `[...]`, 0 if nobody takes part. Not finite where half or more are not.

    Source: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards
        Optimal Statistical Rates", ICML 2018, arXiv 1803.01498; reconstructed from memory.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [5.0], [jnp.nan]])
        >>> robust.median(x).tolist(), robust.median(x, jnp.array([1, 1, 1, 0])).tolist()
        ([3.0], [1.0])
    """
    live, n, m = _live(x, live)
    # Half of those who are left out come below all others and half above: the middle stays there.
    below = jnp.cumsum(~live) <= (n - m) // 2
    rows = _filled(x, live, jnp.where(below, -jnp.inf, jnp.inf))
    if n == 1:
        return comm.by_rank(m[None], rows)
    odd = m % 2 == 1
    low = jnp.where(odd, 1 - n % 2, 0.5) * (m > 0)
    return comm.by_rank(jnp.stack([low, (m > 0) - low]), rows, ranks=(n // 2 - 1, n // 2))


def trimmed_mean(x: Stacked, f: Scalar, live: Any = None) -> Params:
    """The mean of every number without its f smallest and its f largest values.

    Args:
        x: stacked messages, leaves `[n, ...]`.
        f: how many to leave out at each end, traced; at most so many that one or two are left.
        live: `[n]`, true or not 0 for who takes part; by default all. Traced.

    Returns:
        One model `[...]`, 0 if nobody takes part. Not finite where more than f are not.

    Source: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards
        Optimal Statistical Rates", ICML 2018, arXiv 1803.01498; reconstructed from memory.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [2.0], [jnp.nan]])
        >>> robust.trimmed_mean(x, 1).tolist()
        [1.5]
    """
    live, n, m = _live(x, live)
    f, rank = jnp.clip(jnp.asarray(f), 0, jnp.maximum(m - 1, 0) // 2), jnp.arange(n)
    kept = (rank >= f) & (rank < m - f)
    return comm.by_rank(kept / jnp.maximum(kept.sum(), 1), _filled(x, live, jnp.inf))


def _live(x, live):
    """Who takes part, of how many, and how many do."""
    n = len(jax.tree.leaves(x)[0])
    live = jnp.ones(n, bool) if live is None else jnp.asarray(live) != 0
    return live, n, live.sum()


def _filled(x, live, fill):
    """Rows of those who do not take part replaced."""
    fill = jnp.broadcast_to(jnp.asarray(fill), live.shape)
    return comm.where(live, x, jax.tree.map(lambda a: _rows(fill, a), x))


def _rows(fill, a):
    return jnp.broadcast_to(fill.astype(a.dtype).reshape(-1, *(1,) * (a.ndim - 1)), a.shape)
