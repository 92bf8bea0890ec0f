"""What one would write first in JAX: flax layers under vmap over clients, scan over local steps, a
Python loop over jitted rounds, and mixing as a dense matrix product. Runs where jaxfl runs.
"""

import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from serve import Rival, batches, serve


class Logistic(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(10, name="head")(x)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(10, name="head")(nn.relu(nn.Dense(64, name="dense1")(x)))


class CifarCNN(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(32, (3, 3), padding="VALID", name="conv1")(x))
        x = nn.relu(nn.Conv(64, (3, 3), padding="VALID", name="conv2")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Dropout(0.25)(x, deterministic=not train).reshape(len(x), -1)
        x = nn.relu(nn.Dense(128, name="dense")(x))
        return nn.Dense(10, name="head")(nn.Dropout(0.5)(x, deterministic=not train))


class FedAvg(Rival):
    def __init__(self, model, data):
        self.given = data
        self.model, self.lr, self.key = model, float(data["lr"]), jax.random.key(0)
        names = ("clients", "size", "cohort", "batch")
        self.clients, self.size, self.cohort, self.batch = (int(data[k]) for k in names)
        self.data = jnp.asarray(data["x"]), jnp.asarray(data["y"])
        self.test = jnp.asarray(data["x_test"]), jnp.asarray(data["y_test"])
        self.first = {}
        for name in data:
            if name.startswith("init/"):
                _, module, leaf = name.split("/")
                self.first.setdefault(module, {})[leaf] = jnp.asarray(data[name])
        self.round = jax.jit(self.draw_and_train)
        self.score = jax.jit(partial(self.loss, key=None))

    def loss(self, x, inputs, labels, key):
        rngs = None if key is None else {"dropout": key}
        out = self.model.apply({"params": x}, inputs, key is not None, rngs=rngs)
        losses = optax.softmax_cross_entropy_with_integer_labels(out, labels)
        return losses.mean(), (out.argmax(-1) == labels).mean()

    def draw_and_train(self, x, data, key):
        cohort_key, order_key, loss_key = jax.random.split(key, 3)
        cohort = jax.random.permutation(cohort_key, self.clients)[: self.cohort]
        orders = jax.vmap(lambda k: jax.random.permutation(k, self.size))(
            jax.random.split(order_key, self.cohort)
        )
        rows = (cohort[:, None] * self.size + orders).reshape(self.cohort, -1, self.batch)
        return self.train(x, data, rows, jax.random.split(loss_key, rows.shape[:2]))

    def local(self, x, data, rows, keys):
        """The model after one client's steps."""

        def step(y, now):
            rows, key = now
            inputs, labels = (a[rows] for a in data)
            g = jax.grad(self.loss, has_aux=True)(y, inputs, labels, key)[0]
            return jax.tree.map(lambda y, g: y - self.lr * g, y, g), None

        return jax.lax.scan(step, x, (rows, keys))[0]

    def train(self, x, data, rows, keys):
        y = jax.vmap(self.local, (None, None, 0, 0))(x, data, rows, keys)
        return jax.tree.map(lambda a: a.mean(0), y)

    def run(self, rounds):
        x = self.start()
        for t in range(rounds):
            x = self.round(x, self.data, jax.random.fold_in(self.key, t))
        self.params = jax.block_until_ready(x)

    def start(self):
        return self.first

    def deployed(self, x):
        return x

    def result(self):
        parts = zip(*(jnp.split(a, 10) for a in self.test))
        x = self.deployed(self.params)
        loss, accuracy = np.mean([self.score(x, *part) for part in parts], 0)
        return {"loss": float(loss), "accuracy": float(accuracy)}

    def check(self, rounds):
        x = self.start()
        for rows in batches(self.given, rounds):
            x = jax.jit(self.train)(x, self.data, jnp.asarray(np.stack(rows)), None)
        x = self.deployed(x)
        return {f"{m}/{leaf}": np.asarray(a) for m, p in x.items() for leaf, a in p.items()}


class Decentralised(FedAvg):
    """D-SGD: every node trains from its own model; mixing is a matrix product."""

    def __init__(self, data):
        super().__init__(MLP(), data)
        self.w = jnp.asarray(data["w"])

    def start(self):
        return jax.tree.map(lambda a: jnp.tile(a, (self.clients, *(1,) * a.ndim)), self.first)

    def deployed(self, x):
        return jax.tree.map(lambda a: a.mean(0), x)

    def draw_and_train(self, x, data, key):
        rows_key, loss_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (self.clients, 1, self.batch), 0, self.size)
        rows += self.size * jnp.arange(self.clients)[:, None, None]
        return self.train(x, data, rows, jax.random.split(loss_key, rows.shape[:2]))

    def train(self, x, data, rows, keys):
        y = jax.vmap(self.local, (0, None, 0, 0))(x, data, rows, keys)
        return jax.tree.map(lambda a: jnp.tensordot(self.w, a, 1), y)


class Mixing(Rival):
    """A round is one product of the matrix [n, n] with the models [n, d]."""

    def __init__(self, data):
        self.w, self.given = jnp.asarray(data["w"]), data
        key = jax.random.key(int(data["seed"]))
        self.first = jax.random.normal(key, (len(self.w), int(data["d"])))
        self.mix = jax.jit(jnp.matmul)

    def run(self, rounds):
        x = self.first
        for _ in range(rounds):
            x = self.mix(self.w, x)
        self.x = jax.block_until_ready(x)

    def result(self):
        return {"variance": float(self.x.var(0).mean())}

    def check(self, rounds):
        self.first = jnp.asarray(self.given["x"])
        self.run(rounds)
        return {"x": np.asarray(self.x)}


def prepare(device, precision):
    """Products and convolutions in float32 or TF32."""
    policies = {"float32": "float32", "tf32": "tensorfloat32"}
    backend = {"cuda": "gpu"}.get(device, device)
    if precision not in policies or jax.default_backend() != backend:
        sys.exit(f"naive_jax runs in {[*policies]} on the {jax.default_backend()}")
    jax.config.update("jax_default_matmul_precision", policies[precision])


if __name__ == "__main__":
    works = {"A": partial(FedAvg, Logistic()), "B": partial(FedAvg, CifarCNN()), "D": Mixing}
    works["E"] = Decentralised
    serve(
        works,
        ("jax", "jaxlib", "flax", "optax", "numpy"),
        partial(jax.config.update, "jax_enable_x64", True),
        prepare=prepare,
    )
