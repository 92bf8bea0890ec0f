"""THE table: one row per algorithm and variant; every row goes through every kind of test."""

from collections.abc import Callable
from dataclasses import dataclass, field
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
from jaxfl.compress import TopK
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
    graph,
    poisson,
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
        oracle: `oracle(problem, x0, record, init) -> [state after round, ...]`, plain NumPy.
        state: oracle's name of a state -> how to read it off ours.
        up: numbers sent per message, as a multiple of d, or a function of d; on graphs it is
            multiplied by the out-degree, with events by the exchanges per node, with
            messages by those that leave per node.
        exact: reaches x* of heterogeneous quadratics; otherwise `fixed` is where it goes.
        tuned: hyperparameters for the exactness test, if not those above.
        fixed: `fixed(problem Q) -> limit of the mean model`, known in closed form, or None.
        bias: (low, high) bounds on the distance to x* for methods without a closed form.
        still: state fields of clients outside the cohort, kept bit for bit.
        long: network and number of rounds for the exactness test; by default what is inside
            `network`, for 2000 rounds.
        quick: in the quick part of the suite.
    """

    name: str
    algorithm: Any
    network: Any
    oracle: Callable
    state: dict[str, Callable] = field(default_factory=dict)
    up: Any = 1.0
    exact: bool = False
    tuned: dict = field(default_factory=dict)
    fixed: Callable | None = None
    bias: tuple[float, float] | None = None
    still: tuple[str, ...] = ()
    long: tuple[Any, int] | None = None
    quick: bool = False

    def __str__(self):
        return self.name


def _params(state):
    return state.params


def _run(module, **hyper):
    return lambda problem, x0, record, init: module.run(problem, x0, record, **hyper)


COHORT = Uniform(N, 3)
RANDOM = graph("erdos_renyi", N, p=0.4, seed=1)
RING = graph("ring", N)
CIRCLE = make("ring", N)
RATES = dadao_rates(CIRCLE)
RANDOM_GRAPH = make("erdos_renyi", N, seed=1, p=0.4)
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
        _run(fedavg, lr=0.05, server_lr=0.9),
        {"params": _params},
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, server_lr=1.0, steps=5),
        quick=True,
    ),
    Case(
        "fedavg-epochs",
        FedAvg(lr=0.05, epochs=2, server_lr=0.9),
        COHORT,
        _run(fedavg, lr=0.05, server_lr=0.9),
        {"params": _params},
        fixed=lambda q: q.x_fa(0.1, 2),
        tuned=dict(lr=0.1, server_lr=1.0),
    ),
    Case(
        "fedprox",
        FedProx(lr=0.05, mu=0.3, server_lr=0.9, steps=3),
        COHORT,
        _run(fedprox, lr=0.05, mu=0.3, server_lr=0.9),
        {"params": _params},
        fixed=lambda q: q.x_prox(0.1, 5, 0.5),
        tuned=dict(lr=0.1, mu=0.5, server_lr=1.0, steps=5),
    ),
    Case(
        "fedadagrad",
        FedAdagrad(lr=0.05, server_lr=0.1, steps=3),
        COHORT,
        _run(fedopt, lr=0.05, server_lr=0.1, kind="adagrad", beta1=0.0),
        {"params": _params, "m": lambda s: s.m, "v": lambda s: s.v},
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, steps=5),
    ),
    Case(
        "fedadam",
        FedAdam(lr=0.05, server_lr=0.1, steps=3),
        COHORT,
        _run(fedopt, lr=0.05, server_lr=0.1, kind="adam"),
        {"params": _params, "m": lambda s: s.m, "v": lambda s: s.v},
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, steps=5, server_lr=0.01, tau=0.1),
    ),
    Case(
        "fedyogi",
        FedYogi(lr=0.05, server_lr=0.1, steps=3),
        COHORT,
        _run(fedopt, lr=0.05, server_lr=0.1, kind="yogi"),
        {"params": _params, "m": lambda s: s.m, "v": lambda s: s.v},
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, steps=5, server_lr=0.01, tau=0.1),
    ),
    Case(
        "scaffold",
        Scaffold(lr=0.05, server_lr=0.9, steps=3),
        COHORT,
        _run(scaffold, lr=0.05, server_lr=0.9, n=N),
        {"params": _params, "c": lambda s: s.c, "c_i": lambda s: s.c_i},
        up=2.0,
        exact=True,
        tuned=dict(lr=0.1, server_lr=1.0, steps=5),
        still=("c_i",),
        quick=True,
    ),
    Case(
        "ditto",
        Ditto(lr=0.05, lam=0.2, server_lr=0.9, steps=3),
        COHORT,
        _run(ditto, lr=0.05, lam=0.2, server_lr=0.9, n=N),
        {"params": _params, "personal": lambda s: s.personal},
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, server_lr=1.0, steps=5),
        still=("personal",),
    ),
    Case(
        "local",
        Local(lr=0.05, steps=3),
        COHORT,
        _run(local_only, lr=0.05, n=N),
        {"params": _params, "personal": lambda s: s.personal},
        up=0.0,
        fixed=lambda q: q.b.mean(0),
        still=("params",),
    ),
    Case(
        "dsgd-atc",
        DSGD(lr=0.05, steps=3),
        Churn(RANDOM, 0.8),
        _run(dsgd, lr=0.05, order="atc"),
        {"params": _params},
        bias=(1e-2, 2.0),
        tuned=dict(lr=0.1),
        still=("params",),
        quick=True,
    ),
    Case(
        "dsgd-cta",
        DSGD(lr=0.05, steps=2, order="cta"),
        LinkFailures(RANDOM, 0.2),
        _run(dsgd, lr=0.05, order="cta"),
        {"params": _params},
        bias=(1e-2, 2.0),
        tuned=dict(lr=0.1),
    ),
    Case(
        "gt-atc",
        GradientTracking(lr=0.05),
        Churn(graph("torus", N, rows=2, cols=4), 0.8),
        lambda p, x0, record, init: gradient_tracking.run(
            p, x0, record, lr=0.05, order="atc", init=init
        ),
        {"params": _params, "y": lambda s: s.y, "g": lambda s: s.g},
        up=2.0,
        exact=True,
        tuned=dict(lr=0.1),
        still=("params", "y", "g"),
    ),
    Case(
        "gt-diging",
        GradientTracking(lr=0.03, order="diging"),
        RANDOM,
        lambda p, x0, record, init: gradient_tracking.run(
            p, x0, record, lr=0.03, order="diging", init=init
        ),
        {"params": _params, "y": lambda s: s.y, "g": lambda s: s.g},
        up=2.0,
        exact=True,
    ),
    Case(
        "exact-diffusion",
        ExactDiffusion(lr=0.05),
        RANDOM,
        _run(exact_diffusion, lr=0.05, lazy=True),
        {"params": _params, "psi": lambda s: s.psi},
        exact=True,
        tuned=dict(lr=0.1),
    ),
    Case(
        "d2",
        ExactDiffusion(lr=0.05, lazy=0.0),
        graph("ring", N, weights="lazy"),
        _run(exact_diffusion, lr=0.05, lazy=False),
        {"params": _params, "psi": lambda s: s.psi},
        exact=True,
        tuned=dict(lr=0.1),
    ),
    Case(
        "sgp",
        SGP(lr=0.05),
        graph("random_out", N, k=2),
        _run(sgp, lr=0.05),
        {"params": _params, "x": lambda s: s.x, "w": lambda s: s.w},
        up=lambda d: d + 1,
        bias=(1e-2, 0.6),
        tuned=dict(lr=0.05),
    ),
    Case(
        "choco-icml",
        Choco(lr=0.05, gamma=0.3, compress=TopK(0.4)),
        RING,
        _run(choco, lr=0.05, gamma=0.3, compress=lambda v, i, t: compress.topk(v, 2), order="icml"),
        {"params": _params, "x_hat": lambda s: s.x_hat},
        up=lambda d: 2 * (1 + 3 / 64),
        bias=(1e-2, 2.0),
    ),
    Case(
        "choco-code",
        Choco(lr=0.05, gamma=0.3, compress=TopK(0.4), order="code"),
        RING,
        _run(choco, lr=0.05, gamma=0.3, compress=lambda v, i, t: compress.topk(v, 2), order="code"),
        {"params": _params, "x_hat": lambda s: s.x_hat},
        up=lambda d: 2 * (1 + 3 / 64),
        bias=(1e-2, 2.0),
    ),
    Case(
        "fedbuff",
        FedBuff(lr=0.05, server_lr=0.9, steps=3, max_age=8),
        arrivals(N, 3, 20, seed=2),
        _run(fedbuff, lr=0.05, server_lr=0.9),
        {"params": _params},
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, server_lr=1.0, steps=5),
        long=(arrivals(N, N, 500, durations="constant"), 500),
    ),
    Case(
        "dadao",
        DADAO(smoothness=20.0, convexity=1.0, chi1=RATES["chi1"]),
        poisson(CIRCLE, 20, edge_rates=RATES["rate"], seed=3),
        _run(dadao, L=20.0, mu=1.0, chi1=RATES["chi1"], n=N),
        SIX,
        exact=True,
        tuned=dict(smoothness=4.0),
        long=(poisson(CIRCLE, 100, edge_rates=RATES["rate"], seed=4, unit=8.0), 100),
    ),
    Case(
        "gossip-learning",
        GossipLearning(lr=0.05, slots=11),
        gossip(CIRCLE, 20, period=10, delay=(0, 25), drop=0.1, online=0.9, seed=5),
        _run(gossip_learning, lr=0.05),
        GOSSIP,
        up=lambda d: d + 1,
        bias=(1e-2, 2.0),
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
        _run(gossip_learning, lr=0.05, mode="update_merge", merge="age", attack="signflip"),
        GOSSIP,
        up=lambda d: d + 1,
        bias=(1e-2, 2.0),
        tuned=dict(lr=0.1),
        long=(gossip(RANDOM_GRAPH, 300, seed=8), 300),
    ),
    Case(
        "monna-signflip",
        MoNNA(lr=0.05, f=2, beta=0.9),
        Attacked(Quorum(N, 2), first(2, N), SignFlip()),
        _run(monna, lr=0.05, f=2, beta=0.9, attack="signflip"),
        {"params": _params, "m": lambda s: s.m},
        bias=(1e-2, 2.0),
    ),
    Case(
        "monna-alie",
        MoNNA(lr=0.05, f=2, beta=0.9),
        Attacked(Quorum(N, 2), first(2, N), ALIE(1.5)),
        _run(monna, lr=0.05, f=2, beta=0.9, attack="alie", z=1.5),
        {"params": _params, "m": lambda s: s.m},
        bias=(1e-2, 2.0),
    ),
)

QUICK = tuple(case for case in CASES if case.quick)
assert len({case.name for case in CASES}) == len(CASES)
TRUE = np.array([-0.071855, 0.189025, 0.127384, -0.032322, -0.123140])  # x* of problem Q
