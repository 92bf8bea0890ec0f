"""How fast a graph mixes: gaps, mixing times, effective resistances. J is the matrix of 1/n."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Inexact
from numpy.typing import ArrayLike

from jaxfl.networks.graphs import NxGraph
from jaxfl.networks.weights import _square, _undirected


def second(w: ArrayLike) -> float:
    """||w - J||_2; if w is symmetric, the second largest modulus of its eigenvalues."""
    w = _square(w)
    return float(np.linalg.norm(w - 1 / len(w), 2))


def gap(w: ArrayLike) -> float:
    """The spectral gap 1 - ||w - J||_2, at most 0 if one step need not contract.

    Example:
        >>> w = networks.WEIGHTS["metropolis"](networks.graphs.make("ring", 16))
        >>> round(networks.gap(w), 4)
        0.0507
    """
    return 1 - second(w)


def eigenvalues(w: ArrayLike) -> Inexact[np.ndarray, " n"]:
    """All eigenvalues: of a symmetric w real and falling, else complex by falling modulus."""
    w = _square(w)
    if (w == w.T).all():
        return np.linalg.eigvalsh(w)[::-1]
    values = np.linalg.eigvals(w).astype(complex)
    return values[np.argsort(-abs(values), kind="stable")]


def least_eigenvalue(w: ArrayLike) -> float:
    """The least eigenvalue of a symmetric w: above -1/3 or 0 where a method needs it, else `lazy`.

    Raises:
        ValueError: w is not symmetric.
    """
    return float(np.linalg.eigvalsh(_symmetric(w))[0])


def mixing_time(w: ArrayLike, eps: float = 1e-2) -> float:
    """Rounds until the squared consensus error has certainly fallen to eps times its start.

    Returns:
        ⌈ln(1/eps) / (2 ln(1/λ))⌉ with λ = `second(w)`, at least 1; inf if λ >= 1 (the graph is
        disconnected or periodic, or w is a single step of a time-varying one).

    Raises:
        ValueError: unless 0 < eps < 1.

    Example:
        >>> w = networks.WEIGHTS["metropolis"](networks.graphs.make("ring", 16))
        >>> networks.mixing_time(w, eps=1e-4)
        89.0
    """
    if not 0 < eps < 1:
        raise ValueError(f"eps must be in (0, 1), got {eps!r}: use eps=1e-2.")
    rate = second(w)
    if rate > 1 - 1e-12:
        return math.inf
    rounds = math.log(eps) / (2 * math.log(max(rate, 1e-300)))
    return max(1.0, float(math.ceil(rounds - 1e-9)))


def period_contraction(ws: Sequence[ArrayLike] | Float[np.ndarray, "b n n"]) -> float:
    """||w_{b-1} ... w_1 w_0 - J||_2: how much one period of a time-varying graph contracts."""
    return second(functools.reduce(lambda product, w: _square(w) @ product, ws))


def expected_contraction(
    ws: Sequence[ArrayLike] | Float[np.ndarray, "b n n"], probabilities: ArrayLike | None = None
) -> float:
    """||E[w'w] - J||_2: the expected factor of the squared consensus error in one random round.

    Args:
        ws: the possible matrices, doubly stochastic.
        probabilities: `[b]`, uniform by default.
    """
    stack = np.stack([_square(w) for w in ws])
    weight = np.ones(len(stack)) if probabilities is None else np.asarray(probabilities, float)
    return second(np.average(stack.transpose(0, 2, 1) @ stack, axis=0, weights=weight))


def perron(w: ArrayLike) -> Float[np.ndarray, " n"]:
    """The stationary vector π >= 0 with sum 1: π'w = π' if rows sum to 1, wπ = π if columns do.

    Repeated mixing with a row-stochastic w tends to the π-weighted mean; with a column-stochastic
    one, node i holds the share π_i of the total.

    Raises:
        ValueError: neither rows nor columns sum to 1, or π is not unique.
    """
    w = _square(w)
    if abs(w.sum(1) - 1).max() < 1e-9:
        w = w.T
    elif abs(w.sum(0) - 1).max() > 1e-9:
        raise ValueError("w must have rows or columns that sum to 1: use `check(w, 'row')`.")
    n = len(w)
    system = np.concatenate([w - np.eye(n), np.ones((1, n))])
    vector, _, rank, _ = np.linalg.lstsq(system, np.eye(n + 1)[n], rcond=None)
    if rank < n:
        raise ValueError(
            "the stationary vector of w is not unique, w is disconnected: use "
            "`check(w, kind, connected=True)` to see where."
        )
    return vector


def laplacian(graph: NxGraph, rates: float | ArrayLike = 1.0) -> Float[np.ndarray, "n n"]:
    """Λ = Σ_edges rate_ij (e_i - e_j)(e_i - e_j)'.

    Args:
        graph: undirected.
        rates: events per unit of time, one number for every edge (a total rate of 1 is
            `1 / graph.number_of_edges()`) or a symmetric matrix that is 0 off the edges.

    Raises:
        ValueError: the graph is directed, or the rates are asymmetric or off its edges.
    """
    edges = _undirected(graph, "laplacian")
    if np.ndim(rates) == 0:
        return _laplacian(np.asarray(rates, float) * edges)
    rates = _square(rates)
    if rates.shape != edges.shape or (rates != 0)[~edges].any():
        raise ValueError(
            f"rates must be [n, n] with n = {len(edges)} and 0 off the edges of the graph: use "
            "`rates * networkx.to_numpy_array(graph, range(n))`."
        )
    return _laplacian(rates)


def chi1(matrix: ArrayLike) -> float:
    """1 / λ_2(Λ), the inverse algebraic connectivity; inf if disconnected.

    Args:
        matrix: a Laplacian Λ, or symmetric rates or mixing weights, whose off-diagonal entries
            are taken as rates (for weights that is Λ = I - w).

    Source: Nabli, Oyallon, "DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization",
        ICML 2023, arXiv 2208.00779.

    Example:
        >>> ring = networks.graphs.make("ring", 8)
        >>> round(networks.chi1(networks.WEIGHTS["metropolis"](ring)), 2)
        5.12
    """
    least = np.linalg.eigvalsh(_laplacian(matrix))
    return float(1 / least[1]) if least[1] > 1e-12 * least[-1] else math.inf


def chi2(matrix: ArrayLike) -> float:
    """max over edges (i, j) of (e_i - e_j)' Λ⁺ (e_i - e_j) / 2; argument and source as for `chi1`.

    With equal rates of total 1 it is (n-1)/2 on every tree and every edge-transitive graph.

    Example:
        >>> rates = np.array([[0.0, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.0]])
        >>> round(networks.chi2(rates), 6)
        1.0
    """
    matrix = _laplacian(matrix)
    inverse = np.linalg.pinv(matrix, hermitian=True)
    i, j = np.nonzero(np.triu(matrix, 1))
    return float((inverse[i, i] + inverse[j, j] - 2 * inverse[i, j]).max(initial=0.0) / 2)


def _symmetric(w: ArrayLike) -> Float[np.ndarray, "n n"]:
    w = _square(w)
    if abs(w - w.T).max() > 1e-9:
        raise ValueError("w must be symmetric: use `metropolis(graph)`, or `eigenvalues(w)`.")
    return w


def _laplacian(matrix: ArrayLike) -> Float[np.ndarray, "n n"]:
    matrix = _symmetric(matrix)
    if abs(matrix.sum(1)).max() <= 1e-9 * abs(matrix).max():
        return matrix
    rates = matrix - np.diag(np.diag(matrix))
    return np.diag(rates.sum(1)) - rates
