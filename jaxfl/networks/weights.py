"""Mixing weights of a graph: float64 matrices with `w[i, j]` the weight that i puts on j.

One gossip step is x <- w x. Undirected rules give symmetric, doubly stochastic matrices; with
`uniform` the rows sum to 1, with `column_stochastic` the columns (`w[i, j]` is then the share of
j's mass that i receives, for push-sum). `neighbours` and `shifts` are the sparse forms that the
engine mixes with.
"""

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from jaxfl.networks.graphs import NxGraph, accepts, lookup

KINDS = ("symmetric", "doubly", "row", "column")


def metropolis(graph: NxGraph) -> Float[np.ndarray, "n n"]:
    """Metropolis-Hastings weights 1 / (1 + max(d_i, d_j)): local, positive diagonal, any graph.

    Source: Xiao, Boyd, "Fast linear iterations for distributed averaging", Systems & Control
        Letters 2004 (local-degree weights; the 1 in the denominator keeps the diagonal positive).
    """
    edges = _undirected(graph, "metropolis")
    degree = edges.sum(1)
    return _fill(edges / (1.0 + np.maximum.outer(degree, degree)))


def lazy(w: ArrayLike) -> Float[np.ndarray, "n n"]:
    """(I + w) / 2, without negative eigenvalues (as EXTRA wants it), at half the gap.

    Example:
        >>> networks.lazy(np.array([[0.0, 1.0], [1.0, 0.0]])).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    w = _square(w)
    return (np.eye(len(w)) + w) / 2


def lazy_metropolis(graph: NxGraph) -> Float[np.ndarray, "n n"]:
    """`lazy(metropolis(graph))`."""
    return lazy(metropolis(graph))


def max_degree(graph: NxGraph) -> Float[np.ndarray, "n n"]:
    """1 / (d_max + 1) on every edge."""
    edges = _undirected(graph, "max_degree")
    return _fill(edges / (1.0 + edges.sum(1).max()))


def constant(graph: NxGraph, alpha: float) -> Float[np.ndarray, "n n"]:
    """I - alpha L; it averages iff 0 < alpha < 2 / λ_max(L) and the graph is connected."""
    edges = _undirected(graph, "constant")
    return np.diag(1 - alpha * edges.sum(1)) + alpha * edges


def best_constant(graph: NxGraph) -> Float[np.ndarray, "n n"]:
    """I - alpha L with the fastest alpha = 2 / (λ_2(L) + λ_n(L)); weights may be negative.

    Raises:
        ValueError: the graph is directed or disconnected.

    Source: Xiao, Boyd, "Fast linear iterations for distributed averaging", Systems & Control
        Letters 2004.
    """
    edges = _undirected(graph, "best_constant")
    _joined(edges, "best_constant")
    values = np.linalg.eigvalsh(np.diag(edges.sum(1)) - 1.0 * edges)
    return constant(graph, 2 / (values[1] + values[-1]))


def uniform(graph: NxGraph) -> Float[np.ndarray, "n n"]:
    """D^-1 (A + I): each node averages all that it hears; rows sum to 1, columns need not.

    Public federated code often has these weights where the analysis wants `metropolis`.

    Raises:
        UserWarning: columns do not sum to 1, so that the limit is not the mean of all nodes.
    """
    heard = _heard(graph) + np.eye(len(graph))
    w = heard / heard.sum(1, keepdims=True)
    if abs(w.sum(0) - 1).max() > 1e-9:
        limit = (
            "`jaxfl.networks.spectra.perron(w)`-weighted mean: use `sinkhorn(graph)`"
            if graph.is_directed()
            else "degree-weighted mean (weights d_i + 1): use `metropolis(graph)`"
        )
        warnings.warn(
            f"uniform weights on an irregular graph do not average: their limit is the {limit} "
            "for the mean of all nodes.",
            UserWarning,
            stacklevel=2,
        )
    return w


def column_stochastic(graph: NxGraph) -> Float[np.ndarray, "n n"]:
    """Push weights: j splits its mass equally over itself and its receivers, 1 / (outdeg_j + 1).

    Source: Assran, Loizou, Ballas, Rabbat, "Stochastic Gradient Push for Distributed Deep
        Learning", ICML 2019.
    """
    heard = _heard(graph) + np.eye(len(graph))
    return heard / heard.sum(0, keepdims=True)


def sinkhorn(graph: NxGraph, iterations: int = 10_000) -> Float[np.ndarray, "n n"]:
    """Doubly stochastic weights, also if directed: A + I with rows and columns scaled in turn.

    Raises:
        ValueError: the graph is not strongly connected, or sums are not 1 to 1e-12 after
            `iterations`.

    Source: Sinkhorn, Knopp, "Concerning nonnegative matrices and doubly stochastic matrices",
        Pacific Journal of Mathematics 1967.
    """
    heard = _heard(graph)
    _joined(heard, "sinkhorn")
    w = heard + np.eye(len(heard))
    for _ in range(iterations):
        w = w / w.sum(1, keepdims=True)
        w = w / w.sum(0, keepdims=True)
        if abs(w.sum(1) - 1).max() < 1e-12:
            return w if graph.is_directed() else (w + w.T) / 2
    raise ValueError(
        f"sinkhorn did not settle in {iterations} iterations (row sums off by "
        f"{abs(w.sum(1) - 1).max():.1e}): use `sinkhorn(graph, iterations={10 * iterations})`."
    )


def fastest(graph: NxGraph, nonnegative: bool = False) -> Float[np.ndarray, "n n"]:
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
    _joined(edges, "fastest")
    n, (i, j) = len(edges), np.nonzero(np.triu(edges))
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


def peers(schedule: Int[np.ndarray, "tau n"], weight: float = 0.5) -> Float[np.ndarray, "tau n n"]:
    """The matrices of a one-peer schedule: 1 - `weight` on oneself, `weight` on the peer."""
    tau, n = schedule.shape
    w = np.tile((1 - weight) * np.eye(n), (tau, 1, 1))
    np.add.at(w, (np.arange(tau)[:, None], np.arange(n)[None], schedule), weight)
    return w


WEIGHTS: dict[str, Callable[..., Float[np.ndarray, "n n"]]] = {
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


def make(name: str, graph: NxGraph, **options: Any) -> Float[np.ndarray, "n n"]:
    """The weights of that name (from `WEIGHTS`) on a graph.

    Raises:
        ValueError: an unknown name (with the nearest one) or option.
    """
    rule = lookup(WEIGHTS, name, "weights")
    accepts(rule, name, options)
    return rule(graph, **options)


def check(
    w: ArrayLike,
    kind: str = "doubly",
    connected: bool = True,
    negative: bool = False,
    tol: float = 1e-9,
) -> Float[np.ndarray, "n n"]:
    """The matrix as float64, if it has the properties of its kind.

    Args:
        w: `[n, n]`.
        kind: "row" or "column" sums are 1, "doubly" is both, "symmetric" is doubly and w = w'.
        connected: the graph of nonzero weights must be (strongly) connected.
        negative: allow weights below 0 (`fastest` and `best_constant` give them).
        tol: of the sums and of symmetry, absolute.

    Raises:
        ValueError: the first property that fails, and where.
    """
    lookup(dict.fromkeys(KINDS, 0), kind, "kind of weights")
    w = _square(w)
    if not np.isfinite(w).all():
        i, j = np.argwhere(~np.isfinite(w))[0]
        raise ValueError(f"w must be finite, got w[{i}, {j}] = {w[i, j]}: use `metropolis(graph)`.")
    if not negative and w.min() < 0:
        i, j = np.unravel_index(w.argmin(), w.shape)
        raise ValueError(
            f"w must not be negative, got w[{i}, {j}] = {w[i, j]}: use `metropolis(graph)`, or "
            "`check(w, negative=True)` if that is meant."
        )
    for side, axis in (("row", 1), ("column", 0)):
        sums = w.sum(axis)
        worst = abs(sums - 1).argmax()
        if kind in (side, "doubly", "symmetric") and abs(sums[worst] - 1) > tol:
            fix = f"w / w.sum({axis}, keepdims=True)" if kind == side else "metropolis(graph)"
            raise ValueError(
                f"every {side} of w must sum to 1, {side} {worst} sums to {sums[worst]:.12g}: "
                f"use `{fix}`."
            )
    if kind == "symmetric" and abs(w - w.T).max() > tol:
        i, j = np.unravel_index(abs(w - w.T).argmax(), w.shape)
        raise ValueError(
            f"w must be symmetric, got w[{i}, {j}] = {w[i, j]} and w[{j}, {i}] = {w[j, i]}: use "
            "`(w + w.T) / 2` if w is doubly stochastic."
        )
    if connected:
        fix = "add edges, or `check(w, connected=False)` for one step of a time-varying graph"
        _joined(w != 0, "w", fix)
    return w


def neighbours(
    w: ArrayLike,
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """The neighbour-slot form `(idx, w, back)` of a matrix.

    Returns:
        `idx[i, 0]` = i with weight w_ii, further slots are the j != i with w_ij != 0 in
        increasing order, padding is i again with weight 0; `back[i, s]` is the slot of row
        j = `idx[i, s]` that points back to i: 0 for slot 0 and padding, -1 if j does not hear i.
    """
    w = _square(w)
    own = np.arange(len(w))[:, None]
    edges = (w != 0) & ~np.eye(len(w), dtype=bool)
    i, j = np.nonzero(edges)
    slot = np.cumsum(edges, axis=1)[i, j]
    idx = np.tile(own, (1, 1 + edges.sum(1).max()))
    weight = np.zeros(idx.shape)
    slots = np.where(np.eye(len(w), dtype=bool), 0, -1)
    idx[i, slot], weight[i, slot], slots[i, j] = j, w[i, j], slot
    weight[:, 0] = np.diag(w)
    return idx.astype(np.int32), weight, slots[idx, own].astype(np.int32)


def shifts(w: ArrayLike) -> tuple[Float[np.ndarray, " k"], tuple[int, ...]] | None:
    """The circulant form: `w[i, (i + offsets[s]) % n] == weights[s]` for all i, or None.

    Returns:
        `(weights, offsets)`, offset 0 first whatever its weight, then the offsets of nonzero
        weight in increasing order from 1 to n-1; None unless all rows agree bit for bit.
    """
    w = _square(w)
    n = len(w)
    aligned = w[np.arange(n)[:, None], (np.arange(n)[:, None] + np.arange(n)) % n]
    if (aligned != aligned[:1]).any():
        return None
    offsets = [0, *(1 + np.flatnonzero(aligned[0, 1:])).tolist()]
    return aligned[0, offsets], tuple(offsets)


# Helpers.


def _heard(graph: NxGraph) -> Bool[np.ndarray, "n n"]:
    """`[i, j]`: i hears j. Edge attributes and self-loops are ignored."""
    n = len(graph)
    if set(graph.nodes) != set(range(n)) or n < 2:
        raise ValueError(
            f"graph must have nodes 0..n-1 and n >= 2, got {sorted(map(str, graph.nodes))[:5]}...: "
            "use `networkx.convert_node_labels_to_integers(graph)`."
        )
    heard = np.zeros((n, n), dtype=bool)
    receivers = [nodes for _, nodes in graph.adjacency()]
    sender = np.repeat(np.fromiter(graph, int), [len(nodes) for nodes in receivers])
    heard[np.fromiter(itertools.chain.from_iterable(receivers), int), sender] = True
    np.fill_diagonal(heard, False)
    return heard


def _undirected(graph: NxGraph, rule: str) -> Bool[np.ndarray, "n n"]:
    if graph.is_directed():
        raise ValueError(
            f"{rule} needs an undirected graph, got a directed one: use `sinkhorn(graph)` (doubly "
            "stochastic), `column_stochastic(graph)` (push-sum), or `graph.to_undirected()`."
        )
    return _heard(graph)


def _joined(edges: Bool[np.ndarray, "n n"], what: str, fix: str = "add edges") -> None:
    from scipy.sparse.csgraph import connected_components

    count, label = connected_components(edges, connection="strong")
    if count > 1:
        part = np.flatnonzero(label == np.bincount(label).argmin())
        nodes = ", ".join(map(str, part[:8])) + (", ..." if len(part) > 8 else "")
        raise ValueError(
            f"{what}: the graph must be (strongly) connected, nodes [{nodes}] are one of its "
            f"{count} components: {fix}."
        )


def _square(w: ArrayLike) -> Float[np.ndarray, "n n"]:
    array = np.asarray(w, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not len(array):
        raise ValueError(
            f"w must be a square matrix [n, n], got shape {array.shape}: use `metropolis(graph)`."
        )
    return array


def _fill(w: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The diagonal that makes rows sum to 1; sorted, so that equal rows round equally."""
    np.fill_diagonal(w, 1 - np.sort(w, axis=1).sum(1))
    return w
