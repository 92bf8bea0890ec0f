"""Compressors of one client's message, over all its leaves together.

A compressor is a record with `compress(v, key) -> v'` (what the receiver reconstructs, v's shapes)
and `bits(v)` (what was sent); one that remembers has `init(v)` and `step(v, memory, key)`.
Contractive ones satisfy E|C(v) - v|^2 <= (1 - alpha) |v|^2, unbiased ones E C(v) = v with
E|C(v) - v|^2 <= omega |v|^2.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from optax import tree

from jaxfl import struct
from jaxfl.components.oracles import norm
from jaxfl.engine.fields import hyper
from jaxfl.types import Key, Params, Scalar


def _size(v):
    return sum(math.prod(a.shape) for a in jax.tree.leaves(v))


def _width(v):
    return max(8 * jnp.result_type(a).itemsize for a in jax.tree.leaves(v))


def _k(fraction, d):
    """max(1, floor(fraction d)), forgiving the rounding of the product, as a float."""
    return jnp.clip(jnp.floor(fraction * d + 1e-4), 1, d)


def _largest(scores, k):
    """Which are the k largest of the unsigned scores, by leaf; of equal ones the first.

    Exactly k, also where entries tie: what is sent is paid for.
    """
    t, many = _threshold(scores, k)
    ties = [_in_rows((s == t).ravel()) for s in scores]
    upto = [jnp.cumsum(tie.sum(1, dtype=jnp.int32)) for tie in ties]
    left = k.astype(jnp.int32) - many + sum(total[-1] for total in upto)
    kept = []
    for s, tie, total in zip(scores, ties, upto):
        place = jnp.arange(s.size).reshape(s.shape)
        kept.append((s > t) | (s == t) & (place < _end(tie, total, left)))
        left = left - total[-1]
    return kept


def _in_rows(mask):
    """A mask as about as many rows as columns, so that counting along it is two short sums."""
    size = max(mask.size, 1)  # a leaf may be empty
    width = math.isqrt(size - 1) + 1
    return jnp.pad(mask, (0, size + -size % width - mask.size)).reshape(-1, width)


def _end(mask, upto, k):
    """The place after the k-th true entry of a mask in rows, `upto` true ones in rows so far."""
    row = (upto < k).sum()
    before = jnp.where(row > 0, upto[row - 1], 0)
    column = (before + jnp.cumsum(mask[row].astype(jnp.int32)) < k).sum()
    return jnp.where(k > 0, row * mask.shape[1] + column + 1, 0)


def _threshold(scores, k):
    """The largest t such that at least k of the unsigned scores are >= t, and how many are.

    Four bits in a pass: O(d) memory and k traced, where `lax.top_k` sorts and needs a static k.
    """
    dtype = scores[0].dtype
    passes = 2 * dtype.itemsize

    def count(s, trials):
        # one reduction with fifteen results reads s once, and costs little more than one result
        above = [(s.ravel() >= t).astype(jnp.int32) for t in trials]
        zeros = [jnp.int32(0)] * len(trials)
        add = lambda a, b: tuple(map(jnp.add, a, b))
        return jnp.stack(jax.lax.reduce(above, zeros, add, (0,)))

    def digit(i, carry):
        t, many = carry
        unit = jnp.ones((), dtype) << jnp.asarray(4 * (passes - 1 - i), dtype)
        counts = sum(count(s, [t + j * unit for j in range(1, 16)]) for s in scores)
        enough = counts >= k
        many = jnp.where(enough, counts, many).min()
        return t + enough.sum(dtype=dtype) * unit, many

    start = jnp.zeros((), dtype), jnp.int32(_size(scores))
    return jax.lax.fori_loop(0, passes, digit, start)


def _magnitudes(leaves):
    """|v| as unsigned integers of the same order: floats sort like their bits."""
    wide = jnp.result_type(jnp.float32, *leaves)
    unsigned = jnp.uint64 if wide == jnp.float64 else jnp.uint32
    cast = lambda a: jax.lax.bitcast_convert_type(jnp.abs(a.astype(wide)), unsigned)
    return [cast(a) for a in leaves]


@struct.dataclass
class TopK:
    """The largest entries in magnitude over all leaves; contractive with alpha = k / d.

    Args:
        fraction: k = max(1, floor(fraction d)), in (0, 1], traced. Of entries that tie, the first
            are kept.

    Source: standard; bits count values and indices, k (32 + ceil(log2 d)).

    Example:
        >>> half = components.TopK(fraction=0.5)
        >>> half(jnp.array([3.0, -1.0, 2.0, -4.0]), jax.random.key(0)).tolist()
        [3.0, 0.0, 0.0, -4.0]
    """

    fraction: Scalar = hyper(0.1, high=1.0)

    def __call__(self, v: Params, key: Key) -> Params:
        """v with all other entries 0."""
        leaves, treedef = jax.tree.flatten(v)
        scores = _magnitudes(leaves)
        kept = _largest(scores, _k(self.fraction, _size(v)))
        return treedef.unflatten([jnp.where(m, a, 0) for m, a in zip(kept, leaves, strict=True)])

    def bits(self, v: Params) -> Scalar:
        """k values and their indices."""
        d = _size(v)
        return jnp.float32(_k(self.fraction, d) * (_width(v) + math.ceil(math.log2(max(d, 2)))))


@struct.dataclass
class RandK:
    """A uniformly random set of k entries; unbiased with omega = d / k - 1, or contractive.

    Args:
        fraction: k = max(1, floor(fraction d)), in (0, 1], traced.
        scaled: 1 multiplies by d / k (unbiased), 0 does not (contractive, alpha = k / d), traced.

    Source: standard; the set follows from a shared seed, bits are 32 k + 32.

    Example:
        >>> kept = components.RandK(fraction=0.25, scaled=1.0)(jnp.ones(8), jax.random.key(0))
        >>> sorted(kept.tolist())
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 4.0]
    """

    fraction: Scalar = hyper(0.1, high=1.0)
    scaled: Scalar = hyper(0.0, high=1.0)

    def __call__(self, v: Params, key: Key) -> Params:
        """v on the set, 0 elsewhere."""
        leaves, treedef = jax.tree.flatten(v)
        d = _size(v)
        keys = jax.random.split(key, len(leaves))
        scores = [jax.random.bits(q, a.shape, jnp.uint32) for q, a in zip(keys, leaves)]
        k = _k(self.fraction, d)
        kept = _largest(scores, k)
        scale = jnp.where(self.scaled > 0, d / k, 1)
        return treedef.unflatten(
            [jnp.where(m, scale * a, 0).astype(a.dtype) for m, a in zip(kept, leaves, strict=True)]
        )

    def bits(self, v: Params) -> Scalar:
        """k values and a seed."""
        return jnp.float32(_k(self.fraction, _size(v)) * _width(v) + 32)


@struct.dataclass
class QSGD:
    """Stochastic rounding of |v_j| / |v| to `levels` levels; unbiased.

    C(v)_j = |v| sign(v_j) (floor(y) + Bernoulli(y - floor(y))) / s with y = s |v_j| / |v|;
    omega = min(d / s^2, sqrt(d) / s).

    Args:
        levels: s, >= 1, traced.
        contractive: 1 divides by 1 + omega, as CHOCO needs, 0 does not, traced.

    Source: Alistarh, Grubic, Li, Tomioka, Vojnovic, NeurIPS 2017; third-party code was read. There
        are s + 1 levels, so bits are 32 + d (1 + ceil(log2(s + 1))).

    Example:
        >>> coarse = components.QSGD(levels=1.0)(jnp.array([0.0, 3.0, 4.0]), jax.random.key(0))
        >>> set(coarse.tolist()) <= {0.0, 5.0}
        True
    """

    levels: Scalar = hyper(16.0, low=1.0)
    contractive: Scalar = hyper(0.0, high=1.0)

    def __call__(self, v: Params, key: Key) -> Params:
        """The rounded v; 0 for 0."""
        leaves, treedef = jax.tree.flatten(v)
        d = _size(v)
        length = norm(v)
        safe = jnp.where(length > 0, length, 1)
        omega = jnp.minimum(d / self.levels**2, math.sqrt(d) / self.levels)
        scale = length / self.levels / (1 + self.contractive * omega)

        def rounded(key, a):
            y = self.levels * (jnp.abs(a) / safe)  # in float32 or wider, as the length
            up = jax.random.uniform(key, a.shape, y.dtype) < y - jnp.floor(y)
            return (scale * jnp.sign(a) * (jnp.floor(y) + up)).astype(a.dtype)

        keys = jax.random.split(key, len(leaves))
        return treedef.unflatten([rounded(k, a) for k, a in zip(keys, leaves, strict=True)])

    def bits(self, v: Params) -> Scalar:
        """The norm, and a sign and a level per entry."""
        part, exponent = jnp.frexp(jnp.asarray(self.levels + 1, jnp.float32))
        level = exponent - (part == 0.5)  # ceil(log2(s + 1)), exact where log2 rounds up
        return jnp.float32(_width(v) + _size(v) * jnp.float32(1 + level))


@struct.dataclass
class EF:
    """Error feedback: what a compressor left out of a client's message is added to its next one.

    q = C(v + e);  e <- v + e - q.

    Args:
        compress: `TopK(.1)`, or any other contractive one.

    Source: Seide, Fu, Droppo, Li, Yu, Interspeech 2014; Karimireddy, Rebjock, Stich, Jaggi, ICML
        2019; reconstructed from memory.

    Example:
        >>> ef = components.EF(components.TopK(0.5))
        >>> q, e = ef.step(jnp.array([3.0, 1.0]), jnp.array([0.0, 1.0]), jax.random.key(0))
        >>> q.tolist(), e.tolist()
        ([3.0, 0.0], [0.0, 2.0])
    """

    compress: Any = TopK()

    def init(self, v: Params) -> Params:
        """Nothing left out."""
        return tree.zeros_like(v)

    def step(self, v: Params, memory: Params, key: Key) -> tuple[Params, Params]:
        """What is sent, and what is left."""
        v = tree.add(v, memory)
        q = self.compress(v, key)
        return q, tree.sub(v, q)

    def bits(self, v: Params) -> Scalar:
        """Those of the compressor."""
        return self.compress.bits(v)
