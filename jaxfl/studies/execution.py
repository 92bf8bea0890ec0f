"""Chunks of runs: rounds pass, runs that are finished leave."""

import contextlib
import math
import operator
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxfl.engine.simulate import mean_loss
from jaxfl.runs.checkpoint import Interrupted, graceful
from jaxfl.runs.run import _chunk_size
from jaxfl.studies.plan import Group
from jaxfl.studies.progress import progress as progressing


class Stop(NamedTuple):
    """When a run leaves its sweep before the end: seen at evaluations, on validation data."""

    at: float = math.inf  # a score to reach
    patience: int = 0  # evaluations without a better score; 0 is without end


class _Record:
    """What is kept of the runs of a chunk, filled in as rounds pass."""

    _OWN = ("totals", "best", "since", "status", "stopped")

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
            lost = values.pop("diverged")
            values |= dict(zip(("megabytes", "grads", "seconds"), self.totals[:, at], strict=True))
            values["train_loss"] = mean_loss(loss[:, here], grads[:, here])
            shape = (self.rounds // self.every,)
            for name, value in values.items():
                if name == "clients":  # only the last
                    self._row(name, value, value.shape[1:])[at[live]] = value[live]
                else:
                    self._row(name, value, shape)[at[live], place] = value[live]
            self._judge(at[live], values["choice"][live], lost[live], t + (e + 1) * self.every)

    def _judge(self, at, score, lost, t):
        better = score > self.best[at]
        self.since[at] = np.where(better, 0, self.since[at] + 1)
        self.best[at] = np.where(better, score, self.best[at])
        patience = self.stop.patience
        ended = np.where(bool(patience) & (self.since[at] >= patience), 2, 0)
        ended = np.where(score >= self.stop.at, 1, ended)
        lost = lost & ((ended > 0) | (t == self.rounds))  # a finite loss may come down again
        ended = np.where(lost | ~np.isfinite(score), 3, ended)
        self.status[at] = ended
        self.stopped[at[ended > 0]] = t

    def tree(self) -> dict[str, np.ndarray]:
        """Everything, as arrays by name."""
        return self.arrays | {k: getattr(self, k) for k in self._OWN}

    def restore(self, tree: dict[str, np.ndarray]) -> None:
        """What `tree` gave."""
        for name in self._OWN:
            setattr(self, name, np.array(tree.pop(name)))
        self.arrays = {name: np.array(a) for name, a in tree.items()}


def _run(
    group: Group,
    places: np.ndarray,
    stop: Stop,
    mesh: Any,
    pool: ThreadPoolExecutor,
    report: Callable[[int], None],
    keep: Any,
    asked: Callable[[], bool],
) -> dict[str, np.ndarray] | None:
    """The results of a chunk, leaves `[runs, ...]`; None if it was asked to stop before.

    Runs that have finished leave: the batch is halved when half of it has.

    Args:
        keep: `Partial` with what a killed process had of this chunk.
        asked: whether to stop, saving what there is.
    """
    rounds, every = group.config.rounds, group.config.every
    span = _chunk_size(rounds, every)
    record = _Record(len(places), rounds, every, stop)
    at, t, state, leaves = np.arange(len(places)), 0, None, None
    width = -(-group.width // _devices(mesh)) * _devices(mesh)
    if keep is not None and (saved := keep.read()):
        t, at, width = int(saved.pop("t")), saved.pop("at"), int(saved.pop("width"))
        _, _, like = group.program(width, span, mesh, pool).result()
        names = [f"state {k}" for k in range(like.num_leaves)]
        state = _spread(jax.tree.unflatten(like, [saved.pop(name) for name in names]), mesh)
        record.restore(saved)
        report(t * len(places))
    while t < rounds:
        begin, advance, _ = group.program(width, span, mesh, pool).result()
        if leaves is None:
            leaves = _placed(group, places[_filled(at, width)], mesh)
        if state is None:
            state = begin(leaves)
        state, history, scores = advance(leaves, state, np.int32(t))
        record.add(at, t, *jax.device_get((history, scores)))
        t += span
        report(span * len(places))
        live = np.flatnonzero(record.status[at] == 0)
        if not len(live) or t == rounds:
            report((rounds - t) * len(places))
            break
        half = width
        while half % 2 == 0 and half // 2 >= len(live) and half // 2 % _devices(mesh) == 0:
            half //= 2
        if half < width:
            rows = _filled(live, half)
            state = _spread(jax.tree.map(operator.itemgetter(rows), state), mesh)
            at, width, leaves = at[live], half, None
        ending = asked()
        if keep is not None and (ending or keep.due()):
            held = jax.device_get(jax.tree.leaves(state))
            own = {f"state {k}": a for k, a in enumerate(held)}
            keep.write(own | {"t": np.array(t), "at": at, "width": np.array(width)} | record.tree())
        if ending:
            return None
    return record.tree()


def _filled(rows, width):
    """Rows up to a width: the last one stands in for those that are missing."""
    return np.concatenate([rows, np.full(width - len(rows), rows[-1])])


def _devices(mesh):
    return mesh.size if mesh is not None else 1


def _spread(state, mesh):
    if mesh is None:
        return state
    return jax.device_put(state, jax.NamedSharding(mesh, jax.P("sweep")))


def _placed(group, places, mesh):
    leaves = group.rows(places)
    if mesh is None:
        return jax.device_put(leaves)
    specs = [jax.P("sweep") if own else jax.P() for own in group.batched]
    return jax.device_put(leaves, [jax.NamedSharding(mesh, spec) for spec in specs])


def execute(made: Any, stop: Stop, mesh: Any, store: Any, progress: bool) -> list[Any]:
    """Results by chunk; those in the folder are read, all others run.

    Raises:
        Interrupted: asked to stop by Ctrl-C or SIGTERM; what there was is in the folder.
    """
    results = [None if store is None else store.read(i) for i in range(len(made.chunks))]
    left = [i for i, result in enumerate(results) if result is None]
    threads = 1
    if mesh is None and jax.default_backend() == "cpu":  # small programs keep one core busy
        threads = max(1, min(2, len(left), os.cpu_count() or 1))
    compilers, runners = ThreadPoolExecutor(threads), ThreadPoolExecutor(threads)
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(progressing(made, results, progress))
        told = (lambda: False) if store is None else stack.enter_context(graceful(report.say))
        asked = lambda: ended.is_set() or told()

        def work(i):
            if asked():
                return None
            chunk = made.chunks[i]
            start = time.perf_counter()
            keep = None if store is None else store.partial(i)
            shared = (stop, mesh, compilers, report.step, keep, asked)
            found = _run(made.groups[chunk.group], chunk.places, *shared)
            if found is None:
                return None
            found["elapsed"] = np.array(time.perf_counter() - start)
            if store is not None:
                store.write(i, found)
            report.done(i, found)
            return found

        wait = True
        try:
            running = {i: runners.submit(work, i) for i in left}
            for i in left:
                results[i] = running.pop(i).result()
        except KeyboardInterrupt:  # at once: what threads compute or compile is nobody's now
            wait = False
            raise
        finally:
            ended.set()
            runners.shutdown(wait=False, cancel_futures=True)
            compilers.shutdown(wait=False, cancel_futures=True)
            runners.shutdown(wait=wait)
            compilers.shutdown(wait=wait)
    if store is not None and any(result is None for result in results):
        done = sum(len(found["status"]) for found in results if found is not None)
        raise Interrupted(
            f"stopped with {done} of {made.runs} runs finished, and the others as far as they "
            f"were, in {str(store.path)!r}; the same call goes on"
        )
    return results
