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
    choices: tuple[str, ...] = ()  # ways to do the same; the fastest is chosen after a first round

    def choose(self, name: str) -> None:
        """Takes one of `choices`."""
        raise ValueError(f"no choice {name!r}, there are {self.choices}")

    def memory(self) -> dict[str, float]:
        """Peak memory of an accelerator, `{"device megabytes": ...}`."""
        return {}

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
    prepare: Callable[[str, str], Any] | None = None,
) -> None:
    """Runs a script.

    Args:
        works: by work item, what makes its rival from the arrays of the file.
        packages: whose versions are reported.
        double: makes float64 the default, for `--check`.
        set_threads: sets the number of threads; without `--threads`, the fastest of the powers
            of two up to the number of cores is chosen after the first round, on the CPU.
        prepare: takes device ("cpu", "cuda") and precision ("float32", "tf32", "bfloat16" compute);
            without it a script runs in float32 on the CPU.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True, choices=works)
    parser.add_argument("--data", required=True, help="written by benchmarks/work.py")
    parser.add_argument("--rounds", type=int, help="default: 10, with --check 2")
    parser.add_argument("--threads", type=int, help="of PyTorch; JAX takes all cores")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=("float32", "tf32", "bfloat16"))
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
    if prepare:
        prepare(args.device, args.precision)
    elif (args.device, args.precision) != ("cpu", "float32"):
        parser.error("this rival runs in float32 on the CPU only")
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
    ready |= {"device": args.device, "precision": args.precision}
    if rival.choices:
        ready["choice"] = _fastest(rival, rival.choices, rival.choose)
    if set_threads:
        if not args.threads and args.device == "cpu":
            choices = [2**k for k in range(threads.bit_length()) if 2**k <= threads]
            threads = _fastest(rival, choices, set_threads)
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
    versions = {name: importlib.metadata.version(name) for name in packages}
    last = {
        "megabytes": _peak() / 1e6,
        **rival.memory(),
        "versions": {"python": platform.python_version(), **versions},
    }
    answers.write(json.dumps(last) + "\n")


def _peak():
    """Bytes of memory; what Linux counts for `getrusage` begins at the parent's."""
    if sys.platform == "linux":
        with open("/proc/self/status") as lines:
            return next(1024 * int(a.split()[1]) for a in lines if a.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def _fastest(rival, choices, choose):
    """At least half a second for each choice, twice, alternating."""
    start = time.perf_counter()
    rival.run(1)
    rounds = max(1, int(0.5 / (time.perf_counter() - start)))
    seconds = dict.fromkeys(choices, float("inf"))
    for choice in choices:  # whatever a first time costs
        choose(choice)
        rival.run(1)
    for choice in 2 * list(choices):
        choose(choice)
        start = time.perf_counter()
        rival.run(rounds)
        seconds[choice] = min(seconds[choice], time.perf_counter() - start)
    best = min(choices, key=lambda k: seconds[k])
    choose(best)
    return best
