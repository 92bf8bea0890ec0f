"""The main job, timed as a user meets it: `jaxfl compare`, cold, and again with compiled programs.

Each run is a process of its own. Cold means an empty compilation cache. Keeps the figure and the
table of the cold run, and checks that the warm one gives the same numbers. Also the time that
`import jaxfl` takes beyond `import jax`, the median of nine alternating pairs.

Run: python benchmarks/compare.py
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, record

HERE = ROOT / "benchmarks" / "results"


def timed(command, env):
    """Wall seconds, CPU seconds and peak memory in MB of a process."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(map(str, command))} failed")
    return {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_megabytes": usage.ru_maxrss / 1024,
    }


def main():
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        command = [sys.executable, "-m", "jaxfl.cli", "compare", "--out"]
        for kind in ("cold", "warm"):
            results[kind] = timed([*command, f"{folder}/{kind}"], env)
            print(kind, results[kind], flush=True)
        cold, warm = (Path(folder, kind) for kind in ("cold", "warm"))
        results["same table"] = cold.joinpath("table.csv").read_text() == (
            warm.joinpath("table.csv").read_text()
        )
        HERE.mkdir(exist_ok=True)
        for suffix, name in (("png", "comparison.png"), ("md", "table.md")):
            shutil.copy(cold / name, HERE / f"compare.{suffix}")

    def seconds(module):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        return time.perf_counter() - begin

    pairs = [(seconds("jax"), seconds("jaxfl")) for _ in range(9)]
    results["import jax"] = statistics.median(a for a, _ in pairs)
    results["import jaxfl beyond jax"] = statistics.median(b - a for a, b in pairs)
    record("compare", results)


if __name__ == "__main__":
    main()
