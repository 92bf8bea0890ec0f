"""Compressors of 64 messages of a million parameters, in copies of the array; and a full sort.

Run: python benchmarks/compressors.py
"""

import argparse

import jax
import jax.numpy as jnp
from common import record
from rival import programs, ratio

from jaxfl.components.compressors import QSGD, RandK, TopK


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    x = jax.random.normal(jax.random.key(0), (args.clients, args.parameters))
    keys = jax.random.split(jax.random.key(1), args.clients)

    def each(f):
        run = jax.jit(jax.vmap(f))
        return lambda: run(x, keys)

    work = {
        "copy": each(lambda v, key: v + 1),
        "top 1%": each(TopK(0.01)),
        "top 10%": each(TopK(0.1)),
        "random 1%": each(RandK(0.01)),
        "random bits": each(lambda v, key: jax.random.bits(key, v.shape, jnp.uint32)),
        "qsgd, 16 levels": each(QSGD(16.0)),
    }
    times = programs(work, args.repeats)
    copies = {name: ratio(times, name, "copy") for name in times}
    for name in times:
        print(f"{name:20s} {1e3 * times[name]['median']:9.1f} ms {copies[name]:7.2f} copies")
    sort, top = jax.jit(lambda v: jnp.sort(jnp.abs(v), 1)), jax.jit(jax.vmap(TopK(0.1)))
    one = programs({"sort": lambda: sort(x[:2]), "top": lambda: top(x[:2], keys[:2])}, 3)
    print(f"a full sort takes {ratio(one, 'sort', 'top'):.0f} times as long as top 10%")
    record(
        "compressors",
        {
            "clients": args.clients,
            "parameters": args.parameters,
            "seconds": times,
            "copies": copies,
            "a full sort over top 10%": ratio(one, "sort", "top"),
        },
    )


if __name__ == "__main__":
    main()
