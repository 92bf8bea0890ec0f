"""Ditto."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp

from jaxfl import struct
from jaxfl.algorithms.server.fedavg import FedAvg
from jaxfl.components.oracles import proximal
from jaxfl.components.solvers import SGD, fit
from jaxfl.engine.contract import Models, Needs
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.engine.parts import Identity, Mean, NoPrivacy
from jaxfl.networks import Cohort
from jaxfl.types import Params, Scalar, Stacked, fork

# The fields that are FedAvg's too.
_SHARED = (
    *("lr", "server_lr", "steps", "epochs", "weighting", "solver"),
    *("aggregator", "compress", "privacy"),
)


@struct.dataclass
class Ditto:
    """FedAvg beside one personal model per client, held near the global one.

    x by FedAvg;  v_i <- K steps v_i - lr (g_i(v_i) + mu (v_i - x)), with the x received now.

    Use: clients that want a model of their own, fairness, robustness of the personal models.

    Args:
        lr: local learning rate of both models, > 0, traced.
        mu: pull of the personal to the global model, >= 0, traced.
        server_lr: >= 0, traced.
        steps: local steps of each of the two, on independent minibatches, static.
        epochs: if > 0, shuffled local epochs instead of steps, static.
        weighting: "uniform" or "count", static.
        solver: `SGD()`, `Momentum(...)` or `Optax(...)`, fresh every round.
        aggregator: of messages into one, `Mean()`, `Median()`, `Krum(f)`, ...
        compress: of messages, `Identity()`, `TopK(.1)`, `EF(TopK(.1))`, ...
        privacy: `NoPrivacy()` or `Gaussian(...)`, which also sets the weights.
    State: server (FedAvg's; params is its model [...]), own [n, ...]; memory (n + 1) d, and what
        the parts hold.
    Needs: Cohort nets.
    Sent: up 32 d, down 32 d bits per participating client and round, in float32; personal models
        never leave.
    Equals: the global model is FedAvg's under the same key; mu = 0 trains every client alone.
    Deviations: none; PFLlib's default mu = 0 would be local training only.
    Source: Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through
        Personalization", ICML 2021, arXiv 2012.04221, algorithm 1; PFLlib's code was read.
    Example:
        >>> print(jaxfl.grid(algorithms.Ditto, lr=0.5, mu=[0.0, 1.0]).mu)
        [0. 1.]
    """

    lr: Scalar = hyper(tune=True)
    mu: Scalar = hyper(0.1)
    server_lr: Scalar = hyper(1.0)
    steps: int = count(10)
    epochs: int = count(0, low=0)
    weighting: str = choice("uniform", "count")
    solver: Any = SGD()
    aggregator: Any = Mean()
    compress: Any = Identity()
    privacy: Any = NoPrivacy()
    needs: ClassVar[Needs] = Needs(Cohort)

    class State(NamedTuple):
        server: Any  # FedAvg's state
        own: Stacked  # v  [n, ...]  personal models

        @property
        def params(self) -> Params:
            """x  [...]  the global model"""
            return self.server.params

        @property
        def personal(self) -> Models:
            """v"""
            return Models(self.own)

    def init(self, params, clients, key):
        fedavg = FedAvg(**{k: getattr(self, k) for k in _SHARED})
        return self.State(fedavg.init(params, clients, key), clients.rows(params))

    def round(self, state, clients, net, key):
        fedavg = FedAvg(**{k: getattr(self, k) for k in _SHARED})
        new, info = fedavg.round(state.server, clients, net, key)

        def local(client, v, key):
            grad = proximal(client.grad, self.mu, state.params)
            v, _, work = fit(self, client, v, key, grad)
            return v, work.grads

        own, grads = clients[net].each(local, state.own, key=fork(key, "personal"))
        info = info._replace(grads=info.grads + jnp.where(net.here, grads, 0))
        return self.State(new, own), info
