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

    Where dots would be too small to see, colours take their place. Bars beside it are totals: the
    examples of each client above, those of each label at the right.

    Args:
        counts: `[n, classes]`, `partition.skew(labels)["histogram"]`.
        ax: matplotlib axes; new ones by default.
        title: above the picture.

    Example:
        >>> y = data.load("iris").train["y"]
        >>> ax = plots.partition(data.shards(y, n=6).skew(y)["histogram"], title="iris")
        >>> ax.get_xlabel(), len(ax.child_axes[0].patches)
        ('client', 6)
    """
    from matplotlib import colors, ticker

    counts = np.asarray(counts)
    n, classes = counts.shape
    width, height = np.clip(1.3 + 0.15 * n, 2.9, 7.0), np.clip(1.3 + 0.17 * classes, 2.2, 6.5)
    with style.panel(ax, height, width) as ax:
        ax.figure.canvas.draw()
        box = ax.get_window_extent()
        tall = min(0.3, 35 / box.height * ax.figure.dpi / 72)  # of the bars, in parts of the axes
        wide = min(0.3, 40 / box.width * ax.figure.dpi / 72)
        above = ax.inset_axes((0, 1.03, 1, tall), sharex=ax)
        right = ax.inset_axes((1.02, 0, wide, 1), sharey=ax)
        box = ax.get_window_extent()
        cell = min(box.width / n / (1 + wide), box.height / classes / (1 + tall))
        cell *= 72 / ax.figure.dpi
        if cell < 4:
            look: dict[str, Any] = {"cmap": "Blues", "origin": "lower", "aspect": "auto"}
            image = ax.imshow(counts.T, norm=colors.PowerNorm(0.5, 0, counts.max()), **look)
            place = ax.inset_axes((1.05 + wide, 0, 0.03, 1))
            ax.figure.colorbar(image, cax=place).set_label("examples")
        else:
            client, label = np.nonzero(counts)
            area = counts[client, label] / max(counts.max(), 1) * (0.95 * cell) ** 2
            ax.scatter(client, label, s=area, color=style.COLOURS[0], linewidths=0)
            ax.set(xlim=(-0.7, n - 0.3), ylim=(-0.7, classes - 0.3))
            style.grid(ax)
        bars: dict[str, Any] = {"color": style.COLOURS[0], "alpha": 0.5, "linewidth": 0}
        above.bar(range(n), counts.sum(1), 0.8, **bars)
        right.barh(range(classes), counts.sum(0), 0.8, **bars)
        above.set_ylabel("examples", size=6)
        right.set_xlabel("examples", size=6)
        for side, axis in ((above, above.yaxis), (right, right.xaxis)):
            other = side.xaxis if axis is side.yaxis else side.yaxis
            other.set_tick_params(length=0, which="both", **{_INNER[other.axis_name]: False})
            axis.set_major_locator(ticker.MaxNLocator(2, integer=True))
            axis.set_tick_params(labelsize=6)
        ax.set(xlabel="client", ylabel="label")
        ax.set_xticks(range(0, n, max(1, -(-n // 20))))
        ax.set_yticks(range(0, classes, max(1, -(-classes // 20))))
        if title:
            above.set_title(title)
        style.thin(ax)
    return ax


_INNER = {"x": "labelbottom", "y": "labelleft"}


def ecdf(results: Any, *, by: str | None = None, ax: Any = None) -> "Axes":
    """How scores on own labels are spread: the share of clients with at most that score.

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
    title, factor, words = "", 100, "test accuracy, own labels, of a client (%)"
    if not (hasattr(results, "data_vars") or hasattr(results, "best")):
        found = [(k, style.look(i, k), np.ravel(v)) for i, (k, v) in enumerate(results.items())]
    else:
        ds = style.results(results)
        name = f"client_{style.metric(ds)}"
        if name not in ds:
            raise ValueError(f"results have no {name!r}, the scores of clients; name another sweep")
        by = style.colour_by(ds, by)
        style.only(ds[name], [by] if by else [], "ecdf")
        if not style.percent(ds, name):
            factor, words = 1, "test R², own labels, of a client"
        title = style.titled(ds, by)
        found = [
            (
                label,
                look,
                one[name].transpose("client", "seed").values[_byzantine(one) :],
            )
            for label, look, one in style.lines(ds, by)
        ]
    own = ax is None
    with style.panel(ax) as ax:
        for label, look, values in found:
            values = factor * np.ravel(values).astype(float)
            if not len(values) or not np.isfinite(values).all():
                ax.plot([], [], label=f"{label} (diverged)", **look | {"marker": ""})
                continue
            ax.ecdf(values, label=label or None, **look | {"marker": ""})
        ax.set(xlabel=words, ylabel="share of clients", ylim=(0, 1))
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
