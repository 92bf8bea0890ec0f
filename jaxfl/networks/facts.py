"""Facts about mixing: graphs, schedules and networks as weights, and how fast they mix."""

import functools
import operator
from typing import Any

import jax
import numpy as np

from jaxfl.engine import comm
from jaxfl.networks import spectra, weights
from jaxfl.networks.matrices import Edges, sparse, square
from jaxfl.networks.topologies import Periodic

_MANY = 2500  # nodes beyond which no matrix [n, n] is made


def mixing_facts(g: Any, w: Any = None) -> dict[str, float]:
    """How many nodes and edges there are, and how fast they mix.

    Args:
        g: a networkx graph (of `jaxfl.networks.graphs.make`), a schedule `[tau, n]` of peers, a
            mixing or an adjacency matrix `[n, n]` of NumPy or scipy.sparse, or a network (of
            `jaxfl.networks.topology`).
        w: `[n, n]` mixing weights; Metropolis-Hastings by default (column-stochastic where the
            graph is directed). Of a schedule, one matrix per phase `[tau, n, n]`.

    Returns:
        `nodes`, `edges`, `gap` and `mixing_time` (rounds; of a schedule both are per round of a
        whole period).

    Example:
        >>> facts = networks.mixing_facts(networks.graphs.make("ring", 8))
        >>> facts["nodes"], facts["edges"], round(facts["gap"], 3)
        (8.0, 8.0, 0.195)
    """
    ws = phases(g, w)
    if len(ws) > 1:
        rate = spectra.period_contraction(list(ws)) ** (1 / len(ws))
        rounds = len(ws) if rate < 1e-12 else _rounds(rate)
        facts = {"gap": 1 - rate, "mixing_time": float(rounds)}
    else:
        facts = {"gap": spectra.gap(ws[0]), "mixing_time": spectra.mixing_time(ws[0])}
    edges = sum(i != j for i, j in union(g, ws).edges)
    return {"nodes": float(ws[0].shape[0]), "edges": float(edges), **facts}


def union(g: Any, ws: list[Any]) -> Any:
    """A networkx graph of all that its phases connect; itself, if it is one."""
    import networkx as nx

    if isinstance(g, nx.Graph):
        return g
    directed = any(abs(step - step.T).max() > 0 for step in ws)
    total = functools.reduce(operator.add, map(sparse, ws))
    g = nx.empty_graph(total.shape[0], create_using=nx.DiGraph if directed else nx.Graph)
    heard, sender = total.nonzero()
    g.add_edges_from((j, i) for i, j in zip(heard.tolist(), sender.tolist()) if i != j)
    return g


def phases(g: Any, w: Any = None) -> list[Any]:
    """Weights `[n, n]` of a graph, matrix, schedule or network, one for each phase."""
    import networkx as nx
    from scipy.sparse import issparse

    if w is None and isinstance(g, nx.Graph):
        return [_rule(g)]
    if w is None:
        w = _of_network(g) if hasattr(g, "w") else g if issparse(g) else np.asarray(g)
        if getattr(w, "ndim", 0) == 2 and w.dtype.kind in "iu" and not _adjacent(w):
            w = weights.peers(w, sparse=w.shape[1] > _MANY)
        elif getattr(w, "ndim", 0) == 2 and w.shape[0] == w.shape[1]:
            sums = [abs(w.sum(axis) - 1).max() for axis in (0, 1)]
            w = w if min(sums) < 1e-6 else _rule(w)  # of an adjacency matrix
    several = isinstance(w, list) or (not issparse(w) and np.ndim(w) == 3)
    if not several and len(np.shape(w)) != 2:
        raise ValueError(
            f"weights must be [n, n] or, of a schedule, [tau, n, n], got {list(np.shape(w))}; make "
            'them of a graph: `weights.make("metropolis", g)`'
        )
    return [square(one) for one in (w if several else [w])]


def _adjacent(a):
    """Whether whole numbers are an adjacency matrix, and not peers by phase."""
    return a.shape[0] == a.shape[1] and not a.diagonal().any() and a.max() <= 1 and a.shape[0] > 2


def _rule(g):
    """The weights that a graph has by default."""
    edges = Edges.of(g)
    rule = "column_stochastic" if edges.directed else "metropolis"
    return weights.make(rule, g, sparse=edges.sends.shape[0] > _MANY)


def _of_network(network: Any) -> Any:
    """The matrices of a network whose weights are fixed or repeat."""
    if isinstance(network, Periodic):
        period = len(jax.tree.leaves(network.w)[0])
        return [comm.to_dense(jax.tree.map(lambda a, t=t: a[t], network.w)) for t in range(period)]
    return comm.to_dense(network.w)


def _rounds(rate):
    return np.inf if rate > 1 - 1e-12 else max(1.0, np.ceil(np.log(1e-2) / (2 * np.log(rate))))
