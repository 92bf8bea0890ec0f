"""Group normalisation whose sums over pixels are fast on a CPU, with derivatives of every order.

XLA leaves sums over a middle axis to YNNPACK, which takes some ten times as long as reading the
numbers. Sums of slices are not left to it.
"""

from functools import reduce

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Num

_TERMS = 32  # slices of one sum


class GroupNorm(nn.Module):
    """Give each group of channels of an example mean 0 and variance 1, then scale and shift them.

    What `flax.linen.GroupNorm(groups, epsilon=1e-5)` computes, to rounding, with its parameters.

    Args:
        groups: a divisor of the number of channels.

    Raises:
        ValueError: if it is none.

    Example:
        >>> images = jax.random.normal(jax.random.key(0), (2, 8, 8, 6))
        >>> y, params = models.GroupNorm(3).init_with_output(jax.random.key(0), images)
        >>> y.reshape(2, 64, 3, 2).std((1, 3)).round(3).tolist(), params["params"]["bias"].shape
        ([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], (6,))
    """

    groups: int

    @nn.compact
    def __call__(self, x: Num[Array, "b *pixels c"]) -> Num[Array, "b *pixels c"]:
        channels = x.shape[-1]
        if self.groups < 1 or channels % self.groups:
            raise ValueError(
                f"groups: expected a divisor of the {channels} channels, got {self.groups}. "
                "Use groups=1."
            )
        scale = self.param("scale", nn.initializers.ones, (channels,), float)
        bias = self.param("bias", nn.initializers.zeros, (channels,), float)
        # sums in bfloat16 stop growing at 256
        a = x.reshape(len(x), -1, channels).astype(jnp.promote_types(x.dtype, jnp.float32))
        pixels = a.shape[1]

        def mean(a):
            groups = _total.bind(a).reshape(len(a), self.groups, -1).mean(-1) / pixels
            return jnp.repeat(groups, channels // self.groups, 1)

        center = mean(a)
        variance = jnp.maximum(mean(jnp.square(a)) - jnp.square(center), 0)
        slope = jax.lax.rsqrt(variance + 1e-5) * scale[None]
        spread = lambda a: _spread.bind(a, pixels=pixels)
        y = a * spread(slope) + spread(bias[None] - center * slope)
        return y.reshape(x.shape).astype(jnp.promote_types(x.dtype, scale.dtype))


def _slices(a):
    """The sum over the last axis but one, as sums of slices."""
    while (pixels := a.shape[-2]) > 1:
        terms = max(k for k in range(1, _TERMS + 1) if pixels % k == 0)
        if terms == 1:
            return a.sum(-2)
        a = a.reshape(*a.shape[:-2], terms, -1, a.shape[-1])
        a = reduce(jnp.add, [a[..., k, :, :] for k in range(terms)])
    return a.reshape(*a.shape[:-2], a.shape[-1])


def _copies(a, *, pixels):
    return jnp.broadcast_to(a[..., None, :], (*a.shape[:-1], pixels, a.shape[-1]))


def _linear(name, f, shape):
    """A linear function of one array as a primitive, indifferent to leading axes."""
    primitive = Primitive(name)
    primitive.def_impl(f)
    primitive.def_abstract_eval(lambda a, **how: a.update(shape=shape(a.shape, **how)))
    mlir.register_lowering(primitive, mlir.lower_fun(f, multiple_results=False))
    batching.primitive_batchers[primitive] = lambda operands, axes, **how: (
        primitive.bind(jnp.moveaxis(operands[0], axes[0], 0), **how),
        0,
    )
    return primitive


# sum over pixels [..., p, c] -> [..., c], and its transpose
_total = _linear("pixel_sum", lambda a: a.sum(-2), lambda s: (*s[:-2], s[-1]))
_spread = _linear("pixel_spread", _copies, lambda s, pixels: (*s[:-1], pixels, s[-1]))
mlir.register_lowering(_total, mlir.lower_fun(_slices, multiple_results=False), platform="cpu")
ad.deflinear2(_total, lambda ct, a: [_spread.bind(ct, pixels=a.aval.shape[-2])])
ad.deflinear2(_spread, lambda ct, a, *, pixels: [_total.bind(ct)])
