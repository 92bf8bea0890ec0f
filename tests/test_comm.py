"""Mixing, Gram matrices and rows, against NumPy. One program per group: compiling is what costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.engine import comm, mixing
from jaxfl.networks import weights

N = 7
OFFSETS, VALUES = (0, 1, 3, -2), np.array([0.4, 0.3, 0.0, 0.3])  # an offset switched off
MATRIX = np.zeros((N, N))
for _value, _s in zip(VALUES, OFFSETS):
    MATRIX[np.arange(N), (np.arange(N) + _s) % N] = _value
FREE = MATRIX[:, 2] == 0  # who does not hear row 2
FORMS = ("dense", "near", "shifts", "scan")
VECTORS = ("vector", "sum")  # a vector of weights on a CPU, elsewhere


def run(f, *args):
    """One program, results on the host."""
    return jax.device_get(jax.jit(f)(*args))


def near(w):
    return comm.Near(*weights.neighbours(w))


def circulant(form, values):
    """The same matrix in every form; the slots and the matrix keep the zeros."""
    w = comm.Shifts(values, OFFSETS, N)
    return {"dense": comm.Dense(comm.to_dense(w)), "shifts": w}.get(form, comm.to_near(w))


def close(got, want, atol):
    np.testing.assert_allclose(np.asarray(got, float), np.asarray(want, float), rtol=0, atol=atol)


# Mixing -----------------------------------------------------------------------------------------


def _data():
    rng = np.random.default_rng(0)
    x = {
        "a": rng.normal(size=(N, 3, 2)),
        "b": [rng.normal(size=N), rng.normal(size=(N, 0))],
        "c": rng.normal(size=(N, 4)).astype(jnp.bfloat16),
        "d": rng.normal(size=(N, 4)).astype(np.float32),
    }
    flat = np.array(x["a"][:, 0])
    bad = {"nan": flat.copy(), "inf": flat.copy()}
    bad["nan"][2], bad["inf"][2] = np.nan, np.inf
    sent = x["d"].copy()
    sent[2], sent[5] = np.nan, 1e9
    return {"x": x, "flat": flat, "bad": bad, "sent": sent}


DATA = _data()
VECTOR = np.where(np.arange(N) == 2, 0, np.random.default_rng(1).random(N))


@pytest.fixture(scope="module")
def mixed():
    """What `mix` returns, and its gradients, by form."""

    def some(make, free, values, data):
        f = lambda values, x: jnp.square(jnp.where(free, comm.mix(make(values), x), 0)).sum()
        return {
            "clean": comm.mix(make(values), data["x"]),
            "bad": {name: comm.mix(make(values), x) for name, x in data["bad"].items()},
            "grad": jax.grad(f, (0, 1))(values, data["flat"]),
            "bad grad": jax.grad(f, (0, 1))(values, data["bad"]["nan"]),
        }

    def program(values, vector, data):
        out = {"vector": some(lambda w: w, True, vector, data)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: "gpu")
            out["sum"] = some(lambda w: w, True, vector, data)
        for form in FORMS:
            make = lambda values, form=form: circulant(form, values)
            unroll, mixing._UNROLL = mixing._UNROLL, 1 if form == "scan" else mixing._UNROLL
            try:
                out[form] = some(make, FREE[:, None], values, data)
                out[form]["own"] = comm.mix(make(values), data["sent"], own=data["x"]["d"])
            finally:
                mixing._UNROLL = unroll
        return out

    return run(program, VALUES, VECTOR, DATA)


def rows(form):
    """The weights as a matrix: receivers, senders."""
    return VECTOR[None] if form in VECTORS else MATRIX


@pytest.mark.parametrize("form", [*VECTORS, *FORMS])
def test_mix_is_the_matrix_product(mixed, form):
    def check(got, leaf):
        assert got.dtype == leaf.dtype
        want = np.tensordot(rows(form), np.asarray(leaf, float), 1)
        want = want[0] if form in VECTORS else want
        assert got.shape == want.shape
        close(got, want, {"float64": 1e-15, "float32": 5e-7, "bfloat16": 0.03}[str(leaf.dtype)])

    jax.tree.map(check, mixed[form]["clean"], DATA["x"])


@pytest.mark.parametrize("form", [*VECTORS, *FORMS])
@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_weight_0_ignores_what_is_not_finite(mixed, form, bad):
    """Row 2 is bad. Who has weight 0 on it does not notice, everyone else is not finite."""
    y = mixed[form]["bad"][bad].reshape(len(rows(form)), -1)
    free = rows(form)[:, 2] == 0
    assert free.any() and np.isfinite(y[free]).all() and not np.isfinite(y[~free]).any()
    close(y[free], (rows(form) @ np.nan_to_num(DATA["bad"]["nan"]))[free], 1e-15)
    assert bad == "inf" or np.isnan(y[~free]).all()


def test_scan_over_slots_is_the_unrolled_sum(mixed):
    for name in ("clean", "bad", "grad", "own"):
        jax.tree.map(lambda a, b: close(a, b, 1e-15), mixed["scan"][name], mixed["near"][name])


@pytest.mark.parametrize("form", [*VECTORS, *FORMS])
def test_gradients(mixed, form):
    """By a weight of 0 as by any other; finite beside NaN, 0 for the NaN row."""
    by_w, by_x = mixed[form]["grad"]
    x, w = DATA["flat"], rows(form)
    pull = 2 * (w @ x) * (True if form in VECTORS else FREE[:, None])
    close(by_x, w.T @ pull, 1e-14)
    if form in VECTORS:
        close(by_w, x @ pull[0], 1e-14)
    else:
        close(by_w, [np.vdot(pull, np.roll(x, -s, 0)) for s in OFFSETS], 1e-14)
    by_w, by_x = mixed[form]["bad grad"]
    assert np.isfinite(by_x).all() and (by_x[2] == 0).all()
    if form in (*VECTORS, "dense"):  # elsewhere a weight is shared with rows that hear the NaN
        assert np.isfinite(by_w).all()


@pytest.mark.parametrize("form", FORMS)
def test_own_takes_the_place_of_what_was_sent(mixed, form):
    """Also where that is not finite, or huge: nothing is added to be taken away again."""
    off = MATRIX * (1 - np.eye(N))
    clear = (off[:, [2, 5]] == 0).all(1)
    sent = np.where(np.arange(N)[:, None] == 2, 0, DATA["sent"].astype(float))
    want = np.diag(MATRIX)[:, None] * DATA["x"]["d"] + off @ sent
    got = mixed[form]["own"]
    assert clear[2] and clear[5] and got.dtype == np.float32
    close(got[clear], want[clear], 1e-6)
    assert np.isnan(got[off[:, 2] != 0]).all()


def test_few_rows_and_many_small_numbers():
    """Weights [m, n]; and a sum in bfloat16 would stop at 256."""
    rng = np.random.default_rng(2)
    w, x = rng.normal(size=(3, N)), rng.normal(size=(N, 5))
    ones = np.ones((1000, 2), jnp.bfloat16)
    full = near(np.full((20, 20), 100.0))

    def program(w, x, ones, full):
        return comm.mix(comm.Dense(w), x), comm.mix(ones[:, 0], ones), comm.mix(full, ones[:20])

    few, total, slots = run(program, w, x, ones, full)
    close(few, w @ x, 1e-14)
    assert (total == 1000).all() and (slots == 2000).all() and slots.dtype == jnp.bfloat16


def test_the_mean_does_not_drift():
    """Ring of 6, weights 1/3, |x| about 100, 1000 rounds of float32."""
    n = 6
    w = sum(np.roll(np.eye(n), s, 1) for s in (-1, 0, 1)) / 3
    x = (100 + np.random.default_rng(3).normal(size=(n, 50))).astype(np.float32)
    ws = (comm.Dense(w), near(w), comm.Shifts(np.full(3, 1 / 3), (0, 1, -1), n))

    def rounds(ws, x):
        step = lambda xs, _: (tuple(comm.mix(w, x) for w, x in zip(ws, xs)), None)
        return jax.lax.scan(step, (x,) * 3, length=1000)[0]

    for y in run(rounds, ws, x):
        assert y.dtype == np.float32
        close(y, np.broadcast_to(x.astype(float).mean(0), y.shape), 1e-3)


# Forms --------------------------------------------------------------------------------------------


def graphs():
    rng = np.random.default_rng(4)
    uneven = np.zeros((5, 5))
    uneven[[0, 0, 1, 1, 2, 3, 4, 4], [0, 3, 1, 0, 2, 3, 1, 2]] = rng.random(8)  # one-way edges
    return {
        "ring": near(MATRIX),
        "uneven": near(uneven),
        "dense": comm.Dense(rng.random((5, 5))),
        "shifts": comm.Shifts(VALUES, OFFSETS, N),
        "no own": comm.Shifts(np.array([0.5, 0.5]), (1, -1), N),
        "one sender twice": comm.Shifts(VALUES, (2, 3, 5, -1), 3),
    }


@pytest.fixture(scope="module")
def forms():
    ws = graphs()
    rng = np.random.default_rng(5)
    coef = {name: rng.normal(size=(5, k, 5)) for name, k in (("dense", 5), ("uneven", 3))}

    def program(ws, x, coef):
        out = {}
        for name, w in ws.items():
            slots, dense = comm.to_near(w), comm.to_dense(w)
            y = x[: len(dense)]
            again = comm.to_dense(comm.to_near(comm.Dense(dense)))
            out[name] = slots, dense, again, comm.mix(w, y), comm.mix(slots, y)
        held = {name: comm.mix(ws[name], comm.Held(x[:5], coef[name])) for name in coef}
        return out, held

    x = rng.normal(size=(N, 2))
    return x, coef, *run(program, ws, x, coef)


@pytest.mark.parametrize("name", graphs())
def test_forms_agree_and_back_points_back(forms, name):
    slots, dense, again, *mixed = forms[2][name]
    np.testing.assert_array_equal(again, dense)
    for y in mixed:
        close(y, dense @ forms[0][: len(dense)], 1e-15)
    idx, back = slots.idx, slots.back
    assert (idx[:, 0] == np.arange(len(dense))).all() and idx.dtype == back.dtype == np.int32
    for i, k in np.ndindex(idx.shape):
        j = idx[i, k]
        assert j != i or k == 0 or slots.w[i, k] == 0
        if back[i, k] >= 0:
            assert idx[j, back[i, k]] == i
        else:
            assert not (idx[j] == i).any()


@pytest.mark.parametrize("name", ["dense", "uneven"])
def test_held_messages_go_by_slot(forms, name):
    """Receiver i gets `coef[i, k] @ rows` in slot k of `to_near`, whatever the form of w."""
    x, coef, out, held = forms
    message = np.einsum("ikm,md->ikd", coef[name], x[:5])
    close(held[name], np.einsum("ik,ikd->id", out[name][0].w, message), 1e-14)


def test_held_messages_need_a_graph():
    with pytest.raises(TypeError, match="need the weights of a graph"):
        comm.mix(jnp.ones(N), comm.Held(jnp.ones((N, 2)), jnp.ones((N, 2, N))))


# Distances ----------------------------------------------------------------------------------------


def squared(x, y):
    return np.square(x[:, None] - y[None]).sum(-1)


@pytest.fixture(scope="module")
def measured():
    """Distances and products of eleven rows in two leaves, one program for every attack."""
    program = jax.jit(lambda x: (comm.distances(x), comm.gram(x)))

    def of(x):
        x = np.asarray(x, np.float32)
        return jax.device_get(program({"a": x[:, :5], "b": x[:, 5:]}))

    return of


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("scale", [None, 1e3, 1e6, 1e15])
def test_distances_are_exact_under_attack(measured, offset, scale):
    """Two of eleven are Byzantine; honest rows are about 40 apart (squared), in float32."""
    rng = np.random.default_rng(1)
    x, bad = offset + rng.normal(size=(11, 20)), rng.normal(size=(2, 20))
    honest = np.arange(11)
    if scale:
        x[[3, 8]], honest = scale * bad, np.delete(honest, [3, 8])
    x = x.astype(np.float32).astype(float)
    true, (got, _) = squared(x, x), measured(x)
    pairs = np.ix_(honest, honest)
    assert 30 < true[pairs].mean() < 50 and (np.diag(got) == 0).all()
    close(got[pairs], true[pairs], 1e-4)
    if scale and scale < 1e12:  # beyond, values are clipped
        np.testing.assert_allclose(got, true, rtol=1e-3, atol=1e-4)
    if scale:  # centred on the mean this is lost
        y = (x - x.mean(0)).astype(np.float32)
        product = y @ y.T
        naive = np.diag(product)[:, None] + np.diag(product) - 2 * product
        assert np.abs(naive - true)[pairs].max() > 0.05


@pytest.mark.parametrize("dead", [1, 5, 10])
def test_messages_that_are_not_finite_never_win(measured, dead):
    """Also where they are the majority, the rest is measured around one of its own."""
    x = (1e4 + np.random.default_rng(2).normal(size=(11, 20))).astype(np.float32)
    want = squared(x.astype(float), x.astype(float))
    x[:dead, 7] = np.where(np.arange(dead) % 2, np.inf, np.nan)
    got, (product, finite) = measured(x)
    off = ~np.eye(11, dtype=bool)
    assert np.isinf(got[:dead][off[:dead]]).all() and np.isinf(got[:, :dead][off[:, :dead]]).all()
    close(got[dead:, dead:], want[dead:, dead:], 1e-4)
    assert (finite == (np.arange(11) >= dead)).all() and np.isfinite(product).all()
    centre = np.flatnonzero(np.diag(product) == 0)
    assert (centre >= dead).all() and len(centre) == 1


def test_gram_is_of_rows_around_the_medoid(measured):
    x = np.random.default_rng(3).normal(size=(11, 20)).astype(np.float32)
    _, (product, finite) = measured(x)
    (centre,) = np.flatnonzero(np.diag(product) == 0)
    assert centre == np.argmin(np.median(squared(x, x), 1)) and finite.all()
    close(product, (x - x[centre]) @ (x - x[centre]).T, 1e-4)


@pytest.fixture(scope="module")
def slot_distances():
    rng = np.random.default_rng(4)
    n = 66
    w = np.eye(n) + np.roll(np.eye(n), 1, 1)
    x, own = rng.normal(size=(2, n, 3))
    x[4] = np.nan
    graphs = {"sparse": near(w), "dense": comm.to_near(comm.Dense(jnp.asarray(w[:6, :6])))}
    assert n > mixing._SPARSE * 2 and 6 <= mixing._SPARSE * 6  # by slots, by products of all pairs

    def program(graphs, x, own):
        at = {"sparse": slice(None), "dense": slice(6)}
        return {
            (name, mine): comm.slot_distances(w, x[at[name]], own[at[name]] if mine else None)
            for name, w in graphs.items()
            for mine in (False, True)
        }

    return graphs, x, own, run(program, graphs, x, own)


@pytest.mark.parametrize("name", ["sparse", "dense"])
@pytest.mark.parametrize("mine", [False, True])
def test_slot_distances(slot_distances, name, mine):
    graphs, x, own, got = slot_distances
    idx = np.asarray(graphs[name].idx)
    base = (own if mine else x)[: len(idx), None]
    want = np.square(base - x[idx]).sum(-1)
    want[np.isnan(want)] = np.inf
    want[:, 0] = 0
    close(got[name, mine], want, 1e-12)


def test_slot_distances_of_held_messages():
    """Far from 0, with rows that are messages, rows that are noise, and one that is NaN."""
    n, k, d = 6, 4, 10
    rng = np.random.default_rng(5)
    rows = np.concatenate([1e3 + rng.normal(size=(n, d)), 0.1 * rng.normal(size=(n, d))])
    rows = rows.astype(np.float32)
    rows[2 * n - 1] = np.nan
    coef = np.zeros((n, k, 2 * n))
    coef[:, :, :n] = np.round(64 * rng.random((n, k, n))) / 64  # exact in float32
    coef[:, :, 0] += 1 - coef[:, :, :n].sum(-1)
    coef[:, 1:, n:-1] = rng.normal(size=(n, k - 1, n - 1))
    coef[2, 3, :n] *= -1  # as of a negated message: the coefficients no longer sum to 1
    coef[0, 2, 2 * n - 1] = 1
    message = np.einsum("ikm,md->ikd", coef, np.nan_to_num(rows.astype(float)))
    want = np.square(message - message[:, :1]).sum(-1)
    want[0, 2] = np.inf
    w = comm.Near(np.zeros((n, k), int), np.ones((n, k)), np.zeros((n, k), int))
    got = run(comm.slot_distances, w, comm.Held(rows, coef.astype(np.float32)))
    assert got.dtype == np.float32 and want[1].max() < 1e3 < want[2, 3]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


# Rows ---------------------------------------------------------------------------------------------


def test_rows():
    """Picked, put and kept rows; a slot n is empty."""
    x, idx, mask = DATA["x"], np.array([4, N, 0, N]), np.arange(N) % 2 == 0

    def program(x, idx, mask):
        picked = comm.pick(x, idx)
        put = comm.put(x, idx, jax.tree.map(lambda a: jnp.full(a.shape, 9.0), picked))
        return picked, put, comm.where(mask, put, x), comm.stack(x["a"][0], 3)

    picked, put, kept, stacked = run(program, x, idx, mask)
    for key in ("a", "c", "d"):
        np.testing.assert_array_equal(picked[key][[0, 2]], x[key][[4, 0]])
        assert (put[key][[0, 4]] == 9).all() and put[key].dtype == x[key].dtype
        np.testing.assert_array_equal(put[key][[1, 2, 3, 5, 6]], x[key][[1, 2, 3, 5, 6]])
        np.testing.assert_array_equal(kept[key][mask], put[key][mask])
        np.testing.assert_array_equal(kept[key][~mask], x[key][~mask])
    np.testing.assert_array_equal(stacked, np.stack([x["a"][0]] * 3))


def test_bits_do_not_overflow():
    message = {"a": jax.ShapeDtypeStruct((100, 10**6), jnp.float32), "b": DATA["x"]["c"]}
    bits = comm.bits(message)
    assert bits == np.float32(3.2e9 + 16 * 4 * N) and bits.dtype == jnp.float32
