"""FedProx."""

from typing import Any, ClassVar, NamedTuple

from optax import tree

from jaxfl import struct
from jaxfl.components.oracles import proximal
from jaxfl.components.solvers import SGD, fit
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.engine.parts import Identity, Mean, NoPrivacy, Uplink
from jaxfl.networks import Cohort
from jaxfl.types import Params, Scalar


@struct.dataclass
class FedProx:
    """FedAvg with a proximal term that keeps the local models near the server's.

    y_i <- K local steps y_i - lr (g_i(y_i) + mu (y_i - x)) from x;
    x <- x + server_lr sum_i p_i (y_i - x).

    Use: stragglers and strong heterogeneity; it tempers FedAvg's bias, it does not remove it.

    Args:
        lr: local learning rate, > 0, traced.
        mu: proximal weight, >= 0, traced.
        server_lr: >= 0, traced.
        steps: local steps on independent minibatches, static.
        epochs: if > 0, shuffled local epochs instead of steps, static.
        weighting: "uniform" or "count", static.
        solver: `SGD()`, `Momentum(...)` or `Optax(...)`, fresh every round.
        aggregator: of messages into one, `Mean()`, `Median()`, `Krum(f)`, ...
        compress: of messages, `Identity()`, `TopK(.1)`, `EF(TopK(.1))`, ...
        privacy: `NoPrivacy()` or `Gaussian(...)`, which also sets the weights.
    State: params [...], memory of the uplink; memory d, and what the parts hold.
    Needs: Cohort nets.
    Sent: up 32 d, down 32 d bits per participating client and round, in float32.
    Equals: FedAvg when mu = 0.
    Deviations: the paper's inexact local solution is a fixed number of steps here.
    Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous
        Networks", MLSys 2020, arXiv 1812.06127, algorithm 2; third-party code was read.
    Example:
        >>> sweep = jaxfl.grid(algorithms.FedProx, lr=[0.1, 0.3], mu=[0.0, 0.01, 0.1])
        >>> print(sweep.mu)
        [0.   0.01 0.1  0.   0.01 0.1 ]
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
        params: Params  # x  [...]  server model
        link: Any = ()  # memory of the uplink

    def init(self, params, clients, key):
        return self.State(params, Uplink.of(self).init(clients.n, params))

    def round(self, state, clients, net, key):
        x, way = state.params, Uplink.of(self)
        w = clients.weights(net, self.weighting)

        def local(client, key):
            grad = proximal(client.grad, self.mu, x)  # towards x, not towards 0
            y, _, work = fit(self, client, x, key, grad)
            return tree.sub(y, x), work

        d, link, work = clients[net].mean(
            local, weights=w, send=net.send, key=key, uplink=way, memory=state.link
        )
        x = tree.add_scale(x, self.server_lr, d)
        info = net.info(work, up=self.compress.bits(x), down=comm.bits(x), w=w)
        return self.State(x, link), info
