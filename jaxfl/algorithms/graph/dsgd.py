"""Decentralised SGD."""

from typing import Any, ClassVar, NamedTuple

import jax
from flax import struct

from jaxfl.components.solvers import SGD, live_steps, train
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.networks import Graph
from jaxfl.types import Scalar, Stacked, fork


@struct.dataclass
class DSGD:
    """Decentralised SGD: local steps, then averaging with the neighbours.

    y_i <- K local steps from x_i.  "atc" (adapt then combine): x <- W y;
    "cta" (combine then adapt): x <- W x + (y - x). They have different fixed points.

    Use: the baseline of everything without a server; biased by O(lr) under heterogeneity.

    Args:
        lr: learning rate, > 0, traced.
        steps: local steps on independent minibatches, static.
        epochs: if > 0, shuffled local epochs instead of steps, static.
        order: "atc" or "cta", static.
        solver: `SGD()`, `Momentum(...)` or `Optax(...)`; its memory persists per node.
    State: params [n, ...], memory of the solver [n, ...]; memory n d for SGD, 2 n d with momentum.
    Needs: Graph nets whose rows sum to 1, also time-varying and lossy.
    Sent: up 32 d times the out-degree, down times what arrives, bits per active node and round, in
        float32.
    Equals: SGD on the complete graph from a common start; FedAvg with everyone on the complete
        graph ("atc").
    Deviations: none.
    Source: Lian, Zhang, Zhang, Hsieh, Zhang, Liu, "Can Decentralized Algorithms Outperform
        Centralized Algorithms? A Case Study for Decentralized Parallel Stochastic Gradient
        Descent", NeurIPS 2017 ("cta"); Koloskova, Loizou, Boreiri, Jaggi, Stich, "A Unified
        Theory of Decentralized SGD with Changing Topology and Local Updates", ICML 2020 ("atc",
        local steps); the code of RelaySGD was read.
    Example:
        >>> run = jaxfl.simulate(
        ...     algorithms.DSGD(lr=0.1), problems.quadratics(n=8).clients(),
        ...     networks.graph("ring", 8), jnp.zeros(5), jax.random.key(0), rounds=300,
        ... )
        >>> run.state.params.shape, f"{metrics.consensus(run.state.params):.2f}"
        ((8, 5), '0.05')
    """

    lr: Scalar = hyper(tune=True)
    steps: int = count(1)
    epochs: int = count(0, low=0)
    order: str = choice("atc", "cta")
    solver: Any = SGD()
    needs: ClassVar[Needs] = Needs(Graph, rows=True)

    class State(NamedTuple):
        params: Stacked  # x  [n, ...]
        memory: Stacked  # of the solver  [n, ...]

    def init(self, params, clients, key):
        return self.State(
            comm.stack(params, clients.n), comm.stack(self.solver.init(params), clients.n)
        )

    def round(self, state, clients, net, key):
        x = state.params

        def local(client, x, memory, key):
            xi = client.samples(key, self.steps, self.epochs)
            y, loss, memory = train(client.grad, x, xi, self.lr, self.solver, memory)
            return y, memory, loss, live_steps(xi)

        y, memory, loss, grads = clients.each(local, x, state.memory, key=key)
        if self.order == "atc":
            new = comm.mix(net.w, net.send(y, fork(key, "send")), own=y)
        else:
            mixed = comm.mix(net.w, net.send(x, fork(key, "send")), own=x)
            new = jax.tree.map(lambda m, y, x: m + (y - x), mixed, y, x)
        new = comm.where(net.active, self.State(new, memory), state)
        size = comm.bits(x) / clients.n
        return new, net.info(loss, grads, up=size, down=size)
