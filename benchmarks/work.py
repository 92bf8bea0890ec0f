"""The work items of the benchmarks as .npz files, the same for jaxfl and for every rival.

A file holds data, settings and the initial model under jaxfl's names ("init/head/kernel"), and for
the first rounds the clients and minibatches, so that programs can be compared step by step:
`python benchmarks/work.py A a.npz`. Sizes are for a CPU; "full" ones, published, for a GPU; "tiny"
ones show that a program runs.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import networkx as nx
import numpy as np

from jaxfl import networks
from jaxfl.engine import comm
from jaxfl.models import cifar_cnn, fedavg_cnn, logistic, mlp, resnet18

CHECKED = 3  # rounds whose clients and minibatches are given


def federated(
    model: Any,
    shape: tuple[int, ...],
    *,
    clients: int,
    size: int,
    cohort: int,
    batch: int,
    lr: float,
    spread: float,
    scale: float = 1.0,
    epochs: int = 1,
    tests: int = 1000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Ten Gaussian classes, equally many examples per client, local epochs of SGD.

    The class means of images are constant on squares of 4 x 4 pixels, so that convolutions learn.

    Args:
        model: whose initial parameters are given.
        shape: of one example.
        clients: how many; client i owns rows `i * size` to `(i + 1) * size`.
        size: examples of a client.
        cohort: clients per round, without replacement.
        batch: examples of a minibatch; divides `size`.
        lr: of local SGD.
        spread: standard deviation of the class means, where that of an example around its mean
            is 1.
        scale: of the examples.
        epochs: local ones in a round; the given minibatches are of one.
        tests: examples of the test set.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    if len(shape) == 3:
        means = rng.standard_normal((10, shape[0] // 4, shape[1] // 4, shape[2]), np.float32)
        means = spread * means.repeat(4, 1).repeat(4, 2)
    else:
        means = spread * rng.standard_normal((10, *shape), np.float32)

    def draw(n):
        y = rng.integers(0, 10, n, dtype=np.int32)
        return scale * (means[y] + rng.standard_normal((n, *shape), np.float32)), y

    (x, y), (x_test, y_test) = draw(clients * size), draw(tests)
    cohorts = [rng.permutation(clients)[:cohort] for _ in range(CHECKED)]
    shuffled = rng.permuted(np.tile(np.arange(size), (CHECKED, cohort, 1)), axis=-1)
    return {
        "x": x.astype(np.float32),
        "y": y,
        "x_test": x_test.astype(np.float32),
        "y_test": y_test,
        "clients": np.int32(clients),
        "size": np.int32(size),
        "cohort": np.int32(cohort),
        "batch": np.int32(batch),
        "epochs": np.int32(epochs),
        "lr": np.float32(lr),
        "cohorts": np.stack(cohorts).astype(np.int32),  # [rounds, cohort]
        # [rounds, cohort, steps, batch], positions among the client's own examples
        "index": shuffled.reshape(CHECKED, cohort, -1, batch).astype(np.int32),
        **initial(model, seed),
    }


def initial(model: Any, seed: int) -> dict[str, np.ndarray]:
    """The initial model by name, such as "init/head/kernel"."""
    x = model.init(jax.random.key(seed))
    return {f"init/{name}": a.astype(np.float32) for name, a in flat(x).items()}


def flat(x: Any) -> dict[str, np.ndarray]:
    """A model by name, such as "head/kernel", dense kernels as `[in, out]`."""
    leaves = jax.tree.leaves_with_path(x)
    return {
        name: np.asarray(a).T if a.ndim == 2 else np.asarray(a)
        for name, a in (("/".join(k.key for k in path), a) for path, a in leaves)
    }


def params(arrays: Any, prefix: str = "init/") -> Any:
    """jaxfl's nested dict of the parameters that `initial` made flat."""
    tree: dict[str, Any] = {}
    for name in arrays:
        if name.startswith(prefix):
            *path, leaf = name.removeprefix(prefix).split("/")
            node = tree
            for key in path:
                node = node.setdefault(key, {})
            node[leaf] = arrays[name].T if arrays[name].ndim == 2 else arrays[name]
    return tree


def logistic_regression(
    seed: int = 0, lrs: int = 8, seeds: int = 8, **changes: Any
) -> dict[str, np.ndarray]:
    """A: 784 x 10 logistic regression, 1000 clients x 60 examples, 10 a round, 6 steps of 10."""
    settings = dict(clients=1000, size=60, cohort=10, batch=10, lr=0.03, tests=10_000) | changes
    # examples are as long as those of MNIST
    work = federated(logistic(784, 10), (784,), **settings, spread=0.1, scale=0.35, seed=seed)
    # of F, the sweep: from a sixteenth of the learning rate to eight times it
    lrs_ = np.float32(0.03) * 2.0 ** np.linspace(-4, 3, lrs, dtype=np.float32)
    return {**work, "lrs": lrs_, "seeds": np.int32(seeds)}


def cifar(seed: int = 0, **changes: Any) -> dict[str, np.ndarray]:
    """B: the CIFAR CNN with dropout, 50 examples a client, 10 clients a round, 5 steps of 10."""
    settings = dict(clients=100, size=50, cohort=10, batch=10, lr=0.1, spread=0.2, scale=0.5)
    return federated(cifar_cnn(), (32, 32, 3), **settings | changes, seed=seed)


def cnn(seed: int = 0, **changes: Any) -> dict[str, np.ndarray]:
    """The FedAvg CNN on 28 x 28, 50 examples a client, 10 clients a round, 5 steps of 10."""
    settings = dict(clients=100, size=50, cohort=10, batch=10, lr=0.1, spread=0.3, scale=0.5)
    return federated(fedavg_cnn(), (28, 28, 1), **settings | changes, seed=seed)


def resnet(seed: int = 0, **changes: Any) -> dict[str, np.ndarray]:
    """ResNet-18 with GroupNorm on 32 x 32 x 3, 2 clients a round, 1 step of 20."""
    settings = dict(clients=20, size=20, cohort=2, batch=20, lr=0.02, spread=0.2, tests=100)
    return federated(resnet18(), (32, 32, 3), **settings | changes, seed=seed)


def decentralised(seed: int = 0) -> dict[str, np.ndarray]:
    """E: 64 nodes on a ring, MLP 64-64-10; a round is one step of 10 examples, then averaging."""
    n, size, batch = 64, 100, 10
    settings = dict(clients=n, size=size, cohort=n, batch=batch, lr=0.1, spread=0.3)
    work = federated(mlp(64, 10, (64,)), (64,), **settings, seed=seed)
    rng = np.random.default_rng(seed)
    return {
        **work,
        "w": np.asarray(comm.to_dense(networks.topology("ring", n).w)),  # a third for each of three
        "cohorts": np.tile(np.arange(n, dtype=np.int32), (CHECKED, 1)),
        "index": rng.integers(0, size, (CHECKED, n, 1, batch), np.int32),  # with replacement
    }


def gossip(seed: int = 0) -> dict[str, np.ndarray]:
    """C: asynchronous gossip of 100 nodes, data of spambase's shape whose Bayes accuracy is .91.

    Every node sends its model once in `delta` time steps, at its own offset, to a random
    neighbour; a message is dropped with probability `drop` or arrives 0 to `delay` time steps
    later; the receiver averages the two models and trains an epoch.
    """
    rng = np.random.default_rng(seed)
    n, d, nodes, tests = 4601, 57, 100, 460
    x = rng.exponential(size=(n, d)) - 1  # skewed, as frequencies of words are
    w = rng.standard_normal(d)
    z = 6 * x @ w / np.linalg.norm(w) - 2.5
    y = (z + rng.logistic(size=n) > 0).astype(np.int32)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    count = np.bincount(np.arange(n - tests) % nodes).astype(np.int32)
    return {
        "x": x[tests:],
        "y": y[tests:],
        "x_test": x[:tests],
        "y_test": y[:tests],
        "start": (np.cumsum(count) - count).astype(np.int32),  # node i owns rows
        "count": count,  # start[i] to start[i] + count[i]
        "adjacency": nx.to_numpy_array(nx.random_regular_graph(20, nodes, seed)).astype(np.int8),
        "batch": np.int32(32),
        "lr": np.float32(0.3),
        "delta": np.int32(100),
        "delay": np.int32(10),
        "drop": np.float32(0.1),
        **initial(logistic(d, 2), seed),
    }


def mixing(seed: int = 0, d: int = 100_000) -> dict[str, np.ndarray]:
    """D: 1024 models of 100 000 parameters on a graph of degree 4, Metropolis weights.

    The models are made by `seed` where they are needed: they would be a file of 400 MB.
    """
    n = 1024
    graph = nx.random_regular_graph(4, n, seed)
    w = (nx.to_numpy_array(graph) + np.eye(n)).astype(np.float32) / 5
    return {"w": w, "d": np.int32(d), "seed": np.int32(seed)}


WORKS: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    "A": logistic_regression,
    "B": cifar,
    "cnn": cnn,
    "resnet": resnet,
    "C": gossip,
    "D": mixing,
    "E": decentralised,
    "F": logistic_regression,
}
_FEW = dict(clients=3, size=4, cohort=2, batch=2, tests=100)
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "": {},
    "full": {
        # pfl-research's benchmark, of 1500 rounds
        "B": dict(clients=1000, cohort=50, tests=10_000),
        # FL-Simulator's: CIFAR-10, a tenth of 100 clients
        "resnet": dict(clients=100, size=500, cohort=10, batch=50, epochs=5, lr=0.1, tests=1000),
        "F": dict(lrs=32, seeds=32),
    },
    "tiny": {
        **dict.fromkeys(("A", "B", "cnn"), _FEW),
        "resnet": dict(clients=2, size=2, cohort=1, batch=2, epochs=2, tests=10),
        "D": dict(d=10),
        "F": _FEW | dict(lrs=2, seeds=2),
    },
}


def write(work: str, path: str | Path, seed: int = 0, size: str = "") -> Path:
    """Writes the file of a work item.

    Args:
        work: of `WORKS`; F is a sweep over A.
        path: of the file, ending in .npz.
        seed: of data, graph, initial model and the given minibatches.
        size: of `SIZES`; works that it does not name keep theirs.
    """
    arrays = WORKS[work](seed, **SIZES[size].get(work, {}))
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return Path(path)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in WORKS:
        sys.exit(f"usage: python benchmarks/work.py {'|'.join(WORKS)} FILE.npz")
    print(write(sys.argv[1], sys.argv[2]))
