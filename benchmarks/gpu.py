"""Everything that asks for a GPU, each row a process under a time limit, into results/gpu_*.json.

A row whose file exists is skipped: called again, it goes on where it ended, so that a machine for
ten minutes at a time is enough. A row that fails or outlasts its limit leaves no file; the others
go on, and the status is then 1.

Run: python benchmarks/gpu.py [--budget 540] [--rows roofline versus_B_full]
"""

import argparse
import os
import signal
import subprocess
import sys
import time

import jax
from common import RESULTS, ROOT

# Result -> script with its options and the seconds that it may take; what matters most comes first.
ROWS = {
    "roofline": ("roofline.py", 90),
    "drift": ("drift.py", 90),
    "versus_B_full": ("versus.py B --full --repeats 5", 300),
    "versus_B_full_tf32": ("versus.py B --full --precision tf32 --repeats 5", 240),
    "versus_B_full_bfloat16": ("versus.py B --full --precision bfloat16 --repeats 5", 240),
    "forms": ("forms.py", 300),
    "versus_D": ("versus.py D --repeats 5", 180),
    "mixing": ("mixing.py", 180),
    "versus_A": ("versus.py A --repeats 5", 180),
    "versus_F_full": ("versus.py F --full --repeats 5", 240),
    "versus_resnet_full": ("versus.py resnet --full --repeats 3", 400),
    "versus_resnet_full_tf32": ("versus.py resnet --full --precision tf32 --repeats 3", 400),
    "versus_C": ("versus.py C --repeats 5", 180),
    "versus_E": ("versus.py E --repeats 5", 180),
    "blocks": ("blocks.py", 240),
    "compressors": ("compressors.py", 180),
}


def run(command, seconds):
    """The exit status, or None past the limit; then its whole group of processes is ended."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds for all rows")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("--any", action="store_true", help="also without a GPU: that it runs")
    args = parser.parse_args()
    backend = jax.default_backend()  # asks, and allocates nothing
    if backend != "gpu" and not args.any:
        sys.exit(f'JAX has no GPU here, only the {backend}; install `pip install -e ".[cuda13]"`')
    end, missing = time.monotonic() + args.budget, []
    for name in args.rows:
        path = RESULTS / f"{'' if backend == 'cpu' else backend + '_'}{name}.json"
        if path.exists():
            continue
        script, most = ROWS[name]
        left = end - time.monotonic()
        status: int | str | None = "no time left"
        begin = time.monotonic()
        if left > 30:
            print(f"== {name}: {script}", flush=True)
            command = [sys.executable, f"benchmarks/{script.split()[0]}", *script.split()[1:]]
            status = run(command, min(most, left))
        if status != 0 or not path.exists():
            missing.append(name)
        print(f"== {name}: {status}, {time.monotonic() - begin:.0f} s", flush=True)
    print(f"missing: {missing or 'nothing'}")
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
