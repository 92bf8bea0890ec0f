"""MoNNA."""

from typing import ClassVar, NamedTuple

import jax
from optax import tree

from jaxfl import struct
from jaxfl.components.aggregators import NearestNeighbours
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import hyper
from jaxfl.networks import Graph
from jaxfl.types import Scalar, Stacked


@struct.dataclass
class MoNNA:
    """Byzantine-robust peer-to-peer SGD: local momentum, then the mean of the nearest neighbours.

    m <- beta m + (1 - beta) g(x);  y = x - lr m;  of the messages received, own included, x is the
    mean of all but the f farthest from y.

    Use: up to f Byzantine nodes on a complete graph; theory asks for n >= 11 f.

    Args:
        lr: learning rate, > 0, traced.
        f: Byzantine nodes tolerated, >= 0, traced.
        beta: momentum, in [0, 1), traced.
    State: params [n, ...], m [n, ...]; memory 2 n d.
    Needs: Graph nets; `Quorum(n, f)` is the paper's, where each node waits for n - f messages and
        so keeps n - 2 f. Weights other than zero or not are ignored.
    Sent: up 32 d times the out-degree, down times what arrives, bits per active node and round, in
        float32.
    Equals: SGD with momentum on the mean when f = 0, with all messages received.
    Deviations: none; the authors' code aliases one momentum tensor at step 0, which is not
        repeated. Byzantine nodes run the rule too, on the truth about themselves. The sign flip of
        the authors' experiments is of the honest mean, `IPM(1)`; `SignFlip` is of the own message.
    Source: Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust Collaborative Learning
        with Linear Gradient Overhead", ICML 2023, arXiv 2209.10931; the authors' code was read.
    Example:
        >>> problem, liars = problems.quadratics(n=8, zeta=0.0), networks.first(1, 8)
        >>> world = networks.Attacked(networks.Quorum(8, f=1), liars, networks.SignFlip(scale=1e6))
        >>> run = jaxfl.simulate(
        ...     algorithms.MoNNA(lr=0.1, f=1.0), problem.clients(), world,
        ...     jnp.zeros(5), jax.random.key(0), rounds=50,
        ... )
        >>> bool(jnp.abs(run.state.params[1:]).max() < 10)
        True
    """

    lr: Scalar = hyper(tune=True)
    f: Scalar = hyper(1.0)
    beta: Scalar = hyper(0.99, high=1.0)
    needs: ClassVar[Needs] = Needs(Graph)

    class State(NamedTuple):
        params: Stacked  # x  [n, ...]
        m: Stacked  # m  [n, ...]

    def init(self, params, clients, key):
        return self.State(clients.rows(params), clients.rows(tree.zeros_like(params)))

    def round(self, state, clients, net, key):
        x, m = state
        g, work = clients.grads(x, key)
        m = jax.tree.map(lambda m, g: self.beta * m + (1 - self.beta) * g, m, g)
        y = tree.add_scale(x, -self.lr, m)
        x, _ = net.aggregate(NearestNeighbours(self.f), y, key)
        size = comm.bits(y) / clients.n
        new = comm.where(net.active, self.State(x, m), state)
        return new, net.info(work, up=size, down=size)
