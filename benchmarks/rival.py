"""Rivals as subprocesses in their own environments, and timings that take turns."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

HERE = Path(__file__).resolve().parent / "rivals"
# Large pages for what is allocated, as far as Linux has them free: of glibc from 2.35 on.
PAGES = "glibc.malloc.hugetlb=1"
# Name -> script, and the virtual environment that runs it; None for that of jaxfl.
RIVALS = {
    "jaxfl": ("../ours.py", None),
    "pytorch": ("pytorch.py", "pytorch"),
    "pfl": ("pfl_run.py", "pytorch"),
    "fedjax": ("fedjax_loop.py", "fedjax"),
    "gossipy": ("gossipy_run.py", "gossipy"),
    "naive_jax": ("naive_jax.py", None),
}


class RivalError(RuntimeError):
    """A rival that is not installed, or that ended before it answered."""


def command(name: str) -> list[str]:
    """Python and script of a rival.

    Args:
        name: one of `RIVALS`.

    Raises:
        RivalError: no such rival, or no environment for it.
    """
    if name not in RIVALS:
        raise RivalError(f"name must be one of {[*RIVALS]}, got {name!r}")
    script, venv = RIVALS[name]
    python = sys.executable
    if venv is not None:
        folder = Path(os.environ.get("JAXFL_RIVALS", HERE / ".venvs"))
        python = str(folder / venv / "bin" / "python")
        if not Path(python).exists():
            raise RivalError(
                f"{name} needs its own environment, and {python} does not exist; make it with "
                f"`benchmarks/rivals/setup.sh {venv}`"
            )
    return [python, str(HERE / script)]


class Rival:
    """A rival that has prepared and waits; `ready` is what it reported then.

    Args:
        name: one of `RIVALS`.
        work: "A" to "F", "cnn" or "resnet", of those that the rival can do.
        data: file of `work.write(work, ...)`.
        rounds: of one `go`.
        device: "cpu" or "cuda".
        precision: of local compute, "float32", "tf32" or "bfloat16".
        threads: of PyTorch; by default the rival tries. JAX takes all cores.

    Raises:
        RivalError: not installed, or it ended early; its stderr went to this process's.
    """

    def __init__(
        self,
        name: str,
        work: str,
        data: str | Path,
        rounds: int,
        device: str = "cpu",
        precision: str = "float32",
        threads: int | None = None,
    ):
        self.name = name
        options = ["--work", work, "--data", str(data), "--rounds", str(rounds)]
        options += ["--device", device, "--precision", precision]
        if threads is not None:
            options += ["--threads", str(threads)]
        self._process = subprocess.Popen(
            [*command(name), *options, "--started", repr(time.time())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"GLIBC_TUNABLES": PAGES, **os.environ},
        )
        self.ready = self._answer()

    def go(self) -> dict[str, Any]:
        """Runs the rounds from the initial model: `seconds`, `rounds`, `loss` or `accuracy`."""
        self._send("go")
        return self._answer()

    def close(self) -> dict[str, Any]:
        """Ends it: `megabytes` (peak resident memory of its whole process) and `versions`."""
        self._send("quit")
        last = self._answer()
        self._process.wait()
        return last

    def __enter__(self) -> "Rival":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _send(self, line):
        try:
            print(line, file=self._process.stdin, flush=True)
        except OSError:  # it ended; `_answer` says so
            pass

    def _answer(self):
        line = self._process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if not line:
            code = self._process.wait()
            raise RivalError(f"{self.name} ended with status {code}; its stderr is above")
        return json.loads(line)


def check(name: str, work: str, data: str | Path, path: str | Path, rounds: int = 2) -> dict:
    """Runs a rival on the given minibatches without dropout; its model goes to the file `path`.

    Args:
        name, work, data: as for `Rival`.
        path: of the .npz to write.
        rounds: how many; up to three for federated work.

    Returns:
        `sum` and `norm` of all parameters.
    """
    options = ["--work", work, "--data", data, "--check", path, "--rounds", rounds]
    done = subprocess.run(
        [*command(name), *map(str, options)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise RivalError(f"{name} ended with status {done.returncode}; its stderr is above")
    return json.loads(done.stdout)


def programs(programs: Mapping[str, Callable[[], Any]], repeats: int, rounds: int = 1) -> dict:
    """`alternate` for compiled JAX programs of this process, per round, warm.

    Args:
        programs: by name, a call that returns arrays.
        repeats: turns.
        rounds: of one call.
    """

    def timed(f):
        begin = time.perf_counter()
        jax.block_until_ready(f())
        return (time.perf_counter() - begin) / rounds

    for f in programs.values():
        jax.block_until_ready(f())
    return alternate({name: lambda f=f: timed(f) for name, f in programs.items()}, repeats)


def ratio(times: Mapping[str, dict], a: str, b: str) -> float:
    """How many times longer a took than b: the median over turns."""
    return statistics.median(x / y for x, y in zip(times[a]["all"], times[b]["all"]))


def alternate(runners: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, dict]:
    """Times programs in turn, so that what else the machine does meets them alike.

    Args:
        runners: by name, a call that returns seconds, such as `lambda: rival.go()["seconds"]`.
        repeats: turns; every second one goes through the runners backwards.

    Returns:
        By name `median`, `min` and `all`, in seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(repeats):
        for name in list(runners)[:: -1 if turn % 2 else 1]:
            seconds[name].append(runners[name]())
    return {
        name: {"median": statistics.median(all_), "min": min(all_), "all": all_}
        for name, all_ in seconds.items()
    }
