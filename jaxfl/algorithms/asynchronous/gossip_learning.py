"""Gossip learning."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxfl import struct
from jaxfl.components.solvers import SGD, live_steps, train
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.networks import Messages
from jaxfl.types import Scalar, Stacked, Work, fork


def _fits(alg, network):
    """Slots for the models under way; how many is static, so this sees it also when tracing."""
    while not hasattr(network, "slots"):
        network = network.nets if hasattr(network, "nets") else network.network
    slots = alg.slots or network.n
    if network.slots > slots:
        raise ValueError(
            f"GossipLearning.slots must cover the models under way: it is {slots}, the schedule "
            f"needs {network.slots}; use `GossipLearning(slots={network.slots})`"
        )


@struct.dataclass
class GossipLearning:
    """Models that walk from node to node, merged and trained where they arrive.

    When a message (y, s) arrives at i, which holds (x_i, t_i), with u = K local steps on i's data:
    "merge_update": x_i <- u(a x_i + (1 - a) y);  "update_merge": x_i <- a u(x_i) + (1 - a) u(y);
    "update": x_i <- u(y);  a = 1/2, or t_i / (t_i + s) with "age".
    Merged models have age max(t_i, s), and u adds K. Now and then i sends (x_i, t_i).

    Use: no server and no rounds in common, with messages that are late, lost, or find nobody.

    Args:
        lr: learning rate, > 0, traced.
        mode: "merge_update" (MU), "update_merge" (UM) or "update" (RW, random walks), static.
        merge: "uniform" or "age", the weights of two models that merge, static.
        steps: local steps on independent minibatches, static; used if epochs = 0.
        epochs: shuffled passes over the data of the node per arriving model, static.
        slots: models kept because messages with them are under way, static; 0 for one per node.
        solver: `SGD()`, `Momentum(...)` or `Optax(...)`, fresh for every arriving model.
    State: params [n, ...], ages [n], slots [slots, ...] and their ages; memory 2 n d.
    Needs: Messages nets, no more models under way than slots; row-local adversaries.
    Sent: up 32 (d + 1) times the messages that leave in a round per node, down those that arrive,
        bits per node, in float32.
    Equals: SGDs along random walks ("update"); pairwise averaging when lr = 0; the start when every
        message is lost; itself whatever the packing into waves, to rounding.
    Raises: ValueError for a schedule with more models under way.
    Deviations: the arriving model merges with the node's own, as in Hegedűs et al. and gossipy;
        Ormándi et al. merge it with the one that arrived before. Ages count gradient steps, not
        examples. All nodes start from one model, untrained. "update_merge" trains both on one
        sample, gossipy on two. In gossipy what arrives is trained in place, also if another
        message shares it, and in "update" the optimiser stays with the model that was replaced.
    Source: Ormándi, Hegedűs, Jelasity, "Gossip learning with linear models on fully distributed
        data", Concurrency and Computation 2013; Hegedűs, Danner, Jelasity, "Decentralized learning
        works: An empirical comparison of gossip learning and federated learning", Journal of
        Parallel and Distributed Computing 2021; gossipy's code was read, the papers recalled.
    Example:
        >>> run = jaxfl.simulate(
        ...     algorithms.GossipLearning(lr=0.1), problems.quadratics(n=8).clients(),
        ...     networks.gossip(networks.graphs.make("ring", 8), rounds=20),
        ...     jnp.zeros(5), jax.random.key(0), rounds=20,
        ... )
        >>> run.state.params.shape
        (8, 5)
    """

    lr: Scalar = hyper(tune=True)
    mode: str = choice("merge_update", "update_merge", "update")
    merge: str = choice("uniform", "age")
    steps: int = count(1)
    epochs: int = count(1, low=0)
    slots: int = count(0, low=0)
    solver: Any = SGD()
    needs: ClassVar[Needs] = Needs(Messages, local=True, check=_fits)

    class State(NamedTuple):
        params: Stacked  # x  [n, ...]
        age: Scalar  # t  [n]  steps behind the model
        kept: Stacked  # y  [slots, ...]  replaced, but under way
        kept_age: Scalar  # s  [slots]

    def init(self, params, clients, key):
        slots = self.slots or clients.n
        past = comm.stack(params, slots), jnp.zeros(slots)
        return self.State(clients.rows(params), clients.rows(jnp.zeros(())), *past)

    def round(self, state, clients, net, key):
        _fits(self, net)
        n, rows = clients.n, clients.n + len(state.kept_age)
        live = net.i < n
        own = jnp.where(live, net.i, rows)
        save = jnp.where(live & (net.save >= 0), n + net.save, rows)

        def draw(client, number, key):
            key = jax.random.fold_in(key, number)  # by arrival, not by slot
            return client.samples(key, self.steps, self.epochs)

        def local(client, x, xi, key):
            y, loss, _ = train(client.grad, x, xi, self.lr, self.solver, self.solver.init(x))
            return y, loss

        # all samples of the round at once: cheaper than a few in every wave
        xi = clients[net.i.reshape(-1)].each(draw, net.number.reshape(-1), key=key)
        xi = jax.tree.map(lambda a: a.reshape(*net.i.shape, *a.shape[1:]), xi)
        steps = jax.vmap(jax.vmap(live_steps))(xi)

        def wave(pool, event):
            i, j, number, source, own, save, xi, steps = event
            both = comm.pick(pool, jnp.concatenate([own, source]))
            (x, t), (y, s) = old, _ = _split(both, len(i))
            # an adversary lies about its model, not about its age
            y = net.deliver(y, j, number, fork(key, "send"))
            update = lambda x: clients[i].each(local, x, xi, key=key)
            if self.mode == "merge_update":
                x, t = self._merge(x, t, y, s)
                x, loss = update(x)
                new = x, t + steps
            elif self.mode == "update_merge":
                (x, loss), (y, other) = update(x), update(y)
                new, loss = self._merge(x, t + steps, y, s + steps), (loss + other) / 2
            else:
                x, loss = update(y)
                new = x, s + steps
            both = jax.tree.map(lambda *a: jnp.concatenate(a), new, old)
            pool = comm.put(pool, jnp.concatenate([own, save]), both)
            return pool, loss

        pool = (state.params, state.age), (state.kept, state.kept_age)
        pool = jax.tree.map(lambda *a: jnp.concatenate(a), *pool)
        events = net.i, net.j, net.number, net.source, own, save, xi, steps
        pool, loss = jax.lax.scan(wave, pool, events)
        (x, t), (y, s) = _split(pool, n)
        grads = steps * (2 if self.mode == "update_merge" else 1)
        size = (comm.bits(state.params) + comm.bits(state.age)) / n
        return self.State(x, t, y, s), net.info(Work(loss, grads), up=size, down=size)

    def _merge(self, x, t, y, s):
        a = jnp.full_like(t, 0.5)
        if self.merge == "age":
            a = jnp.where(t + s > 0, t / jnp.where(t + s > 0, t + s, 1), a)

        def mean(x, y):
            share = a.reshape(-1, *(1,) * (x.ndim - 1))
            return (share * x + (1 - share) * y).astype(x.dtype)

        return jax.tree.map(mean, x, y), jnp.maximum(t, s)


def _split(pool, n):
    return jax.tree.map(lambda a: a[:n], pool), jax.tree.map(lambda a: a[n:], pool)
