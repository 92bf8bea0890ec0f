"""Schedules drawn on the host before a run: buffered arrivals, Poisson clocks, messages, your own.

Timings do not depend on parameters, so asynchrony needs no event loop inside the program: a
schedule becomes arrays that `lax.scan` reads.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from jaxfl.networks import spectra
from jaxfl.networks.adversaries import Send
from jaxfl.networks.graphs import lookup
from jaxfl.networks.nets import Arrivals, Events, Messages
from jaxfl.networks.weights import AnyGraph, Edges, _undirected
from jaxfl.types import Count, Key, Scalar, whole

Seed = int | np.random.Generator


@struct.dataclass
class Timeline:
    """Nets stacked over rounds; `arrivals`, `poisson`, `gossip`, ... make them.

    Args:
        nets: a net whose leaves have a leading axis of rounds, traced.
        n: number of clients, static.

    Example:
        >>> timeline = networks.arrivals(10, buffer=3, rounds=50)
        >>> timeline.n, timeline.nets.idx.shape
        (10, (50, 3))
    """

    nets: Any
    n: Count = struct.field(pytree_node=False)
    static: ClassVar[bool] = False
    lossless: ClassVar[bool] = True

    @property
    def kind(self) -> type:
        """The net it makes."""
        return type(self.nets)

    @property
    def rounds(self) -> int:
        """How many rounds are drawn."""
        return self.nets.t.shape[-1]

    def __call__(self, t: Scalar, key: Key) -> Any:
        """The net of round t; the key is not used, everything was drawn before."""
        return jax.tree.map(lambda a: a[t], self.nets)


def alike(timelines: Sequence[Timeline]) -> list[Timeline]:
    """Timelines filled up to one shape (arrivals have one): stack them, and `vmap` the run.

    Args:
        timelines: for as many rounds and nodes.

    Example:
        >>> ring = networks.graphs.make("ring", 6)
        >>> several = networks.alike([networks.poisson(ring, rounds=3, seed=s) for s in range(4)])
        >>> stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
        >>> stacked.nets.at.shape[0]
        4
    """
    nets = [timeline.nets for timeline in timelines]
    tables = [k for k, a in vars(nets[0]).items() if getattr(a, "ndim", 0) == 3]
    shapes = {k: np.max([getattr(net, k).shape for net in nets], axis=0) for k in tables}
    more = {"slots": max(net.slots for net in nets)} if hasattr(nets[0], "slots") else {}

    def filled(net, k):
        a = np.asarray(getattr(net, k))
        wide = [(0, size - own) for size, own in zip(shapes[k], a.shape, strict=True)]
        # an empty slot is node n; what else it holds is ignored
        return jnp.asarray(np.pad(a, wide, constant_values=net.n if k in ("grad", "i", "j") else 0))

    return [
        Timeline(net.replace(**{k: filled(net, k) for k in tables}, **more), timeline.n)
        for net, timeline in zip(nets, timelines, strict=True)
    ]


# Buffered arrivals ---------------------------------------------------------------------------

# Durations of mean 1; FedBuff's own is the half-normal.
DURATIONS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "constant": lambda rng, size: np.ones(size),
    "uniform": lambda rng, size: 2 * rng.random(size),
    "exponential": lambda rng, size: rng.exponential(size=size),
    "half_normal": lambda rng, size: np.sqrt(np.pi / 2) * abs(rng.standard_normal(size)),
    "lognormal": lambda rng, size: rng.lognormal(-0.5, 1.0, size),
}


def arrivals(
    n: Count,
    buffer: Count,
    rounds: Count,
    *,
    durations: str = "half_normal",
    concurrency: Count | None = None,
    scale: float | ArrayLike = 1.0,
    seed: Seed = 0,
) -> Timeline:
    """A server that closes a round whenever `buffer` updates have arrived, as in FedBuff.

    At any time `concurrency` clients train. When an update arrives, its place goes to a client
    drawn uniformly from the idle ones, with the newest model. Updates that arrive at the same
    instant are all received before their places are given away.

    A client whose update waits in the buffer is not idle: it is drawn again only after the round
    closes, so that no client is twice in one round. If nobody is idle, places stay free until then;
    with concurrency n (the default) all c who arrived restart together from the new model.

    Args:
        n: number of clients.
        buffer: updates per round, 1 to n.
        rounds: for how many the schedule is drawn.
        durations: law of the duration of a job, of mean 1: "constant", "uniform" (on [0, 2]),
            "exponential", "half_normal", "lognormal" (sigma = 1).
        concurrency: clients that train at once, 1 to n; n by default.
        scale: seconds by which durations are multiplied, > 0, a number or one per client `[n]`.
        seed: a number or a NumPy generator.

    Returns:
        A `Timeline` of `Arrivals`. The age of an update is the number of rounds that closed between
        the client's download and its arrival.

    Raises:
        ValueError: sizes out of range, an unknown law, or a scale that is not positive.

    Source: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered
        Asynchronous Aggregation", AISTATS 2022, arXiv 2106.06639; Fraboni, Vidal, Kameni, Lorenzi,
        JMLR 2023, arXiv 2206.10189 (their FedBuff has concurrency n).

    Example:
        >>> network = networks.arrivals(10, buffer=3, rounds=50, durations="exponential")
        >>> net = network(0, jax.random.key(0))
        >>> net.age.tolist(), float(net.participants())
        ([0, 0, 0], 3.0)
    """
    n = whole("n", n)
    concurrency = n if concurrency is None else concurrency
    buffer = _between("buffer", buffer, 1, n)
    concurrency = _between("concurrency", concurrency, 1, n)
    rounds = _between("rounds", rounds, 1)
    seconds = np.broadcast_to(np.asarray(scale, float), (n,))
    if not (seconds > 0).all():
        raise ValueError(f"scale must be positive seconds, got {seconds.min():g}; use `scale=1.0`")
    rng = np.random.default_rng(seed)
    jobs = concurrency + buffer * rounds
    length = lookup(DURATIONS, durations, "durations")(rng, jobs).tolist()
    coin = rng.random(jobs).tolist()
    idx, age, end = _serve(buffer, rounds, concurrency, seconds.tolist(), length, coin)
    idx = np.array(idx).reshape(rounds, buffer)
    live = np.ones(idx.shape, bool)
    nets = Arrivals(
        t=np.arange(rounds),
        idx=idx,
        age=np.array(age).reshape(rounds, buffer),
        weight=live.astype(float),
        send=Send(~live, idx, live),
        elapsed=np.diff(end, prepend=0.0),
    )
    return _timeline(nets, n)


def _narrow(a: np.ndarray) -> np.ndarray:
    # cast on the host: JAX would compile a conversion for every shape
    wide = {"i": np.dtype(np.int32), "f": jnp.result_type(float)}.get(a.dtype.kind, a.dtype)
    return np.asarray(a, wide)


def _timeline(nets, n):
    return Timeline(jax.device_put(jax.tree.map(_narrow, nets)), n)  # all at once: it is quicker


def _serve(buffer, rounds, concurrency, seconds, length, coin):
    """The server's event loop: clients and ages in order of arrival, and when rounds closed."""
    idle, waiting, training = list(range(len(seconds))), [], []
    idx, age, end = [], [], []
    now, job, places = 0.0, 0, concurrency
    while len(end) < rounds:
        while places and idle:
            i = int(coin[job] * len(idle))
            idle[i], idle[-1] = idle[-1], idle[i]
            client = idle.pop()
            # equal times in order of the job, which is a random order of clients
            heapq.heappush(training, (now + length[job] * seconds[client], job, client, len(end)))
            job, places = job + 1, places - 1
        now = training[0][0]
        # a tolerance: 3 * .1 != .1 + .1 + .1
        while training and training[0][0] <= now * (1 + 1e-12) and len(end) < rounds:
            _, _, client, version = heapq.heappop(training)
            idx.append(client)
            age.append(len(end) - version)
            waiting.append(client)
            places += 1
            if len(waiting) == buffer:
                end.append(now)
                idle += waiting
                waiting = []
    return idx, age, end


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


def _chains(times, when, i, j, n, rounds, unit):
    """What comes before and after event e at i (row 0) and j (row 1) in its round: -1 is nothing.

    Returns:
        past [2, e]; a function to the events after some; gap [2, e], the seconds since; rest
        [rounds, n], the seconds from a node's last event to the end of the round.
    """
    count = len(times)
    ends = np.stack([i, j], 1)
    by = _argsort(ends.ravel())[: 2 * count - np.count_nonzero(j == n)]  # gradients have one end
    node = (ends + (when * (n + 1))[:, None]).ravel()[by]
    event, at = by >> 1, (by & 1) * count + (by >> 1)
    same = node[1:] == node[:-1]
    past, next = np.full((2, 2, count), -1)
    past.reshape(-1)[at[1:]] = np.where(same, event[:-1], -1)
    next.reshape(-1)[at[:-1]] = np.where(same, event[1:], -1)
    before = np.maximum(np.append(times, 0)[past], when * unit)
    gap = np.maximum(times - before, 0)  # not -1e-17
    last = np.flatnonzero(~np.append(same, np.zeros(min(len(by), 1), bool)))
    end = event[last]
    rest = np.full((rounds, n + 1), float(unit))
    rest.reshape(-1)[node[last]] = np.maximum((when[end] + 1) * unit - times[end], 0)

    def after(events):
        return np.concatenate([following[events] for following in next])

    return past, after, gap, rest[:, :n]


def _argsort(key):
    """A stable order of numbers >= 0: of whole ones by 16 bits at a time, which NumPy counts."""
    if key.dtype.kind == "f":  # roughly, then for good: NumPy is quick where much is in order
        by = _argsort((key * (len(key) / max(key.max(initial=0), 1e-300))).astype(np.int64))
        return by[np.argsort(key[by], kind="stable")]
    by = np.argsort(key.astype(np.uint16), kind="stable")
    for shift in range(16, int(key.max(initial=0)).bit_length(), 16):
        by = by[np.argsort((key[by] >> shift).astype(np.uint16), kind="stable")]
    return by


def _followers(past):
    """From events to those that wait for them."""
    before = past.ravel() + 1
    by = _argsort(before)
    first = np.cumsum(np.bincount(before, minlength=past.shape[1] + 1))
    by %= past.shape[1]

    def after(events):
        many = first[events + 1] - first[events]
        start = np.repeat(first[events] - np.cumsum(many) + many, many)
        return by[start + np.arange(len(start))]

    return after


def _half(past, pair, when):
    """Half the mean number of gradients and exchanges per wave if waves had no limit, plus one.

    Twice the waves, well filled, cost less than the fewest waves; the one is for few nodes, where
    a wave costs more than its slots. The mean is that of some rounds.
    """
    count, pairs = len(pair), np.count_nonzero(pair)
    half, waves, number = [-1] * (count + 1), 0, 0  # as in `_one_by_one`
    begins = np.flatnonzero(np.diff(when, prepend=-1)).tolist()
    for begin, end in list(zip(begins, [*begins[1:], count]))[:: 1 + count // 6000]:
        columns = *past[:, begin:end].tolist(), pair[begin:end].tolist()
        for k, (a, b, kind) in enumerate(zip(*columns), begin):
            a, b = half[a], half[b]
            half[k] = ((a if a > b else b) + 2 - kind >> 1) * 2 + kind
        waves += max(half[begin:end]) // 2 + 1
        number += end - begin
    share = number / max(2 * waves * count, 1)
    return int(np.ceil((count - pairs) * share)) + 1, int(np.ceil(pairs * share)) + 1


def _pack(past, after, pair, when, cap):
    """List scheduling: in order, every event to the first wave after its past that has room.

    Events wait for those in their column of past [2, e], and `after` gives those that wait for
    some. The order is that of time, but the last three of a chain of events come after all others:
    that takes as few waves as longest remaining chain first. Returns wave and slot.
    """
    count = len(pair)
    number = lambda before: np.bincount(before.ravel() + 1, minlength=count + 1)[1:]
    left, tail = number(past), np.full(count, 3)
    for k in range(3):
        last = np.flatnonzero((left == 0) & (tail == 3))
        tail[last] = k
        left -= number(past[:, last])
    rank = 4 * when + 3 - tail
    # a wave of little arrays costs as much as two hundred events in a loop
    wide = min(np.count_nonzero((past < 0).all(0)), sum(cap) * (when.max(initial=0) + 1)) > 300
    return (_wave_by_wave if wide else _one_by_one)(past, after, pair, when, rank, cap)


def _one_by_one(past, after, pair, when, rank, cap):
    """`_pack` by its definition."""
    order, size, now = _argsort(rank), np.bincount(when).tolist(), -1
    # twice the wave, plus one for an exchange; of no event: -1
    half, slot = [-1] * (len(pair) + 1), [0] * len(pair)
    columns = order, *past[:, order], pair[order], when[order]
    for e, a, b, kind, r in zip(*(c.tolist() for c in columns)):
        if r != now:
            # waves of a round, by kind: at or before which there is room, how many are in it
            now, room = r, [(list(range(size[r] + 1)), [0] * size[r]) for _ in cap]
        go, full = room[kind]
        a, b = half[a], half[b]
        wave = (a if a > b else b) + 2 - kind >> 1
        while (further := go[wave]) != wave:
            go[wave] = wave = go[further]
        slot[e] = full[wave]
        full[wave] += 1
        if full[wave] == cap[kind]:
            go[wave] = wave + 1
        half[e] = 2 * wave + kind
    return np.array(half[:-1], int) >> 1, np.array(slot, int)


def _wave_by_wave(past, after, pair, when, rank, cap):
    """`_pack` of all rounds at once: of those who are ready, the first take the places."""
    count, rounds = len(pair), when[-1] + 1
    order = _argsort(4 * rounds * pair + rank)  # gradients, then exchanges
    turn = np.empty(count, np.int64)
    turn[order] = np.arange(count)
    ready = np.zeros(count, bool)
    ready[turn[(past < 0).all(0)]] = True
    kinds, split = [], [count - np.count_nonzero(pair)]
    for events, waiting, room in zip(np.split(order, split), np.split(ready, split), cap):
        many = np.bincount(when[events], minlength=rounds)
        width = min(room, many.max())
        row, place = np.divmod(np.arange(rounds * width), max(width, 1))
        kinds.append((events, waiting, np.append(0, np.cumsum(many)), row, place))
    wave, slot = np.zeros((2, count), np.int64)
    # past of -1 is none, and what comes after -1 never
    done = np.append(np.zeros(count + 1, bool), True)
    first, second = np.pad(past, ((0, 0), (0, 1)), constant_values=count)
    left, v = count, 0
    while left:
        for events, waiting, begin, row, place in kinds:
            queue = np.flatnonzero(waiting)
            start = queue.searchsorted(begin)
            taken = np.flatnonzero(place < (start[1:] - start[:-1])[row])
            place = place[taken]
            chosen = queue[start[row[taken]] + place]
            waiting[chosen] = False
            chosen = events[chosen]
            wave[chosen], slot[chosen], done[chosen] = v, place, True
            new = after(chosen)
            ready[turn[new[done[first[new]] & done[second[new]]]]] = True
            left -= len(chosen)
        v += 1
    return wave, slot


def _table(which, place, slot, shape):
    """Writes values of these events to their places in [rounds, waves, slots]."""
    which = np.flatnonzero(which)
    at = np.full(shape, len(place))
    at.reshape(-1)[place[which] * shape[-1] + slot[which]] = which

    def table(values, empty=0):
        values = _narrow(values)
        return np.append(values, values.dtype.type(empty))[at]

    return table


# Messages ------------------------------------------------------------------------------------


def gossip(
    graph: AnyGraph,
    rounds: Count,
    *,
    period: Count = 100,
    clock: str = "sync",
    delay: tuple[Count, Count] = (0, 0),
    drop: float = 0.0,
    online: float = 1.0,
    unit: float = 1.0,
    seed: Seed = 0,
    cap: Count = 0,
    waves: Count = 0,
) -> Timeline:
    """Nodes push their models to random neighbours: asynchronous, late, lost, to nodes offline.

    Time goes in steps, `period` of them to a round. In a step all whose clock rings send, then what
    is due arrives, in the order in which it was sent: gossipy's simulator with protocol PUSH.

    Args:
        graph: nodes 0 to n-1, directed or not (a node sends to its successors), or an adjacency
            matrix `[n, n]` (of NumPy or scipy.sparse) of senders x receivers, whose diagonal is
            ignored.
        rounds: for how many rounds of `period` time steps the messages are drawn.
        period: time steps of a round, >= 1.
        clock: "sync": a node sends once a round, at a random step of its own; "async": every so
            many steps, drawn from N(period, period / 10) once for each node, all starting at 0.
        delay: least and largest number of time steps under way, each as likely as the others.
        drop: probability that a message is lost, in [0, 1].
        online: probability that a node is online at a step, in [0, 1]; what arrives at a node that
            is not is lost. Nodes send also when offline, as in gossipy.
        unit: seconds of a round.
        seed: a number or a NumPy generator.
        cap: as for `from_messages`.
        waves: as for `from_messages`.

    Returns:
        A `Timeline` of `Messages`. A node without neighbours never sends.

    Raises:
        ValueError: numbers out of range, an unknown clock, and what `from_messages` refuses.

    Source: Ormándi, Hegedűs, Jelasity, "Gossip learning with linear models on fully distributed
        data", Concurrency and Computation 2013; Polato's gossipy, whose code was read. There, a
        node without neighbours also silences those that come after it in the step.

    Example:
        >>> ring = networks.graphs.make("ring", 8)
        >>> network = networks.gossip(ring, rounds=10, delay=(0, 10), drop=0.1, online=0.9)
        >>> network.n, type(network(0, jax.random.key(0))).__name__
        (8, 'Messages')
    """
    rng = np.random.default_rng(seed)
    first, peers = _successors(graph)
    rounds = _between("rounds", rounds, 1)
    period = _between("period", period, 1)
    n, steps = len(first) - 1, rounds * period
    low, high = (whole("delay", steps) for steps in delay)
    if not 0 <= low <= high:
        raise ValueError(f"delay must be 0 <= low <= high time steps, got {delay}; use `(0, 10)`")
    for name, value in (("drop", drop), ("online", online)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}; for example `{name}=0.1`")
    offset, every = lookup(CLOCKS, clock, "clock")(rng, n, period)
    many = np.where(first[1:] > first[:-1], -(-(steps - offset) // every), 0)
    sender = np.repeat(np.arange(n), many)
    turn = np.arange(len(sender)) - np.repeat(np.cumsum(many) - many, many)
    sent = offset[sender] + turn * every[sender]
    order = _argsort(rng.random(len(sent)))  # within a step nodes send in random order
    order = order[_argsort(sent[order])]
    sender, sent = sender[order], sent[order]
    u = rng.random((3, len(sent)))
    peer = (u[0] * (first[sender + 1] - first[sender])).astype(np.int64)
    receiver = peers[first[sender] + peer]
    arrives = sent + rng.integers(low, high + 1, len(sent))
    # whether a node is online at a step is the same for all that arrives there then
    met = arrives * n + receiver
    by = _argsort(met)
    new = np.diff(met[by], prepend=-1) > 0
    off = np.empty(len(met), bool)
    off[by] = (rng.random(new.sum()) >= online)[np.cumsum(new) - 1]
    lost = (u[1] < drop) | off
    received = np.where(lost, steps, arrives)  # after the last round
    return _messages(
        sent, received, sender, receiver, n, rounds=rounds, length=period, unit=unit, cap=cap,
        waves=waves,
    )  # fmt: skip


# First step at which each node sends, and the steps between.
CLOCKS: dict[str, Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]] = {
    "sync": lambda rng, n, period: (rng.integers(0, period, n), np.full(n, period)),
    "async": lambda rng, n, period: (
        np.zeros(n, int),
        np.maximum(rng.normal(period, period / 10, n).astype(int), 1),
    ),
}


def _successors(graph):
    """Whom node i may send to: peers[first[i] : first[i + 1]]."""
    sends = Edges.of(graph).sends
    return sends.indptr.astype(np.int64), sends.indices.astype(np.int64)


def from_messages(
    sent: Float[np.ndarray, " e"],
    received: Float[np.ndarray, " e"],
    i: Int[np.ndarray, " e"],
    j: Int[np.ndarray, " e"],
    n: Count,
    *,
    rounds: Count,
    unit: float = 1.0,
    cap: Count = 0,
    waves: Count = 0,
) -> Timeline:
    """Your own messages, cut into rounds and packed into waves.

    Args:
        sent: seconds at which messages leave, in [0, rounds * unit).
        received: seconds at which they arrive, not before they leave; inf if they are lost. At
            equal times all is sent before anything arrives, and arrives in the order given.
        i: senders.
        j: receivers.
        n: number of nodes.
        rounds: of `unit` seconds; what arrives later stays under way.
        unit: seconds of a round.
        cap: most arrivals of one wave; by default about half of what an unlimited wave would hold
            on average.
        waves: at least so many waves per round, so that timelines with the same cap share a shape;
            by default what the fullest round needs.

    Returns:
        A `Timeline` of `Messages`.

    Raises:
        ValueError: times out of range, unknown nodes, messages to oneself, a cap below 1, too few
            waves.

    Example:
        >>> sent, received = np.array([0.1, 0.2]), np.array([0.3, np.inf])
        >>> i, j = np.array([0, 1]), np.array([1, 2])
        >>> network = networks.from_messages(sent, received, i, j, 3, rounds=1)
        >>> int(network(0, jax.random.key(0)).arrivals())
        1
    """
    sent, received = np.asarray(sent, float), np.asarray(received, float)
    i, j, n = np.asarray(i, np.int64), np.asarray(j, np.int64), whole("n", n)
    if not sent.shape == received.shape == i.shape == j.shape or sent.ndim != 1:
        shapes = sent.shape, received.shape, i.shape, j.shape
        raise ValueError(
            f"sent, received, i and j must share one length, got {shapes}; cut them to the same "
            "messages: `sent[kept], received[kept], i[kept], j[kept]`"
        )
    rounds = _between("rounds", rounds, 1)
    if not unit > 0:
        raise ValueError(f"unit must be positive seconds, got {unit}; for example `unit=1.0`")
    wrong = ~((sent >= 0) & (sent < rounds * unit) & (received >= sent))
    if wrong.any():
        k = int(np.argmax(wrong))
        raise ValueError(
            f"messages must leave in [0, rounds * unit) = [0, {rounds * unit:g}) and not arrive "
            f"before, message {k} is sent at {sent[k]:g}, received at {received[k]:g}; use "
            "`received=np.inf` for a lost one"
        )
    wrong = (i < 0) | (i >= n) | (j < 0) | (j >= n) | (i == j)
    if wrong.any():
        k = int(np.argmax(wrong))
        raise ValueError(
            f"messages must go between two different nodes of 0..{n - 1}; message {k} has "
            f"i={i[k]}, j={j[k]}; leave it out: `kept = i != j`"
        )
    return _messages(
        sent, received, i, j, n, rounds=rounds, length=unit, unit=unit, cap=cap, waves=waves
    )


def _messages(sent, received, sender, receiver, n, *, rounds, length, unit, cap, waves):
    """`length` is that of a round in the unit of the times; whole numbers have no rounding."""
    cap, waves = whole("cap", cap), whole("waves", waves)
    leaves = np.minimum((sent / length).astype(np.int64), rounds - 1)
    e = np.flatnonzero(received < rounds * length)
    e = e[_argsort(received[e])]
    at, i, j = received[e], receiver[e], sender[e]
    when = np.minimum((at / length).astype(np.int64), rounds - 1)
    left = np.searchsorted(at, sent)[e]  # much quicker if what left is sorted
    number = np.arange(len(e))
    own, maker, over = _versions(i, j, left)
    past = np.stack([own, maker])
    past = np.where((past >= 0) & (when[past] == when), past, -1)
    after, single = _followers(past), np.zeros(len(e), bool)
    cap = cap or _half(past, single, when)[0]
    cap = _between("cap", cap, 1)
    wave, slot = _pack(past, after, single, when, (cap, 0))
    needed = int(wave.max(initial=0)) + 1
    if waves and waves < needed:
        raise ValueError(
            f"waves must be at least {needed} with cap={cap}, got {waves}; use `waves={needed}`"
        )
    # a model moves to a slot if it is read in a later wave than the one that replaces it
    place = when * needed + wave
    late = np.flatnonzero((over >= 0) & (place > place[over]))
    read = np.full(len(e), -1)
    np.maximum.at(read, over[late], place[late])
    kept = np.flatnonzero(read >= 0)
    save = np.full(len(e), -1)
    save[kept], slots = _slots(place[kept], read[kept])
    source = j.copy()
    source[late] = n + save[over[late]]

    shape = rounds, max(waves, needed), cap
    table = _table(~single, when * shape[1] + wave, slot, shape)
    nodes = np.broadcast_to(np.arange(n), (rounds, n))
    nets = Messages(
        t=np.arange(rounds),
        i=table(i, n),
        j=table(j),
        source=table(source),
        save=table(save, -1),
        number=table(number),
        left=table(left),
        sent=np.bincount(leaves * n + sender, minlength=rounds * n).reshape(rounds, n),
        send=Send(nodes < 0, nodes, nodes >= 0),
        elapsed=np.full(rounds, float(unit)),
        n=n,
        slots=slots,
    )
    return _timeline(nets, n)


def _versions(i, j, left):
    """Arrivals, -1 for none: at i before each; and those that made and replaced what j sent.

    A message that left after `left` arrivals holds what the last of them at j made.
    """
    count = len(i)
    by = _argsort(i)
    rank = np.empty(count, np.int64)
    rank[by] = np.arange(count)
    asked = j * (count + 1) + left
    sort = _argsort(asked)  # sorted keys are found much quicker
    following = np.empty(count, np.int64)
    following[sort] = np.searchsorted(i[by] * (count + 1) + by, asked[sort])

    def at(node, place):
        event = np.append(by, -1)[np.where((place >= 0) & (place < count), place, count)]
        return np.where((event >= 0) & (np.append(i, -1)[event] == node), event, -1)

    return at(i, rank - 1), at(j, following - 1), at(j, following)


def _slots(start, end):
    """Slots for [start, end], where one may start when another ends, and how many they are.

    The k-th to start of m slots takes the one that the (k - m)-th to end gives back.
    """
    by, free = np.argsort(start, kind="stable"), np.argsort(end, kind="stable")
    busy = np.arange(1, len(by) + 1) - np.searchsorted(end[free], start[by], side="right")
    slots = int(busy.max(initial=0))
    slot = np.zeros(len(by), np.int64)
    slot[by[:slots]] = np.arange(slots)
    for k in range(slots, len(by)):
        slot[by[k]] = slot[free[k - slots]]
    return slot, slots


def _between(name, value, low, high=None):
    """The count, if it is in its range."""
    value = whole(name, value)
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"between {low} and n = {high}"
        raise ValueError(f"{name} must be {expected}, got {value}; for example `{name}={low}`")
    return value
