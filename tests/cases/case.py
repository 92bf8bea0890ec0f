"""A row of the table, and the worlds that rows of several folders share."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from jaxfl.networks import Uniform, topology
from jaxfl.networks.graphs import make

N = 8
COHORT = Uniform(N, 3)
RANDOM = topology("erdos_renyi", N, p=0.4, seed=1)
RING = topology("ring", N)
CIRCLE = make("ring", N)


@dataclass(frozen=True, eq=False)
class Case:
    """One row.

    Args:
        name: of the row.
        algorithm: with the hyperparameters of the tests.
        network: what the world does, for N clients.
        oracle: a module with `run(problem, x0, record, *, ...) -> [state after round, ...]`, plain
            NumPy; hyperparameters of its `run` are read off the algorithm.
        state: fields of the state that the oracle returns as well, under the first name of a path.
        extra: what else `run` takes.
        up: numbers of one message, as a multiple of d, or a function of d.
        down: likewise of what a client receives, if that is another size.
        sent: numbers that pass `send`, if they are not those paid for: what is compressed, or what
            no adversary may touch.
        moves: fields of the state that change also in an empty round.
        exact: reaches x* of heterogeneous quadratics; otherwise `fixed` is where it goes.
        tuned: hyperparameters for the exactness test, if not those above.
        fixed: `fixed(problem Q) -> limit of the mean model`, known in closed form, or None.
        limit: `limit(problem Q, algorithm, network) -> limit of every node [n, d]`; without it and
            without `fixed`, a method that is not exact must end where its oracle does.
        still: state fields of clients outside the cohort, kept bit for bit.
        long: network and number of rounds for the exactness test; by default what is inside
            `network`, for 2000 rounds.
        quick: in the quick part of the suite.
    """

    name: str
    algorithm: Any
    network: Any
    oracle: ModuleType
    state: tuple[str, ...] = ("params",)
    extra: dict[str, Any] = field(default_factory=dict)
    up: Any = 1.0
    down: Any = None
    sent: Any = None
    moves: tuple[str, ...] = ()
    exact: bool = False
    tuned: dict = field(default_factory=dict)
    fixed: Callable | None = None
    limit: Callable | None = None
    still: tuple[str, ...] = ()
    long: tuple[Any, int] | None = None
    quick: bool = False

    def __str__(self):
        return self.name

    def expected(self, problem, x0, record, init, algorithm=None):
        """What the oracle says of every round."""
        alg = self.algorithm if algorithm is None else algorithm
        known = {f.name: getattr(alg, f.name) for f in dataclasses.fields(alg)}
        known |= {"init": init, "n": N} | self.extra
        names = inspect.signature(self.oracle.run).parameters
        return self.oracle.run(problem, x0, record, **{k: known[k] for k in known if k in names})
