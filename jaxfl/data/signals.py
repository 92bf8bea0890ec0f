"""One-dimensional signals, generated: MNIST-1D."""

import math

import numpy as np

from jaxfl.data.partitioners import Number, Seed
from jaxfl.data.sets import DATASETS, Dataset, from_arrays
from jaxfl.types import Count, whole

# The strokes of the ten digits, twelve heights each.
_STROKES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
_PADS, _LONG, _LENGTH = (36, 60), 72, 40  # zeros after a stroke; samples before and after


def mnist1d(
    size: Count = 6000,
    *,
    scale: Number = 0.4,
    translation: Count = 48,
    correlated: Number = 0.25,
    noise: Number = 0.02,
    shear: Number = 0.75,
    valid: Number = 0.15,
    test: Number = 0.15,
    seed: Seed = 0,
) -> Dataset:
    """MNIST-1D: ten strokes, padded, scaled, moved, sheared and noisy, `[N, 40]`.

    A logistic regression gets a third right, a small MLP two thirds, a small convolutional network
    nine tenths: unlike digits, it tells methods apart.

    Args:
        size: number of examples, as many of each class.
        scale: width of the range of amplitudes, around 1.
        translation: how far a stroke moves, at most, of 72 samples.
        correlated: deviation of the smooth noise where there is no stroke, before it is smoothed.
        noise: deviation of the white noise.
        shear: width of the range of slopes, around 0.
        valid: share for validation, of all examples.
        test: share for the test, of all examples.
        seed: a number or a NumPy generator: for the signals and the split.

    Raises:
        ValueError: fewer than 10 examples, a negative number, a translation out of 1 to 72.

    Source: Greydanus, Kobak, "Scaling Down Deep Learning with MNIST-1D", ICML 2024,
        arXiv 2011.14439; its code was read, whose strokes and ranges these are.

    Deviations: all examples at once, so other examples under the same seed than its code's, of the
        same statistics.

    Example:
        >>> signals = data.load("mnist1d", size=600)
        >>> signals.train["x"].shape, signals.classes
        ((420, 40), 10)
    """
    from scipy.ndimage import gaussian_filter1d

    size, translation = whole("size", size), whole("translation", translation)
    if size < 10:
        raise ValueError(f"size must be at least 10, one example of each class; got {size}")
    if not 1 <= translation <= _LONG:
        raise ValueError(f"translation must be 1 to {_LONG}; got {translation}: translation=48")
    ranges = {"scale": scale, "correlated": correlated, "noise": noise, "shear": shear}
    for name, value in ranges.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be 0 or more, and finite; got {value}: {name}=0.1")
    rng = np.random.default_rng(seed)
    strokes = np.array(_STROKES, float)
    strokes = (strokes - strokes.mean(1, keepdims=True)) / strokes.std(1, keepdims=True)
    strokes = (strokes - strokes[:, :1]) / 6  # begin and end at 0
    y = rng.permutation(np.arange(size) % len(strokes))
    long = strokes.shape[1] + rng.integers(_PADS[0], _PADS[1] + 1, size)
    at = np.linspace(0, 1, _LONG) * (long[:, None] - 1)  # dilated to one length
    ends = np.pad(strokes, ((0, 0), (0, 1)))
    x = np.stack([np.interp(a, np.arange(ends.shape[1]), ends[k]) for a, k in zip(at, y)])
    there = at < strokes.shape[1]
    x *= 1 + scale * (rng.random((size, 1)) - 0.5)
    moved = (np.arange(_LONG) - rng.integers(translation, size=(size, 1))) % _LONG
    x, there = (np.take_along_axis(a, moved, 1) for a in (x, there))
    smooth = gaussian_filter1d(correlated * rng.standard_normal(x.shape), 2, axis=1)
    x = np.where(there, x, smooth) + noise * rng.standard_normal(x.shape)
    x -= shear * (rng.random((size, 1)) - 0.5) * np.linspace(-0.5, 0.5, _LONG)
    kept = np.linspace(0, _LONG - 1, _LENGTH)
    left = np.minimum(kept.astype(int), _LONG - 2)
    x = x[:, left] + (kept - left) * (x[:, left + 1] - x[:, left])
    x = ((x - x.mean()) / x.std()).astype(np.float32)
    return from_arrays(x, y, name="mnist1d", classes=10, valid=valid, test=test, seed=rng)


DATASETS["mnist1d"] = mnist1d
