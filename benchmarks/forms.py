"""Which form of convolution and which block of clients a device runs fastest.

`models.form` chooses between one client after another as XLA's CPU kernels want it, shifted slices
with one product, and `lax.conv`, which under `vmap` over kernels becomes a grouped convolution;
only the CPU's choice was measured. Seconds of a round of FedAvg with everybody, in turns.

Run: python benchmarks/forms.py [--clients 10] [--precision tf32]
"""

import argparse
import itertools

import jax
from blocks import program
from common import record
from rival import programs
from roofline import POLICIES

from jaxfl import models

MODELS = {"CIFAR CNN": models.cifar_cnn, "ResNet-18": models.resnet18}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=POLICIES, default="tf32")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    args = parser.parse_args()
    n, results = args.clients, {}
    for name in args.models:
        runs = {
            f"{form}, {block} at once": program(
                MODELS[name](form=form), (32, 32, 3), n, block, args.steps, args.precision
            )
            for form, block in itertools.product(("serial", "shifts", "lax"), (1, n))
        }
        times = programs(runs, args.repeats)
        for label, t in times.items():
            print(f"{name:12s} {label:24s} {1e3 * t['median']:10.2f} ms", flush=True)
        results[name] = {"seconds": times, "best": min(times, key=lambda k: times[k]["median"])}
    chosen = models.form(jax.default_backend())
    settings = {"clients": n, "steps": args.steps, "precision": args.precision, "chosen": chosen}
    record("forms", settings | results)


if __name__ == "__main__":
    main()
