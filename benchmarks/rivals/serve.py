"""The protocol that all rivals speak, on NumPy and the standard library only.

A rival prepares, runs a round (all rounds if they are one program), prints
`{"ready": true, "cold": seconds, ...}`, then for each line `go` on stdin runs `--rounds` rounds
from the initial model and prints `{"seconds": ..., "rounds": ..., ...}`; at `quit` it prints its
peak memory and versions. With `--check FILE` it instead runs two rounds on the given minibatches in
float64 and without dropout, prints a checksum of the model, and writes it to the file (`check.py`
compares).
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

LOADED = time.time()


class Rival(ABC):
    """What a script defines for each work item it can do.

    For `--check` also `check(rounds)`: the model after rounds on the given minibatches, by name.
    """

    whole = False  # rounds are one program: getting ready means a run of all of them

    @abstractmethod
    def run(self, rounds: int) -> None:
        """So many rounds from the initial model; returns when they are done."""

    def result(self) -> dict[str, Any]:
        """What the last run came to, outside the clock: loss, accuracy."""
        return {}


def batches(data: dict[str, np.ndarray], rounds: int) -> list[list[np.ndarray]]:
    """The given minibatches: per round and client, rows [steps, batch]."""
    return [
        [i * int(data["size"]) + rows for i, rows in zip(cohort, index)]
        for cohort, index in zip(data["cohorts"][:rounds], data["index"][:rounds])
    ]


def wide(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In float64: rounding of float32 grew to 2e-2 of the way in two rounds of a CNN."""
    return {k: a.astype(np.float64) if a.dtype == np.float32 else a for k, a in data.items()}


def serve(
    works: dict[str, Callable[[dict[str, np.ndarray]], Rival]],
    packages: tuple[str, ...],
    double: Callable[[], Any],
    set_threads: Callable[[int], Any] | None = None,
) -> None:
    """Runs a script.

    Args:
        works: by work item, what makes its rival from the arrays of the file.
        packages: whose versions are reported.
        double: makes float64 the default, for `--check`.
        set_threads: sets the number of threads; without `--threads`, the fastest of the powers
            of two up to the number of cores is chosen after the first round.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True, choices=works)
    parser.add_argument("--data", required=True, help="written by benchmarks/work.py")
    parser.add_argument("--rounds", type=int, help="default: 10, with --check 2")
    parser.add_argument("--threads", type=int, help="of PyTorch; JAX takes all cores")
    parser.add_argument("--check", metavar="FILE")
    parser.add_argument("--started", type=float, default=LOADED, help="the caller's time.time()")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed goes to stderr

    with np.load(args.data) as file:
        data = {name: file[name] for name in file.files}
    if args.check:
        double()
        data = wide(data)
    threads = args.threads or os.cpu_count() or 1
    if set_threads:
        set_threads(threads)
    rival = works[args.work](data)
    if args.check:
        found = rival.check(args.rounds or 2)
        np.savez(args.check, **found)  # pyright: ignore[reportArgumentType]
        model = [a.ravel() for k, a in found.items() if a.dtype.kind == "f" and k != "curve"]
        flat = np.concatenate(model)
        answers.write(json.dumps({"sum": flat.sum(), "norm": np.linalg.norm(flat)}) + "\n")
        return
    rounds = args.rounds or 10
    rival.run(rounds if rival.whole else 1)
    ready = {"ready": True, "cold": time.time() - args.started}
    if set_threads:
        if not args.threads:
            threads = _fastest(rival, set_threads, threads)
        ready["threads"] = threads
    answers.write(json.dumps(ready) + "\n")

    for line in map(str.strip, sys.stdin):
        if line == "go":
            start = time.perf_counter()
            rival.run(rounds)
            seconds = time.perf_counter() - start
            done = {"seconds": seconds, "rounds": rounds, **rival.result()}
            answers.write(json.dumps(done) + "\n")
        elif line == "quit":
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    versions = {name: importlib.metadata.version(name) for name in packages}
    last = {
        "megabytes": peak / (1e6 if sys.platform == "darwin" else 1e3),
        "versions": {"python": platform.python_version(), **versions},
    }
    answers.write(json.dumps(last) + "\n")


def _fastest(rival, set_threads, cores):
    """At least half a second for each number of threads, twice, alternating."""
    start = time.perf_counter()
    rival.run(1)
    rounds = max(1, int(0.5 / (time.perf_counter() - start)))
    choices = [2**k for k in range(cores.bit_length()) if 2**k <= cores]
    seconds = dict.fromkeys(choices, float("inf"))
    for threads in 2 * choices:
        set_threads(threads)
        start = time.perf_counter()
        rival.run(rounds)
        seconds[threads] = min(seconds[threads], time.perf_counter() - start)
    best = min(choices, key=lambda k: seconds[k])
    set_threads(best)
    return best
