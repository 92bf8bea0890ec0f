"""Methods of late arrivals, of events and of messages."""

from oracles.asynchronous import dadao, fedbuff, gossip_learning

from jaxfl.algorithms import DADAO, FedBuff, GossipLearning
from jaxfl.networks import Attacked, SignFlip, arrivals, dadao_rates, first, gossip, poisson
from jaxfl.networks.graphs import make

from .case import CIRCLE, Case, N

RATES = dadao_rates(CIRCLE)
RANDOM_GRAPH = make("erdos_renyi", N, seed=1, p=0.4)
GOSSIP = "params", "age"
SIX = "params", "x_tilde", "y", "y_tilde", "z", "z_tilde"

CASES = (
    Case(
        "fedbuff",
        FedBuff(lr=0.05, server_lr=0.9, steps=3, max_age=8),
        arrivals(N, 3, 20, seed=2),
        fedbuff,
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
        moves=SIX,  # time passes
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
        extra={"attack": "signflip"},
        up=lambda d: d + 1,
        sent=1.0,
        tuned=dict(lr=0.1),
        long=(gossip(RANDOM_GRAPH, 300, seed=8), 300),
    ),
)
