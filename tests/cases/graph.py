"""Methods on graphs."""

import numpy as np
from oracles import compress
from oracles.graph import choco, dsgd, exact_diffusion, gradient_tracking, monna, sgp
from oracles.problem import limit, whole

from jaxfl.algorithms import DSGD, SGP, Choco, ExactDiffusion, GradientTracking, MoNNA
from jaxfl.components.compressors import TopK
from jaxfl.engine import comm
from jaxfl.networks import ALIE, Attacked, Churn, LinkFailures, Quorum, SignFlip, first, topology

from .case import RANDOM, RING, Case, N

TOP2 = {"compress": lambda v, i, t: compress.topk(v, 2)}


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


CASES = (
    Case(
        "dsgd-atc",
        DSGD(lr=0.05, steps=3),
        Churn(RANDOM, 0.8),
        dsgd,
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
        limit=_dsgd_limit,
        tuned=dict(lr=0.1),
    ),
    Case(
        "gt-atc",
        GradientTracking(lr=0.05),
        Churn(topology("torus", N, rows=2, cols=4), 0.8),
        gradient_tracking,
        ("params", "y", "g"),
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
        ("params", "y", "g"),
        up=2.0,
        exact=True,
    ),
    Case(
        "gt-diging",
        GradientTracking(lr=0.03, order="diging"),
        RANDOM,
        gradient_tracking,
        ("params", "y", "g"),
        up=2.0,
        exact=True,
    ),
    Case(
        "exact-diffusion",
        ExactDiffusion(lr=0.05),
        RANDOM,
        exact_diffusion,
        ("params", "psi"),
        exact=True,
        tuned=dict(lr=0.1),
    ),
    Case(
        "d2",
        ExactDiffusion(lr=0.05, lazy=0.0),
        topology("ring", N, weights="lazy"),
        exact_diffusion,
        ("params", "psi"),
        exact=True,
        tuned=dict(lr=0.1),
    ),
    Case(
        "sgp",
        SGP(lr=0.05),
        topology("random_out", N, k=2),
        sgp,
        ("params", "x", "w"),
        up=lambda d: d + 1,
        sent=1.0,
        tuned=dict(lr=0.05),
    ),
    Case(
        "choco-icml",
        Choco(lr=0.05, gamma=0.3, compress=TopK(0.4)),
        RING,
        choco,
        ("params", "x_hat"),
        extra=TOP2,
        limit=_choco_limit,
        up=lambda d: 2 * (1 + 3 / 64),
        sent=1.0,
    ),
    Case(
        "choco-code",
        Choco(lr=0.05, gamma=0.3, compress=TopK(0.4), order="code"),
        RING,
        choco,
        ("params", "x_hat"),
        extra=TOP2,
        limit=_choco_limit,
        up=lambda d: 2 * (1 + 3 / 64),
        sent=1.0,
    ),
    Case(
        "monna-signflip",
        MoNNA(lr=0.05, f=2, beta=0.9),
        Attacked(Quorum(N, 2), first(2, N), SignFlip()),
        monna,
        ("params", "m"),
        extra={"attack": "signflip"},
        long=(Attacked(Quorum(N, 2), first(2, N), SignFlip()), 200),
    ),
    Case(
        "monna-alie",
        MoNNA(lr=0.05, f=2, beta=0.9),
        Attacked(Quorum(N, 2), first(2, N), ALIE(1.5)),
        monna,
        ("params", "m"),
        extra={"attack": "alie", "z": 1.5},
        long=(Attacked(Quorum(N, 2), first(2, N), ALIE(1.5)), 200),
    ),
)
