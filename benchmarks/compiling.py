"""Compile time against what it must not grow with: clients, rounds, local steps, seeds.

Each program is lowered and compiled in this process without any cache, the two sizes in turn.

Run: python benchmarks/compiling.py
"""

import argparse
import time
from functools import partial

import jax
import numpy as np
from common import record
from rival import alternate, ratio

from jaxfl import Clients, algorithms, grid, models, networks, simulate

BASE = {"clients": 16, "rounds": 50, "steps": 5, "runs": 4}
LARGE = {"clients": 4096, "rounds": 5000, "steps": 500, "runs": 1024}


def compiled(alg, network, clients, rounds, steps, runs):
    """Seconds from the function to the program, for an algorithm by name."""
    rng = np.random.default_rng(0)
    data = {
        "x": rng.standard_normal((4 * clients, 20), np.float32),
        "y": np.arange(4 * clients) % 4,
    }
    split = np.arange(4 * clients), 4 * np.arange(clients), np.full(clients, 4)
    model = models.logistic(20, 4)
    problems = Clients.make(data, split, models.cross_entropy(model), batch=2)
    params, key = model.init(jax.random.key(0)), jax.random.key(1)
    sweep = grid(alg(lr=0.1, steps=steps), lr=np.linspace(0.1, 1, runs))
    world = network(clients)

    def run(sweep, problems, world, params, key):
        one = lambda alg: simulate(alg, problems, world, params, key, rounds=rounds).history.loss
        return jax.vmap(one)(sweep)

    jax.clear_caches()
    begin = time.perf_counter()
    jax.jit(run).lower(sweep, problems, world, params, key).compile()
    return time.perf_counter() - begin


CASES = {
    "fedavg": (algorithms.FedAvg, lambda n: networks.Uniform(n, 8)),
    "dsgd on a ring": (algorithms.DSGD, lambda n: networks.topology("ring", n)),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    results = {}
    for name, (alg, network) in CASES.items():
        work = {"base": BASE, **{what: BASE | {what: LARGE[what]} for what in LARGE}}
        runners = {what: partial(compiled, alg, network, **w) for what, w in work.items()}
        times = alternate(runners, args.repeats)
        growth = {what: ratio(times, what, "base") for what in LARGE}
        results[name] = {"seconds": times, "growth": growth}
        print(name, f"{times['base']['median']:.2f} s", growth)
    record("compiling", {"base": BASE, "large": LARGE, **results})


if __name__ == "__main__":
    main()
