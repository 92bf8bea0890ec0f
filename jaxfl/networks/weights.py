"""Mixing weights of a graph: float64 matrices with `w[i, j]` the weight that i puts on j.

One gossip step is x <- w x. Undirected rules give symmetric, doubly stochastic matrices; with
`uniform` the rows sum to 1, with `column_stochastic` the columns (`w[i, j]` is then the share of
j's mass that i receives, for push-sum). `neighbours` and `shifts` are the sparse forms that the
engine mixes with.

A graph is one of networkx, or its adjacency matrix of NumPy or scipy.sparse, senders x receivers.
With `sparse=True` weights are a `scipy.sparse.csr_array`, for graphs of thousands of nodes; every
function here and in `spectra` takes both.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxfl.networks.graphs import accepts, lookup
from jaxfl.networks.matrices import (
    AnyGraph,
    Edges,
    Matrix,
    _finite,
    _off,
    _pattern,
    _rows,
    _undirected,
    sparse,
    square,
)

KINDS = ("symmetric", "doubly", "row", "column")


def metropolis(graph: AnyGraph, *, sparse: bool = False) -> Matrix:
    """Metropolis-Hastings weights 1 / (1 + max(d_i, d_j)): local, positive diagonal, any graph.

    Source: Xiao, Boyd, "Fast linear iterations for distributed averaging", Systems & Control
        Letters 2004 (local-degree weights; the 1 in the denominator keeps the diagonal positive).
    """
    i, j, degree = _undirected(graph, "metropolis").ends()
    return _matrix(i, j, 1 / (1.0 + np.maximum(degree[i], degree[j])), len(degree), sparse)


def lazy(w: Matrix) -> Matrix:
    """(I + w) / 2, without negative eigenvalues (as EXTRA wants it), at half the gap.

    Example:
        >>> networks.lazy(np.array([[0.0, 1.0], [1.0, 0.0]])).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    from scipy.sparse import eye_array, issparse

    w = square(w)
    return ((eye_array(w.shape[0], format="csr") if issparse(w) else np.eye(len(w))) + w) / 2


def lazy_metropolis(graph: AnyGraph, *, sparse: bool = False) -> Matrix:
    """`lazy(metropolis(graph))`."""
    return lazy(metropolis(graph, sparse=sparse))


def max_degree(graph: AnyGraph, *, sparse: bool = False) -> Matrix:
    """1 / (d_max + 1) on every edge."""
    i, j, degree = _undirected(graph, "max_degree").ends()
    return _matrix(i, j, np.full(len(i), 1 / (1.0 + degree.max())), len(degree), sparse)


def constant(graph: AnyGraph, alpha: float, *, sparse: bool = False) -> Matrix:
    """I - alpha L; it averages iff 0 < alpha < 2 / λ_max(L) and the graph is connected."""
    i, j, degree = _undirected(graph, "constant").ends()
    return _matrix(i, j, np.full(len(i), alpha), len(degree), sparse, 1 - alpha * degree)


def best_constant(graph: AnyGraph, *, sparse: bool = False) -> Matrix:
    """I - alpha L with the fastest alpha = 2 / (λ_2(L) + λ_n(L)); weights may be negative.

    Raises:
        ValueError: the graph is directed or disconnected.

    Source: Xiao, Boyd, "Fast linear iterations for distributed averaging", Systems & Control
        Letters 2004.
    """
    from jaxfl.networks import spectra

    edges = _undirected(graph, "best_constant")
    _joined(edges.sends, "best_constant")
    slow = 0.5 / np.diff(edges.sends.indptr).max()  # eigenvalues of I - slow L are in [0, 1]
    largest, least = spectra.ends(constant(graph, slow, sparse=sparse))
    return constant(graph, 2 * slow / (2 - largest[1] - least[-1]), sparse=sparse)


def uniform(graph: AnyGraph, *, sparse: bool = False) -> Matrix:
    """D^-1 (A + I): each node averages all that it hears; rows sum to 1, columns need not.

    Public federated code often has these weights where the analysis wants `metropolis`.

    Raises:
        UserWarning: columns do not sum to 1, so that the limit is not the mean of all nodes.
    """
    edges = Edges.of(graph)
    i, j, degree = edges.ends(heard=True)
    share = 1 / (1.0 + degree)
    w = _matrix(i, j, share[i], len(degree), sparse, share)
    if abs(w.sum(0) - 1).max() > 1e-9:
        limit = (
            "`jaxfl.networks.spectra.perron(w)`-weighted mean: use `sinkhorn(graph)`"
            if edges.directed
            else "degree-weighted mean (weights d_i + 1): use `metropolis(graph)`"
        )
        warnings.warn(
            f"uniform weights on an irregular graph do not average: their limit is the {limit} "
            "for the mean of all nodes.",
            UserWarning,
            stacklevel=2,
        )
    return w


def column_stochastic(graph: AnyGraph, *, sparse: bool = False) -> Matrix:
    """Push weights: j splits its mass equally over itself and its receivers, 1 / (outdeg_j + 1).

    Source: Assran, Loizou, Ballas, Rabbat, "Stochastic Gradient Push for Distributed Deep
        Learning", ICML 2019.
    """
    j, i, degree = Edges.of(graph).ends()
    share = 1 / (1.0 + degree)
    return _matrix(i, j, share[j], len(degree), sparse, share)


def sinkhorn(graph: AnyGraph, iterations: int = 10_000, *, sparse: bool = False) -> Matrix:
    """Doubly stochastic weights, also if directed: A + I with rows and columns scaled in turn.

    Raises:
        ValueError: the graph is not strongly connected, or sums are not 1 to 1e-12 after
            `iterations`.

    Source: Sinkhorn, Knopp, "Concerning nonnegative matrices and doubly stochastic matrices",
        Pacific Journal of Mathematics 1967.
    """
    edges = Edges.of(graph)
    _joined(edges.sends, "sinkhorn")
    i, j, degree = edges.ends(heard=True)
    w = _matrix(i, j, np.ones(len(i)), len(degree), sparse, np.ones(len(degree)))
    for _ in range(iterations):
        w = w / w.sum(1)[:, None]
        w = w / w.sum(0)[None]
        if abs(w.sum(1) - 1).max() < 1e-12:
            return square(w if edges.directed else (w + w.T) / 2)
    raise ValueError(
        f"sinkhorn did not settle in {iterations} iterations (row sums off by "
        f"{abs(w.sum(1) - 1).max():.1e}): use `sinkhorn(graph, iterations={10 * iterations})`."
    )


def fastest(graph: AnyGraph, nonnegative: bool = False) -> Float[np.ndarray, "n n"]:
    """Symmetric weights on the edges that minimise ||w - J||_2, by a semidefinite program.

    Args:
        graph: undirected.
        nonnegative: forbid negative weights (the fastest mixing Markov chain).

    Raises:
        ImportError: cvxpy is not installed.
        ValueError: the graph is directed or disconnected.

    Source: Xiao, Boyd, "Fast linear iterations for distributed averaging", Systems & Control
        Letters 2004; Boyd, Diaconis, Xiao, "Fastest mixing Markov chain on a graph", SIAM Review
        2004 (`nonnegative`).
    """
    try:
        import cvxpy as cp
    except ImportError as error:
        raise ImportError('fastest needs cvxpy: pip install "jaxfl[sdp]"') from error

    edges = _undirected(graph, "fastest")
    _joined(edges.sends, "fastest")
    i, j, degree = edges.ends()
    n, i, j = len(degree), i[i < j], j[i < j]
    incidence = np.zeros((n, len(i)))
    incidence[i, np.arange(len(i))], incidence[j, np.arange(len(i))] = 1.0, -1.0

    weight, norm = cp.Variable(len(i)), cp.Variable()
    error = np.eye(n) - 1 / n - incidence @ cp.diag(weight) @ incidence.T
    limits: list[cp.Constraint] = [error << norm * np.eye(n), -norm * np.eye(n) << error]
    if nonnegative:
        limits += [weight >= 0, abs(incidence) @ weight <= 1]
    problem = cp.Problem(cp.Minimize(norm), limits)
    problem.solve(solver=cp.CLARABEL)
    if weight.value is None:
        raise RuntimeError(
            f"fastest: the solver stopped with status {problem.status!r}: use "
            "`best_constant(graph)`."
        )

    found = weight.value
    if nonnegative:  # the solver meets its limits to about 1e-8: meet them exactly
        found = np.maximum(found, 0)
        found = found / max(1.0, (abs(incidence) @ found).max())
    w = np.zeros((n, n))
    w[i, j] = w[j, i] = found
    w = _fill(w)
    return np.maximum(w, 0) if nonnegative else w


def peers(schedule: Int[np.ndarray, "tau n"], weight: float = 0.5, *, sparse: bool = False) -> Any:
    """The matrices `[tau, n, n]` of a one-peer schedule, sparse ones as a list.

    1 - `weight` on oneself, `weight` on the peer.
    """
    tau, n = schedule.shape
    if sparse:
        own, share = np.arange(n), lambda idle: np.where(idle, 0.0, weight)
        each = ((own, peer, share(peer == own)) for peer in schedule)
        return [_matrix(i, j, values, n, True, 1 - values) for i, j, values in each]
    w = np.tile((1 - weight) * np.eye(n), (tau, 1, 1))
    np.add.at(w, (np.arange(tau)[:, None], np.arange(n)[None], schedule), weight)
    return w


WEIGHTS: dict[str, Callable[..., Matrix]] = {
    "metropolis": metropolis,
    "lazy": lazy_metropolis,
    "max_degree": max_degree,
    "constant": constant,
    "best_constant": best_constant,
    "uniform": uniform,
    "column_stochastic": column_stochastic,
    "sinkhorn": sinkhorn,
    "fastest": fastest,
}


def make(name: str, graph: AnyGraph, **options: Any) -> Matrix:
    """The weights of that name (from `WEIGHTS`) on a graph.

    Raises:
        ValueError: an unknown name (with the nearest one) or option.
    """
    rule = lookup(WEIGHTS, name, "weights")
    accepts(rule, name, options)
    return rule(graph, **options)


def check(
    w: Matrix,
    kind: str = "doubly",
    connected: bool = True,
    negative: bool = False,
    tol: float = 1e-9,
) -> Matrix:
    """The matrix as float64, if it has the properties of its kind.

    Args:
        w: `[n, n]`.
        kind: "row" or "column" sums are 1, "doubly" is both, "symmetric" is doubly and w = w'.
        connected: the graph of nonzero weights must be (strongly) connected, and not periodic:
            else repeated mixing never averages.
        negative: allow weights below 0 (`fastest` and `best_constant` give them).
        tol: of the sums and of symmetry, absolute.

    Raises:
        ValueError: the first property that fails, and where.
    """
    lookup(dict.fromkeys(KINDS, 0), kind, "kind of weights")
    w = square(w)
    edges = sparse(w)
    i, j = _rows(edges), edges.indices
    _finite(edges, "w", "metropolis(graph)")
    if not negative and edges.data.min(initial=0) < 0:
        k = edges.data.argmin()
        raise ValueError(
            f"w must not be negative, got w[{i[k]}, {j[k]}] = {edges.data[k]}: use "
            "`metropolis(graph)`, or `check(w, negative=True)` if that is meant."
        )
    for side, axis in (("row", 1), ("column", 0)):
        sums = np.asarray(edges.sum(axis))
        worst = abs(sums - 1).argmax()
        if kind in (side, "doubly", "symmetric") and abs(sums[worst] - 1) > tol:
            both = (_pattern(edges) != _pattern(edges.T)).nnz == 0
            fix = f"w / w.sum({axis}, keepdims=True)`" if kind == side else "metropolis(graph)`"
            if not edges.diagonal().any():  # divided by its sums it would be periodic, or biased
                fix = f"{'metropolis' if both else 'sinkhorn'}(w)`, as w is an adjacency matrix"
            raise ValueError(
                f"every {side} of w must sum to 1, {side} {worst} sums to {sums[worst]:.12g}: use "
                f"`{fix}."
            )
    if kind == "symmetric" and (apart := abs(edges - edges.T)).max() > tol:
        i, j = np.unravel_index(apart.argmax(), w.shape)
        raise ValueError(
            f"w must be symmetric, got w[{i}, {j}] = {w[i, j]} and w[{j}, {i}] = {w[j, i]}: use "
            "`(w + w.T) / 2` if w is doubly stochastic."
        )
    if connected:
        fix = "add edges, or `check(w, connected=False)` for one step of a time-varying graph"
        _joined(edges, "w", fix)
        _aperiodic(edges)
    return w


def neighbours(
    w: Matrix,
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """The neighbour-slot form `(idx, w, back)` of a matrix.

    Returns:
        `idx[i, 0]` = i with weight w_ii, further slots are the j != i with w_ij != 0 in
        increasing order, padding is i again with weight 0; `back[i, s]` is the slot of row
        j = `idx[i, s]` that points back to i: 0 for slot 0 and padding, -1 if j does not hear i.
    """
    w = sparse(w)
    edges, n = _off(w), w.shape[0]
    i, j, many = _rows(edges), edges.indices, np.diff(edges.indptr)
    slot = 1 + np.arange(len(i)) - edges.indptr[i]
    idx = np.tile(np.arange(n)[:, None], (1, 1 + many.max(initial=0)))
    weight, back = np.zeros(idx.shape), np.zeros(idx.shape, np.int32)
    idx[i, slot], weight[i, slot], weight[:, 0] = j, edges.data, w.diagonal()
    there = i.astype(np.int64) * n + j  # rising
    place = np.minimum(np.searchsorted(there, mirror := j.astype(np.int64) * n + i), len(i) - 1)
    back[i, slot] = np.where(there[place] == mirror, slot[place], -1) if len(i) else 0
    return idx.astype(np.int32), weight, back


def _joined(edges: Any, what: str, fix: str = "add edges") -> None:
    from scipy.sparse.csgraph import connected_components

    count, label = connected_components(edges, connection="strong")
    if count > 1:
        part = np.flatnonzero(label == np.bincount(label).argmin())
        nodes = ", ".join(map(str, part[:8])) + (", ..." if len(part) > 8 else "")
        raise ValueError(
            f"{what}: the graph must be (strongly) connected, nodes [{nodes}] are one of its "
            f"{count} components: {fix}."
        )


def _aperiodic(edges: Any) -> None:
    """All closed walks of a connected graph have a length in common: values only go round."""
    from scipy.sparse.csgraph import dijkstra

    far = dijkstra(abs(edges), indices=0, unweighted=True).astype(np.int64)
    period = int(np.gcd.reduce(far[_rows(edges)] + 1 - far[edges.indices]))
    if period > 1:
        raise ValueError(
            f"w is periodic: no node keeps a part of its own, after {period} rounds values are "
            f"where they were, and mixing never averages ({period} eigenvalues of modulus 1): use "
            "`metropolis(graph)`, or `lazy(w)`."
        )


def _matrix(i, j, values, n, sparse, diagonal=None):
    """Values at [i, j] and on the diagonal: by default what makes the rows sum to 1."""
    if not sparse:
        w = np.zeros((n, n))
        w[i, j] = values
        if diagonal is None:
            return _fill(w)
        np.fill_diagonal(w, diagonal)
        return w
    from scipy.sparse import csr_array

    if diagonal is None:
        diagonal = 1 - np.bincount(i, values, n)
    own = np.arange(n)
    ends = np.concatenate([i, own]), np.concatenate([j, own])
    w = csr_array((np.concatenate([values, diagonal]), ends), (n, n))
    w.sort_indices()
    return w


def _fill(w: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The diagonal that makes rows sum to 1; sorted, so that equal rows round equally."""
    np.fill_diagonal(w, 1 - np.sort(w, axis=1).sum(1))
    return w
