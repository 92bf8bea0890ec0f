"""Asynchronous events on 1000 nodes: waves of disjoint events against one event after another.

Gossip learning with logistic regression: the same messages as waves (at the default cap), and as
waves of one event. Building the schedule is part of the time of both.

Run: python benchmarks/waves.py
"""

import argparse
import time

import jax
import networkx as nx
import numpy as np
from common import record
from rival import alternate, ratio

from jaxfl import Clients, algorithms, models, networks, simulate


def gossip(n, cap, rounds):
    graph = nx.random_regular_graph(20, n, seed=0)
    return networks.gossip(graph, rounds, delay=(0, 10), drop=0.1, seed=0, cap=cap)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    n, rng = args.nodes, np.random.default_rng(0)
    data = {
        "x": rng.standard_normal((40 * n, 57), np.float32),
        "y": rng.integers(0, 2, 40 * n, dtype=np.int32),
    }
    split = np.arange(40 * n), 40 * np.arange(n), np.full(n, 40)
    model = models.logistic(57, 2)
    clients = Clients.make(data, split, models.cross_entropy(model), batch=10)
    params, key = model.init(jax.random.key(0)), jax.random.key(1)

    def runner(name, alg, build, cap):
        @jax.jit
        def run(alg, clients, network, params, key):
            return simulate(alg, clients, network, params, key, rounds=args.rounds).state.params

        def once():
            begin = time.perf_counter()
            network = build(n, cap, args.rounds)
            built[name] = time.perf_counter() - begin
            jax.block_until_ready(run(alg, clients, network, params, key))
            return time.perf_counter() - begin

        once()
        return once

    built = {}
    alg = algorithms.GossipLearning(lr=0.1, steps=1, epochs=0, slots=100)
    runners = {
        "waves": runner("waves", alg, gossip, 0),
        "event by event": runner("event by event", alg, gossip, 1),
    }
    times = alternate(runners, args.repeats)
    results = {
        "nodes": n,
        "rounds": args.rounds,
        "seconds": times,
        "of these building": built,
        "events over waves": ratio(times, "event by event", "waves"),
    }
    print({k: v["median"] for k, v in times.items()}, built, results["events over waves"])
    record("waves", results)


if __name__ == "__main__":
    main()
