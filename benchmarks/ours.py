"""jaxfl on the work items, behind the protocol of its rivals (`rivals/serve.py`)."""

import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "rivals"))

import work
from serve import Rival, serve

from jaxfl import Clients, algorithms, grid, models, networks, simulate
from jaxfl.engine import comm

MODELS = {
    "A": models.logistic(784, 10),
    "B": models.cifar_cnn(),
    "cnn": models.fedavg_cnn(),
    "resnet": models.resnet18(),
    "C": models.logistic(57, 2),
    "E": models.mlp(64, 10, (64,)),
}


class Run(Rival):
    """All rounds as one program; `result` is outside the clock."""

    whole = True
    runs = 0
    precision = "float32"

    @classmethod
    def prepare(cls, device, precision):
        backend = {"cuda": "gpu"}.get(device, device)
        if jax.default_backend() != backend:
            sys.exit(f"JAX has the {jax.default_backend()}, not the {backend}")
        cls.precision = precision

    def memory(self):
        stats = jax.devices()[0].memory_stats() or {}
        peak = stats.get("peak_bytes_in_use")
        return {} if peak is None else {"device megabytes": peak / 1e6}

    def load(self, name, data, split):
        self.model = MODELS[name]
        examples = {k: jnp.asarray(data[k]) for k in ("x", "y")}
        loss = models.cross_entropy(self.model)
        self.clients = Clients.make(
            examples, split, loss, batch=int(data["batch"]), precision=self.precision
        )
        self.params = jax.tree.map(jnp.asarray, work.params(data))
        self.test = jnp.asarray(data["x_test"]), jnp.asarray(data["y_test"])
        self.lr = float(data["lr"])
        self.program = jax.jit(self.simulate, static_argnames="rounds")

    def run(self, rounds):
        key = jax.random.key(self.runs)
        self.out = None  # else a new model never gets the memory of the last one
        self.out = self.program(self.alg, self.clients, self.params, key, rounds=rounds)
        jax.block_until_ready(self.out)
        self.runs += 1

    @partial(jax.jit, static_argnums=0)
    def score(self, params, x, y):
        out = self.model.apply(params, x)
        losses = jax.nn.logsumexp(out, -1) - jnp.take_along_axis(out, y[:, None], 1)[:, 0]
        return losses.mean(), (out.argmax(-1) == y).mean()

    def result(self):
        x, y = self.test
        parts = [self.score(self.out, *part) for part in zip(*(jnp.split(a, 10) for a in (x, y)))]
        loss, accuracy = np.mean(parts, 0)
        return {"loss": float(loss), "accuracy": float(accuracy)}


class FedAvg(Run):
    def __init__(self, name, data):
        n, size = int(data["clients"]), int(data["size"])
        split = np.arange(n * size), np.arange(n) * size, np.full(n, size)
        self.load(name, data, split)
        self.network = networks.Uniform(n, int(data["cohort"]))
        self.alg = algorithms.FedAvg(lr=self.lr, epochs=int(data["epochs"]))

    def simulate(self, alg, clients, params, key, rounds):
        return simulate(alg, clients, self.network, params, key, rounds=rounds).state.params


class Sweep(FedAvg):
    """All runs (learning rates x seeds) as one program; on a CPU four at a time, for the cache."""

    def __init__(self, data):
        super().__init__("A", data)
        self.one, self.lrs, self.seeds = self.alg, len(data["lrs"]), int(data["seeds"])
        self.alg = grid(self.alg, lr=np.repeat(data["lrs"], self.seeds))
        self.single = jax.jit(super().simulate, static_argnames="rounds")

    def run(self, rounds):
        super().run(rounds)
        self.rounds = rounds

    def simulate(self, alg, clients, params, key, rounds):
        keys = jnp.tile(jax.random.split(key, self.seeds), self.lrs)
        one = lambda run: FedAvg.simulate(self, run[0], clients, params, run[1], rounds)
        several = 4 if jax.default_backend() == "cpu" else len(keys)
        return jax.lax.map(one, (alg, keys), batch_size=several)

    def result(self):
        """With the seconds of a round of one run, alone and in the sweep, measured in turns."""
        self.out, n = jax.tree.map(lambda a: a[-1], self.out), self.lrs * self.seeds
        shared, key, rounds = (self.clients, self.params), jax.random.key(0), self.rounds
        one = lambda: self.single(self.one, *shared, key, rounds=rounds)
        all = lambda: self.program(self.alg, *shared, key, rounds=rounds)
        seconds = {"one run alone": (one, 1, []), "a run of all": (all, n, [])}
        for _ in range(4):  # the first compiles
            for program, runs, found in seconds.values():
                begin = time.perf_counter()
                jax.block_until_ready(program())
                found.append((time.perf_counter() - begin) / rounds / runs)
        medians = {name: float(np.median(found[1:])) for name, (_, _, found) in seconds.items()}
        return {**super().result(), "runs": n, "of": n, **medians}


class Decentralised(FedAvg):
    """E: D-SGD on the graph of the file, whose mean model is scored."""

    def __init__(self, data):
        super().__init__("E", data)
        self.network = networks.from_matrix(data["w"])
        self.alg = algorithms.DSGD(lr=self.lr)

    def result(self):
        self.out = jax.tree.map(lambda a: a.mean(0), self.out)
        return super().result()


class Mixing(Run):
    """D: a scan over rounds of `mix` alone."""

    def __init__(self, data):
        self.w = networks.from_matrix(data["w"]).w
        key = jax.random.key(int(data["seed"]))
        self.first = jax.random.normal(key, (len(data["w"]), int(data["d"])))
        self.program = jax.jit(self.scan, static_argnames="rounds")

    def scan(self, w, x, rounds):
        # two rounds in a trip: else XLA on a GPU copies the array back in every one
        unroll = 1 if jax.default_backend() == "cpu" else 2
        mixed = lambda x, _: (comm.mix(w, x), None)
        return jax.lax.scan(mixed, x, length=rounds, unroll=unroll)[0]

    def run(self, rounds):
        self.out = jax.block_until_ready(self.program(self.w, self.first, rounds=rounds))

    def result(self):
        return {"variance": float(self.out.var(0).mean())}


class Gossip(Run):
    """Schedules are drawn in advance, one per repeat, within the clock."""

    def __init__(self, data):
        count = data["count"]
        split = np.arange(count.sum()), data["start"], count
        self.load("C", data, split)
        self.alg = algorithms.GossipLearning(lr=self.lr, epochs=1, slots=12)
        self.adjacency, self.drop = data["adjacency"].astype(float), float(data["drop"])
        self.period, self.delay = int(data["delta"]), int(data["delay"])

    def run(self, rounds):
        network = networks.gossip(
            self.adjacency,
            rounds,
            period=self.period,
            delay=(0, self.delay),
            drop=self.drop,
            seed=self.runs,
            cap=10,
            waves=11,
        )
        # room for twelve copies always: the number needed is static, another one another program
        network = network.replace(nets=network.nets.replace(slots=12))
        self.given = self.alg, self.clients, network, self.params, jax.random.key(self.runs)
        jax.block_until_ready(self.program(*self.given, rounds=rounds))
        self.runs, self.rounds = self.runs + 1, rounds

    def simulate(self, alg, clients, network, params, key, rounds, **options):
        return simulate(alg, clients, network, params, key, rounds=rounds, **options)

    def result(self):
        """The same run once more, with all nodes' mean accuracy in every round."""

        def accuracy(state):
            out = jax.vmap(self.model.apply, (0, None))(state.params, self.test[0])
            return (out.argmax(-1) == self.test[1][None]).mean()

        done = self.simulate(*self.given, rounds=self.rounds, every=1, evaluate=accuracy)
        curve = np.asarray(done.evaluations).tolist()
        return {"accuracy": curve[-1], "curve": curve}


if __name__ == "__main__":
    works = {name: partial(FedAvg, name) for name in ("A", "B", "cnn", "resnet")}
    serve(
        {**works, "C": Gossip, "D": Mixing, "E": Decentralised, "F": Sweep},
        ("jax", "jaxlib", "flax", "optax", "numpy"),
        partial(jax.config.update, "jax_enable_x64", True),
        prepare=Run.prepare,
    )
