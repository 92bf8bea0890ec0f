"""FedExP."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from optax import tree

from jaxfl import struct
from jaxfl.components.oracles import norm
from jaxfl.components.solvers import SGD, fit
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.networks import Cohort
from jaxfl.types import Params, Scalar


@struct.dataclass
class FedExP:
    """FedAvg whose server extrapolates: the more the clients disagree, the farther it goes.

    y_i <- K local steps y_i - lr g_i(y_i) from z;  d_i = y_i - z;  d = sum_i p_i d_i;
    z <- z + max(1, sum_i p_i |d_i|^2 / (2 (|d|^2 + eps))) d;  x = mean of the last two z.

    Use: small local steps in many parameters, where changes are nearly orthogonal. Near the end of
        heterogeneous clients d is 0 and the d_i are not: there eps alone bounds the rate.

    Args:
        lr: local learning rate, > 0, traced.
        eps: against division by 0, > 0, traced; 1e-3 for images in the paper, 0.1 for EMNIST.
        steps: local steps on independent minibatches, static.
        epochs: if > 0, shuffled local epochs instead of steps, static.
        weighting: "uniform" or "count" (by number of examples), static.
        solver: `SGD()`, `Momentum(...)` or `Optax(...)`, fresh every round.
    State: z [...], last [...]; params is their mean; memory 2 d.
    Needs: Cohort nets.
    Sent: up 32 (d + 1), down 32 d bits per participating client and round, in float32.
    Equals: FedAvg, but for the mean of two models, where all changes are equal.
    Deviations: eps is added once, as in the paper, not once per client, as in its code.
    Source: Jhunjhunwala, Wang, Joshi, "FedExP: Speeding Up Federated Averaging via Extrapolation",
        ICLR 2023, arXiv 2301.09604; the authors' code was read.
    Example:
        >>> algorithms.FedExP(lr=0.1).eps
        0.001
    """

    lr: Scalar = hyper(tune=True)
    eps: Scalar = hyper(1e-3, low=1e-30)
    steps: int = count(10)
    epochs: int = count(0, low=0)
    weighting: str = choice("uniform", "count")
    solver: Any = SGD()
    needs: ClassVar[Needs] = Needs(Cohort)

    class State(NamedTuple):
        z: Params  # z  [...]  the model that clients start from
        last: Params  # [...]  that of the round before

        @property
        def params(self) -> Params:
            """x: the mean of the last two."""
            return jax.tree.map(lambda a, b: (a + b) / 2, self.z, self.last)

    def init(self, params, clients, key):
        return self.State(params, params)

    def round(self, state, clients, net, key):
        z, w = state.z, clients.weights(net, self.weighting)

        def local(client, key):
            y, _, work = fit(self, client, z, key)
            d = tree.sub(y, z)
            return (d, jnp.square(norm(d))), work

        (d, far), _, work = clients[net].mean(local, weights=(w, w), send=net.send, key=key)
        rate = jnp.maximum(1, far / (2 * (jnp.square(norm(d)) + self.eps)))
        new = self.State(tree.add_scale(z, rate, d), z)
        size = comm.bits(z)
        info = net.info(work, up=size + comm.bits(far), down=size, w=w)
        return net.wait(new, state), info
