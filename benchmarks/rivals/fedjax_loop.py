"""FedJAX as its examples use it: federated_averaging, haiku models, data sets in memory.

Newer JAX has dropped `jax.tree_map` and its like, which parts of FedJAX and haiku still call.
"""

# ruff: noqa: E402  (functions must be restored first)
from functools import partial

import jax

for name in ("tree_map", "tree_leaves", "tree_flatten", "tree_unflatten", "tree_structure"):
    if not hasattr(jax, name):
        setattr(jax, name, getattr(jax.tree_util, name))

import fedjax
import haiku as hk
import numpy as np
from fedjax.core.models import create_model_from_haiku
from serve import Rival, batches, serve


def logistic(batch, is_train=False, dropout=True):
    return hk.Linear(10, name="head")(batch["x"])


def cifar_cnn(batch, is_train=False, dropout=True):
    """fedjax.models.emnist's network with dropout, on images of another size."""
    drop = lambda rate, x: hk.dropout(hk.next_rng_key(), rate, x) if is_train and dropout else x
    x = jax.nn.relu(hk.Conv2D(32, 3, padding="VALID", name="conv1")(batch["x"]))
    x = jax.nn.relu(hk.Conv2D(64, 3, padding="VALID", name="conv2")(x))
    x = hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), "VALID")(x)
    x = jax.nn.relu(hk.Linear(128, name="dense")(hk.Flatten()(drop(0.25, x))))
    return hk.Linear(10, name="head")(drop(0.5, x))


class FedJAX(Rival):
    def __init__(self, network, data):
        self.data, self.network = data, network
        x, y, size = data["x"], data["y"], int(data["size"])
        self.sets = [
            fedjax.ClientDataset({"x": x[i : i + size], "y": y[i : i + size]})
            for i in range(0, len(x), size)
        ]
        self.cohort, self.rng = int(data["cohort"]), np.random.default_rng(0)
        self.model, self.algorithm = self.build(dropout=True, skip_shuffle=False)
        names = [k.split("/")[1:] for k in data if k.startswith("init/")]
        self.first = {module: {} for module, _ in names}
        for module, leaf in names:
            a = jax.numpy.asarray(data[f"init/{module}/{leaf}"])
            self.first[module]["w" if leaf == "kernel" else "b"] = a

    def build(self, dropout, skip_shuffle):
        data, metrics = self.data, fedjax.metrics
        model = create_model_from_haiku(
            hk.transform(partial(self.network, dropout=dropout)),
            {"x": data["x"][:1], "y": data["y"][:1]},
            lambda batch, out: metrics.unreduced_cross_entropy_loss(batch["y"], out),
            {"loss": metrics.CrossEntropyLoss(), "accuracy": metrics.Accuracy()},
            train_kwargs={"is_train": True},
        )
        algorithm = fedjax.algorithms.fed_avg.federated_averaging(
            fedjax.model_grad(model),
            fedjax.optimizers.sgd(float(data["lr"])),
            fedjax.optimizers.sgd(1.0),
            fedjax.ShuffleRepeatBatchHParams(int(data["batch"]), skip_shuffle=skip_shuffle),
        )
        return model, algorithm

    def run(self, rounds):
        state = self.algorithm.init(self.first)
        for t in range(rounds):
            keys = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(0), t), self.cohort)
            cohort = self.rng.permutation(len(self.sets))[: self.cohort]
            clients = [(b"%d" % i, self.sets[i], key) for i, key in zip(cohort, keys)]
            state, _ = self.algorithm.apply(state, clients)
        self.params = jax.block_until_ready(state.params)

    def result(self):
        test = fedjax.ClientDataset({"x": self.data["x_test"], "y": self.data["y_test"]})
        scores = fedjax.evaluate_model(
            self.model, self.params, test.padded_batch(fedjax.PaddedBatchHParams(100))
        )
        return {k: float(v) for k, v in scores.items()}

    def check(self, rounds):
        _, algorithm = self.build(dropout=False, skip_shuffle=True)
        state = algorithm.init(self.first)
        for clients in batches(self.data, rounds):
            own = [rows.ravel() for rows in clients]
            sets = [fedjax.ClientDataset({k: self.data[k][r] for k in ("x", "y")}) for r in own]
            key = jax.random.PRNGKey(0)
            state, _ = algorithm.apply(state, [(b"%d" % i, a, key) for i, a in enumerate(sets)])
        return {
            f"{module}/{'kernel' if leaf == 'w' else 'bias'}": np.asarray(a)
            for module, leaves in state.params.items()
            for leaf, a in leaves.items()
        }


if __name__ == "__main__":
    works = {"A": partial(FedJAX, logistic), "B": partial(FedJAX, cifar_cnn)}
    serve(
        works,
        ("fedjax", "jax", "dm-haiku", "numpy"),
        partial(jax.config.update, "jax_enable_x64", True),
    )
