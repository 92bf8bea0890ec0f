"""What is chosen for speed equals what is plain, to the rounding of float64."""

import os
import re
import runpy
import subprocess
import sys
from functools import partial
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxfl import Clients, models, networks, spread
from jaxfl.algorithms import DSGD, FedAvg, GossipLearning, Scaffold
from jaxfl.components import solvers as local
from jaxfl.components.compressors import _magnitudes, _threshold
from jaxfl.components.oracles import _clip
from jaxfl.components.solvers import SGD, Clipped, Momentum, train
from jaxfl.engine import client, clients, comm, mixing
from jaxfl.engine import examples as examples_file
from jaxfl.engine.client import Client, Sample
from jaxfl.engine.examples import _paged
from jaxfl.engine.simulate import simulate
from jaxfl.models import conv, dense
from jaxfl.runs.run import run

KEY = jax.random.key(0)


def close(got, want, tol=1e-12):
    """To rounding of the leaf's largest number."""

    def one(a, b):
        scale = np.abs(b).max(initial=0, where=np.isfinite(b)) if np.size(b) else 0
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol * scale)

    jax.tree.map(one, got, want)


def host(f, *args):
    """One program, results on the host."""
    return jax.device_get(jax.jit(f)(*args))


# Whole runs ---------------------------------------------------------------------------------------

N, S, D, ROUNDS = 40, 40, 3, 4  # nodes; clients of a round's cohort, from 2 N
RNG = np.random.default_rng(0)
COUNT = RNG.integers(1, 5, 2 * N)
ORDER = RNG.permutation(COUNT.sum())
DATA = {"x": RNG.normal(size=(COUNT.sum(), D)), "y": RNG.normal(size=COUNT.sum())}
RING = networks.topology("ring", N, weights="lazy")
KINDS = {
    "dense": (DSGD(lr=0.05), RING.replace(w=comm.Dense(comm.to_dense(RING.w)))),
    "near": (DSGD(lr=0.05), RING.replace(w=comm.to_near(RING.w))),
    "shifts": (DSGD(lr=0.05), RING),
    "cohort": (Scaffold(lr=0.05, steps=1), networks.Uniform(2 * N, S)),
}
BLOCKS = (N, 0, 1, 8, 16)  # all at once, automatic, one client, a divisor, filled up
CHUNKS = (0, 2, 3)  # `simulate`, and `run` in chunks that divide the rounds or do not
DEVICES = (1, 8)
# A pairwise cover: every two levels of any two columns meet in a row. The first is the plain one.
COVER = [
    (block, kind, CHUNKS[(i + j) % 3], DEVICES[(i + j) % 2])
    for i, block in enumerate(BLOCKS)
    for j, kind in enumerate(KINDS)
]


def test_the_cover_is_pairwise():
    for a, b in combinations(zip(*COVER), 2):
        assert {*product(a, b)} == {*zip(a, b)}
    assert isinstance(RING.w, comm.Shifts) and COVER[0] == (N, "dense", 0, 1)


def loss(params, examples, key):
    return jnp.square(examples["x"] @ params - examples["y"])


def go(block, kind, chunk, devices):
    alg, network = KINDS[kind]
    n = 2 * N if kind == "cohort" else N
    partition = ORDER, (np.cumsum(COUNT) - COUNT)[:n], COUNT[:n]
    world = Clients.make(DATA, partition, loss, batch=2, block=block), network
    if devices > 1:
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((devices,), ("clients",), axis_types=auto)
        world = spread(world[0], mesh), network if kind == "cohort" else spread(network, mesh)
    how = partial(run, chunk=chunk) if chunk else simulate
    return jax.device_get(how(alg, *world, np.ones(D), KEY, rounds=ROUNDS))


@pytest.fixture(scope="module")
def plain():
    return {kind: go(N, kind, 0, 1) for kind in ("dense", "cohort")}


@pytest.mark.parametrize("block, kind, chunk, devices", COVER[1:])
def test_runs(monkeypatch, plain, block, kind, chunk, devices):
    """Parameters, other state and history."""
    monkeypatch.setattr(clients, "_CPU", (0, 160))  # a few of these tiny clients at once
    close(go(block, kind, chunk, devices), plain["cohort" if kind == "cohort" else "dense"], 1e-11)


# Mixing by a full matrix --------------------------------------------------------------------------

M, HUGE = 5, 1e308  # receivers, senders


def cases():
    """Weights with zeros `[cases, M, M]`, rows `[cases, M, 4]`, by name."""
    rng = np.random.default_rng(1)
    out = {}

    def add(name, *bad, only=None):
        """Rows `bad`, each `(row, column, value)`; `only` one receiver hears the first."""
        w = rng.random((M, M)) * (rng.random((M, M)) < 0.6) + 0.1 * np.eye(M)
        x = rng.normal(size=(M, 4))
        for row, column, value in bad:
            x[row, column] = value
        if only is not None:
            w[:, bad[0][0]] = np.where(np.arange(M) == only, 0.3, 0)
        out[name] = w, x

    add("finite")
    for row, value in product(range(M), (np.nan, np.inf, -np.inf)):
        add(f"{value} in {row}", (row, row % 4, value))
        add(f"{value} in {row}, nobody hears it", (row, row % 4, value), only=M)
    for only in (0, 1, M - 1):
        add(f"only {only} hears a NaN", (2, 1, np.nan), only=only)
        add(f"only {only} hears an inf", (0, 3, np.inf), only=only)
    add("inf - inf", (1, 2, np.inf), (3, 2, -np.inf))
    add("inf - inf in one sum of a row", (1, 0, np.inf), (1, 1, -np.inf))
    add("NaN everywhere", *((row, 0, np.nan) for row in range(M)))
    add("huge", *((row, column, HUGE) for row in range(M) for column in range(2)))
    add("huge beside a NaN", *((row, 0, HUGE) for row in range(M)), (4, 1, np.nan), only=3)
    w, x = (a.copy() for a in out["huge"])
    out["one sum is too large"] = np.where(np.arange(M)[:, None] == 0, 3.0, 0.1 * np.eye(M)), x
    out["finite, whose sum of the first receiver overflows"] = np.eye(M), x
    return out


CASES = cases()
W, X = (np.stack(a) for a in zip(*CASES.values()))
FINITE = np.isfinite(X)
TAINTED = ((W != 0) & ~FINITE.all(2)[:, None]).any(2)


def by_numpy(w, x):
    """Zero weights ignore their row; any other on a non-finite row makes the receiver NaN."""
    y = np.full((len(w), x.shape[1]), np.nan)
    for i, weights in enumerate(w):
        heard = weights != 0
        if np.isfinite(x[heard]).all():
            with np.errstate(over="ignore"):
                y[i] = weights[heard] @ x[heard]
    return y


@pytest.fixture(scope="module")
def products():
    """Every case alone, then all of them as one batch; a server's vector is the first row."""
    leaf = lambda w, x: comm.mix(comm.Dense(w), {"x": x.reshape(M, 2, 2)})["x"].reshape(M, 4)
    first = lambda w, x: comm.mix(w[0], x)

    def program(w, x):
        out = {}
        for name, f in (("matrix", mixing._matmul), ("mix", leaf), ("vector", first)):
            alone = jax.lax.map(lambda at, f=f: f(*at), (w, x))
            out[name] = alone, jax.vmap(f)(w, x)
        shared = jax.vmap(mixing._matmul, (None, 0))(w[0], x)
        narrow = jax.vmap(mixing._matmul)(w.astype(jnp.float32), jnp.clip(x, -3, 3).astype("f4"))
        return out, shared, narrow

    return host(program, W, X)


@pytest.mark.parametrize("name", CASES)
def test_product_with_weights_of_0(products, name):
    i = [*CASES].index(name)
    want = by_numpy(W[i], X[i])
    for kind, results in products[0].items():
        for got in results:
            close(got[i], want[0] if kind == "vector" else want, 1e-14)
    close(products[1][i], by_numpy(W[0], X[i]), 1e-14)
    np.testing.assert_allclose(
        products[2][i], by_numpy(W[i], np.clip(X[i], -3, 3)), rtol=1e-5, atol=1e-5
    )


def test_cases_are_what_they_are_called():
    of = lambda name: TAINTED[[*CASES].index(name)]
    assert not of("finite").any() and not of("huge").any() and of("NaN everywhere").all()
    assert of("only 0 hears a NaN").tolist() == [True] + [False] * 4
    assert not of("nan in 0, nobody hears it").any()
    assert np.isinf(by_numpy(*CASES["one sum is too large"])[0, :2]).all()
    assert 5 < TAINTED.any(1).sum() < len(CASES) - 5


def masked(w, x):
    """What the fast product stands for."""
    finite = jnp.isfinite(x)
    tainted = ((w != 0) & ~finite.all(1)[None]).any(1)
    return jnp.where(tainted[:, None], jnp.nan, w @ jnp.where(finite, x, 0))


@pytest.mark.parametrize("tangent", ["finite", "NaN"])
def test_derivatives_of_the_product(tangent):
    """Those of the masked product; also NaN tangents of NaN numbers, and NaN from NaN receivers."""
    rng = np.random.default_rng(2)
    calm = ~(X == HUGE).any((1, 2))
    w, x = W[calm], X[calm]
    dw, dx, pull = (rng.normal(size=a.shape) for a in (w, x, x))
    if tangent == "NaN":
        dx = np.where(np.isfinite(x), dx, np.nan)
        pull = np.where(TAINTED[calm][:, :, None], np.nan, pull)

    def both(f, w, x, dw, dx, pull):
        (by_w, by_x), of = jax.vjp(f, w, x)[1](pull), jax.jvp(f, (w, x), (dw, dx))[1]
        return of, by_w, by_x

    def server(f, w, x, dw, dx, pull):
        return both(lambda w, x: f(w[None], x)[0], w[0], x, dw[0], dx, pull[0])

    def program(*args):
        alone = lambda f: jax.lax.map(lambda a: (both(f, *a), server(f, *a)), args)
        batch = jax.vmap(lambda *a: (both(mixing._matmul, *a), server(mixing._matmul, *a)))(*args)
        return alone(masked), alone(mixing._matmul), batch

    want, *got = host(program, w, x, dw, dx, pull)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(want))
    for results in got:
        close(results, want, 1e-13)


# Circulant weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("mine", [False, True])
def test_a_gather_rolls(monkeypatch, mine):
    """One CPU gathers, several roll: the same bits, gradients, and deaf to NaN with weight 0."""
    n, offsets, values = 7, (0, 1, -2, 10, 2), np.array([0.4, 0.3, 0.2, 0.1, 0.0])
    rng = np.random.default_rng(3)
    x, own, pull = rng.normal(size=(3, n, 2, 2))
    sent = x.copy()
    sent[5, 0] = np.nan  # also heard, by those for whom the offset of weight 0 is not its own
    matrix = sum(v * np.roll(np.eye(n), s, 1) for v, s in zip(values, offsets))
    deaf = matrix[:, 5] == 0
    assert deaf[3]  # hears it with weight 0 only

    def program(values, sent, x, own, pull):
        mix = lambda values, x, own: comm.mix(comm.Shifts(values, offsets, n), x, own)
        mine_ = own if mine else None
        return mix(values, sent, mine_), jax.vjp(lambda v, x: mix(v, x, mine_), values, x)[1](pull)

    out = {}
    for devices in (1, 8):
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        fresh = lambda *a: program(*a)
        assert ("gather" in str(jax.make_jaxpr(fresh)(values, sent, x, own, pull))) == (devices < 2)
        out[devices] = host(fresh, values, sent, x, own, pull)
    jax.tree.map(np.testing.assert_array_equal, out[1], out[8])
    mixed, (_, by_x) = out[1]
    off = matrix * (1 - np.eye(n)) if mine else matrix
    want = np.tensordot(off, np.nan_to_num(sent), 1)
    want += np.diag(matrix)[:, None, None] * own if mine else 0
    heard = off[:, 5] != 0
    assert np.isnan(mixed[heard, 0]).all() and (~heard).sum() >= 3
    close(mixed[~heard], want[~heard], 1e-15)
    close(by_x, np.tensordot(off.T, pull, 1), 1e-15)


# Blocks of columns --------------------------------------------------------------------------------


@pytest.fixture
def one_cpu(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def in_blocks(f, *args):
    """Whether a program mixes by blocks: only they write slices."""
    return "dynamic_update_slice" in str(jax.make_jaxpr(lambda *a: f(*a))(*args))


def test_large_stacked_models_are_mixed_by_blocks(monkeypatch, one_cpu):
    """On one CPU, in float32 or wider, where a block holds enough of a row but not all of it."""

    def asked(n, d, dtype: Any = np.float32):
        w = comm.Near(*(jax.ShapeDtypeStruct((n, 3), t) for t in (np.int32, np.float32, np.int32)))
        return in_blocks(comm.mix, w, jax.ShapeDtypeStruct((n, d), dtype))

    assert asked(1024, 100_000) and asked(1024, 100_000, np.float64) and asked(8, 10_000_000)
    assert not asked(64, 4810) and not asked(1024, 1000) and not asked(1_000_000, 100)
    assert not asked(1024, 100_000, jnp.bfloat16)
    w = comm.Shifts(jnp.full(3, 1 / 3), (0, 1, -1), 1024)
    x = jax.ShapeDtypeStruct((1024, 100_000), np.float32)
    assert in_blocks(partial(comm.mix, w), x)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not asked(1024, 100_000)


@pytest.mark.parametrize("form", ["near", "scan", "shifts"])
@pytest.mark.parametrize("mine", [False, True])
def test_blocks_of_columns_are_the_whole(monkeypatch, one_cpu, form, mine):
    """With derivatives, over sweeps of weights and of models, beside NaN, not only whole blocks."""
    n, offsets = 7, (0, 1, -2, 3)
    rng = np.random.default_rng(8)
    shapes = {"a": (n, 5, 7), "b": (n, 3), "c": (n, 32)}  # with a rest, below a block, without one
    draw = lambda: {k: rng.normal(size=shape) for k, shape in shapes.items()}
    x, own, dx, pull = (draw() for _ in range(4))
    x["a"][5, 0, 0] = np.nan
    none = np.array([[0.4, 0.3, 0.1, 0.2], [0.1, 0.5, 0.3, 0.2]])  # no weight of 0, no mask
    some = none * [[1, 1, 0, 1], [1, 1, 1, 1]]
    several = jax.tree.map(lambda a: np.stack([a, a + 1]), x)
    if form == "scan":
        monkeypatch.setattr(mixing, "_UNROLL", 1)

    def mix(values, x):
        w = comm.Shifts(values, offsets, n)
        return comm.mix(w if form == "shifts" else comm.to_near(w), x, own if mine else None)

    def program(values, x, several):
        y, pullback = jax.vjp(mix, values[0], x)
        return (
            y,
            pullback(pull),
            jax.jvp(mix, (values[0], x), (values[1], dx))[1],
            jax.vmap(mix, (0, None))(values, x),
            jax.vmap(mix, (None, 0))(values[0], several),
            jax.vmap(mix)(values, several),
        )

    def both():
        f = jax.jit(lambda *args: program(*args))
        return jax.device_get([f(values, x, several) for values in (none, some)])

    given = none, x, several
    assert not in_blocks(program, *given)
    want = both()
    monkeypatch.setattr(mixing, "_CACHED", 0)
    monkeypatch.setattr(mixing, "_PART", 64)
    monkeypatch.setattr(mixing, "_BLOCK", n * 128)  # 16 columns of float64
    assert in_blocks(program, *given)
    got = both()
    close(got, want, 1e-14)
    deaf, heard = (np.isnan(y["a"]).any((1, 2)).sum() for y in (want[1][0], want[0][0]))
    assert 0 < deaf < heard


# Clipping -----------------------------------------------------------------------------------------

SPECIAL = np.array([1.5, -0.0, 0.0, 3e-308, -np.inf, np.nan, 1e300])  # XLA flushes denormals
NARROW = np.array([1.5, -0.0, 2e-38, 3e38], np.float32)


def bits(a):
    return np.asarray(a).view(f"u{np.asarray(a).itemsize}")


def test_without_a_bound_no_bit_changes():
    g = {"a": SPECIAL, "b": NARROW, "c": np.array([0.1, -3e38], jnp.bfloat16)}
    two = jax.tree.map(lambda a: np.stack([a, a]), g)
    clips = np.array([np.inf, 1.0])

    def program(g, two, bound, clips):
        return (
            _clip(g, bound),
            jax.tree.map(lambda a: a[0], jax.vmap(_clip, (0, None))(two, bound)),
            jax.tree.map(lambda a: a[0], jax.vmap(_clip, (None, 0))(g, clips)),
        )

    for got in host(program, g, two, np.inf, clips):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), got, g)


def test_clipping_is_the_formula_over_clients_and_sweeps():
    """Also by derivatives, of the gradient and of a finite bound."""
    rng = np.random.default_rng(4)
    g = {"a": rng.normal(size=(3, 4, 2)), "b": rng.normal(size=3)}
    clips = np.array([np.inf, 1.0, 0.3, 50.0])
    wave = lambda g: jnp.sin(g["a"]).sum() + jnp.sin(g["b"])

    def formula(g, bound):
        bound = jnp.minimum(bound, 1e9)  # inf times the derivative 0 of `minimum` is NaN
        scale = jnp.minimum(1, bound / jnp.sqrt(jnp.square(g["a"]).sum() + g["b"] ** 2))
        return {k: a * scale for k, a in g.items()}

    def all_of(f, g, bound):
        y, (by_g, by_bound) = jax.value_and_grad(lambda *a: wave(f(*a)), (0, 1))(g, bound)
        return f(g, bound), y, by_g, by_bound

    def program(g, clips):
        ask = partial(all_of, _clip)
        over = lambda f: jax.vmap(jax.vmap(f, (0, None)), (None, 0))
        total = lambda clips: over(lambda g, c: wave(_clip(g, c)))(g, clips).sum()
        alone = jax.lax.map(
            lambda c: jax.lax.map(lambda g: (ask(g, c), all_of(formula, g, c)), g), clips
        )
        return *alone, over(ask)(g, clips), jax.grad(total)(clips)

    alone, want, swept, by_clips = host(program, g, clips)
    close(alone, want, 1e-14)
    close(swept, want, 1e-14)
    close(by_clips, want[3].sum(1), 1e-14)
    assert (want[3][1:3] != 0).all() and (want[3][3] == 0).all()


def test_the_norm_is_computed_only_with_a_bound():
    """Not even as a branch: compilers for GPUs turn one so cheap into a select of both."""
    g = {"a": jnp.ones((5, 3)), "b": jnp.ones(5)}

    def text(solver):
        return str(jax.make_jaxpr(lambda g: solver.step(g, g, 0.1, solver.init(g)))(g))

    for solver in (SGD(), Momentum()):
        plain, clipped = text(solver), text(Clipped(solver, np.inf))
        assert "reduce_sum" in clipped and not re.search("reduce_sum|cond", plain)


# Orders -------------------------------------------------------------------------------------------


def epochs(largest, counts, times):
    """Places `[clients, times, steps * 4]` of clients with so many examples, and their weights."""

    def program(key, counts):
        one = lambda count: Client(
            None, 0, count, 0, loss=loss, batch=4, largest=largest, augment=loss, precision=""
        ).epochs(key, times)
        xi = jax.vmap(one)(counts)
        return xi.index, xi.weight

    counts = np.array(counts, np.int32)
    return (a.reshape(len(counts), times, -1) for a in host(program, KEY, counts))


@pytest.fixture
def switches(monkeypatch):
    """Examples are counted up to 4, sorted with their place up to 8, and by arguments beyond."""
    monkeypatch.setattr(client, "_RANKED", 4)
    monkeypatch.setattr(client, "_PACKED", 8)


@pytest.mark.parametrize("largest", [1, 3, 4, 5, 8, 9, 13])
def test_epochs_are_permutations(switches, largest):
    counts = (1, largest // 2 + 1, largest)
    for count, index, weight in zip(counts, *epochs(largest, counts, 30)):
        width = largest if largest < 4 else -(-largest // 4) * 4
        assert index.dtype == np.int32 and index.shape[1] == width
        assert (weight == (np.arange(index.shape[1]) < count)).all()
        assert (np.sort(index[:, :count]) == np.arange(count)).all()
        assert (index[:, count:] >= count).all()  # padding last
        assert count < 4 or len(np.unique(index[:, :count], axis=0)) > 8


@pytest.mark.parametrize("largest", [4, 8, 9])
def test_orders_are_uniform(switches, largest):
    """All 24 of four examples, alone or beside padding, within 5 standard errors of chi-square."""
    (index,), _ = epochs(largest, [4], 4800)
    orders, counts = np.unique(index[:, :4], axis=0, return_counts=True)
    assert {*map(tuple, orders)} == {*permutations(range(4))}
    chi = (np.square(counts - 200) / 200).sum()
    assert abs(chi - 23) <= 5 * np.sqrt(2 * 23)


@pytest.mark.parametrize("largest", [31, 32, 33, 64, 100])
def test_ranks_counted_in_pieces_are_a_sort(largest):
    """Of numbers whose order is their rank: what `_order` returns is where each of them goes."""
    count = largest - 3
    same = lambda *examples: examples
    client = Client(None, 0, jnp.int32(count), 0, same, 4, largest, same, "float32")
    order = host(lambda key: client._order(key), KEY)
    place = np.arange(largest, dtype=np.uint32)
    u = np.asarray(jax.random.bits(KEY, (largest,), jnp.uint32))
    u = np.where(place < count, u, ~np.uint32(0)) & ~np.uint32(1023) | place
    np.testing.assert_array_equal(order, np.argsort(np.argsort(u)))


# Local steps --------------------------------------------------------------------------------------


def test_few_steps_are_unrolled(monkeypatch):
    def grad(x, xi):
        return jnp.vdot(x, x), jnp.sin(x) * xi.weight.sum()

    xi = Sample(jnp.zeros((2, 3), int), jnp.array([[1.0, 1, 0], [0, 0, 0]]), None)
    x = jnp.array([1.0, -2.0])
    program = lambda x: train(grad, x, xi, 0.1, Momentum(), jnp.ones(2))
    loops = lambda: jax.jit(lambda x: program(x)).lower(x).as_text().count("stablehlo.while")
    assert loops() == 0
    unrolled = host(program, x)
    monkeypatch.setattr(local, "SHORT", 1)
    assert loops() == 1
    close(unrolled, host(lambda x: program(x), x))


@pytest.mark.parametrize("largest", range(1, 8))
@pytest.mark.parametrize(("steps", "times"), [(2, 0), (0, 1), (0, 2)])
def test_stacks_leave_out_only_padding(largest, steps, times):
    """Of 3 to a minibatch, 4 or 5 examples are two steps, of which the last is smaller."""
    same = lambda *examples: examples

    def program(count):
        client = Client(None, 0, count, 0, same, 3, largest, same, "float32")
        data = lambda xi: xi._replace(key=jax.random.key_data(xi.key))
        xi = client.epochs(KEY, times) if times else client.draws(KEY, steps)
        return data(xi), [data(part) for part in client.samples(KEY, steps, times)]

    for count in range(1, largest + 1):
        xi, stacks = host(program, np.int32(count))
        widths = [part.weight.shape for part in stacks]
        short = times == 1 and largest in (4, 5)
        assert widths == ([(1, 3), (1, largest - 3)] if short else [xi.weight.shape])
        np.testing.assert_array_equal(np.concatenate([part.key for part in stacks]), xi.key)
        rows = [row for part in stacks for row in zip(part.index, part.weight)]
        for (index, weight), whole, all_weights in zip(rows, xi.index, xi.weight, strict=True):
            np.testing.assert_array_equal(index, whole[: len(index)])
            np.testing.assert_array_equal(weight, all_weights[: len(index)])
            assert (all_weights[len(index) :] == 0).all()


def noisy(params, examples, key):
    """A loss with dropout, whose mask is of the sample's width."""
    kept = jax.random.bernoulli(key, 0.5, examples["x"].shape)
    return jnp.square((examples["x"] * kept) @ params - examples["y"])


def shifted(examples, key):
    return {**examples, "y": examples["y"] + jax.random.normal(key, examples["y"].shape)}


@pytest.mark.parametrize("name", ["fedavg", "gossip"])
def test_a_smaller_last_minibatch_changes_nothing(monkeypatch, name):
    """In runs: clients without a second step, of some and of all examples in it, and noise."""
    heavy = Clipped(Momentum(0.8), 1.0)
    alg, network = {
        "fedavg": (FedAvg(lr=0.05, epochs=1, solver=heavy), networks.Uniform(6, 4)),
        "gossip": (
            GossipLearning(lr=0.05, epochs=1, solver=heavy),
            networks.gossip(networks.graphs.make("ring", 6), ROUNDS, delay=(0, 20), seed=1),
        ),
    }[name]
    count = np.array([9, 8, 2, 5, 6, 1])
    parts = np.random.default_rng(1).permutation(31), np.cumsum(count) - count, count
    widths, losses = [], Client.losses
    spy = lambda c, x, xi: widths.append(len(xi.weight)) or losses(c, x, xi)
    monkeypatch.setattr(Client, "losses", spy)

    def go():
        world = Clients.make(DATA, parts, partial(noisy), batch=5, augment=shifted)  # compiles anew
        return jax.device_get(simulate(alg, world, network, np.ones(D), KEY, rounds=ROUNDS))

    found = go()
    assert {5, 4} <= {*widths}
    for module, constant in ((local, "_SMALL"), (client, "SHORT")):  # joined again, never apart
        monkeypatch.setattr(module, constant, 0)
        widths.clear()
        close(go(), found)
        assert 5 in widths and 4 not in widths


# Few outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("features", "inputs"), [(1, 6), (2, 40), (4, 300), (5, 6), (6, 300)])
def test_few_outputs(monkeypatch, features, inputs):
    """Values and first and second derivatives, over clients, as of plain products."""
    rng = np.random.default_rng(3)
    kernel, x = rng.normal(size=(3, features, inputs)), rng.normal(size=(3, 7, inputs))
    bias = jnp.zeros(features)

    def program(kernel, x):
        def f(kernel, x):
            params = {"params": {"kernel": kernel, "bias": bias}}
            return jnp.cos(models.Dense(features).apply(params, x)).sum()

        g = jax.grad(f, (0, 1))
        turn = lambda kernel, x: sum(jnp.sin(a).sum() for a in g(kernel, x))
        both = lambda kernel, x: (f(kernel, x), g(kernel, x), jax.grad(turn, (0, 1))(kernel, x))
        return jax.vmap(both)(kernel, x)

    dots = lambda: str(jax.make_jaxpr(lambda *a: program(*a))(kernel, x)).count("dot_general")
    few, fast = host(program, kernel, x), dots()
    monkeypatch.setattr(dense, "_FEW", 0)
    close(few, host(lambda *a: program(*a), kernel, x))
    if jax.default_backend() == "cpu" and 1 < features <= 4:
        assert fast > dots()


# Examples in the cache ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("count", [(5, 5, 5), (1, 5, 3)])
def test_near_examples_are_the_same(monkeypatch, count, batch):
    """Copied by clients that draw as many as they have; the same bits as without a copy."""
    order, start = np.random.default_rng(0).permutation(20), np.array([2, 9, 15])
    data, copies = {"x": np.arange(60.0).reshape(20, 3)}, []
    parts = (order, start, np.array(count))
    near = Client.near
    monkeypatch.setattr(Client, "near", lambda c: copies.append(c) or near(c))

    def program(world, steps):
        return world.each(lambda c, key: c.get(c.draws(key, steps)), key=KEY)["x"]

    def epochs(world, times):
        return world.each(lambda c, key: c.get(c.epochs(key, times)), key=KEY)["x"]

    world = Clients.make(data, parts, lambda x, examples, key: examples["x"] @ x, batch=batch)
    few, many = 4 // batch, -(-5 // batch)
    for f, n, copied in ((program, few, False), (program, many, True), (epochs, 1, True)):
        monkeypatch.setattr(clients, "_NEAR", 1 << 22)
        fast = f(world, n)
        assert bool(copies) == copied
        copies.clear()
        monkeypatch.setattr(clients, "_NEAR", 0)
        assert (fast == f(world, n)).all() and not copies


# Examples in large pages --------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [float, "float32", int, "uint8", bool, jnp.bfloat16])
def test_large_pages_hold_the_same(monkeypatch, dtype, wide):
    """A copy, of which JAX makes no other; the bits and the dtype of `jnp.asarray`."""
    a, taken, put = (np.arange(24.0).reshape(8, 3) % 7 / 3).astype(dtype), [], jax.device_put
    monkeypatch.setattr(examples_file, "_LARGE", 0)
    monkeypatch.setattr(jax, "device_put", lambda a: taken.append(a) or put(a))
    with jax.enable_x64(wide):
        plain, paged = np.array(jnp.asarray(a)), _paged(a)
    a[...] = 0
    assert paged.dtype == plain.dtype and (np.asarray(paged) == plain).all()
    if jax.default_backend() == "cpu":
        assert paged.unsafe_buffer_pointer() == taken[0].ctypes.data


# Windows ------------------------------------------------------------------------------------------


def lax_conv(x, kernel, strides=(1, 1), padding="SAME"):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)


@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [((3, 3), (1, 1), "SAME"), ((4, 2), (3, 2), ((2, 0), (1, 3))), ((2, 1), (3, 2), "VALID")],
)
def test_convolutions_differentiate_twice(size, strides, padding):
    """Forward, and forward and backward over backward, over clients: each form and `lax.conv`."""
    rng = np.random.default_rng(5)
    x, dx = rng.normal(size=(2, 2, 2, 7, 6, 2))  # two clients, of two images
    kernel, dk = rng.normal(size=(2, 2, *size, 2, 3))

    def derivatives(f, *args):
        at, by = args[:2], args[2:]
        f_ = lambda *at: f(*at, strides, padding)
        pull = lambda *at: jax.grad(lambda *at: jnp.cos(f_(*at)).sum(), (0, 1))(*at)
        along = lambda *at: sum(jnp.vdot(g, d) for g, d in zip(pull(*at), by))
        twice = jax.jvp(lambda *at: jax.jvp(lambda *a: jnp.cos(f_(*a)), at, by)[1], at, by)[1]
        return jax.jvp(f_, at, by), jax.jvp(pull, at, by)[1], jax.grad(along, (0, 1))(*at), twice

    def program(*args):
        forms = conv.serial, conv.shifts, conv.grouped
        alone = jax.lax.map(lambda a: derivatives(lax_conv, *a), args)
        return alone, *(jax.vmap(partial(derivatives, f))(*args) for f in forms)

    alone, *forms = host(program, x, kernel, dx, dk)
    for found in forms:
        close(found, alone)


def test_convolutions_batch_over_what_differs():
    """Images, kernels or both by client, per-example gradients, and zeros that reach all cores.

    Of groups also gradients by what is shared, and clients within runs.
    """
    rng = np.random.default_rng(6)
    x, kernel = rng.normal(size=(3, 2, 20, 20, 2)), rng.normal(size=(3, 3, 3, 2, 2))

    def each(f, x, kernel):
        f = partial(f, padding=((0, 0), (1, 1)))
        one = lambda image, kernel: jnp.sin(f(image[None], kernel)).sum()
        both = lambda x, kernel: jnp.sin(f(x, kernel)).sum()
        return (
            jax.vmap(f)(x, kernel),
            jax.vmap(f, (0, None))(x, kernel[0]),
            jax.vmap(f, (None, 0))(x[0], kernel),
            jax.vmap(jax.grad(one, 1), (0, None))(x[0], kernel[0]),
            jax.vmap(jax.grad(both, (0, 1)))(x[:1], kernel[:1]),
        )

    def program(*given):
        return [each(f, *given) for f in (lax_conv, conv.serial, conv.grouped)]

    assert conv._extra(20, 20, (1, 1)) == 1  # of the width
    assert conv._extra(4, 4, (1, 1)) == conv._extra(20, 10, (2, 2)) == 0
    plain, serial, groups = host(program, x, kernel)
    close(serial, plain)
    close(groups, plain)


DIFFERS = [(1, 1), (1, None), (None, 1)]  # images and kernels, images, kernels


@pytest.mark.parametrize("outer", DIFFERS, ids=str)
@pytest.mark.parametrize("inner", DIFFERS, ids=str)
def test_groups_of_groups(inner, outer):
    """Clients within runs, where images, kernels or both differ; values and both gradients."""
    rng = np.random.default_rng(9)
    shapes = [[2, 5, 4, 3], [3, 2, 3, 2]]
    for n, by in ((4, inner), (3, outer)):  # the inner axis is put in place first
        for shape, axis in zip(shapes, by):
            if axis is not None:
                shape.insert(axis, n)
    x, kernel = (rng.normal(size=shape) for shape in shapes)

    def both(f):
        def one(x, kernel):
            y, pull = jax.vjp(partial(f, strides=(2, 1)), x, kernel)
            return y, pull(jnp.sin(y))

        return jax.vmap(jax.vmap(one, inner), outer)

    got, want = host(lambda *at: (both(conv.grouped)(*at), both(lax_conv)(*at)), x, kernel)
    close(got, want)


@pytest.mark.parametrize("pads", [((1, 1), (1, 1)), ((1, 1), (-1, 3))])
def test_large_kernels_of_gradients_get_zeros(monkeypatch, pads):
    """They move the product to other code, not its value; and large images are stored."""
    x, g = np.random.default_rng(7).normal(size=(2, 2, 24, 24, 3))
    x[0, 0, 0, 0] = x[1, 2, 3, 0] = np.nan
    how = dict(want="k", strides=(1, 1), pads=pads, image=(24, 24), taps=(3, 3), precision=None)
    plain = conv._canonical(x, g, **how)
    monkeypatch.setattr(conv, "_CACHE", 0)
    assert conv._extra(24, 24, (1, 1)) == 1
    close(conv._canonical(x, g, **how), plain)
    assert np.isnan(plain).any() and np.isfinite(plain).any()
    np.testing.assert_array_equal(conv._stored(jnp.asarray(x)), x)
    assert "stablehlo.case" in jax.jit(conv._stored).lower(x).as_text()


@pytest.mark.parametrize(
    ("image", "pads"),
    [((8, 8), ((1, 1), (1, 1))), ((7, 4), ((0, 0), (2, 1))), ((6, 5), ((-1, 1), (3, -2)))],
)
@pytest.mark.parametrize(
    ("channels", "direct"), [((8, 8), 3), ((32, 64), 1), ((128, 128), 0)], ids=str
)
def test_tiles_are_convolutions(image, pads, channels, direct):
    """Values and gradients of sizes even and odd, padded, cut; many channels go by tiles."""
    rng = np.random.default_rng(8)
    x, kernel = rng.normal(size=(2, *image, channels[0])), rng.normal(size=(3, 3, *channels))

    def gradients(f, x, kernel):
        value = lambda *at: (jnp.sin(y := f(*at, padding=pads)).sum(), y)
        return jax.grad(value, (0, 1), has_aux=True)(x, kernel)

    serial = partial(gradients, conv.serial)
    close(host(serial, x, kernel), gradients(lax_conv, x, kernel))
    for dtype, count in (("float32", direct), ("bfloat16", 3)):
        text = jax.jit(serial).lower(x.astype(dtype), kernel.astype(dtype)).as_text()
        assert text.count("stablehlo.convolution(") == count
        assert text.count("stablehlo.dot_general ") == 16 * (3 - count)


@pytest.mark.parametrize(("image", "channels"), [(16, 64), (4, 512)])
def test_tiles_round_like_sums(image, channels):
    """In float32 to less than 1e-6 of the result: value and both gradients."""
    rng = np.random.default_rng(10)
    x, ct = rng.normal(size=(2, 4, image, image, channels))
    kernel = rng.normal(size=(3, 3, channels, channels)) / np.sqrt(9 * channels)

    def all_of(f, x, kernel, ct):
        y, pull = jax.vjp(f, x, kernel)
        return y, *pull(ct)

    narrow = [a.astype(np.float32) for a in (x, kernel, ct)]
    for got, want in zip(
        host(partial(all_of, conv.serial), *narrow), host(partial(all_of, lax_conv), x, kernel, ct)
    ):
        assert got.dtype == np.float32
        assert np.sqrt(np.square(got - want).mean() / np.square(want).mean()) < 1e-6


@pytest.mark.parametrize(("channels", "operation"), [(2, "convolution"), (128, "dot_general")])
def test_convolutions_keep_the_precision_of_their_trace(channels, operation):
    """Of gradients too, which are traced and lowered later, outside of the policy."""
    x = jnp.ones((1, 8, 8, channels), "float32")
    kernel = jnp.ones((3, 3, channels, channels), "float32")
    for policy, name in (("float32", "HIGHEST"), (None, "DEFAULT")):

        def loss(x, kernel, policy=policy):
            with jax.default_matmul_precision(policy):
                return jnp.square(conv.serial(x, kernel)).sum()

        text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).as_text()
        found = re.findall(f"stablehlo.{operation}.*", text)
        assert len(found) == {"convolution": 3, "dot_general": 48}[operation]
        assert all(line.count(name) == 2 for line in found if name == "HIGHEST")
        assert all("HIGHEST" not in line for line in found if name == "DEFAULT")


ONE_CPU = """
import jax, jax.numpy as jnp, numpy as np
from jaxfl import Clients, algorithms, models, networks, run
assert jax.device_count() == 1 and models.form(jax.default_backend()) == "serial"
rng = np.random.default_rng(0)
data = {"x": rng.normal(size=(24, 12, 12, 1)).astype("float32"), "y": np.arange(24) % 3}
split = np.arange(24), 8 * np.arange(3), np.full(3, 8)
model = models.cifar_cnn(3, (12, 12, 1))
clients = Clients.make(data, split, models.cross_entropy(model), batch=4)
given = clients, networks.Uniform(3, 2), model.init(jax.random.key(0)), jax.random.key(1)
for steps in (1, 3):
    alg = algorithms.FedAvg(lr=0.1, steps=steps)
    whole, parts = (run(alg, *given, rounds=3, chunk=chunk).state.params for chunk in (3, 1))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(whole))
"""


def test_on_one_cpu_chunks_of_a_convolutional_run_are_the_whole_bit_for_bit():
    """What users on one CPU run: float32, XLA's own optimisation, clients one after another."""
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_ENABLE_X64")}
    done = subprocess.run(
        [sys.executable, "-c", ONE_CPU], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


# Group normalisation ------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [(8, 8), (6, 35), (1, 37), (1, 1)], ids=str)
def test_group_normalisation_is_that_of_flax(image):
    """Values and derivatives of two orders, over clients; sums of slices, also of prime numbers."""
    rng = np.random.default_rng(9)
    x, dx = 3 + rng.normal(size=(2, 2, 3, *image, 6))  # of two clients, three images each
    scale, bias, dscale, dbias = rng.normal(size=(4, 2, 6))
    given = {"scale": scale, "bias": bias}, x, {"scale": dscale, "bias": dbias}, dx
    ours, plain = models.GroupNorm(3), nn.GroupNorm(3, epsilon=1e-5, param_dtype=float)

    def derivatives(model: Any, *given):
        at, by = given[:2], given[2:]
        f = lambda p, x: model.apply({"params": p}, x)
        pull = lambda *at: jax.grad(lambda *at: jnp.sin(f(*at)).sum(), (0, 1))(*at)
        return f(*at), jax.jvp(pull, at, by)

    first = lambda tree: jax.tree.map(lambda a: a[0], tree)
    with jax.numpy_rank_promotion("allow"):  # flax's
        want = host(jax.vmap(partial(derivatives, plain)), *given)
    close(host(jax.vmap(partial(derivatives, ours)), *given), want, 1e-10)
    given = jax.tree.map(jnp.asarray, first(given))
    close(derivatives(ours, *given), first(want), 1e-10)  # without jit


def test_group_normalisation_of_bfloat16_sums_in_float32():
    """In bfloat16 a sum of ones stops at 256."""
    x = (1 + jnp.arange(2048).reshape(1, 1024, 2) % 2).astype("bfloat16")
    params = {"scale": jnp.ones(2, "bfloat16"), "bias": jnp.zeros(2, "bfloat16")}
    y: Any = models.GroupNorm(1).apply({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y[0, :2].astype(float), [[-1, 1], [-1, 1]], atol=1e-4)


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="groups: expected a divisor of the 6 channels, got 4"):
        models.GroupNorm(4).init(KEY, jnp.ones((1, 2, 2, 6)))


def test_group_normalisation_sums_slices_on_the_cpu_only():
    x = jnp.ones((2, 8, 8, 4))
    model = models.GroupNorm(2)
    program = jax.jit(lambda x: model.init_with_output(KEY, x))
    lowered = program.trace(x).lower(lowering_platforms=("cpu",)).as_text()
    assert lowered.count("stablehlo.slice") >= 2 * 32 and "dimensions = [1]" not in lowered
    lowered = program.trace(x).lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.slice" not in lowered and "dimensions = [1]" in lowered


# Thresholds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_threshold_is_the_sorted_one(dtype):
    """For every k; numbers that are not numbers come first, as their bits do."""
    tiny, top = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    rng = np.random.default_rng(6)
    special = [0, -0.0, tiny, -3 * tiny, np.inf, -np.inf, np.nan, -np.nan, top, -top, 1, 1, -1, 2]
    vectors = {
        "special": special,
        "normal": rng.normal(size=14) * 10.0 ** rng.integers(-30, 30, 14),
        "ties": rng.integers(-2, 3, 14),
        "zeros": np.zeros(14),
        "denormal": rng.integers(-9, 9, 14) * tiny,
        "NaN": np.full(14, np.nan),
    }
    flat = np.stack([*vectors.values()]).astype(dtype)
    unsigned = np.abs(flat).view(f"u{dtype().itemsize}")
    raw = rng.integers(0, 2 ** (8 * dtype().itemsize), (3, 14), unsigned.dtype, endpoint=False)
    raw[0, :2] = 0, ~raw.dtype.type(0)

    def parts(v):
        return [v[:6].reshape(2, 3), v[6], v[7:7], v[7:]]

    def program(flat, raw, ks):
        size = jnp.stack([jnp.concatenate([*map(jnp.ravel, _magnitudes(parts(v)))]) for v in flat])
        each_k = lambda v: jax.vmap(lambda k: _threshold(parts(v), k))(ks)
        return size, jax.lax.map(each_k, jnp.concatenate([size, raw]))

    size, (got, many) = host(program, flat, raw, np.arange(1.0, 15.0))
    np.testing.assert_array_equal(size, unsigned)
    scores = np.concatenate([unsigned, raw])
    np.testing.assert_array_equal(got, np.sort(scores)[:, ::-1])
    np.testing.assert_array_equal(many, (scores[:, None] >= got[:, :, None]).sum(2))
    assert got.dtype == unsigned.dtype


# What is read off programs for other devices ------------------------------------------------------

PROGRAM = """HloModule jit_f

%inside (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %copy.1 = f32[4]{0} copy(%a), backend_config={"estimated_cycles":"7"}
  ROOT %fusion.2 = f32[4]{0} fusion(%copy.1), kind=kLoop, backend_config={"estimated_cycles":"5"}
}

%until (a: f32[4]) -> pred[] {
  %a = f32[4]{0} parameter(0)
  ROOT %fusion.3 = pred[] fusion(%a), kind=kLoop
}

%three (a: f32[4]) -> pred[] {
  %constant = s32[] constant(3)
  ROOT %lt = pred[] compare(%i, %constant), direction=LT
}

%round (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %while.1 = f32[4]{0} while(%a), condition=%until, body=%inside
  ROOT %while.2 = f32[4]{0} while(%while.1), condition=%three, body=%inside
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %copy.9 = f32[4]{0} copy(%a)
  ROOT %while.3 = f32[4]{0} while(%copy.9), body=%round, config={"known_trip_count":{"n":"10"}}
}
"""


def test_outlines_count_what_rounds_do():
    """A loop of unknown trips, a loop of three, both in ten rounds; a copy before them."""
    path = Path(__file__).parent.parent / "benchmarks" / "outline.py"
    found = runpy.run_path(str(path))["outline"](PROGRAM, 10)
    assert found == {"kernels": 8, "copied bytes": 4 * 16, "waits": 1, "cycles": 4 * 12}
