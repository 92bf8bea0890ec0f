"""Pictures of clients: who holds what, who is served how well."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from jaxfl.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def partition(
    counts: Shaped[np.ndarray, "n classes"], *, ax: Any = None, title: str = ""
) -> "Axes":
    """Who holds what: the area of a dot is the number of a client's examples with a label.

    Where dots would be too small to see, colours take their place.

    Args:
        counts: `[n, classes]`, `partition.describe(labels)["histogram"]`.
        ax: matplotlib axes; new ones by default.
        title: above the picture.

    Example:
        >>> y = data.load("iris").train["y"]
        >>> ax = plots.partition(data.shards(y, n=6).describe(y)["histogram"], title="iris")
        >>> ax.get_title(), ax.get_xlabel()
        ('iris', 'client')
    """
    from matplotlib import colors

    counts = np.asarray(counts)
    n, classes = counts.shape
    width, height = np.clip(0.9 + 0.15 * n, 2.6, 7.0), np.clip(0.7 + 0.17 * classes, 1.6, 6)
    with style.panel(ax, height, width) as ax:
        box = ax.get_window_extent()
        cell = min(box.width / n, box.height / classes) * 72 / ax.figure.dpi
        if cell < 4:
            look: dict[str, Any] = {"cmap": "Blues", "origin": "lower", "aspect": "auto"}
            image = ax.imshow(counts.T, norm=colors.PowerNorm(0.5, 0, counts.max()), **look)
            bar = ax.figure.colorbar(image, ax=ax, pad=0.02, aspect=25)
            bar.set_label("examples")
        else:
            client, label = np.nonzero(counts)
            area = counts[client, label] / max(counts.max(), 1) * (0.95 * cell) ** 2
            ax.scatter(client, label, s=area, color=style.COLOURS[0], linewidths=0)
            ax.set(xlim=(-0.7, n - 0.3), ylim=(-0.7, classes - 0.3))
            style.grid(ax)
        ax.set(xlabel="client", ylabel="label")
        ax.set_xticks(range(0, n, max(1, -(-n // 20))))
        ax.set_yticks(range(0, classes, max(1, -(-classes // 20))))
        if title:
            ax.set_title(title)
        style.thin(ax)
    return ax


def ecdf(results: Any, *, by: str | None = None, ax: Any = None) -> "Axes":
    """How accuracy is spread over clients: the share of clients with at most that accuracy.

    All seeds together. Byzantine clients, the first ones, are left out.

    Args:
        results: of `jaxfl.sweep` or `jaxfl.compare`, or accuracies in [0, 1] by name, each `[n]`
            or `[seeds, n]`.
        by: the dimension of a sweep that gets colours; "algorithm" by default, or the only one.
        ax: matplotlib axes; new ones by default.

    Raises:
        ValueError: more dimensions than can be drawn, with what to select; no accuracies.

    Example:
        >>> scores = {"FedAvg": np.array([0.5, 0.7, 0.9]), "Ditto": np.array([0.8, 0.9, 0.9])}
        >>> ax = plots.ecdf(scores)
        >>> ax.get_ylabel()
        'share of clients'
    """
    title = ""
    if not (hasattr(results, "data_vars") or hasattr(results, "best")):
        found = [(k, style.look(i, k), np.ravel(v)) for i, (k, v) in enumerate(results.items())]
    else:
        ds = style.results(results)
        if "client_accuracy" not in ds:
            raise ValueError("results have no accuracies of clients: they are of a regression")
        by = style.colour_by(ds, by)
        style.only(ds["client_accuracy"], [by] if by else [], "ecdf")
        title = style.titled(ds, by)
        found = [
            (
                label,
                look,
                one["client_accuracy"].transpose("client", "seed").values[_byzantine(one) :],
            )
            for label, look, one in style.lines(ds, by)
        ]
    own = ax is None
    with style.panel(ax) as ax:
        for label, look, values in found:
            values = 100 * np.ravel(values).astype(float)
            if not len(values) or not np.isfinite(values).all():
                ax.plot([], [], label=f"{label} (diverged)", **look | {"marker": ""})
                continue
            ax.ecdf(values, label=label or None, **look | {"marker": ""})
        ax.set(xlabel="test accuracy (%) of a client", ylabel="share of clients", ylim=(0, 1))
        ax.autoscale(axis="x")
        style.grid(ax)
        style.legend(ax, own, title)
    return ax


def _byzantine(ds):
    """How many Byzantine clients these runs had."""
    import json

    if "byzantine" in ds.coords:
        return int(ds["byzantine"])
    return int(json.loads(ds.attrs.get("config", "{}")).get("byzantine", 0))
