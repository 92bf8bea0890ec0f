"""Models pushed from node to node: clocks, delays, losses."""

import numpy as np
from jaxtyping import Float, Int

from jaxfl.networks.adversaries import Send
from jaxfl.networks.graphs import lookup
from jaxfl.networks.matrices import AnyGraph, Edges
from jaxfl.networks.nets import Messages
from jaxfl.networks.packing import _argsort, _followers, _half, _pack, _table
from jaxfl.networks.timelines import CLOCKS, Seed, Timeline, _between, _timeline
from jaxfl.types import Count, whole

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
