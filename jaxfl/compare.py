"""The main job: several algorithms on the same non-IID data, tuned alike, as a table and a figure.

Every algorithm's learning rates x seeds are one compiled program. A seed fixes the partition, the
initial model and all that is drawn during the run (`Config.vary` adds the split and the graph), and
is the same for every algorithm, so that differences are paired. Every algorithm has two scores, on
all labels and on its clients' own, and `Config.reference` a row beside them.
"""

import contextlib
import dataclasses
import html
import io
import itertools
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
from jaxfl.checkpoint import Interrupted
from jaxfl.clients import Clients
from jaxfl.config import Config, parse
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
    seeds = range(config.seed, config.seed + config.seeds)
    each = [task.scores(p, config, s) for p, s in zip(split, seeds, strict=True)]
    evaluate, evaluate_axes = _evaluate(each)
    one = jax.tree.map(lambda a: np.asarray(a)[0], params)
    return _Problem(clients, axes, params, keys, evaluate, evaluate_axes, (first, one))


def _evaluate(each):
    """The evaluators of all seeds as one, and its in_axes."""

    def part(name):
        first, *rest = (getattr(scores, name) for scores in each)
        own = ["label_weights", "counts", *(["rows"] if first.rows is not None else [])]
        stacked = {k: jnp.stack([getattr(e, k) for e in (first, *rest)]) for k in own}
        axes = dict.fromkeys(("data", "share", "groups", "owner")) | dict.fromkeys(own, 0)
        return first.replace(**stacked), first.replace(**axes)

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
    reference: bool = False


def _job(text, config, n, reference=False):
    from jaxfl.networks import alike
    from jaxfl.networks.topologies import level

    if reference:  # no cohort is larger than all, and what nobody compares with nobody attacks
        config = dataclasses.replace(config, cohort=min(config.cohort, n), byzantine=0)

    job, seeds = experiment.job(text, config), range(config.seed, config.seed + config.seeds)
    several = seeds if experiment.drawn(config, job) else seeds[:1]
    made = [experiment.network(config, job, n, seed) for seed in several]
    made = alike(made) if job.alg.needs.net is Messages else level(made)
    on = experiment.graph(config, job)
    label = job.name + (f" @ {on.name}{on.text}" if on else "")
    made = [experiment.attacked(config, m, n) for m in made]
    return _Job(label, job.alg, job.lr, made, reference)


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

    The learning rate with the best mean validation score at the end is chosen, on clients' own
    labels for methods with personal models, else on all labels; one at which no seed diverges comes
    before all others. Everything reported is of the test examples. `Local` is added for reference,
    trained on the same cohorts. Your own algorithm takes part under its name, once it is known:
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
        Interrupted: Ctrl-C; what was done is not kept.

    Example:
        >>> found = jaxfl.compare(
        ...     algorithms=["fedavg"], data="iris", model="logistic", clients=4, cohort=2,
        ...     alpha=1.0, rounds=4, every=2, seeds=2, lr=[0.1, 1.0],
        ... )
        >>> [row.algorithm for row in found.rows()]
        ['FedAvg', 'Local']
    """
    data, model, named = experiment.objects(data, model)
    objects = {"data": data is not None, "model": model is not None}
    config = Config.make(config, **named, **changes)
    if out is not None:
        folder.possible(out)
    data = dataset(config.data) if data is None else data
    split = partitions(config, data)
    jobs = [_job(text, config, split[0].n) for text in config.algorithms]
    if config.reference:
        reference = _job(config.reference, config, split[0].n, reference=True)
        jobs += [reference] if reference.label not in {job.label for job in jobs} else []
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
            comparison = _compare(config, problem, jobs, report, objects)
        comparison.results.attrs["identity"] = json.dumps(what)
        if out is not None:
            comparison._write(Path(out), what)
    return comparison


def train(name: str, config: Config | None = None, **options: Any) -> "Comparison":
    """One algorithm, tuned and repeated as in `compare`, alone: `train("fedavg", rounds=100)`.

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
    alone: dict[str, Any] = {"reference": ""} | options
    return compare(config, algorithms=(name,), **alone)


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


def _compare(config, problem, jobs, report, objects):
    """Runs the jobs in order, while the next ones compile in threads.

    On the CPU two run at a time: programs of small models keep little more than one core busy. Over
    several devices one does: all hosts must start them in the same order.
    """
    about = folder.provenance() | {"objects": objects}
    options = {"rounds": config.rounds, "every": config.every}
    threads = max(1, min(2, len(jobs), os.cpu_count() or 1))
    compilers = ThreadPoolExecutor(threads)
    alone = problem.mesh is not None or jax.default_backend() != "cpu"
    runners = ThreadPoolExecutor(1 if alone else threads)

    def work(job, compiling):
        program, values = compiling.result()
        report(job.label, "running", None)
        start = time.perf_counter()
        state, history, evaluations = jax.block_until_ready(program(*values))
        result = _result(job, history, evaluations)
        result["elapsed"] = time.perf_counter() - start
        state = jax.tree.map(lambda a: np.asarray(a[:, int(result["chosen"])]), state)
        result["personal"], result["reference"] = hasattr(state, "personal"), job.reference
        result["untrained"] = _untrained(state, problem.params, config.byzantine)
        return result, state

    results, states, wait = [], {}, True
    try:
        compiling = [compilers.submit(_program, problem, job, **options) for job in jobs]
        running = [runners.submit(work, *pair) for pair in zip(jobs, compiling)]
        del compiling
        for job in jobs:
            report(job.label, "", None)
            result, states[job.label] = running.pop(0).result()
            results.append(result)
            report(job.label, "done", result)
    except KeyboardInterrupt:  # a program cannot be stopped, but nobody waits for it
        wait = False
        raise Interrupted(
            f"interrupted with {len(results)} of {len(jobs)} algorithms done, and nothing is kept "
            "(a sweep into a folder keeps what is done, and goes on)"
        ) from None
    finally:
        compilers.shutdown(wait=False, cancel_futures=True)  # first, so that no run waits for one
        runners.shutdown(wait=wait, cancel_futures=True)
        compilers.shutdown(wait=wait)
    return Comparison(config, _dataset(config, problem, jobs, results, about), states)


def _result(job, history, evaluations):
    """Arrays `[L, S, ...]` of one algorithm, and the learning rate that validation chose."""
    turn = lambda a: np.swapaxes(np.asarray(a), 0, 1)
    scores, totals = jax.tree.map(turn, (evaluations, history.totals()))
    diverged, choice = (scores.pop(k)[:, :, -1] for k in ("diverged", "choice"))
    chosen = _choose(choice, diverged)
    return {
        **scores,
        "train_loss": turn(history.loss),
        "chosen": chosen,
        "edge": len(job.lr) > 1 and chosen in (0, len(job.lr) - 1) and not diverged.all(),
        "diverged": diverged,
        **{k: totals[k] for k in ("grads", "megabytes", "seconds")},
    }


def _choose(scores, diverged):
    """The rate with the best mean of scores `[L, S]`, of those where fewest seeds diverged."""
    bad = diverged.sum(1)
    total = np.where(diverged, 0, scores.astype(float)).sum(1)
    mean = total / np.maximum(diverged.shape[1] - bad, 1)
    return int(np.where(bad == bad.min(), mean, -np.inf).argmax())


def _untrained(state, params, byzantine):
    """How many of the honest clients still have the initial model as their own, by seed."""
    if not hasattr(state, "personal"):
        return np.zeros(len(jax.tree.leaves(params)[0]), int)
    same = lambda a, b: (a == np.asarray(b)[:, None]).reshape(*a.shape[:2], -1).all(-1)
    still = jax.tree.leaves(jax.tree.map(same, state.personal, params))
    return np.all(np.stack(still), axis=0, keepdims=True)[0, :, byzantine:].sum(1)


# name: dimensions after (algorithm, lr), long name, unit
_VARIABLES = MappingProxyType(
    {
        "score": (("seed", "evaluation"), "test score on all labels", "1"),
        "own_score": (("seed", "evaluation"), "test score on clients' own labels", "1"),
        "personal_score": (
            ("seed", "evaluation"),
            "test score of the personal models on all labels",
            "1",
        ),
        "valid_score": (("seed", "evaluation"), "validation score on all labels", "1"),
        "valid_own_score": (("seed", "evaluation"), "validation score on own labels", "1"),
        "loss": (("seed", "evaluation"), "test loss on all labels", "1"),
        "own_loss": (("seed", "evaluation"), "test loss on clients' own labels", "1"),
        "worst": (("seed", "evaluation"), "test score on own labels of the worst tenth", "1"),
        "clients": (
            ("seed", "evaluation", "client"),
            "test score of each client on its own labels",
            "1",
        ),
        "consensus": (("seed", "evaluation"), "mean squared distance to the mean model", "1"),
        "train_loss": (("seed", "round"), "training loss of participating clients", "1"),
        "grads": (("seed", "round"), "minibatch gradients so far, all clients", "1"),
        "megabytes": (("seed", "round"), "sent and received so far, all clients", "MB"),
        "seconds": (("seed", "round"), "simulated time so far", "s"),
        "diverged": (("seed",), "whether the run diverged, by its scores or its loss", "1"),
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
        ("personal", "whether clients have models of their own", np.int8),
        ("reference", "whether it was added for reference", np.int8),
        ("untrained", "clients whose own model is the initial one, at the chosen rate", np.int32),
    ):
        values = np.array([r[name] for r in results], kind)
        dims = ("algorithm", "seed")[: values.ndim]
        variables[name] = (dims, values, {"long_name": words, "units": "1"})
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
    """One algorithm in numbers, NaN if a seed diverged at the chosen rate.

    `_half` is half a 95% t interval over seeds, NaN below 4 of them.
    """

    algorithm: str
    lr: float  # the chosen learning rate
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
        """The score on all labels that costs are measured to."""
        if self.config.target:
            return self.config.target
        final = self._final("score")[self.results["reference"].values == 0].mean(1)
        final = final[np.isfinite(final)]
        return float(0.9 * np.median(final)) if len(final) else float("nan")

    def _final(self, name):
        """`[algorithms, seeds]` at the chosen rates, NaN for runs that diverged."""
        best = self.best()
        values = best[name].isel(evaluation=-1).where(best["diverged"] == 0)
        return values.transpose("algorithm", "seed").values.astype(float)

    def _scores(self):
        """The scores of every algorithm `[algorithms, seeds]`, by their names in a row."""
        score, own, worst = map(self._final, ("score", "own_score", "worst"))
        return dict(zip(_SCORES, (score, score - score[:1], own, own - own[:1], worst)))

    def rows(self) -> list[Row]:
        """The table in numbers."""
        best, target, scores = self.best(), self.target, self._scores()
        rows = []
        for i, label in enumerate(best["algorithm"].values):
            one = best.isel(algorithm=i)
            totals = {k: one[k].values for k in ("grads", "megabytes", "seconds")}
            totals["rounds"] = np.broadcast_to(one["round"].values, totals["grads"].shape)
            cost = metrics.to_target(one["score"].values, totals, target)
            got = np.isfinite(cost["rounds"])
            found = {}
            for name in _SCORES:
                found[name], found[f"{name}_half"], *_ = metrics.interval(scores[name][i])
            values = {
                "algorithm": str(label),
                "lr": float(one["rate"]),
                "edge": bool(one["edge"]),
                "diverged": int(one["diverged"].sum()),
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
            f"Learning rates: chosen by the validation score on {choice}.",
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
                f"{r.lr:g}" + ("*" if r.edge else ""),
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


_PARTS = 3, 6  # columns after the algorithm where those of own labels and of costs begin
_REFERENCE = "every client trains alone, on the same cohorts, and sends nothing"
_OWN = {
    "natural": "on its own test examples",
    "labels": "on the test set re-weighted by its labels",
    "targets": "on the test set re-weighted by the tenths of its targets",
}


def _rule(config, labels):
    if parse(config.partition).name == "natural":
        return "natural"
    return "labels" if labels else "targets"


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
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from jaxfl.sweeps.progress import two_lines

    wide, stages, now = max(map(len, labels)), {}, {"label": ""}
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    compiling = "compiling, which takes longest the first time"
    with two_lines(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(labels), words="")

        def report(label, stage, result):
            if stage == "running":  # said by the thread that runs it
                stages[label] = stage
            elif result is None:
                now["label"] = label
            if result is None:
                bar.update(task, words=f"{now['label']} {stages.get(now['label'], compiling)}")
                return
            chosen = result["chosen"]
            score, own = (result[k][chosen, :, -1].mean() for k in ("score", "own_score"))
            line = f"{label:{wide}}  all labels {score:.3f}  own labels {own:.3f}  "
            line += f"({result['elapsed']:.1f} s)"
            bar.console.print(line, highlight=False, markup=False)
            bar.advance(task)

        yield report
