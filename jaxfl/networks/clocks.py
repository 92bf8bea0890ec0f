"""Poisson clocks: events of nodes and edges in continuous time."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from jaxfl.networks import spectra
from jaxfl.networks.adversaries import Send
from jaxfl.networks.matrices import AnyGraph, _undirected
from jaxfl.networks.nets import Events
from jaxfl.networks.packing import _argsort, _chains, _half, _pack, _table
from jaxfl.networks.timelines import Seed, Timeline, _between, _timeline
from jaxfl.types import Count, whole

# Events --------------------------------------------------------------------------------------


def poisson(
    graph: AnyGraph,
    rounds: Count,
    *,
    gradient_rate: float | ArrayLike = 1.0,
    edge_rates: float | ArrayLike = 1.0,
    unit: float = 1.0,
    seed: Seed = 0,
    cap: tuple[Count, Count] | None = None,
    waves: Count = 0,
) -> Timeline:
    """Independent Poisson clocks: every node computes gradients, every edge exchanges.

    Args:
        graph: an undirected graph with nodes 0 to n-1, or a symmetric matrix `[n, n]` (of NumPy or
            scipy.sparse) of rates of the edges, which `edge_rates` multiplies; its diagonal is
            ignored.
        rounds: for how many rounds of `unit` seconds the events are drawn.
        gradient_rate: events per second of a node, a number or `[n]`, >= 0.
        edge_rates: events per second of an edge, a number or a symmetric matrix `[n, n]`, >= 0;
            `dadao_rates(graph)["rate"]` for DADAO.
        unit: seconds of a round. A round has a random number of events and all have room for the
            largest: longer rounds waste less.
        seed: a number or a NumPy generator.
        cap: as for `from_events`.
        waves: as for `from_events`.

    Returns:
        A `Timeline` of `Events`.

    Raises:
        ValueError: a directed graph, rates that are negative, asymmetric or off the edges, and what
            `from_events` refuses.

    Example:
        >>> ring = networks.graphs.make("ring", 8)
        >>> rates = networks.dadao_rates(ring)
        >>> network = networks.poisson(ring, rounds=10, edge_rates=rates["rate"])
        >>> network.n, type(network(0, jax.random.key(0))).__name__
        (8, 'Events')
    """
    rounds = _between("rounds", rounds, 1)
    n, edges, rates = _clocks(graph, edge_rates)
    nodes = np.broadcast_to(np.asarray(gradient_rate, float), (n,))
    rates = np.concatenate([nodes, rates])
    if not (np.isfinite(rates) & (rates >= 0)).all() or not rates.sum() > 0:
        raise ValueError(
            "gradient_rate and edge_rates must be finite, >= 0 and not all 0; for example "
            "`gradient_rate=1.0, edge_rates=1.0`"
        )
    rng = np.random.default_rng(seed)
    upto = np.cumsum(rates)
    times = rng.uniform(0, rounds * unit, rng.poisson(upto[-1] * rounds * unit))
    times = times[_argsort(times)]
    clock = _intervals(upto, upto[-1] * rng.random(len(times)))
    i, j = np.append(np.arange(n), edges[0])[clock], np.append(np.full(n, n), edges[1])[clock]
    return from_events(times, i, j, n, rounds=rounds, unit=unit, cap=cap, waves=waves)


def _intervals(upto, u):
    """`np.searchsorted(upto, u, side="right")`, mostly from a table of equal cells."""
    cells = 4 * len(upto)
    left = upto[-1] / cells * (np.arange(cells + 1) - 0.5)  # half a cell early: rounding
    k = np.searchsorted(upto, left, side="right")[(u * (cells / upto[-1])).astype(np.int64)]
    k += upto[k] <= u
    far = np.flatnonzero(upto[k] <= u)
    k[far] = np.searchsorted(upto, u[far], side="right")
    return k


def _clocks(graph, edge_rates):
    """n, the two ends of the edges and their rates, [m]."""
    edges = _undirected(graph, "poisson")
    i, j, degree = edges.ends()
    n, back = len(degree), edges.sends.T.tocsr()
    back.sort_indices()
    rates, back = edges.sends.data, back.data
    if np.ndim(edge_rates):
        every = np.asarray(edge_rates, float)
        if every.shape != (n, n) or np.count_nonzero(every) > np.count_nonzero(every[i, j]):
            raise ValueError(
                f"edge_rates must be a number or [n, n] with n = {n}, and 0 off the edges: use "
                "`rates * (adjacency != 0)`"
            )
        rates, back = rates * every[i, j], back * every[j, i]
    else:
        rates, back = rates * float(edge_rates), back * float(edge_rates)
    if not np.allclose(rates, back, rtol=1e-9, atol=0):
        raise ValueError("edge rates must be symmetric: use `(rates + rates.T) / 2`")
    kept = (i < j) & (rates != 0)
    return n, (i[kept], j[kept]), rates[kept]


def dadao_rates(graph: AnyGraph, factor: float = 1.0) -> dict[str, float]:
    """Equal rates for all edges with which DADAO converges, at a speed that no graph changes.

    The total is factor * sqrt(2 chi1 chi2), with the chi1 and chi2 of the graph at total rate 1.

    Args:
        graph: undirected, connected.
        factor: 1 for chi1 chi2 = 1/2, the largest value the theory allows; below it DADAO diverges.

    Returns:
        `rate` of an edge (events per second, for `poisson`), and `chi1`, `chi2` of the Laplacian
        with these rates (the first for `DADAO`).

    Raises:
        ValueError: a directed or disconnected graph.

    Source: Nabli, Oyallon, "DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization",
        ICML 2023, arXiv 2208.00779; their code was read.

    Example:
        >>> found = networks.dadao_rates(networks.graphs.make("ring", 8))
        >>> {name: round(value, 3) for name, value in found.items()}
        {'rate': 1.222, 'chi1': 1.397, 'chi2': 0.358}
    """
    count = _undirected(graph, "dadao_rates").sends.nnz // 2
    one = spectra.laplacian(graph, 1 / count)
    chi1, chi2 = spectra.chi1(one), spectra.chi2(one)
    if not np.isfinite(chi1):
        raise ValueError("graph must be connected: use `graphs.ring(n)`, or add edges")
    total = factor * np.sqrt(2 * chi1 * chi2)
    return {"rate": float(total / count), "chi1": float(chi1 / total), "chi2": float(chi2 / total)}


def from_events(
    times: Float[np.ndarray, " e"],
    i: Int[np.ndarray, " e"],
    j: Int[np.ndarray, " e"],
    n: Count,
    *,
    rounds: Count,
    unit: float = 1.0,
    cap: tuple[Count, Count] | None = None,
    waves: Count = 0,
) -> Timeline:
    """Your own events, cut into rounds and packed into waves.

    Args:
        times: seconds, sorted, in [0, rounds * unit]. Equal times happen in the order given.
        i: the node of a gradient, or one end of an exchange.
        j: n for a gradient, or the other end of the exchange.
        n: number of nodes.
        rounds: of `unit` seconds.
        unit: seconds of a round.
        cap: most gradients and exchanges of one wave; by default about half of what an unlimited
            wave would hold on average.
        waves: at least so many waves per round, so that timelines with the same cap share a shape
            (stack them, and `vmap` the run); by default what the fullest round needs.

    Returns:
        A `Timeline` of `Events`.

    Raises:
        ValueError: times unsorted or out of range, unknown nodes, an exchange of a node with
            itself, a cap of nothing, too few waves.

    Example:
        >>> times, i, j = np.array([0.1, 0.2, 0.5]), np.array([0, 1, 0]), np.array([3, 3, 1])
        >>> network = networks.from_events(times, i, j, 3, rounds=1)
        >>> net = network(0, jax.random.key(0))
        >>> int(net.gradients()), int(net.exchanges())
        (2, 1)
    """
    times, i, j = np.asarray(times, float), np.asarray(i, np.int64), np.asarray(j, np.int64)
    n, rounds, waves = whole("n", n), whole("rounds", rounds), whole("waves", waves)
    _check_events(times, i, j, n, rounds, unit)
    when = np.minimum((times / unit).astype(np.int64), rounds - 1)
    past, after, gap, rest = _chains(times, when, i, j, n, rounds, unit)
    pair = j < n
    c, e = (whole("cap", most) for most in cap or _half(past, pair, when))
    if min(c, e) < 1:
        raise ValueError(f"cap must be two numbers >= 1, got {cap}; for example `cap=(4, 8)`")
    wave, slot = _pack(past, after, pair, when, (c, e))
    needed = int(wave.max(initial=0)) + 1
    if waves and waves < needed:
        raise ValueError(
            f"waves must be at least {needed} with cap={(c, e)}, got {waves}; use `waves={needed}`"
        )
    place = when * max(waves, needed) + wave
    number, nodes = np.arange(len(times)), np.broadcast_to(np.arange(n), (rounds, n))
    shape = rounds, max(waves, needed)
    alone, both = (_table(kind, place, slot, (*shape, w)) for kind, w in ((~pair, c), (pair, e)))
    nets = Events(
        t=np.arange(rounds),
        grad=alone(i, n),
        at=alone(times),
        gap=alone(gap[0]),
        number=alone(number),
        i=both(i, n),
        j=both(j, n),
        when=both(times),
        gap_i=both(gap[0]),
        gap_j=both(gap[1]),
        order=both(number),
        rest=rest,
        end=unit * np.arange(1.0, rounds + 1),
        send=Send(nodes < 0, nodes, nodes >= 0),
        elapsed=np.full(rounds, float(unit)),
        n=n,
    )
    return _timeline(nets, n)


def to_events(
    timeline: Timeline,
) -> tuple[Float[np.ndarray, " e"], Int[np.ndarray, " e"], Int[np.ndarray, " e"]]:
    """The events of a timeline in their order: times, i, and j (n for a gradient).

    Example:
        >>> times, i, j = np.array([0.1, 0.2, 0.5]), np.array([0, 1, 0]), np.array([3, 3, 1])
        >>> found = networks.to_events(networks.from_events(times, i, j, 3, rounds=1))
        >>> [a.round(3).tolist() for a in found]
        [[0.1, 0.2, 0.5], [0, 1, 0], [3, 3, 1]]
    """
    net = timeline.nets
    parts = []
    for i, j, when, number in (
        (net.grad, jnp.full_like(net.grad, net.n), net.at, net.number),
        (net.i, net.j, net.when, net.order),
    ):
        live = np.asarray(i) < net.n
        parts.append([np.asarray(a)[live] for a in (when, i, j, number)])
    times, i, j, number = (np.concatenate(p) for p in zip(*parts))
    order = np.argsort(number)
    return times[order].astype(float), i[order], j[order]


def _check_events(times, i, j, n, rounds, unit):
    _between("rounds", rounds, 1)
    if not unit > 0:
        raise ValueError(f"unit must be positive seconds, got {unit}; for example `unit=1.0`")
    if times.shape != i.shape or times.shape != j.shape or times.ndim != 1:
        raise ValueError(
            f"times, i and j must share one length, got {times.shape}, {i.shape}, {j.shape}; for "
            "example `times=np.array([0.5]), i=np.array([0]), j=np.array([1])`"
        )
    if len(times) and (
        (np.diff(times) < 0).any() or times[0] < 0 or times[-1] > rounds * unit * (1 + 1e-12)
    ):
        raise ValueError(
            f"times must be sorted and in [0, rounds * unit] = [0, {rounds * unit:g}]; use "
            "`order = np.argsort(times, kind='stable')`"
        )
    wrong = (i < 0) | (i >= n) | (j < 0) | (j > n) | (i == j)
    if wrong.any():
        k = int(np.argmax(wrong))
        raise ValueError(
            f"events must join two different nodes of 0..{n - 1}, or have j = {n} for a gradient; "
            f"event {k} has i={i[k]}, j={j[k]}; leave it out: `np.delete(times, {k})`"
        )
