"""What all pictures share: colours, sizes, axes, legends, and how they read results."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxfl import metrics
from jaxfl.studies.config import long_name

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind tell apart; their yellow is too light for lines.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#8C6D31", "#999999"),
)
MARKERS = "osD^vPX*<>p"
STYLE: Any = {
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "hatch.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    "savefig.bbox": "tight",
    "text.parse_math": False,  # a dollar sign in somebody's name is one
    "savefig.pad_inches": 0.02,
}
REFERENCE = " (reference)"  # ends the name of what is there to compare with
_TICKS = (0, 20, 50, 80, 90, 95, 98, 99, 99.5, 99.8)
_RUN = ("seed", "round", "client")  # dimensions of a run, not of a sweep


class Nothing(ValueError):
    """There is nothing to draw."""


@contextlib.contextmanager
def panel(ax: Any, height: float = 2.3, width: float = 3.3) -> "Iterator[Axes]":
    """The axes given, or new ones, drawn in the style of this module."""
    import matplotlib as mpl
    from matplotlib import pyplot

    with mpl.rc_context(STYLE):
        if ax is None:
            _, ax = pyplot.subplots(figsize=(width, height), layout="constrained")
        yield ax
        ax.figure.canvas.draw()  # with this style, also if it is saved outside of it


def grid(ax: "Axes") -> None:
    """Lines behind the data."""
    ax.grid(True, color="0.9", linewidth=0.5)
    ax.set_axisbelow(True)


def legend(ax: "Axes", own: bool, title: str = "", handles: Any = None) -> None:
    """Below a figure of ours, which grows by its lines; inside of axes that were given."""
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    if not handles:
        return
    options: dict[str, Any] = {"handles": handles, "title": title or None, "frameon": False}
    options |= {"handlelength": 2.6, "columnspacing": 1.2}
    if own:
        figure: Any = ax.figure.get_figure(root=True)
        sizes = [0.48 + 0.054 * len(h.get_label()) for h in handles]  # inches, about
        for lines in range(1, len(sizes) + 1):
            columns = -(-len(sizes) // lines)
            wide = sum(max(sizes[k : k + lines]) for k in range(0, len(sizes), lines))
            if wide < figure.get_figwidth():
                break
        figure.set_figheight(figure.get_figheight() + 0.15 * (lines - 1 + bool(title)))
        figure.legend(loc="outside lower center", ncols=columns, **options)
    else:
        ax.legend(loc="best", **options)


def thin(ax: "Axes") -> None:
    """Leaves tick labels out until the others fit; long names along x are turned before."""
    ax.figure.canvas.draw()
    for k, axis in enumerate((ax.xaxis, ax.yaxis)):
        at, labels = axis.get_majorticklocs(), axis.get_ticklabels()
        if len(at) < 2:
            continue
        texts = [t.get_text() for t in labels]
        need = max((t.get_window_extent().width, t.get_window_extent().height)[k] for t in labels)
        place = ax.transData.transform(np.stack([at, at], 1))[:, k]
        room = abs(np.diff(place)).min()
        need += 4 * (1 - k)
        numbers = all(re.fullmatch(r"[\d.e+-]*", t) for t in texts)
        if need > room and k == 0 and not numbers:
            ax.tick_params("x", rotation=90)
            ax.figure.canvas.draw()
            need = max(t.get_window_extent().width for t in axis.get_ticklabels()) + 2
        step = int(np.ceil(need / max(room, 1)))
        if step > 1:
            axis.set_ticks(at[::step], texts[::step])


def look(i: int, label: str, position: float | None = None) -> dict[str, Any]:
    """How line i is drawn: decentralised methods dashed; colours in order where values have one.

    Args:
        i: which line.
        label: its name.
        position: of its value between the least (0) and the largest (1); None without an order.
    """
    from matplotlib import colormaps

    colour = COLOURS[i % len(COLOURS)]
    if position is not None:
        colour = colormaps["viridis"](0.9 * position)
    if label.endswith(REFERENCE):
        return {"color": "0.45", "linestyle": ":", "marker": "", "linewidth": 1.3}
    return {
        "color": colour,
        "linestyle": (0, (3.5, 1.2)) if "@" in label else "-",
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 3.2,
        "markeredgewidth": 0,
        "linewidth": 1.0,
    }


def plain(values: Any) -> list[str]:
    """Coordinates as words: numbers short and without exponents, as long as they stay different."""
    values = np.asarray(values)
    if values.dtype.kind not in "fiu":
        return [str(v) for v in values]
    for digits in (3, 6, 17):
        shown = [np.format_float_positional(float(f"{v:.{digits}g}"), trim="-") for v in values]
        if len(set(shown)) == len(set(values.tolist())):
            break
    return [f"{v:.3g}" if len(s) > 9 else s for s, v in zip(shown, values)]


def _power(x):
    """3·10⁻⁵, without mathematical text."""
    digit, _, exponent = f"{x:.0e}".partition("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ("" if digit == "1" else f"{digit}·") + f"10{power}"


def logarithmic(axis: Any) -> None:
    """A logarithmic axis with plain numbers, some in every decade if there are few decades."""
    from matplotlib import ticker

    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    some = (1, 2, 5) if decades < 1.4 else (1, 3) if decades < 2.6 else (1,)
    axis.set_major_locator(ticker.LogLocator(subs=some))
    if high > 1e5 or low < 1e-4:
        axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: _power(x)))
    else:
        axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _error(a):
    return -np.log10(np.maximum(100 - a, 1e-3))


ERROR = (_error, lambda b: 100 - 10.0**-b)  # keeps the best accuracies in percent apart


SCALE = "logarithmic in the error"


def error_ticks(low: float, high: float, apart: float = 0.1) -> list[float]:
    """Round percentages on the scale `ERROR`, at least the share `apart` of it between them."""
    for some in (_TICKS, (*range(0, 80, 10), *range(80, 100, 2), 99, 99.5, 99.8), range(100)):
        found = [t for t in some if low <= t <= high]
        if len(found) > 2:
            break
    place = dict(zip(found, _error(np.array(found)) / max(_error(high) - _error(low), 1e-9)))
    kept: list[float] = []
    for tick in reversed(found):
        if not kept or place[kept[-1]] - place[tick] >= apart:
            kept.append(tick)
    return kept[::-1]


def spread(ax: "Axes", x: Any, values: Any, colour: Any, exp: bool = False) -> np.ndarray:
    """Means of values `[..., seeds]`, which are returned, with a band, or bars of few seeds.

    The band is a 95% t interval; below 4 seeds bars go from the least to the largest.

    Args:
        ax: where to draw.
        x: `[...]`.
        values: of the runs.
        colour: of the band.
        exp: the values are logarithms of what is drawn.
    """
    mean, half, low, high = metrics.interval(values)
    mean, low, high = map(np.exp if exp else np.asarray, (mean, low, high))
    if np.isfinite(half).any():
        ax.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    elif np.shape(values)[-1] > 1:
        ax.vlines(x, low, high, color=colour, alpha=0.6, linewidth=0.9)
    return mean


def vertical(ax: "Axes", scores: np.ndarray, error: bool) -> None:
    """Limits and ticks of a y axis of scores, with `error` in percent on the scale `ERROR`."""
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return
    low, high = finite.min(), finite.max()
    if error:
        top = min(99.9, 100 - 0.6 * max(100 - high, 0.1))  # 100% would be infinitely high
        bottom = max(0.0, 100 - 1.08 * (100 - low))
        ticks = error_ticks(bottom, top)
        ax.set_yscale("function", functions=ERROR)
        ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
        ax.set_yticks([], minor=True)
        ax.set_ylim(bottom, top)
        if ax.get_ylabel():
            ax.set_ylabel(f"{ax.get_ylabel()}\n{SCALE}")
    elif high <= 1.01:  # R2: one run that goes wrong must not hide the others
        ax.set_ylim(max(-0.5, low - 0.05), min(1.02, high + 0.05))


# Results -----------------------------------------------------------------------------------------


def results(source: Any) -> "xarray.Dataset":
    """The Dataset of a sweep, or that of a comparison at the chosen rates, its references marked.

    Raises:
        ValueError: it is neither.
    """
    import xarray as xr

    if isinstance(source, xr.Dataset):
        if metric(source) not in source:
            raise ValueError(
                f"results must be of `jaxfl.sweep`, with accuracy or r2, got a Dataset of "
                f"{', '.join(map(str, source.data_vars)) or 'nothing'}"
            )
        return _complete(source if "seed" in source.dims else source.expand_dims("seed"))
    if not (hasattr(source, "best") and hasattr(source, "metric")):
        raise ValueError(
            "results must be the Dataset of `jaxfl.sweep` or what `jaxfl.compare` returned, got "
            f"{type(source).__name__}"
        )
    best = source.best()
    marks = np.where(best["reference"].values, REFERENCE, "")
    ds = best.assign_coords(algorithm=[f"{a}{m}" for a, m in zip(best["algorithm"].values, marks)])
    return ds.drop_vars("lr")


def _complete(ds):
    """With the metric, and how and when runs ended, also after means over dimensions."""
    name = metric(ds)
    if name in ds and not all(k in ds and ds[k].dtype.kind in "iu" for k in ("status", "stopped")):
        last = ds[name].isel(round=-1, drop=True)
        ds = ds.assign(status=3 * last.isnull(), stopped=int(ds["round"][-1]) + 0 * last.isnull())
    return ds.assign_attrs(metric=name)


def metric(ds: "xarray.Dataset") -> str:
    """The name of the test score."""
    return ds.attrs.get("metric") or ("r2" if "r2" in ds else "accuracy")


def percent(ds: "xarray.Dataset", name: str) -> bool:
    """Whether a variable is a share of examples."""
    scores = ("worst", "valid_choice")
    return "accuracy" in name or (name in scores and metric(ds) == "accuracy")


def words(ds: "xarray.Dataset", name: str) -> str:
    """A variable for an axis: name and unit."""
    known = {"megabytes": "sent and received", "seconds": "simulated time"}
    known |= {"worst": "worst tenth, own labels", "consensus": "consensus distance"}
    known |= {"loss": "test loss, all labels", "own_loss": "test loss, own labels"}
    for key, score in (("accuracy", "accuracy"), ("r2", "R²")):
        known |= {key: f"test {score}, all labels", f"own_{key}": f"test {score}, own labels"}
        known[f"valid_{key}"] = f"validation {score}, all labels"
        known[f"valid_own_{key}"] = f"validation {score}, own labels"
        known[f"personal_{key}"] = f"personal models, test {score}, all labels"
    known["valid_choice"] = "validation score"
    unit = "%" if percent(ds, name) else str(ds[name].attrs.get("units", "1"))
    text = known.get(name) or str(ds[name].attrs.get("long_name", name))
    return text if unit in ("", "1") else f"{text} ({unit})"


def scored(ds: "xarray.Dataset", name: str) -> bool:
    """Whether a variable is a score, of any labels and part."""
    return name in ("worst", "valid_choice") or name.endswith(metric(ds))


def variable(ds: "xarray.Dataset", name: str) -> "xarray.DataArray":
    """A variable by name.

    Raises:
        ValueError: there is none.
    """
    from jaxfl.types import nearest

    if name not in ds:
        raise ValueError(f"results have no {name!r}{nearest(name, list(map(str, ds.data_vars)))}")
    return ds[name]


def diverged(ds: "xarray.Dataset") -> "xarray.DataArray":
    """Which runs ended without finite scores."""
    return ds["status"] == 3


def swept(ds: Any) -> list[str]:
    """The dimensions that were varied, seeds left out."""
    return [str(d) for d in ds.dims if d not in _RUN]


def only(values: "xarray.DataArray", keep: Sequence[str], picture: str) -> None:
    """Refuses dimensions that a picture cannot show.

    Raises:
        ValueError: with what to select.
    """
    from jaxfl.types import nearest

    dims = swept(values)
    for name in keep:
        if name not in dims:
            raise ValueError(
                f"{picture} cannot draw {name!r}, which was not varied{nearest(name, dims)}"
            )
    for name in dims:
        if name not in keep:
            at = values[name].values if name in values.coords else np.arange(values.sizes[name])
            some = ", ".join(plain(at[:4])) + (", ..." if len(at) > 4 else "")
            one = at[0].item() if hasattr(at[0], "item") else at[0]
            how = (
                f"ds.sel({name}={one!r})"
                if name.isidentifier()
                else f"ds.sel({{{name!r}: {one!r}}})"
            )
            shown = " and ".join(keep) or "nothing else"
            raise ValueError(
                f"{picture} draws {shown} over seeds, but {name} has {len(at)} values ({some}): "
                f"select one, `{how}`, or the best, `results.best(ds, [{name!r}])`"
            )


def lines(ds: "xarray.Dataset", by: str) -> "Iterator[tuple[str, dict[str, Any], xarray.Dataset]]":
    """Label, style and results of every value of a dimension; one line if `by` is empty."""
    if not by:
        yield "", look(0, ""), ds
        return
    labels, ordered = names(ds, by), by != "point" and ds[by].dtype.kind in "fiu"
    for i, label in enumerate(labels):
        position = i / max(1, len(labels) - 1) if ordered else None
        yield label, look(i, label, position), ds.isel({by: i})


def colour_by(ds: "xarray.Dataset", by: str | None, taken: Sequence[str] = ()) -> str:
    """The dimension that gets colours: `by`, or algorithm, or the only one there is."""
    if by is not None:
        return by
    dims = [d for d in swept(ds[metric(ds)]) if d not in taken]
    return "algorithm" if "algorithm" in dims else dims[0] if len(dims) == 1 else ""


def names(ds: "xarray.Dataset", dim: str) -> list[str]:
    """The values of a dimension in words; of points, what they set."""
    if dim == "point":
        of = [str(k) for k, c in ds.coords.items() if c.dims == ("point",) and k != "point"]
        each = zip(*(plain(ds[k].values) for k in of))
        return [", ".join(f"{k} {v}" for k, v in zip(of, row)) for row in each]
    return plain(ds[dim].values if dim in ds.coords else np.arange(ds.sizes[dim]))


def dimension(ds: "xarray.Dataset", name: str) -> str:
    """A dimension for an axis or above a legend."""
    text = str(ds[name].attrs.get("long_name") or long_name(name))
    return text if len(text) < 40 else name


def titled(ds: "xarray.Dataset", by: str) -> str:
    """The title of a legend of numbers; names need none."""
    return dimension(ds, by) if by not in ("", "point") and ds[by].dtype.kind in "fiu" else ""
