"""SCAFFOLD."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from optax import tree

from jaxfl import struct
from jaxfl.components.oracles import shifted
from jaxfl.components.solvers import SGD, fit
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.engine.parts import Identity, Mean, Uplink
from jaxfl.networks import Cohort
from jaxfl.types import Params, Scalar, Stacked


@struct.dataclass
class Scaffold:
    """Control variates that cancel client drift; converges to the exact optimum.

    y_i <- y_i - lr (g_i(y_i) - c_i + c), K times from x;  c_i+ = c_i - c + (x - y_i) / (K lr);
    x <- x + server_lr mean_S (y_i - x);  c <- c + (1/n) sum_S (c_i+ - c_i).

    Use: heterogeneous clients that return often enough for their control variate to be fresh.

    Args:
        lr: local learning rate, > 0, traced.
        server_lr: >= 0, traced.
        steps: local steps on independent minibatches, static.
        epochs: if > 0, shuffled local epochs instead of steps, static.
        weighting: "uniform" (the paper) or "count", of the model changes, static.
        aggregator: of both payloads, each by itself, `Mean()`, `Median()`, `Krum(f)`, ...
        compress: of both, `Identity()`, `TopK(.1)`, `EF(TopK(.1))`, ...
    State: params [...], c [...], c_i [n, ...], memory of the uplink; memory (n + 2) d, and what the
        parts hold.
    Needs: Cohort nets.
    Sent: up 64 d, down 64 d bits per participating client and round, in float32.
    Equals: FedAvg in its first round; c = mean of c_i always.
    Deviations: none from option II. K is the client's own number of live steps, where published
        code uses client 0's for all. The local solver is plain SGD: momentum, decay or clipping
        would break the identity behind option II.
    Source: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled
        Averaging for Federated Learning", ICML 2020, arXiv 1910.06378, algorithm 1; third-party
        code was read.
    Example:
        >>> problem = problems.quadratics(n=4, shared=False)
        >>> run = jaxfl.simulate(
        ...     algorithms.Scaffold(lr=0.5), problem.clients(), networks.Everyone(4),
        ...     jnp.zeros(5), jax.random.key(0), rounds=100,  # FedAvg stops at 0.6
        ... )
        >>> print(f"{np.linalg.norm(run.state.params - problem.optimum):.1f}")
        0.0
    """

    lr: Scalar = hyper(tune=True)
    server_lr: Scalar = hyper(1.0)
    steps: int = count(10)
    epochs: int = count(0, low=0)
    weighting: str = choice("uniform", "count")
    aggregator: Any = Mean()
    compress: Any = Identity()
    solver: ClassVar[Any] = SGD()
    needs: ClassVar[Needs] = Needs(Cohort)

    class State(NamedTuple):
        params: Params  # x    [...]     server model
        c: Params  # c    [...]     server control variate
        c_i: Stacked  # c_i  [n, ...]  client control variates
        link: Any = ()  # memory of the uplink

    def init(self, params, clients, key):
        zero = tree.zeros_like(params)
        link = Uplink.of(self).init(clients.n, params, params)
        return self.State(params, zero, clients.rows(zero), link)

    def round(self, state, clients, net, key):
        x, c, c_i, link = state
        w = clients.weights(net, self.weighting)
        share = jnp.where(net.weight > 0, 1 / clients.n, 0)

        def local(client, c_i, key):
            grad = shifted(client.grad, tree.sub(c, c_i))  # line 10
            y, _, work = fit(self, client, x, key, grad)
            new = jax.tree.map(  # line 12, option II
                lambda c_i, c, x, y: c_i - c + (x - y) / (work.grads * self.lr), c_i, c, x, y
            )
            return (tree.sub(y, x), tree.sub(new, c_i)), (new, work)  # line 13

        (dx, dc), link, (c_i, work) = clients[net].mean(
            local,
            c_i,
            weights=(w, share),
            send=net.send,
            key=key,
            uplink=Uplink.of(self),
            memory=link,
        )
        x = tree.add_scale(x, self.server_lr, dx)  # line 17
        up, down = 2 * self.compress.bits(x), 2 * comm.bits(x)
        info = net.info(work, up=up, down=down, w=w)
        return self.State(x, tree.add(c, dc), c_i, link), info
