"""Graphs as directed edges, and mixing matrices in all their forms."""

import itertools
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from jaxfl.types import shown

Matrix: TypeAlias = Any  # [n, n], of NumPy or scipy.sparse


AnyGraph: TypeAlias = Any  # of networkx, or an adjacency matrix


def shifts(w: Matrix) -> tuple[Float[np.ndarray, " k"], tuple[int, ...]] | None:
    """The circulant form: `w[i, (i + offsets[s]) % n] == weights[s]` for all i, or None.

    Returns:
        `(weights, offsets)`, offset 0 first whatever its weight, then the offsets of nonzero
        weight in increasing order from 1 to n-1; None unless all rows agree bit for bit.
    """
    w = sparse(w)
    edges, own, n = _off(w), w.diagonal(), w.shape[0]
    many = np.diff(edges.indptr)
    if (own != own[0]).any() or (many != many[0]).any():
        return None
    offset = ((edges.indices - _rows(edges)) % n).reshape(n, -1)
    order = offset.argsort(1)
    offset = np.take_along_axis(offset, order, 1)
    value = np.take_along_axis(edges.data.reshape(n, -1), order, 1)
    if (offset != offset[0]).any() or (value != value[0]).any():
        return None
    return np.append(own[0], value[0]), (0, *offset[0].tolist())


# Forms of graphs and matrices.


class Edges(NamedTuple):
    """A graph in whatever form it came, checked."""

    sends: Any  # csr_array [n, n], positive where i sends to j; no diagonal
    directed: bool

    @classmethod
    def of(cls, graph: AnyGraph) -> "Edges":
        """The edges of a networkx graph (attributes and self-loops are ignored) or of a matrix.

        Raises:
            ValueError: not square, fewer than two nodes, entries that are negative or not finite,
                names of nodes other than 0 to n - 1.
        """
        if isinstance(graph, type) or not hasattr(graph, "adjacency"):
            sends = _adjacency(graph)
            return cls(sends, (_pattern(sends) != _pattern(sends.T)).nnz > 0)
        from scipy.sparse import csr_array

        n = len(graph)
        if set(graph.nodes) != set(range(n)) or n < 2:
            raise ValueError(
                f"graph must have nodes 0..n-1 and n >= 2, got {sorted(map(str, graph.nodes))[:5]}"
                "...: use `networkx.convert_node_labels_to_integers(graph)`."
            )
        heard = [nodes for _, nodes in graph.adjacency()]
        i = np.repeat(np.fromiter(graph, int), [len(nodes) for nodes in heard])
        j = np.fromiter(itertools.chain.from_iterable(heard), int)
        return cls(_off(csr_array((np.ones(len(i)), (i, j)), (n, n))), graph.is_directed())

    def ends(self, heard: bool = False) -> tuple[Any, Any, Any]:
        """Senders `[m]`, receivers `[m]` and how many each node sends to `[n]`; or the reverse."""
        edges = self.sends.T.tocsr() if heard else self.sends
        edges.sort_indices()
        return _rows(edges), edges.indices, np.diff(edges.indptr)


def _adjacency(matrix):
    _formed(matrix)
    sends = sparse(matrix)
    if sends.shape[0] < 2:
        raise ValueError("graph must have at least two nodes, got a matrix [1, 1]: use n=2.")
    _finite(sends, "graph", "numpy.nan_to_num(a)")
    if sends.data.min(initial=0) < 0:
        k = sends.data.argmin()
        raise ValueError(
            f"an adjacency matrix must not be negative, got [{_rows(sends)[k]}, "
            f"{sends.indices[k]}] = {sends.data[k]:g}: use `abs(a)`, or for mixing weights of your "
            "own `from_matrix(w)`."
        )
    return _off(sends)


def _formed(graph):
    """Raises ValueError for what is neither of networkx nor numbers in a square."""
    from scipy.sparse import issparse

    several = isinstance(graph, list | tuple | set | frozenset)
    edges = several and any(isinstance(edge, tuple) for edge in graph)
    try:
        array: Any = graph if issparse(graph) else np.asarray(graph)
    except ValueError:  # rows of several lengths
        array = np.asarray(None)
    numbers = array.dtype.kind in "biuf" and not edges
    if numbers and len(set(array.shape)) == 1 and array.ndim == 2:
        return
    fix = 'graphs.make("ring", n)'
    if isinstance(graph, str):
        fix = f"graphs.make({graph!r}, n)"
    elif edges or (array.ndim == 2 and 2 in array.shape):
        fix = "networkx.Graph(edges)"
    what = f"shape {array.shape}" if numbers else shown(graph)
    raise ValueError(
        f"graph must be a graph of networkx, or a square matrix [n, n] of numbers, got {what}: use "
        f"`{fix}`."
    )


def _undirected(graph: AnyGraph, rule: str) -> Edges:
    edges = Edges.of(graph)
    if edges.directed:
        what, fix = "a directed one", "graph.to_undirected()"
        if not hasattr(graph, "adjacency"):
            i, j = (int(k[0]) for k in (_pattern(edges.sends) > _pattern(edges.sends.T)).nonzero())
            what, fix = f"a matrix with [{i}, {j}] but not [{j}, {i}]", "numpy.maximum(a, a.T)"
        raise ValueError(
            f"{rule} needs an undirected graph, got {what}: use `sinkhorn(graph)` (doubly "
            f"stochastic), `column_stochastic(graph)` (push-sum), or `{fix}`."
        )
    return edges


def square(w: Matrix) -> Matrix:
    """A matrix `[n, n]` in float64, sparse ones as `csr_array`."""
    from scipy.sparse import csr_array, issparse

    if issparse(w):
        array: Any = csr_array(w, dtype=np.float64)
    else:
        try:
            array = np.asarray(w, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"w must be a square matrix [n, n] of numbers, got {shown(w)}: use "
                "`metropolis(graph)`."
            ) from error
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.shape[0]:
        raise ValueError(
            f"w must be a square matrix [n, n], got shape {array.shape}: use `metropolis(graph)`."
        )
    return array


def sparse(w: Matrix) -> Any:
    """A matrix `[n, n]` as `csr_array` in order, without zeros."""
    from scipy.sparse import csr_array

    w = csr_array(square(w), copy=True)
    w.sum_duplicates()
    w.eliminate_zeros()
    return w


def _rows(w):
    return np.repeat(np.arange(w.shape[0]), np.diff(w.indptr))


def _pattern(w):
    return w != 0


def _off(w):
    """Without its diagonal."""
    from scipy.sparse import csr_array

    kept = (i := _rows(w)) != w.indices
    w = csr_array((w.data[kept], (i[kept], w.indices[kept])), w.shape)
    w.sort_indices()
    return w


def _finite(w, name, fix):
    if not np.isfinite(w.data).all():
        k = np.flatnonzero(~np.isfinite(w.data))[0]
        raise ValueError(
            f"{name} must be finite, got {name}[{_rows(w)[k]}, {w.indices[k]}] = {w.data[k]}: use "
            f"`{fix}`."
        )
