"""FedDyn."""

from typing import Any, ClassVar, NamedTuple

import jax
from optax import tree

from jaxfl import struct
from jaxfl.components.oracles import proximal, shifted
from jaxfl.components.solvers import SGD, fit
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import count, hyper
from jaxfl.engine.parts import Identity, Mean, Uplink
from jaxfl.networks import Cohort
from jaxfl.types import Params, Scalar, Stacked


@struct.dataclass
class FedDyn:
    """Dynamic regularisation: local optima are moved until they agree; exact with a constant rate.

    y_i <- K local steps y_i - lr (g_i(y_i) - h_i + mu (y_i - x)) from x;
    h_i <- h_i - mu (y_i - x);  h <- h - mu / n sum_(i in S) (y_i - x);
    x <- mean_(i in S) y_i - h / mu.

    Use: many local steps on heterogeneous clients, at the bytes of FedAvg; unstable for a small mu.

    Args:
        lr: local learning rate, > 0, traced.
        mu: strength of the regulariser (lambda), > 0, traced; 0.1 to 0.001 in the paper.
        steps: local steps on independent minibatches, static.
        epochs: if > 0, shuffled local epochs instead of steps, static.
        aggregator: of messages into one, `Mean()`, `Median()`, `Krum(f)`, ...
        compress: of messages, `Identity()`, `TopK(.1)`, `EF(TopK(.1))`, ...
    State: params [...], h [...], h_i [n, ...], memory of the uplink; memory (n + 2) d.
    Needs: Cohort nets.
    Sent: up 32 d, down 32 d bits per participating client and round, in float32.
    Equals: none; in the first round clients work as those of FedProx.
    Deviations: none; clients that do not solve their problem keep what the solution would leave.
    Source: Acar, Zhao, Matas, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic
        Regularization", ICLR 2021, arXiv 2111.04263; third-party code was read.
    Example:
        >>> problem = problems.quadratics(n=4, shared=False)
        >>> run = jaxfl.simulate(
        ...     algorithms.FedDyn(lr=0.2), problem.clients(), networks.Everyone(4),
        ...     jnp.zeros(5), jax.random.key(0), rounds=300,
        ... )
        >>> print(f"{np.linalg.norm(run.state.params - problem.optimum):.1f}")
        0.0
    """

    lr: Scalar = hyper(tune=True)
    mu: Scalar = hyper(0.1, low=1e-30)
    steps: int = count(10)
    epochs: int = count(0, low=0)
    aggregator: Any = Mean()
    compress: Any = Identity()
    solver: ClassVar[Any] = SGD()
    needs: ClassVar[Needs] = Needs(Cohort)

    class State(NamedTuple):
        params: Params  # x    [...]     server model
        h: Params  # h    [...]     mean of the clients' duals
        h_i: Stacked  # h_i  [n, ...]  duals
        link: Any = ()  # memory of the uplink

    def init(self, params, clients, key):
        zero = tree.zeros_like(params)
        link = Uplink.of(self).init(clients.n, params)
        return self.State(params, zero, clients.rows(zero), link)

    def round(self, state, clients, net, key):
        x, h, h_i, link = state
        w, way = clients.weights(net, "uniform"), Uplink.of(self)

        def local(client, h_i, key):
            grad = proximal(shifted(client.grad, tree.scale(-1, h_i)), self.mu, x)
            y, _, work = fit(self, client, x, key, grad)
            d = tree.sub(y, x)
            return d, (tree.add_scale(h_i, -self.mu, d), work)

        d, link, (h_i, work) = clients[net].mean(
            local, h_i, weights=w, send=net.send, key=key, uplink=way, memory=link
        )
        share = (w != 0).sum() / clients.n  # of the clients that came
        h = jax.tree.map(lambda h, d: h - self.mu * share * d, h, d)
        new = jax.tree.map(lambda x, d, h: x + d - h / self.mu, x, d, h)
        info = net.info(work, up=self.compress.bits(x), down=comm.bits(x), w=w)
        return self.State(net.wait(new, x), h, h_i, link), info
