"""Shifts between clients: rotations, noise, other labels."""

import math

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike

from jaxfl.data.partitioners import Number, Partition, Seed, _integers

# Shifts between clients ----------------------------------------------------------------------


def _per_client(name: str, value: ArrayLike, partition: Partition) -> Shaped[np.ndarray, " n"]:
    array = np.asarray(value)
    if array.shape != (partition.n,):
        raise ValueError(
            f"{name} must be one per client, [{partition.n}]; got shape {array.shape}: "
            f"np.resize({name}, {partition.n}) repeats them in turn"
        )
    return array


def rotate(x: Shaped[np.ndarray, "N ..."], partition: Partition, angles: ArrayLike) -> np.ndarray:
    """Feature shift: the images of client i turned by `angles[i]` degrees, anticlockwise.

    Multiples of 90 are exact; other angles interpolate linearly and mirror at the border.

    Args:
        x: `[N, height, width]` or `[N, height, width, channels]`.
        partition: who owns what.
        angles: `[n]`, degrees.

    Raises:
        ValueError: not images, not one angle per client, or a quarter turn of oblong images.

    Source: Ghosh, Chung, Yin, Ramchandran, NeurIPS 2020, arXiv 2006.04088 (quarter turns, IFCA).

    Example:
        >>> x, partition = np.array([[[1, 2], [3, 4]]]), data.iid(1, n=1)
        >>> data.rotate(x, partition, [90]).tolist()
        [[[2, 4], [1, 3]]]
    """
    turns = _per_client("angles", angles, partition)
    if x.ndim not in (3, 4):
        raise ValueError(
            f"x must be images [N, height, width(, channels)]; got shape {x.shape}: "
            "x.reshape(-1, 8, 8, 1), or load(name, image=True)"
        )
    out = x.copy()
    for i in np.flatnonzero(turns % 360):
        mine = partition.of(int(i))
        quarters, rest = divmod(turns[i] % 360, 90)
        if rest == 0:
            if quarters % 2 and x.shape[1] != x.shape[2]:
                raise ValueError(
                    f"a turn by {turns[i]} degrees needs square images; got {x.shape}: turn by "
                    "180, or crop them"
                )
            out[mine] = np.rot90(x[mine], int(quarters), axes=(1, 2))
        else:
            from scipy import ndimage

            out[mine] = ndimage.rotate(
                x[mine], float(turns[i]), axes=(2, 1), reshape=False, order=1, mode="reflect"
            )
    return out


def noise(
    x: Float[np.ndarray, "N ..."], partition: Partition, sigma: Number, *, seed: Seed = 0
) -> np.ndarray:
    """Feature shift: Gaussian noise of standard deviation `sigma * i / n` on client i's features.

    Args:
        x: `[N, ...]`, floats.
        partition: who owns what.
        sigma: the level that client n would have; client 0 stays clean.
        seed: a number or a NumPy generator.

    Source: Li, Diao, Chen, He, ICDE 2022 (NIID-Bench).

    Example:
        >>> x, partition = np.zeros((1000, 2)), data.iid(1000, n=2)
        >>> noisy = data.noise(x, partition, sigma=2.0)
        >>> [float(noisy[partition.of(i)].std().round(1)) for i in (0, 1)]
        [0.0, 1.0]
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be 0 or more, and finite; got {sigma}: sigma=1.0")
    level = np.zeros(len(x))
    level[partition.order] = sigma * partition.owner() / partition.n
    drawn = np.random.default_rng(seed).standard_normal(x.shape)
    return (x + level.reshape(-1, *[1] * (x.ndim - 1)) * drawn).astype(x.dtype)


def permute_labels(
    y: Int[np.ndarray, " N"],
    partition: Partition,
    groups: ArrayLike,
    classes: int,
    *,
    seed: Seed = 0,
) -> Int[np.ndarray, " N"]:
    """Concept shift: clients of group g see every label through the group's own permutation.

    Group 0 keeps its labels; the others shift them by g along one random cycle of the classes, so
    that any two groups disagree on every class (independent permutations may coincide).

    Args:
        y: `[N]`, integers below `classes`.
        partition: who owns what.
        groups: `[n]`, the group of each client, 0 to `classes - 1`.
        classes: number of classes.
        seed: a number or a NumPy generator.

    Raises:
        ValueError: a label or a group is out of range, or there is not one group per client.

    Example:
        >>> y, partition = np.array([0, 1, 2, 0, 1, 2]), data.natural([0, 0, 0, 1, 1, 1])[0]
        >>> data.permute_labels(y, partition, groups=[0, 1], classes=3).tolist()
        [0, 1, 2, 1, 2, 0]
    """
    group = _integers(_per_client("groups", groups, partition))
    for name, array in (("groups", group), ("y", y)):
        if array.min(initial=0) < 0 or array.max(initial=0) >= classes:
            raise ValueError(
                f"{name} must be 0 to classes - 1 = {classes - 1}; got {array.min()} to "
                f"{array.max()}: classes={int(array.max()) + 1}, or {name} % classes"
            )
    cycle = np.random.default_rng(seed).permutation(classes)
    place = np.argsort(cycle)
    shift = np.zeros(len(y), np.int64)
    shift[partition.order] = group[partition.owner()]
    return cycle[(place[y] + shift) % classes].astype(y.dtype)
