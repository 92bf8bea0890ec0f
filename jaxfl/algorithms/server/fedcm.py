"""FedCM, and MoFedSAM."""

from typing import Any, ClassVar, NamedTuple

from optax import tree

from jaxfl import struct
from jaxfl.components.oracles import blended, sam
from jaxfl.components.solvers import SGD, fit
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.engine.parts import Identity, Mean, Uplink
from jaxfl.networks import Cohort
from jaxfl.types import Params, Scalar


@struct.dataclass
class FedCM:
    """Client-level momentum: every local step leans on the direction of the last round.

    y_i <- K local steps y_i - lr (alpha g_i(y_i) + (1 - alpha) m) from x;
    m <- -sum_i p_i (y_i - x) / (lr K);  x <- x + server_lr sum_i p_i (y_i - x).

    Use: few clients per round; the momentum carries what the others hold. alpha near 0 is slow.

    Args:
        lr: local learning rate, > 0, traced.
        alpha: weight of a client's own gradient, in (0, 1], traced; 1 is FedAvg.
        server_lr: >= 0, traced.
        steps: local steps on independent minibatches, static.
        weighting: "uniform" or "count" (by number of examples), static.
        aggregator: of messages into one, `Mean()`, `Median()`, `Krum(f)`, ...
        compress: of messages, `Identity()`, `TopK(.1)`, `EF(TopK(.1))`, ...
        flat: "no", or "sam" for gradients taken uphill (MoFedSAM), static.
        rho: how far uphill, >= 0, traced.
    State: params [...], m [...], memory of the uplink; memory 2 d, and what the parts hold.
    Needs: Cohort nets.
    Sent: up 32 d, down 64 d bits per participating client and round, in float32.
    Equals: FedAvg when alpha = 1; FedAvg-M of Cheng et al. with beta = alpha.
    Deviations: none.
    Source: Xu, Wang, Wang, Yao, "FedCM: Federated Learning with Client-level Momentum", arXiv
        2021, arXiv 2106.10874; third-party code was read.
    Example:
        >>> print(jaxfl.grid(algorithms.FedCM, lr=0.1, alpha=[0.05, 0.1]).alpha)
        [0.05 0.1 ]
    """

    lr: Scalar = hyper(tune=True)
    alpha: Scalar = hyper(0.1, high=1.0)
    server_lr: Scalar = hyper(1.0)
    steps: int = count(10)
    weighting: str = choice("uniform", "count")
    aggregator: Any = Mean()
    compress: Any = Identity()
    flat: str = choice("no", "sam")
    rho: Scalar = hyper(0.1)
    epochs: ClassVar[int] = 0
    solver: ClassVar[Any] = SGD()
    needs: ClassVar[Needs] = Needs(Cohort)

    class State(NamedTuple):
        params: Params  # x  [...]  server model
        m: Params  # m  [...]  mean direction of the last round
        link: Any = ()  # memory of the uplink

    def init(self, params, clients, key):
        link = Uplink.of(self).init(clients.n, params)
        return self.State(params, tree.zeros_like(params), link)

    def round(self, state, clients, net, key):
        x, m, link = state
        w, way = clients.weights(net, self.weighting), Uplink.of(self)

        def local(client, key):
            grad = sam(client.grad, self.rho) if self.flat == "sam" else client.grad
            y, _, work = fit(self, client, x, key, blended(grad, self.alpha, m))
            evaluated = 2 * work.grads if self.flat == "sam" else work.grads
            return tree.sub(y, x), work._replace(grads=evaluated)

        d, link, work = clients[net].mean(
            local, weights=w, send=net.send, key=key, uplink=way, memory=link
        )
        m = net.wait(tree.scale(-1 / (self.lr * self.steps), d), m)
        x = tree.add_scale(x, self.server_lr, d)
        info = net.info(work, up=self.compress.bits(x), down=2 * comm.bits(x), w=w)
        return self.State(x, m, link), info


def MoFedSAM(lr: Scalar, **fields: Any) -> FedCM:
    """FedCM whose gradients are taken uphill of where they are used.

    y_i <- K local steps y_i - lr (alpha g_i(y_i + rho g_i / |g_i|) + (1 - alpha) m) from x;
    m and x as in FedCM.

    Use: as FedSAM, with few clients per round.

    Args:
        fields: others of `FedCM`.
    State: params [...], m [...]; memory 2 d.
    Needs: Cohort nets.
    Sent: up 32 d, down 64 d bits per participating client and round, in float32.
    Equals: FedCM when rho = 0, at twice its gradients.
    Deviations: none.
    Source: Qu, Li, Duan, Liu, Tang, Lu, "Generalized Federated Learning via Sharpness Aware
        Minimization", ICML 2022, arXiv 2206.02618; third-party code was read.
    Example:
        >>> algorithms.MoFedSAM(lr=0.1, rho=0.05).flat
        'sam'
    """
    return FedCM(lr=lr, **{"flat": "sam", **fields})
