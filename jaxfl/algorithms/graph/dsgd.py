"""Decentralised SGD."""

from typing import Any, ClassVar, NamedTuple

import jax

from jaxfl import struct
from jaxfl.components.solvers import SGD, fit
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.engine.parts import Mean, initial
from jaxfl.networks import Graph
from jaxfl.types import Scalar, Stacked


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
        aggregator: of the own and the neighbours' models, `Mean()` by the graph's weights,
            `ClippedGossip(tau)`, `Median()`, `Krum(f)`, ...
    State: params [n, ...], memory of the solver and of the aggregator [n, ...]; memory n d for SGD,
        2 n d with momentum.
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
        ...     networks.topology("ring", 8), jnp.zeros(5), jax.random.key(0), rounds=300,
        ... )
        >>> run.state.params.shape, f"{metrics.consensus(run.state.params):.2f}"
        ((8, 5), '0.05')
    """

    lr: Scalar = hyper(tune=True)
    steps: int = count(1)
    epochs: int = count(0, low=0)
    order: str = choice("atc", "cta")
    solver: Any = SGD()
    aggregator: Any = Mean()
    needs: ClassVar[Needs] = Needs(Graph, rows=True)

    class State(NamedTuple):
        params: Stacked  # x  [n, ...]
        memory: Stacked  # of the solver  [n, ...]
        link: Stacked = ()  # of the aggregator  [n, ...]

    def init(self, params, clients, key):
        link = initial(self.aggregator, params, clients.n)
        return self.State(clients.rows(params), clients.rows(self.solver.init(params)), link)

    def round(self, state, clients, net, key):
        x = state.params
        local = lambda client, x, memory, key: fit(self, client, x, key, memory=memory)
        y, memory, work = clients.each(local, x, state.memory, key=key)
        sent = y if self.order == "atc" else x
        mixed, link = net.aggregate(self.aggregator, sent, key, memory=state.link)
        if self.order == "cta":
            mixed = jax.tree.map(lambda m, y, x: m + (y - x), mixed, y, x)
        size = comm.bits(x) / clients.n
        new = comm.where(net.active, self.State(mixed, memory, link), state)
        return new, net.info(work, up=size, down=size)
