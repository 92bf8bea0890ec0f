"""Who owns which examples: a permutation and offsets."""

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike

from jaxfl.types import Count, whole

Seed = int | np.random.Generator


Number = float | int | np.floating | np.integer  # what a checker at run time takes for "float"


class Partition(NamedTuple):
    """Client i owns the examples `order[start[i] : start[i] + count[i]]`, in ascending order.

    Example:
        >>> partition = data.iid(10, n=3)
        >>> partition.count.tolist(), len(partition.of(0))
        ([4, 3, 3], 4)
    """

    order: Int[np.ndarray, " N"]  # int32, indices of examples, grouped by client
    start: Int[np.ndarray, " n"]  # int32
    count: Int[np.ndarray, " n"]  # int32  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def n(self) -> int:
        """The number of clients."""
        return len(self.start)

    def of(self, i: SupportsIndex) -> Int[np.ndarray, " count"]:
        """The indices of client i's examples."""
        i = operator.index(i)
        if not 0 <= i < self.n:
            raise IndexError(f"i must be a client, 0 to {self.n - 1}; got {i}: partition.of(0)")
        return self.order[self.start[i] : self.start[i] + self.count[i]]

    def owner(self) -> Int[np.ndarray, " N"]:
        """The client that owns each position of `order`, `[N]`."""
        return np.repeat(np.arange(self.n, dtype=np.int32), self.count)

    def skew(self, labels: ArrayLike | None = None) -> dict[str, Any]:
        """What this partition came to: report it beside every result.

        Args:
            labels: `[N]`, the label of every example; without it, sizes only.

        Returns:
            `n`; `sizes` `[n]`; `cv`, their standard deviation over their mean; with labels also
            `histogram` `[n, classes]`, `effective` `[n]`, a client's effective number of classes
            (e to the entropy of its labels), and `effective_classes`, e to their mean entropy.
        """
        sizes = np.asarray(self.count)
        facts: dict[str, Any] = {"n": self.n, "sizes": sizes, "cv": sizes.std() / sizes.mean()}
        if labels is None:
            return facts
        y = _integers(labels)
        if y.min(initial=0) < 0:
            raise ValueError(
                f"labels must be 0, 1, ...; got {y.min()}: np.unique(y, return_inverse=True)[1]"
            )
        classes = _head(y, self.n)
        cell = self.owner() * np.int64(classes) + y[self.order]
        table = np.bincount(cell, minlength=self.n * classes).reshape(self.n, classes)
        p = table / np.maximum(sizes, 1)[:, None]
        entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
        mean = float(np.exp(entropy.mean()))
        return facts | {
            "histogram": table,
            "effective": np.exp(entropy),
            "effective_classes": mean,
        }

    def check(self, size: int, minimum: Count = 1) -> "Partition":
        """This partition, if it is one of `size` examples.

        Raises:
            ValueError: an index out of range or owned twice, or a client with less than `minimum`.
        """
        bad = self.order[(self.order < 0) | (self.order >= size)]
        if len(bad):
            raise ValueError(
                f"order must hold indices of {size} examples; got {bad[0]}: partition the same "
                "data, iid(len(y), n)"
            )
        used = np.bincount(self.order, minlength=size)
        if used.max(initial=0) > 1:
            raise ValueError(
                f"example {used.argmax()} is owned {used.max()} times, expected once: "
                "np.unique(order) has no repetitions"
            )
        ends = np.cumsum(self.count)
        if self.count.sum() != len(self.order) or not np.array_equal(self.start, ends - self.count):
            raise ValueError(
                "start must be cumsum(count) - count, and count sum to len(order): "
                "natural(owner)[0] makes all three of the owner of every example"
            )
        if self.count.min(initial=minimum) < minimum:
            i = int(self.count.argmin())
            raise ValueError(
                f"client {i} has {self.count[i]} examples, expected at least {minimum}: partition "
                f"with minimum={minimum}, or leave such clients out, partition.having({minimum})[0]"
            )
        return self

    def having(self, minimum: int = 1) -> tuple["Partition", Int[np.ndarray, " k"]]:
        """The clients with at least `minimum` examples, and which they were.

        A part to test with may have nothing of some clients, and `Clients.make` takes none such.

        Example:
            >>> partition = data.Partition(*np.array([[0, 1], [0, 2], [2, 0]], np.int32))
            >>> some, clients = partition.having(1)
            >>> some.n, clients.tolist()
            (1, [0])
        """
        keep = self.count >= minimum
        order, count = self.order[np.repeat(keep, self.count)], self.count[keep]
        start = (np.cumsum(count) - count).astype(np.int32)
        return Partition(order, start, count), np.flatnonzero(keep)


# What every partitioner shares ---------------------------------------------------------------


def _integers(labels: ArrayLike) -> Int[np.ndarray, " N"]:
    y = np.asarray(labels)
    if y.ndim != 1 or y.dtype.kind not in "bui":
        raise ValueError(
            f"labels must be integers [N]; got {y.dtype} of shape {y.shape}: for regression, "
            "partition by bins, np.digitize(y, np.quantile(y, [.2, .4, .6, .8]))"
        )
    return y.astype(np.int64)


def _head(y: Int[np.ndarray, "*N"], n: int = 1) -> int:
    """The largest label plus one: columns of tables of `n` rows, outputs of a model.

    Raises:
        ValueError: it is far beyond the number of different labels, or of what fits in memory.
    """
    head = int(y.max(initial=0)) + 1
    if head > 10_000:
        distinct = len(np.unique(y))
        if head > 10 * distinct or n * head > 2**28:
            raise ValueError(
                f"labels are {distinct} different ones up to {head - 1}, which would take "
                f"{head} classes: y = np.unique(y, return_inverse=True)[1]; classes={head} where "
                "there are so many, and regression=True where y are targets"
            )
    return head


def _dense(labels: ArrayLike) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " C"]]:
    """Labels renumbered without gaps, and the size of each class."""
    _, y, sizes = np.unique(_integers(labels), return_inverse=True, return_counts=True)
    return y, sizes


def _unlabelled(size: ArrayLike | Count) -> Int[np.ndarray, " N"]:
    """One class for everything, from a number of examples or from their labels."""
    array = np.asarray(size)
    return np.zeros(whole("size", size) if array.ndim == 0 else len(array), np.int64)


def _check(n: Count, size: int, minimum: Count) -> tuple[int, int]:
    n, minimum = whole("n", n), whole("minimum", minimum)
    if n < 1:
        raise ValueError(f"n must be at least 1 client; got {n}: n=10")
    if minimum < 0:
        raise ValueError(f"minimum must be 0 or more examples per client; got {minimum}: minimum=1")
    if n * minimum > size:
        fewer, less = size // minimum, size // n
        fixes = [f"n={fewer} clients or fewer"] if fewer else []
        fixes += [f"minimum={less}"] if less else []
        raise ValueError(
            f"minimum={minimum} for n={n} clients needs {n * minimum} examples, there are {size}: "
            f"use {', or '.join(fixes) or f'n={max(size, 1)}, minimum=1'}"
        )
    return n, minimum


def _positive(name: str, value: Number) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be above 0 (inf for equal shares); got {value}: {name}=0.5")


def _log_dirichlet(
    alpha: Number | Float[np.ndarray, " k"], shape: tuple[int, ...], rng: np.random.Generator
) -> Float[np.ndarray, "*shape"]:
    """Logarithms of Dirichlet weights, up to a constant.

    G(a) = G(a + 1) U^(1/a), in logarithms: weights themselves all underflow to 0 at a = 1e-3.
    """
    a = np.clip(alpha, 1e-300, 1e300)
    return np.log(rng.standard_gamma(np.broadcast_to(a, shape) + 1)) - (
        rng.standard_exponential(shape) / a
    )


def _softmax(logits: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    with np.errstate(under="ignore"):
        p = np.exp(logits - logits.max())
        return p / p.sum()


def _cut(p: Float[np.ndarray, " n"], size: int) -> Int[np.ndarray, " n"]:
    """Counts that sum to `size`: cut at floor(size cumsum(p)), as the published code does."""
    edges = np.minimum(np.floor(np.cumsum(p) * size).astype(np.int64), size)
    edges[-1] = size
    return np.diff(edges, prepend=0)


def _mend(table: Int[np.ndarray, "n C"], minimum: Count) -> Int[np.ndarray, "n C"]:
    """The table with every row sum at least `minimum`, moving as few examples as possible.

    The largest clients give, down to a common level; a receiver takes classes it has already, else
    the giver's most frequent one, so that the skew survives.
    """
    size = table.sum(1)
    need = np.maximum(minimum - size, 0)
    total = need.sum()
    if total == 0:
        return table
    # The least level with sum(max(size - level, 0)) <= total; it is at least `minimum`.
    ranked = np.sort(size)[::-1]
    level = (-((total - np.cumsum(ranked)) // np.arange(1, len(size) + 1))).max()
    give = np.maximum(size - level, 0)
    give[np.flatnonzero(size >= level)[: total - give.sum()]] += 1
    table = table.copy()
    for i in np.flatnonzero(need):
        while need[i]:  # each pass uses up a need, a giver or a cell
            own = np.flatnonzero(table[i])
            cells = table[:, own] * (give > 0)[:, None]
            if cells.any():
                j, k = np.unravel_index(cells.argmax(), cells.shape)
                k = own[k]
            else:
                j = give.argmax()
                k = table[j].argmax()
            m = min(need[i], give[j], table[j, k])
            table[j, k] -= m
            table[i, k] += m
            give[j] -= m
            need[i] -= m
    return table


def _grouped(owner: Int[np.ndarray, " N"], n: Count) -> Partition:
    count = np.bincount(owner, minlength=n)
    order = np.argsort(owner, kind="stable")
    start = np.cumsum(count) - count
    return Partition(order.astype(np.int32), start.astype(np.int32), count.astype(np.int32))


def _deal(
    y: Int[np.ndarray, " N"],
    table: Int[np.ndarray, "n C"],
    minimum: Count,
    rng: np.random.Generator,
) -> Partition:
    """Random examples of every class to the clients, as many as the mended table says."""
    n, classes = table.shape
    table = _mend(table, minimum)
    by_class = np.lexsort((rng.permutation(len(y)), y))
    owner = np.empty(len(y), np.int64)
    owner[by_class] = np.repeat(np.tile(np.arange(n), classes), table.T.ravel())
    return _grouped(owner, n)


# Partitioners --------------------------------------------------------------------------------


def iid(size: ArrayLike | Count, n: Count, *, seed: Seed = 0, minimum: Count = 1) -> Partition:
    """Random parts of equal size (the first `N mod n` clients have one more).

    Args:
        size: number of examples, or their labels (only the length is used).
        n: number of clients.
        seed: a number or a NumPy generator.
        minimum: the least number of examples per client.

    Raises:
        ValueError: there are fewer than `n * minimum` examples.

    Example:
        >>> data.iid(10, n=3).count.tolist()
        [4, 3, 3]
    """
    y = _unlabelled(size)
    n, minimum = _check(n, len(y), minimum)
    table = len(y) // n + (np.arange(n) < len(y) % n)
    return _deal(y, table[:, None], minimum, np.random.default_rng(seed))


def dirichlet(
    labels: ArrayLike,
    n: Count,
    alpha: Number,
    *,
    variant: str = "class",
    groups: Count | None = None,
    seed: Seed = 0,
    minimum: Count = 1,
) -> Partition:
    """Label skew by Dirichlet weights; the smaller `alpha`, the more skewed.

    The variants published under this one name differ: with 50 000 examples, 10 classes, n = 20 and
    alpha = 0.1 the sizes' coefficient of variation is about 0.6, 0.8, 0 and 0.8.

    - `"class"`: the examples of each class go to the clients by weights Dir(alpha, ..., alpha);
      a client that holds N/n examples or more gets nothing of later classes.
    - `"class_uncapped"`: the same without that cap.
    - `"client"`: equal sizes; each client draws its examples from its own class weights
      Dir(alpha C p), p the classes' shares of the data, without replacement, renormalised over the
      classes that are left. The last clients get what the others left over.
    - `"fedem"`: classes are put into `groups` random groups; the examples of each group go to the
      clients by a multinomial draw with weights Dir(alpha, ..., alpha).

    Args:
        labels: `[N]`, integers.
        n: number of clients.
        alpha: concentration, above 0; `inf` gives every client the same mixture.
        variant: one of the four above.
        groups: for `"fedem"`, number of groups of classes (default: one per class).
        seed: a number or a NumPy generator.
        minimum: the least number of examples per client.

    Raises:
        ValueError: there are fewer than `n * minimum` examples, or an argument is out of range.

    Source: Li, Diao, Chen, He, ICDE 2022 ("class", NIID-Bench's code was read); Zeng et al., JMLR
        2023 ("class_uncapped", FedLab's code was read); Hsu, Qi, Brown, "Measuring the Effects of
        Non-Identical Data Distribution for Federated Visual Classification", arXiv 2019, arXiv
        1909.06335 ("client"); Marfoq, Neglia, Bellet, Kameni, Vidal, NeurIPS 2021, arXiv 2108.10252
        ("fedem", its code was read).

    Deviations: the published codes draw again until every client has its minimum, which may never
        happen; here the largest clients give the missing examples. Hsu et al. write Dir(alpha p):
        their alpha is C times ours, which means the same as in the other variants. Sizes of
        "client" differ by one where n does not divide N, so that no example is lost.

    Example:
        >>> y = data.load("digits").train["y"]
        >>> partition = data.dirichlet(y, n=20, alpha=0.1, seed=0)
        >>> partition.n, int(partition.count.sum()) == len(y)
        (20, True)
    """
    y, sizes = _dense(labels)
    n, minimum = _check(n, len(y), minimum)
    _positive("alpha", alpha)
    rng = np.random.default_rng(seed)
    if variant not in _VARIANTS:
        raise ValueError(
            f'variant must be one of {", ".join(_VARIANTS)}; got {variant!r}: variant="class"'
        )
    if groups is not None and variant != "fedem":
        raise ValueError(f'groups needs variant="fedem"; got {variant!r}: leave groups= out')
    if variant == "fedem":
        groups = len(sizes) if groups is None else whole("groups", groups)
        if not 1 <= groups <= len(sizes):
            raise ValueError(
                f"groups must be 1 to {len(sizes)} classes; got {groups}: groups={len(sizes)}"
            )
        y = (rng.permutation(len(sizes)) % groups)[y]
        sizes = np.bincount(y, minlength=groups)
    return _deal(y, _VARIANTS[variant](sizes, n, alpha, rng), minimum, rng)


def _by_class(
    sizes: Int[np.ndarray, " C"],
    n: Count,
    alpha: Number,
    rng: np.random.Generator,
    cap: float = 1.0,
) -> Int[np.ndarray, "n C"]:
    table, held = np.zeros((n, len(sizes)), np.int64), np.zeros(n, np.int64)
    for k, size in enumerate(sizes.tolist()):
        logits = _log_dirichlet(alpha, (n,), rng)
        # Some client is below the cap as long as an example is left.
        free = np.flatnonzero(held < cap * sizes.sum() / n)
        table[free, k] = _cut(_softmax(logits[free]), size)
        held += table[:, k]
    return table


def _by_class_uncapped(
    sizes: Int[np.ndarray, " C"], n: Count, alpha: Number, rng: np.random.Generator
) -> Int[np.ndarray, "n C"]:
    return _by_class(sizes, n, alpha, rng, cap=math.inf)


def _by_client(
    sizes: Int[np.ndarray, " C"], n: Count, alpha: Number, rng: np.random.Generator
) -> Int[np.ndarray, "n C"]:
    total, classes = int(sizes.sum()), len(sizes)
    share = sizes / total
    logits = _log_dirichlet(alpha * classes * share, (n, classes), rng)
    table = np.zeros((n, classes), np.int64)
    left = sizes.copy()
    for i in range(n):
        want = total // n + (i < total % n)
        while want:  # a pass that falls short has used up a class
            free = np.flatnonzero(left)
            drawn = np.minimum(rng.multinomial(want, _softmax(logits[i, free])), left[free])
            table[i, free] += drawn
            left[free] -= drawn
            want -= drawn.sum()
    return table


def _by_group(
    sizes: Int[np.ndarray, " C"], n: Count, alpha: Number, rng: np.random.Generator
) -> Int[np.ndarray, "n C"]:
    p = [_softmax(logits) for logits in _log_dirichlet(alpha, (len(sizes), n), rng)]
    return rng.multinomial(sizes, np.stack(p)).T.astype(np.int64)


_VARIANTS: dict[str, Callable[..., Int[np.ndarray, "n C"]]] = {
    "class": _by_class,
    "class_uncapped": _by_class_uncapped,
    "client": _by_client,
    "fedem": _by_group,
}


def shards(
    labels: ArrayLike, n: Count, per_client: Count = 2, *, seed: Seed = 0, minimum: Count = 1
) -> Partition:
    """The pathological split: sort by label, cut into equal shards, deal out `per_client` each.

    Args:
        labels: `[N]`, integers.
        n: number of clients.
        per_client: shards per client; the fewer, the fewer labels it sees.
        seed: a number or a NumPy generator.
        minimum: the least number of examples per client.

    Raises:
        ValueError: there are fewer than `n * minimum` examples, or `per_client` is below 1.

    Source: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of
        Deep Networks from Decentralized Data", AISTATS 2017, arXiv 1602.05629.

    Example:
        >>> y = np.repeat([0, 1, 2, 3], 6)
        >>> data.shards(y, n=4, per_client=1).skew(y)["histogram"].max(1).tolist()
        [6, 6, 6, 6]
    """
    y, sizes = _dense(labels)
    n, minimum = _check(n, len(y), minimum)
    per_client = whole("per_client", per_client)
    if per_client < 1:
        raise ValueError(f"per_client must be at least 1 shard; got {per_client}: per_client=2")
    rng = np.random.default_rng(seed)
    shard = np.arange(len(y)) * (n * per_client) // max(len(y), 1)  # of each place in sorted order
    owner = (rng.permutation(n * per_client) % n)[shard]
    table = np.zeros((n, len(sizes)), np.int64)
    np.add.at(table, (owner, np.sort(y)), 1)
    return _deal(y, table, minimum, rng)


def labels_per_client(
    labels: ArrayLike,
    n: Count,
    k: Count,
    *,
    alpha: Number = math.inf,
    seed: Seed = 0,
    minimum: Count = 1,
) -> Partition:
    """Each client holds `k` labels; the examples of a label are shared among its holders.

    Each client takes k of the labels with the fewest holders so far, at random among equals: the
    numbers of holders differ by at most one, and every label has one.

    Args:
        labels: `[N]`, integers.
        n: number of clients.
        k: labels per client, 1 to the number of classes.
        alpha: concentration of the Dirichlet weights of a label's holders; `inf`: equal shares.
        seed: a number or a NumPy generator.
        minimum: the least number of examples per client.

    Raises:
        ValueError: `n * k` is less than the number of classes, or `n * minimum` exceeds N.

    Source: Li, Diao, Chen, He, ICDE 2022 (equal shares: "#C = k" of NIID-Bench); Dirichlet weights:
        the extended Dirichlet split ("exdir") of PFLlib.

    Deviations: holders are balanced, where the sources draw labels independently. A client below
        its minimum is filled up with labels it has, and with another one only if those run out.

    Example:
        >>> y = np.repeat(np.arange(4), 10)
        >>> (data.labels_per_client(y, n=4, k=2).skew(y)["histogram"] > 0).sum(1).tolist()
        [2, 2, 2, 2]
    """
    y, sizes = _dense(labels)
    classes = len(sizes)
    n, minimum = _check(n, len(y), minimum)
    _positive("alpha", alpha)
    k = whole("k", k)
    if not 1 <= k <= classes:
        raise ValueError(
            f"k must be 1 to {classes} labels per client; got {k}: k={min(2, classes)}"
        )
    if n * k < classes:
        raise ValueError(
            f"{n} clients with k={k} labels cannot hold {classes} classes: "
            f"use k={-(-classes // n)} or more, or n={-(-classes // k)} clients or more"
        )
    rng = np.random.default_rng(seed)
    holds = np.zeros((n, classes), bool)
    for i in range(n):
        holds[i, np.lexsort((rng.random(classes), holds.sum(0)))[:k]] = True
    table = np.zeros((n, classes), np.int64)
    for c, size in enumerate(sizes.tolist()):
        holders = np.flatnonzero(holds[:, c])
        table[holders, c] = _cut(_softmax(_log_dirichlet(alpha, holders.shape, rng)), size)
    return _deal(y, table, minimum, rng)


def quantity(
    size: ArrayLike | Count,
    n: Count,
    *,
    beta: Number | None = None,
    sigma: Number | None = None,
    seed: Seed = 0,
    minimum: Count = 1,
) -> Partition:
    """Random parts of unequal size: weights Dir(beta, ..., beta), or lognormal with width sigma.

    Args:
        size: number of examples, or their labels (only the length is used).
        n: number of clients.
        beta: concentration, above 0; the smaller, the more unequal.
        sigma: standard deviation of the logarithm of the sizes, 0 or more. Give one of the two.
        seed: a number or a NumPy generator.
        minimum: the least number of examples per client.

    Raises:
        ValueError: both or none of `beta` and `sigma`, or fewer than `n * minimum` examples.

    Source: Li, Diao, Chen, He, ICDE 2022 (beta, in NIID-Bench).

    Example:
        >>> sizes = data.quantity(1000, n=5, sigma=1.0).count
        >>> int(sizes.sum()), int(sizes.min()) >= 1
        (1000, True)
    """
    y = _unlabelled(size)
    n, minimum = _check(n, len(y), minimum)
    rng = np.random.default_rng(seed)
    if (beta is None) == (sigma is None):
        raise ValueError(
            f"give beta or sigma, not both or none; got beta={beta}, sigma={sigma}: sigma=1.0"
        )
    if beta is not None:
        _positive("beta", beta)
        logits = _log_dirichlet(beta, (n,), rng)
    else:
        if sigma is None or not 0 <= sigma < math.inf:
            raise ValueError(f"sigma must be 0 or more, and finite; got {sigma}: sigma=1.0")
        logits = sigma * rng.standard_normal(n)
    return _deal(y, _cut(_softmax(logits), len(y))[:, None], minimum, rng)


def natural(ids: ArrayLike) -> tuple[Partition, Shaped[np.ndarray, " n"]]:
    """One client per distinct id: writers, users, hospitals.

    Args:
        ids: `[N]`, the client of every example: numbers or strings.

    Returns:
        The partition, and the clients' names `[n]`, sorted: client i is `names[i]`.

    Raises:
        ValueError: `ids` is not one column, or some are missing.

    Example:
        >>> partition, names = data.natural(["bob", "anna", "bob"])
        >>> names.tolist(), partition.of(1).tolist()
        (['anna', 'bob'], [0, 2])
    """
    array = np.asarray(ids)
    if array.ndim != 1:
        raise ValueError(f"ids must be one column [N]; got shape {array.shape}: ids.ravel()")
    if array.dtype == object or isinstance(ids, list | tuple):
        array = _alike([*ids] if isinstance(ids, list | tuple) else array.tolist())  # as they were
    elif (array != array).any():
        raise _lost(array != array)
    names, owner = np.unique(array, return_inverse=True)
    return _grouped(owner, len(names)), names


def _lost(missing: Shaped[np.ndarray, " N"]) -> ValueError:
    return ValueError(
        f"{missing.sum()} ids are missing (first: example {missing.argmax()}): "
        "drop those examples, or give them an id"
    )


def _alike(ids: list) -> Shaped[np.ndarray, " N"]:
    """Ids as an array, if none is missing and all are texts or all are numbers.

    NumPy makes 1 and "1" the same text, and integers beyond 64 bits the same float.
    """
    none = ("NoneType", "NAType", "NaTType")  # the last two are of pandas
    missing = np.array([type(v).__name__ in none or v != v for v in ids], bool)
    if missing.any():
        raise _lost(missing)
    kinds = {str if isinstance(v, str | bytes) else type(v): v for v in ids}
    if str in kinds and len(kinds) > 1:
        a, b = kinds.pop(str), kinds.popitem()[1]
        raise ValueError(
            f"ids must be all texts or all numbers; got {a!r} and {b!r}: [str(i) for i in ids]"
        )
    array = np.array(ids)
    whole = all(issubclass(kind, int | np.integer) for kind in kinds)
    return np.array(ids, object) if whole and array.dtype.kind == "f" and ids else array


def split(
    partition: Partition, test: Number = 0.2, *, seed: Seed = 0
) -> tuple[Partition, Partition]:
    """Each client's examples in two: the rest, and a share for its own test.

    Args:
        partition: who owns what.
        test: the share, 0 to below 1, rounded for each client; it keeps at least one example.
        seed: a number or a NumPy generator.

    Returns:
        Two partitions of the same data (each over some of the examples) with the same clients.

    Example:
        >>> rest, held = data.split(data.iid(20, n=4), test=0.2)
        >>> rest.count.tolist(), held.count.tolist()
        ([4, 4, 4, 4], [1, 1, 1, 1])
    """
    owner = partition.owner()
    which = _thirds(owner, 0.0, test, np.random.default_rng(seed))
    parts = []
    for part in (0, 2):
        sub = _grouped(owner[which == part], partition.n)
        parts.append(sub._replace(order=partition.order[which == part][sub.order]))
    return parts[0], parts[1]


def _thirds(
    group: Int[np.ndarray, " N"], valid: Number, test: Number, rng: np.random.Generator | None
) -> Int[np.ndarray, " N"]:
    """0 (train), 1 (valid) or 2 (test) for every example, the same shares in every group.

    Without a generator the first examples of a group train and its last ones test.
    """
    if not (valid >= 0 and test >= 0 and valid + test < 1):
        raise ValueError(
            f"valid and test must be shares, below 1 together; got {valid}, {test}: "
            "valid=0.15, test=0.15"
        )
    size = np.bincount(group)
    n_test = np.clip(np.floor(size * test + 0.5).astype(np.int64), 0, np.maximum(size - 1, 0))
    n_valid = np.floor(size * valid + 0.5).astype(np.int64)
    n_valid = np.clip(n_valid, 0, np.maximum(size - 1 - n_test, 0))
    key = np.arange(len(group)) if rng is None else rng.permutation(len(group))
    order = np.lexsort((key, group))
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(np.cumsum(size) - size, size)
    from_end = size[group] - rank
    is_test = from_end <= n_test[group]
    return np.where(is_test, 2, (from_end <= (n_test + n_valid)[group]).astype(np.int64))
