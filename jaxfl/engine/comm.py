"""Everything that moves between clients: mixing, Gram matrices, rows of stacked models.

The only file that touches matmul precision: with weights of 1/3 in TF32 the rows of a mixing
matrix no longer sum to 1 and the network average drifts.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxfl.engine.distances import by_rank as by_rank
from jaxfl.engine.distances import distances as distances
from jaxfl.engine.distances import gram as gram
from jaxfl.engine.distances import slot_distances as slot_distances
from jaxfl.engine.mixing import Dense as Dense
from jaxfl.engine.mixing import Held as Held
from jaxfl.engine.mixing import Near as Near
from jaxfl.engine.mixing import Shifts as Shifts
from jaxfl.engine.mixing import Weights as Weights
from jaxfl.engine.mixing import anywhere as anywhere
from jaxfl.engine.mixing import mix as mix
from jaxfl.engine.mixing import to_dense as to_dense
from jaxfl.engine.mixing import to_near as to_near
from jaxfl.types import Params, Stacked


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
