"""What to ask of the result of a sweep: the best setting, intervals, pairs, ranks, costs."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxfl import metrics
from jaxfl.runs import folder
from jaxfl.studies.config import role

if TYPE_CHECKING:
    import xarray


def load(path: str | Path) -> "xarray.Dataset":
    """What a sweep left in its folder.

    Args:
        path: the folder, or its results.nc.

    Raises:
        ValueError: there is none, or it is damaged.

    Example:
        >>> from jaxfl import results
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> over = {"lr": [0.03, 0.3, 3.0], "seed": 2}
        >>> ds = jaxfl.sweep(over, data="iris", model="logistic", out="folder", **small)
        >>> results.load("folder").equals(ds)
        True
    """
    path = Path(path)
    return folder.read_netcdf(path / "results.nc" if path.is_dir() else path)


def final(ds: "xarray.Dataset", name: str = "") -> "xarray.DataArray":
    """A variable in the last round of each run; NaN where it diverged.

    Args:
        ds: of `jaxfl.sweep`.
        name: of a variable over rounds; the test score by default.

    Example:
        >>> from jaxfl import results
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> over = {"lr": [0.03, 0.3, 3.0], "seed": 2}
        >>> ds = jaxfl.sweep(over, data="iris", model="logistic", **small)
        >>> results.final(ds).dims
        ('lr', 'seed')
    """
    values = _named(ds, name)
    if "round" not in values.dims:
        return values
    last = values.sel(round=ds["stopped"], method="ffill").drop_vars("round")
    return last.where(ds["status"] != 3)


def best(
    ds: "xarray.Dataset", over: Sequence[str] | None = None, *, quiet: bool = False
) -> "xarray.Dataset":
    """The results at the setting with the best final validation score, its mean over seeds.

    On clients' own labels for methods with personal models, else on all labels, as `select` of the
    sweep's configuration says. Of settings at which seeds diverged, those with the fewest are
    chosen, and only where there are no others.

    Args:
        ds: of `jaxfl.sweep`.
        over: dimensions to choose in; by default those of hyperparameters, and points that set
            nothing else. Seeds, algorithms, data, partitions, graphs, cohorts, failures, attacks
            and privacy are not chosen.
        quiet: no warning of an edge.

    Returns:
        The data set without these dimensions: their chosen values are coordinates, and flags
        `<name>_edge` say which are the least or largest of at least three numbers.

    Warns:
        UserWarning: a choice at the edge of its grid, a wider one may do better.

    Example:
        >>> from jaxfl import results
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> over = {"lr": [0.03, 0.3, 3.0], "seed": 2}
        >>> ds = jaxfl.sweep(over, data="iris", model="logistic", **small)
        >>> found = results.best(ds, quiet=True)
        >>> float(found.lr) in (0.03, 0.3, 3.0), found.accuracy.dims
        (True, ('seed', 'round'))
    """
    import xarray as xr

    over = _hyper(ds) if over is None else [over] if isinstance(over, str) else list(over)
    for name in over:
        _dimension(ds, name)
    if not over:
        return ds
    scores = final(ds, choice(ds)).stack(setting=over)
    bad, mean = scores.isnull(), scores
    if "seed" in scores.dims:
        bad, mean = bad.sum("seed"), scores.mean("seed")  # of the seeds that did not diverge
    flat = mean.where(bad == bad.min("setting"))
    chosen = flat.fillna(-np.inf).argmax("setting")
    place = np.unravel_index(chosen.values, [ds.sizes[name] for name in over])
    index = {name: xr.DataArray(k, dims=chosen.dims) for name, k in zip(over, place)}
    found = ds.isel(index)
    edges = []
    for name in over:
        if name == "point" or ds.sizes[name] < 3 or ds[name].dtype.kind not in "if":
            continue
        values = np.sort(ds[name].values)
        edge = (found[name] == values[0]) | (found[name] == values[-1])
        found = found.assign_coords({f"{name}_edge": edge})
        if bool(edge.any()):
            edges.append(f"{name} = {', '.join(f'{v:g}' for v in _edge(found[name], edge))}")
    if edges and not quiet:
        warnings.warn(
            f"best at the edge of the grid: {'; '.join(edges)}. A wider grid may do better",
            stacklevel=2,
        )
    return found


def interval(ds: "xarray.Dataset", name: str = "", *, level: float = 0.95) -> "xarray.Dataset":
    """Mean over seeds and a Student t interval, or of fewer than 4 seeds their range.

    If a seed diverged there is no mean.

    Args:
        ds: of `jaxfl.sweep`.
        name: of a variable; the final test score by default, otherwise over all its dimensions.
        level: of confidence.

    Returns:
        `mean`, `half` (of the t interval, NaN where it is the range), `low` and `high`, without the
        dimension seed.

    Example:
        >>> from jaxfl import results
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> over = {"lr": [0.03, 0.3, 3.0], "seed": 2}
        >>> ds = jaxfl.sweep(over, data="iris", model="logistic", **small)
        >>> sorted(results.interval(ds)), results.interval(ds)["mean"].dims
        (['half', 'high', 'low', 'mean'], ('lr',))
    """
    return _interval(_named(ds, name) if name else final(ds), level)


def _interval(values, level=0.95):
    return _apply(values, lambda a: metrics.interval(a, level))


def paired(
    ds: "xarray.Dataset", dim: str, reference: Any = None, name: str = "", *, level: float = 0.95
) -> "xarray.Dataset":
    """Differences to a reference, seed by seed: their mean, a t interval, and a p-value.

    Of fewer than 4 seeds `low` and `high` are the range, `half` and `p` are NaN. If a seed of
    either diverged there is no mean.

    Args:
        ds: of `jaxfl.sweep`.
        dim: the dimension that is compared, such as "algorithm".
        reference: its value to compare with; the first by default.
        name: of a variable over rounds, of which the last is taken; the test score by default.
        level: of confidence.

    Returns:
        `mean`, `half`, `low`, `high` and `p` (of a two-sided paired t test), without the dimension
        seed.

    Example:
        >>> from jaxfl import results
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> over = {"lr": [0.03, 0.3, 3.0], "seed": 2}
        >>> ds = jaxfl.sweep(over, data="iris", model="logistic", **small)
        >>> found = results.paired(ds, "lr", 0.3)
        >>> float(found["mean"].sel(lr=0.3)), found["p"].shape
        (0.0, (3,))
    """
    from scipy.special import stdtr

    _dimension(ds, dim)
    values = final(ds, name)
    reference = ds[dim].values[0] if reference is None else reference
    if reference not in ds[dim].values:
        raise ValueError(f"reference must be one of {list(ds[dim].values)}, got {reference!r}")

    def compared(a):
        found, n = metrics.interval(a, level), a.shape[-1]
        if n < metrics.FEWEST:
            return *found, np.full_like(found[0], np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):  # a difference that never varies
            t = abs(found[0]) / (a.std(-1, ddof=1) / np.sqrt(n))
        return *found, 2 * stdtr(n - 1, -t)

    return _apply(values - values.sel({dim: reference}), compared, (*_ENDS, "p"))


_ENDS = ("mean", "half", "low", "high")


def ranks(ds: "xarray.Dataset", dim: str = "algorithm", name: str = "") -> "xarray.DataArray":
    """Ranks along a dimension in every seed, 1 for the best; ties share their mean rank.

    Args:
        ds: of `jaxfl.sweep`.
        dim: what is ranked.
        name: of a variable over rounds, of which the last is taken, larger is better; the test
            score by default. A run that diverged is last.

    Example:
        >>> from jaxfl import results
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> over = {"lr": [0.03, 0.3, 3.0], "seed": 2}
        >>> ds = jaxfl.sweep(over, data="iris", model="logistic", **small)
        >>> results.ranks(ds, "lr").sum("lr").values.tolist()
        [6.0, 6.0]
    """
    from scipy.stats import rankdata

    _dimension(ds, dim)
    values = final(ds, name)
    axis = values.get_axis_num(dim)
    return values.copy(data=rankdata(-values.fillna(-np.inf).values, axis=axis))


def to_target(ds: "xarray.Dataset", target: float, name: str = "") -> "xarray.Dataset":
    """What a score cost when a run first reached it, at the resolution of the evaluations.

    Args:
        ds: of `jaxfl.sweep`.
        target: the score; larger is better.
        name: of a variable over rounds; the test score by default.

    Returns:
        `rounds`, `megabytes`, `grads` and `seconds`, inf where the target was not reached.

    Example:
        >>> from jaxfl import results
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> over = {"lr": [0.03, 0.3, 3.0], "seed": 2}
        >>> ds = jaxfl.sweep(over, data="iris", model="logistic", **small)
        >>> cost = results.to_target(ds, target=0.99)
        >>> cost["rounds"].dims, bool((cost["rounds"].isin([4, 8, np.inf])).all())
        (('lr', 'seed'), True)
    """
    import xarray as xr

    values = _named(ds, name)
    reached = values >= target
    first = reached.argmax("round")
    costs = {k: ds[k] for k in ("megabytes", "grads", "seconds")}
    costs["rounds"] = xr.broadcast(ds["round"].astype(float), values)[0]
    found = {
        k: v.isel(round=first).where(reached.any("round"), np.inf).drop_vars("round")
        for k, v in costs.items()
    }
    return xr.Dataset(found, attrs={"target": target})


def worst_case(
    ds: "xarray.Dataset", dim: str | Sequence[str] = "adversary", name: str = ""
) -> "xarray.Dataset":
    """The lowest mean score over attacks, and which attack that is.

    Args:
        ds: of `jaxfl.sweep`.
        dim: the dimensions of attacks, such as "adversary" or ["adversary", "byzantine"].
        name: of a variable over rounds, of which the last is taken; the test score by default. A
            run that diverged counts as the lowest score there is.

    Returns:
        `score`, without these dimensions and seed, and the values of `dim` at which it is reached.

    Example:
        >>> from jaxfl import results
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> over = {"lr": [0.03, 0.3, 3.0], "seed": 2}
        >>> ds = jaxfl.sweep(over, data="iris", model="logistic", **small)
        >>> found = results.worst_case(ds, "lr")  # as if a learning rate were an attack
        >>> bool(found.score == results.final(ds).mean("seed").min())
        True
    """
    dims = [dim] if isinstance(dim, str) else list(dim)
    for one in dims:
        _dimension(ds, one)
    flat = _mean(final(ds, name)).stack(attack=dims)
    at = flat.fillna(-np.inf).argmin("attack")
    chosen = flat.isel(attack=at).drop_vars("attack")
    found = chosen.to_dataset(name="score")
    return found.assign({one: flat[one].isel(attack=at).reset_coords(drop=True) for one in dims})


@dataclass(frozen=True, eq=False)
class Summary:
    """The best setting, chosen on validation data, with its test score: as a table of text.

    Example:
        >>> from jaxfl import results
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> over = {"lr": [0.03, 0.3, 3.0], "seed": 2}
        >>> ds = jaxfl.sweep(over, data="iris", model="logistic", **small)
        >>> results.Summary(ds).cells()[0]
        ['lr', 'validation [%]', 'all labels [%]', 'own labels [%]', 'worst tenth']
    """

    ds: "xarray.Dataset"

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows: one row for every algorithm, data set, graph, attack and so on."""
        ds, hyper = self.ds, _hyper(self.ds)
        chosen = best(ds, quiet=True)
        metric = ds.attrs["metric"]
        scale, digits, unit = (100, 1, " [%]") if metric == "accuracy" else (1, 3, "")
        columns = {f"validation{unit}": choice(ds), f"all labels{unit}": metric}
        columns |= {f"own labels{unit}": f"own_{metric}", "worst tenth": "worst"}
        columns = {header: final(chosen, k) for header, k in columns.items() if k in chosen}
        first = next(iter(columns.values()))
        dims = [str(d) for d in first.dims if d != "seed"]
        more = [d for d in hyper if d in ds.dims]
        count = lambda k: (chosen["status"] == k).sum("seed")
        ended = {word: count(k) for k, word in ((1, "at target"), (2, "stopped"))}
        ended = {word: k for word, k in ended.items() if bool((k > 0).any())}
        seeds, lost = ds.sizes["seed"], count(3)
        headers = [*dims, *more, *columns, *ended]
        rows = []
        for at in np.ndindex(*(chosen.sizes[d] for d in dims)):
            here = dict(zip(dims, at, strict=True))
            row = [_short(chosen[d].values[k]) for d, k in here.items()]
            for d in more:
                flag = f"{d}_edge"
                own = chosen[d].isel({k: v for k, v in here.items() if k in chosen[d].dims})
                edge = flag in chosen.coords and bool(
                    chosen[flag].isel({k: v for k, v in here.items() if k in chosen[flag].dims})
                )
                numbered = d == "point" and own.dtype.kind in "iu"
                text = _point(ds, int(own)) if numbered else _short(own.values[()])
                row.append(text + ("*" if edge else ""))
            if bad := int(lost.isel(here)):
                row += [f"{bad} of {seeds} diverged", *["–"] * (len(columns) - 1)]
            else:
                values = (v.isel(here).values for v in columns.values())
                row += [metrics.spelled(v, scale, digits) for v in values]
            row += [f"{int(k.isel(here))}/{seeds}" for k in ended.values()]
            rows.append(row)
        return headers, rows

    def __rich_console__(self, console: Any, options: Any) -> Any:
        """The table and its notes, at most 40 rows of it."""
        from rich.table import Table

        headers, rows = self.cells()
        table = Table(box=None, header_style="bold", pad_edge=False)
        for header in headers:
            table.add_column(header, justify="left" if header == "algorithm" else "right")
        for row in rows[:40]:
            table.add_row(*row)
        yield table
        yield ""
        yield "\n".join(self.notes())
        if len(rows) > 40:
            yield f"{len(rows) - 40} more rows are in the data set"

    def notes(self) -> list[str]:
        """What a reader of the table must know."""
        seeds = self.ds.sizes["seed"]
        spread = "half a 95% t interval" if seeds >= metrics.FEWEST else "range"
        words = f"mean and {spread} over {seeds} seeds" if seeds > 1 else "of 1 seed"
        hyper = [d for d in _hyper(self.ds) if d in self.ds.dims]
        lines = [f"Test scores: {words}, in the last round."]
        if "config" in self.ds.attrs:
            lines.append(_covers(self.ds))
        if f"own_{self.ds.attrs['metric']}" in self.ds:
            lines.append(
                "All labels: the shared model, or the mean over one for each client; own labels, "
                "and the worst tenth of the clients: each client's model on its own."
            )
        if hyper:
            by = " (own labels for personal models)" if "valid_choice" in self.ds else ""
            lines.append(f"{', '.join(hyper)}: the best on validation data{by}.")
        chosen = best(self.ds, quiet=True)
        if any(bool(chosen[k].any()) for k in chosen.coords if str(k).endswith("_edge")):
            lines.append("* best at the edge of the grid, a wider one may do better.")
        return lines


def choice(ds: "xarray.Dataset") -> str:
    """The name of the validation score that chooses.

    Args:
        ds: of `jaxfl.sweep`.

    Example:
        >>> from jaxfl import results
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> setting = dict(data="iris", model="logistic", **small)
        >>> results.choice(jaxfl.sweep({"lr": [0.1], "algorithm": ["ditto", "fedavg"]}, **setting))
        'valid_choice'
    """
    return "valid_choice" if "valid_choice" in ds else f"valid_{ds.attrs['metric']}"


def _hyper(ds):
    """The dimensions of role "tuning"; points only if all that they set is."""
    inside = [str(k) for k, c in ds.coords.items() if c.dims == ("point",) and k != "point"]
    tuned = lambda name: (ds[name].attrs.get("role") or role(name)) == "tuning"
    dims = [str(d) for d in final(ds).dims]
    return [d for d in dims if (all(map(tuned, inside)) if d == "point" else tuned(d))]


def _named(ds, name):
    name = name or ds.attrs["metric"]
    if name not in ds:
        raise ValueError(f"no variable {name!r}; there are {', '.join(map(str, ds.data_vars))}")
    return ds[name]


def _dimension(ds, name):
    if name not in ds.dims:
        raise ValueError(f"no dimension {name!r}; there are {', '.join(map(str, ds.dims))}")


def _mean(values):
    """NaN if a seed is."""
    return values.mean("seed", skipna=False) if "seed" in values.dims else values


def _apply(values, function, names=_ENDS):
    import xarray as xr

    outputs = [[] for _ in names]
    found = xr.apply_ufunc(function, values, input_core_dims=[["seed"]], output_core_dims=outputs)
    return xr.Dataset(dict(zip(names, found, strict=True)))


def _covers(ds):
    """What the intervals of a sweep cover."""
    from jaxfl.studies import experiment
    from jaxfl.studies.config import Config

    config = Config.make(**json.loads(ds.attrs["config"]))
    swept = lambda name: [str(v) for v in np.unique(ds.coords.get(name, []))]
    said = [
        (f"{name}: " * bool(swept("vary")))
        + experiment.covers(config.make(config, vary=name), swept("algorithm"), swept("graph"))
        for name in swept("vary") or [config.vary]
    ]
    return " ".join(said)


def _short(value):
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _point(ds, k):
    """What a point sets."""
    names = [str(n) for n, c in ds.coords.items() if c.dims == ("point",) and n != "point"]
    return ", ".join(f"{n} {_short(ds[n].values[k])}" for n in names)


def _edge(values, edge):
    return np.unique(values.values[edge.values])
