"""jaxfl against its rivals on the same work, in turns: A, B, cnn, resnet, C, F of `work.py`.

Every program is a process of its own that keeps its data and compiled code; `go` runs rounds from
the initial model. Cold is from starting the process to the end of the first round (of all rounds
where they are one program). Also the limit of the machine: the time that the arithmetic of a round
takes at the measured rate of a large float32 matrix product.

Run: python benchmarks/versus.py A
"""

import argparse
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import work
from common import record
from rival import Rival, RivalError, alternate

# Rounds of one `go`, so that each takes about a second; and floating-point operations of a round:
# forward, gradient by weights and, from the second layer on, by inputs.
ROUNDS = {
    "A": {"jaxfl": 500, "pytorch": 100, "fedjax": 100, "pfl": 20, "naive_jax": 100},
    "B": {"jaxfl": 2, "pytorch": 2, "fedjax": 1, "pfl": 1, "naive_jax": 1},
    "cnn": {"jaxfl": 2, "pytorch": 2, "pfl": 1},
    "resnet": {"jaxfl": 1, "pytorch": 1},
    "C": {"jaxfl": 300, "gossipy": 10},
    "F": {"jaxfl": 20, "pytorch": 20},
}
ONCE = {"B": ("naive_jax",)}  # a minute a round
CONVOLVED = {  # multiplications per example and pass, of the first layer and of the others
    "B": (30 * 30 * 27 * 32, 28 * 28 * 288 * 64 + 12544 * 128 + 1280),
    "cnn": (28 * 28 * 25 * 32, 14 * 14 * 800 * 64 + 3136 * 512 + 5120),
    "resnet": (
        32 * 32 * 27 * 64,
        4 * 32 * 32 * 9 * 64**2
        + sum(s * s * (9 * c * c // 2 + c * c // 2 + 3 * 9 * c * c)
              for s, c in ((16, 128), (8, 256), (4, 512)))
        + 5120,
    ),
}  # fmt: skip
EXAMPLES = {"A": 600, "B": 500, "cnn": 500, "resnet": 40, "C": 0.9 * 41 * 100, "F": 64 * 600}


def flops(name):
    if name in CONVOLVED:
        first, others = CONVOLVED[name]
        return EXAMPLES[name] * 2 * (2 * first + 3 * others)
    return EXAMPLES[name] * 2 * 2 * {"A": 7840, "F": 7840, "C": 114}[name]


def matmul_rate(n=2048, repeats=5):
    """Floating-point operations a second of one large product in float32."""
    a = jax.random.normal(jax.random.key(0), (n, n))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    product(a).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2 * n**3 / best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=ROUNDS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rivals", nargs="*", help="all by default")
    args = parser.parse_args()
    wanted = ROUNDS[args.work]
    names = ["jaxfl", *(args.rivals if args.rivals is not None else list(wanted)[1:])]
    results = {"rate of a matrix product": matmul_rate()}
    floor = flops(args.work) / results["rate of a matrix product"]
    with tempfile.TemporaryDirectory() as folder:
        path = work.write(args.work, f"{folder}/{args.work}.npz")
        started, last = {}, {}
        for name in names:
            try:
                started[name] = Rival(name, args.work, path, wanted[name])
            except RivalError as error:
                sys.exit(str(error))
            print(name, started[name].ready, flush=True)

        def go(name):
            last[name] = started[name].go()
            return (last[name]["seconds"] - last[name].get("outside", 0)) / last[name]["rounds"]

        once = [n for n in ONCE.get(args.work, ()) if n in names]
        runners = {name: lambda name=name: go(name) for name in names if name not in once}
        times = alternate(runners, args.repeats)
        times |= alternate({name: lambda name=name: go(name) for name in once}, 1)
        for name in names:
            runs = last[name].get("of", 1) / last[name].get("runs", 1)
            times[name] = {
                "cold seconds": started[name].ready["cold"],
                "seconds per round": times[name]["median"] * runs,
                "fastest": times[name]["min"] * runs,
                "all": [s * runs for s in times[name]["all"]],
                "last": {
                    k: last[name][k] for k in ("loss", "accuracy", "curve") if k in last[name]
                },
                **{k: v for k, v in started[name].ready.items() if k == "threads"},
                **started[name].close(),
            }
    ours = times["jaxfl"]
    results |= {"programs": times, "flop per round": flops(args.work)}
    results["fraction of the limit"] = floor / ours["seconds per round"]
    for name in names[1:]:
        pairs = [a / b for a, b in zip(times[name]["all"], ours["all"])]
        times[name]["times slower than jaxfl"] = sorted(pairs)[len(pairs) // 2]
    for name in names:
        t = times[name]
        print(
            f"{name:10s} {1e3 * t['seconds per round']:10.3f} ms/round  "
            f"x {t.get('times slower than jaxfl', 1):6.2f}  cold {t['cold seconds']:6.1f} s  "
            f"{t['megabytes']:6.0f} MB  {t['last'].get('accuracy', float('nan')):.3f}"
        )
    print(f"fraction of the limit {results['fraction of the limit']:.3f}")
    record(f"versus_{args.work}", results)


if __name__ == "__main__":
    main()
