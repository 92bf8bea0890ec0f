"""Gradient tracking: ATC, semi-ATC and DIGing."""

from typing import ClassVar, NamedTuple

import jax
from optax import tree

from jaxfl import struct
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, hyper
from jaxfl.engine.marks import Rows
from jaxfl.networks import Graph
from jaxfl.types import Scalar, Stacked


@struct.dataclass
class GradientTracking:
    """Every node tracks the network's average gradient; exact with a constant step.

    "atc" (Aug-DGM, ATC-DIGing): x <- W (x - lr y);  y <- W (y + g(x+) - g(x)).
    "semi-atc": x <- W (x - lr y);  y <- W y + g(x+) - g(x).
    "diging": x <- W x - lr y;  y <- W y + g(x+) - g(x).  All start at y = g(x0).

    Use: heterogeneous nodes and a step size that should not have to decay.

    Args:
        lr: learning rate, > 0, traced; "diging" diverges at smaller ones than the others.
        order: "atc", "semi-atc" or "diging", static. With stochastic gradients "diging" is GNSD.
    State: params [n, ...], y [n, ...], g [n, ...]; memory 3 n d.
    Needs: Graph nets, doubly stochastic, also time-varying; a lost message must be lost in both
        directions (`LinkFailures` does that).
    Sent: up 64 d times the out-degree, down times what arrives, bits per active node and round, in
        float32.
    Equals: gradient descent on the complete graph from a common start, with full batches.
    Deviations: none; the stored g is reused in the difference, never evaluated again. The first
        gradients, those of `init`, are costs of round 0.
    Source: Nedic, Olshevsky, Shi, "Achieving Geometric Convergence for Distributed Optimization
        over Time-Varying Graphs", SIAM Journal on Optimization 2017, arXiv 1607.03218 ("diging");
        Xu, Zhu, Soh, Xie, "Augmented Distributed Gradient Methods for Multi-Agent Optimization
        under Uncoordinated Constant Stepsizes", CDC 2015 ("atc"); Qu, Li, "Harnessing Smoothness
        to Accelerate Distributed Optimization", IEEE Transactions on Control of Network Systems
        2018; Alghunaim, Yuan, "A Unified and Refined Convergence Analysis for Non-Convex
        Decentralized Learning", IEEE Transactions on Signal Processing 2022 ("semi-atc"); the codes
        of Bluefog ("diging") and RelaySGD ("semi-atc", by its updates) were read.
    Example:
        >>> jaxfl.grid(algorithms.GradientTracking(lr=0.1), lr=[0.1, 0.3, 1.0]).lr.shape
        (3,)
    """

    lr: Scalar = hyper(tune=True)
    order: str = choice("atc", "semi-atc", "diging")
    needs: ClassVar[Needs] = Needs(Graph, rows=True, columns=True)
    init_grads: ClassVar[float] = 1.0

    class State(NamedTuple):
        params: Stacked  # x  [n, ...]
        y: Stacked  # y  [n, ...]  tracker: mean(y) = mean(g) always
        g: Stacked  # g  [n, ...]  last gradient

    def init(self, params, clients, key):
        x = clients.rows(params)
        g = Rows(clients.grads(x.value, key)[0])
        return self.State(x, g, g)

    def round(self, state, clients, net, key):
        x, y, g = state
        mix = lambda x, name: net.mix(x, key, name)
        step = lambda x: tree.add_scale(x, -self.lr, y)
        x = step(mix(x, "send x")) if self.order == "diging" else mix(step(x), "send x")
        new, work = clients.grads(x, key)
        plus = lambda y: jax.tree.map(lambda y, new, g: y + new - g, y, new, g)
        y = mix(plus(y), "send y") if self.order == "atc" else plus(mix(y, "send y"))
        size = 2 * comm.bits(x) / clients.n
        new = comm.where(net.active, self.State(x, y, new), state)
        return new, net.info(work, up=size, down=size)
