"""Numbers of every library: plain where they become text, whole where they count."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxfl
from jaxfl import components, data, networks, problems
from jaxfl.algorithms import FedAvg
from jaxfl.engine.simulate import simulate
from jaxfl.networks import graphs, weights
from jaxfl.runs.run import run
from jaxfl.studies.config import Config
from jaxfl.studies.names import Call
from jaxfl.studies.sweep import Space
from jaxfl.types import plain, whole

PROBLEM = problems.quadratics(4, 3)
Y = np.arange(40) % 4
SMALL = {"data": "wine", "clients": 4, "cohort": 2, "minimum": 1, "rounds": 4, "every": 2}

# The same two numbers, exact in every kind.
KINDS = {
    "list": [0.25, 0.5],
    "tuple": (0.25, 0.5),
    "float64": np.array([0.25, 0.5]),
    "float32": np.array([0.25, 0.5], np.float32),
    "float16": np.array([0.25, 0.5], np.float16),
    "longdouble": np.array([0.25, 0.5], np.longdouble),
    "bfloat16": np.array([0.25, 0.5], ml_dtypes.bfloat16),
    "jax": jnp.array([0.25, 0.5]),
    "jax bfloat16": jnp.array([0.25, 0.5], jnp.bfloat16),
    "scalars": [np.float32(0.25), jnp.float32(0.5)],
    "zero dimensions": [np.array(0.25), jnp.array(0.5)],
    "object": np.array([0.25, 0.5], object),
}


@pytest.mark.parametrize("values", KINDS.values(), ids=KINDS)
def test_every_kind_of_number_becomes_the_same_text(values):
    """Axes, points, `Config` made and as it is, names with options, files."""
    assert plain(values) == [0.25, 0.5] and {type(v) for v in plain(values)} == {float}
    space = Space.make({"lr": values, "seed": 1}, **SMALL)
    assert [c.algorithms for c in space.runs()] == [("fedavg(lr=0.25)",), ("fedavg(lr=0.5)",)]
    assert "lr = [\n    0.25,\n    0.5,\n]" in space.toml()
    points = Space.make([{"lr": v, "alpha": v} for v in values], seeds=1, **SMALL)
    assert [(c.lr, c.alpha) for c in points.runs()] == [((0.25,), 0.25), ((0.5,), 0.5)]
    raw = Config()
    object.__setattr__(raw, "lr", values)  # `Config(lr=values)`, which the tests' checker refuses
    for made in (Config.make(lr=values), Config.make(raw)):
        assert made.lr == (0.25, 0.5) and made.to_toml() == raw.to_toml()
    assert Config.make(alpha=values[0]).alpha == 0.25
    call = Call("fedavg", (), {"lr": values, "mu": values[1]})
    assert str(call) == "fedavg(lr=[0.25, 0.5], mu=0.5)"


@pytest.mark.parametrize("kind", [int, np.int8, np.uint32, np.int64, jnp.int32, np.float64])
def test_whole_numbers_and_names_of_every_kind(kind):
    space = Space.make({"clients": [kind(4), kind(5)], "seed": [kind(1)]}, lr=0.1, **NO_CLIENTS)
    assert [c.clients for c in space.runs()] == [4, 5]
    assert Config.make(rounds=kind(60)).rounds == 60
    names = Space.make({"algorithm": np.array(["fedavg", "scaffold"]), "seed": 1}, **SMALL)
    assert names.axes["algorithm"] == ["fedavg", "scaffold"]


NO_CLIENTS = {k: v for k, v in SMALL.items() if k != "clients"}


def test_many_seeds():
    assert Space.make({"lr": [0.1], "seed": np.int64(3)}, **SMALL).axes["seed"] == [0, 1, 2]
    for over, settings in (
        ({"seed": 10**9}, {}),
        ({"seed": np.int64(10**9)}, {}),
        ({"lr": [0.1]}, {"seeds": 10**9}),
    ):
        with pytest.raises(ValueError, match="1,000,000"):  # before they are listed
            Space.make(over, **SMALL, **settings)
    with pytest.raises(ValueError, match="seeds must be at most"):
        Config.make(seeds=10**7)
    with pytest.raises(ValueError, match="steps must be at most 2,147,483,647"):
        Config.make(steps=10**12)


def go(**options):
    params, key = jnp.zeros(3), jax.random.key(0)
    world = networks.Everyone(4)
    options = {"rounds": 4} | options
    f = run if "chunk" in options else simulate
    return f(FedAvg(lr=0.1), PROBLEM.clients(), world, params, key, **options)


ring = graphs.ring(4)
none, nobody = np.zeros(0), np.zeros((2, 0), int)
# Every public argument that is a count, by its name.
COUNTS = {
    "Everyone": ("n", lambda v: networks.Everyone(v)),
    "Uniform": ("n", lambda v: networks.Uniform(v, 2)),
    "Uniform.size": ("size", lambda v: networks.Uniform(8, v)),
    "Bernoulli": ("n", lambda v: networks.Bernoulli(v, 0.5)),
    "Bernoulli.slots": ("slots", lambda v: networks.Bernoulli(8, 0.5, slots=v)),
    "Cyclic": ("size", lambda v: networks.Cyclic(8, v)),
    "Weighted": ("size", lambda v: networks.Weighted(np.ones(8), v)),
    "markov": ("rounds", lambda v: networks.markov(8, 2, v, up=0.5, down=0.5)),
    "RandomMatching": ("n", lambda v: networks.RandomMatching(v)),
    "RandomOut": ("k", lambda v: networks.RandomOut(8, v)),
    "Quorum": ("f", lambda v: networks.Quorum(8, v)),
    "first": ("f", lambda v: networks.first(v, 8)),
    "alie_z": ("f", lambda v: networks.alie_z(10, v)),
    "graph": ("n", lambda v: networks.topology("ring", v)),
    **{f"graphs.{g}": ("n", lambda v, g=g: graphs.make(g, v)) for g in graphs.GRAPHS},
    **{f"graphs.{g}": ("n", lambda v, g=g: graphs.make(g, v)) for g in graphs.SCHEDULES},
    "degree": ("degree", lambda v: graphs.regular(8, v)),
    "k": ("k", lambda v: graphs.watts_strogatz(8, v)),
    "m": ("m", lambda v: graphs.barabasi_albert(8, v)),
    "rows": ("rows", lambda v: graphs.torus(16, rows=v)),
    "arrivals": ("buffer", lambda v: networks.arrivals(8, v, 5)),
    "arrivals.rounds": ("rounds", lambda v: networks.arrivals(8, 2, v)),
    "poisson": ("rounds", lambda v: networks.poisson(ring, v)),
    "gossip": ("rounds", lambda v: networks.gossip(ring, v)),
    "gossip.period": ("period", lambda v: networks.gossip(ring, 4, period=v)),
    "gossip.delay": ("delay", lambda v: networks.gossip(ring, 4, delay=(0, v))),
    "from_events": ("n", lambda v: networks.from_events(none, *nobody, v, rounds=2)),
    "from_messages": ("n", lambda v: networks.from_messages(none, none, *nobody, v, rounds=2)),
    "iid": ("n", lambda v: data.iid(40, v)),
    "iid.size": ("size", lambda v: data.iid(v, 2)),
    "dirichlet": ("n", lambda v: data.dirichlet(Y, v, 1.0)),
    "minimum": ("minimum", lambda v: data.dirichlet(Y, 4, 1.0, minimum=v)),
    "shards": ("per_client", lambda v: data.shards(Y, 4, v)),
    "labels_per_client": ("k", lambda v: data.labels_per_client(Y, 4, v)),
    "quantity": ("n", lambda v: data.quantity(40, v, sigma=1.0)),
    "generator": ("n", lambda v: data.load("two_moons", n=v)),
    "problem": ("n", lambda v: problems.quadratics(v)),
    "batch": ("batch", lambda v: PROBLEM.clients(batch=v)),
    "block": ("block", lambda v: PROBLEM.clients(block=v)),
    "rounds": ("rounds", lambda v: go(rounds=v)),
    "every": ("every", lambda v: go(every=v, evaluate=lambda s: s.params)),
    "start": ("start", lambda v: go(start=v)),
    "chunk": ("chunk", lambda v: go(chunk=v)),
    "estimate": (
        "rounds",
        lambda v: jaxfl.estimate(
            FedAvg(lr=0.1), PROBLEM.clients(), networks.Everyone(4), jnp.zeros(3), rounds=v,
            exact=False,
        ),
    ),
    "sweep": ("width", lambda v: jaxfl.plan({"lr": [0.1]}, width=v, **SMALL)),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_a_whole_number_of_any_library(name):
    """2.0 is refused by name as 2.5 is: nothing is cut, and nothing fails elsewhere."""
    what, call = COUNTS[name]
    for value in (2.5, 2.0, np.float32(2.0), "2", True, None):
        if value is None and name in ("rows", "graphs.torus", "graphs.grid", "sweep"):
            continue  # it is the default
        with pytest.raises(ValueError, match=rf"{what} must be a whole number, got .*`{what}=\d+`"):
            call(value)


@pytest.mark.parametrize("name", [k for k in COUNTS if k != "sweep"])
@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_counts_of_numpy_are_welcome(name, kind):
    value = {"rows": 2, "degree": 3, "problem": 250, "gossip": 200}.get(
        name, 8 if "graphs" in name else 4
    )
    COUNTS[name][1](kind(value))  # 250 as an int8 would be gone with the next product


def test_whole():
    assert [whole("n", v) for v in (3, np.int8(3), np.array(3), jnp.array(3))] == [3] * 4
    assert type(whole("n", np.int8(3))) is int
    for bad in (3.0, np.array([3]), "3", None, np.bool_(True), 1j, np.nan):
        with pytest.raises(ValueError, match="n must be a whole number"):
            whole("n", bad)


def test_records_keep_ints():
    assert networks.Uniform(np.int64(8), jnp.array(2)) == networks.Uniform(8, 2)
    assert weights.WEIGHTS["metropolis"](graphs.ring(np.int64(4))).shape == (4, 4)
    assert components.SGD() == components.SGD(0.0)
