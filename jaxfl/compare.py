"""The main job: several algorithms on the same non-IID data, tuned alike, as a table and a figure.

Every algorithm's learning rates x seeds are one compiled program. A seed fixes the partition, the
initial model and all that is drawn during the run, and is the same for every algorithm, so that
differences are paired.
"""

import contextlib
import dataclasses
import html
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl import devices, experiment, folder, metrics
from jaxfl.clients import Clients
from jaxfl.config import Config
from jaxfl.experiment import compiled, dataset, partitions
from jaxfl.identity import Exact, Summed, agree, checksum, identity
from jaxfl.networks import Messages
from jaxfl.simulate import check, grid, simulate

if TYPE_CHECKING:
    import xarray

# The experiment --------------------------------------------------------------------------------


class _Problem(NamedTuple):
    """What all algorithms share; leading axis S where a seed has its own."""

    clients: Clients
    axes: Any  # in_axes of clients
    params: Any  # [S, ...]
    keys: Any  # [S]
    evaluate: Any
    evaluate_axes: Any
    first: tuple[Clients, Any]  # clients and params of the first seed, to check
    mesh: Any = None  # whose devices share the clients


def _problem(config, task, split):
    largest = max(int(p.count.max()) for p in split)  # a shape, for all seeds
    first = task.clients(split[0], config, largest)
    own = lambda name: jnp.asarray(np.stack([getattr(p, name) for p in split]), jnp.int32)
    clients = first.replace(
        data=first.data._replace(order=own("order")), start=own("start"), count=own("count")
    )
    axes = clients.replace(
        data=first.data._replace(arrays=None, order=0), start=0, count=0, id=None
    )
    params, keys = task.start(range(config.seed, config.seed + config.seeds))
    evaluate, evaluate_axes = _evaluate([task.scores(p, config.byzantine) for p in split])
    one = jax.tree.map(lambda a: np.asarray(a)[0], params)
    return _Problem(clients, axes, params, keys, evaluate, evaluate_axes, (first, one))


def _evaluate(each):
    """The evaluators of all seeds as one, and its in_axes."""

    def part(name):
        first, *rest = (getattr(scores, name) for scores in each)
        if first.label_weights is None:
            return first, first.replace(data=None, share=None)
        own = ("label_weights", "counts")
        stacked = {k: jnp.stack([getattr(e, k) for e in (first, *rest)]) for k in own}
        axes = first.replace(data=None, share=None, label_weights=0, counts=0)
        return first.replace(**stacked), axes

    return tuple(
        each[0].replace(valid=valid, test=test)
        for valid, test in zip(part("valid"), part("test"), strict=True)
    )


def _spread(problem, mesh):
    """The clients of every seed over the devices of a mesh, all else on each of them."""
    if mesh is None:
        return problem
    one = devices.spread(problem.first[0], mesh)
    over = jax.NamedSharding(mesh, jax.P(None, *one.over.spec))
    clients = problem.clients
    start, count = devices.place((clients.start, clients.count), over)
    order = devices.place(clients.data.order, jax.NamedSharding(mesh, jax.P()))
    clients = one.replace(
        data=one.data._replace(order=order), start=start, count=count, largest=clients.largest
    )
    axes = problem.axes.replace(over=one.over)
    return problem._replace(clients=clients, axes=axes, mesh=mesh)


class _Job(NamedTuple):
    """One algorithm, ready to compile."""

    label: str
    alg: Any
    lr: tuple[float, ...]
    networks: list[Any]  # one, or one for each seed


def _job(text, config, n):
    from jaxfl.networks import alike

    job, seeds = experiment.job(text, config), range(config.seed, config.seed + config.seeds)
    several = seeds if experiment.drawn(job.alg) else seeds[:1]
    made = [experiment.network(config, job, n, seed) for seed in several]
    made = alike(made) if job.alg.needs.net is Messages else made
    on = experiment.graph(config, job)
    label = job.name + (f" @ {on.name}{on.text}" if on else "")
    return _Job(label, job.alg, job.lr, [experiment.attacked(config, m, n) for m in made])


def _program(problem, job, *, rounds, every):
    """The compiled program of learning rates x seeds, and its arguments."""

    def one(alg, clients, network, params, key, evaluate):
        run = simulate(
            alg, clients, network, params, key, rounds=rounds, every=every, evaluate=evaluate
        )
        return run.state, run.history._replace(aux=()), run.evaluations

    per_seed = len(job.networks) > 1
    network = jax.tree.map(lambda *a: jnp.stack(a), *job.networks) if per_seed else job.networks[0]
    rates = jax.vmap(one, in_axes=(0, None, None, None, None, None))
    axes = None, problem.axes, 0 if per_seed else None, 0, 0, problem.evaluate_axes
    seeds = jax.vmap(rates, in_axes=axes)
    alg = grid(job.alg, lr=list(job.lr))
    values = alg, problem.clients, network, problem.params, problem.keys, problem.evaluate
    if problem.mesh is None:
        return compiled(jax.jit(seeds).lower(*values)), values
    whole = jax.NamedSharding(problem.mesh, jax.P())
    network = network if per_seed else devices.spread(network, problem.mesh)
    values = devices.place((alg, problem.clients, network, *values[3:]), whole)
    return compiled(jax.jit(seeds, out_shardings=whole).lower(*values)), values  # for every host


def compare(
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    progress: bool = False,
    data: Any = None,
    model: Any = None,
    mesh: Any = None,
    **changes: Any,
) -> "Comparison":
    """Algorithms side by side: `compare(rounds=100, algorithms=["fedavg", "scaffold"])`.

    The learning rate with the best mean validation score at the end is chosen; everything reported
    is of the test examples. Your own algorithm takes part under its name, once it is known:
    `jaxfl.algorithms.ALGORITHMS["mine"] = Mine`.

    Args:
        config: what to compare, `Config()` by default.
        out: folder to save results, figure, table and configuration in; nothing by default. It
            is new, or that of this very comparison, whose files are then written again: the same
            settings, data, models and algorithms by content and code, x64, backend, precision.
        progress: show progress on the terminal.
        data: a `jaxfl.data.Dataset`, in place of `config.data`.
        model: a `jaxfl.models.Model`, in place of `config.model`.
        mesh: over whose axis "clients" to spread them, as `jaxfl.spread`; of several hosts, all
            call this with the same arguments and get the same.
        changes: fields of `Config` to change; `data` and `model` may also be names.

    Raises:
        ValueError: bad input of any kind, before anything is computed; a folder of another
            comparison, or with other files.
        OSError: a folder that cannot be written, or that another process is writing to, likewise.

    Example:
        >>> found = jaxfl.compare(
        ...     algorithms=["fedavg"], data="iris", model="logistic", clients=4, cohort=2,
        ...     alpha=1.0, rounds=4, every=2, seeds=2, lr=[0.1, 1.0],
        ... )
        >>> [row.algorithm for row in found.rows()]
        ['FedAvg']
    """
    data, model, named = experiment.objects(data, model)
    config = Config.make(config, **named, **changes)
    if out is not None:
        folder.possible(out)
    data = dataset(config.data) if data is None else data
    split = partitions(config, data)
    jobs = [_job(text, config, split[0].n) for text in config.algorithms]
    labels = [job.label for job in jobs]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise ValueError(
            f"algorithms must differ, {sorted(twice)[0]!r} is there twice; leave one out, or give "
            "it other options: 'fedavg(steps=5)'"
        )
    task = experiment.task(config, data, model)
    problem = _problem(config, task, split)
    problem = _spread(problem, mesh)
    for job in jobs:
        check(job.alg, problem.first[0], job.networks[0], problem.first[1], rounds=config.rounds)
    with contextlib.ExitStack() as stack:
        what = _identity(config, data, task.model, split, jobs)
        if out is not None:
            stack.enter_context(_claimed(out, what))  # makes it: last, bad input leaves none behind
        with _progress(labels, progress) as report:
            comparison = _compare(config, problem, jobs, report)
        comparison.results.attrs["identity"] = json.dumps(what)
        if out is not None:
            comparison._write(Path(out), what)
    return comparison


def train(name: str, config: Config | None = None, **options: Any) -> "Comparison":
    """One algorithm, tuned and repeated as in `compare`: `train("fedavg", rounds=100)`.

    Args:
        name: of the algorithm, with options: `"fedprox(mu=0.1)"`, `"dsgd @ torus"`.
        config: as for `compare`.
        options: as for `compare`.

    Example:
        >>> found = jaxfl.train(
        ...     "fedavg", data="iris", model="logistic", clients=4, cohort=2,
        ...     alpha=1.0, rounds=4, every=2, seeds=2, lr=[0.1, 1.0],
        ... )
        >>> found.config.algorithms, sorted(found.states)
        (('fedavg',), ['FedAvg'])
    """
    return compare(config, algorithms=(name,), **options)


def _identity(config, data, model, split, jobs):
    """What a comparison is."""
    return identity(
        settings=Exact(dataclasses.asdict(config)),
        data=data,
        model=model,
        algorithm={job.label: job.alg for job in jobs},
        partition=[Summed(part) for part in split],
        network={job.label: [Summed(network) for network in job.networks] for job in jobs},
    )


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


def _compare(config, problem, jobs, report):
    """Runs the jobs in order, while the next ones compile in threads.

    On the CPU two run at a time: programs of small models keep little more than one core busy. Over
    several devices one does: all hosts must start them in the same order.
    """
    about = folder.provenance()
    options = {"rounds": config.rounds, "every": config.every}
    threads = max(1, min(2, len(jobs), os.cpu_count() or 1))
    compilers = ThreadPoolExecutor(threads)
    alone = problem.mesh is not None or jax.default_backend() != "cpu"
    runners = ThreadPoolExecutor(1 if alone else threads)

    def work(job, compiling):
        program, values = compiling.result()
        start = time.perf_counter()
        state, history, evaluations = jax.block_until_ready(program(*values))
        result = _result(job, history, evaluations)
        result["personal"] = hasattr(state, "personal")
        result["elapsed"] = time.perf_counter() - start
        return result, jax.tree.map(lambda a: np.asarray(a[:, int(result["chosen"])]), state)

    results, states = [], {}
    try:
        compiling = [compilers.submit(_program, problem, job, **options) for job in jobs]
        running = [runners.submit(work, *pair) for pair in zip(jobs, compiling)]
        del compiling
        for job in jobs:
            report(job.label, "running", None)
            result, states[job.label] = running.pop(0).result()
            results.append(result)
            report(job.label, "done", result)
    finally:
        compilers.shutdown(wait=False, cancel_futures=True)  # first, so that no run waits for one
        runners.shutdown(wait=True, cancel_futures=True)
        compilers.shutdown(wait=True)
    return Comparison(config, _dataset(config, problem, jobs, results, about), states)


def _result(job, history, evaluations):
    """Arrays `[L, S, ...]` of one algorithm, and the learning rate that validation chose."""
    turn = lambda a: np.swapaxes(np.asarray(a), 0, 1)
    scores, totals = jax.tree.map(turn, (evaluations, history.totals()))
    final = scores["valid_score"][:, :, -1].astype(float).mean(1)  # NaN if a seed diverged
    alive = np.isfinite(final)
    chosen = int(np.where(alive, final, -np.inf).argmax()) if alive.any() else 0
    return {
        **scores,
        "train_loss": turn(history.loss),
        "chosen": chosen,
        "edge": len(job.lr) > 1 and chosen in (0, len(job.lr) - 1) and bool(alive.any()),
        "diverged": ~np.isfinite(scores["score"][:, :, -1]),
        **{k: totals[k] for k in ("grads", "megabytes", "seconds")},
    }


# name: dimensions after (algorithm, lr), long name, unit
_VARIABLES = MappingProxyType(
    {
        "score": (("seed", "evaluation"), "test score", "1"),
        "valid_score": (("seed", "evaluation"), "validation score", "1"),
        "shared_score": (("seed", "evaluation"), "test score of the shared model", "1"),
        "loss": (("seed", "evaluation"), "test loss", "1"),
        "worst": (("seed", "evaluation"), "test score of the worst tenth of the clients", "1"),
        "clients": (
            ("seed", "evaluation", "client"),
            "test score with the test set re-weighted by the client's labels",
            "1",
        ),
        "consensus": (("seed", "evaluation"), "mean squared distance to the mean model", "1"),
        "train_loss": (("seed", "round"), "training loss of participating clients", "1"),
        "grads": (("seed", "round"), "minibatch gradients so far, all clients", "1"),
        "megabytes": (("seed", "round"), "sent and received so far, all clients", "MB"),
        "seconds": (("seed", "round"), "simulated time so far", "s"),
        "diverged": (("seed",), "whether the run ended without finite scores", "1"),
    }
)


def _dataset(config, problem, jobs, results, provenance):
    import xarray as xr

    many = max(len(job.lr) for job in jobs)
    sizes = {"seed": config.seeds, "evaluation": config.rounds // config.every}
    sizes |= {"round": config.rounds, "client": problem.first[0].n}
    variables = {}
    for name, (dims, words, unit) in _VARIABLES.items():
        rows = [r.get(name) for r in results]
        if all(row is None for row in rows):
            continue
        kind = np.result_type(*(row for row in rows if row is not None))
        flag = kind.kind == "b"
        shape = (len(jobs), many, *(sizes[d] for d in dims))
        values = np.full(shape, 0 if flag else np.nan, np.int8 if flag else kind)
        for i, row in enumerate(rows):
            if row is not None:
                values[i, : len(row)] = row
        about = {"long_name": words, "units": unit}
        variables[name] = (("algorithm", "lr", *dims), values, about)
    rates = np.full((len(jobs), many), np.nan)
    for i, job in enumerate(jobs):
        rates[i, : len(job.lr)] = job.lr
    about = {"long_name": "learning rate", "units": "1"}
    variables["rate"] = (("algorithm", "lr"), rates, about)
    for name, words, kind in (
        ("chosen", "index of the learning rate that validation chose", np.int32),
        ("edge", "whether that is at the edge of the grid", np.int8),
        ("personal", "whether clients are scored by models of their own", np.int8),
    ):
        values = np.array([r[name] for r in results], kind)
        variables[name] = (("algorithm",), values, {"long_name": words, "units": "1"})
    every = np.arange(1, sizes["evaluation"] + 1) * config.every
    coordinates = {
        "algorithm": [job.label for job in jobs],
        "lr": np.arange(many),
        "seed": np.arange(config.seed, config.seed + config.seeds),
        "evaluation": ("evaluation", every, {"long_name": "round of the evaluation"}),
        "round": np.arange(1, config.rounds + 1),
        "client": np.arange(sizes["client"]),
    }
    found = {
        "metric": problem.evaluate.metric,
        "config": json.dumps(dataclasses.asdict(config)),
        "provenance": json.dumps(provenance | {"end": folder.now()}),
    }
    used = {d for dims, *_ in variables.values() for d in dims}
    coordinates = {k: v for k, v in coordinates.items() if k in used}
    return xr.Dataset(variables, coordinates, found)


# What comes out --------------------------------------------------------------------------------


class Row(NamedTuple):
    """One algorithm in numbers; `_half` is half a 95% t interval over seeds."""

    algorithm: str
    lr: float  # the chosen learning rate
    edge: bool  # it is the least or the largest of the grid
    diverged: bool  # in some seed, at that
    personal: bool  # scored by personal models
    score: float
    score_half: float
    difference: float  # to the first algorithm, seed by seed
    difference_half: float
    worst: float
    worst_half: float
    reached: int  # seeds that reached the target; what follows are means over those
    rounds: float
    grads: float
    megabytes: float
    seconds: float


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What `compare` found."""

    config: Config
    results: "xarray.Dataset"  # every number, labelled
    states: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # final, leaves [seeds, ...]

    def to_xarray(self) -> "xarray.Dataset":
        """Every number: dimensions algorithm, lr, seed, evaluation or round, client."""
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
        """The score that costs are measured to."""
        if self.config.target:
            return self.config.target
        final = self.best()["score"].isel(evaluation=-1).mean("seed").values
        final = final[np.isfinite(final)]
        return float(0.9 * np.median(final)) if len(final) else float("nan")

    def rows(self) -> list[Row]:
        """The table in numbers."""
        best, target = self.best(), self.target
        final = best["score"].isel(evaluation=-1).values.astype(float)
        has_worst = "worst" in best
        rows = []
        for i, label in enumerate(best["algorithm"].values):
            one = best.isel(algorithm=i)
            totals = {k: one[k].values for k in ("grads", "megabytes", "seconds")}
            totals["rounds"] = np.broadcast_to(one["round"].values, totals["grads"].shape)
            cost = metrics.to_target(one["score"].values, totals, target)
            got = np.isfinite(cost["rounds"])
            worst = one["worst"].isel(evaluation=-1).values if has_worst else [np.nan]
            values = [
                str(label),
                float(one["rate"]),
                *(bool(one[k].any()) for k in ("edge", "diverged", "personal")),
                *map(float, metrics.t_interval(final[i])),
                *map(float, metrics.paired(final[i], final[0])),
                *map(float, metrics.t_interval(worst)),
                int(got.sum()),
                *(
                    float(cost[k][got].mean()) if got.any() else float("inf")
                    for k in ("rounds", "grads", "megabytes", "seconds")
                ),
            ]
            rows.append(Row._make(values))
        return rows

    def notes(self) -> list[str]:
        """What a reader of the table must know: flags, divergence, the target."""
        rows, ds = self.rows(), self.results
        percent = self.metric == "accuracy"
        target = f"{100 * self.target:.1f}%" if percent else f"{self.target:.3f}"
        words = "mean and half a 95% t interval over" if self.config.seeds > 1 else "of"
        seeds = f"{self.config.seeds} seed{'s' if self.config.seeds > 1 else ''}"
        lines = [
            f"Test scores: {words} {seeds}; differences to the first algorithm, seed by seed.",
            f"Costs: of all clients, until a test score of {target}.",
        ]
        if "worst" in ds:
            lines.append(
                "Worst tenth: of the clients, each on the test set re-weighted by its labels."
            )
        if any(r.personal for r in rows):
            lines.append(
                "† personal models: each on the test set re-weighted by its client's labels, the "
                "mean by number of examples (of one shared model that is the plain accuracy)."
            )
        if edge := [r.algorithm for r in rows if r.edge]:
            lines.append(
                f"* best at the edge of the grid, a wider one may do better: {', '.join(edge)}."
            )
        if any(0 < r.reached < self.config.seeds for r in rows):
            lines.append("(k/n): only k of n seeds got there, and costs are means over those.")
        for i, row in enumerate(rows):
            bad = ds["diverged"].isel(algorithm=i).values
            named = [
                f"lr={r:g} ({int(b.sum())} of {len(b)} seeds)"
                for r, b in zip(ds["rate"].isel(algorithm=i).values, bad, strict=True)
                if b.any()
            ]
            if named:
                lines.append(f"{row.algorithm} diverged at {', '.join(named)}.")
        return lines

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The table as text: headers and rows."""
        percent = self.metric == "accuracy"
        several = self.config.seeds > 1

        def pair(mean, half, sign=""):
            if not np.isfinite(mean):
                return "NaN"
            scale, digits = (100, 1) if percent else (1, 3)
            text = f"{scale * mean:{sign}.{digits}f}"
            return text + (f" ± {scale * half:.{digits}f}" if several else "")

        def cost(value, row):
            if not row.reached:
                return "–"
            return _short(value) + (
                f" ({row.reached}/{self.config.seeds})" if row.reached < self.config.seeds else ""
            )

        unit = " [%]" if percent else ""
        worst = "worst" in self.results
        headers = ["algorithm", "lr", f"test {self.metric.replace('r2', 'R²')}{unit}",
                   "difference", *(["worst tenth"] if worst else []),
                   "rounds", "gradients", "MB", "seconds"]  # fmt: skip
        rows = []
        for i, r in enumerate(self.rows()):
            rows.append([
                r.algorithm,
                f"{r.lr:g}" + ("*" if r.edge else ""),
                pair(r.score, r.score_half) + ("†" if r.personal else ""),
                pair(r.difference, r.difference_half, "+") if i else "",
                *([pair(r.worst, r.worst_half)] if worst else []),
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
        from rich.measure import Measurement
        from rich.text import Text

        table = self.table()
        wide = Measurement.get(console, options.update(width=10_000), table).maximum
        if wide <= options.max_width:
            yield table
        else:
            costs = self.cells()[0].index("rounds") - 1
            yield self.table(slice(costs))
            yield ""
            yield self.table(slice(costs, None))
        yield ""
        for note in self.notes():
            yield Text(note)

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

    def csv(self) -> str:
        """The table in numbers, all digits."""
        import csv

        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(self.rows())
        return file.getvalue()

    def plot(self, path: str | Path | None = None, **options: Any) -> Any:
        """The scores against rounds, megabytes and simulated seconds; returns the axes.

        Args:
            path: where to save the figure; nowhere by default.
            options: of `jaxfl.plots.learning_curves`.
        """
        from jaxfl import plots

        axes: Any = plots.learning_curves(self, **options)
        if path is not None:
            folder.picture(path, axes[0].figure)
        return axes

    def save(self, out: str | Path) -> None:
        """Writes results.nc, comparison.png and .pdf, table.txt, .csv and .md, and config.toml.

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
        texts["config.toml"] = self.config.to_toml()
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


def _short(value):
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 10 * scale or (scale > 1e3 and value >= scale):
            return f"{value / scale:.3g}{letter}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


@contextlib.contextmanager
def _progress(labels: Sequence[str], show: bool) -> Iterator[Callable[..., None]]:
    """A reporter `(label, stage, result)`: a bar, and a line for each algorithm done."""
    if not show:
        yield lambda label, stage, result: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    wide = max(map(len, labels))
    columns = (
        SpinnerColumn(),
        TextColumn(f"{{task.description:{wide + 10}}}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(labels))

        def report(label, stage, result):
            if result is None:
                bar.update(task, description=f"{label} {stage}")
                return
            chosen = result["chosen"]
            score = float(result["score"][chosen, :, -1].mean())
            line = f"{label:{wide}}  test score {score:.3f}  ({result['elapsed']:.1f} s)"
            bar.console.print(line, highlight=False, markup=False)
            bar.advance(task)

        yield report
