"""Damaged checkpoints: every one gives the true values, or says that it is damaged.

    python benchmarks/fuzz_checkpoints.py [--mutants 5000] [--seed 0]

A folder of two checkpoints is copied and its files are changed at random, up to three times: bits
flipped, bytes replaced, removed, inserted, files truncated, emptied, swapped, deleted, filled with
noise, folders deleted. Then the newest is read, without and with `fallback`. Right are the values
that were saved (with `fallback` also those of the one before) and ValueError; wrong are other
numbers, another exception, more than a minute.
"""

import argparse
import collections
import functools
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from jaxfl.runs.checkpoint import Checkpoints

KINDS = (
    "flip",
    "replace",
    "cut",
    "insert",
    "truncate",
    "empty",
    "noise",
    "swap",
    "delete",
    "folder",
)
PLACES = st.integers(0, 10**6)
CHANGES = st.tuples(st.sampled_from(KINDS), PLACES, PLACES, st.binary(max_size=9))


def tree(t: int) -> dict[str, Any]:
    """What is saved in round t."""
    rng = np.random.default_rng(t)
    return {
        "state": [rng.normal(size=(20, 5)), rng.integers(0, 99, 7), np.float32(t)],
        "history": {"loss": rng.normal(size=t), "none": np.zeros((0, 3))},
    }


def prepare(folder: Path) -> None:
    """Two checkpoints."""
    with Checkpoints(folder) as checkpoints:
        for t in (10, 20):
            checkpoints.save(t, tree(t), {"run": "a"})


def change(folder: Path, kind: str, which: int, where: int, what: bytes) -> None:
    """One change of a file in a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if not files:
        return
    path = files[which % len(files)]
    b = path.read_bytes()
    k, noise = where % max(len(b), 1), what or b"\0"
    if kind == "folder":
        shutil.rmtree(path.parent)
    elif kind == "delete":
        path.unlink()
    elif kind == "swap":
        path.write_bytes(files[where % len(files)].read_bytes())
    else:
        changed = {
            "flip": b[:k] + bytes([b[k] ^ 1 << len(what) % 8]) + b[k + 1 :] if b else b,
            "replace": b[:k] + noise + b[k + len(noise) :],
            "cut": b[:k] + b[k + len(noise) :],
            "insert": b[:k] + noise + b[k:],
            "truncate": b[:k],
            "empty": b"",
            "noise": np.random.default_rng([*noise]).bytes(len(b)),
        }
        path.write_bytes(changed[kind])


def outcome(folder: Path, fallback: bool) -> str:
    """ "newest", "older" or "refused"; AssertionError for numbers that nobody saved."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            t, found = Checkpoints(folder, fallback=fallback).restore(tree)
    except ValueError as error:
        assert str(folder / "20") in str(error) or str(folder) in str(error), error
        return "refused"
    jax.tree.map(np.testing.assert_array_equal, found, tree(t))
    return {20: "newest", 10: "older"}[t]


def fuzz(mutants: int, number: int, folder: Path) -> dict[str, Any]:
    """Counts of outcomes, by kind of change where there was only one."""
    prepare(folder / "whole")
    counts: Any = collections.defaultdict(collections.Counter)
    slowest = 0.0

    @seed(number)
    @settings(
        max_examples=mutants,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[*HealthCheck],
    )
    @given(st.lists(CHANGES, min_size=1, max_size=3), st.booleans())
    def one(changes, fallback):
        nonlocal slowest
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder / "whole", work)
        for each in changes:
            change(work / "20", *each)
        start = time.perf_counter()
        found = outcome(work, fallback)
        slowest = max(slowest, time.perf_counter() - start)
        assert slowest < 60
        assert found != "older" or fallback or not (work / "20").is_dir()
        kind = changes[0][0] if len(changes) == 1 else "several"
        counts[kind][found] += 1

    one()
    total = functools.reduce(lambda a, b: a + b, counts.values())
    return {
        "mutants": total.total(),
        "wrong": 0,
        "outcomes": dict(total),
        "by_change": {k: dict(v) for k, v in sorted(counts.items())},
        "slowest_seconds": slowest,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mutants", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    from common import record

    with tempfile.TemporaryDirectory() as folder:
        results = fuzz(asked.mutants, asked.seed, Path(folder))
    print(results["outcomes"])
    record("fuzz_checkpoints", results)


if __name__ == "__main__":
    main()
