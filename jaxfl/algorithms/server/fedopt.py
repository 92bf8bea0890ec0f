"""FedOpt: FedAdagrad, FedAdam, FedYogi."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from optax import tree

from jaxfl import struct
from jaxfl.components.solvers import SGD, fit
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.engine.parts import Identity, Mean, NoPrivacy, Uplink
from jaxfl.networks import Cohort
from jaxfl.types import Params, Scalar

_SECOND_MOMENTS = {
    "adagrad": lambda v, d, beta2: v + d * d,
    "adam": lambda v, d, beta2: beta2 * v + (1 - beta2) * d * d,
    "yogi": lambda v, d, beta2: v - (1 - beta2) * d * d * jnp.sign(v - d * d),
}


@struct.dataclass
class FedOpt:
    """Federated averaging whose server treats the mean change as a gradient of an adaptive method.

    D = sum_i p_i (y_i - x) after K local steps;  m <- beta1 m + (1 - beta1) D;
    v <- v + D^2 (adagrad), beta2 v + (1 - beta2) D^2 (adam), v - (1 - beta2) D^2 sign(v - D^2)
    (yogi);  x <- x + server_lr m / (sqrt(v) + tau).

    Use: sparse gradients, badly scaled layers; tune server_lr together with lr.

    Args:
        lr: local learning rate, > 0, traced.
        server_lr: > 0, traced.
        beta1: in [0, 1), traced; the paper takes 0 for Adagrad (`FedAdagrad` does).
        beta2: in [0, 1), traced; unused by adagrad.
        tau: adaptivity, > 0, traced.
        kind: "adagrad", "adam" or "yogi", static.
        steps: local steps on independent minibatches, static.
        epochs: if > 0, shuffled local epochs instead of steps, static.
        weighting: "uniform" or "count", static.
        solver: `SGD()`, `Momentum(...)` or `Optax(...)`, fresh every round.
        aggregator: of messages into one, `Mean()`, `Median()`, `Krum(f)`, ...
        compress: of messages, `Identity()`, `TopK(.1)`, `EF(TopK(.1))`, ...
        privacy: `NoPrivacy()` or `Gaussian(...)`, which also sets the weights.
    State: params [...], m [...], v [...], memory of the uplink; memory 3 d, and what the parts
        hold.
    Needs: Cohort nets.
    Sent: up 32 d, down 32 d bits per participating client and round, in float32.
    Equals: FedAvg up to the scale of its server_lr when tau is huge: beta1 = 0,
        server_lr = tau large.
    Deviations: none; no bias correction and v0 = tau^2, as the paper. Implementations that take a
        library's Adam for the server correct the bias, as FedExP's code does, and so begin with
        longer steps; FL-Simulator starts v at 0.
    Source: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated
        Optimization", ICLR 2021, arXiv 2003.00295, algorithm 2; third-party code was read.
    Example:
        >>> algorithms.FedOpt(lr=0.1, server_lr=0.01, kind="yogi").beta2
        0.99
    """

    lr: Scalar = hyper(tune=True)
    server_lr: Scalar = hyper(0.1)
    beta1: Scalar = hyper(0.9, high=1.0)
    beta2: Scalar = hyper(0.99, high=1.0)
    tau: Scalar = hyper(1e-3)
    kind: str = choice("adam", "adagrad", "yogi")
    steps: int = count(10)
    epochs: int = count(0, low=0)
    weighting: str = choice("uniform", "count")
    solver: Any = SGD()
    aggregator: Any = Mean()
    compress: Any = Identity()
    privacy: Any = NoPrivacy()
    needs: ClassVar[Needs] = Needs(Cohort)

    class State(NamedTuple):
        params: Params  # x  [...]
        m: Params  # m  [...]  first moment of the changes
        v: Params  # v  [...]  second moment
        link: Any = ()  # memory of the uplink

    def init(self, params, clients, key):
        zero = tree.zeros_like(params)
        link = Uplink.of(self).init(clients.n, params)
        return self.State(params, zero, jax.tree.map(lambda z: z + self.tau**2, zero), link)

    def round(self, state, clients, net, key):
        x, m, v, link = state
        w, way = clients.weights(net, self.weighting), Uplink.of(self)

        def local(client, key):
            y, _, work = fit(self, client, x, key)
            return tree.sub(y, x), work

        d, link, work = clients[net].mean(
            local, weights=w, send=net.send, key=key, uplink=way, memory=link
        )
        second = _SECOND_MOMENTS[self.kind]
        m = jax.tree.map(lambda m, d: self.beta1 * m + (1 - self.beta1) * d, m, d)
        v = jax.tree.map(lambda v, d: second(v, d, self.beta2), v, d)
        x = jax.tree.map(lambda x, m, v: x + self.server_lr * m / (jnp.sqrt(v) + self.tau), x, m, v)
        new = way.wait(net, self.State(x, m, v), state._replace(link=()))
        info = net.info(work, up=self.compress.bits(x), down=comm.bits(x), w=w)
        return new._replace(link=link), info


def FedAdagrad(lr: Scalar, **fields: Any) -> FedOpt:
    """`FedOpt(kind="adagrad")` with the paper's beta1 = 0.

    Example:
        >>> algorithms.FedAdagrad(lr=0.1, tau=0.01).beta1
        0.0
    """
    return FedOpt(lr=lr, **{"kind": "adagrad", "beta1": 0.0, **fields})


def FedAdam(lr: Scalar, **fields: Any) -> FedOpt:
    """`FedOpt(kind="adam")`.

    Example:
        >>> algorithms.FedAdam(lr=0.1, server_lr=0.01).kind
        'adam'
    """
    return FedOpt(lr=lr, **{"kind": "adam", **fields})


def FedYogi(lr: Scalar, **fields: Any) -> FedOpt:
    """`FedOpt(kind="yogi")`.

    Example:
        >>> algorithms.FedYogi(lr=0.1, beta2=0.999).kind
        'yogi'
    """
    return FedOpt(lr=lr, **{"kind": "yogi", **fields})
