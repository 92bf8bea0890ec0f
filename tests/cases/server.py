"""Methods whose models are a server's."""

from oracles.server import fedavg, fedavgm, fedopt, fedprox, scaffold

from jaxfl.algorithms import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi, Scaffold
from jaxfl.networks import Attacked, SignFlip, first

from .case import COHORT, Case, N

CASES = (
    Case(
        "fedavg",
        FedAvg(lr=0.05, server_lr=0.9, steps=3),
        COHORT,
        fedavg,
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, server_lr=1.0, steps=5),
        quick=True,
    ),
    Case(
        "fedavg-epochs",
        FedAvg(lr=0.05, epochs=2, server_lr=0.9),
        COHORT,
        fedavg,
        fixed=lambda q: q.x_fa(0.1, 2),
        tuned=dict(lr=0.1, server_lr=1.0),
    ),
    Case(
        "fedavgm",
        FedAvgM(lr=0.05, server_lr=0.3, steps=3),
        COHORT,
        fedavgm,
        ("params", "memory"),
        extra={"beta": 0.9},
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, steps=5),
    ),
    Case(
        "fedprox",
        FedProx(lr=0.05, mu=0.3, server_lr=0.9, steps=3),
        COHORT,
        fedprox,
        fixed=lambda q: q.x_prox(0.1, 5, 0.5),
        tuned=dict(lr=0.1, mu=0.5, server_lr=1.0, steps=5),
    ),
    Case(
        "fedadagrad",
        FedAdagrad(lr=0.05, server_lr=0.1, steps=3),
        COHORT,
        fedopt,
        ("params", "m", "v"),
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, steps=5),
    ),
    Case(
        "fedadam",
        FedAdam(lr=0.05, server_lr=0.1, steps=3),
        COHORT,
        fedopt,
        ("params", "m", "v"),
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, steps=5, server_lr=0.01, tau=0.1),
    ),
    Case(
        "fedyogi",
        FedYogi(lr=0.05, server_lr=0.1, steps=3),
        COHORT,
        fedopt,
        ("params", "m", "v"),
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, steps=5, server_lr=0.01, tau=0.1),
    ),
    Case(
        "scaffold",
        Scaffold(lr=0.05, server_lr=0.9, steps=3),
        COHORT,
        scaffold,
        ("params", "c", "c_i"),
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
        ("params", "c", "c_i"),
        extra={"attack": "signflip"},
        up=2.0,
        exact=True,  # without the attack
        tuned=dict(lr=0.1, server_lr=1.0, steps=5),
        still=("c_i",),
    ),
)
