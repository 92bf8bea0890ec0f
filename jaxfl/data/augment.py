"""Augmentation inside the program: functions `augment(examples, key) -> examples` for `Clients`.

They are frozen records, equal if built alike, so that nothing compiles twice; what they do to a
sample is a function of its key, so that the same sample can be asked at two points.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxfl.types import Key


@dataclass(frozen=True)
class CropAndFlip:
    """Random crop of the zero-padded image and random horizontal flip, one draw per example.

    Args:
        pad: pixels added on every side before cropping back to the original size, >= 0.
        flip: whether half of the images are mirrored left to right.
    """

    pad: int = 4
    flip: bool = True

    def __call__(self, examples: dict[str, Any], key: Key) -> dict[str, Any]:
        """The examples, their `x` [B, H, W, C] augmented."""
        x = examples["x"]
        if x.ndim != 4:
            raise ValueError(
                f'crop_and_flip needs images examples["x"] [B, H, W, C], got {x.shape}; for grey '
                "ones add the channel: `x[..., None]`"
            )
        height, width = x.shape[1:3]
        zero, pad = jnp.zeros((), x.dtype), (self.pad, self.pad, 0)

        def one(x, key):
            down, right, mirror = jax.random.bits(key, (3,), jnp.uint32)
            if self.pad:
                size = jnp.uint32(2 * self.pad + 1)
                at = [(a % size).astype(jnp.int32) for a in (down, right)]
                x = jax.lax.pad(x, zero, (pad, pad, (0, 0, 0)))
                x = jax.lax.dynamic_slice(x, (*at, jnp.int32(0)), (height, width, x.shape[2]))
            return jnp.where(mirror >> 31 == 1, x[:, ::-1], x) if self.flip else x

        return {**examples, "x": jax.vmap(one)(x, jax.random.split(key, len(x)))}


def crop_and_flip(pad: int = 4, flip: bool = True) -> CropAndFlip:
    """Random crop and horizontal flip of images, the usual augmentation of CIFAR.

    Args:
        pad: pixels added on every side before cropping back to the original size, >= 0.
        flip: whether half of the images are mirrored left to right.

    Raises:
        ValueError: a negative pad.

    Example:
        >>> flip = data.crop_and_flip(pad=0)
        >>> images = {"x": jnp.arange(12.0).reshape(1, 2, 2, 3), "y": jnp.array([0])}
        >>> flip(images, jax.random.key(0))["x"].shape
        (1, 2, 2, 3)
    """
    if pad < 0:
        raise ValueError(f"pad must be >= 0 pixels, got {pad}; for no crop `crop_and_flip(pad=0)`")
    return CropAndFlip(pad, flip)
