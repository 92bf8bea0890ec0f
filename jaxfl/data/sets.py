"""Data sets: bundled real ones, a user's own arrays and tables, all as one record."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped
from numpy.typing import ArrayLike

from jaxfl.data.partitioners import Number, Partition, Seed, _grouped, _head, _thirds, natural

Examples = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples in three parts, and what is known of them.

    Example:
        >>> iris = data.load("iris")
        >>> iris.train["x"].shape[1:], iris.classes, sorted(iris.train)
        ((4,), 3, ['x', 'y'])
    """

    name: str
    train: Examples  # {"x": [N, ...], "y": [N]}
    valid: Examples  # for choosing hyperparameters; may be empty
    test: Examples  # for the final number only; may be empty
    classes: int | None  # None: regression
    partitions: Mapping[str, Partition] = field(default_factory=dict)  # natural ones, by part
    names: Shaped[np.ndarray, " n"] = field(default_factory=lambda: np.arange(0))  # of the clients
    truth: Mapping[str, np.ndarray] = field(default_factory=dict)  # what generated the data
    vocabulary: tuple[str, ...] = ()  # of texts: `jaxfl.data.Tokens` numbers it

    @property
    def partition(self) -> Partition:
        """The natural partition of `train`.

        Raises:
            ValueError: the data came without clients.
        """
        if "train" not in self.partitions:
            raise ValueError(
                f"{self.name} has no natural clients: partition it, "
                'dirichlet(data.train["y"], n=20, alpha=0.1)'
            )
        return self.partitions["train"]


# A user's own data ---------------------------------------------------------------------------


def _numeric(name: str, values: ArrayLike, dtype: Any) -> np.ndarray:
    """Finite floats as `dtype`; integers as they are, 64 bits as 32."""
    array = np.asarray(values)
    if array.dtype.kind not in "buif":
        raise ValueError(
            f"{name} must be numbers; got {array.dtype}: encode it, "
            "np.unique(column, return_inverse=True)[1]"
        )
    if array.ndim < 1:
        raise ValueError(
            f"{name} must have a leading example axis [N, ...]; got one number: "
            "np.atleast_1d(value)"
        )
    if array.dtype.kind == "f":
        array = _fitting(name, array, dtype)
        bad = np.asarray(~np.isfinite(array)).any(axis=tuple(range(1, array.ndim)))
        if bad.any():
            raise ValueError(
                f"{name} must be finite in {array.dtype}; {bad.sum()} of {bad.size} examples hold "
                f"NaN or inf, the first is example {bad.argmax()}: "
                "drop them (np.isfinite finds them), or fill in np.nan_to_num"
            )
    elif array.dtype.itemsize == 8:
        if array.size and (array.max() >= 2**31 or array.min() < -(2**31)):
            raise ValueError(
                f"{name} must fit in 32 bits; got {array.min()} to {array.max()}: "
                "renumber it, np.unique(column, return_inverse=True)[1], or .astype(np.float32)"
            )
        array = array.astype(np.int32)
    return array


def _fitting(name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """Floats in another type; integers only if they are whole and in its range."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        cast = array.astype(dtype, copy=False)  # what is mapped stays mapped
    if cast.dtype.kind != "f" and (cast != array).any():
        raise ValueError(
            f"{name} must be whole numbers that {cast.dtype} has; got "
            f"{array[cast != array].flat[0]}: dtype=np.float32"
        )
    return cast


def _labels(y: np.ndarray, classes: int | None) -> tuple[np.ndarray, int | None]:
    """Labels as int32 and the number of classes, or the targets of a regression and None."""
    if y.dtype.kind == "f":
        if classes is None:
            return y, None
        whole = y == np.floor(y)
        if not whole.all():
            raise ValueError(
                f"y must be integers 0 to {classes - 1}; got {y[~whole].flat[0]}: "
                "leave out classes= for a regression"
            )
    y = y.astype(np.int32)
    if y.ndim == 2 and y.shape[1] == 1:
        raise ValueError(f"labels y must be [N]; got {y.shape}: y.ravel()")
    low, high = int(y.min(initial=0)), int(y.max(initial=0))
    if classes is None and low >= 0:
        _head(y)
    if low < 0 or (classes is not None and high >= classes):
        raise ValueError(
            f"labels y must be 0 to {'classes - 1' if classes is None else classes - 1}; "
            f"got {low} to {high}: np.unique(y, return_inverse=True)[1] renumbers them"
        )
    return y, high + 1 if classes is None else classes


def _sides(
    y: np.ndarray,
    client: Int[np.ndarray, " N"] | None,
    classes: int | None,
    valid: Number,
    test: Number,
    by: str,
    rng: np.random.Generator | None,
) -> Int[np.ndarray, " N"]:
    """0 (train), 1 (valid) or 2 (test) for every example."""
    if by not in ("examples", "clients"):
        raise ValueError(f'by must be "examples" or "clients"; got {by!r}: by="examples"')
    if by == "clients":
        if client is None:
            raise ValueError('by="clients" needs clients: name the column of their ids, client=')
        return _thirds(np.zeros(int(client.max()) + 1, np.int64), valid, test, rng)[client]
    if client is None and classes is not None and y.ndim == 1:
        client = np.unique(y, return_inverse=True)[1]
    return _thirds(np.zeros(len(y), np.int64) if client is None else client, valid, test, rng)


def _owned(
    ids: Mapping[str, Int[np.ndarray, " N"]],
) -> tuple[Int[np.ndarray, " n"], dict[str, Partition]]:
    """The ids in order, and partitions by part: client i of every part is the i-th id.

    Who trains comes first; who does not is none of the clients of `train`.
    """
    train = np.unique(ids["train"])
    others = np.concatenate([train[:0], *(v for part, v in ids.items() if part != "train")])
    names = np.concatenate([train, np.setdiff1d(others, train)])
    place = np.argsort(names)
    partitions = {}
    for part, v in ids.items():
        owner = place[np.searchsorted(names, v, sorter=place)]
        partitions[part] = _grouped(owner, len(train) if part == "train" else len(names))
    return names, partitions


def _dataset(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    client: Int[np.ndarray, " N"] | None,
    *,
    classes: int | None,
    valid: Number,
    test: Number,
    rng: np.random.Generator | None,
    names: np.ndarray | None = None,
    standardise: bool = False,
    truth: Mapping[str, np.ndarray] | None = None,
    by: str = "examples",
) -> Dataset:
    """Split inside every client, else inside every class; or between clients."""
    which = _sides(y, client, classes, valid, test, by, rng)
    if standardise:
        seen = x[which == 0].astype(np.float64)
        spread = seen.std(0)
        x = ((x - seen.mean(0)) / np.where(spread > 0, spread, 1)).astype(np.float32)
    parts = {part: which == i for i, part in enumerate(("train", "valid", "test"))}
    partitions = {}
    if client is not None:
        names = np.arange(int(client.max()) + 1) if names is None else names
        known, partitions = _owned({part: client[mask] for part, mask in parts.items()})
        names = names[known]
    arrays: Any = {part: {"x": x[mask], "y": y[mask]} for part, mask in parts.items()}
    return Dataset(
        name,
        **arrays,
        classes=classes,
        partitions=partitions,
        names=np.arange(0) if names is None else names,
        truth=truth or {},
    )


def from_arrays(
    x: ArrayLike,
    y: ArrayLike,
    client: ArrayLike | None = None,
    *,
    name: str = "arrays",
    classes: int | None = None,
    valid: Number = 0.15,
    test: Number = 0.15,
    standardise: bool = False,
    seed: Seed = 0,
    dtype: Any = np.float32,
    by: str = "examples",
) -> Dataset:
    """A data set from arrays, checked, and split in three.

    The split keeps the shares of the classes, or, with a client column, of the clients: each keeps
    at least one example for training; a small one may have none to validate or to test. Or it is
    one of clients: those who validate and test are never seen in training, and come last in
    `names`.

    Args:
        x: `[N, ...]`, numbers. Integers (tokens, raw images) stay integers.
        y: `[N]` or `[N, ...]`: integers are labels 0, 1, ...; floats are targets of a regression.
        client: `[N]`, the client of every example, numbers or strings; without it, no partition.
        name: what to call it.
        classes: number of classes (default: the largest label plus one).
        valid: share for validation, of all examples.
        test: share for the test, of all examples.
        standardise: subtract the mean of the training examples, divide by their deviation.
        seed: a number or a NumPy generator, for the split.
        dtype: of the floats.
        by: "examples", or "clients" to share out whole clients.

    Raises:
        ValueError: NaN, inf or something that is not a number; labels out of range; lengths that
            disagree; no examples; missing client ids.

    Example:
        >>> x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
        >>> mine = data.from_arrays(x, y, client=np.repeat(["a", "b"], 10))
        >>> mine.partition.n, len(mine.train["y"]), len(mine.valid["y"]), len(mine.test["y"])
        (2, 12, 4, 4)
    """
    x, y = _numeric("x", x, dtype), _numeric("y", y, dtype)
    if x.dtype == bool:
        x = x.astype(dtype)
    lengths = {"x": len(x), "y": len(y)}
    if client is not None:
        lengths["client"] = np.shape(client)[0] if np.ndim(client) else 0
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"x, y and client must have one row per example; got {lengths}: cut them to the same "
            "examples, x[rows], y[rows]"
        )
    if not len(x):
        raise ValueError("x and y hold no examples: give at least one, x [N, ...] and y [N]")
    y, classes = _labels(y, classes)
    owner, names = None, None
    if client is not None:
        partition, names = natural(client)
        owner = np.empty(len(x), np.int64)
        owner[partition.order] = partition.owner()
    rng = np.random.default_rng(seed)
    return _dataset(
        name,
        x,
        y,
        owner,
        classes=classes,
        valid=valid,
        test=test,
        rng=rng,
        names=names,
        standardise=standardise,
        by=by,
    )


def from_table(
    columns: Mapping[str, ArrayLike] | Any,
    *,
    target: str,
    client: str | None = None,
    features: Sequence[str] | None = None,
    **options: Any,
) -> Dataset:
    """A data set from named columns: a dict of arrays, a data frame, a structured array.

    Args:
        columns: anything with `columns[name] -> [N]`.
        target: the column of labels or targets.
        client: the column of client ids; without it, no partition.
        features: the columns of `x`, in this order (default: all others).
        **options: as for `from_arrays`.

    Raises:
        ValueError: a column that is missing, not numeric, not finite or of another length.

    Example:
        >>> columns = {"age": [30, 40, 50, 60], "ill": [0, 0, 1, 1], "clinic": ["a", "a", "b", "b"]}
        >>> mine = data.from_table(columns, target="ill", client="clinic", valid=0, test=0)
        >>> mine.train["x"].tolist(), mine.names.tolist()
        ([[30.0], [40.0], [50.0], [60.0]], ['a', 'b'])
    """
    known = getattr(getattr(columns, "dtype", None), "names", None) or list(columns)
    if features is None:
        features = [name for name in known if name not in (target, client)]
    for column in [*features, target, *([] if client is None else [client])]:
        if column not in known:
            raise ValueError(f"no column {_nearest(column, known)}")
    if not features:
        raise ValueError(
            f"features must be at least one column besides {target!r} and {client!r}: "
            "leave features= out to take all others"
        )
    dtype = options.get("dtype", np.float32)
    values = [_numeric(f"column {name!r}", columns[name], dtype) for name in features]
    lengths = {name: v.shape for name, v in zip(features, values, strict=True)}
    if len(set(lengths.values())) > 1 or values[0].ndim != 1:
        raise ValueError(f"columns must all be [N]; got shapes {lengths}")
    ids = None if client is None else np.asarray(columns[client])
    x = np.stack(values, axis=1).astype(dtype)
    return from_arrays(x, columns[target], ids, **{"name": "table", **options})


# Bundled real data ---------------------------------------------------------------------------


def _bundled(name: str, classes: int | None, **options: Any) -> Dataset:
    from sklearn import datasets  # lazy: a second of import

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    standardise = options.pop("standardise", True)
    y = y.astype(np.float32) if classes is None else y
    return from_arrays(x, y, name=name, classes=classes, standardise=standardise, **options)


def digits(
    *, image: bool = False, valid: Number = 0.15, test: Number = 0.15, seed: Seed = 0
) -> Dataset:
    """1797 handwritten digits of 8 x 8 pixels in [0, 1]: x is `[N, 64]`, or `[N, 8, 8, 1]`."""
    from sklearn import datasets

    x, y = datasets.load_digits(return_X_y=True)
    x = (x / 16).reshape(-1, 8, 8, 1) if image else x / 16
    return from_arrays(x, y, name="digits", classes=10, valid=valid, test=test, seed=seed)


def breast_cancer(*, valid: Number = 0.15, test: Number = 0.15, seed: Seed = 0) -> Dataset:
    """569 tumours with 30 measurements, standardised; two classes."""
    return _bundled("breast_cancer", 2, valid=valid, test=test, seed=seed)


def wine(*, valid: Number = 0.15, test: Number = 0.15, seed: Seed = 0) -> Dataset:
    """178 wines with 13 measurements, standardised; three classes."""
    return _bundled("wine", 3, valid=valid, test=test, seed=seed)


def iris(*, valid: Number = 0.15, test: Number = 0.15, seed: Seed = 0) -> Dataset:
    """150 irises with 4 measurements, standardised; three classes."""
    return _bundled("iris", 3, valid=valid, test=test, seed=seed)


def diabetes(*, valid: Number = 0.15, test: Number = 0.15, seed: Seed = 0) -> Dataset:
    """442 patients with 10 measurements, standardised; regression on 25 to 346 (not scaled)."""
    return _bundled("diabetes", None, valid=valid, test=test, seed=seed)


DATASETS: dict[str, Callable[..., Dataset]] = {
    f.__name__: f for f in (digits, breast_cancer, wine, iris, diabetes)
}


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    return f"{name!r};{hint} known: {', '.join(map(str, known))}"


def load(
    name: str, *, valid: Number = 0.15, test: Number = 0.15, seed: Seed = 0, **options: Any
) -> Dataset:
    """A data set by its name, split in three with the same classes in every part.

    Args:
        name: a key of `DATASETS`.
        valid: share for validation, of all examples.
        test: share for the test, of all examples.
        seed: a number or a NumPy generator: for the split, and for data that are generated.
        **options: what the named function takes, as in `load("digits", image=True)`.

    Raises:
        ValueError: no data set of that name; the message names the nearest one.

    Example:
        >>> digits = data.load("digits", image=True)
        >>> digits.train["x"].shape, digits.classes
        ((1259, 8, 8, 1), 10)
    """
    if name not in DATASETS:
        raise ValueError(f"no data set {_nearest(name, sorted(DATASETS))}")
    return DATASETS[name](valid=valid, test=test, seed=seed, **options)
