"""Medians and trimmed means along clients: comparisons of rows, `jnp.sort`, PyTorch if it is there.

Warm in turns in one process; cold (from the start of a process to its first result) and the peak
memory of that process in one for each.

Run: python benchmarks/sorting.py [--parameters 1000000] [--repeats 5]
"""

import argparse
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from common import record
from rival import alternate, ratio

from jaxfl import components

CLIENTS, F = (10, 50, 100), 5  # F of 50 are left out at each end, and as large a part of others


def plain_median(x, live):
    return jnp.median(x, 0)


def plain_trimmed(x, live):
    f = len(x) * F // 50
    return jnp.sort(x, 0)[f : len(x) - f].mean(0)


RULES = {
    "jaxfl median": components.median,
    "jnp.median": plain_median,
    "jaxfl trimmed mean": lambda x, live: components.trimmed_mean(x, len(x) * F // 50, live),
    "jnp.sort, trimmed mean": plain_trimmed,
    "copy": lambda x, live: x + 1,
}


def torch_rules():
    try:
        import torch
    except ImportError:
        return {}

    def trimmed(x):
        f = len(x) * F // 50
        return x.sort(0).values[f : len(x) - f].mean(0)

    # the mean of the middle two; `torch.median` is the lower one
    def middle(x):
        rows = x.sort(0).values
        return (rows[(len(x) - 1) // 2] + rows[len(x) // 2]) / 2

    lower = lambda x: x.median(0).values
    rules = {"torch.median": lower, "torch.sort, median": middle, "torch.sort, trimmed": trimmed}
    return {name: lambda x, f=f: f(torch.from_numpy(x)) for name, f in rules.items()}


def prepared(name, n, d):
    """A call that computes one rule, and waits for it."""
    x = np.random.default_rng(0).standard_normal((n, d), np.float32)
    if name not in RULES:
        rule = torch_rules()[name]
        return lambda: rule(x)
    x, live, rule = jnp.asarray(x), jnp.ones(n, bool), jax.jit(RULES[name])
    return lambda: jax.block_until_ready(rule(x, live))


def timed(f):
    begin = time.perf_counter()
    f()
    return time.perf_counter() - begin


def fresh(name, n, d):
    """Cold seconds and peak megabytes of a process with one rule."""
    begin = time.perf_counter()
    command = [
        sys.executable,
        __file__,
        "--only",
        name,
        "--clients",
        str(n),
        "--parameters",
        str(d),
    ]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {"cold": time.perf_counter() - begin, "peak megabytes": float(out.split()[-1])}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, nargs="*", default=CLIENTS)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", help="one rule, once, in this process: prints its peak memory")
    args = parser.parse_args()
    if args.only:
        prepared(args.only, args.clients[0], args.parameters)()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
        return
    results = {}
    for n in args.clients:
        runs = {name: prepared(name, n, args.parameters) for name in [*RULES, *torch_rules()]}
        compiling = {name: timed(f) for name, f in runs.items()}
        times = alternate({k: lambda f=f: timed(f) for k, f in runs.items()}, args.repeats)
        del runs
        own = {"jaxfl median": "median", "jaxfl trimmed mean": "trimmed"}
        over = {
            f"{other} over {mine}": ratio(times, other, mine)
            for mine, word in own.items()
            for other in times
            if word in other and other != mine
        }
        alone = {name: fresh(name, n, args.parameters) for name in times}
        for name, t in times.items():
            print(
                f"{n:4d} {name:24s} {1e3 * t['median']:9.1f} ms, cold {alone[name]['cold']:.1f} s"
            )
        print(over)
        results[f"{n} clients"] = {
            "first": compiling,
            "warm": times,
            "alone": alone,
            "ratios": over,
        }
    record("sorting", {"parameters": args.parameters, **results})


if __name__ == "__main__":
    main()
