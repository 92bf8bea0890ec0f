"""FedAvg."""

from typing import Any, ClassVar, NamedTuple

import jax
from flax import struct

from jaxfl.components.solvers import SGD, live_steps, train
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.networks import Cohort
from jaxfl.types import Params, Scalar


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
    State: params [...]; memory d.
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
    needs: ClassVar[Needs] = Needs(Cohort)

    class State(NamedTuple):
        params: Params  # x  [...]  server model

    def init(self, params, clients, key):
        return self.State(params)

    def round(self, state, clients, net, key):
        x = state.params
        w = clients.weights(net, self.weighting)

        def local(client, key):  # ClientUpdate
            xi = client.samples(key, self.steps, self.epochs)
            y, loss, _ = train(client.grad, x, xi, self.lr, self.solver, self.solver.init(x))
            return jax.tree.map(lambda y, x: y - x, y, x), (loss, live_steps(xi))

        delta, (loss, grads) = clients[net.idx].mean(local, weights=w, send=net.send, key=key)
        x = jax.tree.map(lambda x, d: x + self.server_lr * d, x, delta)
        size = comm.bits(x)
        return self.State(x), net.info(loss, grads, up=size, down=size, w=w)
