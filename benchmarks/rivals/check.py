"""Proof of equal work: rivals and jaxfl end with the same model from the same minibatches.

    python benchmarks/rivals/check.py            all rivals and works that are installed
    python benchmarks/rivals/check.py A pytorch  one

Federated and decentralised work without dropout and in float64, compared with jaxfl's own local
training and mixing; for gossip, the messages and shuffles that gossipy drew, replayed in NumPy.
Exits with 1 if a model differs by more than 1e-6 of the distance that it has moved: pfl sends
float32 whatever the model is.
"""

# ruff: noqa: E402  (the folder above holds rival.py and work.py)
import os
import sys
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # of the rivals too: float64, to compare with

import jax
import jax.numpy as jnp
import numpy as np
from serve import wide

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rival
import work

from jaxfl import Clients, models, networks
from jaxfl.components.solvers import SGD, train
from jaxfl.engine import comm
from jaxfl.engine.client import Sample

MODELS = {
    "A": models.logistic(784, 10),
    "B": models.cifar_cnn(dropout=(0.0, 0.0)),
    "cnn": models.fedavg_cnn(),
    "resnet": models.resnet18(),
    "E": models.mlp(64, 10, (64,)),
}
CAN = {
    "pytorch": ("A", "B", "cnn", "resnet", "D", "E"),
    "pfl": ("A", "B", "cnn"),
    "fedjax": ("A", "B"),
    "naive_jax": ("A", "B", "D", "E"),
    "gossipy": ("C",),
}
ROUNDS = {"A": 2, "B": 2, "cnn": 1, "resnet": 1, "C": 3, "D": 3, "E": 3}


def by_jaxfl(name, data):
    """The model after the given rounds, by name; of nodes their mean."""
    n, size = int(data["clients"]), int(data["size"])
    split = np.arange(n * size), np.arange(n) * size, np.full(n, size)
    examples = {k: data[k] for k in ("x", "y")}
    loss = models.cross_entropy(MODELS[name])
    clients = Clients.make(examples, split, loss, batch=int(data["batch"]))

    @jax.jit
    def step(x, clients, cohort, index, key):
        def local(client, x, index, key):
            xi = Sample(index, jnp.ones(index.shape), jax.random.split(key, len(index)))
            return train(client.grad, x, xi, data["lr"], SGD(), ())[0]

        if name == "E":
            return comm.mix(w, clients.each(local, x, index, key=key))
        x = comm.stack(x, len(cohort))
        return mean(clients[cohort].each(local, x, index, key=key))

    mean = lambda x: jax.tree.map(lambda a: a.mean(0), x)
    x = jax.tree.map(jnp.asarray, work.params(data))
    if name == "E":
        w, x = networks.from_matrix(data["w"]).w, comm.stack(x, n)
    for t in range(ROUNDS[name]):
        x = step(x, clients, data["cohorts"][t], data["index"][t], jax.random.key(t))
    return work.flat(mean(x) if name == "E" else x)


def by_mixing(data):
    """Models of few parameters after rounds of mixing."""
    w, x = networks.from_matrix(data["w"]).w, jnp.asarray(data["x"])
    for _ in range(ROUNDS["D"]):
        x = comm.mix(w, x)
    return {"x": x}


def by_replay(data, drawn):
    """All models after the recorded messages and shuffles, in float64.

    Within a time step nodes send first, then messages arrive in the order in which they were sent.
    """
    n, batch, lr = len(data["count"]), int(data["batch"]), float(data["lr"])
    kernel = np.repeat(data["init/head/kernel"][None].astype(float), n, 0)
    bias = np.repeat(data["init/head/bias"][None].astype(float), n, 0)
    shuffles = iter(drawn["shuffles"])

    def epoch(i):
        own = data["start"][i] + next(shuffles)[: data["count"][i]]
        for rows in np.split(own, range(batch, len(own), batch)):
            x = data["x"][rows].astype(float)
            z = x @ kernel[i] + bias[i]
            p = np.exp(z - z.max(1, keepdims=True))
            g = (p / p.sum(1, keepdims=True) - np.eye(2)[data["y"][rows]]) / len(rows)
            kernel[i] -= lr * x.T @ g
            bias[i] -= lr * g.sum(0)

    for i in range(n):
        epoch(i)
    sent = {}
    for t in range(int(drawn["rounds"]) * int(data["delta"])):
        for m in np.flatnonzero(drawn["messages"][:, 1] == t):
            sent[m] = [a[drawn["messages"][m, 0]].copy() for a in (kernel, bias)]
        for m in np.flatnonzero(drawn["messages"][:, 2] == t):
            i = drawn["messages"][m, 3]
            kernel[i], bias[i] = (kernel[i] + sent[m][0]) / 2, (bias[i] + sent[m][1]) / 2
            epoch(i)
    assert next(shuffles, None) is None, "more updates than messages"
    return {"kernel": kernel, "bias": bias}


def relative(a, b, first):
    """The distance of two models over the distance from the first one to b."""
    far = lambda a, b: sum(np.square(a[k] - b[k], dtype=np.float64).sum() for k in b) ** 0.5
    return far(a, b) / far(first, b)


def main(works, names):
    bad = False
    with tempfile.TemporaryDirectory() as folder:
        for name in works:
            path = work.write(name, Path(folder) / f"{name}.npz")
            data = dict(np.load(path))
            if name == "D":
                data["x"] = np.random.default_rng(0).standard_normal((len(data["w"]), 100))
                np.savez(path, **data)
            data, own = wide(data), None
            for other in names:
                if name not in CAN[other]:
                    continue
                path = Path(folder) / "model.npz"
                try:
                    rival.check(other, name, Path(folder) / f"{name}.npz", path, ROUNDS[name])
                except rival.RivalError as error:
                    print(f"{name} {other}: not compared, {error}")
                    bad |= len(names) == 1
                    continue
                found = dict(np.load(path))
                first = {k.removeprefix("init/"): data[k] for k in data if k.startswith("init/")}
                if name == "C":
                    own = by_replay(data, found)
                    first = {k: data[f"init/head/{k}"] for k in own}
                if name == "D":
                    own, first = by_mixing(data), {"x": data["x"]}
                own = own or by_jaxfl(name, data)
                error = relative(found, own, first)
                bad |= not error < 1e-6
                print(f"{name} {other}: {error:.1e} of the distance moved", flush=True)
    return bad


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    works = [a for a in sys.argv[1:] if a not in CAN] or [*MODELS, "C", "D"]
    sys.exit(main(works, [a for a in sys.argv[1:] if a in CAN] or [*CAN]))
