"""The main job: several algorithms on the same non-IID data, tuned alike, as a table and a figure.

Every algorithm's learning rates x seeds are one compiled program. A seed fixes the partition, the
initial model and all that is drawn during the run (`Config.vary` adds the split and the graph), and
is the same for every algorithm, so that differences are paired. Every algorithm has two scores, on
all labels and on its clients' own, and `Config.reference` a row beside them.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.engine import devices
from jaxfl.engine.clients import Clients
from jaxfl.engine.contract import Personal, check
from jaxfl.engine.grid import grid
from jaxfl.engine.simulate import mean_loss, simulate
from jaxfl.networks.kinds import stackable
from jaxfl.runs import folder
from jaxfl.runs.checkpoint import Interrupted
from jaxfl.runs.identity import Exact, Summed, identity
from jaxfl.studies import experiment
from jaxfl.studies.comparison import Comparison, _claimed
from jaxfl.studies.config import Config
from jaxfl.studies.dataset import DIMENSIONS, FLAGS, STATUS, VARIABLES
from jaxfl.studies.experiment import compiled, dataset, partitions

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
    tuned: str  # the field whose values are tried, if any
    lr: tuple[float, ...]  # these values
    networks: list[Any]  # one, or one for each seed
    reference: bool = False


def _job(text, config, n, reference=False):
    if reference:  # no cohort is larger than all, and what nobody compares with nobody attacks
        config = dataclasses.replace(config, cohort=min(config.cohort, n), byzantine=0)

    job, seeds = experiment.job(text, config), range(config.seed, config.seed + config.seeds)
    several = seeds if experiment.drawn(config, job) else seeds[:1]
    made = [experiment.network(config, job, n, seed) for seed in several]
    made = stackable(made)
    on = experiment.graph_of(config, job)
    label = job.name + (f" @ {on.name}{on.text()}" if on else "")
    made = [experiment.attacked(config, m, n) for m in made]
    return _Job(label, job.alg, job.tuned, job.lr, made, reference)


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
    alg = grid(job.alg, **({job.tuned: list(job.lr)} if job.tuned else {}))
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

    The learning rate (or what else an algorithm tunes: one field may take several values, as in
    `"dadao(smoothness=20, convexity=[0.5, 1], chi1=2)"`) with the best mean validation score at the
    end is chosen, on clients' own labels for methods with personal models, else on all labels; one
    at which no seed diverges comes before all others. Everything reported is of the test examples.
    `Local` is added for reference, trained on the same cohorts. Your own algorithm takes part under
    its name, once it is known: `jaxfl.algorithms.ALGORITHMS["mine"] = Mine`.

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
        result["personal"], result["reference"] = isinstance(state, Personal), job.reference
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


_COSTS = ("grads", "megabytes", "seconds")


def _result(job, history, evaluations):
    """Arrays `[L, S, ...]` of one algorithm, and the learning rate that validation chose."""
    turn = lambda a: np.swapaxes(np.asarray(a), 0, 1)
    scores, totals = jax.tree.map(turn, (evaluations, history.totals()))
    diverged, choice = (scores.pop(k) for k in ("diverged", "choice"))
    rounds, diverged = diverged.shape[-1], diverged[:, :, -1]
    chosen = _choose(choice[:, :, -1], diverged)
    some = lambda a: turn(a).reshape(*diverged.shape, rounds, -1)  # those since an evaluation
    if "clients" in scores:
        scores["clients"] = scores["clients"][:, :, -1]
    return {
        **scores,
        "train_loss": mean_loss(some(history.loss), some(history.grads)),
        "chosen": chosen,
        "edge": len(job.lr) > 1 and chosen in (0, len(job.lr) - 1) and not diverged.all(),
        "status": (STATUS.index("diverged") * diverged).astype(np.int8),
        "stopped": np.full(diverged.shape, history.loss.shape[-1], np.int32),
        **{k: totals[k].reshape(*diverged.shape, rounds, -1)[..., -1] for k in _COSTS},
    }


def _choose(scores, diverged):
    """The rate with the best mean of scores `[L, S]`, of those where fewest seeds diverged."""
    bad = diverged.sum(1)
    total = np.where(diverged, 0, scores.astype(float)).sum(1)
    mean = total / np.maximum(diverged.shape[1] - bad, 1)
    return int(np.where(bad == bad.min(), mean, -np.inf).argmax())


def _untrained(state, params, byzantine):
    """How many of the honest clients still have the initial model as their own, by seed."""
    if not isinstance(state, Personal):
        return np.zeros(len(jax.tree.leaves(params)[0]), int)
    same = lambda a, b: (a == np.asarray(b)[:, None]).reshape(*a.shape[:2], -1).all(-1)
    own = jax.vmap(lambda state: state.personal.all())(state)
    still = jax.tree.leaves(jax.tree.map(same, own, params))
    return np.all(np.stack(still), axis=0, keepdims=True)[0, :, byzantine:].sum(1)


def _dataset(config, problem, jobs, results, provenance):
    import xarray as xr

    many = max(1, *(len(job.lr) for job in jobs))
    sizes = {"round": config.rounds // config.every, "client": problem.first[0].n}
    metric, variables = problem.evaluate.metric, {}
    for name, (label, words, unit) in VARIABLES.items():
        rows = [r.get(name) for r in results]
        if all(row is None for row in rows):
            continue
        kind = np.result_type(*(row for row in rows if row is not None))
        dims = DIMENSIONS.get(name, ("round",))
        shape = (len(jobs), many, config.seeds, *(sizes[d] for d in dims))
        values = np.full(shape, np.nan if kind.kind == "f" else 0, kind)
        for i, row in enumerate(rows):
            if row is not None:
                values[i, : len(row)] = row
        about = {"long_name": words, "units": unit} | (FLAGS if name == "status" else {})
        variables[label.format(m=metric)] = (("algorithm", "lr", "seed", *dims), values, about)
    rates = np.full((len(jobs), many), np.nan)
    for i, job in enumerate(jobs):
        rates[i, : len(job.lr)] = job.lr
    about = {"long_name": "learning rate, or whatever is tuned", "units": "1"}
    variables["rate"] = (("algorithm", "lr"), rates, about)
    about = {"long_name": "the field that is tuned", "units": "1"}
    variables["tuned"] = (("algorithm",), [job.tuned for job in jobs], about)
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
    every = np.arange(config.every, config.rounds + 1, config.every)
    coordinates = {
        "algorithm": [job.label for job in jobs],
        "lr": np.arange(many),
        "seed": np.arange(config.seed, config.seed + config.seeds),
        "round": ("round", every, {"long_name": "round"}),
        "client": np.arange(sizes["client"]),
    }
    found = {
        "metric": metric,
        "config": json.dumps(dataclasses.asdict(config)),
        "provenance": json.dumps(provenance | {"end": folder.now()}),
    }
    used = {d for dims, *_ in variables.values() for d in dims}
    coordinates = {k: v for k, v in coordinates.items() if k in used}
    return xr.Dataset(variables, coordinates, found)


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

    from jaxfl.studies.progress import two_lines

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
