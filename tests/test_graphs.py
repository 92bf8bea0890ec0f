"""Graphs, mixing weights and spectra against closed forms, and their errors."""

import math
import sys
import warnings

import networkx as nx
import numpy as np
import pytest

from jaxfl.networks import graphs, spectra, weights
from jaxfl.networks.matrices import shifts

TIGHT = {"rtol": 0, "atol": 1e-12}
RANDOM = (
    "erdos_renyi",
    "geometric",
    "regular",
    "watts_strogatz",
    "barabasi_albert",
    "random_out_fixed",
)
SHIFTED = ("ring", "complete", "exponential")


def connected(graph):
    return nx.is_strongly_connected(graph) if graph.is_directed() else nx.is_connected(graph)


def cosines(n):
    return 2 * np.cos(2 * np.pi * np.arange(n) / n)


def falling(values):
    return np.sort(np.ravel(values))[::-1]


# Closed forms.


@pytest.mark.parametrize("n, rate", [(5, 0.53934), (8, 0.80474), (16, 0.94925)])
def test_ring(n, rate):
    w = weights.metropolis(graphs.ring(n))
    np.testing.assert_allclose(spectra.eigenvalues(w), falling((1 + cosines(n)) / 3), **TIGHT)
    np.testing.assert_allclose(spectra.second(w), (1 + cosines(n)[1]) / 3, **TIGHT)
    np.testing.assert_allclose(spectra.gap(w), 1 - rate, atol=5e-6)
    np.testing.assert_allclose(spectra.least_eigenvalue(w), ((1 + cosines(n)) / 3).min(), **TIGHT)


def test_ring_of_two_is_an_edge():
    np.testing.assert_array_equal(weights.metropolis(graphs.ring(2)), np.full((2, 2), 0.5))


@pytest.mark.parametrize(
    "rows, cols, rate", [(4, 4, 0.6), (5, 5, 0.72361), (4, 6, 0.8), (3, 3, 0.4)]
)
def test_torus(rows, cols, rate):
    w = weights.metropolis(graphs.torus(rows=rows, cols=cols))
    values = (1 + cosines(rows)[:, None] + cosines(cols)[None]) / 5
    np.testing.assert_allclose(spectra.eigenvalues(w), falling(values), **TIGHT)
    np.testing.assert_allclose(spectra.second(w), abs(values).ravel()[1:].max(), **TIGHT)
    np.testing.assert_allclose(spectra.second(w), rate, atol=5e-6)


@pytest.mark.parametrize("n", [2, 7, 16])
def test_complete(n):
    w = weights.metropolis(graphs.complete(n))
    np.testing.assert_allclose(w, np.full((n, n), 1 / n), **TIGHT)
    np.testing.assert_allclose(spectra.second(w), 0, **TIGHT)
    assert spectra.mixing_time(w) == 1


@pytest.mark.parametrize("n", [3, 10])
def test_star(n):
    w = weights.metropolis(graphs.star(n))
    values = [1, *[1 - 1 / n] * (n - 2), 0]
    np.testing.assert_allclose(spectra.eigenvalues(w), values, **TIGHT)
    np.testing.assert_allclose(spectra.second(w), 1 - 1 / n, **TIGHT)


@pytest.mark.parametrize("m", [1, 3, 4])
def test_hypercube(m):
    graph = graphs.hypercube(2**m)
    times = [math.comb(m, k) for k in range(m + 1)]
    w = weights.metropolis(graph)
    values = np.repeat((m + 1 - 2 * np.arange(m + 1)) / (m + 1), times)
    np.testing.assert_allclose(spectra.eigenvalues(w), values, **TIGHT)
    np.testing.assert_allclose(spectra.second(w), (m - 1) / (m + 1), **TIGHT)
    walk = weights.lazy(nx.to_numpy_array(graph, range(2**m)) / m)
    np.testing.assert_allclose(walk, weights.constant(graph, 1 / (2 * m)), **TIGHT)
    values = np.repeat(1 - np.arange(m + 1) / m, times)
    np.testing.assert_allclose(spectra.eigenvalues(walk), values, **TIGHT)
    np.testing.assert_allclose(spectra.second(walk), 1 - 1 / m, **TIGHT)


@pytest.mark.parametrize("n", [2, 4, 6, 8, 12, 20])
def test_exponential_even(n):
    w = weights.uniform(graphs.exponential(n))
    weights.check(w)
    np.testing.assert_allclose(spectra.second(w), 1 - 2 / (math.ceil(math.log2(n)) + 1), **TIGHT)


@pytest.mark.parametrize("n, rate", [(7, 0.35355), (11, 0.48958), (15, 0.48990)])
def test_exponential_odd(n, rate):
    w = weights.uniform(graphs.exponential(n))
    phases = math.ceil(math.log2(n))
    powers = 2 ** np.arange(phases)
    modes = np.exp(-2j * np.pi * np.outer(np.arange(n), powers) / n).sum(1)
    values = (1 + modes) / (phases + 1)  # eigenvalues of a circulant
    np.testing.assert_allclose(spectra.second(w), abs(values[1:]).max(), **TIGHT)
    np.testing.assert_allclose(spectra.second(w), rate, atol=5e-6)
    assert spectra.second(w) < 1 - 2 / (phases + 1)
    found = spectra.eigenvalues(w)
    np.testing.assert_allclose(abs(found), falling(abs(values)), **TIGHT)
    np.testing.assert_allclose(abs(found[:, None] - values).min(0), 0, **TIGHT)


@pytest.mark.parametrize("name", ["one_peer_exponential", "one_peer_hypercube"])
@pytest.mark.parametrize("n", [2, 4, 8, 32])
def test_one_peer_averages_exactly(name, n):
    schedule = graphs.make(name, n)
    assert schedule.shape == (math.log2(n), n) and schedule.dtype == np.int32
    ws = weights.peers(schedule)
    for start in range(len(ws)):  # from any phase on
        product = np.linalg.multi_dot([*np.roll(ws, start, axis=0), np.eye(n)])
        np.testing.assert_array_equal(product, np.full((n, n), 1 / n))
    assert spectra.period_contraction(ws) == 0


@pytest.mark.parametrize("n, residual", [(6, 1 / 12), (12, 1 / 24)])
def test_one_peer_exponential_residual(n, residual):
    ws = weights.peers(graphs.one_peer_exponential(n))
    product = np.eye(n)
    for w in ws:
        product = w @ product
    np.testing.assert_allclose(abs(product - 1 / n).max(), residual, **TIGHT)
    norm = np.linalg.svd(product - 1 / n, compute_uv=False)[0]
    np.testing.assert_allclose(spectra.period_contraction(ws), norm, **TIGHT)
    np.testing.assert_allclose(spectra.second(ws[1]), 1, **TIGHT)  # even shift: no gap by itself


def test_one_peer_exponential_receives_from_behind():
    np.testing.assert_array_equal(graphs.one_peer_exponential(4), [[3, 0, 1, 2], [2, 3, 0, 1]])
    total = weights.peers(graphs.one_peer_exponential(6)).sum(0)
    static = weights.uniform(graphs.exponential(6))
    np.testing.assert_array_equal((total != 0), (static != 0))  # same receivers


def test_one_peer_ring():
    np.testing.assert_array_equal(graphs.one_peer_ring(6), [[1, 0, 3, 2, 5, 4], [5, 2, 1, 4, 3, 0]])
    ws = weights.peers(graphs.one_peer_ring(6))
    assert spectra.period_contraction(ws) < 1
    np.testing.assert_array_equal(ws[0], ws[0].T)


@pytest.mark.parametrize("n", [2, 5, 8, 16])
def test_path_best_constant(n):
    w = weights.best_constant(graphs.path(n))
    values = 1 - (1 - np.cos(np.pi * np.arange(n) / n))  # alpha = 1/2, as λ_2 + λ_n = 4
    np.testing.assert_allclose(spectra.eigenvalues(w), falling(values), **TIGHT)
    np.testing.assert_allclose(spectra.second(w), np.cos(np.pi / n), **TIGHT)


@pytest.mark.parametrize("n", [5, 8, 16])
def test_ring_best_constant(n):
    w = weights.best_constant(graphs.ring(n))
    values = np.sort(2 - cosines(n))
    np.testing.assert_allclose(
        spectra.second(w), (values[-1] - values[1]) / (values[-1] + values[1]), **TIGHT
    )
    if n == 8:
        np.testing.assert_allclose(w[0, 1], 0.43613, atol=5e-6)
        np.testing.assert_allclose(spectra.second(w), 0.74452, atol=5e-6)


@pytest.mark.parametrize("name", ["ring", "path", "star", "torus", "barabasi_albert"])
def test_random_edge(name):
    graph = graphs.make(name, 9)
    edges = list(graph.edges)
    schedule = np.tile(np.arange(9), (len(edges), 1))
    for row, (i, j) in zip(schedule, edges, strict=True):
        row[[i, j]] = j, i
    ws, lap = weights.peers(schedule), spectra.laplacian(graph)
    mean = ws.mean(0)
    np.testing.assert_allclose(mean, np.eye(9) - lap / (2 * len(edges)), **TIGHT)
    rate = 1 - np.linalg.eigvalsh(lap)[1] / (2 * len(edges))
    np.testing.assert_allclose(spectra.second(mean), rate, **TIGHT)
    # each W is a projection, W'W = W, so the squared error contracts by the same factor
    np.testing.assert_allclose(spectra.expected_contraction(ws), rate, **TIGHT)


@pytest.mark.parametrize("eta", [0.5, 0.9, 1.0])
def test_expected_contraction_of_all_shifts(eta):
    n = 10  # (n-1)/n on i+u, u uniform: every mode contracts by (1-η)² + η²(1 - 2/n)
    shift = [(n - 1) / n * np.roll(np.eye(n), u, axis=1) + np.eye(n) / n for u in range(1, n)]
    ws = [(1 - eta) * np.eye(n) + eta * s for s in shift]
    expected = (1 - eta) ** 2 + eta**2 * (1 - 2 / n)
    np.testing.assert_allclose(spectra.expected_contraction(ws), expected, **TIGHT)
    certain = spectra.expected_contraction(ws, np.eye(n - 1)[2])
    np.testing.assert_allclose(certain, spectra.second(ws[2]) ** 2, **TIGHT)


@pytest.mark.parametrize("n", [2, 7, 8])
def test_random_matching(n):
    rounds = 4000
    partner = graphs.random_matching(n, seed=1, rounds=rounds)
    assert partner.shape == (rounds, n) and partner.dtype == np.int32
    twice = np.take_along_axis(partner, partner, axis=1)
    np.testing.assert_array_equal(twice, np.tile(np.arange(n), (rounds, 1)))
    assert ((partner == np.arange(n)).sum(1) == n % 2).all()
    p = 1 / (n - 1 + n % 2)  # every other node equally often, and idle as often when n is odd
    meets = (partner[:, :, None] == np.arange(n)).mean(0)
    expected = np.where(np.eye(n) == 1, n % 2 * p, p)
    assert (abs(meets - expected) <= 5 * math.sqrt(p * (1 - p) / rounds)).all()
    mean = (np.eye(n) + (1 - np.eye(n)) / (n - 1)) / 2
    if n % 2 == 0:
        sampled = weights.peers(partner).mean(0)
        assert (abs(sampled - mean) <= 2.5 * math.sqrt(p * (1 - p) / rounds) + 1e-12).all()


# Times and resistances.


def test_mixing_time():
    w = weights.metropolis(graphs.ring(8))
    rate = (1 + cosines(8)[1]) / 3
    for eps in (0.5, 1e-2, 1e-6):
        rounds = spectra.mixing_time(w, eps)
        assert rounds == math.ceil(math.log(1 / eps) / (2 * math.log(1 / rate)))
        assert rate ** (2 * rounds) <= eps < rate ** (2 * rounds - 2)
    # the bound is met with equality on the slowest mode
    x = np.cos(2 * np.pi * np.arange(8) / 8)
    before, after = np.sum(x**2), np.sum((np.linalg.matrix_power(w, 5) @ x) ** 2)
    np.testing.assert_allclose(after / before, rate**10, rtol=1e-12)
    assert spectra.mixing_time(np.eye(3)) == math.inf
    assert spectra.mixing_time(np.array([[0.0, 1.0], [1.0, 0.0]])) == math.inf
    assert spectra.mixing_time([[0.75, 0.25], [0.25, 0.75]], 1 / 16) == 2  # exact: no rounding up
    with pytest.raises(ValueError, match="eps must be in"):
        spectra.mixing_time(w, 0.0)


@pytest.mark.parametrize(
    "name, n, expected",
    [
        ("ring", 10, 10 / (2 - 2 * math.cos(2 * math.pi / 10))),
        ("complete", 10, 4.5),
        ("star", 10, 9.0),
        ("hypercube", 8, 6.0),
        ("hypercube", 32, 5 * 16 / 2),
        ("path", 8, 7 / (2 - 2 * math.cos(math.pi / 8))),
    ],
)
def test_chi1(name, n, expected):
    graph = graphs.make(name, n)
    unit = spectra.laplacian(graph, 1 / graph.number_of_edges())
    np.testing.assert_allclose(spectra.chi1(unit), expected, rtol=1e-12)
    np.testing.assert_allclose(spectra.chi1(5 * unit), expected / 5, rtol=1e-12)
    if name == "ring":
        np.testing.assert_allclose(expected, 26.180, atol=5e-4)


@pytest.mark.parametrize(
    "graph",
    [
        graphs.ring(10), graphs.complete(10), graphs.hypercube(8), graphs.torus(16),
        graphs.star(7), graphs.path(8), graphs.binary_tree(11),
    ],
)  # fmt: skip
def test_chi2_of_trees_and_edge_transitive_graphs(graph):
    unit = spectra.laplacian(graph, 1 / graph.number_of_edges())
    np.testing.assert_allclose(spectra.chi2(unit), (len(graph) - 1) / 2, rtol=1e-12)


def test_chi_of_laplacian_rates_and_weights_agree():
    graph = graphs.barabasi_albert(8, 2)
    w = weights.metropolis(graph)
    rates = w - np.diag(np.diag(w))
    lap = spectra.laplacian(graph, rates)
    np.testing.assert_allclose(lap, np.eye(8) - w, **TIGHT)
    for chi in (spectra.chi1, spectra.chi2):
        np.testing.assert_allclose([chi(w), chi(rates)], chi(lap), rtol=1e-12)
    np.testing.assert_allclose(spectra.chi1(w), 1 / (1 - spectra.eigenvalues(w)[1]), rtol=1e-12)
    assert spectra.chi1(np.eye(3)) == math.inf
    halves = nx.Graph([(0, 1), (2, 3)])
    assert spectra.chi1(spectra.laplacian(halves)) == math.inf
    np.testing.assert_allclose(spectra.chi2(spectra.laplacian(halves)), 0.5, **TIGHT)


def test_barbell_rate():
    graph = nx.barbell_graph(5, 0)  # uniform rates: total sqrt(2 χ1 χ2) = 38.4
    unit = spectra.laplacian(graph, 1 / graph.number_of_edges())
    rate = math.sqrt(2 * spectra.chi1(unit) * spectra.chi2(unit))
    np.testing.assert_allclose(rate, 38.4, atol=0.05)


def test_perron():
    graph = graphs.barabasi_albert(12, 2, seed=3)
    with pytest.warns(UserWarning, match="degree-weighted"):
        w = weights.uniform(graph)
    degree = np.array([d + 1 for _, d in sorted(graph.degree)])
    np.testing.assert_allclose(spectra.perron(w), degree / degree.sum(), **TIGHT)
    limit = np.linalg.matrix_power(w, 2000)
    np.testing.assert_allclose(limit, np.tile(spectra.perron(w), (12, 1)), **TIGHT)

    push = weights.column_stochastic(graphs.random_out_fixed(9, 2, seed=1))
    shares = spectra.perron(push)
    np.testing.assert_allclose(push @ shares, shares, **TIGHT)
    np.testing.assert_allclose(shares.sum(), 1, **TIGHT)
    assert shares.min() > 0
    np.testing.assert_allclose(spectra.perron(weights.metropolis(graph)), 1 / 12, **TIGHT)
    with pytest.raises(ValueError, match="not unique"):
        spectra.perron(np.eye(3))
    with pytest.raises(ValueError, match="rows or columns"):
        spectra.perron(np.ones((3, 3)))


# Weights on every graph.


@pytest.mark.parametrize("name", graphs.GRAPHS)
def test_every_rule_on_every_graph(name):
    graph = graphs.make(name, 16, seed=2)
    undirected = graph if not graph.is_directed() else graph.to_undirected()
    edges = nx.to_numpy_array(graph, range(16)).T + np.eye(16) > 0
    for rule in ("metropolis", "lazy", "max_degree"):
        w = weights.check(weights.make(rule, undirected), "symmetric")
        np.testing.assert_array_equal(w != 0, edges | edges.T)
    assert spectra.least_eigenvalue(weights.make("lazy", undirected)) > -1e-12
    best = weights.check(weights.best_constant(undirected), "symmetric", negative=True)
    degree = max(d for _, d in undirected.degree)
    np.testing.assert_allclose(
        weights.constant(undirected, 1 / (degree + 1)), weights.max_degree(undirected), **TIGHT
    )
    assert spectra.second(best) <= spectra.second(weights.max_degree(undirected)) + 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        row = weights.check(weights.uniform(graph), "row")
    column = weights.check(weights.column_stochastic(graph), "column")
    doubly = weights.check(weights.sinkhorn(graph))
    for w in (row, column, doubly):
        np.testing.assert_array_equal(w != 0, edges)
    if not graph.is_directed():
        weights.check(doubly, "symmetric")
        np.testing.assert_allclose(column, row.T, **TIGHT)


@pytest.mark.parametrize("name", graphs.GRAPHS)
def test_fastest_on_every_graph(name):
    graph = graphs.make(name, 8, seed=2)
    graph = graph.to_undirected() if graph.is_directed() else graph
    edges = nx.to_numpy_array(graph, range(8)) + np.eye(8) > 0
    w = weights.check(weights.fastest(graph), "symmetric", negative=True)
    chain = weights.check(weights.fastest(graph, nonnegative=True), "symmetric")
    assert not w[~edges].any() and not chain[~edges].any()
    best, local = weights.best_constant(graph), weights.metropolis(graph)
    assert spectra.second(w) <= min(spectra.second(best), spectra.second(chain)) + 1e-6
    assert spectra.second(chain) <= spectra.second(local) + 1e-6


@pytest.mark.parametrize("graph", [graphs.path(8), nx.barbell_graph(5, 0)])
def test_fastest_beats_metropolis(graph):
    assert spectra.second(weights.fastest(graph)) < spectra.second(weights.metropolis(graph)) - 0.01


@pytest.mark.parametrize("graph", [graphs.ring(9), graphs.star(6), graphs.hypercube(8)])
def test_fastest_is_constant_on_edge_transitive_graphs(graph):
    rates = [spectra.second(rule(graph)) for rule in (weights.fastest, weights.best_constant)]
    np.testing.assert_allclose(*rates, atol=1e-6)


def test_fastest_without_cvxpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ImportError, match=r'pip install "jaxfl\[sdp\]"'):
        weights.fastest(graphs.ring(4))


def test_uniform_warns_only_when_the_limit_is_not_the_mean():
    for graph in (graphs.ring(6), graphs.exponential(7), graphs.regular(8, 3)):
        weights.check(weights.uniform(graph))  # a warning would be an error
    with pytest.warns(UserWarning, match="degree-weighted mean .* use `metropolis"):
        weights.uniform(graphs.star(5))
    with pytest.warns(UserWarning, match="perron.* use `sinkhorn"):
        weights.uniform(graphs.random_out_fixed(9, 2))


def test_weights_ignore_edge_attributes_and_loops_but_not_directions():
    graph = graphs.path(4)
    graph.edges[0, 1]["weight"] = 7.0
    graph.add_edge(2, 2)
    np.testing.assert_array_equal(weights.metropolis(graph), weights.metropolis(graphs.path(4)))
    arrow = nx.DiGraph([(0, 1), (1, 2), (2, 0)])  # 1 hears 0
    np.testing.assert_array_equal(
        weights.column_stochastic(arrow), [[0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0.5, 0.5]]
    )


# Neighbour and shift forms.


MATRICES = [
    *(
        pytest.param(
            weights.make(
                "column_stochastic"
                if name in ("exponential", "random_out_fixed")
                else "metropolis",
                graphs.make(name, 16, seed=3),
            ),
            id=name,
        )
        for name in graphs.GRAPHS
    ),
    pytest.param(weights.best_constant(graphs.star(7)), id="negative"),
    pytest.param(np.eye(4), id="identity"),
    pytest.param(weights.peers(graphs.random_matching(7))[0], id="matching"),
]


@pytest.mark.parametrize("w", MATRICES)
def test_neighbours_round_trip(w):
    n = len(w)
    idx, weight, back = weights.neighbours(w)
    assert idx.shape == weight.shape == back.shape
    assert idx.shape[1] == 1 + ((w != 0) & ~np.eye(n, dtype=bool)).sum(1).max()
    assert (idx.dtype, weight.dtype, back.dtype) == (np.int32, np.float64, np.int32)
    rebuilt = np.zeros_like(w)
    np.add.at(rebuilt, (np.arange(n)[:, None], idx), weight)
    np.testing.assert_array_equal(rebuilt, w)
    np.testing.assert_array_equal(idx[:, 0], np.arange(n))
    np.testing.assert_array_equal(weight[:, 0], np.diag(w))
    for i in range(n):
        others = [j for j in range(n) if j != i and w[i, j] != 0]
        used = 1 + len(others)
        assert idx[i, 1:used].tolist() == others
        assert (idx[i, used:] == i).all() and not weight[i, used:].any()
        assert back[i, 0] == 0 and not back[i, used:].any()
        for s in range(1, used):
            if w[idx[i, s], i] != 0:
                assert idx[idx[i, s], back[i, s]] == i and back[i, s] > 0
            else:
                assert back[i, s] == -1


@pytest.mark.parametrize("w", MATRICES)
def test_shifts_round_trip(w):
    n = len(w)
    form = shifts(w)
    circulant = all(np.array_equal(np.roll(w[0], i), w[i]) for i in range(n))
    assert (form is not None) == circulant
    if form is not None:
        values, offsets = form
        assert offsets[0] == 0 and list(offsets) == sorted(set(offsets))
        rebuilt = sum(v * np.roll(np.eye(n), s, axis=1) for v, s in zip(*form, strict=True))
        np.testing.assert_array_equal(rebuilt, w)


@pytest.mark.parametrize("n", [*range(2, 24), 64])
@pytest.mark.parametrize("name", SHIFTED)
def test_circulant_graphs_have_shifts(name, n):
    graph = graphs.make(name, n)
    rules = (
        [weights.uniform, weights.column_stochastic]
        if graph.is_directed()
        else [weights.metropolis, weights.max_degree, weights.lazy_metropolis, weights.uniform]
    )
    for rule in rules:
        assert shifts(rule(graph)) is not None


def test_shifts_of_a_ring():
    form = shifts(weights.metropolis(graphs.ring(5)))
    assert form is not None and form[1] == (0, 1, 4)
    np.testing.assert_allclose(form[0], 1 / 3, **TIGHT)
    form = shifts(weights.uniform(graphs.exponential(8)))  # i hears i-1, i-2, i-4
    assert form is not None and form[1] == (0, 4, 6, 7)
    form = shifts([[0.0, 1.0], [1.0, 0.0]])  # the own row keeps its place at weight 0
    assert form is not None and form[1] == (0, 1) and form[0].tolist() == [0, 1]


# Random families.


@pytest.mark.parametrize("name", RANDOM)
def test_random_families_are_connected(name):
    for seed in range(20):
        graph = graphs.make(name, 20, seed=seed)
        assert connected(graph) and sorted(graph) == list(range(20))
        assert not list(nx.selfloop_edges(graph))
    same = [graphs.make(name, 20, seed=s) for s in (5, np.random.default_rng(5), 6)]
    assert set(same[0].edges) == set(same[1].edges) != set(same[2].edges)


@pytest.mark.parametrize(
    "name, options",
    [
        ("erdos_renyi", {"p": 0.01}),
        ("geometric", {"radius": 0.01}),
        ("watts_strogatz", {"k": 2, "p": 1.0}),
        ("random_out_fixed", {"k": 1}),
        ("random_out_fixed", {"k": 3}),
        ("regular", {"degree": 2}),
    ],
)
def test_hopeless_draws_are_repaired(name, options):
    draws = [graphs.make(name, 60, seed=seed, **options) for seed in range(5)]
    for graph in draws:
        assert connected(graph) and len(graph) == 60
        if name == "random_out_fixed":
            assert {len(graph[i]) for i in graph} == {options["k"]}
        if name == "regular":
            assert {d for _, d in graph.degree} == {2}
    if name == "geometric":  # hardly any pair is in reach: the tree, and little else
        assert all(graph.number_of_edges() <= 59 + 10 for graph in draws)


def test_repair_of_a_regular_graph_keeps_degrees(monkeypatch):
    apart = nx.disjoint_union_all([nx.complete_graph(4), nx.petersen_graph(), nx.complete_graph(4)])
    monkeypatch.setattr(graphs, "_pairings", lambda n, degree, rng: apart.edges)
    graph = graphs.regular(18, 3)
    assert nx.is_connected(graph) and {d for _, d in graph.degree} == {3}
    assert not list(nx.selfloop_edges(graph)) and graph.number_of_edges() == 27


@pytest.mark.parametrize("n, degree", [(2, 1), (5, 2), (6, 3), (7, 4), (9, 6), (10, 9), (12, 11)])
def test_regular(n, degree):
    for seed in range(5):
        graph = graphs.regular(n, degree, seed)
        assert {d for _, d in graph.degree} == {degree} and nx.is_connected(graph)


def test_default_densities():
    many = [graphs.erdos_renyi(100, seed=s).number_of_edges() for s in range(20)]
    pairs, p = 100 * 99 / 2, 2 * math.log(100) / 100
    assert abs(np.mean(many) - pairs * p) <= 5 * math.sqrt(pairs * p * (1 - p) / 20)
    graph = graphs.geometric(100)
    place, radius = nx.get_node_attributes(graph, "pos"), math.sqrt(2 * math.log(100) / math.pi)
    assert max(math.dist(place[i], place[j]) for i, j in graph.edges) <= radius / 10
    out = graphs.random_out_fixed(30, 4)
    assert {len(out[i]) for i in out} == {4}


# Names, shapes, errors.


@pytest.mark.parametrize("n", [2, 3, 4, 6, 9, 12])
def test_plain_graphs(n):
    expected = {
        "ring": n if n > 2 else 1,
        "path": n - 1,
        "complete": n * (n - 1) // 2,
        "star": n - 1,
        "binary_tree": n - 1,
        "exponential": n * math.ceil(math.log2(n)),
    }
    for name, edges in expected.items():
        graph = graphs.make(name, n)
        assert list(graph) == list(range(n)) and graph.number_of_edges() == edges
        assert connected(graph)


def test_lattices_choose_the_squarest_sides():
    for n, sides in ((4, (2, 2)), (6, (2, 3)), (12, (3, 4)), (16, (4, 4))):
        for build in (graphs.torus, graphs.grid):
            named, given = build(n), build(rows=sides[0], cols=sides[1])
            assert list(named) == list(range(n)) and set(named.edges) == set(given.edges)
            assert set(build(n, cols=sides[1]).edges) == set(given.edges)
    assert set(graphs.grid(rows=2, cols=3)[4]) == {1, 3, 5}
    assert set(graphs.torus(rows=4, cols=6)[0]) == {1, 5, 6, 18}
    assert nx.utils.graphs_equal(graphs.torus(rows=1, cols=5), graphs.ring(5))


def test_registries():
    for name in graphs.GRAPHS:
        assert isinstance(graphs.make(name, n=16, seed=1), nx.Graph)
    for name in graphs.SCHEDULES:
        assert graphs.make(name, n=16, seed=1).shape[-1] == 16
    assert graphs.make("watts_strogatz", 16, k=6).number_of_edges() == 48
    w = weights.make("constant", graphs.ring(4), alpha=0.25)
    np.testing.assert_array_equal(w, weights.lazy(nx.to_numpy_array(graphs.ring(4)) / 2))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: graphs.make("rnig", 8), "unknown graph 'rnig': did you mean 'ring'"),
        (lambda: graphs.make("one_peer_exp", 8), "did you mean 'one_peer_exponential'"),
        (lambda: graphs.make("ring", 8, p=0.1), "ring has no option 'p'; it takes n"),
        (lambda: weights.make("metroplis", graphs.ring(4)), "did you mean 'metropolis'"),
        (lambda: weights.make("uniform", graphs.ring(4), alpha=1), "no option 'alpha'"),
        (lambda: graphs.ring(1), "n must be at least 2, got 1"),
        (lambda: graphs.random_matching(0), "n must be at least 2"),
        (lambda: graphs.hypercube(12), r"n = 2\^m, got 12: use n=8 or n=16, or exponential"),
        (lambda: graphs.one_peer_hypercube(6), "or one_peer_exponential"),
        (lambda: graphs.one_peer_ring(7), r"even n, got 7: use n=8, or random_matching\(n=7\)"),
        (lambda: graphs.torus(7), r"got the prime 7: use n=8, or ring\(n=7\)"),
        (lambda: graphs.grid(13), r"or path\(n=13\)"),
        (lambda: graphs.torus(), "needs n, or rows and cols"),
        (lambda: graphs.torus(12, rows=5), "n must be rows"),
        (lambda: graphs.grid(rows=0, cols=3), "rows must be at least 1, got 0"),
        (lambda: graphs.regular(7, 3), r"use regular\(n=8, degree=3\) or regular\(n=7, degree=2\)"),
        (lambda: graphs.regular(4, 4), "degree must be from 2 to n-1 = 3, got 4"),
        (lambda: graphs.regular(4, 1), "degree must be from 2"),
        (lambda: graphs.erdos_renyi(8, 0.0), "p must be a probability"),
        (lambda: graphs.geometric(8, -1.0), "radius must be"),
        (lambda: graphs.watts_strogatz(8, 3), "k must be even"),
        (lambda: graphs.watts_strogatz(8, 2, 1.5), "p must be a probability"),
        (lambda: graphs.barabasi_albert(4, 4), "m must be from 1 to n-1 = 3"),
        (lambda: graphs.random_out_fixed(4, 4), "k must be from 1 to n-1 = 3"),
        (lambda: weights.metropolis(graphs.exponential(6)), "metropolis needs an undirected"),
        (lambda: weights.fastest(graphs.exponential(6)), "fastest needs an undirected"),
        (lambda: weights.metropolis(nx.path_graph([1, 2, 3])), "nodes 0..n-1"),
        (lambda: weights.best_constant(nx.Graph([(0, 1), (2, 3)])), "must be .*connected"),
        (lambda: weights.fastest(nx.Graph([(0, 1), (2, 3)])), "must be .*connected"),
        (lambda: weights.sinkhorn(nx.DiGraph([(0, 1), (1, 2)])), "must be .*connected"),
        (lambda: weights.sinkhorn(graphs.path(9), iterations=2), "iterations=20"),
        (lambda: weights.check(np.ones((2, 3))), r"square matrix \[n, n\], got shape \(2, 3\)"),
        (lambda: weights.lazy(np.ones(3)), r"got shape \(3,\)"),
        (lambda: weights.check(np.eye(2) * np.nan, connected=False), r"w\[0, 0\] = nan"),
        (lambda: weights.check([[1.5, -0.5], [-0.5, 1.5]]), r"negative, got w\[0, 1\] = -0.5"),
        (lambda: weights.check([[0.5, 0.5], [0.5, 0.6]]), "row 1 sums to 1.1: use `metropolis"),
        (lambda: weights.check([[0.5, 0.5], [0.25, 0.75]]), "column 0 sums to 0.75"),
        (lambda: weights.check([[0.5, 0.4], [0.25, 0.75]], "row"), "row 0 sums to 0.9: use `w / "),
        (lambda: weights.check([[0.5, 0.5], [0.5, 0.6]], "column"), "column 1 sums to 1.1"),
        (lambda: weights.check(np.roll(np.eye(3), 1, 0), "symmetric"), "must be symmetric"),
        (lambda: weights.check(np.eye(2), "double"), "did you mean 'doubly'"),
        (lambda: spectra.least_eigenvalue(np.roll(np.eye(3), 1, 0)), "must be symmetric"),
        (lambda: spectra.laplacian(graphs.path(3), np.ones((3, 3))), "0 off the edges"),
        (lambda: spectra.laplacian(graphs.exponential(6)), "laplacian needs an undirected"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_check_names_a_component():
    apart = nx.Graph([(0, 1), (1, 2), (2, 3), (4, 5)])
    w = weights.metropolis(apart)
    with pytest.raises(ValueError, match=r"nodes \[4, 5\] are one of its 2 components"):
        weights.check(w)
    np.testing.assert_array_equal(weights.check(w, connected=False), w)
    assert abs(spectra.gap(w)) < 1e-12 and spectra.mixing_time(w) == math.inf
    one_way = np.array([[1.0, 0.0], [0.5, 0.5]])
    with pytest.raises(ValueError, match="strongly"):
        weights.check(one_way, "row")


# Graphs in every form.


def forms(graph):
    from scipy.sparse import coo_array, csr_matrix

    a = nx.to_numpy_array(graph, range(len(graph)))
    return {
        "networkx": graph,
        "float": a,
        "weighted": 0.3 * a + np.eye(len(a)),  # weights and the diagonal do not count
        "bool": a.astype(bool),
        "list": a.tolist(),
        "csr": nx.adjacency_matrix(graph, range(len(graph))),
        "coo": coo_array(a),
        "spmatrix": csr_matrix(a),
    }


RULES = [name for name in weights.WEIGHTS if name != "fastest"]
OPTIONS = {"constant": {"alpha": 0.1}}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("graph", ["ring", "star", "erdos_renyi", "exponential"])
def test_every_form_of_a_graph_gives_the_same_weights(rule, graph):
    made, options = graphs.make(graph, 9), OPTIONS.get(rule, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # uniform weights of irregular graphs
        if made.is_directed() and rule in ("metropolis", "lazy", "max_degree", "constant"):
            for form in forms(made).values():
                with pytest.raises(ValueError, match="undirected"):
                    weights.make(rule, form, **options)
            return
        if made.is_directed() and rule == "best_constant":
            return
        expected = weights.make(rule, made, **options)
        for name, form in forms(made).items():
            np.testing.assert_array_equal(weights.make(rule, form, **options), expected, name)
        sparse = weights.make(rule, made, sparse=True, **options)
    np.testing.assert_allclose(sparse.toarray(), expected, **TIGHT)
    for ours, theirs in zip(weights.neighbours(sparse), weights.neighbours(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, **TIGHT)
    np.testing.assert_allclose(spectra.second(sparse), spectra.second(expected), **TIGHT)


@pytest.mark.parametrize("graph", ["ring", "exponential"])
def test_every_form_of_a_graph_makes_the_same_network(graph):
    import jax

    from jaxfl import networks

    made = graphs.make(graph, 8)
    expected = networks.topology(graph, 8)
    messages = networks.gossip(made, 3, seed=1)
    for name, form in forms(made).items():
        for ours, theirs in (
            (networks.topology(form), expected),
            (networks.gossip(form, 3, seed=1), messages),
        ):
            assert jax.tree.structure(ours) == jax.tree.structure(theirs), name
            for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
                np.testing.assert_array_equal(a, b, name)
        assert networks.mixing_facts(form) == networks.mixing_facts(made), name
        if graph == "ring" and name != "weighted":  # there they are rates
            rates = networks.poisson(form, 3, seed=1)
            for a, b in zip(*map(jax.tree.leaves, (rates, networks.poisson(made, 3, seed=1)))):
                np.testing.assert_array_equal(a, b, name)
    with pytest.raises(ValueError, match="8 nodes"):
        networks.topology(made, 9)


def takers():
    from jaxfl import networks

    return {
        **{k: lambda a, k=k: weights.make(k, a, **OPTIONS.get(k, {})) for k in RULES},
        "graph": networks.topology,
        "gossip": lambda a: networks.gossip(a, 3),
        "poisson": lambda a: networks.poisson(a, 3),
    }


@pytest.mark.parametrize("name", takers())
@pytest.mark.parametrize("sparse", [False, True])
def test_wrong_matrices_are_named(name, sparse):
    from scipy.sparse import csr_array

    take = takers()[name]
    for i, j, value, words in ((1, 2, np.nan, "finite"), (2, 1, -1.0, "negative")):
        a = nx.to_numpy_array(graphs.ring(6))
        a[i, j] = value
        with pytest.raises(ValueError, match=rf"{words}.*\[{i}, {j}\]"):
            take(csr_array(a) if sparse else a)
    wide = np.ones((3, 4))
    with pytest.raises(ValueError, match=r"square matrix \[n, n\]"):
        take(csr_array(wide) if sparse else wide)
    one_way = np.triu(nx.to_numpy_array(graphs.ring(6)))
    if name in ("metropolis", "lazy", "max_degree", "constant", "best_constant", "poisson"):
        with pytest.raises(ValueError, match=r"undirected graph, got a matrix with \[0, 1\]"):
            take(csr_array(one_way) if sparse else one_way)


@pytest.mark.parametrize("name", ["graph", "gossip", "poisson", "metropolis"])
def test_what_is_no_graph_is_refused(name):
    """With how to make one of it: nothing is taken for a matrix that is none."""
    take, path = takers()[name], [(0, 1), (1, 2)]
    for wrong, fix in (
        (path, r"networkx.Graph\(edges\)"),  # two of two are no matrix [2, 2]
        (np.array(path * 2).T, r"networkx.Graph\(edges\)"),
        (nx.Graph, "graphs.make"),
        (None, "graphs.make"),
        ({0: [1], 1: [0]}, "graphs.make"),
        ([[0, 1], [1]], "graphs.make"),
        (np.ones((3, 3)) * 1j, "graphs.make"),
    ):
        with pytest.raises(ValueError, match=rf"square matrix \[n, n\](.|\n)*{fix}"):
            take(wrong)
    if name != "graph":  # which takes names
        with pytest.raises(ValueError, match=r"graphs.make\('ring', n\)"):
            take("ring")


def test_a_graph_of_ones_own_takes_weights_and_links():
    from jaxfl import networks
    from jaxfl.engine import comm

    links = networks.Links(latency=1.0)
    made = graphs.make("erdos_renyi", 8, seed=3)
    expected = networks.topology("erdos_renyi", 8, seed=3, weights="lazy", links=links)
    for form in forms(made).values():
        assert networks.topology(form, weights="lazy", links=links).links.latency == 1.0
        network = networks.topology(form, 8, weights="lazy", links=links)
        np.testing.assert_array_equal(comm.to_dense(network.w), comm.to_dense(expected.w))


def test_advice_for_an_adjacency_matrix_averages():
    """The advice is followed, and repeated mixing reaches the mean; what swaps for ever is not."""
    from scipy.sparse import csr_array

    from jaxfl.networks import from_matrix

    ring, swap = nx.to_numpy_array(graphs.ring(6)), np.array([[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match=r"row 0 sums to 2: use `metropolis\(w\)`"):
        from_matrix(ring)
    assert spectra.second(weights.metropolis(ring)) < 1
    lattice = nx.to_numpy_array(graphs.grid(rows=3, cols=4))
    loop = np.roll(np.eye(5), 1, 0)
    for w in (ring / 2, swap, lattice / lattice.sum(1, keepdims=True), loop):
        assert sorted(abs(np.linalg.eigvals(w)))[-2] > 1 - 1e-12
        for form in (w, csr_array(w)):
            with pytest.raises(ValueError, match="periodic.*never averages.*`lazy"):
                from_matrix(form)
        from_matrix(weights.lazy(w))
    weights.check(swap, connected=False)  # one step of a schedule
    odd = nx.to_numpy_array(graphs.ring(5)) / 2
    assert spectra.second(odd) < 1 and from_matrix(odd).n == 5


# Many nodes.


@pytest.mark.parametrize(
    "name, rule",
    [
        ("ring", "metropolis"),
        ("path", "metropolis"),
        ("torus", "lazy"),
        ("star", "max_degree"),
        ("binary_tree", "best_constant"),
        ("erdos_renyi", "metropolis"),
        ("watts_strogatz", "sinkhorn"),
        ("exponential", "column_stochastic"),
        ("random_out_fixed", "column_stochastic"),
        ("random_out_fixed", "uniform"),
    ],
)
def test_spectra_of_large_graphs_are_those_of_small_ones(name, rule, monkeypatch):
    """The sparse ways, on a size where all eigenvalues can be had."""
    made = graphs.make(name, 144)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        w = weights.make(rule, made, sparse=True)
    dense = w.toarray()
    expected, values = spectra.second(dense), spectra.eigenvalues(dense)
    least = spectra.least_eigenvalue(dense) if not made.is_directed() else None
    monkeypatch.setattr(spectra, "_DENSE", 100)
    monkeypatch.setattr(spectra, "_dense", None)  # nobody makes it dense
    np.testing.assert_allclose(spectra.second(w), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(spectra.period_contraction([w]), expected, rtol=0, atol=1e-9)
    if least is not None:
        largest, smallest = spectra.ends(w, 3)
        np.testing.assert_allclose(largest, values[:3], rtol=0, atol=1e-8)
        np.testing.assert_allclose(smallest, values[-3:], rtol=0, atol=1e-8)
        np.testing.assert_allclose(spectra.least_eigenvalue(w), least, rtol=0, atol=1e-9)


def test_ten_thousand_nodes(tmp_path):
    """No array of the size of all pairs: 800 MB. The gap of a ring is known."""
    import tracemalloc

    from jaxfl import networks, plots

    n = 10_000
    tracemalloc.start()
    g = graphs.make("ring", n)
    facts, (w,) = networks.mixing_facts(g), networks.facts.phases(g)
    axes = plots.graph_and_spectrum(g, title="ring")
    assert networks.topology("ring", n).n == n and networks.gossip(g, 1).n == n
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    gap = 2 / 3 * (1 - np.cos(2 * np.pi / n))
    np.testing.assert_allclose(facts["gap"], gap, rtol=1e-6)
    assert facts["edges"] == n and w.nnz == 3 * n and len(axes) == 2
    schedule = networks.mixing_facts(graphs.make("one_peer_hypercube", 4096))
    assert schedule["gap"] == 1 and schedule["mixing_time"] == 12
    with pytest.raises(ValueError, match=r"about 5e\+11 edges"):
        graphs.complete(10**6)
    with pytest.raises(ValueError, match=r"about 1e\+12 edges"):
        graphs.ring(10**12)
