"""How fast a graph mixes: gaps, mixing times, effective resistances. J is the matrix of 1/n.

Up to a few thousand nodes from all eigenvalues; beyond, sparse or circulant matrices are never made
dense, and only the eigenvalues that are asked for are computed.
"""

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Inexact
from numpy.typing import ArrayLike

from jaxfl.networks.matrices import AnyGraph, Matrix, _undirected, shifts, sparse, square

_DENSE = 2500  # nodes up to which all eigenvalues are computed
_BAND = 5e9  # operations of a factorisation, up to which it takes about a second


def second(w: Matrix) -> float:
    """||w - J||_2; if w is symmetric, the second largest modulus of its eigenvalues."""
    w = square(w)
    n = w.shape[0]
    if n <= _DENSE:
        return float(np.linalg.norm(_dense(w) - 1 / n, 2))
    if (values := _circulant(w)) is not None:  # normal, as J is
        return float(abs(values[1:]).max())
    if _symmetric_to(w, 1e-12):
        largest = _outermost(w, 2, "LA")[1]
        if largest >= -_bounds(w)[0]:
            return float(largest)
        return float(max(largest, -_outermost(w, 1, "SA")[0]))
    return _contraction([w])


def gap(w: Matrix) -> float:
    """The spectral gap 1 - ||w - J||_2, at most 0 if one step need not contract.

    Example:
        >>> w = networks.WEIGHTS["metropolis"](networks.graphs.make("ring", 16))
        >>> round(networks.gap(w), 4)
        0.0507
    """
    return 1 - second(w)


def eigenvalues(w: Matrix) -> Inexact[np.ndarray, " n"]:
    """All eigenvalues: of a symmetric w real and falling, else complex by falling modulus.

    Beyond a few thousand nodes of any but a circulant w that takes long; `ends` does not.
    """
    w = square(w)
    symmetric = _symmetric_to(w, 0)
    if w.shape[0] > _DENSE and (values := _circulant(w)) is not None:
        if symmetric:
            return np.sort(values.real)[::-1]
    else:
        w = _dense(w)
        if symmetric:
            return np.linalg.eigvalsh(w)[::-1]
        values = np.linalg.eigvals(w).astype(complex)
    return values[np.argsort(-abs(values), kind="stable")]


def ends(w: Matrix, k: int = 2) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """The k largest and the k least eigenvalues of a symmetric w, both falling; n at most.

    Raises:
        ValueError: w is not symmetric.
    """
    w = _symmetric(w)
    n = w.shape[0]
    k = min(k, n)
    if n <= _DENSE:
        values = np.linalg.eigvalsh(_dense(w))[::-1]
    elif (circulant := _circulant(w)) is not None:
        values = np.sort(circulant.real)[::-1]
    else:
        return _outermost(w, k, "LA"), _outermost(w, k, "SA")
    return values[:k], values[n - k :]


def leading(ws: Sequence[Matrix], k: int = 20) -> Inexact[np.ndarray, " k"]:
    """The k eigenvalues of w_{b-1} ... w_0 of the largest moduli, falling, by products."""
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigs

    n = ws[0].shape[0]
    there: Any = lambda x: functools.reduce(lambda x, w: w @ x, ws, x.ravel())
    options: dict[str, Any] = {"v0": np.random.default_rng(0).standard_normal(n), "tol": 1e-6}
    operator: Any = LinearOperator
    values: Any
    try:
        product = operator((n, n), matvec=there, dtype=float)
        values = eigs(product, k, which="LM", return_eigenvectors=False, **options)
    except ArpackError:  # such as of a period that averages exactly
        values = np.array([1.0 + 0j])
    return values[np.argsort(-abs(values), kind="stable")]


def least_eigenvalue(w: Matrix) -> float:
    """The least eigenvalue of a symmetric w: above -1/3 or 0 where a method needs it, else `lazy`.

    Raises:
        ValueError: w is not symmetric.
    """
    return float(ends(w)[1][-1])


def mixing_time(w: Matrix, eps: float = 1e-2) -> float:
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


def period_contraction(ws: Sequence[Matrix] | Float[np.ndarray, "b n n"]) -> float:
    """||w_{b-1} ... w_1 w_0 - J||_2: how much one period of a time-varying graph contracts."""
    ws = [square(w) for w in ws]
    if ws[0].shape[0] > _DENSE:
        return _contraction(ws)
    return second(functools.reduce(lambda product, w: w @ product, map(_dense, ws)))


def expected_contraction(
    ws: Sequence[Matrix] | Float[np.ndarray, "b n n"], probabilities: ArrayLike | None = None
) -> float:
    """||E[w'w] - J||_2: the expected factor of the squared consensus error in one random round.

    Args:
        ws: the possible matrices, doubly stochastic.
        probabilities: `[b]`, uniform by default.
    """
    stack = np.stack([_dense(w) for w in ws])
    weight = np.ones(len(stack)) if probabilities is None else np.asarray(probabilities, float)
    return second(np.average(stack.transpose(0, 2, 1) @ stack, axis=0, weights=weight))


def perron(w: Matrix) -> Float[np.ndarray, " n"]:
    """The stationary vector π >= 0 with sum 1: π'w = π' if rows sum to 1, wπ = π if columns do.

    Repeated mixing with a row-stochastic w tends to the π-weighted mean; with a column-stochastic
    one, node i holds the share π_i of the total.

    Raises:
        ValueError: neither rows nor columns sum to 1, or π is not unique.
    """
    w = _dense(w)
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


def laplacian(graph: AnyGraph, rates: float | ArrayLike = 1.0) -> Float[np.ndarray, "n n"]:
    """Λ = Σ_edges rate_ij (e_i - e_j)(e_i - e_j)'.

    Args:
        graph: undirected.
        rates: events per unit of time, one number for every edge (a total rate of 1 is
            `1 / graph.number_of_edges()`) or a symmetric matrix that is 0 off the edges.

    Raises:
        ValueError: the graph is directed, or the rates are asymmetric or off its edges.
    """
    edges = _undirected(graph, "laplacian").sends.toarray() != 0
    if np.ndim(rates) == 0:
        return _laplacian(np.asarray(rates, float) * edges)
    rates = _dense(rates)
    if rates.shape != edges.shape or (rates != 0)[~edges].any():
        raise ValueError(
            f"rates must be [n, n] with n = {len(edges)} and 0 off the edges of the graph: use "
            "`rates * networkx.to_numpy_array(graph, range(n))`."
        )
    return _laplacian(rates)


def chi1(matrix: Matrix) -> float:
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


def chi2(matrix: Matrix) -> float:
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


def _dense(w: Matrix) -> Float[np.ndarray, "n n"]:
    w = square(w)
    return w if isinstance(w, np.ndarray) else w.toarray()


def _symmetric_to(w, tol):
    return abs(w - w.T).max() <= tol


def _symmetric(w: Matrix) -> Matrix:
    w = square(w)
    if not _symmetric_to(w, 1e-9):
        raise ValueError("w must be symmetric: use `metropolis(graph)`, or `eigenvalues(w)`.")
    return w


def _laplacian(matrix: Matrix) -> Float[np.ndarray, "n n"]:
    matrix = _dense(_symmetric(matrix))
    if abs(matrix.sum(1)).max() <= 1e-9 * abs(matrix).max():
        return matrix
    rates = matrix - np.diag(np.diag(matrix))
    return np.diag(rates.sum(1)) - rates


def _circulant(w):
    """All eigenvalues of a circulant matrix, that of the mean first; None of any other."""
    if (form := shifts(w)) is None:
        return None
    row = np.zeros(w.shape[0])
    row[list(form[1])] = form[0]
    return np.fft.fft(row)


def _bounds(w):
    """Between which all eigenvalues of a symmetric matrix are (Gershgorin)."""
    own = w.diagonal()
    others = np.asarray(abs(w).sum(1)) - abs(own)
    return float((own - others).min()), float((own + others).max())


def _outermost(w: Matrix, k: int, side: str) -> Float[np.ndarray, " k"]:
    """The k largest ("LA") or least ("SA") eigenvalues of a large symmetric matrix, falling.

    Lanczos iterations converge slowly where eigenvalues are close to each other, on paths and
    grids; there, and on trees, a factorisation is cheap, and those nearest to a bound are found
    at once.
    """
    from scipy.sparse.csgraph import reverse_cuthill_mckee
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    w = sparse(w)
    n = w.shape[0]
    order = np.empty(n, int)
    order[reverse_cuthill_mckee(w, symmetric_mode=True)] = np.arange(n)
    i, j = w.nonzero()
    band = float(abs(order[i] - order[j]).max(initial=0))
    low, high = _bounds(w)
    at = high + 1e-6 if side == "LA" else low - 1e-6  # outside, so that it is definite
    near = [({"sigma": at}, 1e-10)] if band**2 * n < _BAND or (i < j).sum() < 1.01 * n else []
    ways: Any = [*near, *(({"which": side, "ncv": 64}, tol) for tol in (1e-10, 1e-6))]
    options: dict[str, Any] = {"return_eigenvectors": False, "maxiter": 1000}
    options["v0"] = np.random.default_rng(0).standard_normal(n)
    for way, tol in ways:
        with contextlib.suppress(ArpackNoConvergence):
            return np.sort(eigsh(w, k, tol=tol, **way, **options))[::-1]
    raise ValueError(
        f"the eigenvalues of w [{n}, {n}] did not settle; use a smaller graph: n={_DENSE}."
    )


def _contraction(ws: Sequence[Matrix]) -> float:
    """||w_{b-1} ... w_0 - J||_2 of large matrices, by products with vectors."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    n = ws[0].shape[0]
    there = lambda x: functools.reduce(lambda x, w: w @ x, ws, x) - x.mean()
    back = lambda x: functools.reduce(lambda x, w: w.T @ x, ws[::-1], x) - x.mean()
    operator: Any = LinearOperator
    squared = operator((n, n), matvec=lambda x: back(there(x.ravel())), dtype=float)
    start = np.random.default_rng(0).standard_normal(n)
    if np.linalg.norm(there(start)) < 1e-12 * np.linalg.norm(start):
        return 0.0
    options: dict[str, Any] = {"return_eigenvectors": False, "tol": 1e-10, "ncv": 64}
    return math.sqrt(max(0.0, eigsh(squared, k=1, which="LA", v0=start, **options)[0]))
