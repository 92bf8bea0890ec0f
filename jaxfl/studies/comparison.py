"""What a comparison found: its table, its notes, its picture."""

import contextlib
import dataclasses
import html
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxfl import metrics
from jaxfl.runs import folder
from jaxfl.runs.identity import Exact, agree, checksum, identity
from jaxfl.studies import experiment
from jaxfl.studies.config import Config
from jaxfl.studies.names import parse

if TYPE_CHECKING:
    import xarray


@contextlib.contextmanager
def _claimed(out: str | Path, what: dict[str, Any]) -> Iterator[None]:
    """A folder of this comparison and no other, new or to write again, held by this process."""
    path = Path(out)
    folder.own(path)
    folder.writable(path)
    with folder.locked(path):
        if folder.own(path):
            about = folder.about(path, "comparison")
            same = what | {"versions": about["identity"]["versions"]}  # all is computed again
            agree(path, "another comparison", about["identity"], same)
            for name, before in about["files"].items():
                if (path / name).exists() and checksum(path / name) != before:
                    raise ValueError(
                        f"{str(path / name)!r} was changed since jaxfl wrote it; move it away, or "
                        "choose another folder: `out='results-2'`"
                    )
        else:
            _note(path, what)  # first: what is here from now on is ours
        yield


def _note(path, what, names=()):
    """Writes of what comparison a folder is, and the checksums of its files."""
    about = {"format": folder.FORMAT, "kind": "comparison", "identity": what}
    about["files"] = {name: checksum(path / name) for name in names}
    folder.text(path / folder.ABOUT, folder.sealed(about))


# What comes out --------------------------------------------------------------------------------


class Row(NamedTuple):
    """One algorithm in numbers, NaN if a seed diverged at the chosen rate.

    `_half` is half a 95% t interval over seeds, NaN below 4 of them.
    """

    algorithm: str
    lr: float  # the chosen learning rate, or value of what else is tuned; NaN of nothing
    tuned: str  # the field that is tuned
    edge: bool  # it is the least or the largest of the grid
    diverged: int  # seeds, at that
    personal: bool  # clients have models of their own
    reference: bool  # added for reference
    score: float  # on all labels
    score_half: float
    difference: float  # to the first algorithm, seed by seed
    difference_half: float
    own: float  # on clients' own labels
    own_half: float
    own_difference: float
    own_difference_half: float
    worst: float  # tenth of the clients, on their own labels
    worst_half: float
    reached: int  # seeds that reached the target; what follows are means over those
    rounds: float
    grads: float
    megabytes: float
    seconds: float


_SCORES = ("score", "difference", "own", "own_difference", "worst")


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What `compare` found."""

    config: Config
    results: "xarray.Dataset"  # every number, labelled
    states: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # final, leaves [seeds, ...]

    def to_xarray(self) -> "xarray.Dataset":
        """Every number, by a sweep's names: dimensions algorithm, lr, seed, round or client."""
        return self.results

    def best(self) -> "xarray.Dataset":
        """The results at the chosen learning rates."""
        ds = self.results
        return ds.isel(lr=ds["chosen"])

    @property
    def metric(self) -> str:
        """ "accuracy", or "r2" for regressions."""
        return self.results.attrs["metric"]

    @property
    def target(self) -> float:
        """The score on all labels that costs are measured to."""
        if self.config.target:
            return self.config.target
        final = self._final(self.metric)[self.results["reference"].values == 0].mean(1)
        final = final[np.isfinite(final)]
        return float(0.9 * np.median(final)) if len(final) else float("nan")

    def _final(self, name):
        """`[algorithms, seeds]` at the chosen rates, NaN for runs that diverged."""
        best = self.best()
        values = best[name].isel(round=-1).where(best["status"] == 0)
        return values.transpose("algorithm", "seed").values.astype(float)

    def _scores(self):
        """The scores of every algorithm `[algorithms, seeds]`, by their names in a row."""
        score, own, worst = map(self._final, (self.metric, f"own_{self.metric}", "worst"))
        return dict(zip(_SCORES, (score, score - score[:1], own, own - own[:1], worst)))

    def rows(self) -> list[Row]:
        """The table in numbers."""
        best, target, scores = self.best(), self.target, self._scores()
        rows = []
        for i, label in enumerate(best["algorithm"].values):
            one = best.isel(algorithm=i)
            totals = {k: one[k].values for k in ("grads", "megabytes", "seconds")}
            totals["rounds"] = np.broadcast_to(one["round"].values, totals["grads"].shape)
            cost = metrics.to_target(one[self.metric].values, totals, target)
            got = np.isfinite(cost["rounds"])
            found = {}
            for name in _SCORES:
                found[name], found[f"{name}_half"], *_ = metrics.interval(scores[name][i])
            values = {
                "algorithm": str(label),
                "lr": float(one["rate"]),
                "tuned": str(one["tuned"].values),
                "edge": bool(one["edge"]),
                "diverged": int((one["status"] > 0).sum()),
                **{k: bool(one[k]) for k in ("personal", "reference")},
                **{k: float(v) for k, v in found.items()},
                "reached": int(got.sum()),
                **{
                    k: float(cost[k][got].mean()) if got.any() else float("inf")
                    for k in ("rounds", "grads", "megabytes", "seconds")
                },
            }
            rows.append(Row(**values))
        return rows

    def notes(self) -> list[str]:
        """What a reader of the table must know: scores, intervals, flags, the target."""
        rows, ds, config = self.rows(), self.results, self.config
        percent, several = self.metric == "accuracy", config.seeds > 1
        target = f"{100 * self.target:.1f}%" if percent else f"{self.target:.3f}"
        spread = "half a 95% t interval" if config.seeds >= metrics.FEWEST else "range"
        words = f"mean and {spread} over {config.seeds} seeds" if several else "of 1 seed"
        choice = {"all": "all labels", "own": "own labels"}.get(
            config.select, "own labels for personal models (†), else on all labels"
        )
        lines = [
            f"Test scores: {words}; differences to the first algorithm, seed by seed.",
            experiment.covers(config),
            "All labels: the shared model, or the mean over one for each client, on the whole test "
            "set.",
            f"Own labels: each client's model {_OWN[_rule(config, percent)]}; the mean by number "
            "of training examples. Worst tenth: of the clients, on these.",
            f"{_tuned(rows)}: chosen by the validation score on {choice}.",
            f"Costs: of all clients, until a test score of {target} on all labels.",
        ]
        if any(r.personal for r in rows):
            lines.append("† each client's model is a personal one.")
        if any(r.reference for r in rows):
            lines.append(f"‡ for reference: {_REFERENCE}.")
        if edge := [r.algorithm for r in rows if r.edge]:
            lines.append(
                f"* best at the edge of the grid, a wider one may do better: {', '.join(edge)}."
            )
        if any(0 < r.reached < config.seeds for r in rows):
            lines.append("(k/n): only k of n seeds got there, and costs are means over those.")
        for i, row in enumerate(rows):
            if most := int(ds["untrained"].isel(algorithm=i).max()):
                lines.append(
                    f"{row.algorithm}: up to {most} of {ds.sizes['client']} clients never took "
                    "part, their own models are the initial one; take more rounds, a larger cohort."
                )
            bad = ds["status"].isel(algorithm=i).values > 0
            named = [
                f"{row.tuned}={r:g} ({int(b.sum())} of {len(b)} seeds)"
                for r, b in zip(ds["rate"].isel(algorithm=i).values, bad, strict=True)
                if b.any()
            ]
            if named:
                at = f"at {', '.join(named)}" if row.tuned else f"in {int(bad.sum())} seeds"
                lines.append(f"{row.algorithm} diverged {at}.")
        return lines

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The table as text: headers and rows."""
        percent, seeds, scores = self.metric == "accuracy", self.config.seeds, self._scores()

        def spelled(name, i, row):
            if row.diverged:
                return f"{row.diverged} of {seeds} diverged" if name == "score" else "–"
            if name.endswith("difference") and i == 0:
                return ""
            values = scores[name][i]
            if not np.isfinite(values).all():
                return "–"
            scale, digits = (100, 1) if percent else (1, 3)
            text = metrics.spelled(values, scale, digits, "+" * name.endswith("difference"))
            return text + "†" * (row.personal and name == "own")

        def cost(value, row):
            if not row.reached:
                return "–"
            return _short(value) + (f" ({row.reached}/{seeds})" if row.reached < seeds else "")

        unit = " [%]" if percent else " [R²]"
        headers = ["algorithm", "lr", f"all labels{unit}", "difference", f"own labels{unit}",
                   "difference", "worst tenth", "rounds", "gradients", "MB", "seconds"]  # fmt: skip
        rows = []
        for i, r in enumerate(self.rows()):
            rows.append([
                r.algorithm + "‡" * r.reference,
                _chosen(r),
                *(spelled(name, i, r) for name in _SCORES),
                cost(r.rounds, r),
                *(_short(v) if r.reached else "–" for v in (r.grads, r.megabytes, r.seconds)),
            ])  # fmt: skip
        return headers, rows

    def table(self, columns: slice = slice(None)) -> Any:
        """The table, for `rich` to print (a notebook shows it by itself).

        Args:
            columns: which, after the algorithm.
        """
        from rich.table import Table

        headers, rows = self.cells()
        table = Table(box=None, header_style="bold", pad_edge=False)
        for i, header in enumerate([headers[0], *headers[1:][columns]]):
            table.add_column(header, justify="left" if i == 0 else "right", no_wrap=i > 0)
        for row in rows:
            table.add_row(row[0], *row[1:][columns])
        return table

    def __rich_console__(self, console: Any, options: Any) -> Any:
        """The table and its notes; scores above costs where the terminal is narrow."""
        from rich.text import Text

        own, costs = _PARTS
        for cuts in (
            (0, None),
            (0, costs, None),
            (0, own, costs, None),
            (0, 2, own, 5, costs, None),
        ):
            parts = [slice(*pair) for pair in itertools.pairwise(cuts)]
            if max(map(self._width, parts)) <= options.max_width:
                break
        for k, part in enumerate(parts):
            yield from [""] * bool(k)
            yield self.table(part)
        yield ""
        for note in self.notes():
            yield Text(note)

    def _width(self, columns):
        """Of a table, its algorithms broken into words where it is not the whole one."""
        (first, *headers), rows = self.cells()
        names = [row[0] for row in rows] + [first]
        words = [
            len(w) for name in names for w in ([name] if columns.stop is None else name.split())
        ]
        columns = zip(*([line[columns] for line in (headers, *(row[1:] for row in rows))]))
        return max(words) + sum(2 + max(map(len, column)) for column in columns)

    def text(self, width: int = 120) -> str:
        """The table and its notes as plain text."""
        from rich.console import Console

        file = io.StringIO()
        plain: Any = {"color_system": None, "legacy_windows": False, "force_jupyter": False}
        Console(file=file, width=width, **plain).print(self)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"

    __repr__ = __str__ = text

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text())}</pre>"

    def markdown(self) -> str:
        """The table and its notes as markdown."""
        headers, rows = self.cells()
        lines = [headers, ["---", *["--:"] * (len(headers) - 1)], *rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return body + "\n\n" + "\n".join(self.notes()) + "\n"

    def latex(self) -> str:
        """The table and its notes as LaTeX, with the rules of the package `booktabs`."""
        headers, rows = self.cells()
        head, *body = (" & ".join(map(_tex, line)) + r" \\" for line in (headers, *rows))
        columns = "l" + "r" * (len(headers) - 1)
        begin = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
        notes = [f"% {note}" for note in self.notes()]
        return "\n".join([*notes, *begin, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """The table in numbers, all digits."""
        import csv

        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(self.rows())
        return file.getvalue()

    def plot(self, path: str | Path | None = None, **options: Any) -> Any:
        """Both scores against rounds, megabytes and simulated seconds; returns the axes.

        Args:
            path: where to save the figure; nowhere by default.
            options: of `jaxfl.plots.learning_curves`.
        """
        from jaxfl import plots

        both: dict[str, Any] = {"name": (self.metric, f"own_{self.metric}")} | options
        axes: Any = plots.learning_curves(self, **both)
        if path is not None:
            folder.picture(path, axes[0].figure)
        return axes

    def save(self, out: str | Path) -> None:
        """Writes results.nc, comparison.png and .pdf, table.txt, .csv, .md and .tex, config.toml.

        Each file is written whole or not at all; provenance.json says of what they are. `compare(
        Config.from_toml("config.toml"))` gives the same numbers again, unless data or model were
        passed as objects.

        Raises:
            ValueError: a folder of another comparison, or with other files.
            OSError: a folder that cannot be written, or that another process is writing to.
        """
        attrs = self.results.attrs
        known = json.loads(attrs["identity"]) if "identity" in attrs else None
        arrays = {str(name): a.values for name, a in self.results.items()}
        what = known or identity(settings=Exact(self.config), results=arrays)
        with _claimed(out, what):
            self._write(Path(out), what)

    def _write(self, path, what):
        _note(path, what)  # until they are whole, its files may be written again
        folder.netcdf(path / "results.nc", self.results)
        texts = {"table.txt": self.text(), "table.csv": self.csv(), "table.md": self.markdown()}
        texts |= {"table.tex": self.latex(), "config.toml": self.config.to_toml()}
        for name, text in texts.items():
            folder.text(path / name, text)
        figure = self.plot()[0].figure
        pictures = "comparison.png", "comparison.pdf"
        for name in pictures:
            folder.picture(path / name, figure)
        from matplotlib import pyplot

        pyplot.close(figure)
        _note(path, what, ("results.nc", *texts, *pictures))

    @classmethod
    def load(cls, path: str | Path) -> "Comparison":
        """What `save` wrote, from its folder or its results.nc; without the final states."""
        path = Path(path)
        try:
            results = folder.read_netcdf(path / "results.nc" if path.is_dir() else path)
            config = Config.make(**json.loads(results.attrs["config"]))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"cannot read a comparison from {str(path)!r}: {error}; write one: "
                "`comparison.save(folder)`"
            ) from error
        return cls(config, results)


_PARTS = 3, 6  # columns after the algorithm where those of own labels and of costs begin


_REFERENCE = "every client trains alone, on the same cohorts, and sends nothing"


_OWN = {
    "natural": "on its own test examples",
    "labels": "on the test set re-weighted by its labels",
    "targets": "on the test set re-weighted by the tenths of its targets",
}


def _chosen(row):
    value = f"{row.lr:g}" if row.tuned else "–"
    return f"{row.tuned} " * (row.tuned not in ("", "lr")) + value + "*" * row.edge


def _tuned(rows):
    others = dict.fromkeys(row.tuned for row in rows if row.tuned not in ("", "lr"))
    return ", ".join(["Learning rates", *others])


def _rule(config, labels):
    if parse(config.partition).name == "natural":
        return "natural"
    return "labels" if labels else "targets"


_TEX: dict[str, str] = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "±": r"$\pm$",
    "²": "$^2$",
    "–": "--",
}


def _tex(cell):
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", "".join(_TEX[c] if c in _TEX else c for c in cell))


def _short(value):
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 10 * scale or (scale > 1e3 and value >= scale):
            return f"{value / scale:.3g}{letter}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
