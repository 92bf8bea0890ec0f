"""Clients beyond the device: equal to those on it, read by rows, ahead, by one program."""

import threading
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import CLIENTS, COUNTS, KEY, PARTITION, X0, A, B, D, N, squares

from jaxfl import metrics, struct
from jaxfl.algorithms import DSGD, Ditto, FedAvg, FedBuff, FedProx, Scaffold
from jaxfl.engine.clients import Clients
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import strong
from jaxfl.engine.marks import Rows
from jaxfl.engine.simulate import _chunk, _scan, simulate
from jaxfl.networks import Attacked, Bernoulli, Cohort, Drop, SignFlip, Uniform, arrivals, topology
from jaxfl.networks.cohorts import _smallest
from jaxfl.runs.run import run
from jaxfl.types import Info

HOST = Clients.make({"a": A, "b": B}, PARTITION, squares, batch=3, host=True)
COHORT = Uniform(N, 3)
ROUNDS = 6


def go(alg, clients, network=COHORT, rounds=ROUNDS, **options):
    return run(alg, clients, network, X0, KEY, rounds=rounds, **{"chunk": 3} | options)


def close(a, b, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-14), a, b)


FEDAVG = FedAvg(lr=0.05, steps=2)
SCAFFOLD = Scaffold(lr=0.05, steps=2)
LIARS = np.arange(N) % 4 == 1
CASES = {
    "fedavg": (FEDAVG, COHORT, HOST, {}),
    "fedprox, empty slots, epochs": (
        FedProx(lr=0.05, epochs=1, weighting="count"), Bernoulli(N, 0.2, slots=3, unbiased=1.0),
        HOST, {},
    ),
    "fedbuff": (FedBuff(lr=0.05, steps=2, max_age=9), arrivals(N, 2, ROUNDS, seed=1), HOST, {}),
    "ditto, blocks": (Ditto(lr=0.05, steps=2), COHORT, HOST.replace(block=2), {}),
    "scaffold": (SCAFFOLD, COHORT, HOST, {}),
    "scaffold, offloaded, liars": (
        SCAFFOLD, Attacked(Drop(COHORT, 0.3), LIARS, SignFlip()), CLIENTS, {"offload": True},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    """Every case with its clients on the device."""
    ends = {}

    def get(name):
        if name not in ends:
            alg, network, clients, _ = CASES[name]
            here = CLIENTS.replace(block=clients.block)
            ends[name] = simulate(alg, here, network, X0, KEY, rounds=ROUNDS)
        return ends[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_equals_clients_on_the_device(name, whole):
    """State and history; per-client state is NumPy."""
    alg, network, clients, options = CASES[name]
    parts, want = go(alg, clients, network, **options), whole(name)
    close(want.state, parts.state)
    close(want.history[:-1], parts.history[:-1])
    np.testing.assert_allclose(parts.history.seconds, want.history.seconds, rtol=1e-6)
    for a in jax.tree.leaves(parts.state):
        assert isinstance(a, np.ndarray) == (a.shape == (N, D))


def test_resumes(whole):
    """A state on the host goes on, and is not changed by that; one from the device as well."""
    first = go(SCAFFOLD, HOST, rounds=3).state
    before = first.c_i.copy()
    for state in (first, jax.tree.map(jnp.asarray, first)):
        parts = go(SCAFFOLD, HOST, rounds=3, start=3, state=state)
        close(parts.state, whole("scaffold").state)
    np.testing.assert_array_equal(first.c_i, before)
    with pytest.raises(ValueError, match="state must have the shapes"):
        go(SCAFFOLD, HOST, state=first._replace(c_i=before[1:]))


def test_remainders_evaluations_and_callbacks(whole):
    """Chunks that do not divide; evaluations of the model; callbacks see all clients' state."""
    seen = []
    see = lambda t, part: seen.append((t, part.state.c_i.copy()))
    evaluate = lambda state: {"x": state.params}
    parts = go(SCAFFOLD, HOST, rounds=6, chunk=4, callbacks=[see], every=2, evaluate=evaluate)
    assert parts.history.loss.shape == (6,) and [t for t, _ in seen] == [4, 6]
    close(parts.state, whole("scaffold").state)
    close(parts.evaluations["x"][-1], parts.state.params)
    close(seen[-1][1], parts.state.c_i)


class Watched(np.ndarray):
    """Notes which rows are taken; `fails` at that many times."""

    taken: ClassVar[list] = []
    fails: ClassVar[int] = -1
    more: ClassVar[threading.Condition] = threading.Condition()

    def take(self, rows, *args: Any, **kw: Any):
        with self.more:
            self.taken.append(np.array(rows))
            self.more.notify_all()
        if len(self.taken) == self.fails:
            raise OSError("disk on fire")
        return np.asarray(self).take(rows, *args, **kw)


@pytest.fixture
def watched():
    Watched.taken, Watched.fails = [], -1
    return Clients.make({"a": A.view(Watched), "b": B}, PARTITION, squares, batch=3, host=True)


def test_reads_only_the_rows_of_the_cohorts(watched):
    """Those of one chunk at a time, each once, ascending, one chunk ahead; one program for all."""
    before = _chunk._cache_size()

    def wait(t, part):
        with Watched.more:
            assert Watched.more.wait_for(lambda: len(Watched.taken) >= min(t + 1, 4), 60)

    go(FEDAVG, watched, Uniform(N, 2), chunk=1, rounds=4, callbacks=[wait])
    order, start, count = PARTITION
    own = [set(order[s : s + c].tolist()) for s, c in zip(start, count)]
    assert len(Watched.taken) == 4
    for rows in Watched.taken:
        assert (np.diff(rows) > 0).all()
        who = [i for i in range(N) if own[i] <= set(rows.tolist())]
        assert len(who) == 2 and len(rows) == COUNTS[who].sum()
    assert _chunk._cache_size() == before + 1


def test_memory_mapped_arrays_stay_mapped(tmp_path, whole):
    np.save(tmp_path / "a.npy", A)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    clients = Clients.make({"a": mapped, "b": B}, PARTITION, squares, batch=3, host=True)
    assert clients.data.arrays["a"] is mapped
    held = clients.split(test=0.3)[1]
    assert held.data.arrays["a"] is mapped and held.host
    close(go(FEDAVG, clients).state, whole("fedavg").state)


def test_an_early_stop():
    stopped = go(FEDAVG, HOST, callbacks=[lambda t, part: t == 3])
    assert stopped.history.loss.shape == (3,)


def test_what_cannot_be_read(watched):
    """The reader's error comes to the caller, with rounds and cause; NaN with its row."""
    Watched.fails = 2
    with pytest.raises(RuntimeError, match="data of rounds 3 to 5 cannot be read: disk on fire"):
        go(FEDAVG, watched)
    bad = A.copy()
    bad[11, 2] = np.nan
    clients = Clients.make({"a": bad, "b": B}, PARTITION, squares, batch=3, host=True)
    with pytest.raises(ValueError, match=r"data\['a'\] holds NaN or inf, first in row 11"):
        go(FEDAVG, clients, Uniform(N, N))


def test_default_precision(whole):
    """Float64 files become float32 where JAX has no float64, in the reading thread too."""
    with jax.enable_x64(False):
        x = np.asarray(X0, np.float32)
        parts = run(FEDAVG, HOST, COHORT, x, KEY, rounds=ROUNDS, chunk=3).state.params
    assert parts.dtype == np.float32
    close(parts, whole("fedavg").state.params, rtol=1e-4)


@struct.dataclass
class Own:
    """A counter per client, treated well or badly."""

    kind: str = struct.field(pytree_node=False)
    needs: ClassVar[Needs] = Needs(Cohort)

    class State(NamedTuple):
        params: Any
        seen: Any  # [n]

    def init(self, params, clients, key):
        n = clients.n
        if self.kind == "pairs":
            return self.State(params, Rows(jnp.zeros(n + 1)))
        if self.kind == "data":
            return self.State(params, clients.each(lambda c, key: c.get(c.draw(key))["b"], key=key))
        if self.kind == "drawn":  # not looked at
            index = lambda c, key: c.draws(key, 9).index.sum().astype(float)
            return self.State(params, Rows(clients.each(index, key=key)))
        if self.kind == "unmarked":
            return self.State(params, jnp.zeros((n, 2)))
        return self.State(params, clients.rows(jnp.zeros(())))

    def round(self, state, clients, net, key):
        x, seen = state
        if self.kind == "each":
            x = x + clients.each(lambda c, key: c.count, key=key).sum()
        elif self.kind == "indices":
            x = x + clients[net.idx].each(lambda c, key: c.count, key=key).sum()
        elif self.kind == "cohort":
            x = x + clients[net].each(lambda c, key: c.count, key=key).sum()
        return self.State(x, seen + 1), Info(x.sum(), 0.0, 0.0, 0.0)


def test_what_needs_all_clients_is_refused():
    """A round sees its cohort's rows and no others, so that it cannot be silently wrong."""
    for kind in ("fine", "drawn", "cohort"):
        close(go(Own(kind), HOST).state, go(Own(kind), CLIENTS).state)
    for kind, message in {
        "each": "a round asks all clients",
        "indices": r"use `clients\[net\]`",
        "pairs": r"state\.seen of Own must have one row for each of \d+ clients",
        "unmarked": r"state\.seen must be marked as one row per client",
        "data": "`init` reads the clients' examples",
    }.items():
        with pytest.raises(ValueError, match=message):
            go(Own(kind), HOST)
    personal = lambda state: state.own.sum()
    with pytest.raises(ValueError, match=r"`evaluate` reads state\.own"):
        go(Ditto(lr=0.1), HOST, every=1, evaluate=personal)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"on the host.*use `run\(alg, clients, \.\.\.\)`"):
        simulate(FedAvg(lr=0.1), HOST, COHORT, X0, KEY, rounds=1)
    with pytest.raises(ValueError, match="on the host"):
        HOST.each(lambda c, key: c.count, key=KEY)
    with pytest.raises(ValueError, match="on the host"):
        HOST[jnp.arange(2)]
    with pytest.raises(ValueError, match="Graph nets have everybody in every round"):
        go(DSGD(lr=0.1), HOST, topology("ring", N))
    mesh = jax.make_mesh((4,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match="on the host"):
        HOST.spread(mesh)
    with pytest.raises(ValueError, match="spread over 4 devices"):
        go(FedAvg(lr=0.1), CLIENTS.spread(mesh), offload=True)
    held = metrics.HeldOut(None, HOST)
    with pytest.raises(ValueError, match="on the host"):
        go(FedAvg(lr=0.1), HOST, every=1, evaluate=lambda s: held.clients.each(_value, key=KEY))


def _value(client, key):
    return client.count


def test_a_million_clients_take_the_memory_of_a_thousand():
    """Beyond the arguments: the data, its index and O(n) scalars."""

    def own(n):
        shape = lambda *s, dtype=jnp.int32: jax.ShapeDtypeStruct(s, dtype)
        clients = CLIENTS.replace(
            data=CLIENTS.data._replace(
                arrays={"a": shape(4 * n, D, dtype=A.dtype), "b": shape(4 * n, dtype=A.dtype)},
                order=shape(4 * n),
            ),
            start=shape(n),
            count=shape(n),
            id=shape(n),
        )
        alg = strong(FedAvg(lr=0.1, steps=1), X0)
        rest = KEY, jnp.int32(0), alg.State(X0), None, None
        program = _scan.lower(alg, clients, Uniform(n, 10), *rest, rounds=2, every=2)
        memory = program.compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    assert own(1_000_000) < 1.1 * own(2_000)


def test_smallest_is_a_stable_sort():
    rank = jnp.asarray(np.random.default_rng(0).integers(0, 9, 100) / 4)
    for size in (1, 10, 24, 25, 100):
        np.testing.assert_array_equal(_smallest(rank, size), np.argsort(rank, stable=True)[:size])
