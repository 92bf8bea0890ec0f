"""Robust rules: from distances between messages to mixing weights.

Each returns weights for `comm.mix`, so that it costs O(n^2 d) for the Gram matrix and nothing of
shape [n, n, d] ever exists. A non-finite message has distance inf and weight 0.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxfl import comm
from jaxfl.types import Scalar


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
        >>> comm.mix(robust.nearest_neighbours(w, x, 1), x)[:2].tolist()
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
