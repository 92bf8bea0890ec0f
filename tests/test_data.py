"""Partitions, shifts, data sets and generators."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma

from jaxfl import Clients, data
from jaxfl.data import Partition, dirichlet
from jaxfl.data.partitioners import _VARIANTS, _mend

VARIANTS = ("class", "class_uncapped", "client", "fedem")
SMALL = settings(derandomize=True, deadline=None, max_examples=100, database=None)


def uneven(size, classes, seed):
    """Labels of unequal classes, some perhaps absent."""
    rng = np.random.default_rng(seed)
    return rng.choice(classes, size, p=rng.dirichlet(np.ones(classes)))


def assert_partition(p, size, minimum):
    np.testing.assert_array_equal(np.sort(p.order), np.arange(size))
    assert p.count.min() >= minimum
    np.testing.assert_array_equal(np.concatenate([p.of(i) for i in range(p.n)]), p.order)
    assert all(field.dtype == np.int32 for field in p)
    assert p.check(size, minimum) is p


def same(p, q):
    return all(np.array_equal(a, b) for a, b in zip(p, q, strict=True))


# Every partitioner, everywhere ---------------------------------------------------------------


@st.composite
def cases(draw):
    size = draw(st.integers(1, 300))
    n = draw(st.integers(1, min(size, 60)))
    minimum = draw(st.integers(0, size // n))
    classes = draw(st.integers(1, 12))
    alpha = 10.0 ** draw(st.floats(-6, 6))
    return uneven(size, classes, draw(st.integers(0, 99))), n, minimum, alpha


@SMALL
@given(cases(), st.sampled_from(VARIANTS), st.integers(0, 99))
def test_dirichlet_is_a_partition(case, variant, seed):
    y, n, minimum, alpha = case
    p = dirichlet(y, n, alpha, variant=variant, seed=seed, minimum=minimum)
    assert_partition(p, len(y), minimum)
    facts = p.skew(y)
    assert np.isfinite(facts["cv"]) and 1 <= facts["effective_classes"] <= 12
    np.testing.assert_array_equal(facts["histogram"].sum(0), np.bincount(y))
    np.testing.assert_array_equal(facts["histogram"].sum(1), p.count)


@settings(SMALL, max_examples=50)
@given(cases(), st.integers(1, 4), st.integers(0, 99))
def test_the_others_are_partitions(case, k, seed):
    y, n, minimum, alpha = case
    size, classes = len(y), len(np.unique(y))
    k = min(max(k, -(-classes // n)), classes)
    for p in (
        data.iid(size, n, seed=seed, minimum=minimum),
        data.shards(y, n, k, seed=seed, minimum=minimum),
        data.labels_per_client(y, n, k, seed=seed, minimum=minimum),
        data.labels_per_client(y, n, k, alpha=alpha, seed=seed, minimum=minimum),
        data.quantity(size, n, beta=alpha, seed=seed, minimum=minimum),
        data.quantity(y, n, sigma=alpha, seed=seed, minimum=minimum),
    ):
        assert_partition(p, size, minimum)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("alpha", [5e-324, 1e-6, 1e6, math.inf])
def test_dirichlet_ends_at_the_extremes(variant, alpha):
    y = uneven(500, 7, 0)
    for n, minimum in ((1, 500), (2, 250), (499, 1), (500, 1), (700, 0)):
        assert_partition(dirichlet(y, n, alpha, variant=variant, minimum=minimum), 500, minimum)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dirichlet_at_full_size(variant):
    y = np.arange(60_000) % 10
    for alpha in (1e-6, 0.1):
        p = dirichlet(y, 1000, alpha, variant=variant, minimum=50)
        assert_partition(p, len(y), 50)


def test_equal_seeds_give_equal_partitions():
    y = uneven(400, 5, 1)
    for f in (
        lambda seed: data.iid(400, 7, seed=seed),
        lambda seed: dirichlet(y, 7, 0.3, seed=seed),
        lambda seed: dirichlet(y, 7, 0.3, variant="client", seed=seed),
        lambda seed: dirichlet(y, 7, 0.3, variant="fedem", groups=2, seed=seed),
        lambda seed: data.shards(y, 7, seed=seed),
        lambda seed: data.labels_per_client(y, 7, 2, seed=seed),
        lambda seed: data.quantity(400, 7, beta=0.5, seed=seed),
    ):
        assert same(f(3), f(3)) and same(f(3), f(np.random.default_rng(3)))
        assert not same(f(3), f(4))


# The repair ----------------------------------------------------------------------------------


@SMALL
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 99), st.data())
def test_mend_takes_from_the_largest(n, classes, seed, more):
    table = np.random.default_rng(seed).negative_binomial(0.3, 0.02, (n, classes))
    minimum = more.draw(st.integers(0, int(table.sum()) // n))
    mended = _mend(table, minimum)
    np.testing.assert_array_equal(mended.sum(0), table.sum(0))
    # One example at a time, from whoever has most.
    size = table.sum(1)
    need = np.maximum(minimum - size, 0)
    for _ in range(need.sum()):
        size[size.argmax()] -= 1
    np.testing.assert_array_equal(np.sort(size + need), np.sort(mended.sum(1)))
    gained = mended.sum(1) > table.sum(1)
    np.testing.assert_array_equal(gained, need > 0)
    assert (mended >= 0).all() and (mended[gained] >= table[gained]).all()


def test_mend_prefers_the_receivers_classes():
    table = np.array([[0, 2, 0], [30, 20, 0], [0, 0, 40]])
    np.testing.assert_array_equal(_mend(table, 6), [[0, 6, 0], [30, 16, 0], [0, 0, 40]])
    table = np.array([[0, 0, 0], [30, 20, 0], [0, 0, 40]])
    np.testing.assert_array_equal(_mend(table, 6), [[6, 0, 0], [24, 20, 0], [0, 0, 40]])


# Limits and statistics -----------------------------------------------------------------------


def test_limits_of_alpha():
    y = np.arange(4000) % 10
    for variant in ("class", "class_uncapped"):
        table = dirichlet(y, 20, math.inf, variant=variant).skew(y)["histogram"]
        assert abs(table - 20).max() <= 1
    for variant in ("class", "class_uncapped", "fedem"):
        table = dirichlet(y, 20, 1e-6, variant=variant, minimum=0).skew(y)["histogram"]
        np.testing.assert_array_equal((table > 0).sum(0), 1)  # one owner per class
    facts = dirichlet(y, 20, 1e-6, variant="client").skew(y)
    np.testing.assert_array_equal((facts["histogram"] > 0).sum(1), 1)  # one class per client
    np.testing.assert_array_equal(facts["sizes"], 200)
    for variant in ("client", "fedem"):  # not exact: drawn
        tables = [
            dirichlet(y, 20, math.inf, variant=variant, seed=s).skew(y)["histogram"][:4]
            for s in range(20)
        ]
        squares = (np.array(tables) - 20.0) ** 2
        assert squares.mean() == pytest.approx(
            20 * 0.925, rel=5 * math.sqrt(2 / squares.size) + 0.03
        )


def tables(variant, alpha, repeats, n=20):
    """Coefficient of variation, mean entropy and first client's entropy, 50 000 examples."""
    rng = np.random.default_rng(5)
    rows = []
    for _ in range(repeats):
        table = _VARIANTS[variant](np.full(10, 5000), n, alpha, rng)
        size = table.sum(1)
        p = table[size > 0] / size[size > 0, None]
        entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
        rows.append((size.std() / size.mean(), entropy.mean(), entropy[0]))
    return np.array(rows).T


def assert_mean(sample, expected, bias=0.0):
    """Within five standard errors of this sample."""
    error = sample.std() / math.sqrt(len(sample))
    assert abs(sample.mean() - expected) <= 5 * error + bias, (sample.mean(), expected, error)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_dirichlet_moments(alpha):
    # Shares p ~ Dir(alpha 1_n) have variance (1/n)(1 - 1/n)/(n alpha + 1); ten classes add up.
    expected = 20**2 / 10 * (1 / 20) * (1 - 1 / 20) / (20 * alpha + 1)
    for variant in ("class_uncapped", "fedem"):
        assert_mean(tables(variant, alpha, 100)[0] ** 2, expected, bias=2e-3)
    assert tables("class", alpha, 50)[0].mean() < 0.85 * math.sqrt(expected)
    # The first client draws from all classes: E H = psi(C alpha + 1) - psi(alpha + 1), less the
    # (C - 1)/(2 m) that a histogram of m draws loses.
    cv, _, first = tables("client", alpha, 80)
    assert (cv == 0).all()
    assert_mean(first, digamma(10 * alpha + 1) - digamma(alpha + 1), bias=9 / 5000)


@pytest.mark.parametrize(
    ("variant", "alpha", "cv", "effective"),
    [
        ("class", 0.1, 0.54, 1.78),
        ("class_uncapped", 0.1, 1.04, 2.23),
        ("client", 0.1, 0.0, 2.34),
        ("class", 0.5, None, 4.7),
        ("class_uncapped", 0.5, None, 5.4),
        ("client", 0.5, None, 4.7),
    ],
)
def test_dirichlet_covers_a_draw_of_other_code(variant, alpha, cv, effective):
    # One realisation each, measured with an independent prototype: within three deviations.
    spread, entropy, _ = tables(variant, alpha, 60)
    classes = np.exp(entropy)
    assert abs(classes.mean() - effective) <= 3 * classes.std()
    if cv is not None:
        assert abs(spread.mean() - cv) <= 3 * spread.std()


def test_unequal_priors_and_groups():
    y = np.repeat(np.arange(3), [6000, 3000, 1000])
    draws = [dirichlet(y, 5, 100.0, variant="client", seed=s).skew(y) for s in range(20)]
    shares = np.mean([d["histogram"][0] for d in draws], 0) / 2000
    np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], atol=0.03)
    facts = dirichlet(y, 4, 1e-6, variant="fedem", groups=1, minimum=0).skew(y)
    assert (facts["sizes"] > 0).sum() == 1  # a group of all classes has one owner


def test_shards_and_labels_per_client():
    y = np.arange(1000) % 10
    facts = data.shards(y, 25, 2).skew(y)
    assert ((facts["histogram"] > 0).sum(1) <= 2).all() and (facts["sizes"] == 40).all()
    for n, k in ((25, 2), (5, 2), (7, 3), (4, 10)):
        facts = data.labels_per_client(y, n, k).skew(y)
        held = facts["histogram"] > 0
        assert (held.sum(1) == k).all()
        assert set(held.sum(0)) <= {n * k // 10, -(-n * k // 10)}
    skewed = data.labels_per_client(y, 25, 2, alpha=0.1).skew(y)
    assert ((skewed["histogram"] > 0).sum(1) <= 2).all() and skewed["cv"] > 0.5


def test_quantity_and_iid():
    cv = np.array([data.quantity(2000, 10, beta=0.5, seed=s).skew()["cv"] for s in range(200)])
    assert_mean(cv**2, 9 / (10 * 0.5 + 1), bias=0.01)
    sizes = np.concatenate(
        [data.quantity(10**6, 40, sigma=1.0, seed=s).count for s in range(2)], dtype=float
    )
    assert np.log(sizes).std() == pytest.approx(1.0, abs=5 / math.sqrt(2 * 80))
    assert (data.quantity(1000, 8, sigma=0.0).count == 125).all()
    assert sorted(data.iid(23, 5).count) == [4, 4, 5, 5, 5]
    owner = np.array([(data.iid(10, 5, seed=s).of(0) == 3).any() for s in range(400)])
    assert_mean(owner.astype(float), 0.2)


def test_natural_groups():
    p, names = data.natural(np.array(["eve", "ann", "eve", "bob", "ann", "eve"]))
    assert list(names) == ["ann", "bob", "eve"]
    assert [p.of(i).tolist() for i in range(3)] == [[1, 4], [3], [0, 2, 5]]
    assert_partition(p, 6, 1)
    p, names = data.natural([7, 7, -1])
    assert names.tolist() == [-1, 7] and p.count.tolist() == [1, 2]
    for ids in (["a", "1"], ["1", "a", "1"]):
        assert data.natural(ids)[1].tolist() == ["1", "a"]
    big = [2**63, 2**63 + 1, -1]  # one float
    assert data.natural(big)[1].tolist() == sorted(big)
    for ids in (["a", 1], [1, "1"], ["a", 1.5], np.array(["a", 1], object)):
        with pytest.raises(
            ValueError, match=r"all texts or all numbers.*\[str\(i\) for i in ids\]"
        ):
            data.natural(ids)
        with pytest.raises(ValueError, match="all texts or all numbers"):
            data.from_arrays(np.ones((2, 1)), [0, 1], ids)
    for ids in (
        ["a", None, "b"],
        [1.0, math.nan],
        np.array([1, math.nan], object),
        ["a", math.nan],
    ):
        with pytest.raises(ValueError, match="1 ids are missing .first: example 1"):
            data.natural(ids)
    with pytest.raises(ValueError, match="one column"):
        data.natural([[1, 2]])


def test_split_within_clients():
    p = dirichlet(np.arange(900) % 9, 12, 0.3, seed=2)
    rest, test = data.split(p, 0.25, seed=1)
    for i in range(p.n):
        parts = np.concatenate([rest.of(i), test.of(i)])
        np.testing.assert_array_equal(np.sort(parts), p.of(i))
        assert len(test.of(i)) == min(math.floor(p.count[i] / 4 + 0.5), p.count[i] - 1)
    assert same(rest, data.split(p, 0.25, seed=1)[0])
    empty = Partition(*(np.array(a, np.int32) for a in ([0, 1], [0, 0, 2], [0, 2, 0])))
    assert [q.count.tolist() for q in data.split(empty, 0.5)] == [[0, 1, 0], [0, 1, 0]]


def test_describe():
    p, _ = data.natural([0, 0, 0, 0, 1, 1])
    facts = p.skew([0, 0, 2, 2, 1, 1])
    np.testing.assert_array_equal(facts["histogram"], [[2, 0, 2], [0, 2, 0]])
    np.testing.assert_allclose(facts["effective"], [2, 1])
    np.testing.assert_allclose(facts["effective_classes"], math.sqrt(2))
    np.testing.assert_allclose(facts["cv"], 1 / 3)
    assert "histogram" not in p.skew()


Y = np.arange(20) % 4


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: data.iid(5, 6), "needs 6 examples, there are 5: use n=5 clients or fewer"),
        (lambda: dirichlet(Y, 4, 0.1, minimum=6), "or minimum=5"),
        (lambda: data.iid(5, 0), "at least 1 client"),
        (lambda: data.iid(5, 2, minimum=-1), "0 or more"),
        (lambda: dirichlet(Y, 4, 0.0), "alpha must be above 0"),
        (lambda: dirichlet(Y, 4, -1.0), "alpha must be above 0"),
        (lambda: dirichlet(Y, 4, math.nan), "alpha must be above 0"),
        (lambda: dirichlet(Y, 4, 1.0, variant="klass"), "class, class_uncapped, client, fedem"),
        (lambda: dirichlet(Y, 4, 1.0, groups=2), "fedem"),
        (lambda: dirichlet(Y, 4, 1.0, variant="fedem", groups=5), "1 to 4 classes"),
        (lambda: dirichlet(Y / 3, 4, 1.0), "integers .* np.digitize"),
        (lambda: dirichlet(Y[:, None], 4, 1.0), "shape"),
        (lambda: data.shards(Y, 4, 0), "at least 1 shard"),
        (lambda: data.labels_per_client(Y, 4, 5), "1 to 4 labels"),
        (lambda: data.labels_per_client(Y, 3, 1), "k=2 or more, or n=4"),
        (lambda: data.quantity(9, 3), "beta or sigma"),
        (lambda: data.quantity(9, 3, beta=1.0, sigma=1.0), "beta or sigma"),
        (lambda: data.quantity(9, 3, beta=0.0), "beta must be above 0"),
        (lambda: data.quantity(9, 3, sigma=-1.0), "sigma must be 0 or more"),
        (lambda: data.iid(9, 3).check(8), "indices of 8 examples; got 8"),
        (lambda: data.iid(9, 3).check(9, minimum=4), "client 0 has 3 examples.*minimum=4"),
        (lambda: data.iid(9, 3).skew(np.full(9, -1)), "0, 1, ..."),
        (lambda: data.split(data.iid(9, 3), 1.0), "shares"),
    ],
)
def test_partition_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_advice_is_taken():
    """What the message of an error says to do is accepted, down to `Clients.make`."""
    import re

    for n, minimum in ((6, 1), (100, 1), (2, 3), (3, 10), (9, 7)):
        with pytest.raises(ValueError, match="use ") as error:
            data.iid(5, n, minimum=minimum)
        said = re.findall(r"(n|minimum)=(\d+)", str(error.value).split("use ")[1])
        one_by_one = (
            [dict([pair]) for pair in said] if ", or " in str(error.value) else [dict(said)]
        )
        for fix in one_by_one:
            fix = {"n": n, "minimum": minimum} | {k: int(v) for k, v in fix.items()}
            assert fix["minimum"] >= 1 and data.iid(5, **fix).count.min() >= 1
    p = Partition(*np.array([[1, 0, 2], [0, 0, 2], [0, 2, 1]], np.int32))
    for call in (
        lambda: p.check(3),
        lambda: Clients.make({"x": np.ones((3, 1))}, p, lambda params, e, key: e["x"][:, 0]),
    ):
        with pytest.raises(ValueError, match=r"partition.having\(1\)\[0\]"):
            call()
    some, who = p.having(1)
    assert who.tolist() == [1, 2] and some.check(3).count.tolist() == [2, 1]
    assert Clients.make({"x": np.ones((3, 1))}, some, lambda params, e, key: e["x"][:, 0]).n == 2
    most, who = p.having(2)
    assert who.tolist() == [1] and most.order.tolist() == [1, 0]


def test_memory_goes_by_distinct_labels():
    for call in (
        lambda: data.iid(4, 2).skew([0, 1, 10**9, 3]),
        lambda: data.iid(4, 2).skew([0, 1, 10**7, 3]),
        lambda: data.from_arrays(np.ones((4, 1)), [0, 1, 10**9, 3]),
    ):
        with pytest.raises(ValueError, match=r"4 different ones up to 10+,.*return_inverse"):
            call()
    d = data.from_arrays(np.ones((4, 1)), [0, 1, 10**9, 3], [0, 0, 1, 1], classes=2**30, valid=0)
    assert d.classes == 2**30
    y = np.unique(d.train["y"], return_inverse=True)[1]
    assert d.partition.skew(y)["effective_classes"] > 1
    with pytest.raises(ValueError, match="which would take"):  # a table of 4 GiB
        data.iid(50_000, 50_000).skew(np.arange(50_000))


def test_check_finds_broken_partitions():
    good = data.iid(9, 3)
    with pytest.raises(ValueError, match="owned 2 times"):
        good._replace(order=np.where(good.order == 4, 5, good.order)).check(9)
    with pytest.raises(ValueError, match="cumsum"):
        good._replace(start=good.start + 1).check(9)
    with pytest.raises(ValueError, match="got -1"):
        good._replace(order=good.order - 1).check(9)
    with pytest.raises(IndexError, match="0 to 2"):
        good.of(3)


# Shifts --------------------------------------------------------------------------------------


def test_rotate():
    x = np.random.default_rng(0).random((8, 6, 6, 2)).astype(np.float32)
    p = data.iid(8, 4)
    turned = data.rotate(x, p, [0, 90, 180, -90])
    for i in range(4):
        np.testing.assert_array_equal(turned[p.of(i)], np.rot90(x[p.of(i)], i, axes=(1, 2)))
    close = data.rotate(x, p, np.array([0, 90, 180, 270]) + 1e-9)
    np.testing.assert_allclose(close, turned, atol=1e-6)
    np.testing.assert_allclose(data.rotate(np.ones((8, 5, 5)), p, [10, 25, 155, 205]), 1)
    assert data.rotate(np.ones((8, 4, 6)), p, [0, 180, 0, 30]).shape == (8, 4, 6)
    for bad, angles, match in (
        (np.ones((8, 64)), [0] * 4, "images"),
        (x, [0, 90], r"np.resize\(angles, 4\)"),
        (np.ones((8, 4, 6)), [0, 90, 0, 0], "square"),
    ):
        with pytest.raises(ValueError, match=match):
            data.rotate(bad, p, angles)


def test_noise():
    x = np.zeros((4000, 3, 2), np.float32)
    p = data.iid(4000, 4)
    noisy = data.noise(x, p, 2.0, seed=1)
    assert noisy.dtype == np.float32 and not noisy[p.of(0)].any()
    for i in range(1, 4):
        drawn = noisy[p.of(i)]
        assert drawn.std() == pytest.approx(i / 2, rel=5 / math.sqrt(2 * drawn.size))
    with pytest.raises(ValueError, match="sigma"):
        data.noise(x, p, -1.0)


def test_permute_labels():
    y = np.tile(np.arange(5), 60).astype(np.int32)
    p = data.iid(300, 6)
    seen = data.permute_labels(y, p, [0, 1, 2, 0, 1, 4], 5, seed=3)
    assert seen.dtype == y.dtype
    maps = {}
    for i, g in enumerate([0, 1, 2, 0, 1, 4]):
        pairs = set(zip(y[p.of(i)].tolist(), seen[p.of(i)].tolist(), strict=True))
        assert maps.setdefault(g, pairs) == pairs and len(pairs) == 5  # one bijection per group
        assert len({after for _, after in pairs}) == 5
    assert maps[0] == {(c, c) for c in range(5)}
    assert not maps[1] & maps[2] and not maps[1] & maps[0] and not maps[2] & maps[4]
    for groups, classes, match in (([5] * 6, 5, "groups"), ([0] * 6, 4, "y must"), ([0], 5, "one")):
        with pytest.raises(ValueError, match=match):
            data.permute_labels(y, p, groups, classes)


# Data sets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "shape", "classes"),
    [
        ("digits", 1797, (64,), 10),
        ("breast_cancer", 569, (30,), 2),
        ("wine", 178, (13,), 3),
        ("iris", 150, (4,), 3),
        ("diabetes", 442, (10,), None),
    ],
)
def test_bundled_sets(name, size, shape, classes):
    d = data.load(name, valid=0.2, test=0.1, seed=1)
    parts = (d.train, d.valid, d.test)
    counts = [len(part["y"]) for part in parts]
    assert sum(counts) == size and d.classes == classes
    # Rounded per class: at most half an example from the share.
    np.testing.assert_allclose(counts[1:], [0.2 * size, 0.1 * size], atol=(classes or 1) / 2)
    for part in parts:
        assert part["x"].shape[1:] == shape and part["x"].dtype == np.float32
        assert np.isfinite(part["x"]).all() and len(part["x"]) == len(part["y"])
        if classes:
            assert part["y"].dtype == np.int32 and set(part["y"]) == set(range(classes))
    if classes:
        share = [np.bincount(part["y"]) / len(part["y"]) for part in parts]
        np.testing.assert_allclose(share[2], share[0], atol=1.5 / counts[2])
    else:
        assert d.train["y"].dtype == np.float32
    if name == "digits":
        assert d.train["x"].min() == 0 and d.train["x"].max() == 1
    else:
        np.testing.assert_allclose(d.train["x"].mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(d.train["x"].std(0), 1, atol=1e-5)
        assert abs(d.test["x"].mean(0)).max() > 1e-3  # statistics of the training part only
    again = data.load(name, valid=0.2, test=0.1, seed=1)
    other = data.load(name, valid=0.2, test=0.1, seed=2)
    np.testing.assert_array_equal(d.test["x"], again.test["x"])
    assert not np.array_equal(d.test["x"], other.test["x"])
    with pytest.raises(ValueError, match="no natural clients"):
        _ = d.partition


EXTRA = {"chem97", "math_achieve", "insteval", "movielens", "kjv"}  # of jaxfl[sets]


def test_load():
    images = data.load("digits", image=True, valid=0.0, test=0.0)
    assert images.train["x"].shape == (1797, 8, 8, 1) and len(images.test["y"]) == 0
    with pytest.raises(ValueError, match="'digit'; did you mean 'digits'.*wine"):
        data.load("digit")
    for name in data.DATASETS.keys() - EXTRA:
        assert data.load(name).name == name


def test_from_arrays():
    x, y = np.arange(40.0).reshape(20, 2), Y
    d = data.from_arrays(x, y, valid=0.0, test=0.2)
    assert d.classes == 4 and len(d.test["y"]) == 4 and d.train["x"].dtype == np.float32
    rows = np.concatenate([d.train["x"], d.test["x"]])
    np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], x)
    assert data.from_arrays(x, y, classes=7).classes == 7
    assert data.from_arrays(x, y.astype(float), classes=4).train["y"].dtype == np.int32
    assert data.from_arrays(x, y.astype(float)).classes is None
    assert data.from_arrays(x, y % 2 == 0).classes == 2
    assert data.from_arrays(x.astype(np.uint8), y).train["x"].dtype == np.uint8
    assert data.from_arrays(x.astype(int), y).train["x"].dtype == np.int32
    assert data.from_arrays(x > 3, y, dtype=np.float64).train["x"].dtype == np.float64
    flat = data.from_arrays(np.ones((20, 1)), y, standardise=True)
    assert not flat.train["x"].any()  # a constant feature becomes 0


def test_from_arrays_with_clients():
    ids = np.repeat(np.array(["c", "a", "b"]), [1, 6, 13])
    d = data.from_arrays(np.arange(20.0)[:, None], Y, ids, valid=0.15, test=0.3, seed=4)
    assert list(d.names) == ["a", "b", "c"]
    assert d.partition.count.tolist() == [3, 7, 1]
    assert d.partitions["valid"].count.tolist() == [1, 2, 0]
    assert d.partitions["test"].count.tolist() == [2, 4, 0]
    for part in ("train", "valid", "test"):
        p, x = d.partitions[part], getattr(d, part)["x"][:, 0].astype(int)
        p.check(len(x), minimum=0)
        for i in range(3):
            assert set(ids[x[p.of(i)]]) <= {d.names[i]}
    assert data.describe(d).clients == 3


X = np.ones((4, 2))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: data.from_arrays(X * [1, math.nan], [0, 1, 0, 1]), "4 of 4 examples hold NaN"),
        (lambda: data.from_arrays(X * 1e300, [0, 1, 0, 1]), "x must be finite in float32"),
        (lambda: data.from_arrays(X, [0, 1, math.inf, 1]), "first is example 2"),
        (lambda: data.from_arrays(X.astype(str), [0, 1, 0, 1]), "x must be numbers; got <U"),
        (lambda: data.from_arrays(X, ["a", "b", "a", "b"]), "y must be numbers.*return_inverse"),
        (lambda: data.from_arrays(X, [0, 1, 0]), "'x': 4, 'y': 3"),
        (lambda: data.from_arrays(X, [0, 1, 0, 1], [1, 1]), "'client': 2"),
        (lambda: data.from_arrays(X, [0, 1, 0, 1], np.array([1, 1, None, 2])), "ids are missing"),
        (lambda: data.from_arrays(X, [0, 1, -1, 1]), "got -1 to 1"),
        (lambda: data.from_arrays(X, [0, 1, 2, 1], classes=2), "0 to 1; got 0 to 2"),
        (lambda: data.from_arrays(X, [0, 0.5, 1, 1], classes=2), "integers 0 to 1; got 0.5"),
        (lambda: data.from_arrays(X, [[0], [1], [0], [1]]), r"y.ravel\(\)"),
        (lambda: data.from_arrays(X[:0], []), "no examples"),
        (lambda: data.from_arrays(np.float64(3), [1]), "leading example axis"),
        (lambda: data.from_arrays(X, [0, 1, 2**40, 1]), "32 bits"),
        (lambda: data.from_arrays(X, [0, 1, 0, 1], valid=0.5, test=0.5), "below 1 together"),
    ],
)
def test_from_arrays_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_from_table():
    table = {
        "age": np.arange(30),
        "dose": np.linspace(0, 1, 30),
        "ill": np.arange(30) % 2,
        "site": np.repeat(["x", "y", "z"], 10),
    }
    d = data.from_table(table, target="ill", client="site", test=0.2, valid=0.0)
    assert d.train["x"].shape == (24, 2) and d.partition.count.tolist() == [8, 8, 8]
    assert d.classes == 2 and d.name == "table"
    record = np.zeros(30, [("age", float), ("ill", int)])
    assert data.from_table(record, target="ill").train["x"].shape[1] == 1
    one = data.from_table(table, target="ill", features=["dose"], name="doses")
    assert one.train["x"].max() <= 1 and one.name == "doses"
    with pytest.raises(ValueError, match="no column 'ages'; did you mean 'age'"):
        data.from_table(table, target="ill", features=["ages"])
    with pytest.raises(ValueError, match="column 'site' must be numbers"):
        data.from_table(table, target="ill")
    with pytest.raises(ValueError, match="at least one column"):
        data.from_table(table, target="ill", features=[])
    with pytest.raises(ValueError, match=r"must all be \[N\]"):
        data.from_table(table | {"dose": [1.0]}, target="ill", client="site")


# Generators ----------------------------------------------------------------------------------


def synthetic_facts(parts):
    """Mean entropy of the labels, share of the top class, distance between mean features."""
    p = np.array([np.bincount(y, minlength=10) / len(y) for _, y in parts])
    means = np.array([x.mean(0) for x, _ in parts])
    apart = np.linalg.norm(means[:, None] - means[None], axis=-1)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
    return entropy.mean(), p.max(1).mean(), apart[np.triu_indices(len(parts), 1)].mean()


def synthetic_loop(alpha, beta, rng):
    """The published generator, a client at a time."""
    sizes = rng.lognormal(4, 2, 30).astype(int) + 50
    u, centre = rng.normal(0, alpha, 30), rng.normal(0, beta, 30)
    scale = np.sqrt(np.arange(1, 61) ** -1.2)
    for i in range(30):
        mean = rng.normal(centre[i], 1, 60)
        w, b = rng.normal(u[i], 1, (60, 10)), rng.normal(u[i], 1, 10)
        x = rng.normal(mean, scale, (sizes[i], 60))
        yield x, np.argmax(x @ w + b, axis=1)


@pytest.mark.parametrize(
    ("alpha", "measured"),
    [(0.0, (0.52, 0.76, 11.1)), (0.5, (0.39, 0.83, 12.6)), (1.0, (0.30, 0.88, 15.8))],
)
def test_synthetic(alpha, measured):
    ours, theirs = [], []
    for seed in range(8):
        d = data.synthetic(alpha, alpha, valid=0.0, test=0.0, seed=seed)
        parts = [
            (d.train["x"][d.partition.of(i)], d.train["y"][d.partition.of(i)]) for i in range(30)
        ]
        ours.append(synthetic_facts(parts))
        theirs.append(
            synthetic_facts(list(synthetic_loop(alpha, alpha, np.random.default_rng([7, seed]))))
        )
    ours, theirs = np.array(ours), np.array(theirs)
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 8)
    assert (abs(ours.mean(0) - theirs.mean(0)) <= 5 * error).all()
    # A few draws of another prototype: within three deviations of one draw.
    assert (abs(ours.mean(0) - measured) <= 3 * ours.std(0)).all()


def test_synthetic_truth():
    d = data.synthetic(1.0, 0.5, n=6, d=8, classes=4, size=30, seed=2)
    assert d.partition.count.tolist() == [20] * 6 and d.classes == 4
    assert d.truth["w"].shape == (6, 8, 4)
    for i in range(6):
        x, y = d.train["x"][d.partition.of(i)], d.train["y"][d.partition.of(i)]
        np.testing.assert_array_equal((x @ d.truth["w"][i] + d.truth["b"][i]).argmax(1), y)
    same_for_all = data.synthetic(n=4, d=8, iid=True).truth
    assert (same_for_all["w"] == same_for_all["w"][0]).all() and not same_for_all["mean"].any()
    sizes = np.concatenate(
        [data.synthetic(n=100, d=2, valid=0.0, test=0.0, seed=s).partition.count for s in range(4)]
    )
    assert sizes.min() >= 50
    assert np.log(sizes - 49).mean() == pytest.approx(4.0, abs=5 * 2 / math.sqrt(400))


def test_teacher_student():
    d = data.teacher_student(6, rho=0.0, clusters=2, size=40, shift=1.0)
    w = d.truth["w1"]
    assert (w[0] == w[2]).all() and not np.allclose(w[0], w[1])
    for i in range(6):
        x, y = d.train["x"][d.partition.of(i)], d.train["y"][d.partition.of(i)]
        h = np.maximum(x @ w[i] + d.truth["b1"][i], 0)
        np.testing.assert_allclose((h @ d.truth["w2"][i] + d.truth["b2"][i])[:, 0], y, atol=1e-4)
    shared = data.teacher_student(4, rho=1.0).truth["w1"]
    assert (shared == shared[0]).all()
    w = data.teacher_student(400, rho=0.64, size=1).truth["w1"] * math.sqrt(20)
    assert (w[:200] * w[200:]).mean() == pytest.approx(0.64, abs=0.3)
    assert (w**2).mean() == pytest.approx(1.0, abs=0.3)
    assert data.teacher_student(3, classes=4).train["y"].max() <= 3
    noisy = data.teacher_student(4, noise=1.0, seed=3).train["y"]
    clean = data.teacher_student(4, seed=3).train["y"]
    assert (noisy - clean).std() == pytest.approx(1.0, abs=5 / math.sqrt(2 * len(clean)))


def test_two_moons():
    d = data.two_moons(6, shift="flip")
    for part, examples in (("train", d.train), ("valid", d.valid), ("test", d.test)):
        p = d.partitions[part]
        for i in range(3):
            a, b = p.of(i), p.of(i + 3)
            np.testing.assert_array_equal(examples["x"][a], examples["x"][b])
            np.testing.assert_array_equal(examples["y"][a], 1 - examples["y"][b])
    # The logistic gradient of the mean at zero weights.
    x, sign = d.train["x"].astype(float), 2.0 * d.train["y"] - 1
    np.testing.assert_allclose((sign[:, None] * x).sum(0), 0, atol=1e-10)
    clean = data.two_moons(4, shift="rotate", noise=0.0, valid=0.0, test=0.0)
    for i, angle in enumerate([0, math.pi / 2, math.pi, 3 * math.pi / 2]):
        assert clean.truth["angle"][i] == pytest.approx(angle)
        x, y = clean.train["x"][clean.partition.of(i)], clean.train["y"][clean.partition.of(i)]
        back = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        x = (x - (0.5, 0.25)) @ back.T + (0.5, 0.25)
        radius = np.linalg.norm(x - np.where(y[:, None] == 0, (0.0, 0.0), (1.0, 0.5)), axis=1)
        np.testing.assert_allclose(radius, 1, atol=1e-5)
        assert (x[y == 0, 1] >= -1e-6).all() and (x[y == 1, 1] <= 0.5 + 1e-6).all()


def test_mixture():
    d = data.mixture(8, size=400, noise=0.0, alpha=0.4, valid=0.0, test=0.0)
    pi, theta = d.truth["pi"], d.truth["theta"]
    np.testing.assert_allclose(pi.sum(1), 1)
    assert theta.shape == (3, 150)
    for i in range(8):
        x, y = d.train["x"][d.partition.of(i)], d.train["y"][d.partition.of(i)]
        says = x @ theta.T > 0
        # P(component k agrees) = pi_k + sum_j pi_j P(k and j agree), from the same x.
        agree = (says[:, :, None] == says[:, None, :]).mean(0)
        seen = (says == y[:, None]).mean(0)
        np.testing.assert_allclose(seen, agree @ pi[i], atol=5 * 0.5 / 20)
    assert data.mixture(20).partition.count.max() <= 1000


def test_planted_regression():
    d = data.planted_regression()
    assert d.partition.count.tolist() == [15] * 40 and d.classes is None
    theta, cluster = d.truth["theta"], d.truth["cluster"]
    for k in range(2):
        rows = np.concatenate([d.partition.of(i) for i in np.flatnonzero(cluster == k)])
        found = np.linalg.lstsq(d.train["x"][rows], d.train["y"][rows])[0]
        np.testing.assert_allclose(found, theta[k], atol=5 * 0.1 / math.sqrt(300 - 20))
    coins = data.planted_regression(prior="bernoulli", scale=3.0).truth["theta"]
    assert set(coins.ravel()) == {0.0, 3.0}


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: data.synthetic(-1.0), "alpha must be 0 or more"),
        (lambda: data.synthetic(n=0), "at least 1"),
        (lambda: data.teacher_student(rho=1.5), "rho must be 0 to 1"),
        (lambda: data.teacher_student(3, clusters=4), "clusters must be 1 to n=3"),
        (lambda: data.two_moons(shift="flop"), "rotate, flip or none"),
        (lambda: data.two_moons(5, shift="flip"), "even"),
        (lambda: data.two_moons(domains=0), "domains"),
        (lambda: data.mixture(alpha=0.0), "alpha must be above 0"),
        (lambda: data.planted_regression(prior="laplace"), "normal or bernoulli"),
        (lambda: data.planted_regression(2, clusters=3), "clusters"),
    ],
)
def test_generator_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
