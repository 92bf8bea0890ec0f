"""FedBuff."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax import tree

from jaxfl import struct
from jaxfl.components.solvers import SGD, fit
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.engine.parts import Identity, Mean, Uplink
from jaxfl.networks import Arrivals
from jaxfl.types import Params, Scalar, Stacked


def _fits(alg, network):
    """Ages within the ring, looked up in the schedule (through `Attacked` and the like)."""
    while not hasattr(network, "nets"):
        if not hasattr(network, "network"):
            return  # ages drawn inside the program
        network = network.network
    oldest = int(np.max(network.nets.age, initial=0))
    if oldest > alg.max_age:
        raise ValueError(
            f"FedBuff.max_age must cover the ages of the schedule: it is {alg.max_age}, the oldest "
            f"update is {oldest} rounds old; use `FedBuff(max_age={oldest})`"
        )


@struct.dataclass
class FedBuff:
    """Buffered asynchronous federated averaging: the server moves when k updates have arrived.

    y_j <- K local steps y_j - lr g(y_j) from x^(t - age_j);  s_j = (1 + age_j)^-exponent;
    x <- x + server_lr sum_j p_j s_j (y_j - x^(t - age_j)) over the k slots of the buffer.

    Use: clients of very different speed, when waiting for the slowest would waste the others.

    Args:
        lr: local learning rate, > 0, traced.
        server_lr: >= 0, traced.
        exponent: of the staleness discount, >= 0, traced; 0 for none.
        max_age: oldest update in rounds, static; sets how many past models are kept.
        steps: local steps on independent minibatches, static.
        epochs: if > 0, shuffled local epochs instead of steps, static.
        weighting: "uniform" (the paper) or "count" (by number of examples), static.
        solver: `SGD()`, `Momentum(...)` or `Optax(...)`, fresh for every job.
        aggregator: of messages into one, `Mean()`, `Median()`, `Krum(f)`, ...
        compress: of messages, `Identity()`, `TopK(.1)`, `EF(TopK(.1))`, ...
    State: params [...], past [max_age + 1, ...], memory of the uplink; memory (max_age + 2) d, and
        what the parts hold. Before round 0 the past is the initial model.
    Needs: Arrivals nets, no age above max_age.
    Sent: up 32 d, down 32 d bits per arriving client and round, in float32.
    Equals: FedAvg when every age is 0.
    Raises: ValueError for a schedule with older updates; if it is traced, and so cannot be looked
        at, the model becomes NaN.
    Deviations: no client is twice in one buffer (see `arrivals`). The mean of the buffer as in the
        paper; FLSim, the authors' code, by default sums it (server_lr must then absorb 1/k) and
        scales s to be 1 at age 1. Server momentum is left out.
    Source: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered
        Asynchronous Aggregation", AISTATS 2022, arXiv 2106.06639, algorithm 1; the authors' code
        was read.
    Example:
        >>> run = jaxfl.simulate(
        ...     algorithms.FedBuff(lr=0.1), problems.quadratics(n=8).clients(),
        ...     networks.arrivals(8, buffer=2, rounds=30),
        ...     jnp.zeros(5), jax.random.key(0), rounds=30,
        ... )
        >>> run.history.clients[:4].tolist()
        [2.0, 2.0, 2.0, 2.0]
    """

    lr: Scalar = hyper(tune=True)
    server_lr: Scalar = hyper(1.0)
    exponent: Scalar = hyper(0.5)
    max_age: int = count(16, low=0)
    steps: int = count(10)
    epochs: int = count(0, low=0)
    weighting: str = choice("uniform", "count")
    solver: Any = SGD()
    aggregator: Any = Mean()
    compress: Any = Identity()
    needs: ClassVar[Needs] = Needs(Arrivals, check=_fits)

    class State(NamedTuple):
        params: Params  # x     [...]               server model
        past: Stacked  # x^(t - age)  [max_age + 1, ...]  round t in row t mod (max_age + 1)
        link: Any = ()  # memory of the uplink

    def init(self, params, clients, key):
        link = Uplink.of(self).init(clients.n, params)
        return self.State(params, comm.stack(params, self.max_age + 1), link)

    def round(self, state, clients, net, key):
        x, size = state.params, self.max_age + 1
        past = jax.tree.map(lambda p, x: p.at[net.t % size].set(x), state.past, x)
        p = clients.weights(net, self.weighting)
        age = net.age.astype(p.dtype)
        s = jnp.where(age <= self.max_age, (1 + age) ** -self.exponent, jnp.nan)

        def local(client, x, key):
            y, _, work = fit(self, client, x, key)
            return tree.sub(y, x), work

        old = comm.pick(past, (net.t - net.age) % size)
        d, link, work = clients[net].mean(
            local,
            old,
            weights=p * s,
            send=net.send,
            key=key,
            uplink=Uplink.of(self),
            memory=state.link,
        )
        x = tree.add_scale(x, self.server_lr, d)
        info = net.info(work, up=self.compress.bits(x), down=comm.bits(x), w=p)
        return self.State(x, past, link), info
