"""Pictures for papers: learning curves, graphs, partitions. Each function returns its axes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped
from numpy.typing import ArrayLike

from jaxfl import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind tell apart; their yellow is too light for lines.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#8C6D31", "#999999"),
)
_MARKERS = "osD^vPX*<>p"
_TICKS = (0, 20, 50, 80, 90, 95, 98, 99, 99.5, 99.8)
_STYLE: Any = {
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.02,
}
_AGAINST = {
    "rounds": "communication rounds",
    "megabytes": "sent and received (MB)",
    "seconds": "simulated time (s)",
}


def learning_curves(
    comparison: Any,
    against: Sequence[str] = ("rounds", "megabytes", "seconds"),
    *,
    scale: str = "error",
    width: float = 5.5,
    axes: Any = None,
) -> "list[Axes]":
    """Test scores against costs, at the chosen learning rates: means and 95% t bands over seeds.

    Accuracies are drawn on a logarithmic scale of the error, which keeps the best ones apart. Lines
    of server methods are solid, of decentralised ones dashed.

    Args:
        comparison: of `jaxfl.compare`.
        against: any of "rounds", "megabytes", "seconds", "grads"; a panel each, all but rounds
            logarithmic.
        scale: of accuracies: "error" or "linear".
        width: of the figure in inches; below 4.5, one column of a two-column page, panels are
            stacked.
        axes: matplotlib axes to draw on, one per panel; a new figure by default.
    """
    import matplotlib as mpl
    from matplotlib import pyplot

    best, metric = comparison.best(), comparison.metric
    factor = 100 if metric == "accuracy" else 1
    if scale not in ("error", "linear"):
        raise ValueError(f'scale must be "error" or "linear", got {scale!r}')
    with mpl.rc_context(_STYLE):
        if axes is None:
            tall = width < 4.5
            shape = (len(against), 1) if tall else (1, len(against))
            height = 1.75 * len(against) + 0.5 if tall else 2.45
            figure, axes = pyplot.subplots(
                *shape, figsize=(width, height), sharey=True, squeeze=False, layout="constrained"
            )
        axes = list(np.ravel(axes))
        labels = [str(a) for a in best["algorithm"].values]
        for i, label in enumerate(labels):
            one = best.isel(algorithm=i)
            mean, half = metrics.t_interval(factor * one["score"].values.T.astype(float))
            half = np.nan_to_num(half)
            at = one["evaluation"].values.astype(int)
            style = _style(i, "@" in label)
            label += "†" if one["personal"] else ""
            for ax, name in zip(axes, against, strict=True):
                x = at if name == "rounds" else one[name].values.mean(0)[at - 1]
                ax.plot(x, mean, label=label, **style)
                ax.fill_between(
                    x, mean - half, mean + half, color=style["color"], alpha=0.13, linewidth=0
                )
        for ax, name in zip(axes, against, strict=True):
            ax.set_xlabel(_AGAINST.get(name, "gradient evaluations"))
            if name == "rounds":
                ax.set_xlim(left=0)
            else:
                _logarithmic(ax)
            ax.grid(True, color="0.9", linewidth=0.5)
            ax.set_axisbelow(True)
            _vertical(ax, factor * best["score"].values, metric == "accuracy" and scale == "error")
        words = "test accuracy (%)" if metric == "accuracy" else "test R²"
        rows = {ax.get_subplotspec().rowspan.start for ax in axes if ax.get_subplotspec()}
        for ax in axes if len(rows) > 1 else axes[:1]:
            ax.set_ylabel(words)
        handles, names = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=_columns(names, width),
            frameon=False,
            handlelength=2.6,
            columnspacing=1.2,
        )
        axes[0].figure.canvas.draw()  # with this style, also if it is saved outside of it
    return axes


def _style(i, dashed):
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": (0, (3.5, 1.2)) if dashed else "-",
        "marker": _MARKERS[i % len(_MARKERS)],
        "markersize": 3.2,
        "markeredgewidth": 0,
        "linewidth": 1.0,
    }


def _columns(names, width):
    """As many columns of the legend as fit."""
    return max(1, min(len(names), int(width / (0.46 + 0.05 * max(map(len, names))))))


def _logarithmic(ax):
    """A logarithmic axis with plain numbers, some in every decade if there are few decades."""
    from matplotlib import ticker

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    decades = np.log10(high / low)
    some = (1, 2, 5) if decades < 1.4 else (1, 3) if decades < 2.6 else (1,)
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=some))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())


def _vertical(ax, scores, error):
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return
    low, high = finite.min(), finite.max()
    if error:
        top = min(99.9, 100 - 0.6 * max(100 - high, 0.1))  # 100% would be infinitely high
        bottom = max(0.0, 100 - 1.08 * (100 - low))
        forward = lambda a: -np.log10(np.maximum(100 - a, 1e-3))
        ax.set_yscale("function", functions=(forward, lambda b: 100 - 10.0**-b))
        ticks = [t for t in _TICKS if bottom <= t <= top]
        ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
        ax.set_yticks([], minor=True)
        ax.set_ylim(bottom, top)
    elif high <= 1.01:  # R2: one run that goes wrong must not hide the others
        ax.set_ylim(max(-0.5, low - 0.05), min(1.02, high + 0.05))


def graph(g: Any, w: ArrayLike | None = None, *, ax: Any = None, title: str = "") -> "Axes":
    """A drawing of a graph, with its spectral gap and mixing time.

    Args:
        g: a networkx graph (of `jaxfl.networks.graphs.make`), or a schedule `[tau, n]` of peers.
        w: `[n, n]` mixing weights, which set the widths of the edges; Metropolis-Hastings by
            default (column-stochastic where the graph is directed). Of a schedule, one matrix per
            phase `[tau, n, n]`.
        ax: matplotlib axes; new ones by default.
        title: in front of the numbers.
    """
    import matplotlib as mpl
    import networkx as nx
    from matplotlib import pyplot

    g, mixing, facts = describe(g, w)
    with mpl.rc_context(_STYLE):
        if ax is None:
            _, ax = pyplot.subplots(figsize=(3.3, 3.4), layout="constrained")
        n = len(g)
        positions: Any = nx.get_node_attributes(g, "pos") or _positions(g)
        heaviest = max((mixing[j, i] for i, j in g.edges if i != j), default=1.0) or 1.0
        edges = [(i, j) for i, j in g.edges if i != j]
        widths = [0.4 + 1.2 * float(mixing[j, i] / heaviest) for i, j in edges]
        size = float(np.clip(2600 / n, 14, 170))
        arrows = {"arrowsize": 6, "connectionstyle": "arc3,rad=0.08"} if g.is_directed() else {}
        nx.draw_networkx_edges(
            g, positions, edges, width=widths, edge_color="0.55", node_size=size, ax=ax, **arrows
        )
        nodes = nx.draw_networkx_nodes(
            g, positions, node_size=size, node_color=COLOURS[0], linewidths=0, ax=ax
        )
        nodes.set_zorder(3)
        if n <= 40:
            text = nx.draw_networkx_labels(g, positions, font_size=6, font_color="white", ax=ax)
            for label in text.values():
                label.set_zorder(4)
        time = facts["mixing_time"]
        numbers = f"gap {facts['gap']:.3g}, mixing time " + (
            f"{time:.0f} rounds" if np.isfinite(time) else "infinite"
        )
        ax.set_title(f"{title}\n{numbers}" if title else numbers, fontsize=8)
        ax.set_aspect("equal")
        ax.margins(0.08)
        ax.set_axis_off()
    return ax


def describe(g: Any, w: ArrayLike | None = None) -> tuple[Any, Any, dict[str, float]]:
    """A graph or schedule as a networkx graph, its (mean) mixing matrix, and how fast it mixes.

    Returns:
        The graph, `[n, n]` weights, and `nodes`, `edges`, `gap`, `mixing_time` (rounds; of a
        schedule both are per round of a whole period).
    """
    import networkx as nx

    from jaxfl.networks import spectra, weights

    if isinstance(g, np.ndarray):
        ws = np.asarray(weights.peers(g) if w is None else w, float)
        directed = any((step != step.T).any() for step in ws)
        union = nx.from_numpy_array(
            (ws.sum(0).T > 0) & ~np.eye(g.shape[1], dtype=bool),
            create_using=nx.DiGraph if directed else nx.Graph,
        )
        product = spectra.period_contraction(ws)
        rate = product ** (1 / len(ws))
        rounds = len(ws) if rate < 1e-12 else _rounds(rate)
        facts = {"gap": 1 - rate, "mixing_time": float(rounds)}
        g, w = union, ws.mean(0)
    else:
        if w is None:
            w = weights.make("column_stochastic" if g.is_directed() else "metropolis", g)
        w = np.asarray(w, float)
        facts = {"gap": spectra.gap(w), "mixing_time": spectra.mixing_time(w)}
    edges = sum(i != j for i, j in g.edges)
    return g, w, {"nodes": float(len(g)), "edges": float(edges), **facts}


def _rounds(rate):
    return np.inf if rate > 1 - 1e-12 else max(1.0, np.ceil(np.log(1e-2) / (2 * np.log(rate))))


def _positions(g):
    """Lattices and trees as such, everything else on a circle."""
    n, degrees = len(g), {d for _, d in g.degree()}
    edges = g.number_of_edges()
    if not g.is_directed() and n > 4:
        if edges == n - 1 and degrees == {1, 2}:
            bend = np.pi * (np.arange(n) / (n - 1) - 0.5)
            return {i: (np.sin(bend[i]), 0.5 * np.cos(bend[i])) for i in g}
        if edges == n - 1 and max(degrees) == n - 1:
            hub = max(g.degree, key=lambda pair: pair[1])[0]
            return {**_circle([i for i in g if i != hub]), hub: (0.0, 0.0)}
        if edges == n - 1:
            return _tree(n)
        if cols := _lattice(g):
            return {i: (i % cols, -(i // cols)) for i in g}
    return _circle(range(n))


def _circle(nodes):
    """Clockwise from the top."""
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(nodes)) / len(nodes)
    return {i: (np.cos(a), np.sin(a)) for i, a in zip(nodes, angles, strict=True)}


def _tree(n):
    """Node i above its children 2i + 1 and 2i + 2."""
    level = np.floor(np.log2(np.arange(n) + 1)).astype(int)
    place = np.arange(n) + 1 - 2**level
    return {i: ((place[i] + 0.5) / 2.0 ** level[i], -0.35 * level[i]) for i in range(n)}


def _lattice(g):
    """The number of columns of a grid that does not wrap around, or 0."""
    n = len(g)
    for cols in range(2, n // 2 + 1):
        if n % cols == 0:
            right = {(i, i + 1) for i in range(n) if (i + 1) % cols}
            down = {(i, i + cols) for i in range(n - cols)}
            if {tuple(sorted(e)) for e in g.edges} == right | down:
                return cols
    return 0


def partition(
    counts: Shaped[np.ndarray, "n classes"], *, ax: Any = None, title: str = ""
) -> "Axes":
    """Who holds what: the area of a dot is the number of a client's examples with a label.

    Args:
        counts: `[n, classes]`, `partition.describe(labels)["histogram"]`.
        ax: matplotlib axes; new ones by default.
        title: above the picture.
    """
    import matplotlib as mpl
    from matplotlib import pyplot

    counts = np.asarray(counts)
    n, classes = counts.shape
    with mpl.rc_context(_STYLE):
        if ax is None:
            width, height = np.clip(0.9 + 0.15 * n, 2.6, 7.0), np.clip(0.7 + 0.17 * classes, 1.6, 6)
            _, ax = pyplot.subplots(figsize=(width, height), layout="constrained")
        box = ax.get_window_extent()
        cell = min(box.width / n, box.height / classes) * 72 / ax.figure.dpi
        client, label = np.nonzero(counts)
        area = counts[client, label] / max(counts.max(), 1) * (0.95 * cell) ** 2
        ax.scatter(client, label, s=area, color=COLOURS[0], linewidths=0)
        ax.set(xlabel="client", ylabel="label", xlim=(-0.7, n - 0.3), ylim=(-0.7, classes - 0.3))
        ax.set_xticks(range(0, n, max(1, -(-n // 20))))
        ax.set_yticks(range(0, classes, max(1, -(-classes // 20))))
        ax.grid(True, color="0.92", linewidth=0.5)
        ax.set_axisbelow(True)
        if title:
            ax.set_title(title, fontsize=8)
    return ax
