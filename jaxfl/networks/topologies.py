"""Graphs with mixing weights, fixed or changing from round to round."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl import struct
from jaxfl.engine import comm
from jaxfl.networks import graphs as _graphs
from jaxfl.networks import matrices
from jaxfl.networks import weights as _weights
from jaxfl.networks.adversaries import Send
from jaxfl.networks.failures import first
from jaxfl.networks.nets import Graph, Links, messages
from jaxfl.types import Count, Key, Scalar, wholes


def mixing(w: matrices.Matrix, *, dense: float = 0.5) -> comm.Weights:
    """The cheapest record for a mixing matrix: dense if most entries are nonzero, shifts, or slots.

    Args:
        w: `[n, n]` concrete matrix, also of scipy.sparse, `w[i, j]` = weight that i puts on j.
        dense: share of nonzero entries in the fullest row beyond which the full matrix is kept.

    Returns:
        `Dense`, `Shifts` (circulant) or `Near`.

    Example:
        >>> ring = networks.WEIGHTS["metropolis"](networks.graphs.make("ring", 16))
        >>> type(networks.mixing(ring)).__name__
        'Shifts'
    """
    w = matrices.square(w)
    n = w.shape[0]
    degree = int((w != 0).sum(1).max())
    if degree > max(3, dense * n):
        return comm.Dense(jnp.asarray(w if isinstance(w, np.ndarray) else w.toarray()))
    circulant = matrices.shifts(w)
    if circulant is not None:
        values, offsets = circulant
        return comm.Shifts(jnp.asarray(values), tuple(int(s) for s in offsets), n)
    return comm.Near(*(jnp.asarray(a) for a in _weights.neighbours(w)))


def _graph(t, w, n, links, sums):
    active, ids = jnp.ones(n, bool), jnp.arange(n, dtype=jnp.int32)
    sent, heard = messages(w)
    sent = heard if sums == "symmetric" else sent  # no scatter, nothing moves between devices
    return Graph(t, w, active, Send(jnp.zeros(n, bool), ids, active), links, sent)


@struct.dataclass
class Static:
    """The same mixing weights in every round; `topology("ring", 16)` makes one by name.

    Args:
        w: `Dense`, `Near` or `Shifts`, traced.
        n: number of nodes, static.
        links: speeds, for simulated seconds.
        sums: which sums of w are 1: "row", "column" (directed push graphs), "doubly" (both), or
            "symmetric" (both, and w = w'), static.

    Example:
        >>> network = networks.topology("ring", 16)
        >>> type(network).__name__, network.n, network.sums
        ('Static', 16, 'symmetric')
    """

    w: comm.Weights
    n: Count = struct.field(pytree_node=False, default=0)
    links: Links = Links()
    sums: str = struct.field(pytree_node=False, default="row")
    kind: ClassVar[type] = Graph
    static: ClassVar[bool] = True
    lossless: ClassVar[bool] = True

    @property
    def column(self) -> int:
        """1 if columns, but not rows, sum to 1."""
        return int(self.sums == "column")

    def __call__(self, t: Scalar, key: Key) -> Graph:
        """The net of round t."""
        return _graph(t, self.w, self.n, self.links, self.sums)


def topology(
    name: Any,
    n: Count = 0,
    *,
    weights: str = "",
    seed: int | np.random.Generator = 0,
    links: Links | None = None,
    **options: Any,
) -> Any:
    """A network of n nodes by the name of its graph, or from a graph of your own.

    Args:
        name: of `jaxfl.networks.GRAPHS` ("ring", "torus", "exponential", ...), or a time-varying
            one: "one_peer_exponential", "one_peer_hypercube", "one_peer_ring", "random_matching",
            "random_out"; or a networkx graph of nodes 0 to n-1, or an adjacency matrix `[n, n]` of
            NumPy or scipy.sparse, senders x receivers, of which only the zeros count.
        n: number of nodes; that of a graph of your own is known, and may be left out.
        weights: rule for the mixing weights of a fixed graph, of `jaxfl.networks.WEIGHTS`, such as
            "lazy"; by default "metropolis", and on directed graphs "column_stochastic", which on a
            regular one is doubly stochastic.
        seed: of random graphs.
        links: speeds, for simulated seconds.
        options: of the graph, such as `p` or `degree`, or of the weights, such as `alpha`.

    Raises:
        ValueError: an unknown name or weight rule, with the nearest, impossible sizes, or a graph
            that is none.

    Example:
        >>> network = networks.topology("erdos_renyi", 20, p=0.3, weights="lazy", seed=1)
        >>> network.n, networks.topology("one_peer_exponential", 16).n
        (20, 16)
        >>> networks.topology(np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]), weights="lazy").n
        3
    """
    links = links or Links()
    if isinstance(name, str) and name in TIME_VARYING:
        if weights:
            raise ValueError(
                f"{name} changes every round and has its own weights, got weights={weights!r}; "
                f'use `topology("{name}", {n})`, or a fixed graph'
            )
        _graphs.accepts(TIME_VARYING[name], name, options)
        return TIME_VARYING[name](n, links, **options)
    rule_options = {k: options.pop(k) for k in ("alpha", "nonnegative") if k in options}
    g = _graphs.make(name, n, seed=seed, **options) if isinstance(name, str) else name
    edges = matrices.Edges.of(g)
    nodes = edges.sends.shape[0]
    if not isinstance(name, str) and (options or n not in (0, nodes)):
        raise ValueError(
            f"a graph of your own has its {nodes} nodes and edges, got n={n} and options "
            f"{[*options]}; leave them out: `topology(g)`"
        )
    rule = weights or ("column_stochastic" if edges.directed else "metropolis")
    if nodes > _MANY and rule != "fastest":
        rule_options["sparse"] = True
    return from_matrix(_weights.make(rule, g, **rule_options), links=links)


def from_matrix(w: matrices.Matrix, *, links: Links | None = None) -> Static:
    """A fixed network from your own mixing matrix, checked.

    Args:
        w: `[n, n]`, of NumPy or scipy.sparse, `w[i, j]` = weight that i puts on j: rows sum to 1
            (gossip), or columns do (push-sum), or both. An adjacency matrix goes to `topology`.

    Raises:
        ValueError: not square, not stochastic either way, disconnected or periodic, naming where.

    Example:
        >>> network = networks.from_matrix(np.array([[0.5, 0.5], [0.25, 0.75]]))
        >>> network.n, network.sums
        (2, 'row')
    """
    w = matrices.square(w)
    sums = _sums([w])
    _weights.check(w, kind=sums, negative=True, tol=_TOLERANCE)
    return Static(mixing(w), w.shape[0], links or Links(), sums)


_TOLERANCE = 1e-6  # float32 matrices are welcome


_MANY = 2500  # nodes beyond which no matrix [n, n] is made


def _sums(ws):
    """Which sums of all the matrices are 1, of `jaxfl.networks.weights.KINDS`; "row" if none."""
    small = lambda a: bool(abs(a).max() <= _TOLERANCE)
    rows, columns = (all(small(w.sum(axis) - 1) for w in ws) for axis in (1, 0))
    if not (rows and columns):
        return "column" if columns else "row"
    return "symmetric" if all(small(w - w.T) for w in ws) else "doubly"


@struct.dataclass
class Periodic:
    """Mixing weights that repeat: `w` holds B of them, stacked, and round t uses t mod B.

    Args:
        w: `Near` or `Dense` with a leading axis B, traced.
        n: number of nodes, static.
        links: speeds, for simulated seconds.
        sums: as for `Static`.

    Example:
        >>> pairs = np.kron(np.eye(2), np.full((2, 2), 0.5))
        >>> network = networks.periodic([pairs, np.roll(pairs, (1, 1), (0, 1))])
        >>> type(network).__name__, network.n
        ('Periodic', 4)
    """

    w: comm.Near | comm.Dense
    n: Count = struct.field(pytree_node=False, default=0)
    links: Links = Links()
    sums: str = struct.field(pytree_node=False, default="row")
    kind: ClassVar[type] = Graph
    static: ClassVar[bool] = False
    lossless: ClassVar[bool] = True

    @property
    def column(self) -> int:
        """1 if columns, but not rows, sum to 1."""
        return int(self.sums == "column")

    def __call__(self, t: Scalar, key: Key) -> Graph:
        """The net of round t."""
        period = self.w.w.shape[0]
        w = jax.tree.map(lambda a: a[jnp.asarray(t) % period], self.w)
        return _graph(t, w, self.n, self.links, self.sums)


def periodic(ws: Any, *, links: Links | None = None) -> Periodic:
    """A time-varying network from a list of mixing matrices `[n, n]`, used in turn.

    Each must be stochastic; only their union needs to be connected.

    Raises:
        ValueError: matrices of different sizes, or not stochastic.

    Example:
        >>> swap = np.array([[0.0, 1.0], [1.0, 0.0]])
        >>> network = networks.periodic([np.eye(2), swap])
        >>> comm.to_dense(network(1, jax.random.key(0)).w).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    ws = [matrices.square(w) for w in ws]
    if len({w.shape for w in ws}) != 1:
        raise ValueError(
            f"ws must be matrices of one shape [n, n], got {[w.shape for w in ws]}; "
            "for example `periodic([w_even, w_odd])`"
        )
    sums = _sums(ws)
    for w in ws:
        _weights.check(w, kind=sums, connected=False, negative=True, tol=_TOLERANCE)
    union: Any = sum((matrices.sparse(w) != 0).astype(float) for w in [*ws, np.eye(ws[0].shape[0])])
    _weights.check(union / union.sum(1)[:, None], kind="row")
    parts = [_weights.neighbours(w) for w in ws]
    k = max(idx.shape[1] for idx, _, _ in parts)
    near = comm.Near(*(jnp.asarray(np.stack(p)) for p in zip(*(_widen(*p, k) for p in parts))))
    return Periodic(near, ws[0].shape[0], links or Links(), sums)


def _widen(idx, w, back, k):
    n, extra = len(idx), k - idx.shape[1]
    own = np.broadcast_to(np.arange(n, dtype=idx.dtype)[:, None], (n, extra))
    return (
        np.concatenate([idx, own], 1),
        np.concatenate([w, np.zeros((n, extra))], 1),
        np.concatenate([back, np.zeros((n, extra), back.dtype)], 1),
    )


def level(networks: Sequence[Any]) -> list[Any]:
    """Networks of one kind whose mixing weights have one form and size: stack them, and `vmap`.

    Args:
        networks: which differ in their graphs only.

    Example:
        >>> several = [networks.topology("erdos_renyi", 8, seed=s) for s in range(3)]
        >>> leaves = [jax.tree.leaves(one)[0].shape for one in networks.level(several)]
        >>> len(set(leaves))
        1
    """
    forms = (comm.Dense, comm.Near, comm.Shifts)
    flat = [jax.tree.flatten(one, is_leaf=lambda a: isinstance(a, forms)) for one in networks]
    columns = []
    for column in zip(*(leaves for leaves, _ in flat), strict=True):
        if isinstance(column[0], forms) and len({_form(w) for w in column}) > 1:
            if any(isinstance(w, comm.Dense) for w in column):
                column = [comm.Dense(comm.to_dense(w)) for w in column]
            else:
                near = [comm.to_near(w) for w in column]
                k = max(w.idx.shape[1] for w in near)
                host = np.asarray
                wide = [_widen(host(w.idx), host(w.w), host(w.back), k) for w in near]
                column = [comm.Near(*map(jnp.asarray, tables)) for tables in wide]
        columns.append(column)
    rows = zip(*columns, strict=True)
    return [jax.tree.unflatten(tree, row) for row, (_, tree) in zip(rows, flat, strict=True)]


def _form(w):
    return jax.tree.structure(w), tuple(jnp.shape(a) for a in jax.tree.leaves(w))


def _pairs(sources, links):
    """Half the own model and half that of one peer, phase by phase: `sources [B, n]`."""
    sources = np.asarray(sources, np.int32)
    period, n = sources.shape
    own = np.broadcast_to(np.arange(n, dtype=np.int32), sources.shape)
    alone = sources == own
    w = np.stack([np.where(alone, 1.0, 0.5), np.where(alone, 0.0, 0.5)], -1)
    mutual = np.take_along_axis(sources, sources, 1) == own
    back = np.stack([np.zeros_like(own), np.where(alone, 0, np.where(mutual, 1, -1))], -1)
    near = comm.Near(
        jnp.asarray(np.stack([own, sources], -1)), jnp.asarray(w), jnp.asarray(back, jnp.int32)
    )
    return Periodic(near, n, links, "symmetric" if mutual.all() else "doubly")


@struct.dataclass
class RandomMatching:
    """A fresh uniformly random perfect matching every round; pairs average.

    Args:
        n: number of nodes, >= 2, static; of an odd number one node stays alone.
        links: speeds, for simulated seconds.

    Example:
        >>> networks.topology("random_matching", 6) == networks.RandomMatching(6)
        True
    """

    n: Count = struct.field(pytree_node=False)
    links: Links = Links()
    sums: ClassVar[str] = "symmetric"
    column: ClassVar[int] = 0
    kind: ClassVar[type] = Graph
    static: ClassVar[bool] = False
    lossless: ClassVar[bool] = True

    def __post_init__(self):
        wholes(self, "n")
        _graphs._size(self.n)

    def __call__(self, t: Scalar, key: Key) -> Graph:
        """The net of round t."""
        order = jax.random.permutation(key, self.n).astype(jnp.int32)
        half = self.n // 2
        own = jnp.arange(self.n, dtype=jnp.int32)
        peer = own.at[order[:half]].set(order[half : 2 * half])
        peer = peer.at[order[half : 2 * half]].set(order[:half])
        alone = (peer == own)[:, None]
        w = jnp.where(alone, jnp.array([[1.0, 0.0]]), jnp.array([[0.5, 0.5]]))
        back = jnp.where(alone, 0, jnp.array([[0, 1]], jnp.int32))
        return _graph(
            t, comm.Near(jnp.stack([own, peer], 1), w, back), self.n, self.links, self.sums
        )


@struct.dataclass
class RandomOut:
    """Every node pushes to k others, drawn anew every round: column-stochastic, for push-sum.

    `graphs.random_out_fixed` is one such draw for all rounds.

    Args:
        n: number of nodes, static.
        k: out-degree, 1 to n - 1, static.
        links: speeds, for simulated seconds.

    Example:
        >>> networks.topology("random_out", 6, k=2) == networks.RandomOut(6, k=2)
        True
    """

    n: Count = struct.field(pytree_node=False)
    k: Count = struct.field(pytree_node=False, default=2)
    links: Links = Links()
    sums: ClassVar[str] = "column"
    column: ClassVar[int] = 1
    kind: ClassVar[type] = Graph
    static: ClassVar[bool] = False
    lossless: ClassVar[bool] = True

    def __post_init__(self):
        wholes(self, "n", "k")
        if not 1 <= self.k < self.n:
            raise ValueError(
                f"k must be from 1 to n - 1 = {self.n - 1}, got {self.k}; "
                f"use `RandomOut({self.n}, 1)`"
            )

    def __call__(self, t: Scalar, key: Key) -> Graph:
        """The net of round t."""
        u = jax.random.uniform(key, (self.n, self.n))
        u = jnp.where(jnp.eye(self.n, dtype=bool), -1.0, u)  # the own row always, then the k least
        out = jax.lax.top_k(-u, self.k + 1)[1]
        w = jnp.zeros((self.n, self.n)).at[out.T, jnp.arange(self.n)].set(1 / (self.k + 1))
        return _graph(t, comm.Dense(w), self.n, self.links, self.sums)


@struct.dataclass
class Quorum:
    """A complete network where every node waits for n - f messages, its own among them.

    The worst case: all Byzantine messages arrive, the rest are random honest ones. Every node sends
    to all others; what is not waited for counts as lost.

    Args:
        n: number of nodes, static.
        f: messages not waited for, static, < n.
        byzantine: `[n]` bool, whose messages always arrive; the first f by default, traced.
        links: speeds, for simulated seconds.

    Example:
        >>> liars = networks.first(3, 10)
        >>> quorum = networks.Quorum(10, f=3, byzantine=liars)
        >>> networks.Attacked(quorum, liars, networks.ALIE(z=1.5)).adversary
        ALIE(z=1.5)
    """

    n: Count = struct.field(pytree_node=False)
    f: Count = struct.field(pytree_node=False)
    byzantine: Scalar = None
    links: Links = Links()
    sums: ClassVar[str] = "row"
    column: ClassVar[int] = 0
    kind: ClassVar[type] = Graph
    static: ClassVar[bool] = False
    lossless: ClassVar[bool] = True

    def __post_init__(self):
        wholes(self, "n", "f")
        if not 0 <= self.f < self.n:
            raise ValueError(
                f"f must be from 0 to n - 1 = {self.n - 1}, got {self.f}; use `Quorum({self.n}, 1)`"
            )

    def __call__(self, t: Scalar, key: Key) -> Graph:
        """The net of round t."""
        bad = first(self.f, self.n) if self.byzantine is None else self.byzantine
        u = jax.random.uniform(key, (self.n, self.n))
        u = jnp.where(jnp.asarray(bad, bool)[None], u - 1, u)
        u = jnp.where(jnp.eye(self.n, dtype=bool), -2.0, u)
        idx = jnp.argsort(u, axis=1)[:, : self.n - self.f].astype(jnp.int32)
        w = jnp.full(idx.shape, 1 / (self.n - self.f))
        back = jnp.full(idx.shape, -1, jnp.int32).at[:, 0].set(0)
        net = _graph(t, comm.Near(idx, w, back), self.n, self.links, self.sums)
        return dataclasses.replace(net, sent=jnp.full(self.n, self.n - 1, jnp.float32))


TIME_VARYING = {
    "one_peer_exponential": lambda n, links: _pairs(_graphs.one_peer_exponential(n), links),
    "one_peer_hypercube": lambda n, links: _pairs(_graphs.one_peer_hypercube(n), links),
    "one_peer_ring": lambda n, links: _pairs(_graphs.one_peer_ring(n), links),
    "random_matching": lambda n, links: RandomMatching(n, links),
    "random_out": lambda n, links, k=2: RandomOut(n, k, links),
}
