"""CHOCO-SGD."""

from typing import Any, ClassVar, NamedTuple

import jax
from optax import tree

from jaxfl import struct
from jaxfl.components.compressors import EF, TopK
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, hyper
from jaxfl.engine.parts import Mean, gossip, initial
from jaxfl.networks import Graph
from jaxfl.types import Scalar, Stacked, fork


def _forgetful(alg, network):
    if isinstance(alg.compress, EF):
        raise ValueError(
            f"compress of CHOCO must not remember, got {type(alg.compress).__name__}: its public "
            f"copies are its error feedback; use `compress={alg.compress.compress!r}`"
        )


@struct.dataclass
class Choco:
    """Decentralised SGD that sends compressed differences to public copies of the models.

    y = x - lr g(x).  "icml": q = C(y - xhat), xhat <- xhat + q, x <- y + gamma (W - I) xhat.
    "code": x <- y + gamma (W - I) xhat with the old xhat, then q = C(x - xhat), xhat <- xhat + q.

    Use: few bits per round; tune gamma, the theory's is about a hundred times too small.

    Args:
        lr: learning rate, > 0, traced.
        gamma: consensus step size, in (0, 1], traced.
        compress: `TopK(.1)`, `RandK(.1)`, `QSGD(16)` or `Identity()`.
        order: "icml" (the paper's algorithm) or "code" (the authors' code, whose communication
            overlaps the next gradient), static. They are different algorithms.
        aggregator: of the public copies, `Mean()` by the graph's weights, `ClippedGossip(tau)`, ...
    State: params [n, ...], x_hat [n, ...], memory of the aggregator [n, ...]; memory 2 n d. One
        public copy per node stands for those that all its neighbours hold, which are equal on a
        fixed lossless graph.
    Needs: Graph nets, static, lossless, doubly stochastic.
    Sent: up the compressor's bits times the out-degree, down times the in-degree, per node and
        round.
    Equals: with `Identity()` and gamma = 1, "icml" is D-SGD "atc" and "code" is D-SGD "cta".
    Raises: ValueError, for `compress=EF(...)`: the public copies are the error feedback.
    Deviations: public copies start at 0 in both orders, as the papers; the authors' code for convex
        problems starts them at x0, which is another trajectory.
    Source: Koloskova, Stich, Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms
        with Compressed Communication", ICML 2019, arXiv 1902.00340, algorithm 2 ("icml");
        Koloskova, Lin, Stich, Jaggi, "Decentralized Deep Learning with Arbitrary Communication
        Compression", ICLR 2020, arXiv 1907.09356 ("code"); the authors' code was read.
    Example:
        >>> choco = algorithms.Choco(lr=0.1, compress=components.TopK(0.1))
        >>> print(jaxfl.grid(choco, gamma=[0.1, 0.2, 0.4]).gamma)
        [0.1 0.2 0.4]
    """

    lr: Scalar = hyper(tune=True)
    gamma: Scalar = hyper(0.4, high=1.0)
    compress: Any = TopK(0.1)
    order: str = choice("icml", "code")
    aggregator: Any = Mean()
    needs: ClassVar[Needs] = Needs(
        Graph, static=True, lossless=True, rows=True, columns=True, broadcast=True, check=_forgetful
    )

    class State(NamedTuple):
        params: Stacked  # x      [n, ...]
        x_hat: Stacked  # x_hat  [n, ...]  public copies
        link: Stacked = ()  # of the aggregator  [n, ...]

    def init(self, params, clients, key):
        link = initial(self.aggregator, params, clients.n)
        return self.State(clients.rows(params), clients.rows(tree.zeros_like(params)), link)

    def round(self, state, clients, net, key):
        x, x_hat, link = state
        g, work = clients.grads(x, key)
        y = tree.add_scale(x, -self.lr, g)

        def publish(x, x_hat):
            compress = lambda client, v, key: self.compress(v, key)
            q = clients.each(compress, tree.sub(x, x_hat), key=fork(key, "compress"))
            return tree.add(x_hat, net.send(q, fork(key, "send")))

        def combine(y, x_hat):
            mixed, memory = gossip(self.aggregator, net.w, x_hat, x_hat, link)
            pull = lambda y, mixed, hat: y + self.gamma * (mixed - hat)
            return jax.tree.map(pull, y, mixed, x_hat), memory

        if self.order == "icml":
            x_hat = publish(y, x_hat)
            x, link = combine(y, x_hat)
        else:
            x, link = combine(y, x_hat)
            x_hat = publish(x, x_hat)
        size = self.compress.bits(jax.tree.map(lambda a: a[0], x))
        return self.State(x, x_hat, link), net.info(work, up=size, down=size)
