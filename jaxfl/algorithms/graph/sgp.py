"""Stochastic gradient push."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from optax import tree

from jaxfl import struct
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import hyper
from jaxfl.networks import Graph
from jaxfl.types import Scalar, Stacked


@struct.dataclass
class SGP:
    """Decentralised SGD on directed graphs: push-sum corrects what column-stochastic mixing skews.

    x <- P (x - lr g(z));  w <- P w;  z = x / w.

    Use: directed, time-varying or lossy graphs whose weights cannot be doubly stochastic.

    Args:
        lr: learning rate, > 0, traced.
    State: x [n, ...], w [n], params = x / w [n, ...]; memory n d.
    Needs: Graph nets whose columns sum to 1, also time-varying and lossy (a sender keeps the mass
        of a lost message).
    Sent: up 32 (d + 1) times the out-degree, down times what arrives, bits per active node and
        round, in float32.
    Equals: D-SGD ("atc") when the matrix is doubly stochastic: w stays 1.
    Deviations: none; the gradient is taken at z, not at x.
    Source: Assran, Loizou, Ballas, Rabbat, "Stochastic Gradient Push for Distributed Deep
        Learning", ICML 2019, algorithm 1; Nedic, Olshevsky, "Stochastic Gradient-Push for Strongly
        Convex Functions on Time-Varying Directed Graphs", IEEE Transactions on Automatic Control
        2016; the authors' code was read, and agrees.
    Example:
        >>> network = networks.topology("random_out", 8, k=2)  # a new directed graph every round
        >>> algorithms.SGP(lr=0.1).needs.columns, network.sums
        (True, 'column')
    """

    lr: Scalar = hyper(tune=True)
    needs: ClassVar[Needs] = Needs(Graph, columns=True)

    class State(NamedTuple):
        x: Stacked  # x  [n, ...]  biased models
        w: Scalar  # w  [n]       push-sum weights

        @property
        def params(self) -> Any:
            """z = x / w  [n, ...]"""
            divide = lambda x: (x / self.w.reshape(-1, *(1,) * (x.ndim - 1))).astype(x.dtype)
            return jax.tree.map(divide, self.x)

    def init(self, params, clients, key):
        wide = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return self.State(clients.rows(params), clients.rows(jnp.ones((), wide)))

    def round(self, state, clients, net, key):
        z = state.params
        g, work = clients.grads(z, key)
        half = comm.where(net.active, tree.add_scale(state.x, -self.lr, g), state.x)
        # an adversary lies about its model; the weight is what keeps mass, and stays
        new = self.State(net.mix(half, key), comm.mix(net.w, state.w))
        size = comm.bits((z, state.w)) / clients.n
        return new, net.info(work, up=size, down=size)
