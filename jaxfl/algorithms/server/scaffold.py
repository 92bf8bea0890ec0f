"""SCAFFOLD."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxfl.components.oracles import shifted
from jaxfl.components.solvers import SGD, live_steps, train
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, count, hyper
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
    State: params [...], c [...], c_i [n, ...]; memory (n + 2) d.
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
    needs: ClassVar[Needs] = Needs(Cohort)

    class State(NamedTuple):
        params: Params  # x    [...]     server model
        c: Params  # c    [...]     server control variate
        c_i: Stacked  # c_i  [n, ...]  client control variates

    def init(self, params, clients, key):
        zero = jax.tree.map(jnp.zeros_like, params)
        return self.State(params, zero, comm.stack(zero, clients.n))

    def round(self, state, clients, net, key):
        x, c, c_all = state
        w = clients.weights(net, self.weighting)
        share = jnp.where(net.weight > 0, 1 / clients.n, 0)

        def local(client, c_i, key):
            xi = client.samples(key, self.steps, self.epochs)
            grad = shifted(client.grad, jax.tree.map(lambda c, c_i: c - c_i, c, c_i))  # line 10
            y, loss, _ = train(grad, x, xi, self.lr, SGD(), ())
            k = live_steps(xi)
            new = jax.tree.map(  # line 12, option II
                lambda c_i, c, x, y: c_i - c + (x - y) / (k * self.lr), c_i, c, x, y
            )
            minus = lambda a, b: jax.tree.map(jnp.subtract, a, b)
            return (minus(y, x), minus(new, c_i)), (new, loss, k)  # line 13

        (dx, dc), (new, loss, k) = clients[net.idx].mean(
            local, comm.pick(c_all, net.idx), weights=(w, share), send=net.send, key=key
        )
        x = jax.tree.map(lambda x, d: x + self.server_lr * d, x, dx)  # line 17
        c = jax.tree.map(lambda c, d: c + d, c, dc)
        size = 2 * comm.bits(x)
        info = net.info(loss, k, up=size, down=size, w=w)
        return self.State(x, c, comm.put(c_all, net.idx, new)), info
