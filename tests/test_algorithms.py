"""Every row of the table against its oracle, and against the contract."""

import dataclasses
import functools
from functools import partial
from operator import attrgetter
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, QUICK
from harness import (
    CLIENTS,
    COUNTS,
    KEY,
    PARTITION,
    ROUNDS,
    ROWS,
    X0,
    A,
    B,
    D,
    N,
    Recorded,
    nobody,
    oracle_record,
    play,
    record_world,
    relabelled,
    row,
    step,
)
from oracles.problem import LeastSquares

from jaxfl import struct
from jaxfl.engine import comm, marks
from jaxfl.engine.clients import Clients
from jaxfl.engine.fields import strong
from jaxfl.engine.simulate import _chunk, _rounds, init, simulate
from jaxfl.networks import Events, Graph, Messages, Quorum

GROUPED_BY = "case"  # tests of a row share its recorded world and run
pytestmark = pytest.mark.filterwarnings("error")
every_case = pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.quick] * (c in QUICK)) for c in CASES], ids=str
)


@functools.cache
def world(case):
    """The recorded world of a case, with an empty slot and a client that never takes part."""
    tape = record_world(case.network)
    if not issubclass(tape.kind, Graph | Events | Messages):
        nets = tape.nets
        idx = jnp.where(nets.idx == N - 1, N, nets.idx).at[2].set(N)  # round 2: nobody
        weight = jnp.where(idx < N, nets.weight, 0)
        live = idx < N
        tape = tape.replace(
            nets=nets.replace(idx=idx, weight=weight, send=nets.send.replace(live=live))
        )
    return tape


@functools.cache
def base(case):
    """The run that most tests compare with."""
    return play(case.algorithm, world(case))


def close(a, b, tol=1e-12):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tol, atol=tol), a, b)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@every_case
def test_oracle(case):
    """Twenty rounds equal the plain NumPy oracle to 1e-10."""
    run, tape = base(case), world(case)
    init, record = oracle_record(run, tape)
    problem = LeastSquares(A, B, ROWS)
    x0 = np.asarray(X0)
    x0 = np.tile(x0, (N, 1)) if issubclass(tape.kind, Graph | Events | Messages) else x0
    expected = case.expected(problem, x0, record, init)
    for name in case.state:
        got, want = attrgetter(name)(run.state.state), expected[-1][name.split(".")[0]]
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10, err_msg=name)
    losses = [e["loss"] for e in expected]  # NaN of nobody
    np.testing.assert_allclose(run.history.loss, losses, rtol=1e-10, atol=1e-10)


@every_case
def test_hyperparameters_are_traced(case):
    """`vmap` over every traced field equals a loop, and other values do not recompile."""
    tape, alg = world(case), case.algorithm
    base(case)
    leaves, tree = jax.tree.flatten(alg)
    variants = [
        tree.unflatten([v * (0.9 if i == j else 1.0) for j, v in enumerate(leaves)])
        for i in range(len(leaves))
        if np.isfinite(leaves[i])
    ]
    stacked = jax.tree.map(
        lambda *a: jnp.stack([jnp.asarray(v, jnp.float64) for v in a]), *variants
    )
    mapped = jax.vmap(lambda alg: play(alg, tape).state.params)(stacked)
    before = _chunk._cache_size()
    for i, variant in enumerate(variants):
        close(jax.tree.map(lambda a, i=i: a[i], mapped), play(variant, tape).state.params, 1e-10)
    assert _chunk._cache_size() == before


@every_case
def test_state_is_stable(case):
    """Structure, shapes and dtypes survive a round in float64, float32 and bfloat16."""
    alg, net = case.algorithm, row(world(case), 0)
    for dtype in (jnp.float64, jnp.float32, jnp.bfloat16):
        x = X0.astype(dtype)
        state = marks.plain(jax.eval_shape(strong(alg, x).init, x, CLIENTS, KEY))

        def end(x):
            state = play(alg, world(case), params=x, rounds=2).state.state
            return state, state.params

        after, params = jax.eval_shape(end, x)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
        assert params.dtype == dtype
    with jax.enable_x64(False):
        narrow = lambda t: jax.tree.map(
            lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, t
        )
        alg32 = jax.tree.map(lambda a: jnp.float32(a), alg)
        clients, net, x = narrow(CLIENTS), narrow(net), narrow(X0)
        marked = jax.eval_shape(alg32.init, x, clients, KEY)

        def after(marked, net):
            return alg32.round(marks.pick(marked, net), clients, net, KEY)

        state = jax.eval_shape(marks.pick, marked, net)
        new, info = jax.eval_shape(after, marked, net)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
            assert a.dtype == b.dtype, "a float32 state must stay float32 without the engine's cast"
        assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(info[:4]))


@every_case
def test_parameter_trees_agree(case):
    """A dict and a list of leaves give the numbers of the bare array."""
    trees = {"b": X0[:2].reshape(2, 1), "c": [X0[2:3], X0[3:]]}
    got = play(case.algorithm, world(case), params=trees).state.params
    rows = lambda a: a.reshape(*a.shape[: a.ndim - t], -1)
    want = base(case).state.params
    t = 1
    if want.ndim == 2:
        got = jnp.concatenate([a.reshape(N, -1) for a in jax.tree.leaves(got)], 1)
    else:
        got = jnp.concatenate([jnp.ravel(a) for a in jax.tree.leaves(got)])
    close(rows(got), rows(want))


@every_case
def test_relabelling_permutes(case):
    """Clients in another order give the same numbers in that order, minibatches included."""
    p = np.random.default_rng(3).permutation(N)
    tape, clients = relabelled(world(case), CLIENTS, p)
    got, want = play(case.algorithm, tape, clients=clients).state.state, base(case).state.state
    stacked = lambda a: a.ndim >= 1 and a.shape[0] == N
    close(got, jax.tree.map(lambda a: a[p] if stacked(a) else a, want))


@every_case
def test_resumed_and_repeated(case):
    """The same key gives the same run, and half and half is the whole, bit for bit."""
    tape, run = world(case), base(case)
    same(play(case.algorithm, tape).state, run.state)
    half = play(case.algorithm, tape, rounds=ROUNDS // 2)
    rest = play(case.algorithm, tape, rounds=ROUNDS // 2, start=ROUNDS // 2, state=half.state)
    same(rest.state, run.state)
    same(np.concatenate([half.history.loss, rest.history.loss]), run.history.loss)


@every_case
def test_blocks_and_devices(case):
    """Blocks of clients, and clients spread over four devices, equal the plain run to rounding."""
    tape, run = world(case), base(case)
    close(play(case.algorithm, tape, clients=CLIENTS.replace(block=3)).state.state, run.state.state)
    mesh = jax.make_mesh((4,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("clients"))
    whole = jax.NamedSharding(mesh, jax.P())
    spread = lambda t: jax.tree.map(
        lambda a: jax.device_put(a, split if a.ndim and a.shape[0] == N else whole), t
    )
    log = not issubclass(tape.kind, Events)
    start = init(Recorded(jax.tree.map(jnp.float64, case.algorithm), log), CLIENTS, X0, KEY)
    start = marks.plain(start)
    sharded = simulate(
        Recorded(case.algorithm, log),
        spread(CLIENTS),
        jax.tree.map(lambda a: jax.device_put(a, whole), tape),
        jax.device_put(X0, whole),
        jax.device_put(KEY, whole),
        rounds=ROUNDS,
        state=start.replace(state=spread(start.state), init=jax.device_put(start.init, whole)),
    )
    close(sharded.state.state, run.state.state, 1e-11)


@every_case
def test_accelerators(case, monkeypatch):
    """What is chosen off the CPU gives the same, and is a program for GPUs and for TPUs."""
    tape, want = world(case), base(case).state.state.params
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def program(x):  # by no function that the CPU's choices are cached for
        alg = strong(case.algorithm, x)
        given = jnp.int32(0), init(alg, CLIENTS, x, KEY), None, None
        state = _rounds(alg, CLIENTS, tape, KEY, *given, rounds=ROUNDS, every=ROUNDS).state
        return marks.plain(state).params

    traced = jax.jit(program).trace(X0)
    close(traced.lower().compile()(X0), want)
    for platform in ("cuda", "tpu"):
        traced.lower(lowering_platforms=(platform,))


@pytest.mark.parametrize("case", [c for c in CASES if c.still], ids=str)
def test_outsiders_keep_their_state(case):
    """A client that takes no part keeps its state bit for bit."""
    tape, run = world(case), base(case).state.state
    first = play(case.algorithm, tape, rounds=ROUNDS // 2).state.state
    for name in case.still:
        if issubclass(tape.kind, Graph):
            # one round from the state at half time
            state = jax.tree.map(jnp.asarray, first)
            net = row(tape, ROUNDS // 2)
            alg = jax.tree.map(jnp.float64, case.algorithm)
            new, _ = jax.jit(partial(step, alg))(state, net)
            away = ~np.asarray(net.active)
            assert away.any(), "the case must have someone absent"
            same(getattr(new, name)[away], getattr(state, name)[away])
        else:
            begin = marks.plain(case.algorithm.init(X0, CLIENTS, KEY))
            same(getattr(run, name)[N - 1], getattr(begin, name)[N - 1])


@pytest.mark.parametrize("case", [c for c in CASES if not c.algorithm.needs.lossless], ids=str)
def test_empty_round_moves_nothing(case):
    """A round in which nobody takes part changes nothing but what the row says."""
    begin = play(case.algorithm, world(case), rounds=ROUNDS // 2).state.state
    net = nobody(row(world(case), ROUNDS // 2))
    alg = jax.tree.map(jnp.float64, case.algorithm)
    end, _ = jax.jit(partial(step, alg))(begin, net)
    moved = {
        name
        for name, a, b in zip(begin._fields, begin, end, strict=True)
        if not jax.tree.all(jax.tree.map(np.array_equal, a, b))
    }
    assert moved == set(case.moves)


@every_case
def test_everything_is_sent(case):
    """Where all messages are lost on the way, a client's examples change its own rows only."""
    begin = play(case.algorithm, world(case), rounds=ROUNDS // 2).state.state
    sizes = []

    @struct.dataclass
    class Silent:
        local: ClassVar[bool] = True

        def __call__(self, message, send, key):
            sizes.append(sum(a[0].size for a in jax.tree.leaves(message)))
            return jax.tree.map(jnp.zeros_like, message)

    net = row(world(case), ROUNDS // 2)
    everybody = jnp.ones_like(net.send.byzantine)
    net = net.replace(send=net.send.replace(byzantine=everybody, adversary=Silent()))
    alg = jax.tree.map(jnp.float64, case.algorithm)
    who = int(np.ravel(net.idx)[0]) if hasattr(net, "idx") else 1
    other = B.copy()
    other[ROWS[who]] += 1.0
    arrays = {**CLIENTS.data.arrays, "b": jnp.asarray(other)}
    changed = CLIENTS.replace(data=CLIENTS.data._replace(arrays=arrays))
    program = jax.jit(partial(step, alg))
    (one, _), (two, _) = (program(begin, net, clients) for clients in (CLIENTS, changed))
    size = case.up if case.sent is None else case.sent
    assert sum(sizes) == (size(D) if callable(size) else size * D)
    rest = np.arange(N) != who
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        own = a.ndim > 0 and a.shape[0] == N
        same(*((a[rest], b[rest]) if own else (a, b)))


class Evaluations(LeastSquares):
    """Counts the gradients that an oracle evaluates."""

    count = 0

    def grad(self, x, index, weight):
        self.count += 1
        return super().grad(x, index, weight)


class Marked(list):
    """Rounds for an oracle; how many gradients were evaluated by the end of each."""

    def __init__(self, rounds, problem):
        super().__init__(rounds)
        self.problem, self.marks = problem, []

    def __iter__(self):
        for entry in super().__iter__():
            yield entry
            self.marks.append(self.problem.count)


@every_case
def test_gradients_are_those_evaluated(case):
    """As many as the oracle evaluates, client by client and round by round, `init` included."""
    run, tape = base(case), world(case)
    init, record = oracle_record(run, tape)
    problem = Evaluations(A, B, ROWS)
    record, x0 = Marked(record, problem), np.asarray(X0)
    x0 = np.tile(x0, (N, 1)) if issubclass(tape.kind, Graph | Events | Messages) else x0
    case.expected(problem, x0, record, init)
    np.testing.assert_allclose(run.history.totals()["grads"], record.marks, rtol=1e-12)


def sent_and_heard(case, net):
    """Messages of all that leave, also those that are lost, and of all that arrive."""
    if isinstance(net, Graph):
        while hasattr(network := case.network, "network"):
            case = dataclasses.replace(case, network=network.network)
        if isinstance(network, Quorum):
            every = np.ones((N, N))  # each sends to all, and waits for some
        elif network.static:
            every = np.asarray(comm.to_dense(network.w))
        else:
            every = np.asarray(comm.to_dense(net.w))
        off = ~np.eye(N, dtype=bool)
        senders = ((every != 0) & off)[:, np.asarray(net.active)]
        return senders.sum(), ((np.asarray(comm.to_dense(net.w)) != 0) & off).sum()
    if isinstance(net, Events):
        return 2 * (np.asarray(net.i) < N).sum(), 2 * (np.asarray(net.i) < N).sum()
    if isinstance(net, Messages):
        return np.asarray(net.sent).sum(), (np.asarray(net.i) < N).sum()
    return (np.asarray(net.idx) < N).sum(), (np.asarray(net.idx) < N).sum()


@every_case
def test_bits(case):
    """What is sent is paid for up, also if it is lost; what arrives is paid for down."""
    tape, history = world(case), base(case).history
    down = case.up if case.down is None else case.down
    size = [[64 * (each(D) if callable(each) else each * D)] for each in (case.up, down)]  # float64
    counted = np.array([sent_and_heard(case, row(tape, t)) for t in range(ROUNDS)]).T
    got = [np.asarray(a) * np.asarray(history.clients) for a in (history.up, history.down)]
    np.testing.assert_allclose(got, size * counted, rtol=1e-6)
    total = history.totals()["megabytes"][-1]
    np.testing.assert_allclose(total, (size * counted).sum() / 8e6, rtol=1e-6)


def test_clients_of_the_table_are_unequal():
    assert len(set(COUNTS)) > 4 and CLIENTS.n == N
    assert isinstance(CLIENTS, Clients) and len(PARTITION[0]) == COUNTS.sum()
