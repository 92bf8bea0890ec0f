"""What a federated data set is like: sizes, labels, a table, a picture."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxfl.data.partitioners import Partition


@dataclass(frozen=True, eq=False)
class Description:
    """Sizes and labels of a federated data set; `str` is a table, `plot` a picture.

    Example:
        >>> print(data.describe(data.synthetic(n=4, size=50)))
        data         synthetic
        examples     136 train, 32 valid, 32 test
        classes      10
        clients      4
        per client   34 to 34, median 34, deviation over mean 0
        labels       0 to 44 examples each
        per client   1 to 2.4 labels, effectively
    """

    name: str
    parts: dict[str, int]  # examples of train, valid and test
    clients: int  # 0: it came without
    sizes: Int[np.ndarray, " n"]  # training examples of every client
    classes: int | None  # None: regression
    histogram: Int[np.ndarray, "n classes"] | None  # training examples by client and label
    effective: Float[np.ndarray, " n"] | None  # e to the entropy of a client's labels

    def __str__(self) -> str:
        rows = {"data": self.name}
        if self.parts:
            rows["examples"] = ", ".join(f"{size} {part}" for part, size in self.parts.items())
        if self.classes is not None:
            rows["classes"] = str(self.classes)
        if self.clients:
            s, cv = self.sizes, self.sizes.std() / self.sizes.mean()
            rows["clients"] = str(self.clients)
            spread = f"{s.min()} to {s.max()}, median {np.median(s):g}"
            rows["per client"] = f"{spread}, deviation over mean {cv:.3g}"
        if self.histogram is not None and self.effective is not None:
            total, e = self.histogram.sum(0), self.effective
            rows["labels"] = f"{total.min()} to {total.max()} examples each"
            rows["per client "] = f"{e.min():.2g} to {e.max():.2g} labels, effectively"
        return "\n".join(f"{name.strip():12} {value}" for name, value in rows.items())

    def plot(self, ax: Any = None) -> Any:
        """`jaxfl.plots.partition` of the histogram; its axes.

        Args:
            ax: matplotlib axes; new ones by default.

        Raises:
            ValueError: there are no clients, or no labels.
        """
        if self.histogram is None:
            raise ValueError(
                f"{self.name} has no clients with labels to draw; give describe a partition, "
                'describe(data, dirichlet(data.train["y"], n=20, alpha=0.1))'
            )
        from jaxfl.plots import clients as plots

        return plots.partition(self.histogram, ax=ax, title=self.name)


def describe(data: Any, partition: Partition | None = None) -> Description:
    """Sizes and label distribution of a data set, or of clients.

    Args:
        data: a `Dataset`, or `jaxfl.Clients` with examples `{"x": ..., "y": ...}`.
        partition: of the training examples (default: the natural one, if there is one).

    Example:
        >>> iris = data.load("iris")
        >>> found = data.describe(iris, data.shards(iris.train["y"], n=6, per_client=1))
        >>> found.sizes.tolist()
        [17, 17, 17, 17, 17, 17]
        >>> found.histogram.tolist()
        [[0, 0, 17], [0, 0, 17], [17, 0, 0], [17, 0, 0], [0, 17, 0], [0, 17, 0]]
    """
    if hasattr(data, "loss"):  # Clients
        examples = data.data.arrays
        order, start, count = (np.asarray(a) for a in (data.data.order, data.start, data.count))
        partition = Partition(order, start, count) if partition is None else partition
        y = np.asarray(examples["y"]) if isinstance(examples, dict) and "y" in examples else None
        whole = y is not None and y.ndim == 1 and y.dtype.kind in "iu"
        name, parts = "clients", {"train": int(partition.count.sum())}
        classes = int(y.max()) + 1 if y is not None and whole else None
    else:
        y, name, classes = data.train["y"], data.name, data.classes
        parts = {part: len(getattr(data, part)["y"]) for part in ("train", "valid", "test")}
        partition = data.partitions.get("train") if partition is None else partition
    sizes, histogram, effective = np.zeros(0, np.int64), None, None
    if partition is not None:
        labelled = classes is not None and y is not None and y.ndim == 1
        facts = partition.skew(y if labelled else None)
        sizes = facts["sizes"]
        if labelled and classes is not None:
            table, effective = facts["histogram"], facts["effective"]
            histogram = np.pad(table, ((0, 0), (0, classes - table.shape[1])))
    n = 0 if partition is None else partition.n
    return Description(name, parts, n, sizes, classes, histogram, effective)
