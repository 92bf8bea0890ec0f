"""Asynchronous events on 1000 nodes: waves of disjoint events against one event after another.

DADAO on quadratics (Poisson clocks) and gossip learning with logistic regression: the same events
as waves at the default cap, and as waves of one event. Building the schedule is part of both times.

Run: python benchmarks/waves.py
"""

import argparse
import time

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from common import record
from dadao import MU, L, problem
from rival import alternate, ratio

from jaxfl import Clients, algorithms, models, networks, problems, simulate
from jaxfl.networks import dadao_rates

GRAPH = dict(d=4, n=1000, seed=0)


def gossip():
    """Clients, model, algorithm and schedule by cap, of gossip learning."""
    n, rng = GRAPH["n"], np.random.default_rng(0)
    data = {
        "x": rng.standard_normal((40 * n, 57), np.float32),
        "y": rng.integers(0, 2, 40 * n, dtype=np.int32),
    }
    split = np.arange(40 * n), 40 * np.arange(n), np.full(n, 40)
    model = models.logistic(57, 2)
    clients = Clients.make(data, split, models.cross_entropy(model), batch=10)
    graph = nx.random_regular_graph(**GRAPH)
    build = lambda rounds, cap: networks.gossip(
        graph, rounds, delay=(0, 10), drop=0.1, seed=0, cap=cap
    )
    alg = algorithms.GossipLearning(lr=0.1, steps=1, epochs=0, slots=100)
    return clients, model.init(jax.random.key(0)), alg, build


def dadao():
    """The same of DADAO."""
    n = GRAPH["n"]
    graph = nx.random_regular_graph(**GRAPH)
    rates = dadao_rates(graph)
    split = np.arange(n), np.arange(n), np.ones(n, int)
    clients = Clients.make(problem(n)[0], split, problems.quadratic_loss, batch=1)
    build = lambda rounds, cap: networks.poisson(
        graph, rounds, edge_rates=rates["rate"], seed=0, cap=(cap, cap) if cap else None
    )
    alg = algorithms.DADAO(smoothness=L, convexity=MU, chi1=rates["chi1"])
    return clients, jnp.zeros(4), alg, build


def measured(work, rounds, repeats):
    clients, params, alg, build = work()
    built = {}

    @jax.jit
    def run(alg, clients, network, params, key):
        return simulate(alg, clients, network, params, key, rounds=rounds).state.params

    def runner(name, cap):
        def once():
            begin = time.perf_counter()
            network = build(rounds, cap)
            built[name] = time.perf_counter() - begin
            jax.block_until_ready(run(alg, clients, network, params, jax.random.key(1)))
            return time.perf_counter() - begin

        once()
        return once

    runners = {"waves": runner("waves", 0), "event by event": runner("event by event", 1)}
    times = alternate(runners, repeats)
    return {
        "rounds": rounds,
        "seconds": times,
        "of these building": built,
        "events over waves": ratio(times, "event by event", "waves"),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    results = {}
    for work in (dadao, gossip):
        results[work.__name__] = found = measured(work, args.rounds, args.repeats)
        medians = {k: v["median"] for k, v in found["seconds"].items()}
        print(work.__name__, medians, found["of these building"], found["events over waves"])
    record("waves", {**GRAPH, **results})


if __name__ == "__main__":
    main()
