"""FedAvg."""

from typing import Any, ClassVar, NamedTuple

import jax
from optax import tree

from jaxfl import struct
from jaxfl.components.adapters import Everything, join
from jaxfl.components.solvers import SGD, Momentum, fit
from jaxfl.engine import comm
from jaxfl.engine.contract import Models, Needs
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.engine.parts import Identity, Mean, NoPrivacy, Uplink
from jaxfl.networks import Cohort
from jaxfl.types import Params, Scalar, Stacked


@struct.dataclass
class FedAvg:
    """Federated averaging: local SGD on a cohort, then the weighted mean of the changes.

    y_i <- K local steps y_i - lr g_i(y_i) from x;  x <- x + server_lr sum_i p_i (y_i - x).

    Use: the baseline of everything with a server; biased under heterogeneity when K > 1.

    Args:
        lr: local learning rate, > 0, traced.
        server_lr: >= 0, traced; 1 sets the server to the mean of the local models.
        steps: local steps on independent minibatches, static.
        epochs: if > 0, shuffled local epochs instead of steps, static.
        weighting: "uniform" or "count" (by number of examples, as the paper), static.
        solver: `SGD()`, `Momentum(...)` or `Optax(...)`, fresh every round.
        server: the same, of the server: its gradient is minus the mean change, its learning rate
            `server_lr`.
        aggregator: of messages into one, `Mean()`, `Median()`, `Krum(f)`, ...
        compress: of messages, `Identity()`, `TopK(.1)`, `EF(TopK(.1))`, ...
        privacy: `NoPrivacy()` or `Gaussian(...)`, which also sets the weights.
        mask: which leaves clients share, `Everything()` or `Private("pattern")`.
    State: params [...], memory of the server, of the uplink, private leaves [n, ...]; memory d, and
        what the parts hold.
    Needs: Cohort nets.
    Sent: up 32 d, down 32 d bits per participating client and round, in float32.
    Equals: gradient descent when steps = 1, everyone takes part, full batch, server_lr = 1.
    Deviations: p is normalised over the cohort, which for unequal counts is biased, as everywhere.
    Source: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of
        Deep Networks from Decentralized Data", AISTATS 2017, arXiv 1602.05629, algorithm 1;
        third-party code was read.
    Example:
        >>> problem = problems.quadratics(n=4, shared=False)
        >>> run = jaxfl.simulate(
        ...     algorithms.FedAvg(lr=0.5), problem.clients(), networks.Everyone(4),
        ...     jnp.zeros(5), jax.random.key(0), rounds=100,  # clients drift apart
        ... )
        >>> print(f"{np.linalg.norm(run.state.params - problem.optimum):.1f}")
        0.6
    """

    lr: Scalar = hyper(tune=True)
    server_lr: Scalar = hyper(1.0)
    steps: int = count(10)
    epochs: int = count(0, low=0)
    weighting: str = choice("uniform", "count")
    solver: Any = SGD()
    server: Any = SGD()
    aggregator: Any = Mean()
    compress: Any = Identity()
    privacy: Any = NoPrivacy()
    mask: Any = Everything()
    needs: ClassVar[Needs] = Needs(Cohort)
    private: ClassVar[bool] = True

    class State(NamedTuple):
        params: Params  # x  [...]  server model
        memory: Any = ()  # of the server's solver
        link: Any = ()  # memory of the uplink
        own: Stacked = ()  # private leaves [n, ...]

    class Personal(State):
        """With private leaves: clients have models of their own."""

        @property
        def personal(self) -> Models:
            """The server's model, with the private leaves of each client."""
            return Models(self.own, lambda own: join(own, self.params))

    def init(self, params, clients, key):
        shared, private = self.mask.shared(params), self.mask.private(params)
        kind = self.Personal if jax.tree.leaves(private) else self.State
        link = Uplink.of(self).init(clients.n, shared)
        return kind(params, self.server.init(shared), link, clients.rows(private))

    def round(self, state, clients, net, key):
        x, memory, link, own = state
        way, share = Uplink.of(self), self.mask.shared
        w = clients.weights(net, self.weighting)

        def local(client, own, key):  # ClientUpdate
            start = self.mask.join(own, x)
            y, _, work = fit(self, client, start, key)
            return share(tree.sub(y, start)), (self.mask.private(y), work)

        d, link, (own, work) = clients[net].mean(
            local, own, weights=w, send=net.send, key=key, uplink=way, memory=link
        )
        old = share(x), memory
        new = self.server.step(share(x), tree.scale(-1, d), self.server_lr, memory)
        new, memory = way.wait(net, new, old)
        info = net.info(work, up=self.compress.bits(new), down=comm.bits(new), w=w)
        return type(state)(self.mask.join(new, x), memory, link, own), info


def FedAvgM(lr: Scalar, **fields: Any) -> FedAvg:
    """FedAvg with momentum on the server.

    y_i <- K local steps y_i - lr g_i(y_i) from x;
    m <- beta m + sum_i p_i (y_i - x);  x <- x + server_lr m.

    Use: small cohorts, whose mean changes are noisy; scale server_lr with 1 - beta.

    Args:
        fields: others of `FedAvg`; of another momentum, `server=Momentum(0.5)`.
    State: params [...], memory m [...]; memory 2 d.
    Needs: Cohort nets.
    Sent: up 32 d, down 32 d bits per participating client and round, in float32.
    Equals: FedAvg when beta = 0.
    Deviations: none.
    Source: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
        Visual Classification", arXiv 2019, arXiv 1909.06335; third-party code was read.
    Example:
        >>> algorithms.FedAvgM(lr=0.1, server_lr=0.3).server.beta
        0.9
    """
    return FedAvg(lr=lr, **{"server": Momentum(0.9), **fields})
