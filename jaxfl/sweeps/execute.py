"""Chunks of runs: rounds pass, runs that are finished leave."""

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxfl.simulate import _chunk_size
from jaxfl.sweeps.plan import Group
from jaxfl.sweeps.progress import progress as progressing


class Stop(NamedTuple):
    """When a run leaves its sweep before the end: seen at evaluations, on validation data."""

    at: float = math.inf  # a score to reach
    patience: int = 0  # evaluations without a better score; 0 is without end


class _Record:
    """What is kept of the runs of a chunk, filled in as rounds pass."""

    def __init__(self, runs: int, rounds: int, every: int, stop: Stop):
        self.rounds, self.every, self.stop = rounds, every, stop
        self.arrays: dict[str, np.ndarray] = {}
        self.totals = np.zeros((3, runs))
        self.best, self.since = np.full(runs, -np.inf), np.zeros(runs, int)
        self.status, self.stopped = np.zeros(runs, np.int8), np.full(runs, rounds)

    def _row(self, name, like, shape):
        if name not in self.arrays:
            kind = like.dtype if like.dtype.kind == "f" else np.float64
            self.arrays[name] = np.full((len(self.status), *shape), np.nan, kind)
        return self.arrays[name]

    def add(self, at: np.ndarray, t: int, history: Any, scores: dict[str, np.ndarray]) -> None:
        """Rounds from t on, of the runs `at`; those that are finished are left as they are."""
        few = len(at)
        up, down, loss, grads, clients, seconds = (
            np.asarray(getattr(history, k)[:few], float)
            for k in ("up", "down", "loss", "grads", "clients", "seconds")
        )
        cost = np.stack([(up + down) * clients / 8e6, grads * clients, seconds])
        evaluations = scores["score"].shape[1]
        for e in range(evaluations):
            here = slice(e * self.every, (e + 1) * self.every)
            self.totals[:, at] += cost[:, :, here].sum(-1)
            place, live = t // self.every + e, self.status[at] == 0
            values = {k: a[:few, e] for k, a in scores.items()}
            values |= dict(zip(("megabytes", "grads", "seconds"), self.totals[:, at], strict=True))
            values["train_loss"] = loss[:, here].mean(-1)
            shape = (self.rounds // self.every,)
            for name, value in values.items():
                if name == "clients":  # only the last
                    self._row(name, value, value.shape[1:])[at[live]] = value[live]
                else:
                    self._row(name, value, shape)[at[live], place] = value[live]
            self._judge(at[live], values["valid_score"][live], t + (e + 1) * self.every)

    def _judge(self, at, score, t):
        better = score > self.best[at]
        self.since[at] = np.where(better, 0, self.since[at] + 1)
        self.best[at] = np.where(better, score, self.best[at])
        patience = self.stop.patience
        ended = np.where(np.isfinite(score), 0, 3)
        ended = np.where((ended == 0) & (score >= self.stop.at), 1, ended)
        ended = np.where((ended == 0) & bool(patience) & (self.since[at] >= patience), 2, ended)
        self.status[at] = ended
        self.stopped[at[ended > 0]] = t

    def tree(self) -> dict[str, np.ndarray]:
        """Everything, as arrays by name."""
        own = ("totals", "best", "since", "status", "stopped")
        return self.arrays | {k: getattr(self, k) for k in own}


def _run(
    group: Group,
    places: np.ndarray,
    stop: Stop,
    mesh: Any,
    pool: ThreadPoolExecutor,
    report: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """The results of a chunk, leaves `[runs, ...]`.

    Runs that have finished leave: the batch is halved when half of it has.
    """
    rounds, every = group.config.rounds, group.config.every
    span = _chunk_size(rounds, every)
    record = _Record(len(places), rounds, every, stop)
    at = np.arange(len(places))
    width, state, leaves = -(-group.width // _devices(mesh)) * _devices(mesh), None, None
    for t in range(0, rounds, span):
        begin, advance = group.program(width, span, mesh, pool).result()
        if leaves is None:
            leaves = _placed(group, places[_filled(at, width)], mesh)
        if state is None:
            state = begin(leaves)
        state, history, scores = advance(leaves, state, np.int32(t))
        record.add(at, t, *jax.device_get((history, scores)))
        report(span * len(at))
        live = np.flatnonzero(record.status[at] == 0)
        if not len(live):
            report((rounds - t - span) * len(at))
            break
        half = width
        while half % 2 == 0 and half // 2 >= len(live) and half // 2 % _devices(mesh) == 0:
            half //= 2
        if half < width and t + span < rounds:
            report((rounds - t - span) * (len(at) - len(live)))
            rows = _filled(live, half)
            state = _taken(state, rows, mesh)
            at, width, leaves = at[live], half, None
    return record.tree()


def _filled(rows, width):
    """Rows up to a width: the last one stands in for those that are missing."""
    return np.concatenate([rows, np.full(width - len(rows), rows[-1])])


def _devices(mesh):
    return mesh.size if mesh is not None else 1


def _taken(state, rows, mesh):
    part = jax.tree.map(lambda a: a[rows], state)
    return part if mesh is None else jax.device_put(part, jax.NamedSharding(mesh, jax.P("sweep")))


def _placed(group, places, mesh):
    leaves = group.rows(places)
    if mesh is None:
        return jax.device_put(leaves)
    specs = [jax.P("sweep") if own else jax.P() for own in group.batched]
    return jax.device_put(leaves, [jax.NamedSharding(mesh, spec) for spec in specs])


def execute(made, stop, mesh, store, progress):
    """Results by chunk; those in the folder are read, all others run."""
    results: list[Any] = [None if store is None else store.read(i) for i in range(len(made.chunks))]
    left = [i for i, result in enumerate(results) if result is None]
    threads = 1
    if mesh is None and jax.default_backend() == "cpu":  # small programs keep one core busy
        threads = max(1, min(2, len(left), os.cpu_count() or 1))
    compilers, runners = ThreadPoolExecutor(threads), ThreadPoolExecutor(threads)
    with progressing(made, results, progress) as report:

        def work(i):
            chunk = made.chunks[i]
            start = time.perf_counter()
            found = _run(made.groups[chunk.group], chunk.places, stop, mesh, compilers, report.step)
            found["elapsed"] = np.array(time.perf_counter() - start)
            if store is not None:
                store.write(i, found)
            report.done(i, found)
            return found

        try:
            running = {i: runners.submit(work, i) for i in left}
            for i in left:
                results[i] = running.pop(i).result()
        finally:
            runners.shutdown(wait=False, cancel_futures=True)
            compilers.shutdown(wait=False, cancel_futures=True)
            runners.shutdown(wait=True)
            compilers.shutdown(wait=True)
    return results
