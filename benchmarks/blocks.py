"""The automatic block of clients against fixed ones: one at a time, all at once, and between.

FedAvg with everybody, one step of 10 examples; seconds of a round, in turns. The automatic choice
should be within 1.15 of the best.

Run: python benchmarks/blocks.py
"""

import argparse

import jax
import numpy as np
from common import record
from rival import programs, ratio

from jaxfl import Clients, algorithms, models, networks, simulate

CASES = {
    "logistic 784 x 10, 200 clients": (models.logistic(784, 10), (784,), 200),
    "MLP 64-64-10, 64 clients": (models.mlp(64, 10, (64,)), (64,), 64),
    "2NN 784-200-200-10, 20 clients": (models.mlp(784, 10, (200, 200)), (784,), 20),
    "LeNet-5, 20 clients": (models.lenet5(), (32, 32, 3), 20),
    "CIFAR CNN, 10 clients": (models.cifar_cnn(), (32, 32, 3), 10),
}


def program(model, shape, n, block, steps, precision="float32"):
    """A call that runs one round."""
    rng = np.random.default_rng(0)
    data = {
        "x": rng.standard_normal((20 * n, *shape), np.float32),
        "y": np.arange(20 * n, dtype=np.int32) % 10,
    }
    split = np.arange(20 * n), 20 * np.arange(n), np.full(n, 20)
    loss = models.cross_entropy(model)
    clients = Clients.make(data, split, loss, batch=10, block=block, precision=precision)
    alg, world = algorithms.FedAvg(lr=0.1, steps=steps), networks.Everyone(n)
    run = jax.jit(lambda *given: simulate(*given, rounds=1).state)
    params, key = model.init(jax.random.key(0)), jax.random.key(1)
    return lambda: run(alg, clients, world, params, key)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    results = {}
    for name, (model, shape, n) in CASES.items():
        blocks = {"automatic": 0, "1": 1, str(n // 5): n // 5, str(n): n}
        runs = {b: program(model, shape, n, block, args.steps) for b, block in blocks.items()}
        times = programs(runs, args.repeats)
        fixed = [label for label in blocks if label != "automatic"]
        best = min(fixed, key=lambda label: times[label]["median"])
        results[name] = {
            "seconds": times,
            "best": best,
            "automatic over best": ratio(times, "automatic", best),
        }
        medians = {label: round(1e3 * t["median"], 2) for label, t in times.items()}
        print(f"{name:34s} {medians} {results[name]['automatic over best']:.2f}", flush=True)
    record("blocks", results)


if __name__ == "__main__":
    main()
