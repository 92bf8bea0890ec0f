"""What is refused, before anything is computed: the message names it and ends with the fix."""

import dataclasses
import re
import warnings
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxfl import problems
from jaxfl.algorithms import (
    DSGD,
    SGP,
    Choco,
    ExactDiffusion,
    FedAdam,
    FedAvg,
    GradientTracking,
    Scaffold,
)
from jaxfl.components.compressors import TopK
from jaxfl.components.solvers import Momentum, Optax
from jaxfl.engine.clients import Clients
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import hyper
from jaxfl.engine.grid import grid, scaled
from jaxfl.engine.simulate import Run, _check_given, simulate
from jaxfl.networks import (
    ALIE,
    IPM,
    Arrivals,
    Attacked,
    Bernoulli,
    Churn,
    Cohort,
    Cyclic,
    Dissensus,
    Drop,
    Everyone,
    LinkFailures,
    Links,
    Noisy,
    Quorum,
    RandomMatching,
    RandomOut,
    SignFlip,
    Uniform,
    Weighted,
    alie_z,
    first,
    from_matrix,
    graphs,
    markov,
    periodic,
    topology,
    weights,
)
from jaxfl.networks.buffers import arrivals
from jaxfl.runs.run import run
from jaxfl.struct import dataclass, field
from jaxfl.types import Info

N, D = 8, 3
PROBLEM = problems.quadratics(N, D, zeta=1.0, seed=0)
CLIENTS = Clients.make(PROBLEM.data, PROBLEM.partition, PROBLEM.loss, batch=1)
X0 = jnp.zeros(D)
KEY = jax.random.key(0)
RING = topology("ring", N)
HALF = Uniform(N, 4)
RATES = np.linspace(0.1, 0.8, N)


def go(alg, network, *, clients=CLIENTS, params=X0, rounds=4, **options):
    """Traced, not compiled: a refusal that came later than tracing would be missed."""
    run = lambda: simulate(alg, clients, network, params, KEY, rounds=rounds, **options)
    return lambda: jax.eval_shape(run)


def doubly(n=N):
    return np.full((n, n), 1 / n)


def broken(i, j, value):
    w = doubly()
    w[i, j] = value
    return w


def apart():
    return np.kron(np.eye(2), doubly(4))


def star_rows():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_matrix(weights.uniform(graphs.star(N)))


def loss_of(result):
    """A problem whose loss is `result(params, examples)`."""

    def loss(params, examples, key):
        return result(params, examples)

    return Clients.make(PROBLEM.data, PROBLEM.partition, loss, batch=2)


def make(data=None, partition=None, **options):
    rows = {"x": np.ones((4, 2)), "y": np.arange(4)}
    parts = (np.arange(4), np.array([0, 2]), np.array([2, 2]))
    return lambda: Clients.make(data or rows, partition or parts, PROBLEM.loss, **options)


LR = {"lr": 0.1}
GRAPH_NETS = LinkFailures(RING, 0.1)
ERRORS = {
    # unknown names, with the nearest ones
    "graph": (lambda: topology("rign", N), "unknown graph 'rign' did you mean 'ring'"),
    "weights": (lambda: topology("ring", N, weights="lasy"), "unknown weights 'lasy' 'lazy'"),
    "option": (lambda: topology("regular", N, degre=3), "regular no option 'degre' degree"),
    "varying option": (lambda: topology("random_out", N, m=3), "random_out no option 'm' k"),
    "varying weights": (
        lambda: topology("random_matching", N, weights="lazy"),
        "random_matching every round weights='lazy'",
    ),
    "order": (go(DSGD(lr=0.1, order="act"), RING), "DSGD.order 'atc' 'cta' got 'act'"),
    "tracking": (go(GradientTracking(lr=0.1, order="x"), RING), "order 'diging' got 'x'"),
    "choco": (go(Choco(lr=0.1, order="x"), RING), "Choco.order 'icml' 'code'"),
    "weighting": (go(FedAvg(lr=0.1, weighting="c"), HALF), "weighting 'uniform' 'count' got 'c'"),
    "server": (go(FedAdam(lr=0.1, kind="adm"), HALF), "FedOpt.kind 'adam' 'yogi' got 'adm'"),
    "keep": (go(DSGD(lr=0.1), LinkFailures(RING, 0.1, "rows")), 'keep "row" "column" got \'rows\''),
    "field": (lambda: grid(FedAvg, lr=[0.1], step=3), "FedAvg has no field 'step' 'steps'"),
    "law": (lambda: arrivals(N, 2, 5, durations="normal"), "unknown durations half_normal"),
    "precision": (make(precision="float16"), "precision 'float32' got 'float16'"),
    # a net of the wrong kind
    "cohort": (go(DSGD(lr=0.1), HALF), "DSGD needs Graph nets got Uniform Cohort"),
    "graph net": (go(FedAvg(lr=0.1), RING), "FedAvg needs Cohort nets got Static Graph"),
    "timeline": (go(FedAvg(lr=0.1), arrivals(N, 2, 9)), "Cohort nets Timeline Arrivals"),
    "failing cohort": (
        go(DSGD(lr=0.1), LinkFailures(HALF, 0.1)),
        "LinkFailures needs Graph nets got Uniform Cohort Drop",
    ),
    "dropped graph": (
        go(FedAvg(lr=0.1), Drop(RING, 0.1)),
        "Drop needs Cohort nets got Static Graph LinkFailures",
    ),
    "name": (go(DSGD(lr=0.1), "ring"), "network got str topology"),
    "matrix": (go(DSGD(lr=0.1), doubly()), "network got ndarray topology"),
    "class": (go(FedAvg, HALF), "alg hyperparameters FedAvg"),
    "no algorithm": (go(0.1, HALF), "alg hyperparameters 0.1"),
    "number": (go(FedAvg(lr=0.1), Uniform(5, 2)), "network is for 5 clients holds 8 n=8"),
    # matrices
    "rows": (lambda: from_matrix(broken(2, 3, 0.5)), "row of w must sum to 1, row 2 sums to 1.375"),
    "columns": (
        lambda: from_matrix(weights.column_stochastic(graphs.path(N)) * 1.1),
        "row of w must sum to 1",
    ),
    "nan": (lambda: from_matrix(broken(2, 3, np.nan)), "w must be finite w[2, 3] = nan"),
    "apart": (lambda: from_matrix(apart()), "connected nodes [0, 1, 2, 3] 2 components"),
    "not square": (lambda: from_matrix(np.ones((3, 4)) / 4), "square matrix [n, n] (3, 4)"),
    "period": (lambda: periodic([doubly(), doubly(4)]), "one shape [n, n] (8, 8) (4, 4)"),
    "no period": (lambda: periodic([]), "one shape [n, n] []"),
    "period apart": (lambda: periodic([apart(), apart()]), "connected 2 components"),
    "period rows": (lambda: periodic([doubly(), broken(0, 0, 3.0)]), "row 0 sums to 3.875"),
    "directed": (lambda: topology("exponential", N, weights="metropolis"), "undirected directed"),
    "cube": (lambda: topology("hypercube", 6), "hypercube n = 2^m got 6 n=8"),
    "one": (lambda: topology("random_matching", 1), "n at least 2 got 1"),
    "out": (lambda: RandomOut(4, 4), "k must be from 1 to n - 1 = 3 got 4"),
    "quorum": (lambda: Quorum(4, 4), "f must be from 0 to n - 1 = 3 got 4"),
    # cohorts
    "larger": (lambda: Uniform(8, 9), "size must be between 1 and n = 8, got 9"),
    "empty": (lambda: Uniform(8, 0), "size must be between 1 and n = 8, got 0"),
    "nobody": (lambda: Everyone(0), "n must be between 1"),
    "cyclic": (lambda: Cyclic(8, 9), "size n = 8, got 9"),
    "slots": (lambda: Bernoulli(8, 0.5, slots=9), "slots n = 8, got 9"),
    "weighted": (go(FedAvg(lr=0.1), Weighted(RATES, 9)), "size n = 8, got 9"),
    "markov": (lambda: markov(8, 9, 5, up=0.5, down=0.5), "size n = 8, got 9"),
    "chain": (lambda: markov(8, 4, 5, up=0.0, down=0.5), "up (0, 1] down [0, 1] 0.0"),
    "available": (
        go(FedAvg(lr=0.1), markov(8, 9 - 5, 3, up=0.5, down=0.5)),
        "Available drawn for 3 rounds, asked for 4",
    ),
    "available inside": (
        go(FedAvg(lr=0.1), Attacked(markov(8, 4, 3, up=0.5, down=0.5), first(1, N), SignFlip())),
        "Available drawn for 3 rounds, asked for 4",
    ),
    "resumed": (
        go(FedAvg(lr=0.1), markov(8, 4, 6, up=0.5, down=0.5), start=3),
        "drawn for 6 rounds, asked for 7",
    ),
    # sizes of what belongs to a network
    "byzantine": (
        go(DSGD(lr=0.1), Attacked(RING, first(1, 5), SignFlip())),
        "Attacked.byzantine shape (8,) (5,)",
    ),
    "rate": (go(FedAvg(lr=0.1), Bernoulli(N, np.full(5, 0.5))), "Bernoulli.rate (8,) (5,)"),
    "present": (go(DSGD(lr=0.1), Churn(RING, np.ones(5))), "Churn.present (8,) (5,)"),
    "table": (
        go(DSGD(lr=0.1), LinkFailures(Churn(RING, np.ones((3, N))), 0.1)),
        "Churn is drawn for 3 rounds, asked for 4",
    ),
    "links": (
        go(FedAvg(lr=0.1), Everyone(N, Links(compute=np.ones(5)))),
        "Links.compute shape (8,) (5,)",
    ),
    "links by slot": (
        go(DSGD(lr=0.1), topology("ring", N, links=Links(up=np.ones((N, 5))))),
        "Links.up shape (8, 3) (8, 5)",
    ),
    "links of a cohort": (
        go(FedAvg(lr=0.1), Everyone(N, Links(latency=np.ones((N, 3))))),
        "Links.latency shape (8,) (8, 3)",
    ),
    # ranges
    "steps": (go(FedAvg(lr=0.1, steps=0), HALF), "FedAvg.steps must be in [1 got 0"),
    "epochs": (go(FedAvg(lr=0.1, epochs=-1), HALF), "FedAvg.epochs [0 got -1"),
    "lr": (go(FedAvg(lr=-0.1), HALF), "FedAvg.lr must be in [0 got -0.1"),
    "lr nan": (go(FedAvg(lr=np.nan), HALF), "FedAvg.lr must be in [0 got nan"),
    "gamma": (go(Choco(lr=0.1, gamma=1.5), RING), "Choco.gamma [0.0, 1.0] got 1.5"),
    "component": (go(Choco(lr=0.1, compress=TopK(-0.5)), RING), "TopK got -0.5"),
    "failing": (
        go(DSGD(lr=0.1), LinkFailures(RING, -0.1)),
        "LinkFailures.rate [0.0, 1.0] got -0.1",
    ),
    "failing inside": (
        go(DSGD(lr=0.1), Churn(LinkFailures(RING, 1.5), 0.5)),
        "LinkFailures.rate [0.0, 1.0] got 1.5",
    ),
    "bernoulli": (go(FedAvg(lr=0.1), Bernoulli(N, 2 * RATES)), "Bernoulli.rate got 1.2"),
    "rates": (go(FedAvg(lr=0.1), Weighted(-RATES, 2)), "Weighted.rate [0.0, inf] got -0.1"),
    "drop": (go(FedAvg(lr=0.1), Drop(HALF, -0.5)), "Drop.rate [0.0, 1.0] got -0.5"),
    "churn": (go(DSGD(lr=0.1), Churn(RING, 2.0)), "Churn.present [0.0, 1.0] got 2"),
    "noise": (go(DSGD(lr=0.1), Attacked(RING, channel=Noisy(-1.0))), "Noisy.sigma [0.0 got -1"),
    "scale": (
        go(DSGD(lr=0.1), Attacked(RING, first(1, N), SignFlip(-1.0))),
        "SignFlip.scale [0.0 got -1",
    ),
    "speed": (go(FedAvg(lr=0.1), Everyone(N, Links(up=0.0))), "Links.up must be in [1 got 0"),
    "many": (lambda: alie_z(10, 6), "f must be from 0 to n // 2 = 5, got 6"),
    # what the algorithm asks of the network
    "eigenvalue": (
        go(ExactDiffusion(lr=0.1, lazy=0.0), RING),
        "ExactDiffusion least eigenvalue above -1/3 got -0.3333 lazy=0.5",
    ),
    "eigenvalue inside": (
        go(ExactDiffusion(lr=0.1, lazy=0.0), Attacked(RING, first(1, N), SignFlip())),
        "ExactDiffusion least eigenvalue above -1/3",
    ),
    "varying": (
        go(ExactDiffusion(lr=0.1), topology("one_peer_exponential", N)),
        "ExactDiffusion never changes got Periodic ring",
    ),
    "matching": (go(Choco(lr=0.1), RandomMatching(N)), "Choco never changes got RandomMatching"),
    "lossy": (go(Choco(lr=0.1), LinkFailures(RING, 0.1)), "Choco lost links got LinkFailures"),
    "absent": (go(ExactDiffusion(lr=0.1), Churn(RING, 0.9)), "absent nodes got Churn"),
    "push": (go(DSGD(lr=0.1), RandomOut(N, 2)), "DSGD rows sum to 1 column-stochastic SGP"),
    "push matrix": (
        go(GradientTracking(lr=0.1), from_matrix(weights.column_stochastic(graphs.path(N)))),
        "GradientTracking rows sum to 1 SGP",
    ),
    "pull": (go(SGP(lr=0.1), star_rows()), "SGP columns sum to 1 metropolis"),
    "pull, tracking": (go(GradientTracking(lr=0.1), Quorum(N, 2)), "columns sum to 1 Quorum"),
    "pull, varying": (
        go(SGP(lr=0.1), periodic([weights.column_stochastic(graphs.star(N)).T, doubly()])),
        "SGP columns sum to 1 Periodic",
    ),
    "one-way": (
        go(SGP(lr=0.1), LinkFailures(topology("exponential", N), 0.1)),
        "SGP columns sum to 1 LinkFailures keep=\"column\"",
    ),
    "kept by the sender": (
        go(DSGD(lr=0.1), LinkFailures(topology("exponential", N), 0.1, "column")),
        "DSGD rows sum to 1",
    ),
    "kept by the receiver": (
        go(SGP(lr=0.1), LinkFailures(RandomOut(N, 2), 0.1, "row")),
        'keep="row" needs rows keep="column"',
    ),
    "public copies": (
        go(Choco(lr=0.1), Attacked(RING, first(1, N), Dissensus())),
        "Choco public copies SignFlip",
    ),
    "aimed": (
        go(FedAvg(lr=0.1), Attacked(HALF, first(1, N), Dissensus())),
        "Dissensus different receivers Graph Cohort",
    ),
    # the model
    "scalar": (
        go(FedAvg(lr=0.1), HALF, clients=loss_of(lambda x, e: jnp.square(x).sum())),
        "loss one number per example (2,) not () mean",
    ),
    "fewer": (
        go(FedAvg(lr=0.1), HALF, clients=loss_of(lambda x, e: e["b"][:1, 0] * x[0])),
        "loss one number per example (2,) not (1,)",
    ),
    "counts": (
        go(FedAvg(lr=0.1), HALF, clients=loss_of(lambda x, e: (e["b"][:, 0] > x[0]).astype(int))),
        "loss floating got int",
    ),
    "shape": (
        go(FedAvg(lr=0.1), HALF, params=jnp.zeros(D + 1)),
        "loss does not accept params init",
    ),
    "tree": (go(DSGD(lr=0.1), RING, params={"x": X0}), "loss does not accept params init"),
    "dtype": (go(FedAvg(lr=0.1), HALF, params=jnp.zeros(D, int)), "params floating got int64"),
    "text": (go(FedAvg(lr=0.1), HALF, params={"x": jnp.zeros(2, bool)}), "params['x'] got bool"),
    "keys": (
        go(FedAvg(lr=0.1), HALF, clients=loss_of(lambda x, e: e["z"] * x[0])),
        "loss does not accept 'z'",
    ),
    # rounds
    "every": (
        go(FedAvg(lr=0.1), HALF, rounds=10, every=4, evaluate=lambda s: s.params),
        "every divide rounds=10, every=4 every=2",
    ),
    "no round": (go(FedAvg(lr=0.1), HALF, rounds=0), "rounds must be >= 1 rounds=0"),
    "backwards": (go(FedAvg(lr=0.1), HALF, every=-1), "every=-1"),
    "nothing to evaluate": (go(FedAvg(lr=0.1), HALF, every=2), "evaluate every together"),
    "never": (
        go(FedAvg(lr=0.1), HALF, evaluate=lambda s: s.params),
        "evaluate every together every=",
    ),
    "chunk": (
        lambda: run(
            FedAvg(lr=0.1), CLIENTS, HALF, X0, KEY,
            rounds=10, every=5, evaluate=lambda s: s.params, chunk=3,
        ),
        "chunk must be a multiple of every = 5, got 3",
    ),
    # one run takes one number, in plain calls and inside `jit`
    "grid": (
        lambda: simulate(grid(FedAvg, lr=[0.1] * D), CLIENTS, HALF, X0, KEY, rounds=2),
        "FedAvg.lr has 3 values `jax.vmap(run)(sweep)`",
    ),
    "grid, traced": (go(grid(FedAvg, lr=[0.1, 0.2]), HALF), "FedAvg.lr has 2 values vmap"),
    "grid, chunks": (
        lambda: run(grid(FedAvg, lr=[0.1]), CLIENTS, HALF, X0, KEY, rounds=2),
        "FedAvg.lr has 1 value vmap",
    ),
    "grid, a component": (
        go(Choco(lr=0.1, compress=TopK(np.full(D, 0.5))), RING),
        "TopK.fraction has 3 values vmap",
    ),
    "grid, a solver": (
        go(FedAvg(lr=0.1, solver=Momentum(beta=np.full(D, 0.5))), HALF),
        "Momentum.beta has 3 values vmap",
    ),
    "list": (go(FedAvg(lr=[0.1, 0.2]), HALF), "FedAvg.lr has 2 values vmap"),
    "tuple": (go(FedAvg(lr=0.1, server_lr=(1.0, 0.5)), HALF), "server_lr has 2 values vmap"),
    "grid of networks": (
        go(DSGD(lr=0.1), LinkFailures(RING, np.full(N, 0.1))),
        "LinkFailures.rate has 8 values vmap",
    ),
    "grid of adversaries": (
        go(DSGD(lr=0.1), Attacked(RING, first(1, N), ALIE(np.ones(2)))),
        "ALIE.z has 2 values vmap",
    ),
    "rates as a list": (
        go(FedAvg(lr=0.1), Bernoulli(N, [0.5] * N)),
        "Bernoulli.rate a number or an array list np.array",
    ),
    "scheduled grid": (
        go(FedAvg(lr=0.1), HALF, schedule=lambda alg, t: alg.replace(lr=alg.lr * jnp.ones(D))),
        "FedAvg.lr has 3 values vmap",
    ),
    "seeds": (
        lambda: simulate(FedAvg(lr=0.1), CLIENTS, HALF, X0, jax.random.split(KEY, 4), rounds=2),
        "key holds 4 keys `jax.vmap(run)(keys)`",
    ),
    # things of the wrong kind
    "seed": (lambda: simulate(FedAvg(lr=0.1), CLIENTS, HALF, X0, 0, rounds=2), "key got 0 key(0)"),
    "run for state": (
        lambda: simulate(
            FedAvg(lr=0.1), CLIENTS, HALF, X0, KEY, rounds=2,
            state=Run(FedAvg(lr=0.1).State(X0), None, ()),
        ),
        "state whole Run state=run.state",
    ),
    "rate as schedule": (
        go(FedAvg(lr=optax.cosine_decay_schedule(1.0, 9)), HALF),
        "FedAvg.lr number schedule=scaled(lr=f)",
    ),
    "optimiser": (
        go(FedAvg(lr=0.1, solver=optax.adam(1.0)), HALF),
        "FedAvg.solver optax solver=components.Optax(optax.adam(1.0))",
    ),
    "class of a component": (
        go(Choco(lr=0.1, compress=TopK), RING), "Choco.compress number compress=TopK(...)"
    ),
    "rate as text": (go(FedAvg(lr="0.1"), HALF), "FedAvg.lr must be a number got '0.1'"),
    "unknown schedule": (
        go(FedAvg(lr=0.1), HALF, schedule=scaled(lrr=lambda t: 1.0)), "no field 'lrr' 'lr'"
    ),
    "static schedule": (
        go(FedAvg(lr=0.1), HALF, schedule=scaled(steps=lambda t: 1.0)),
        "FedAvg.steps traced scaled(lr=...)",
    ),
    "schedule of numbers": (
        go(FedAvg(lr=0.1), HALF, schedule=lambda alg, t: alg.lr),
        "schedule must return the algorithm alg.replace",
    ),
    # grids
    "static": (lambda: grid(FedAvg, lr=[0.1], steps=[1, 2]), "steps is static for steps in [1, 2]"),
    "static name": (lambda: grid(DSGD, lr=0.1, order=["atc", "cta"]), "order is static"),
    "grid range": (lambda: grid(FedAvg, lr=[0.1, -0.2]), "FedAvg.lr got -0.2"),
    "grid component": (lambda: grid(Choco, lr=[0.1], compress=TopK(-1.0)), "TopK got -1"),
    "grid static": (lambda: grid(FedAvg, lr=[0.1], steps=0), "FedAvg.steps got 0"),
    "grid of nothing": (lambda: grid(FedAvg, lr=[]), "lr must be a number or a list got []"),
    "grid of names": (lambda: grid(FedAvg, lr=["a"]), "lr must be a number or a list got ['a']"),
    "grid of a function": (lambda: grid(FedAdam, lr=[0.1]), "alg class FedAdam grid(FedAdam(lr"),
    # clients
    "no client": (
        make(partition=(np.arange(4), np.array([0, 4]), np.array([4, 0]))),
        "clients [1]",
    ),
    "order of rows": (
        make(partition=(np.arange(5), np.array([0]), np.array([5]))),
        "order index 4 examples",
    ),
    "offsets": (
        make(partition=(np.arange(4), np.array([0, 3]), np.array([2, 2]))),
        "start order [4]",
    ),
    "nan data": (make({"x": np.array([1, np.nan, 2, 3.0])}), "data['x'] NaN row 1"),
    "text data": (make({"x": np.array(list("abcd"))}), "data['x'] numbers dtype"),
    "lengths": (make({"x": np.ones(4), "y": np.ones(3)}), "same number of rows"),
    "nothing": (make({"x": {}}), "no array"),
    "batch": (make(batch=0), "batch >= 1 got 0"),
}  # fmt: skip


FIX = re.compile(
    r"(`[^`]+`|did you mean .*|Known: .*|it takes .*|must be one of .*|for example .*|n=8)"
    r"[^`]{0,80}$"
)


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, words = ERRORS[name]
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    missing = [w for w in words.split() if w.strip(",") not in message]
    assert not missing, (missing, message)
    assert FIX.search(message), message


class State(NamedTuple):
    params: Any
    m: Any


@dataclass
class Own:
    """CONTRIBUTING's skeleton, with a slip."""

    lr: Any = hyper(0.1)
    start: Any = field(pytree_node=False, default=State)
    back: Any = field(pytree_node=False, default=lambda state, info: (state, info))
    needs: ClassVar[Needs] = Needs(Cohort)

    def init(self, params, clients, key):
        return self.start(params, jnp.zeros(()))

    def round(self, state, clients, net, key):
        return self.back(state, Info(jnp.zeros(()), 0.0, 0.0, 1.0))


def mine(decorate, **body):
    methods = {"init": Own.init, "round": Own.round, "__module__": __name__}
    return go(decorate(type("Mine", (), {**methods, **body}))(), HALF)


def slip(back=Own.back, **options):
    return go(Own(back=back, **options), HALF)


counted = lambda params, m: State(params, jnp.zeros((), int))
SLIPS = {
    "unhashable": (slip(start=[1]), "Own.start static hashable got [1] tuple"),
    "no needs": (mine(dataclass), "Mine.needs class attribute ClassVar[Needs]"),
    "needs a net": (mine(dataclass, needs=Cohort), "Mine.needs got Cohort ClassVar"),
    "needs as a field": (
        mine(dataclass, needs=Needs(Cohort), __annotations__={"needs": Needs}),
        "Mine.needs attribute not a field ClassVar",
    ),
    "dataclass": (
        mine(dataclasses.dataclass, needs=Needs(Cohort)),
        "Mine pytree jaxfl @struct.dataclass",
    ),
    "class": (mine(lambda a: a, needs=Needs(Cohort)), "Mine pytree jaxfl @struct.dataclass"),
    "no model": (slip(start=lambda params, m: (params, m)), "Own.init params got tuple self.State"),
    "state alone": (
        slip(lambda s, i: s),
        "Own.round new state Info got State self.State(...), Info",
    ),
    "swapped": (slip(lambda s, i: (i, s)), "Own.round got ['Info', 'State'] net.info(work"),
    "three": (
        slip(lambda s, i: (s, i, i)),
        "Own.round got ['State', 'Info', 'Info'] net.info(work",
    ),
    "list": (slip(lambda s, i: [s, i]), "Own.round got list net.info(work"),
    "nothing": (slip(lambda s, i: None), "Own.round got NoneType net.info(work"),
    "other leaves": (
        slip(lambda s, i: (s._replace(m={"a": s.m}), i)),
        "Own.round structure state.m is missing state.m['a'] is new state._replace",
    ),
    "other record": (slip(lambda s, i: (tuple(s), i)), "Own.round structure state[0] is new"),
    "shape": (
        slip(lambda s, i: (s._replace(m=s.m[None]), i)),
        "Own.round shape state.m was () is (1,) init",
    ),
    "cast back": (
        slip(lambda s, i: (s._replace(m=s.m + 0.5), i), start=counted),
        "Own.round state.m was int64 is float64 cast back",
    ),
    "loss by slot": (
        slip(lambda s, i: (s, i._replace(loss=jnp.zeros(4)))),
        "Own.round loss got shape (4,) `net.info(work",
    ),
    "costs by example": (
        slip(lambda s, i: (s, i._replace(grads=jnp.zeros(7)))),
        "Own.round grads got shape (7,) `net.info(work",
    ),
}


@pytest.mark.parametrize("name", SLIPS)
def test_slips_of_an_own_algorithm(name):
    call, words = SLIPS[name]
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    missing = [w for w in words.split() if w not in message]
    assert not missing, (missing, message)
    assert FIX.search(message), message


def test_what_an_own_round_may_return():
    """Narrower kinds and other widths are cast to what `init` made; costs may be one per slot."""
    costs = lambda s, i: (s._replace(m=jnp.float32(1)), i._replace(grads=jnp.ones(4), up=1))
    out = jax.eval_shape(slip(costs))
    assert out.state.m.dtype == jnp.float64
    out = jax.eval_shape(slip(lambda s, i: (s._replace(m=s.m + jnp.int32(1)), i), start=counted))
    assert out.state.m.dtype == jnp.int64
    plain = slip(lambda s, i: (s._replace(m=1), i))
    assert jax.eval_shape(plain).state.m.dtype == jnp.float64


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(clients=PROBLEM), "clients got Problem `problem.clients()`"),
        (dict(clients=X0), "clients must be Clients `Clients.make(...)`"),
        (dict(evaluate={"x": 1}), "evaluate function metrics.Evaluate"),
        (dict(schedule=0.1), "schedule function 0.1 scaled(lr="),
    ],
)
def test_things_of_the_wrong_kind(given, words):
    """What the annotations say too, for who does not check them."""
    fine = dict(clients=CLIENTS, key=KEY, state=None, evaluate=None, schedule=None)
    _check_given(**fine)
    with pytest.raises(ValueError) as error:
        _check_given(**{**fine, **given})
    assert all(w in str(error.value) for w in words.split())
    assert FIX.search(str(error.value))


@dataclass
class Late(FedAvg):
    """An algorithm that takes arrivals."""

    needs = Needs(Arrivals)


@pytest.mark.parametrize("adversary", [ALIE(), IPM(), Dissensus()])
def test_adversaries_that_must_see_everything(adversary):
    """They exist for cohorts and graphs; a schedule of arrivals takes row-local ones."""
    network = Attacked(arrivals(N, 2, 9), first(1, N), adversary)
    with pytest.raises(ValueError, match=r"all messages|different receivers") as error:
        go(Late(lr=0.1), network)()
    assert FIX.search(str(error.value))


FINE = {
    "lazy": (ExactDiffusion(lr=0.1), RING),
    "odd": (ExactDiffusion(lr=0.1, lazy=0.0), topology("complete", N)),
    "push-pull": (SGP(lr=0.1), topology("exponential", N)),
    "push": (SGP(lr=0.1), LinkFailures(topology("exponential", N), 0.1, "column")),
    "drawn": (SGP(lr=0.1), Churn(RandomOut(N, 2), 0.9)),
    "failures": (GradientTracking(lr=0.1), LinkFailures(RandomMatching(N), 0.1)),
    "compressed": (Choco(lr=0.1), Attacked(RING, first(1, N), SignFlip())),
    "lost": (Scaffold(lr=0.1), Drop(Bernoulli(N, RATES), RATES)),
    "links": (DSGD(lr=0.1), topology("ring", N, links=Links(up=np.ones((N, 3))))),
    "table": (DSGD(lr=0.1), Churn(RING, np.ones((4, N)))),
}


@pytest.mark.parametrize("name", FINE)
def test_what_fits_is_taken_however_it_is_traced(name):
    """Also inside jit and vmap, where networks are constants but nothing can be computed."""
    alg, network = FINE[name]
    one = lambda alg: simulate(alg, CLIENTS, network, X0, KEY, rounds=4).state.params
    out = jax.eval_shape(one, alg)
    sweep = jax.eval_shape(jax.vmap(one), grid(alg, lr=[0.1, 0.2]))
    assert sweep.shape == (2, *out.shape)
    both = lambda alg, network: simulate(alg, CLIENTS, network, X0, KEY, rounds=4).state.params
    assert jax.eval_shape(both, alg, network).shape == out.shape


def trained(**options):
    alg = FedAvg(**({"lr": 0.1} | options))
    return lambda: simulate(alg, CLIENTS, HALF, X0, KEY, rounds=2)


def factor(t):
    return 0.5


@pytest.mark.parametrize(
    "call, words",
    [
        (
            trained(lr=factor),
            r"FedAvg.lr must be a number, got a function.*schedule=scaled\(lr=f\)",
        ),
        (trained(lr=optax.constant_schedule(0.1)), r"scaled\(lr=f\)"),
        (trained(lr=optax.adam(1.0)), r"components.Optax\(optax.adam\(1.0\)\)"),
        (trained(lr="0.1"), r"FedAvg.lr must be a number, got '0.1'"),
        (
            trained(solver=optax.adam(1.0)),
            r"FedAvg.solver must be a number, got an optax optimiser.*components.Optax",
        ),
        (lambda: Optax(optax.adam), r"optimizer must be an optax optimiser, got <function adam"),
        (lambda: Optax(0.1), r"optimizer must be an optax optimiser, got 0.1"),
        (trained(solver=Momentum(beta=factor)), r"Momentum.beta must be a number"),
        *(
            (lambda o=o: trained(solver=Optax(o))(), r"asks for values of the loss.*lbfgs")
            for o in (
                optax.lbfgs(1.0),
                optax.polyak_sgd(),
                optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau()),
            )
        ),
        (lambda: scaled(lr=0.5), r"lr must be a function of the round, got 0.5"),
        *(
            (go(FedAvg(lr=0.1), HALF, schedule=scaled(**{name: factor})), words)
            for name, words in (
                ("lrr", "FedAvg has no field 'lrr'; did you mean 'lr'"),
                ("steps", "FedAvg.steps is no traced number"),
                ("solver", "FedAvg.solver is no traced number"),
            )
        ),
    ],
)
def test_what_is_in_the_wrong_place_says_where_it_belongs(call, words):
    with pytest.raises(ValueError, match=words):
        call()
