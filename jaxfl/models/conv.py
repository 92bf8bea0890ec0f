"""Convolution and pooling that stay fast when every client has its own kernel.

`vmap` over kernels turns `lax.conv` into a grouped convolution, which is slow on the CPU, and so is
every convolution inside `scan` that is not written as XLA's CPU kernels want it: XLA rewrites those
of a program's outermost computation only. `serial` writes it that way, forward and in both
gradients, or as products of tiles, one client after another; `shifts` is a matrix product of
windows, for all clients at once; `grouped` is groups, and its gradients are those of groups.
"""

import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Num, Shaped

Padding = str | Sequence[tuple[int, int]]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_CACHE = 1 << 20  # bytes that a core keeps
# Products of input and output channels from which tiles are faster; of gradients by kernels.
_TILED, _TILED_KERNEL = 1 << 11, 1 << 14


def form(backend: str, dtype: Any = "float32", devices: int = 1) -> str:
    """The form of convolution that runs fastest: `"serial"`, `"shifts"` or `"lax"`.

    Args:
        backend: of JAX, such as `jax.default_backend()`.
        dtype: of kernels. XLA's CPU kernels know float32 (bfloat16 is cast to it).
        devices: how many. Over several, clients one after another would have to move.

    Example:
        >>> models.form("cpu"), models.form("cpu", "float64"), models.form("gpu")
        ('serial', 'shifts', 'lax')
    """
    if backend != "cpu":
        return "lax"  # not measured
    return "shifts" if devices > 1 or jnp.dtype(dtype).itemsize > 4 else "serial"


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
    taps = kernel.shape[:2]
    pads = _pads(x.shape[1:3], taps, strides, padding)
    columns = _windows(jnp.pad(x, ((0, 0), *pads, (0, 0))), taps, tuple(strides))
    return jnp.tensordot(columns, kernel.reshape(-1, kernel.shape[-1]), 1)


def _pads(image, taps, strides, padding):
    """Rows and columns of zeros (before, after) the image."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(image, taps, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    padded = tuple(n + low + high for n, (low, high) in zip(image, pads))
    if padded[0] < taps[0] or padded[1] < taps[1]:
        raise ValueError(
            f"kernel: expected at most the padded image {padded}, got {taps}. "
            'Use padding="SAME" or a smaller network.'
        )
    return pads


def _windows(x, size, strides):
    """The window of every output pixel, `[b, h2, w2, kh kw c]`: a strided slice per tap."""
    ends = [(n - k) // s * s + 1 for n, k, s in zip(x.shape[1:3], size, strides)]
    taps = [
        x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
        for i in range(size[0])
        for j in range(size[1])
    ]
    return jnp.concatenate(taps, -1)


def serial(
    x: Num[Array, "b h w c"],
    kernel: Num[Array, "kh kw c o"],
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
) -> Num[Array, "b h2 w2 o"]:
    """Convolve by XLA's CPU kernels, under `vmap` over kernels one client after another.

    Kernels 3x3 of many channels, without strides, not in bfloat16, go by Winograd's tiles,
    F(2x2, 3x3), with 4 / 9 of the multiplications and about the rounding error of a direct sum.

    Args:
        x, kernel, strides, padding: as for `shifts`.

    Returns: what `lax.conv_general_dilated` returns, to rounding. Derivatives of every order are
        convolutions of the same kind.

    Raises:
        ValueError: if the kernel is larger than the padded image.

    Example:
        >>> models.serial(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))[0, :2, :2, 0].tolist()
        [[4.0, 6.0], [6.0, 9.0]]
    """
    return _bound(_conv, x, kernel, strides, padding)


# <y', x * k> is linear in the image x, the kernel k and the cotangent y' of the output. The
# primitives are its gradient by one of the three (`want`) at the two others, in this order:
_OTHERS = {"y": "xk", "x": "ky", "k": "xy"}
_conv, _groups = Primitive("client_conv"), Primitive("grouped_conv")


def _bound(primitive, x, kernel, strides, padding, **more):
    dtype = jnp.promote_types(x.dtype, kernel.dtype)
    how = {
        "strides": tuple(strides),
        "pads": _pads(x.shape[1:3], kernel.shape[:2], strides, padding),
        "image": x.shape[1:3],
        "taps": kernel.shape[:2],
        # of the context now, not of that in which the program is lowered
        "precision": jax.config.jax_default_matmul_precision,  # pyright: ignore
    }
    return primitive.bind(x.astype(dtype), kernel.astype(dtype), want="y", **how, **more)


def _canonical(a, b, *, want, strides, pads, image, taps, precision):
    """A convolution of images [b, h, w, c] with a kernel [h, w, c, o], both in this very order."""
    # behind a barrier, else XLA makes the transpose part of the convolution, which is then slow
    turned = lambda a, axes: lax.optimization_barrier(a.transpose(axes))
    channels = {"y": b.shape[2:], "x": a.shape[2:], "k": (a.shape[3], b.shape[3])}[want]
    least = _TILED_KERNEL if want == "k" else _TILED
    tiled = (taps, strides) == ((3, 3), (1, 1)) and math.prod(channels) >= least
    tiled = tiled and a.dtype.itemsize >= 4
    a, b = (o if role == "k" else _stored(o) for o, role in zip((a, b), _OTHERS[want]))
    if want == "y":
        if tiled:
            return _by_tiles(a, b, pads, precision)
        return _convolve(a, b, pads, precision, window_strides=strides)
    # rows of the padded image from the last window's first one on, without the padding behind
    ends = [
        low + n - (m - 1) * s - 1 for (low, _), n, m, s in zip(pads, image, b.shape[1:3], strides)
    ]
    if want == "x":
        around = [(k - 1 - low, end) for k, (low, _), end in zip(taps, pads, ends)]
        if tiled:
            return _by_tiles(b, a[::-1, ::-1], around, precision, 3)
        flipped = turned(a[::-1, ::-1], (0, 1, 3, 2))
        return _convolve(b, flipped, around, precision, lhs_dilation=strides)
    # channels as images, images as channels
    if tiled:
        return _kernel_by_tiles(turned(a, (3, 1, 2, 0)), turned(b, (1, 2, 0, 3)), pads, precision)
    around = [(low, k - 1 - end) for k, (low, _), end in zip(taps, pads, ends)]
    extra = _extra(image[0], b.shape[1], strides)
    if extra and b.size * b.dtype.itemsize > _CACHE:
        # rows to the kernel; columns to the image, else XLA swaps the two for the larger kernel
        b = jnp.pad(b, ((0, 0), (0, extra), (0, 0), (0, 0)))
        wide = [(0, 0, 0), (0, 0, 0), (*around[1], 0), (0, 0, 0)]  # `jnp.pad` cannot cut
        a = lax.pad(a, jnp.zeros((), a.dtype), wide)
        around = [(around[0][0], around[0][1] + extra), (0, 0)]
    a, b = turned(a, (3, 1, 2, 0)), turned(b, (1, 2, 0, 3))
    return _plain(a, b, around, precision, rhs_dilation=strides).transpose(1, 2, 0, 3)


def _stored(a):
    """The same large array, but in memory: else XLA computes it again in all that reads it."""
    if a.size * a.dtype.itemsize < _CACHE:
        return a
    # not known before, and of no consequence
    nan, same = jnp.isnan(a.reshape(-1)[0]), lambda a: jnp.where(jnp.isnan(a), jnp.nan, a)
    return lax.cond(nan, same, lambda a: a, a)


# Winograd's F(2 x 2, 3 x 3): a tile of four outputs from sixteen products, not 36. Along one axis
# its two outputs are _OUTPUT(_IMAGE(four pixels) * _KERNEL(three taps)).
_IMAGE = lambda a, b, c, d: (a - c, b + c, c - b, b - d)
_KERNEL = lambda a, b, c: (a, (a + b + c) / 2, (a - b + c) / 2, c)
_OUTPUT = lambda a, b, c, d: (a + b + c, b - c - d)
# transposes of the last two
_KERNEL_T = lambda a, b, c, d: (a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d)
_OUTPUT_T = lambda a, b: (a, a + b, a - b, -b)


def _both(f, table):
    """f along both axes of a table, rows of arrays."""
    turned = zip(*[f(*row) for row in table])
    return [*zip(*[f(*row) for row in turned])]


def _products(axes, *tables, precision):
    """Of two tables [4][4]."""
    return [
        [jnp.tensordot(a, b, axes, precision=precision) for a, b in zip(*rows)]
        for rows in zip(*tables)
    ]


def _tiles(x, pads, size):
    """The sixteen transformed pixels of every tile, where axes 1 and 2 have `size` outputs."""
    ends = [n + n % 2 for n in size]
    around = [(low, end + 2 - n - low, 0) for (low, _), end, n in zip(pads, ends, x.shape[1:3])]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    h, w = ends
    return _both(_IMAGE, [[x[:, i : i + h : 2, j : j + w : 2] for j in range(4)] for i in range(4)])


def _by_tiles(x, kernel, pads, precision, axis=2):
    """The convolution; `axis` of the kernel meets the image's channels."""
    size = [n + sum(p) - 2 for n, p in zip(x.shape[1:3], pads)]
    axes = 3, axis - 2
    out = _products(axes, _tiles(x, pads, size), _both(_KERNEL, kernel), precision=precision)
    b, h, w, c = out[0][0].shape
    rows = [jnp.stack(row, 3).reshape(b, h, 2 * w, c) for row in _both(_OUTPUT, out)]
    return jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, c)[:, : size[0], : size[1]]


def _kernel_by_tiles(x, y, pads, precision):
    """The gradient by the kernel, of images [c, h, w, b] and cotangents [h, w, b, o]."""
    size = y.shape[:2]
    y = jnp.pad(y, [(0, size[0] % 2), (0, size[1] % 2), (0, 0), (0, 0)])
    places = _both(_OUTPUT_T, [[y[i::2, j::2] for j in range(2)] for i in range(2)])
    out = _products(3, _tiles(x, pads, size), places, precision=precision)
    return jnp.stack([jnp.stack(row) for row in _both(_KERNEL_T, out)])


def _plain(x, kernel, pads, precision, window_strides=(1, 1), **dilations):
    how = {"dimension_numbers": _LAYOUT, "precision": precision, **dilations}
    return lax.conv_general_dilated(x, kernel, window_strides, pads, **how)


def _convolve(x, kernel, pads, precision, **how):
    """On all cores: an output that is wider than the image."""
    width = x.shape[2] + sum(pads[1]) - kernel.shape[1] + 1
    extra = _extra(x.shape[2], width, *how.values())
    if not extra:
        return _plain(x, kernel, pads, precision, **how)
    pads = [pads[0], (pads[1][0], pads[1][1] + extra)]
    return _plain(x, kernel, pads, precision, **how)[:, :, :width]


def _extra(image, other, strides):
    """Zeros that make an output, or a kernel, longer than the image, if an eighth is enough.

    XLA leaves shorter ones to YNNPACK, which takes one core for a convolution that follows others,
    and longer ones to Eigen, which takes all.
    """
    extra = image + 1 - other
    return extra if strides == (1, 1) and 0 < extra <= other // 8 else 0


def _shape(a, b, *, want, strides, pads, image, taps, precision, groups=1):
    if want == "k":
        return a.update(shape=(*taps, a.shape[3] // groups, b.shape[3]), weak_type=False)
    if want == "x":
        return a.update(shape=(b.shape[0], *image, a.shape[2] * groups), weak_type=False)
    size = [(n + sum(p) - k) // s + 1 for n, p, k, s in zip(image, pads, taps, strides)]
    return a.update(shape=(a.shape[0], *size, b.shape[3]), weak_type=False)


def _gradient(primitive, place, cotangent, a, b, *, want, **how):
    """The gradient by the operand in that place: the cotangent has the role that was wanted."""
    roles = dict(zip(_OTHERS[want], (a, b))) | {want: cotangent}
    want = _OTHERS[want][place]
    return primitive.bind(*(roles[role] for role in _OTHERS[want]), want=want, **how)


def _batched(operands, axes, *, want, **how):
    n = next(a.shape[axis] for a, axis in zip(operands, axes) if axis is not None)
    a, b = (o if axis is None else jnp.moveaxis(o, axis, 0) for o, axis in zip(operands, axes))
    one = partial(_conv.bind, want=want, **how)
    kernel = _OTHERS[want].find("k")  # -1: the kernel is what is wanted
    if kernel >= 0 and axes[kernel] is None:  # the same for all: more images
        many = b if kernel == 0 else a
        flat = many.reshape(-1, *many.shape[2:])
        out = one(a, flat) if kernel == 0 else one(flat, b)
        return out.reshape(n, -1, *out.shape[1:]), 0
    at = lambda i: [o if axis is None else o[i] for o, axis in zip((a, b), axes)]
    if n == 1:
        return one(*at(0))[None], 0
    return lax.map(lambda i: one(*at(i)), jnp.arange(n)), 0


def grouped(
    x: Num[Array, "b h w c"],
    kernel: Num[Array, "kh kw c o"],
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
) -> Num[Array, "b h2 w2 o"]:
    """Convolve by `lax.conv_general_dilated`, under `vmap` over kernels in groups of channels.

    A primitive, for the sake of its gradients: those of a grouped convolution, for which GPUs have
    kernels. `vmap` over a gradient by `lax` makes the gradient by kernels a convolution with
    kernels as large as the image.

    Args:
        x, kernel, strides, padding: as for `shifts`.

    Returns: what `lax.conv_general_dilated` returns.

    Raises:
        ValueError: if the kernel is larger than the padded image.

    Example:
        >>> models.grouped(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))[0, :2, :2, 0].tolist()
        [[4.0, 6.0], [6.0, 9.0]]
    """
    return _bound(_groups, x, kernel, strides, padding, groups=1)


def _in_groups(a, b, *, want, strides, pads, image, taps, precision, groups):
    forward = partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=pads,
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
        precision=precision,
    )
    if want == "y":
        return forward(a, b)
    how = dict(strides=strides, pads=pads, image=image, taps=taps, precision=precision)
    like = _shape(jax.typeof(a), jax.typeof(b), want=want, groups=groups, **how)
    one = (lambda x: forward(x, a)) if want == "x" else (lambda k: forward(a, k))
    return jax.linear_transpose(one, like)(b)[0]


def _regrouped(operands, axes, *, want, groups, **how):
    """More groups if all three roles differ, else more of what those two share that do.

    Image and output share the batch, image and kernel c, kernel and output o.
    """
    n = next(a.shape[axis] for a, axis in zip(operands, axes) if axis is not None)
    roles = _OTHERS[want]
    same = next((role for role, axis in zip(roles, axes) if axis is None), "")
    # of [b, h, w, groups, c] and [kh, kw, c, groups, o], the axis before which the new one goes
    image = 0 if same == "k" else 4
    before = {"x": image, "y": image, "k": 2 if same == "y" else 4}

    def fold(role, a, axis):
        if axis is None:
            return a
        at, a = before[role], jnp.moveaxis(a, axis, 0)
        a = jnp.moveaxis(a.reshape(*a.shape[:-1], groups, -1), 0, at)
        a = a.reshape(*a.shape[:at], -1, *a.shape[at + 2 :])
        return a.reshape(*a.shape[:3], -1)

    given = [fold(*of) for of in zip(roles, operands, axes)]
    y = _groups.bind(*given, want=want, groups=groups if same else groups * n, **how)
    at = before[want]
    ends = (groups, n, -1) if at == 4 else (n, -1, *y.shape[at + 1 :])
    y = jnp.moveaxis(y.reshape(*y.shape[: min(at, 3)], *ends), at, 0)
    return y.reshape(*y.shape[:4], -1), 0


def _register(primitive, lowering, batched, *static):
    """A bilinear primitive whose gradients are of its own kind."""
    static = ("want", "strides", "pads", "image", "taps", "precision", *static)
    primitive.def_impl(jax.jit(lowering, static_argnames=static))
    primitive.def_abstract_eval(_shape)
    mlir.register_lowering(primitive, mlir.lower_fun(lowering, multiple_results=False))
    ad.defbilinear(primitive, partial(_gradient, primitive, 0), partial(_gradient, primitive, 1))
    batching.primitive_batchers[primitive] = batched


_register(_conv, _canonical, _batched)
_register(_groups, _in_groups, _regrouped, "groups")


class Conv(nn.Module):
    """Convolve images [B, H, W, C] with `features` kernels, in the dtype of the kernel.

    Args:
        features: output channels.
        size: height and width of the kernel.
        strides: steps of the window.
        padding: `"SAME"`, `"VALID"`, or (low, high) per axis.
        bias: whether a bias is added.
        form: `"serial"`, `"shifts"`, `"lax"`, or None for what `form` chooses.

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
        forms = {"serial": serial, "shifts": shifts, "lax": grouped}
        name = self.form or form(jax.default_backend(), kernel.dtype, jax.device_count())
        if name not in forms:
            raise ValueError(
                f"form: expected one of {[*forms]} or None, got {name!r}. Use form=None."
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

    Raises:
        ValueError: if an image is smaller than a window.

    Example:
        >>> models.max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
    """
    b, h, w, c = x.shape
    if min(h, w) < window:
        raise ValueError(
            f"x: expected images of at least {window} x {window} pixels to pool, got {h} x {w}. "
            "Use larger images, [B, H, W, C], or a smaller network."
        )
    h, w = h // window, w // window
    x = x[:, : h * window, : w * window].reshape(b, h, window, w, window, c)
    x = reduce(jnp.maximum, [x[:, :, i] for i in range(window)])
    return reduce(jnp.maximum, [x[:, :, :, i] for i in range(window)])
