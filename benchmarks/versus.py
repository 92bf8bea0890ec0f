"""jaxfl against its rivals on the same work, in turns: the works of `work.py`.

Every program is a process of its own that keeps its data and compiled code; `go` runs rounds from
the initial model. Cold is from starting the process to the end of the first round (of all rounds
where they are one program). Also the limit of the machine (`roofline.py`): the time that the
arithmetic of a round takes at the measured rate of a large matrix product in the same precision, or
for D the time that its bytes take at the measured rate of a copy.

All programs run where JAX does, on the GPU if it has one; gossipy, fedjax and pfl only on the CPU.

Run: python benchmarks/versus.py A
     python benchmarks/versus.py B --full --precision tf32     (on a GPU)
"""

import argparse
import os
import sys
import tempfile

import jax
import numpy as np
import work
from common import record
from rival import PAGES, Rival, RivalError, alternate
from roofline import POLICIES, copy_bandwidth, matmul_rate

# What a program says of its last `go` that is kept.
SHOWN = "loss", "accuracy", "curve", "variance", "one run alone", "a run of all"
# Rounds of one `go`, so that each takes about a second; and floating-point operations of a round:
# forward, gradient by weights and, from the second layer on, by inputs.
ROUNDS = {
    "A": {"jaxfl": 500, "pytorch": 100, "fedjax": 100, "pfl": 20, "naive_jax": 100},
    "B": {"jaxfl": 2, "pytorch": 2, "fedjax": 1, "pfl": 1, "naive_jax": 1},
    "cnn": {"jaxfl": 2, "pytorch": 2, "pfl": 1},
    "resnet": {"jaxfl": 6, "pytorch": 6},  # memory is new in a first round, and old in a later one
    "C": {"jaxfl": 300, "gossipy": 10},
    "D": {"jaxfl": 10, "pytorch": 2, "naive_jax": 1},
    "E": {"jaxfl": 200, "pytorch": 200, "naive_jax": 200},  # the work is these 200
    "F": {"jaxfl": 20, "pytorch": 20},
}
GPU = {  # and only rivals that run there
    "A": {"jaxfl": 1000, "pytorch": 50, "naive_jax": 500},
    "B": {"jaxfl": 20, "pytorch": 2, "naive_jax": 5},
    "cnn": {"jaxfl": 50, "pytorch": 10},
    "resnet": {"jaxfl": 1, "pytorch": 1},
    "C": {"jaxfl": 300},
    "D": {"jaxfl": 200, "pytorch": 50, "naive_jax": 50},
    "E": {"jaxfl": 200, "pytorch": 20, "naive_jax": 200},
    "F": {"jaxfl": 20, "pytorch": 10},
}
PUBLISHED = {"B": 1500}  # rounds of the published benchmark, at full size
ONCE = {"B": ("naive_jax",)}  # a minute a round
MULTIPLIED = {  # multiplications per example and pass, of the first layer and of the others
    "B": (30 * 30 * 27 * 32, 28 * 28 * 288 * 64 + 12544 * 128 + 1280),
    "cnn": (28 * 28 * 25 * 32, 14 * 14 * 800 * 64 + 3136 * 512 + 5120),
    "resnet": (
        32 * 32 * 27 * 64,
        4 * 32 * 32 * 9 * 64**2
        + sum(s * s * (9 * c * c // 2 + c * c // 2 + 3 * 9 * c * c)
              for s, c in ((16, 128), (8, 256), (4, 512)))
        + 5120,
    ),
    **dict.fromkeys("AF", (7840, 0)),
    "C": (114, 0),
    "E": (64 * 64, 640),
}  # fmt: skip


def flops(name, data):
    """Operations of a round."""
    if name == "D":
        return 2 * np.count_nonzero(data["w"]) * int(data["d"])
    if name == "C":
        examples = 0.9 * len(data["y"])
    elif name == "E":
        examples = int(data["clients"]) * int(data["batch"])
    else:
        examples = int(data["cohort"]) * int(data["size"]) * int(data["epochs"])
        examples *= len(data["lrs"]) * int(data["seeds"]) if name == "F" else 1
    first, others = MULTIPLIED[name]
    return examples * 2 * (2 * first + 3 * others)


def traffic(data):
    """Bytes of a round of D: every row that a node hears is read, its own written, in float32."""
    return 4 * int(data["d"]) * (np.count_nonzero(data["w"]) + len(data["w"]))


def limit(name, data, precision):
    """The least seconds of a round on this machine, and the measured rate that sets it."""
    if name == "D":
        rate = copy_bandwidth()
        return traffic(data) / rate, {"rate of a copy": rate, "bytes per round": traffic(data)}
    rate = matmul_rate(precision)
    work = flops(name, data)
    return work / rate, {"rate of a matrix product": rate, "flop per round": work}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=ROUNDS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, help="of one turn of every program")
    parser.add_argument("--rivals", nargs="*", help="all by default")
    parser.add_argument("--precision", choices=POLICIES, default="float32", help="of local compute")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", dest="size", action="store_const", const="full", default="")
    size.add_argument("--tiny", dest="size", action="store_const", const="tiny")
    args = parser.parse_args()
    gpu = jax.default_backend() == "gpu"
    wanted = (GPU if gpu else ROUNDS)[args.work]
    if args.rivals is not None:
        names = ["jaxfl", *args.rivals]
    else:  # naive_jax has no bfloat16
        names = [n for n in wanted if args.precision != "bfloat16" or n in ("jaxfl", "pytorch")]
    once = [] if gpu else [n for n in ONCE.get(args.work, ()) if n in names]
    with tempfile.TemporaryDirectory() as folder:
        path = work.write(args.work, f"{folder}/{args.work}.npz", size=args.size)
        with np.load(path) as data:
            floor, results = limit(args.work, data, args.precision)
        started, last = {}, {}
        for name in names:
            # gossipy, too, is a loop in PyTorch, but moves models to the CPU and back
            device = "cuda" if gpu and name not in ("gossipy", "fedjax", "pfl") else "cpu"
            rounds = args.rounds or wanted.get(name) or ROUNDS[args.work][name]
            try:
                started[name] = Rival(name, args.work, path, rounds, device, args.precision)
            except RivalError as error:
                sys.exit(str(error))
            print(name, started[name].ready, flush=True)

        def go(name):
            last[name] = started[name].go()
            return (last[name]["seconds"] - last[name].get("outside", 0)) / last[name]["rounds"]

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
                "last": {k: last[name][k] for k in SHOWN if k in last[name]},
                **{k: v for k, v in started[name].ready.items() if k not in ("ready", "cold")},
                **started[name].close(),
            }
    ours = times["jaxfl"]
    results |= {"programs": times, "size": args.size, "precision": args.precision}
    results["allocation"] = os.environ.get("GLIBC_TUNABLES", PAGES)
    results["fraction of the limit"] = floor / ours["seconds per round"]
    if args.work == "F":
        results["all runs, in the time of one"] = (
            last["jaxfl"]["runs"] * ours["last"]["a run of all"] / ours["last"]["one run alone"]
        )
    if args.size == "full" and args.work in PUBLISHED:
        rounds = results["published rounds"] = PUBLISHED[args.work]
        results["seconds of the published rounds"] = {
            name: rounds * times[name]["seconds per round"] for name in names
        }
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
    labels = args.size, args.precision if args.precision != "float32" else ""
    record("_".join(["versus", args.work, *filter(None, labels)]), results)


if __name__ == "__main__":
    main()
