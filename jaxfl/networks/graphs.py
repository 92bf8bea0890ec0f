"""Who may hear whom: networkx graphs on nodes 0..n-1, and schedules of one peer per round.

A directed edge goes from the sender to the receiver. A schedule is an array `[tau, n]`: in phase
`t mod tau` node i receives from node `schedule[t, i]` (from itself: it is idle). Every builder
takes `n` by keyword, so that `make(name, n, seed, **options)` reaches all of them by name. Random
graphs are connected (strongly, when directed): at most `TRIES` draws, then a repair that the
docstring names.
"""

import difflib
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Int

from jaxfl.types import Count, shown, whole

if TYPE_CHECKING:
    import networkx as nx

    NxGraph = nx.Graph  # a DiGraph is one
else:
    NxGraph = Any  # networkx is imported when the first graph is made

T = TypeVar("T")
Seed = int | np.random.Generator

TRIES = 20  # draws of a random graph before it is repaired instead
_MOST = 2e7  # edges of a graph
_MANY = 2500  # nodes beyond which no array [n, n] is made


def ring(n: Count) -> NxGraph:
    """The cycle i ~ i±1 mod n (a single edge for n = 2)."""
    n = _size(n)
    return _graph(n, ((i, (i + 1) % n) for i in range(n)))


def path(n: Count) -> NxGraph:
    """The chain i ~ i+1, the worst case of a connected graph: its gap is of order 1/n²."""
    n = _size(n)
    return _graph(n, itertools.pairwise(range(n)))


def torus(
    n: Count | None = None, *, rows: Count | None = None, cols: Count | None = None
) -> NxGraph:
    """The rows x cols grid that wraps around; node `(r, c)` is `r * cols + c`.

    Args:
        n: number of nodes; alone, it is split into its most square factors.
        rows: number of rows.
        cols: number of columns; any two of the three give the third.

    Raises:
        ValueError: the sizes disagree, or `n`, given alone, is prime.
    """
    return _lattice("torus", "ring", n, rows, cols, periodic=True)


def grid(
    n: Count | None = None, *, rows: Count | None = None, cols: Count | None = None
) -> NxGraph:
    """The rows x cols grid, which does not wrap around; arguments as for `torus`."""
    return _lattice("grid", "path", n, rows, cols, periodic=False)


def complete(n: Count) -> NxGraph:
    """Everybody hears everybody."""
    n = _size(n)
    _room(n, n * (n - 1) / 2)
    return _graph(n, itertools.combinations(range(n), 2))


def star(n: Count) -> NxGraph:
    """Node 0 is the hub of n-1 leaves."""
    n = _size(n)
    return _graph(n, ((0, i) for i in range(1, n)))


def hypercube(n: Count) -> NxGraph:
    """The cube i ~ i XOR 2^b, of degree log2 n; n is a power of two."""
    bits = _bits(n, "hypercube", "exponential")
    return _graph(n, ((i, i ^ (1 << b)) for i in range(n) for b in range(bits)))


def binary_tree(n: Count) -> NxGraph:
    """The binary tree in heap order: the parent of i is (i-1)//2."""
    n = _size(n)
    return _graph(n, (((i - 1) // 2, i) for i in range(1, n)))


def erdos_renyi(n: Count, p: float | None = None, seed: Seed = 0) -> NxGraph:
    """Each pair is an edge with probability p.

    Args:
        n: number of nodes.
        p: in (0, 1]; the default 2 ln n / n is twice the threshold of connectivity.
        seed: of the draw.

    Returns:
        A connected graph; if `TRIES` draws were all disconnected, the last one with its
        components chained by random edges.
    """
    import networkx as nx

    n = _size(n)
    p = min(1.0, 2 * math.log(n) / n) if p is None else p
    _range("p", p, 0 < p <= 1, "a probability in (0, 1]", 0.5)
    _room(n, p * n * (n - 1) / 2)
    rng = np.random.default_rng(seed)
    return _connected(lambda: nx.fast_gnp_random_graph(n, p, seed=rng), lambda g: _chain(g, rng))


def geometric(n: Count, radius: float | None = None, seed: Seed = 0) -> NxGraph:
    """Uniform points of the unit square (node attribute `pos`), neighbours up to `radius` apart.

    Args:
        n: number of nodes.
        radius: above 0; the default sqrt(2 ln n / (π n)) gives about 2 ln n neighbours.
        seed: of the draw.

    Returns:
        A connected graph; if `TRIES` draws were all disconnected, the last one joined with the
        minimum spanning tree of its points, which adds the shortest possible links only.
    """
    import networkx as nx

    n = _size(n)
    radius = math.sqrt(2 * math.log(n) / (math.pi * n)) if radius is None else radius
    _range("radius", radius, radius > 0, "a distance above 0", 0.5)
    _room(n, min(1, math.pi * radius**2) * n * (n - 1) / 2)
    rng = np.random.default_rng(seed)
    return _connected(lambda: nx.random_geometric_graph(n, radius, seed=rng), _span)


def regular(n: Count, degree: Count = 4, seed: Seed = 0) -> NxGraph:
    """A random graph in which every node has the same degree.

    Args:
        n: number of nodes.
        degree: from 2 to n-1 (1 if n = 2), with n * degree even.
        seed: of the draw.

    Returns:
        A connected graph; if `TRIES` draws were all disconnected, the last one with its
        components joined by edge swaps, which keep the degree.
    """
    import networkx as nx

    n, degree = _size(n), whole("degree", degree)
    least = min(2, n - 1)
    _range("degree", degree, least <= degree < n, f"from {least} to n-1 = {n - 1}", least)
    _room(n, n * degree / 2)
    if n * degree % 2:
        raise ValueError(
            f"regular needs n * degree even, got n={n}, degree={degree}: "
            f"use regular(n={n + 1}, degree={degree}) or regular(n={n}, degree={degree - 1})."
        )
    rng = np.random.default_rng(seed)
    if degree == 2:  # connected and 2-regular is a cycle through all nodes: draw that cycle
        order = rng.permutation(n).tolist()
        return _graph(n, zip(order, order[1:] + order[:1], strict=True))
    if 2 * degree >= n:  # draw the sparse complement; half of all nodes as neighbours connects
        return nx.complement(_graph(n, _pairings(n, n - 1 - degree, rng)))
    return _connected(lambda: _graph(n, _pairings(n, degree, rng)), _swap)


def watts_strogatz(n: Count, k: Count = 4, p: float = 0.1, seed: Seed = 0) -> NxGraph:
    """A ring lattice, k/2 neighbours to each side, with far ends rewired with probability p.

    Args:
        n: number of nodes.
        k: neighbours in the lattice, even, from 2 to n-1.
        p: in [0, 1].
        seed: of the draw.

    Returns:
        A connected graph; if `TRIES` draws were all disconnected, the last one with its
        components chained by random edges.
    """
    import networkx as nx

    n, k = _size(n), whole("k", k)
    _range("k", k, 2 <= k < n and k % 2 == 0, f"even and from 2 to n-1 = {n - 1}", 2)
    _range("p", p, 0 <= p <= 1, "a probability in [0, 1]", 0.1)
    rng = np.random.default_rng(seed)
    return _connected(lambda: nx.watts_strogatz_graph(n, k, p, seed=rng), lambda g: _chain(g, rng))


def barabasi_albert(n: Count, m: Count = 2, seed: Seed = 0) -> NxGraph:
    """Preferential attachment: each new node links to m old ones by degree; always connected.

    Args:
        n: number of nodes.
        m: links of a new node, from 1 to n-1.
        seed: of the draw.
    """
    import networkx as nx

    n, m = _size(n), whole("m", m)
    _range("m", m, 1 <= m < n, f"from 1 to n-1 = {n - 1}", 1)
    _room(n, n * m)
    return nx.barabasi_albert_graph(n, m, seed=np.random.default_rng(seed))


def exponential(n: Count) -> NxGraph:
    """The static exponential digraph: i sends to i + 2^b mod n for b = 0..⌈log2 n⌉-1.

    Source: Ying, Yuan, Chen, Hu, Pan, Yin, "Exponential graph is provably efficient for
        decentralized deep training", NeurIPS 2021.
    """
    n = _size(n)
    return _graph(n, ((i, (i + (1 << b)) % n) for i in range(n) for b in range(_phases(n))), True)


def random_out_fixed(n: Count, k: Count = 2, seed: Seed = 0) -> NxGraph:
    """One draw, kept, of the digraph in which every node sends to k others, without repeats.

    `RandomOut`, by name "random_out", draws another one every round.

    Args:
        n: number of nodes.
        k: receivers of each node, from 1 to n-1.
        seed: of the draw.

    Returns:
        A strongly connected digraph of out-degree k; if `TRIES` draws were not connected (for k
        below about ln n some node is almost surely unheard), one receiver of each node comes from
        a random cycle through all nodes and k-1 are uniform.
    """
    n, k = _size(n), whole("k", k)
    _range("k", k, 1 <= k < n, f"from 1 to n-1 = {n - 1}", 1)
    _room(n, n * k)
    rng = np.random.default_rng(seed)

    def draw(first: np.ndarray | None = None) -> NxGraph:
        if n > _MANY and k * k <= n:
            out = _others(n, k, rng, first)
            return _graph(n, ((i, j) for i in range(n) for j in out[i]), True)
        score = rng.random((n, n))
        np.fill_diagonal(score, 2)
        if first is not None:
            score[np.arange(n), first] = -1
        out = np.argpartition(score, k - 1, axis=1)[:, :k].tolist()
        return _graph(n, ((i, j) for i in range(n) for j in out[i]), True)

    def cycle(_: NxGraph) -> NxGraph:
        order = rng.permutation(n)
        following = np.empty(n, int)
        following[order] = np.roll(order, -1)
        return draw(following)

    return _connected(draw, cycle)


# Schedules: one peer per round.


def one_peer_exponential(n: Count) -> Int[np.ndarray, "tau n"]:
    """In phase t node i receives from i - 2^t mod n (and sends to i + 2^t), t = 0..⌈log2 n⌉-1.

    Source: Ying, Yuan, Chen, Hu, Pan, Yin, "Exponential graph is provably efficient for
        decentralized deep training", NeurIPS 2021 (one period averages exactly iff n is a power
        of two).
    """
    n = _size(n)
    phases = 1 << np.arange(_phases(n))[:, None]
    return ((np.arange(n) - phases) % n).astype(np.int32)


def one_peer_hypercube(n: Count) -> Int[np.ndarray, "tau n"]:
    """In phase t node i pairs with i XOR 2^t; exact averaging after log2 n; n a power of two."""
    bits = _bits(n, "one_peer_hypercube", "one_peer_exponential")
    return (np.arange(n) ^ (1 << np.arange(bits)[:, None])).astype(np.int32)


def one_peer_ring(n: Count) -> Int[np.ndarray, "2 n"]:
    """Pairs (2i, 2i+1) in phase 0 and (2i+1, 2i+2) in phase 1, around a ring of even size."""
    n = _size(n)
    if n % 2:
        raise ValueError(
            f"one_peer_ring needs an even n, got {n}: use n={n + 1}, or random_matching(n={n}), "
            "which leaves one node idle."
        )
    side = 1 - 2 * (np.arange(n) % 2)  # even nodes look right in phase 0, left in phase 1
    return ((np.arange(n) + np.stack([side, -side])) % n).astype(np.int32)


def random_matching(n: Count, seed: Seed = 0, rounds: Count = 1) -> Int[np.ndarray, "rounds n"]:
    """A uniform random matching per round, perfect up to one idle node when n is odd."""
    n, rounds = _size(n), whole("rounds", rounds)
    order = np.tile(np.arange(n, dtype=np.int32), (rounds, 1))
    order = np.random.default_rng(seed).permuted(order, axis=1)
    left, right = order[:, 0 : n - 1 : 2], order[:, 1::2]
    partner = np.tile(np.arange(n, dtype=np.int32), (rounds, 1))
    np.put_along_axis(partner, left, right, axis=1)
    np.put_along_axis(partner, right, left, axis=1)
    return partner


GRAPHS: dict[str, Callable[..., NxGraph]] = {
    f.__name__: f
    for f in (
        ring, path, torus, grid, complete, star, hypercube, binary_tree, erdos_renyi, geometric,
        regular, watts_strogatz, barabasi_albert, exponential, random_out_fixed,
    )
}  # fmt: skip
SCHEDULES: dict[str, Callable[..., Int[np.ndarray, "tau n"]]] = {
    f.__name__: f
    for f in (one_peer_exponential, one_peer_hypercube, one_peer_ring, random_matching)
}


def make(name: str, n: Count, seed: Seed = 0, **options: Any) -> Any:
    """The graph (from `GRAPHS`) or the schedule (from `SCHEDULES`) of that name.

    Args:
        name: of the graph or schedule.
        n: number of nodes.
        seed: unused where nothing is random.
        options: of the builder of that name.

    Raises:
        ValueError: an unknown name (with the nearest one) or option, or impossible sizes.
    """
    build = lookup({**GRAPHS, **SCHEDULES}, name, "graph")
    if "seed" in inspect.signature(build).parameters:
        options["seed"] = seed
    accepts(build, name, options)
    return build(n=n, **options)


def lookup(registry: Mapping[str, T], name: str, what: str) -> T:
    """The entry of that name, or a ValueError with the nearest name and all of them."""
    if name not in registry:
        near = difflib.get_close_matches(str(name)[:100], registry, n=1, cutoff=0)[0]
        known = ", ".join(sorted(registry))
        raise ValueError(f"unknown {what} {shown(name)}: did you mean {near!r}? Known: {known}.")
    return registry[name]


def accepts(function: Callable, name: str, options: Mapping[str, Any]) -> None:
    """A ValueError for an option that the function does not have, with those it has."""
    known = inspect.signature(function).parameters
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {shown(option)}; it takes {', '.join(known)}.")


# Helpers.


def _graph(n: Count, edges: Iterable[tuple[int, int]], directed: bool = False) -> NxGraph:
    import networkx as nx

    graph = nx.empty_graph(_size(n), create_using=nx.DiGraph if directed else nx.Graph)
    graph.add_edges_from(edges)
    return graph


def _size(n: Count) -> int:
    n = whole("n", n)
    _range("n", n, n >= 2, "at least 2", 2)
    _room(n, n)
    return n


def _room(n: int, edges: float) -> None:
    """Asked before they are made: networkx takes about 300 bytes for an edge."""
    if edges > _MOST:
        few = max(2, int(n * min(1.0, (_MOST / edges) ** 0.5)) // 2)
        raise ValueError(
            f"a graph of {n} nodes has about {edges:.2g} edges, where {_MOST:.0g} are the most "
            f"that fit; use fewer nodes: `n={few}`."
        )


def _range(name: str, value: Any, valid: bool, expected: str, example: float) -> None:
    if not valid:
        raise ValueError(f"{name} must be {expected}, got {value!r}: use `{name}={example}`.")


def _phases(n: Count) -> int:
    return (_size(n) - 1).bit_length()  # ⌈log2 n⌉


def _bits(n: Count, name: str, other: str) -> int:
    bits = _phases(n)
    if n != 1 << bits:
        raise ValueError(
            f"{name} needs n = 2^m, got {n}: use n={1 << (bits - 1)} or n={1 << bits}, "
            f"or {other}(n={n}), which takes any n."
        )
    return bits


def _lattice(
    name: str, line: str, n: Count | None, rows: Count | None, cols: Count | None, *, periodic: bool
) -> NxGraph:
    import networkx as nx

    for side, value in (("rows", rows), ("cols", cols)):
        if value is not None:
            _range(side, value, whole(side, value) >= 1, "at least 1", 4)
    if n is None:
        if rows is None or cols is None:
            raise ValueError(f"{name} needs n, or rows and cols: use {name}(rows=4, cols=6).")
        n = rows * cols
    n = _size(n)
    if rows is None and cols is None:
        rows = next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)
        if rows == 1:
            raise ValueError(
                f"{name} needs n = rows * cols, got the prime {n}: use n={n + 1}, or {line}(n={n})."
            )
    rows = n // (cols or 1) if rows is None else rows
    cols = n // rows if cols is None else cols
    if rows * cols != n:
        raise ValueError(
            f"n must be rows * cols, got n={n}, rows={rows}, cols={cols}: use n={rows * cols}."
        )
    lattice = nx.grid_2d_graph(rows, cols, periodic=periodic)  # a side of 2 gets no double edge
    return nx.convert_node_labels_to_integers(lattice, ordering="sorted")


def _connected(draw: Callable[[], NxGraph], repair: Callable[[NxGraph], NxGraph]) -> NxGraph:
    import networkx as nx

    graph, tries = draw(), 1
    test: Any = nx.is_strongly_connected if graph.is_directed() else nx.is_connected
    while not test(graph):
        if tries == TRIES:
            return repair(graph)
        graph, tries = draw(), tries + 1
    return graph


def _chain(graph: NxGraph, rng: np.random.Generator) -> NxGraph:
    import networkx as nx

    parts = [sorted(part) for part in nx.connected_components(graph)]
    ends = ((int(rng.choice(a)), int(rng.choice(b))) for a, b in itertools.pairwise(parts))
    graph.add_edges_from(list(ends))
    return graph


def _span(graph: NxGraph) -> NxGraph:
    from scipy.sparse.csgraph import minimum_spanning_tree
    from scipy.spatial.distance import pdist, squareform

    points = np.array([graph.nodes[i]["pos"] for i in range(len(graph))])
    tree = minimum_spanning_tree(squareform(pdist(points))).tocoo()
    graph.add_edges_from(zip(tree.row.tolist(), tree.col.tolist(), strict=True))
    return graph


def _others(n: int, k: int, rng: np.random.Generator, first: np.ndarray | None) -> list[list[int]]:
    """k other nodes for each of n, without repeats; the first of them where it is given."""
    own = np.arange(n)[:, None]
    fixed = np.empty((n, 0), int) if first is None else first[:, None]
    out = np.empty((n, k), int)
    again = np.arange(n)
    while len(again):
        drawn = rng.integers(0, n - 1, (len(again), k - fixed.shape[1]))
        drawn += drawn >= own[again]
        out[again] = np.concatenate([fixed[again], drawn], 1)
        ordered = np.sort(out[again], 1)
        again = again[(ordered[:, 1:] == ordered[:, :-1]).any(1)]
    return out.tolist()


def _pairings(n: Count, degree: Count, rng: np.random.Generator) -> Iterable[tuple[int, int]]:
    import networkx as nx

    return nx.random_regular_graph(degree, n, seed=rng).edges


def _swap(graph: NxGraph) -> NxGraph:
    """Edges (a, b) on a cycle of one part and (c, d) of another become (a, c) and (b, d)."""
    import networkx as nx

    parts = [graph.subgraph(part).copy() for part in nx.connected_components(graph)]
    for part in parts[1:]:  # graph minus (a, b) stays connected, so part joins at c and at d
        (a, b), (c, d) = nx.find_cycle(graph, next(iter(parts[0])))[0][:2], next(iter(part.edges))
        graph.remove_edges_from([(a, b), (c, d)])
        graph.add_edges_from([(a, c), (b, d)])
    return graph
