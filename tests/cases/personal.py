"""Methods whose clients have models of their own."""

from oracles.personal import ditto, local_only

from jaxfl.algorithms import Ditto, Local

from .case import COHORT, Case

CASES = (
    Case(
        "ditto",
        Ditto(lr=0.05, mu=0.2, server_lr=0.9, steps=3),
        COHORT,
        ditto,
        ("params", "personal.rows"),
        fixed=lambda q: q.x_fa(0.1, 5),
        tuned=dict(lr=0.1, server_lr=1.0, steps=5),
        still=("own",),
    ),
    Case(
        "local",
        Local(lr=0.05, steps=3),
        COHORT,
        local_only,
        ("params", "personal.rows"),
        up=0.0,
        limit=lambda q, alg, network: q.b,
        still=("params",),
    ),
)
