"""Compressors: exact selection, unbiasedness, variance, bits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.components import QSGD, Identity, RandK, TopK

D, M = 64, 8000
RNG = np.random.default_rng(0)
SHAPES = {"a": (5, 3), "b": (), "c": (48,)}
KEY = jax.random.key(0)


def tree(flat, dtype=float):
    """`[..., 64]` as one message."""
    flat = np.asarray(flat, dtype)
    parts = np.split(flat, [15, 16], -1)
    return {k: p.reshape((*p.shape[:-1], *SHAPES[k])) for k, p in zip(SHAPES, parts)}


def flat(tree, lead=1):
    leaves = [np.asarray(a, float) for a in jax.tree.leaves(tree)]
    return np.concatenate([a.reshape(*a.shape[:lead], -1) for a in leaves], -1)


def run(f, *args):
    """One program, results on the host."""
    return jax.device_get(jax.jit(f)(*args))


# Top-k --------------------------------------------------------------------------------------------

VECTORS = {
    "normal": RNG.normal(size=D),
    "many sizes": RNG.normal(size=D) * 10.0 ** RNG.integers(-30, 30, D),
    "ties": RNG.integers(-3, 4, D),
    "equal": np.full(D, -2.0),
    "zeros": np.where(np.arange(D) % 5 == 0, RNG.normal(size=D), 0),
    "0": np.zeros(D),
    "infinite": np.where(np.arange(D) == 3, -np.inf, RNG.normal(size=D)),
}


@pytest.fixture(scope="module", params=["float32", "float64", "bfloat16"])
def selected(request):
    """Every k of every vector, k traced."""
    dtype = jnp.dtype(request.param)
    v = tree(np.stack([*VECTORS.values()]), dtype)
    fraction = np.arange(1, D + 1) / D

    def program(v, fraction):
        one = lambda v: jax.vmap(lambda f: TopK(f)(v, KEY))(fraction)
        return jax.vmap(one)(v)

    out = run(program, v, fraction.astype(np.promote_types(dtype, np.float32)))
    assert jax.tree.map(lambda a: a.dtype, out) == jax.tree.map(lambda a: a.dtype, v)
    return flat(v), flat(out, 2)


@pytest.mark.parametrize("name", VECTORS)
def test_top_k_is_exact_over_all_leaves(selected, name):
    """The k largest, of those that tie with the k-th the first, and nothing else."""
    i = list(VECTORS).index(name)
    v, got = selected[0][i], selected[1][i]
    size = np.abs(v)
    for k in range(1, D + 1):
        kept = np.zeros(D, bool)
        kept[np.argsort(-size, kind="stable")[:k]] = True
        np.testing.assert_array_equal(got[k - 1], np.where(kept, v, 0), err_msg=f"k = {k}")
        if np.isfinite(v).all():  # contractive with alpha = k / d
            lost = np.square(got[k - 1] - v).sum()
            assert lost <= (1 - k / D) * np.square(v).sum() * (1 + 1e-12)


def test_another_fraction_is_the_same_program():
    v = tree(VECTORS["normal"])
    program = jax.jit(lambda compress, v: [c(v, KEY) for c in compress])
    for a in (0.1, 0.5):
        a = np.float64(a)
        top, random, q = program([TopK(a), RandK(a, 0 * a), QSGD(10 * a, 0 * a)], v)
        assert (flat(top, 0) != 0).sum() == (flat(random, 0) != 0).sum() == int(a * D)
        assert q["b"].shape == ()
    assert program._cache_size() == 1


@pytest.mark.parametrize("compress", [TopK(0.1), RandK(0.1)], ids=["top-k", "rand-k"])
@pytest.mark.parametrize(
    "shapes", [[(1000,)], [(10, 3), (0, 2), (), (969,)], [(1,), (999,)]], ids=str
)
def test_what_ties_is_paid_for(compress, shapes, monkeypatch):
    """As many entries are sent as bits are paid for, whatever is equal, in any number of leaves."""
    same = lambda key, shape, dtype: jnp.full(shape, 7, dtype)  # scores of RandK
    monkeypatch.setattr(jax.random, "bits", same)
    v = [jnp.full(shape, -2.0) for shape in shapes]
    sent = flat(run(compress, v, KEY), 0)
    np.testing.assert_array_equal(sent, np.where(np.arange(1000) < 100, -2, 0))
    index = 0 if isinstance(compress, RandK) else 10
    assert compress.bits(v) == (sent != 0).sum() * (64 + index) + 32 * isinstance(compress, RandK)


def test_ties_under_gradients_and_sweeps():
    """Selection is a mask: a sweep is a loop, and the gradient is that of what was kept."""
    v = jnp.asarray(VECTORS["ties"], float)
    loss = lambda v, f: jnp.square(TopK(f)(v, KEY)).sum() / 2
    many = jax.vmap(jax.grad(loss), (None, 0))(v, jnp.array([0.1, 0.5]))
    np.testing.assert_array_equal(many, [TopK(0.1)(v, KEY), TopK(0.5)(v, KEY)])


# Random ones --------------------------------------------------------------------------------------

V = RNG.normal(size=D)
# settings along a leading axis: traced fields are mapped like any others
COMPRESSORS = [
    (RandK(np.array([8 / D, 8 / D]), np.array([0.0, 1])), ("rand-8", "rand-8, unbiased")),
    (
        QSGD(np.array([4.0, 4, 1]), np.array([0.0, 1, 0])),
        ("qsgd", "qsgd, contractive", "qsgd, one level"),
    ),
]


@pytest.fixture(scope="module")
def many():
    """One vector under many keys, many vectors, and the zero vector; in bfloat16 too."""
    vectors = RNG.normal(size=(M, D))
    all = np.concatenate([np.broadcast_to(V, (M, D)), vectors, np.zeros((1, D))])
    keys = jax.random.split(KEY, len(all))

    def program(compressors, v, half, keys):
        settings = lambda c: jax.vmap(lambda c: jax.vmap(c)(v, keys))(c)
        narrow = jax.vmap(QSGD(64.0), (None, 0))(half, keys[:M])
        return [settings(c) for c in compressors], narrow

    compressors = [c for c, _ in COMPRESSORS]
    out, narrow = run(program, compressors, tree(all), tree(V, jnp.bfloat16), keys)
    names = [name for _, names in COMPRESSORS for name in names]
    out = dict(zip(names, (row for c in out for row in flat(c, 2)), strict=True))
    relative = {
        name: np.square(c[M:-1] - vectors).sum(1) / np.square(vectors).sum(1)
        for name, c in out.items()
    }
    fixed, zeros = ({n: c[at] for n, c in out.items()} for at in (slice(M), -1))
    return fixed, relative, zeros, narrow, vectors


def unbiased(sample, want):
    error = sample.std(0, ddof=1) / math.sqrt(len(sample))
    assert (np.abs(sample.mean(0) - want) <= 5 * error + 1e-12).all()


def test_random_k_keeps_exactly_k_uniformly(many):
    kept = many[0]["rand-8"] != 0
    assert (kept.sum(1) == 8).all()
    p = 8 / D
    assert (np.abs(kept.mean(0) - p) <= 5 * np.sqrt(p * (1 - p) / M)).all()
    pairs = (kept[:, :, None] & kept[:, None]).mean(0)[~np.eye(D, dtype=bool)]
    p = 8 * 7 / (D * (D - 1))
    assert (np.abs(pairs - p) <= 5 * np.sqrt(p * (1 - p) / M)).all()
    np.testing.assert_array_equal(many[0]["rand-8"], np.where(kept, V, 0))
    np.testing.assert_allclose(many[0]["rand-8, unbiased"], np.where(kept, V * 8, 0), rtol=1e-15)


@pytest.mark.parametrize("name", ["rand-8, unbiased", "qsgd", "qsgd, one level"])
def test_unbiased(many, name):
    unbiased(many[0][name], V)


def test_variances(many):
    """Those of the theory; 0.675, measured on one normal vector, is among those of ours."""
    vectors, relative = many[4], many[1]
    unbiased(relative["rand-8, unbiased"], 7)  # d / k - 1
    unbiased(relative["rand-8"], 1 - 8 / D)
    y = 4 * np.abs(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    exact = ((y % 1) * (1 - y % 1)).sum(1) / 16
    unbiased(relative["qsgd"] - exact, 0)
    assert exact.min() < 0.675 < exact.max() and abs(exact.mean() - 0.675) < exact.std()
    omega = {"qsgd": 2, "qsgd, one level": 8}  # min(d / s^2, sqrt(d) / s)
    for name, bound in omega.items():
        assert relative[name].mean() <= bound
    assert relative["qsgd, contractive"].mean() <= 1 - 1 / 3


def test_qsgd_rounds_to_levels(many):
    length = np.linalg.norm(V)
    for name, scale in (("qsgd", 1), ("qsgd, contractive", 3)):
        y = scale * 4 * many[0][name] / length
        np.testing.assert_allclose(y, np.round(y), atol=1e-12)
        assert (np.abs(np.abs(np.round(y)) - 4 * np.abs(V) / length) < 1).all()
        assert ((np.sign(y) == np.sign(V)) | (y.round() == 0)).all()
    np.testing.assert_allclose(many[0]["qsgd"], 3 * many[0]["qsgd, contractive"], rtol=1e-14)


def test_zero_stays_zero(many):
    for c in many[2].values():
        assert (c == 0).all()


def test_narrow_numbers_are_rounded_in_float32(many):
    """Uniform numbers of 8 bits would show."""
    assert all(a.dtype == jnp.bfloat16 for a in many[3].values())
    sample, v = flat(many[3]), flat(tree(V, jnp.bfloat16), 0)
    error = sample.std(0, ddof=1) / math.sqrt(M)
    # the levels themselves are rounded to bfloat16
    assert (np.abs(sample.mean(0) - v) <= 5 * error + 2**-8 * np.abs(v)).all()


# Bits ---------------------------------------------------------------------------------------------

LOG2 = lambda x: math.ceil(math.log2(x))
BITS = {
    "identity": (Identity(), lambda d: 32 * d),
    "top-k": (TopK(0.1), lambda d: d // 10 * (32 + LOG2(d))),
    "rand-k": (RandK(0.1), lambda d: d // 10 * 32 + 32),
    **{f"qsgd {s}": (QSGD(s), lambda d, s=s: 32 + d * (1 + LOG2(s + 1))) for s in (1, 4, 15, 16)},
}


@pytest.mark.parametrize("d", [10, 64, 1000, 3 * 10**8])
@pytest.mark.parametrize("name", BITS)
def test_bits(name, d):
    """Those of one client's message, as float32 beyond the range of int32."""
    compress, formula = BITS[name]
    v = {"a": jax.ShapeDtypeStruct((d - 8,), jnp.float32), "b": np.zeros((2, 4), np.float32)}
    got = compress.bits(v)
    assert got.dtype == jnp.float32 and math.isclose(got, formula(d), rel_tol=2e-7)


def test_bits_follow_the_dtype():
    v = {"a": np.zeros(64, jnp.bfloat16)}
    assert TopK(1 / 8).bits(v) == 8 * (16 + 6) and Identity().bits(v) == 1024
