"""Local training without any exchange."""

from typing import Any, ClassVar, NamedTuple

from jaxfl import struct
from jaxfl.components.solvers import SGD, fit
from jaxfl.engine.contract import Models, Needs
from jaxfl.engine.fields import count, hyper
from jaxfl.networks import Cohort
from jaxfl.types import Scalar, Stacked, fork


@struct.dataclass
class Local:
    """Every client trains alone: what collaboration has to beat.

    v_i <- K local steps v_i - lr g_i(v_i), for the clients of the cohort; nothing is sent.

    Use: the reference for scores on clients' own labels; under the cohorts of a server method each
        client does the work that it does there.

    Args:
        lr: local learning rate, > 0, traced.
        steps: local steps on independent minibatches, static.
        epochs: if > 0, shuffled local epochs instead of steps, static.
        solver: `SGD()`, `Momentum(...)` or `Optax(...)`, fresh every round.
    State: params [n, ...], the clients' own; memory n d.
    Needs: Cohort nets.
    Sent: up 0, down 0.
    Equals: Ditto's personal models when mu = 0, under the same key.
    Deviations: none; who was never in a cohort keeps the initial model.
    Source: Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through
        Personalization", ICML 2021, arXiv 2012.04221, whose personal models these are when mu = 0;
        a reconstruction.
    Example:
        >>> run = jaxfl.simulate(
        ...     algorithms.Local(lr=0.5), problems.quadratics(n=4).clients(), networks.Everyone(4),
        ...     jnp.zeros(5), jax.random.key(0), rounds=10,
        ... )
        >>> run.state.params.shape, float(run.history.up.sum())
        ((4, 5), 0.0)
    """

    lr: Scalar = hyper(tune=True)
    steps: int = count(10)
    epochs: int = count(0, low=0)
    solver: Any = SGD()
    needs: ClassVar[Needs] = Needs(Cohort)

    class State(NamedTuple):
        params: Stacked  # v  [n, ...]  models of the clients' own

        @property
        def personal(self) -> Models:
            """v"""
            return Models(self.params)

    def init(self, params, clients, key):
        return self.State(clients.rows(params))

    def round(self, state, clients, net, key):
        local = lambda client, v, key: fit(self, client, v, key)
        v, _, work = clients[net].each(local, state.params, key=fork(key, "personal"))
        return self.State(v), net.info(work, up=0.0, down=0.0)
