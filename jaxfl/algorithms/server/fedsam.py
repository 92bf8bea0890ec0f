"""FedSAM."""

from typing import Any, ClassVar, NamedTuple

from optax import tree

from jaxfl import struct
from jaxfl.components.oracles import sam
from jaxfl.components.solvers import SGD, fit
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.engine.parts import Identity, Mean, NoPrivacy, Uplink
from jaxfl.networks import Cohort
from jaxfl.types import Params, Scalar


@struct.dataclass
class FedSAM:
    """FedAvg whose clients seek flat minima: gradients are taken uphill of where they are used.

    y_i <- K local steps y_i - lr g_i(y_i + rho g_i(y_i) / |g_i(y_i)|) from x;
    x <- x + server_lr sum_i p_i (y_i - x).

    Use: heterogeneous clients that overfit; twice the gradients of FedAvg.

    Args:
        lr: local learning rate, > 0, traced.
        rho: how far uphill, >= 0, traced; over all leaves of one client's gradient.
        server_lr: >= 0, traced.
        steps: local steps on independent minibatches, static.
        epochs: if > 0, shuffled local epochs instead of steps, static.
        weighting: "uniform" or "count" (by number of examples), static.
        solver: `SGD()`, `Momentum(...)` or `Optax(...)`, fresh every round.
        aggregator: of messages into one, `Mean()`, `Median()`, `Krum(f)`, ...
        compress: of messages, `Identity()`, `TopK(.1)`, `EF(TopK(.1))`, ...
        privacy: `NoPrivacy()` or `Gaussian(...)`, which also sets the weights.
    State: params [...], memory of the uplink; memory d, and what the parts hold.
    Needs: Cohort nets.
    Sent: up 32 d, down 32 d bits per participating client and round, in float32.
    Equals: FedAvg when rho = 0, at twice its gradients.
    Deviations: none.
    Source: Qu, Li, Duan, Liu, Tang, Lu, "Generalized Federated Learning via Sharpness Aware
        Minimization", ICML 2022, arXiv 2206.02618; third-party code was read.
    Example:
        >>> print(jaxfl.grid(algorithms.FedSAM, lr=0.1, rho=[0.0, 0.05, 0.1]).rho)
        [0.   0.05 0.1 ]
    """

    lr: Scalar = hyper(tune=True)
    rho: Scalar = hyper(0.1)
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
        params: Params  # x  [...]  server model
        link: Any = ()  # memory of the uplink

    def init(self, params, clients, key):
        return self.State(params, Uplink.of(self).init(clients.n, params))

    def round(self, state, clients, net, key):
        x, way = state.params, Uplink.of(self)
        w = clients.weights(net, self.weighting)

        def local(client, key):
            y, _, work = fit(self, client, x, key, sam(client.grad, self.rho))
            return tree.sub(y, x), work._replace(grads=2 * work.grads)

        d, link, work = clients[net].mean(
            local, weights=w, send=net.send, key=key, uplink=way, memory=state.link
        )
        x = tree.add_scale(x, self.server_lr, d)
        info = net.info(work, up=self.compress.bits(x), down=comm.bits(x), w=w)
        return self.State(x, link), info
