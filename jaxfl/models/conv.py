"""Convolution and pooling that stay fast when every client has its own kernel.

Under `vmap` over kernels `lax.conv` becomes a grouped convolution, and inside `scan` XLA also
loses its fast path on the CPU. As shifted slices and one matmul, the same vmap is a batched
matmul, and the backward pass is two more matmuls with slices turned into pads.
"""

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Num, Shaped

Padding = str | Sequence[tuple[int, int]]

# The form by backend; a backend that is not named takes "lax". Only the CPU was measured.
FORMS = {"cpu": "shifts"}


def form(backend: str) -> str:
    """The form of convolution that a backend runs fastest: `"shifts"` or `"lax"`.

    Example:
        >>> models.form("cpu"), models.form("gpu")
        ('shifts', 'lax')
    """
    return FORMS.get(backend, "lax")


def shifts(
    x: Num[Array, "b h w c"],
    kernel: Num[Array, "kh kw c o"],
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
) -> Num[Array, "b h2 w2 o"]:
    """Convolve by im2col: the window of every output pixel as a row, then one matmul.

    Args:
        x: images, channels last.
        kernel: taps, input channels, output channels, as in `flax.linen.Conv`.
        strides: steps of the window along height and width.
        padding: `"SAME"`, `"VALID"`, or (low, high) per axis.

    Returns: what `lax.conv_general_dilated` returns, to rounding. Memory: kh kw / (stride area)
        copies of `x`, kept for the backward pass.

    Raises:
        ValueError: if the kernel is larger than the padded image.

    Example:
        >>> models.shifts(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))[0, :2, :2, 0].tolist()
        [[4.0, 6.0], [6.0, 9.0]]
    """
    kh, kw = kernel.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], (kh, kw), strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    if x.shape[1] < kh or x.shape[2] < kw:
        raise ValueError(
            f"kernel: expected at most the padded image {x.shape[1:3]}, got {(kh, kw)}. "
            'Use padding="SAME" or a smaller network.'
        )
    columns = _windows(x, (kh, kw), tuple(strides))
    return jnp.tensordot(columns, kernel.reshape(-1, kernel.shape[-1]), 1)


def _places(shape, size, strides):
    """Where windows begin, along height and width: number of them, and step."""
    return [((n - k) // s + 1, s) for n, k, s in zip(shape[1:3], size, strides)]


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _windows(x, size, strides):
    """The window of every output pixel, `[b, h2, w2, kh kw c]`, as one gather."""
    rows, columns = (
        np.arange(number)[:, None] * step + np.arange(k)
        for (number, step), k in zip(_places(x.shape, size, strides), size)
    )
    at = x.at[:, rows[:, None, :, None], columns[None, :, None, :]]
    y = at.get(mode="promise_in_bounds")
    return y.reshape(*y.shape[:3], -1)


@_windows.defjvp
def _(size, strides, at, by):
    # as slices: their transpose is pads, that of a gather a scatter, which is slower
    (x,), (dx,) = at, by
    return _windows(x, size, strides), _slices(dx, size, strides)


def _slices(x, size, strides):
    """The same by one strided slice per tap."""
    (h, sh), (w, sw) = _places(x.shape, size, strides)
    taps = [
        x[:, i : i + (h - 1) * sh + 1 : sh, j : j + (w - 1) * sw + 1 : sw]
        for i in range(size[0])
        for j in range(size[1])
    ]
    return jnp.concatenate(taps, -1)


def grouped(
    x: Num[Array, "b h w c"],
    kernel: Num[Array, "kh kw c o"],
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
) -> Num[Array, "b h2 w2 o"]:
    """Convolve by `lax.conv_general_dilated`, which `vmap` over kernels turns into groups.

    Example:
        >>> models.grouped(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))[0, :2, :2, 0].tolist()
        [[4.0, 6.0], [6.0, 9.0]]
    """
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)


class Conv(nn.Module):
    """Convolve images [B, H, W, C] with `features` kernels, in the dtype of the kernel.

    Args:
        features: output channels.
        size: height and width of the kernel.
        strides: steps of the window.
        padding: `"SAME"`, `"VALID"`, or (low, high) per axis.
        bias: whether a bias is added.
        form: `"shifts"`, `"lax"`, or None for the choice of `form(backend)`.

    Example:
        >>> images = jnp.ones((2, 8, 8, 3))
        >>> layer = models.Conv(16, strides=(2, 2))
        >>> jax.eval_shape(layer.init, jax.random.key(0), images)["params"]["kernel"].shape
        (3, 3, 3, 16)
    """

    features: int
    size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"
    bias: bool = True
    form: str | None = None

    @nn.compact
    def __call__(self, x: Num[Array, "b h w c"]) -> Num[Array, "b h2 w2 o"]:
        shape = (*self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, float)
        forms = {"shifts": shifts, "lax": grouped}
        name = self.form or form(jax.default_backend())
        if name not in forms:
            raise ValueError(
                f'form: expected "shifts", "lax" or None, got {name!r}. Use form=None.'
            )
        y = forms[name](x.astype(kernel.dtype), kernel, self.strides, self.padding)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), float)
            y = y + bias.reshape(1, 1, 1, -1)
        return y


def max_pool(x: Shaped[Array, "b h w c"], window: int = 2) -> Shaped[Array, "b h2 w2 c"]:
    """Maximum over disjoint windows; rows and columns left over are dropped (VALID).

    Reshape, then maxima of two arrays at a time: the gradient is selects, several times faster on
    the CPU than that of `max` over an axis, which is far faster than that of `reduce_window`. A tie
    shares the gradient, halved at each comparison.

    Example:
        >>> models.max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
    """
    b, h, w, c = x.shape
    h, w = h // window, w // window
    x = x[:, : h * window, : w * window].reshape(b, h, window, w, window, c)
    x = reduce(jnp.maximum, [x[:, :, i] for i in range(window)])
    return reduce(jnp.maximum, [x[:, :, :, i] for i in range(window)])
