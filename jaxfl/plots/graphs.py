"""Pictures of graphs: who talks to whom, and how fast that mixes."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxfl.networks import facts
from jaxfl.networks.matrices import shifts
from jaxfl.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SEEN, _ARROWS = 20_000, 1000  # edges of a drawing at most, and up to which they have heads
_MANY = 2500  # nodes beyond which no matrix [n, n] is made


def graph(g: Any, w: Any = None, *, ax: Any = None, title: str = "") -> "Axes":
    """A drawing of a graph, with its spectral gap and mixing time.

    Of a large graph a part of the edges is drawn, as many as can be seen.

    Args:
        g: a networkx graph (of `jaxfl.networks.graphs.make`), a schedule `[tau, n]` of peers, a
            mixing or an adjacency matrix `[n, n]` of NumPy or scipy.sparse, or a network (of
            `jaxfl.networks.topology`).
        w: `[n, n]` mixing weights, which set the widths of the edges; Metropolis-Hastings by
            default (column-stochastic where the graph is directed). Of a schedule, one matrix per
            phase `[tau, n, n]`.
        ax: matplotlib axes; new ones by default.
        title: in front of the numbers.

    Example:
        >>> ax = plots.graph(networks.graphs.make("ring", 8), title="ring")
        >>> ax.get_title().startswith("ring")
        True
    """
    import networkx as nx

    ws = facts.phases(g, w)
    mixing: Any = sum(ws[1:], ws[0]) / len(ws)
    known, g = facts.mixing_facts(g, w), facts.union(g, ws)
    with style.panel(ax, 3.4) as ax:
        n = len(g)
        positions: Any = nx.get_node_attributes(g, "pos") or _positions(g)
        edges = [(i, j) for i, j in g.edges if i != j]
        if len(edges) > _SEEN:
            some = np.random.default_rng(0).choice(len(edges), _SEEN, replace=False)
            edges = [edges[k] for k in some]
        ends = np.array(edges, int).reshape(-1, 2).T
        weight = np.asarray(mixing[ends[1], ends[0]], float).ravel()
        widths = 0.4 + 1.2 * weight / (weight.max(initial=0) or 1.0)
        small = min(1.0, _side(ax) / 2.6)
        widths, size = np.multiply(small, widths), float(np.clip(2600 / n, 0.3, 170)) * small**2
        arrows: dict[str, Any] = {}
        if g.is_directed() and len(edges) > _ARROWS:
            arrows = {"arrows": False}
        elif g.is_directed():
            arrows = {"arrowsize": 6 * small, "connectionstyle": "arc3,rad=0.08"}
        nx.draw_networkx_edges(
            g, positions, edges, width=widths, edge_color="0.55", node_size=size, ax=ax, **arrows
        )
        nodes = nx.draw_networkx_nodes(
            g, positions, node_size=size, node_color=style.COLOURS[0], linewidths=0, ax=ax
        )
        nodes.set_zorder(3)
        if size > 60:
            text = nx.draw_networkx_labels(g, positions, font_size=6, font_color="white", ax=ax)
            for label in text.values():
                label.set_zorder(4)
        time = known["mixing_time"]
        numbers = f"gap {known['gap']:.3g}, mixing time " + (
            f"{time:.0f} rounds" if np.isfinite(time) else "infinite"
        )
        ax.set_title(f"{title}\n{numbers}" if title else numbers)
        ax.set_aspect("equal")
        ax.margins(0.08)
        ax.set_axis_off()
    return ax


def _side(ax):
    """Of the square that a drawing gets, in inches."""
    box = ax.get_window_extent()
    return min(box.width, box.height) / ax.figure.dpi


def spectrum(g: Any, w: Any = None, *, ax: Any = None, title: str = "") -> "Axes":
    """The eigenvalues of the mixing weights, and the gap between 1 and the rest.

    Of more than a few thousand nodes the outermost eigenvalues are drawn, or every so many.

    Symmetric weights: the eigenvalues by rank, with 1 - gap = |w - J|_2, the largest modulus but
    for the first. Others: in the complex plane, with the circle of the second largest modulus
    |λ₂|, the rate at which consensus is reached in the end; 1 - |w - J|_2, the gap, which also
    bounds the first rounds, is equal to 1 - |λ₂| for normal matrices and smaller for others. Of a
    schedule the product of one period is shown.

    Args:
        g: as for `graph`.
        w: as for `graph`.
        ax: matplotlib axes; new ones by default.
        title: in front of the numbers.

    Example:
        >>> ax = plots.spectrum(networks.graphs.make("ring", 8))
        >>> ax.get_ylabel()
        'eigenvalue'
    """
    from jaxfl.networks import spectra

    ws = facts.phases(g, w)
    rate, n = spectra.period_contraction(ws), ws[0].shape[0]
    rank, values, symmetric = _spectrum(ws)
    colour: Any = {"color": style.COLOURS[0], "s": 9, "linewidths": 0, "zorder": 3}
    line: Any = {"color": style.COLOURS[1], "linewidth": 0.9}
    with style.panel(ax, 2.6) as ax:
        numbers = f"gap {1 - rate:.3g}" + (f" in {len(ws)} rounds" if len(ws) > 1 else "")
        if symmetric:
            ax.axhline(0, color="0.7", linewidth=0.6)
            ax.axhspan(min(rate, 1), 1, color=style.COLOURS[1], alpha=0.15, linewidth=0)
            for level in (rate, -rate):
                ax.axhline(level, linestyle="--", **line)
            ax.vlines(rank, 0, values, color="0.75", linewidth=min(0.8, 40 / n))
            ax.scatter(rank, values, **colour)
            ax.set(xlabel="rank", ylabel="eigenvalue")
            ax.set_ylim(min(-0.1, 1.12 * values.min(), -1.12 * rate), 1.08)
            ax.xaxis.get_major_locator().set_params(integer=True)
            at: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": 6}
            ax.text(n, rate - 0.03, f"{rate:.3g}", color=style.COLOURS[1], **at)
        else:
            modulus = float(np.sort(abs(values))[-2]) if n > 1 else 0.0
            angle = np.linspace(0, 2 * np.pi, 200)
            ax.plot(np.cos(angle), np.sin(angle), color="0.6", linewidth=0.8)
            ax.plot(modulus * np.cos(angle), modulus * np.sin(angle), linestyle="--", **line)
            ax.scatter(values.real, values.imag, **colour)
            ax.set(xlabel="real part", ylabel="imaginary part", aspect="equal")
            ax.set(xlim=(-1.12, 1.12), ylim=(-1.12, 1.12), xticks=[-1, 0, 1], yticks=[-1, 0, 1])
            numbers += f", |λ₂| {modulus:.3g}"
        style.grid(ax)
        if ax.get_window_extent().width / ax.figure.dpi < 0.06 * len(numbers):
            numbers = numbers.replace(", ", "\n")
        ax.set_title(f"{title}\n{numbers}" if title else numbers)
    return ax


def graph_and_spectrum(
    g: Any,
    w: Any = None,
    *,
    ax: Any = None,
    title: str = "",
    width: float = 3.3,
) -> "list[Axes]":
    """A graph beside the eigenvalues of its mixing weights.

    Args:
        g: as for `graph`.
        w: as for `graph`.
        ax: a list of two matplotlib axes; a new figure by default.
        title: above the graph.
        width: of a new figure in inches.

    Example:
        >>> axes = plots.graph_and_spectrum(networks.graphs.make("ring", 8))
        >>> len(axes)
        2
    """
    import matplotlib as mpl
    from matplotlib import pyplot

    with mpl.rc_context(style.STYLE):
        if ax is None:
            _, ax = pyplot.subplots(1, 2, figsize=(width, 0.58 * width), layout="constrained")
        axes = list(np.ravel(ax))
        graph(g, w, ax=axes[0], title=title)
        spectrum(g, w, ax=axes[1])
        axes[0].set_title(title)  # the spectrum shows the gap
    return axes


def consensus(
    results: Any,
    w: Any = None,
    *,
    by: str | None = None,
    rounds: ArrayLike | None = None,
    ax: Any = None,
) -> "Axes":
    """Consensus distance Ξ_t = (1/n) Σ_i |x_i - mean|² over rounds, and how fast mixing shrinks it.

    The dashed line is Ξ_0 (1 - gap)^(2t), gap = 1 - |w - J|_2, from the first value on. For gossip
    alone, x <- w x with rows and columns of w that sum to 1, no Ξ_t lies above it: w x - J x =
    (w - J)(x - J x), so that a round multiplies √Ξ by at most |w - J|_2, and of a symmetric w the
    slowest direction by just that. Decentralised SGD adds the differences of the local steps in
    every round: its Ξ_t follows no such line but settles at a floor, where steps add what mixing
    takes away.

    Args:
        results: of `jaxfl.sweep` or `jaxfl.compare`, or distances `[T]` or `[seeds, T]`, or
            several of these by name.
        w: mixing weights or a graph as for `graph`, or the gap itself; several by the names or
            coordinates of the lines; without it no rate is drawn.
        by: the dimension of a sweep that gets colours; "algorithm" by default, or the only one.
        rounds: `[T]`, of the distances; 0, 1, 2, ... by default.
        ax: matplotlib axes; new ones by default.

    Raises:
        ValueError: more dimensions than can be drawn, with what to select; no distances.

    Source: Xiao, Boyd, "Fast Linear Iterations for Distributed Averaging", Systems & Control
    Letters 2004, theorem 1.

    Example:
        >>> ax = plots.consensus({"ring": np.array([1.0, 0.5, 0.25])}, {"ring": 0.2})
        >>> ax.get_yscale()
        'log'
    """
    title = ""
    if not (hasattr(results, "data_vars") or hasattr(results, "best")):
        named = results if isinstance(results, Mapping) else {"": results}
        found = [(k, style.look(i, k), np.atleast_2d(v)) for i, (k, v) in enumerate(named.items())]
        length = found[0][2].shape[-1]
        at = np.arange(length) if rounds is None else np.asarray(rounds)
    else:
        ds = style.results(results)
        by, values = style.colour_by(ds, by), style.variable(ds, "consensus")
        style.only(values, [by] if by else [], "consensus")
        at, title = ds["round"].values, style.titled(ds, by)
        found = [
            (label, look, one["consensus"].transpose("seed", "round").values)
            for label, look, one in style.lines(ds, by)
        ]
    found = [(k, look, np.where(v > 0, v, np.nan)) for k, look, v in found]
    found = [(k, look, v) for k, look, v in found if np.isfinite(v).any()]
    if not found:
        raise style.Nothing("results have no consensus distances: no algorithm was decentralised")
    named = w if isinstance(w, Mapping) else {}
    own = ax is None
    with style.panel(ax) as ax:
        firsts = []
        for label, look, values in found:
            look = look | {"marker": look["marker"] if len(at) <= 30 else ""}
            logs = np.log(values).T  # intervals of the logarithm: the axis is one
            mean = style.spread(ax, at, logs, look["color"], exp=True)
            ax.plot(at, mean, label=label or None, **look)
            first = np.isfinite(mean).argmax()
            firsts.append((float(mean[first]), at[first], look["color"], label))
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        rates = {k: _gap(v) for k, v in {str(k): v for k, v in named.items()}.items()}
        if w is not None and not isinstance(w, Mapping):
            top = max(firsts)
            firsts, rates = [(*top[:2], "black", "all")], {"all": _gap(w)}
        words = "gossip alone, (1 − gap)²ᵗ"
        for start, begin, color, label in firsts:
            if label in rates:
                t = np.linspace(begin, at[-1], 300)
                with np.errstate(divide="ignore"):
                    exponent = 2 * (t - begin) * np.log(max(1 - rates[label], 1e-300))
                y = start * np.exp(np.maximum(exponent, -600))
                ax.plot(t, y, color=color, linestyle=":", linewidth=1.2, label=words, zorder=1)
                words = None
        ax.set_ylim(low, high)
        style.logarithmic(ax.yaxis)
        ax.set(xlabel="communication rounds", ylabel="consensus distance Ξ")
        style.grid(ax)
        style.legend(ax, own, title)
    return ax


def _spectrum(ws: list[Any]) -> tuple[Any, Any, bool]:
    """Ranks and eigenvalues that are drawn, and whether they are of a symmetric matrix."""
    from jaxfl.networks import spectra

    n, k = ws[0].shape[0], 20
    if n <= _MANY or len(ws) == 1:
        w = functools.reduce(lambda product, w: w @ product, ws)
        if symmetric := bool(abs(w - w.T).max() < 1e-9):
            w = (w + w.T) / 2
        if n <= _MANY or shifts(w) is not None:
            at = np.linspace(0, n - 1, min(n, _MANY)).round().astype(int)
            return 1 + at, spectra.eigenvalues(w)[at], symmetric
        if symmetric:
            rank = np.append(np.arange(1, k + 1), np.arange(n - k + 1, n + 1))
            return rank, np.concatenate(spectra.ends(w, k)), True
    values = spectra.leading(ws, k)
    return np.arange(1, len(values) + 1), values, False


def _gap(w):
    if isinstance(w, float | int):
        if not 0 <= w <= 1:
            raise ValueError(f"a gap is in [0, 1], got {w!r}: `spectra.gap(w)`")
        return float(w)
    return facts.mixing_facts(w)["gap"]


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
    n, edges = len(g), g.number_of_edges()
    for cols in range(2, n // 2 + 1):
        if n % cols == 0 and edges == 2 * n - cols - n // cols:
            right = {(i, i + 1) for i in range(n) if (i + 1) % cols}
            down = {(i, i + cols) for i in range(n - cols)}
            if {tuple(sorted(e)) for e in g.edges} == right | down:
                return cols
    return 0
