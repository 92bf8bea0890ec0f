"""Pictures of what `jaxfl.sweep` and `jaxfl.compare` found."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxfl.plots import style
from jaxfl.studies.results import choice, final
from jaxfl.types import nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AGAINST = {
    "rounds": "communication rounds",
    "megabytes": "sent and received (MB)",
    "bits": "sent and received (bits)",
    "seconds": "simulated time (s)",
    "grads": "gradient evaluations",
}


def learning_curves(
    results: Any,
    against: Sequence[str] = ("rounds", "megabytes", "seconds"),
    *,
    by: str | None = None,
    name: str | Sequence[str] = "",
    scale: str = "error",
    width: float = 5.5,
    ax: Any = None,
) -> "list[Axes]":
    """Scores against costs: means over seeds; of a comparison at the chosen rates.

    Bands are 95% t intervals, below 4 seeds bars go from the least to the largest.

    Accuracies are drawn on a logarithmic scale of the error, which keeps the best ones apart. Lines
    of server methods are solid, of decentralised ones dashed. A line ends where the first of its
    seeds stopped, with a cross if that one diverged.

    Args:
        results: of `jaxfl.compare` or `jaxfl.sweep`.
        against: any of "rounds", "megabytes", "bits", "seconds", "grads"; a panel each, all but
            rounds logarithmic.
        by: the dimension of a sweep that gets colours; "algorithm" by default, or the only one.
        name: what is drawn: "accuracy" or "r2" (on all labels) by default, "own_accuracy", "loss",
            "worst", "train_loss", ...; of several, each in a row of panels.
        scale: of accuracies: "error" or "linear".
        width: of the figure in inches; below 4.5, one column of a two-column page, panels are
            stacked.
        ax: a list of matplotlib axes, one per panel, row by row; a new figure by default.

    Raises:
        ValueError: more dimensions than can be drawn, with what to select.

    Example:
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> over = {"lr": [0.03, 0.3, 3.0], "seed": 2}
        >>> ds = jaxfl.sweep(over, data="iris", model="logistic", **small)
        >>> axes = plots.learning_curves(ds, "rounds", by="lr")
        >>> len(axes), axes[0].get_xlabel()
        (1, 'communication rounds')
    """
    import matplotlib as mpl
    from matplotlib import pyplot

    if scale not in ("error", "linear"):
        raise ValueError(f'scale must be "error" or "linear", got {scale!r}')
    against = [against] if isinstance(against, str) else list(against)
    for cost in against:
        _known(cost)
    ds = style.results(results)
    by = style.colour_by(ds, by)
    drawn = [name or style.metric(ds)] if isinstance(name, str) else list(name)
    for one in drawn:
        style.only(style.variable(ds, one), [by] if by else [], "learning_curves")
    with mpl.rc_context(style.STYLE):
        own, tall = ax is None, width < 4.5
        if own:
            panels = len(drawn) * len(against)
            shape = (panels, 1) if tall else (len(drawn), len(against))
            height = (1.75 * panels if tall else 1.95 * len(drawn)) + 0.5
            share = "row" if len(drawn) > 1 else True
            _, ax = pyplot.subplots(
                *shape, figsize=(width, height), sharey=share, squeeze=False, layout="constrained"
            )
        axes = list(np.ravel(ax))
        places = [(one, cost) for one in drawn for cost in against]
        for ax, (one, cost) in zip(axes, places, strict=True):
            _curves(ax, ds, by, one, cost)
            ax.set_xlabel(_AGAINST[cost])
            if cost == "rounds":
                ax.set_xlim(left=0)
            else:
                style.logarithmic(ax.xaxis)
            style.grid(ax)
            if tall or cost == against[0]:
                ax.set_ylabel(style.words(ds, one))
            if style.scored(ds, one):
                factor = 100 if style.percent(ds, one) else 1
                values = factor * ds[one].values
                style.vertical(ax, values, factor == 100 and scale == "error")
        style.legend(axes[0], own, style.titled(ds, by))
        axes[0].figure.canvas.draw()
    return axes


def _curves(ax, ds, by, name, cost):
    """The lines of a panel."""
    factor = 100 if style.percent(ds, name) else 1
    for label, look, one in style.lines(ds, by):
        scores = factor * one[name].transpose("round", "seed").values.astype(float)
        x = _cost(one, cost).broadcast_like(one[name]).mean("seed", skipna=False).values
        mean = style.spread(ax, x, scores, look["color"])
        last = np.isfinite(mean).nonzero()[0].max(initial=-1)
        if last >= 0 and cost != "rounds" and not x[last]:  # free: nowhere on a logarithmic axis
            ax.axhline(mean[last], label=label or None, **look | {"marker": ""})
            continue
        ax.plot(x, mean, label=label or None, **look)
        if last >= 0 and bool(style.diverged(one).any()):
            ax.plot(x[last], mean[last], "x", color=look["color"], markersize=7, mew=1.4)


def heatmap(
    results: Any, x: str, y: str, name: str = "", *, scale: str = "error", ax: Any = None
) -> "Axes":
    """A sweep over two dimensions: final scores, means over seeds, one cell per setting.

    The frame marks the best cell by the final validation score, whatever is drawn. Cells where a
    seed diverged have no mean; they are hatched, with the number of such seeds if not all.

    Args:
        results: of `jaxfl.sweep`, with no other dimensions but seeds.
        x: the dimension of the columns.
        y: the dimension of the rows.
        name: what is drawn, the validation score by default.
        scale: of colours of accuracies: "error" (logarithmic in the error) or "linear".
        ax: matplotlib axes; new ones by default.

    Raises:
        ValueError: more dimensions than two, with what to select.

    Example:
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> over = {"lr": [0.03, 0.3], "mu": [0.0, 0.1], "seed": 2}
        >>> ds = jaxfl.sweep(
        ...     over, algorithms=["fedprox"], data="iris", model="logistic", **small
        ... )
        >>> ax = plots.heatmap(ds, "lr", "mu")
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('learning rate', 'mu')
    """
    from matplotlib import colors, patches

    ds = style.results(results)
    valid = choice(ds)
    name = name or valid
    values = final(ds, name)
    style.only(values, [x, y], "heatmap")
    if x == y:
        raise ValueError(f"heatmap needs two dimensions, got {x!r} twice")
    if "client" in values.dims:
        raise ValueError(f"{name!r} has a value per client; draw a score, or use `plots.ecdf(ds)`")
    mean = lambda a: a.mean("seed", skipna=False).transpose(y, x).values.astype(float)
    percent = style.percent(ds, name)
    table, chosen = (100 if percent else 1) * mean(values), mean(final(ds, valid))
    bad, seeds = style.diverged(ds).sum("seed").transpose(y, x).values, ds.sizes["seed"]
    rows, columns = table.shape
    finite = table[np.isfinite(table)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    ticks = style.error_ticks(low, high, 0.35 / np.clip(0.24 * rows, 0.9, 3.2))
    error = percent and scale == "error" and len(ticks) > 1 and high < 100
    norm = colors.Normalize(low, high)
    if error:
        norm = colors.FuncNorm(style.ERROR, low, high)
    own = ax is None
    with style.panel(ax, float(np.clip(1.1 + 0.24 * rows, 1.9, 3.6))) as ax:
        picture = ax.imshow(table, cmap="viridis", norm=norm, origin="lower", aspect="auto")
        bar = ax.figure.colorbar(picture, ax=ax, pad=0.02, aspect=25)
        bar.set_label(textwrap.fill(style.words(ds, name), max(12, 5 * rows)))
        bar.outline.set_visible(False)
        if error:
            bar.set_label(f"{bar.ax.get_ylabel()}\n{style.SCALE}")
            bar.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
            bar.set_ticks([], minor=True)
        for axis, dim, count in ((ax.xaxis, x, columns), (ax.yaxis, y, rows)):
            axis.set_ticks(*_decades(ds[dim].values) or (range(count), style.names(ds, dim)))
            axis.set_label_text(style.dimension(ds, dim))
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        box = lambda i, j, **look: patches.Rectangle((j - 0.5, i - 0.5), 1, 1, **look)
        hatched: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.6", "hatch": "/////"}
        framed: dict[str, Any] = {"facecolor": "none", "edgecolor": style.COLOURS[1]}
        framed |= {"linewidth": 2.0}
        for i, j in np.argwhere(bad > 0):
            ax.add_patch(box(i, j, linewidth=0, **hatched))
        if np.isfinite(chosen).any():
            i, j = np.unravel_index(np.nanargmax(chosen), chosen.shape)
            ax.add_patch(box(i, j, **framed, zorder=4, clip_on=False))
        marks = [patches.Patch(label="best by validation", **framed)]
        if bad.any():
            word = "diverged (in some seeds)" if (bad % seeds).any() else "diverged"
            marks.append(patches.Patch(label=word, linewidth=0, **hatched))
        if own:
            style.legend(ax, own, handles=marks)
        style.thin(ax)
        if own:  # turned names take room of their own
            turned = max(t.get_window_extent().height for t in ax.get_xticklabels())
            extra = max(0.0, turned / ax.figure.dpi - 0.15)
            ax.figure.set_figheight(ax.figure.get_figheight() + extra)
        ax.figure.canvas.draw()  # how much room there is
        _numbers(ax, table, bad, seeds, percent, picture)
    return ax


def _decades(values):
    """Places and labels of powers of ten among many values at equal ratios; None among others."""
    if len(values) <= 12 or values.dtype.kind != "f" or not (values > 0).all():
        return None
    logs = np.log10(values)
    whole = np.arange(np.ceil(logs.min() - 1e-9), np.floor(logs.max() + 1e-9) + 1)
    if np.ptp(np.diff(logs)) > 0.01 * abs(np.diff(logs)).max() or logs[0] > logs[-1]:
        return None
    return (
        (np.interp(whole, logs, range(len(logs))), style.plain(10**whole))
        if len(whole) > 2
        else None
    )


def _numbers(ax, table, bad, seeds, percent, picture):
    """Values in the cells, where there is room for all."""
    shape = ax.transData.transform((1, 1)) - ax.transData.transform((0, 0))
    width, height = abs(shape) * 72 / ax.figure.dpi
    finite = table[np.isfinite(table)]
    for digits in (1, 0) if percent else (3, 2):
        form = f".{digits}f" if percent else f".{digits}g"
        longest = max((len(f"{v:{form}}") for v in finite), default=1)
        size = min(7.0, 0.9 * width / (0.6 * longest), 0.8 * height)
        if size >= 5:
            break
    else:
        return
    for (i, j), value in np.ndenumerate(table):
        text = f"{value:{form}}" if np.isfinite(value) else ""
        dark = "black"
        if np.isfinite(value):
            r, g, b, _ = picture.cmap(picture.norm(value))
            dark = "black" if 0.299 * r + 0.587 * g + 0.114 * b > 0.5 else "white"
        elif 0 < bad[i, j] < seeds:
            text = f"{bad[i, j]}/{seeds}"
        look = {"facecolor": "white", "edgecolor": "none", "pad": 0.6} if bad[i, j] else None
        if text:
            at: dict[str, Any] = {"ha": "center", "va": "center", "bbox": look}
            ax.text(j, i, text, fontsize=size, color=dark, **at)


def robustness(
    results: Any,
    x: str = "",
    *,
    by: str | None = None,
    name: str = "",
    chance: float | None = None,
    ax: Any = None,
) -> "Axes":
    """Final scores against the number or strength of attackers, or against any other numbers.

    Means over seeds and 95% t bands, below 4 seeds bars from the least to the largest. Where a seed
    diverged there is no mean, but a cross at the bottom.

    Args:
        results: of `jaxfl.sweep`.
        x: the dimension of the axis; "byzantine" or one of the adversary's by default.
        by: the dimension that gets colours; "algorithm" by default, or the only other one.
        name: what is drawn, the test score by default.
        chance: the score of a guess, as a dotted line, such as 0.1 with ten classes.
        ax: matplotlib axes; new ones by default.

    Raises:
        ValueError: more dimensions than can be drawn, with what to select; nothing of attackers.

    Example:
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> over = {"lr": [0.03, 0.3, 3.0], "seed": 2}
        >>> ds = jaxfl.sweep(over, data="iris", model="logistic", **small)
        >>> ax = plots.robustness(ds, "lr", chance=1 / 3)  # "byzantine" where there are attackers
        >>> ax.get_xlabel()
        'learning rate'
    """
    ds = style.results(results)
    dims = style.swept(ds[style.metric(ds)])
    x = x or next((d for d in dims if d == "byzantine" or d.startswith("adversary.")), "")
    if not x:
        raise ValueError(
            f"robustness needs a dimension such as byzantine or adversary.z, got {dims}; name "
            "the one to draw: `robustness(ds, 'lr')`"
        )
    by, name = style.colour_by(ds, by, (x,)), name or style.metric(ds)
    values = final(ds, name)
    style.only(values, [x, by] if by else [x], "robustness")
    at = ds[x].values
    if at.dtype.kind not in "fiu":
        raise ValueError(f"robustness needs numbers along its axis, got {x} of {at[0]!r}")
    factor = 100 if style.percent(ds, name) else 1
    own = ax is None
    with style.panel(ax) as ax:
        lost = []
        for label, look, one in style.lines(ds, by):
            scores = factor * final(one, name).transpose(x, "seed").values.astype(float)
            ax.plot(at, style.spread(ax, at, scores, look["color"]), label=label or None, **look)
            lost.append((look["color"], style.diverged(one).any("seed").values))
        if chance is not None:
            ax.axhline(factor * chance, color="0.4", linewidth=0.8, linestyle=":")
            place: Any = ax.get_yaxis_transform()
            ax.text(0.01, factor * chance, "chance", transform=place, va="bottom", size=6)
        if factor == 100:  # bands may reach beyond what is possible
            low, high = ax.get_ylim()
            ax.set_ylim(max(low, -4.0), min(high, 102.0))
        step = 0.0
        for colour, where in lost:  # side by side where several diverged
            place = ax.get_xaxis_transform()
            y = np.full(where.sum(), 0.03 + step)
            ax.plot(at[where], y, "x", color=colour, transform=place, markersize=4.5, mew=1.2)
            step += 0.05 * bool(where.any())
        if at.min() > 0 and at.max() / at.min() >= (30 if at.dtype.kind in "iu" else 8):
            style.logarithmic(ax.xaxis)
        elif at.dtype.kind in "iu" and len(at) <= 12:
            ax.set_xticks(at)
        ax.set_xlabel(style.dimension(ds, x))
        ax.set_ylabel(style.words(ds, name))
        style.grid(ax)
        style.legend(ax, own, style.titled(ds, by))
    return ax


def pareto(
    results: Any, cost: str = "megabytes", *, name: str = "", scale: str = "error", ax: Any = None
) -> "Axes":
    """What a score costs: every setting a point, those that no other beats in both connected.

    Means over seeds, at the end of the runs. Learning rates are chosen on validation data, setting
    by setting; what diverged is left out.

    Args:
        results: of `jaxfl.sweep` or `jaxfl.compare`.
        cost: "megabytes", "bits", "seconds", "grads" or "rounds".
        name: the score, the test score by default.
        scale: of accuracies: "error" or "linear".
        ax: matplotlib axes; new ones by default.

    Example:
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> over = {"lr": [0.03, 0.3, 3.0], "seed": 2}
        >>> ds = jaxfl.sweep(over, data="iris", model="logistic", **small)
        >>> plots.pareto(ds, "bits").get_xscale()
        'log'
    """
    from matplotlib.transforms import Bbox

    _known(cost)
    ds = style.results(results)
    name, valid = name or style.metric(ds), choice(ds)
    style.variable(ds, name)
    ds = ds.assign(cost=_cost(ds, cost).broadcast_like(ds[name]))
    points = ds[["cost", name, valid, *(k for k in ("status", "stopped") if k in ds)]]
    if "lr" in points.dims:
        chosen = final(points, valid).mean("seed", skipna=False).fillna(-np.inf).argmax("lr")
        points = points.isel(lr=chosen)
    factor = 100 if style.percent(ds, name) else 1
    mean = lambda n: final(points, n).mean("seed", skipna=False)
    scores, costs = factor * mean(name), mean("cost")
    dims = style.swept(scores)
    by = "algorithm" if len(dims) > 1 and "algorithm" in dims else ""
    rest = [d for d in dims if d != by]
    names = {d: style.names(ds, d) for d in dims}
    costs = costs.transpose(*scores.dims)
    found, free = [], []  # cost, score, colour's index, label; what costs nothing
    for at in np.ndindex(*scores.shape):
        place = dict(zip(map(str, scores.dims), at))
        texts = [
            names[d][place[d]] if d in ("algorithm", "point") else f"{d} {names[d][place[d]]}"
            for d in rest
        ]
        values = float(costs.values[at]), float(scores.values[at])
        if np.isfinite(values).all() and not values[0]:
            free.append((values[1], ", ".join(texts)))
        elif np.isfinite(values).all():
            found.append((*values, place.get(by, 0), ", ".join(texts)))
    if not found:
        raise style.Nothing("pareto has nothing to draw: every setting diverged")
    front, best = [], -np.inf
    for point in sorted(found, key=lambda p: (p[0], -p[1])):
        if point[1] > best:
            front.append(point)
            best = point[1]
    own = ax is None
    with style.panel(ax, 2.5) as ax:
        edges = [p[0] for p in front]
        ax.plot(edges, [p[1] for p in front], color="0.6", lw=0.8, drawstyle="steps-post", zorder=1)
        for i in range(max(p[2] for p in found) + 1):
            look = style.look(i, "")
            for some, alpha in (([p for p in found if p not in front], 0.3), (front, 1.0)):
                mine = np.array([p[:2] for p in some if p[2] == i]).reshape(-1, 2)
                dots: dict[str, Any] = {"marker": look["marker"], "color": look["color"]}
                ax.scatter(*mine.T, s=16, alpha=alpha, lw=0, zorder=3, clip_on=False, **dots)
            if by:
                ax.scatter([], [], s=16, linewidths=0, label=names[by][i], **dots)
        for level, label in free:
            ax.axhline(level, color="0.45", linestyle=":", lw=1.0, label=f"{label}, at no cost")
        ax.margins(x=0.12)
        if min(p[0] for p in found) > 0 and cost != "rounds":
            style.logarithmic(ax.xaxis)
        ax.set_xlabel(_AGAINST[cost])
        ax.set_ylabel(style.words(ds, name))
        style.vertical(ax, scores.values, factor == 100 and scale == "error")
        style.grid(ax)
        style.legend(ax, own)
        ax.figure.canvas.draw()  # where the labels end up
        at: Any = ax.transData.transform([p[:2] for p in found])
        taken = [Bbox.from_extents(*(dot - 3), *(dot + 3)) for dot in at]
        free = [(1, 0), (1, 1), (0, 0), (0, 1)]  # (up, right): no point is left above the front
        _label(ax, front, free, taken)
        if not by:  # no legend says what the others are
            _label(ax, [p for p in found if p not in front], free[::-1], taken, color="0.5")
    return ax


def _label(ax, points, places, taken, **look):
    """Names beside points, at the first of the places that is free; left out if none is."""
    frame = ax.get_window_extent().padded(-3)
    for x, y, _, label in reversed(points):
        for up, right in places:
            side: dict[str, Any] = {"ha": "left" if right else "right", "fontsize": 6, **look}
            offset = (3 if right else -3, 3 if up else -3)
            side |= {"va": "bottom" if up else "top", "textcoords": "offset points"}
            text = ax.annotate(label, (x, y), offset, **side)
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def _known(cost):
    if cost not in _AGAINST:
        raise ValueError(f"no cost {cost!r}{nearest(cost, list(_AGAINST))}")


def _cost(ds, name):
    """A cumulative cost of runs, at every evaluation."""
    if name == "rounds":
        return ds["round"].astype(float)
    return 8e6 * ds["megabytes"] if name == "bits" else ds[name]
