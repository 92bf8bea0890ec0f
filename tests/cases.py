"""THE table: one row per algorithm and variant; every row goes through every kind of test."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from oracles import (
    choco,
    compress,
    dadao,
    ditto,
    dsgd,
    exact_diffusion,
    fedavg,
    fedbuff,
    fedopt,
    fedprox,
    gossip_learning,
    gradient_tracking,
    local_only,
    monna,
    scaffold,
    sgp,
)
from oracles.problem import limit, whole

from jaxfl.algorithms import (
    DADAO,
    DSGD,
    SGP,
    Choco,
    Ditto,
    ExactDiffusion,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedBuff,
    FedProx,
    FedYogi,
    GossipLearning,
    GradientTracking,
    Local,
    MoNNA,
    Scaffold,
)
from jaxfl.components.compressors import TopK
from jaxfl.engine import comm
from jaxfl.networks import (
    ALIE,
    Attacked,
    Churn,
    LinkFailures,
    Quorum,
    SignFlip,
    Uniform,
    arrivals,
    dadao_rates,
    first,
    gossip,
    poisson,
    topology,
)
from jaxfl.networks.graphs import make

N = 8


@dataclass(frozen=True, eq=False)
class Case:
    """One row.

    Args:
        name: of the row.
        algorithm: with the hyperparameters of the tests.
        network: what the world does, for N clients.
        oracle: a module with `run(problem, x0, record, *, ...) -> [state after round, ...]`, plain
            NumPy; hyperparameters of its `run` are read off the algorithm.
        extra: what else `run` takes.
        state: oracle's name of a state -> how to read it off ours.
        up: numbers of one message, as a multiple of d, or a function of d.
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
    state: dict[str, Callable] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    up: Any = 1.0
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


def _params(state):
    return state.params


def _dsgd_limit(problem, alg, network):
    """One round of D-SGD is an affine map of all models at once."""
    return _affine_limit(problem, alg, np.asarray(comm.to_dense(network.w)))


def _affine_limit(problem, alg, w):
    record = [{"W": w, "samples": whole(np.arange(N), getattr(alg, "steps", 1))}]
    step = lambda x: dsgd.run(problem, x.reshape(N, -1), record, lr=alg.lr, order=alg.order)
    return limit(lambda x: step(x)[-1]["params"].ravel(), N * problem.d).reshape(N, -1)


def _choco_limit(problem, alg, network):
    """Once the public copies are true, CHOCO is D-SGD with weights (1 - gamma) I + gamma W."""
    w = np.asarray(comm.to_dense(network.w))
    twin = DSGD(lr=alg.lr, order={"icml": "atc", "code": "cta"}[alg.order])
    return _affine_limit(problem, twin, (1 - alg.gamma) * np.eye(N) + alg.gamma * w)


COHORT = Uniform(N, 3)
RANDOM = topology("erdos_renyi", N, p=0.4, seed=1)
RING = topology("ring", N)
CIRCLE = make("ring", N)
RATES = dadao_rates(CIRCLE)
RANDOM_GRAPH = make("erdos_renyi", N, seed=1, p=0.4)
TOP2 = {"compress": lambda v, i, t: compress.topk(v, 2)}
GOSSIP = {"params": _params, "age": lambda s: s.age}
SIX = {
    "params": lambda s: s.params,
    "x_tilde": lambda s: s.x_tilde,
    "y": lambda s: s.y,
    "y_tilde": lambda s: s.y_tilde,
    "z": lambda s: s.z,
    "z_tilde": lambda s: s.z_tilde,
}

CASES = (
    Case(
        "fedavg",
        FedAvg(lr=0.05, server_lr=0.9, steps=3),
        COHORT,
        fedavg,
        {"params": _params},
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, server_lr=1.0, steps=5),
        quick=True,
    ),
    Case(
        "fedavg-epochs",
        FedAvg(lr=0.05, epochs=2, server_lr=0.9),
        COHORT,
        fedavg,
        {"params": _params},
        fixed=lambda q: q.x_fa(0.1, 2),
        tuned=dict(lr=0.1, server_lr=1.0),
    ),
    Case(
        "fedprox",
        FedProx(lr=0.05, mu=0.3, server_lr=0.9, steps=3),
        COHORT,
        fedprox,
        {"params": _params},
        fixed=lambda q: q.x_prox(0.1, 5, 0.5),
        tuned=dict(lr=0.1, mu=0.5, server_lr=1.0, steps=5),
    ),
    Case(
        "fedadagrad",
        FedAdagrad(lr=0.05, server_lr=0.1, steps=3),
        COHORT,
        fedopt,
        {"params": _params, "m": lambda s: s.m, "v": lambda s: s.v},
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, steps=5),
    ),
    Case(
        "fedadam",
        FedAdam(lr=0.05, server_lr=0.1, steps=3),
        COHORT,
        fedopt,
        {"params": _params, "m": lambda s: s.m, "v": lambda s: s.v},
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, steps=5, server_lr=0.01, tau=0.1),
    ),
    Case(
        "fedyogi",
        FedYogi(lr=0.05, server_lr=0.1, steps=3),
        COHORT,
        fedopt,
        {"params": _params, "m": lambda s: s.m, "v": lambda s: s.v},
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, steps=5, server_lr=0.01, tau=0.1),
    ),
    Case(
        "scaffold",
        Scaffold(lr=0.05, server_lr=0.9, steps=3),
        COHORT,
        scaffold,
        {"params": _params, "c": lambda s: s.c, "c_i": lambda s: s.c_i},
        up=2.0,
        exact=True,
        tuned=dict(lr=0.1, server_lr=1.0, steps=5),
        still=("c_i",),
        quick=True,
    ),
    Case(
        "scaffold-attacked",
        Scaffold(lr=0.05, server_lr=0.9, steps=3),
        Attacked(COHORT, first(2, N), SignFlip()),
        scaffold,
        {"params": _params, "c": lambda s: s.c, "c_i": lambda s: s.c_i},
        {"attack": "signflip"},
        up=2.0,
        exact=True,  # without the attack
        tuned=dict(lr=0.1, server_lr=1.0, steps=5),
        still=("c_i",),
    ),
    Case(
        "ditto",
        Ditto(lr=0.05, mu=0.2, server_lr=0.9, steps=3),
        COHORT,
        ditto,
        {"params": _params, "personal": lambda s: s.personal.rows},
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, server_lr=1.0, steps=5),
        still=("own",),
    ),
    Case(
        "local",
        Local(lr=0.05, steps=3),
        COHORT,
        local_only,
        {"params": _params, "personal": lambda s: s.personal.rows},
        up=0.0,
        limit=lambda q, alg, network: q.b,
        still=("params",),
    ),
    Case(
        "dsgd-atc",
        DSGD(lr=0.05, steps=3),
        Churn(RANDOM, 0.8),
        dsgd,
        {"params": _params},
        limit=_dsgd_limit,
        tuned=dict(lr=0.1),
        still=("params",),
        quick=True,
    ),
    Case(
        "dsgd-cta",
        DSGD(lr=0.05, steps=2, order="cta"),
        LinkFailures(RANDOM, 0.2),
        dsgd,
        {"params": _params},
        limit=_dsgd_limit,
        tuned=dict(lr=0.1),
    ),
    Case(
        "gt-atc",
        GradientTracking(lr=0.05),
        Churn(topology("torus", N, rows=2, cols=4), 0.8),
        gradient_tracking,
        {"params": _params, "y": lambda s: s.y, "g": lambda s: s.g},
        up=2.0,
        exact=True,
        tuned=dict(lr=0.1),
        still=("params", "y", "g"),
    ),
    Case(
        "gt-semi-atc",
        GradientTracking(lr=0.04, order="semi-atc"),
        RANDOM,
        gradient_tracking,
        {"params": _params, "y": lambda s: s.y, "g": lambda s: s.g},
        up=2.0,
        exact=True,
    ),
    Case(
        "gt-diging",
        GradientTracking(lr=0.03, order="diging"),
        RANDOM,
        gradient_tracking,
        {"params": _params, "y": lambda s: s.y, "g": lambda s: s.g},
        up=2.0,
        exact=True,
    ),
    Case(
        "exact-diffusion",
        ExactDiffusion(lr=0.05),
        RANDOM,
        exact_diffusion,
        {"params": _params, "psi": lambda s: s.psi},
        exact=True,
        tuned=dict(lr=0.1),
    ),
    Case(
        "d2",
        ExactDiffusion(lr=0.05, lazy=0.0),
        topology("ring", N, weights="lazy"),
        exact_diffusion,
        {"params": _params, "psi": lambda s: s.psi},
        exact=True,
        tuned=dict(lr=0.1),
    ),
    Case(
        "sgp",
        SGP(lr=0.05),
        topology("random_out", N, k=2),
        sgp,
        {"params": _params, "x": lambda s: s.x, "w": lambda s: s.w},
        up=lambda d: d + 1,
        sent=1.0,
        tuned=dict(lr=0.05),
    ),
    Case(
        "choco-icml",
        Choco(lr=0.05, gamma=0.3, compress=TopK(0.4)),
        RING,
        choco,
        {"params": _params, "x_hat": lambda s: s.x_hat},
        TOP2,
        limit=_choco_limit,
        up=lambda d: 2 * (1 + 3 / 64),
        sent=1.0,
    ),
    Case(
        "choco-code",
        Choco(lr=0.05, gamma=0.3, compress=TopK(0.4), order="code"),
        RING,
        choco,
        {"params": _params, "x_hat": lambda s: s.x_hat},
        TOP2,
        limit=_choco_limit,
        up=lambda d: 2 * (1 + 3 / 64),
        sent=1.0,
    ),
    Case(
        "fedbuff",
        FedBuff(lr=0.05, server_lr=0.9, steps=3, max_age=8),
        arrivals(N, 3, 20, seed=2),
        fedbuff,
        {"params": _params},
        moves=("past",),
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, server_lr=1.0, steps=5),
        long=(arrivals(N, N, 500, durations="constant"), 500),
    ),
    Case(
        "dadao",
        DADAO(smoothness=20.0, convexity=1.0, chi1=RATES["chi1"]),
        poisson(CIRCLE, 20, edge_rates=RATES["rate"], seed=3),
        dadao,
        SIX,
        moves=tuple(SIX),  # time passes
        exact=True,
        tuned=dict(smoothness=4.0),
        long=(poisson(CIRCLE, 100, edge_rates=RATES["rate"], seed=4, unit=8.0), 100),
    ),
    Case(
        "gossip-learning",
        GossipLearning(lr=0.05, slots=11),
        gossip(CIRCLE, 20, period=10, delay=(0, 25), drop=0.1, online=0.9, seed=5),
        gossip_learning,
        GOSSIP,
        up=lambda d: d + 1,
        sent=1.0,
        tuned=dict(lr=0.1),
        long=(gossip(CIRCLE, 300, delay=(0, 10), seed=6), 300),
    ),
    Case(
        "gossip-learning-attacked",
        GossipLearning(lr=0.05, mode="update_merge", merge="age", epochs=0, steps=2, slots=11),
        Attacked(
            gossip(RANDOM_GRAPH, 20, period=10, clock="async", delay=(2, 6), seed=7),
            first(2, N),
            SignFlip(),
        ),
        gossip_learning,
        GOSSIP,
        {"attack": "signflip"},
        up=lambda d: d + 1,
        sent=1.0,
        tuned=dict(lr=0.1),
        long=(gossip(RANDOM_GRAPH, 300, seed=8), 300),
    ),
    Case(
        "monna-signflip",
        MoNNA(lr=0.05, f=2, beta=0.9),
        Attacked(Quorum(N, 2), first(2, N), SignFlip()),
        monna,
        {"params": _params, "m": lambda s: s.m},
        {"attack": "signflip"},
        long=(Attacked(Quorum(N, 2), first(2, N), SignFlip()), 200),
    ),
    Case(
        "monna-alie",
        MoNNA(lr=0.05, f=2, beta=0.9),
        Attacked(Quorum(N, 2), first(2, N), ALIE(1.5)),
        monna,
        {"params": _params, "m": lambda s: s.m},
        {"attack": "alie", "z": 1.5},
        long=(Attacked(Quorum(N, 2), first(2, N), ALIE(1.5)), 200),
    ),
)

QUICK = tuple(case for case in CASES if case.quick)
assert len({case.name for case in CASES}) == len(CASES)
TRUE = np.array([-0.071855, 0.189025, 0.127384, -0.032322, -0.123140])  # x* of problem Q
