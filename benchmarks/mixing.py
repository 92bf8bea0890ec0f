"""Mixing in a scan: 1024 nodes x 100 000 parameters (D), in copies of the array.

Each program is a scan over rounds of `mix` alone, so that a copy in the same loop is the unit: a
graph of degree k must read k + 1 rows and write one for every row, so its traffic is (k + 2) / 2
copies where no row is found in a cache. Circulant graphs by shifts against the same graph by
neighbours; dense against a bare matrix product; a graph that changes in every round.

Run: python benchmarks/mixing.py [--rounds 100] [--repeats 3] [--parameters 100000]
"""

import argparse

import jax
import jax.numpy as jnp
from common import record
from rival import programs, ratio

from jaxfl import networks
from jaxfl.engine import comm

N = 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parameters", type=int, default=100_000)
    args = parser.parse_args()
    x = jax.random.normal(jax.random.key(0), (N, args.parameters))
    unroll = 1 if jax.default_backend() == "cpu" else 2  # else XLA copies the array back

    def looped(f, *given, rounds=args.rounds, unroll=unroll):
        @jax.jit
        def run(x, *given):
            step = lambda x, t: (f(x, t, *given), None)
            return jax.lax.scan(step, x, jnp.arange(rounds), unroll=unroll)[0]

        return lambda: run(x, *given)

    mixed = lambda x, t, w: comm.mix(w, x)
    net = lambda x, t, network: comm.mix(network(t, jax.random.key(0)).w, x)
    sparse = {"copy": looped(lambda x, t: x + 1, unroll=1)}
    for k in (2, 4, 8):
        regular = networks.topology("regular", N, degree=k, seed=0)
        sparse[f"neighbours, degree {k}"] = looped(mixed, regular.w)
    around = comm.Shifts(jnp.full(5, 0.2), (0, 1, -1, 2, -2), N)
    sparse["circulant, degree 4, shifts"] = looped(mixed, around)
    sparse["circulant, degree 4, neighbours"] = looped(mixed, comm.to_near(around))
    one = networks.topology("one_peer_exponential", N)
    sparse["one peer"] = looped(net, one)
    times = programs(sparse, args.repeats, args.rounds)
    copies = {name: ratio(times, name, "copy") for name in times}
    for name in times:
        print(f"{name:34s} {1e3 * times[name]['median']:8.1f} ms {copies[name]:6.2f} copies")

    w = jax.random.uniform(jax.random.key(1), (N, N)) / N
    bare = lambda x, t, w: jnp.matmul(w, x, precision="highest")
    few = max(1, args.rounds // 20)
    dense = {
        "bare product": looped(bare, w, rounds=few),
        "dense": looped(mixed, comm.Dense(w), rounds=few),
    }
    full = programs(dense, args.repeats, few)
    over = ratio(full, "dense", "bare product")
    print(f"dense {1e3 * full['dense']['median']:.0f} ms, {over:.3f} of a bare product")
    limits = {f"neighbours, degree {k}": (k + 2) / 2 for k in (2, 4, 8)}
    record(
        "mixing",
        {
            "nodes": N,
            "parameters": args.parameters,
            "rounds": args.rounds,
            "seconds": times | full,
            "copies": copies,
            "over the traffic limit": {k: copies[k] / v for k, v in limits.items()},
            "shifts over neighbours": ratio(
                times, "circulant, degree 4, shifts", "circulant, degree 4, neighbours"
            ),
            "dense over a bare product": over,
        },
    )


if __name__ == "__main__":
    main()
