"""Ditto."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import struct

from jaxfl.algorithms.server.fedavg import FedAvg
from jaxfl.components.oracles import proximal
from jaxfl.components.solvers import SGD, live_steps, train
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.networks import Cohort
from jaxfl.types import Params, Scalar, Stacked, fork


@struct.dataclass
class Ditto:
    """FedAvg beside one personal model per client, held near the global one.

    x by FedAvg;  v_i <- K steps v_i - lr (g_i(v_i) + lam (v_i - x)), with the x received now.

    Use: clients that want a model of their own, fairness, robustness of the personal models.

    Args:
        lr: local learning rate of both models, > 0, traced.
        lam: pull of the personal to the global model, >= 0, traced.
        server_lr: >= 0, traced.
        steps: local steps of each of the two, on independent minibatches, static.
        epochs: if > 0, shuffled local epochs instead of steps, static.
        weighting: "uniform" or "count", static.
        solver: `SGD()`, `Momentum(...)` or `Optax(...)`, fresh every round.
    State: params [...], personal [n, ...]; memory (n + 1) d.
    Needs: Cohort nets.
    Sent: up 32 d, down 32 d bits per participating client and round, in float32; personal models
        never leave.
    Equals: the global model is FedAvg's under the same key; lam = 0 trains every client alone.
    Deviations: none; PFLlib's default lam = 0 would be local training only.
    Source: Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through
        Personalization", ICML 2021, arXiv 2012.04221, algorithm 1; PFLlib's code was read.
    Example:
        >>> print(jaxfl.grid(algorithms.Ditto, lr=0.5, lam=[0.0, 1.0]).lam)
        [0. 1.]
    """

    lr: Scalar = hyper(tune=True)
    lam: Scalar = hyper(0.1)
    server_lr: Scalar = hyper(1.0)
    steps: int = count(10)
    epochs: int = count(0, low=0)
    weighting: str = choice("uniform", "count")
    solver: Any = SGD()
    needs: ClassVar[Needs] = Needs(Cohort)

    class State(NamedTuple):
        params: Params  # x  [...]     global model
        personal: Stacked  # v  [n, ...]  personal models

    def init(self, params, clients, key):
        return self.State(params, comm.stack(params, clients.n))

    def round(self, state, clients, net, key):
        x, v = state
        fedavg = FedAvg(
            self.lr, self.server_lr, self.steps, self.epochs, self.weighting, self.solver
        )
        new, info = fedavg.round(fedavg.State(x), clients, net, key)

        def local(client, v, key):
            xi = client.samples(key, self.steps, self.epochs)
            grad = proximal(client.grad, self.lam, x)
            v, _, _ = train(grad, v, xi, self.lr, self.solver, self.solver.init(v))
            return v, live_steps(xi)

        own, grads = clients[net.idx].each(local, comm.pick(v, net.idx), key=fork(key, "personal"))
        info = info._replace(grads=info.grads + jnp.where(net.here, grads, 0))
        return self.State(new.params, comm.put(v, net.idx, own)), info
