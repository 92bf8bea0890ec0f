"""What a warm call costs: plain, in chunks, under `jax.jit`, and a batched NumPy loop.

10 to 100 quadratics, full gradients, one local step: x <- x - lr mean(A (x - b)), nothing random.
"beyond the program" is what a plain call takes longer than the same call under `jax.jit`. Then what
becomes of a large state that `init` makes, one row per client, and of one that is given.

Run: python benchmarks/warm.py [--rounds 100] [--repeats 30]
"""

import argparse
import statistics
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import record
from rival import programs, ratio

import jaxfl
from jaxfl import algorithms, networks, problems, struct
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import hyper, strong
from jaxfl.engine.simulate import _init, _scan
from jaxfl.networks import Cohort
from jaxfl.types import Info

KEY = jax.random.key(0)


@struct.dataclass
class Full:
    """Gradient descent with all examples of all clients."""

    lr: Any = hyper()
    needs: ClassVar[Needs] = Needs(Cohort)

    class State(NamedTuple):
        params: Any

    def init(self, params, clients, key):
        return self.State(params)

    def round(self, state, clients, net, key):
        x, w = state.params, clients.weights(net, "uniform")
        loss, g = clients.each(lambda client, key: client.grad(x, client.all(key)), key=key)
        x = jax.tree.map(lambda x, g: x - self.lr * g, x, comm.mix(w, g))
        return self.State(x), Info(comm.mix(w, loss), 0.0, 0.0, 1.0)


def small(n, rounds, repeats):
    problem = problems.quadratics(n=n)
    data = {name: problem.data[name] for name in ("a", "b")}  # no noise
    clients = jaxfl.Clients.make(data, problem.partition, problem.loss, batch=1)
    x, world, a, b = jnp.zeros(5), networks.Everyone(n), data["a"], data["b"]
    run = lambda alg: jaxfl.simulate(alg, clients, world, x, KEY, rounds=rounds)
    jitted, alg = jax.jit(run), Full(lr=0.1)

    def numpy():
        x, loss = np.zeros(5), []
        for _ in range(rounds):
            g = np.einsum("nij,nj->ni", a, x - b)
            loss.append(0.5 * ((x - b) * g).sum(1).mean())
            x = x - 0.1 * g.mean(0)
        return x

    chunked = lambda: jaxfl.run(alg, clients, world, x, KEY, rounds=rounds, chunk=rounds).state
    work = {
        "simulate": lambda: run(alg),
        "run": chunked,
        "jit": lambda: jitted(alg),
        "numpy": numpy,
    }
    times = programs(work, repeats)
    beyond = {
        name: 1e3
        * statistics.median(t - u for t, u in zip(times[name]["all"], times["jit"]["all"]))
        for name in ("simulate", "run")
    }
    error = float(np.abs(np.asarray(run(alg).state.params) - numpy()).max())
    print(f"{n} clients:", {k: f"{1e3 * t['median']:.2f} ms" for k, t in times.items()}, beyond)
    return {
        "seconds": times,
        "milliseconds beyond the program": beyond,
        "simulate over numpy": ratio(times, "simulate", "numpy"),
        "difference from numpy": error,
    }


def distance(params, examples, key):
    return 0.5 * jnp.square(params[None] - examples["b"]).sum(1)


def large(n, d, repeats):
    """SCAFFOLD's control variates; a round touches ten clients."""
    b = np.zeros((n, 1), np.float32)
    clients = jaxfl.Clients.make({"b": b}, (np.arange(n), np.arange(n), np.ones(n, int)), distance)
    alg, world, x = algorithms.Scaffold(lr=0.1, steps=1), networks.Uniform(n, 10), jnp.zeros(d)
    own = strong(alg, x)

    def kept():
        state = _init(own, clients, x, KEY)
        t = jnp.int32(0)
        return _scan(own, clients, world, KEY, t, state, None, None, rounds=1, every=1).state

    work = {
        "simulate": lambda: jaxfl.simulate(alg, clients, world, x, KEY, rounds=1).state,
        "not donated": kept,
        "the state alone": lambda: _init(own, clients, x, KEY),
    }
    times = programs(work, repeats)
    print({k: f"{1e3 * t['median']:.0f} ms" for k, t in times.items()})
    return {
        "megabytes": 4 * n * d / 1e6,
        "seconds": times,
        "not donated over simulate": ratio(times, "not donated", "simulate"),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    found = {f"{n} clients": small(n, args.rounds, args.repeats) for n in (10, 30, 100)}
    state = large(1000, 160_000, max(3, args.repeats // 4))
    record("warm", {"rounds": args.rounds, **found, "state": state})


if __name__ == "__main__":
    main()
