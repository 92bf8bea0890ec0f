"""The progress of a sweep on the terminal."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np


class Report(NamedTuple):
    """What the progress is told."""

    step: Callable[[int], None]  # rounds of runs that have passed
    done: Callable[[int, dict[str, np.ndarray]], None]  # a chunk
    say: Callable[[str], None] | None = None  # words, from now on in place of others


def two_lines(*columns: Any, **options: Any) -> Any:
    """A bar, and below it the words of its task, cut where the terminal ends."""
    from rich.progress import Progress
    from rich.text import Text

    class TwoLines(Progress):
        def get_renderables(self):
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                if task.fields["words"]:
                    yield Text("  " + task.fields["words"], no_wrap=True, overflow="ellipsis")

    return TwoLines(*columns, **options)


@contextlib.contextmanager
def progress(made: Any, results: list[Any], show: bool) -> Iterator[Report]:
    """A bar with elapsed and remaining time, and the best setting so far."""
    if not show:
        yield Report(lambda k: None, lambda i, found: None)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    rounds = made.space.config.rounds
    left = sum(len(c.places) for c, found in zip(made.chunks, results) if found is None)
    console = Console(stderr=True)
    kept = made.runs - left
    if kept:
        console.print(f"{kept} of {made.runs} runs were there already", highlight=False)
    best: dict[str, Any] = {"score": -math.inf, "runs": kept}
    lock = threading.Lock()
    with two_lines(*columns, console=console, transient=True) as bar:
        words = "compiling, which takes longest the first time"
        task = bar.add_task(f"{kept} of {made.runs} runs", total=left * rounds, words=words)

        def step(k):
            words = best.get("said") or best.get("words", "running")
            bar.update(task, advance=k, words=words)

        def done(i, found):
            with lock:
                best["runs"] += len(found["status"])
                final = _final(found)
                if len(final) and np.nanmax(final, initial=-math.inf) > best["score"]:
                    k = int(np.nanargmax(final))
                    best["score"] = float(final[k])
                    chunk = made.chunks[i]
                    run = made.groups[chunk.group].runs[chunk.places[k]]
                    best["words"] = f"best {best['score']:.3f} {_setting(made, run)}"
                    step(0)
                bar.update(task, description=f"{best['runs']} of {made.runs} runs")

        for i, found in enumerate(results):
            if found is not None:
                done(i, found)
        best["runs"] = kept

        def say(words):
            best["said"] = words
            bar.update(task, words=words)

        yield Report(step, done, say)


def _final(found):
    """The last validation scores of the runs of a chunk, NaN if they diverged."""
    scores = found["choice"]
    last = np.isfinite(scores).sum(1) - 1
    final = np.take_along_axis(scores, np.maximum(last, 0)[:, None], 1)[:, 0]
    return np.where((found["status"] == 3) | (last < 0), np.nan, final)


def _setting(made, run):
    """The setting of a run in words."""
    axes = made.space.axes
    at = np.unravel_index(int(np.flatnonzero(made.where.ravel() == run)[0]), made.where.shape)
    return ", ".join(f"{name}={values[k]}" for (name, values), k in zip(axes.items(), at))
