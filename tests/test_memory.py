"""Memory in advance: exact parts exactly, the rest as XLA reports it, refusals with numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfl
from jaxfl import models, networks, spread
from jaxfl.algorithms import DSGD, FedAvg, Scaffold
from jaxfl.engine import memory
from jaxfl.engine.clients import Clients

N, KEY = 8, jax.random.key(0)
COHORT = networks.Uniform(N, 4)


def problem(block=0, hidden=64):
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(8 * N, 100)).astype("f4"), "y": np.arange(8 * N) % 10}
    model = models.mlp(100, 10, (hidden,))
    split = (np.arange(8 * N), np.arange(N) * 8, np.full(N, 8))
    clients = Clients.make(data, split, models.cross_entropy(model), batch=16, block=block)
    return clients, model.init(KEY)


def size(tree):
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def test_what_shapes_say_is_exact():
    """Data, state and history are the bytes of the arrays; a sweep has a state for every run."""
    clients, params = problem(block=2)
    graph = networks.topology("ring", N)
    options = {"rounds": 6, "every": 3, "evaluate": lambda state: jnp.zeros(5)}
    quick = partial(jaxfl.estimate, DSGD(lr=0.1), clients, graph, params, exact=False, **options)
    found = quick()
    run = jaxfl.simulate(DSGD(lr=0.1), clients, graph, params, KEY, **options)
    assert found.state == size(run.state) == N * size(params)
    assert found.history == size((run.history, run.evaluations))
    numbers = [a for a in jax.tree.leaves(graph) if isinstance(a, float)]
    assert found.data == size((clients, params, graph.w)) + 8 * len(numbers)
    assert found.block == 2 and not found.exact
    three = quick(runs=3)
    assert (three.state, three.history) == (3 * found.state, 3 * found.history)
    assert three.data == found.data
    assert 2 < three.activations / found.activations < 3.5


@pytest.mark.parametrize(
    "alg, network, block",
    [
        (FedAvg(lr=0.1, steps=3), COHORT, 2),
        (Scaffold(lr=0.1, steps=3), COHORT, 0),
        (DSGD(lr=0.1, steps=2), networks.topology("ring", N), 2),
    ],
    ids=["fedavg", "scaffold", "dsgd"],
)
def test_what_is_traced_is_near_what_xla_reports(alg, network, block):
    clients, params = problem(block, hidden=256)
    quick = jaxfl.estimate(alg, clients, network, params, rounds=10, exact=False)
    exact = jaxfl.estimate(alg, clients, network, params, rounds=10)
    assert exact.exact and quick.data == exact.data and quick.state == exact.state
    assert 0.75 < quick.total / exact.total < 1.3
    # what is not estimated must not hide what is
    assert exact.activations > exact.data + exact.state


def test_over_devices_a_state_is_shared():
    clients, params = problem()
    mesh = jax.make_mesh((8,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    graph = networks.topology("ring", N)
    alone = jaxfl.estimate(DSGD(lr=0.1), clients, graph, params, rounds=2, exact=False)
    many = spread(clients, mesh)
    shared = jaxfl.estimate(DSGD(lr=0.1), many, graph, params, rounds=2, exact=False)
    assert shared.data == alone.data and shared.state == alone.state // 8
    exact = jaxfl.estimate(DSGD(lr=0.1), many, graph, params, rounds=2)
    assert exact.total < alone.total / 2


def test_too_large_is_refused(monkeypatch):
    """Before anything is allocated, with the numbers and two ways out."""
    clients, params = problem()
    found = jaxfl.estimate(FedAvg(lr=0.1), clients, COHORT, params, rounds=2, exact=False)
    found.check()
    monkeypatch.setattr(memory, "limit", lambda: 50_000)
    little = jaxfl.estimate(FedAvg(lr=0.1), clients, COHORT, params, rounds=2, exact=False)
    assert "of 50 kB: data" in str(little) and "4 clients at once" in str(little)
    ways = r"(?s)the device has 50 kB.*block=1.*spread\(clients, mesh\).*host=True.*offload=True"
    with pytest.raises(MemoryError, match=ways):
        little.check()
    for how in (jaxfl.simulate, jaxfl.run):
        with pytest.raises(MemoryError, match=r"data 2\d\.\d kB, state \d\d\d kB.*alone"):
            how(Scaffold(lr=0.1), clients, COHORT, params, KEY, rounds=2)
    # inside a program there is nothing to refuse any more
    jax.eval_shape(
        lambda x: jaxfl.simulate(FedAvg(lr=0.1), clients, COHORT, x, KEY, rounds=2), params
    )


def test_limit_is_of_this_machine():
    assert 1e8 < memory.limit() < 1e14
