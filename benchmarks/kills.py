"""Runs that are killed at random moments and started again end as if nothing had happened.

    python benchmarks/kills.py [CASE ...] [--kills 30] [--seed 0]

Each case is run once in peace. Then the same is started as a process, killed with SIGKILL after a
random time, and started again, as often as `--kills` says, and then left to end. Everything that it
returns and writes is compared with the first run, byte for byte.
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()


def _train(alg, network):
    """Least squares on 20 clients, with a checkpoint after every chunk of two rounds."""

    def case(folder: Path, tick: Callable, rounds: int) -> Any:
        import jax
        import jax.numpy as jnp

        import jaxfl
        from jaxfl import writers

        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(400, 50)), rng.normal(size=400)
        loss = lambda w, examples, key: jnp.square(examples["x"] @ w - examples["y"])
        split = (np.arange(400), np.arange(20) * 20, np.full(20, 20))
        return jaxfl.run(
            alg(),
            jaxfl.Clients.make({"x": x, "y": y}, split, loss, batch=5),
            network(),
            jnp.zeros(50),
            jax.random.key(1),
            rounds=rounds,
            every=2,
            chunk=2,
            evaluate=lambda state: {"norm": jnp.abs(state.params).sum(), "params": state.params},
            checkpoint=folder / "checkpoints",
            writers=[writers.JSONLines(folder / "metrics.jsonl")],
            callbacks=[lambda t, part: tick()],
        )

    return case


def _scaffold():
    from jaxfl.algorithms import Scaffold

    return Scaffold(lr=0.001, steps=3)


def _choco():
    from jaxfl.algorithms import Choco
    from jaxfl.components.compressors import TopK

    return Choco(lr=0.001, gamma=0.3, compress=TopK(0.1))


def _uniform():
    from jaxfl.networks import Uniform

    return Uniform(20, 5)


def _ring():
    from jaxfl.networks import topology

    return topology("ring", 20)


def _sweep(folder: Path, tick: Callable, rounds: int) -> Any:
    """A sweep of 48 runs in 12 chunks, kept after every twentieth of its rounds; some leave."""
    import jaxfl
    from jaxfl.studies import execution, store

    add = execution._Record.add
    execution._Record.add = lambda *a: (add(*a), tick())[0]
    store._MINUTES = 0.0
    over = {"lr": [0.03, 0.1, 0.3, 1e30], "alpha": [0.1, 1.0, 10.0], "seed": 4}
    settings = {"rounds": rounds // 5, "every": 2, "model": "mlp(hidden=[8])"}
    ds = jaxfl.sweep(over, out=folder / "sweep", width=4, patience=8, **settings)
    return {name: ds[name].values for name in ds}


# name: case(folder, tick, rounds) -> pytree of arrays. It works in `folder`, where it may find what
# an earlier process left, and calls tick() whenever it has got further. Files that it leaves in
# `folder` (not in folders of it) are compared too.
CASES: dict[str, Callable] = {
    "scaffold": _train(_scaffold, _uniform),
    "choco": _train(_choco, _ring),
    "sweep": _sweep,
}


def child(name: str, folder: Path, rounds: int) -> None:
    """What the killed process does."""
    import jax

    tick = lambda: print("tick", flush=True)
    result = CASES[name](folder, tick, rounds)
    leaves = {jax.tree_util.keystr(p): np.asarray(a) for p, a in jax.tree.leaves_with_path(result)}
    np.savez(folder / "partial.npz", **leaves)
    os.replace(folder / "partial.npz", folder / "result.npz")


def start(name: str, folder: Path, rounds: int, cache: Path) -> subprocess.Popen:
    """Starts it."""
    folder.mkdir(parents=True, exist_ok=True)
    here = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", ""),
        "PYTHONPATH": str(HERE.parent.parent),
    }
    command = [sys.executable, str(HERE), "--child", name, str(folder), str(rounds)]
    return subprocess.Popen(
        command, env={**os.environ, **here}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every array of the result, and of every other file."""
    sums = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name[0] != "."}
    sums.pop("result.npz")
    with np.load(folder / "result.npz") as arrays:
        for name in arrays.files:
            a = arrays[name]
            sums[name] = f"{a.dtype}{a.shape}".encode() + a.tobytes()
    return {name: hashlib.sha256(b).hexdigest() for name, b in sums.items()}


def finish(process: subprocess.Popen) -> None:
    """Waits for the end; an error there is one here."""
    _, error = process.communicate()
    if process.returncode:
        raise RuntimeError(error.decode())


def kill(
    name: str, folder: Path, *, kills: int, rounds: int, within: float, seed: int
) -> dict[str, Any]:
    """Kills a case and compares.

    Args:
        name: of the case.
        folder: an empty one.
        kills: how many.
        rounds: of the run.
        within: seconds; every kill comes after a uniform time up to this, counted from the third
            progress of its process (something was saved since), every fourth from its start.
        seed: of these times.
    """
    rng, cache = random.Random(seed), folder / "cache"
    finish(start(name, folder / "whole", rounds, cache))
    moments, work = [], folder / "killed"
    while len(moments) < kills:
        process = start(name, work, rounds, cache)
        early = len(moments) % 4 == 3
        alive = b"" if early else [process.stdout.readline() for _ in range(3)][-1]
        wait = rng.uniform(0, 4 * within if early else within)
        time.sleep(wait)
        if process.poll() is not None:
            if process.returncode:
                finish(process)
            break  # it ended before its kill
        process.kill()
        process.communicate()
        left = sorted(p.name for p in work.glob("*/*") if p.is_dir())
        moments.append(
            {
                "seconds": wait,
                "from": "progress" if alive else "start",
                "saved": [int(p) for p in left if p.isdigit()],
                "half_written": any("tmp" in p for p in left),
            }
        )
    finish(start(name, work, rounds, cache))
    one, two = contents(folder / "whole"), contents(work)
    different = [k for k in {**one, **two} if one.get(k) != two.get(k)]
    return {
        "rounds": rounds,
        "kills": len(moments),
        "while_writing": sum(m["half_written"] for m in moments),
        "compared": sorted(one),
        "different": different,
        "equal": not different,
        "moments": moments,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=[*CASES])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    from common import record

    results = {}
    for name in asked.cases:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = kill(
                name,
                Path(folder),
                kills=asked.kills,
                rounds=asked.rounds,
                within=0.5,
                seed=asked.seed,
            )
        print({k: v for k, v in results[name].items() if k != "moments"}, flush=True)
    record("kills" if len(results) > 1 else f"kills_{asked.cases[0]}", results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
