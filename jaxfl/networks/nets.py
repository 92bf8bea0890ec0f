"""The nets: what the outside world does in one round, as records that algorithms read.

A network is a frozen pytree with `__call__(t, key) -> net`, and three class attributes that
`simulate` compares with what an algorithm needs: `kind` (the net it makes), `static` (the graph
never changes) and `lossless` (nothing fails). Its arrays are traced: they can be swept and
differentiated, and a new graph of the same shape does not recompile.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxfl import comm
from jaxfl.networks.adversaries import Send, ranged
from jaxfl.types import Info, Key, Scalar, Stacked


@struct.dataclass
class Links:
    """Speeds, for simulated seconds. Each may be a number, one per client, or one per link.

    Args:
        compute: seconds per minibatch gradient, scalar or `[n]`.
        latency: seconds per message, scalar, `[n]` by sender, or on graphs `[n, k]` by receiver and
            slot of `comm.to_near(net.w)` (of a `Dense` matrix, slot c hears node i + c mod n).
        up: bits per second that a client sends, scalar, `[n]`, or on graphs `[n, k]`: then each
            link has its own rate and links work in parallel; otherwise a client's messages share
            its uplink.
        down: bits per second that a client receives, scalar or `[n]`; graphs ignore it, their
            receiver is another one's uplink.

    Example:
        >>> phones = networks.Links(compute=0.2, latency=0.1, up=1e6, down=5e6)
        >>> networks.Uniform(100, 10, links=phones).links.up
        1000000.0
    """

    compute: Scalar = ranged(0.01, many=True)
    latency: Scalar = ranged(0.05, many=True)
    up: Scalar = ranged(10e6, low=1.0, many=True)
    down: Scalar = ranged(50e6, low=1.0, many=True)

    def at(self, idx: Any) -> "Links":
        """The speeds of a cohort."""
        pick = lambda a: comm.pick(jnp.asarray(a), idx) if jnp.ndim(a) else a
        return Links(*map(pick, self._values()))

    def _values(self):
        return self.compute, self.latency, self.up, self.down


@struct.dataclass
class Cohort:
    """Who takes part this round.

    Example:
        >>> net = networks.Cyclic(5, 2)(2, jax.random.key(0))
        >>> net.idx.tolist(), net.weight.tolist()
        ([4, 5], [1.0, 0.0])
    """

    t: Scalar  # round, unbatched
    idx: Scalar  # [s] clients; an empty slot is n
    weight: Scalar  # [s] 1, or 1/(n p_i), or 0 for an empty slot
    send: Any  # adversary and channel
    links: Links  # of the slots

    def participants(self) -> Float[Array, ""]:
        """How many clients take part."""
        return (self.weight != 0).sum().astype(jnp.float32)

    def seconds(self, info: Info) -> Float[Array, ""]:
        """Simulated duration: the slowest participant downloads, computes and uploads."""
        links = self.links
        each = (
            links.compute * info.grads
            + 2 * jnp.asarray(links.latency)
            + info.up / links.up
            + info.down / links.down
        )
        return jnp.where(self.weight != 0, each, 0).max().astype(jnp.float32)


@struct.dataclass
class Arrivals:
    """Whose updates fill the server's buffer this round, and how old their starting model is.

    Example:
        >>> net = networks.arrivals(10, buffer=3, rounds=50)(40, jax.random.key(0))
        >>> net.idx.shape, bool(net.age.max() < 40)
        ((3,), True)
    """

    t: Scalar
    idx: Scalar  # [k] clients; an empty slot is n
    age: Scalar  # [k] rounds since the client received its model
    weight: Scalar  # [k]
    send: Any
    elapsed: Scalar  # simulated seconds since the last round, from the schedule

    def participants(self) -> Float[Array, ""]:
        """How many updates arrive."""
        return (self.weight != 0).sum().astype(jnp.float32)

    def seconds(self, info: Info) -> Float[Array, ""]:
        """Simulated duration, known in advance: timings do not depend on parameters."""
        return jnp.asarray(self.elapsed, jnp.float32)


@struct.dataclass
class Graph:
    """Who hears whom this round. An inactive node does nothing: its row and column are identity.

    Example:
        >>> net = networks.graph("ring", 6)(0, jax.random.key(0))
        >>> type(net.w).__name__, float(net.out())
        ('Shifts', 2.0)
    """

    t: Scalar
    w: comm.Weights
    active: Scalar  # [n] bool
    send: Any
    links: Links

    def participants(self) -> Float[Array, ""]:
        """How many nodes are active."""
        return self.active.sum().astype(jnp.float32)

    def mean_weights(self) -> Float[Array, " n"]:
        """Equal weights over the active nodes, summing to 1."""
        live = self.active.astype(jnp.result_type(float))
        return live / jnp.maximum(live.sum(), 1)

    def out(self) -> Float[Array, ""]:
        """Messages that an active node sends, on average: nonzero weights off the diagonal."""
        if isinstance(self.w, comm.Shifts):
            moved = jnp.array([s % self.w.n != 0 for s in self.w.shifts])
            return ((self.w.w != 0) & moved).sum().astype(jnp.float32)
        if isinstance(self.w, comm.Dense):
            edges = (self.w.w != 0) & ~jnp.eye(self.w.w.shape[0], dtype=bool)
        else:
            edges = _edges(self.w)
        return edges.sum().astype(jnp.float32) / jnp.maximum(self.participants(), 1)

    def seconds(self, info: Info) -> Float[Array, ""]:
        """Simulated duration: every active node computes, then sends; the last message ends it."""
        links = self.links
        latency, up = jnp.asarray(links.latency), jnp.asarray(links.up)
        ready = jnp.where(self.active, links.compute * info.grads, 0)
        if max(latency.ndim, up.ndim) < 2:
            each = jnp.where(self.active, ready + latency + info.up / up, 0)
            return each.max().astype(jnp.float32)
        near, out = comm.to_near(self.w), self.out()
        sender = lambda a: a[near.idx] if a.ndim == 1 else a
        size = info.up / jnp.where(out > 0, out, 1) if up.ndim == 2 else info.up
        arrival = ready[near.idx] + sender(latency) + size / sender(up)
        arrival = jnp.where(_edges(near), arrival, 0)
        return jnp.maximum(ready.max(), arrival.max()).astype(jnp.float32)


def _edges(near):
    return (near.w != 0) & (near.idx != jnp.arange(near.idx.shape[0])[:, None])


@struct.dataclass
class Events:
    """Asynchronous events of one round, in waves: first gradients, then exchanges of two nodes.

    The gradients of a wave touch different nodes, and so do its exchanges (a node may compute and
    then exchange in one wave). Every node meets its events in time order, so running the waves one
    after the other, each vectorised, equals the event list: events of disjoint nodes commute.

    Example:
        >>> net = networks.poisson(networks.graphs.make("ring", 6), rounds=5)(0, jax.random.key(0))
        >>> net.n, int(net.gradients()), int(net.exchanges())
        (6, 6, 8)
    """

    t: Scalar
    grad: Scalar  # [v, c] node of a gradient event, n if the slot is empty
    at: Scalar  # [v, c] its time, in seconds
    gap: Scalar  # [v, c] seconds since the node's last event, or since the round began
    number: Scalar  # [v, c] its number in the event list, for keys
    i: Scalar  # [v, e] one end of an exchange, n if the slot is empty
    j: Scalar  # [v, e] the other end
    when: Scalar  # [v, e] its time
    gap_i: Scalar  # [v, e] seconds since the last event of i, or since the round began
    gap_j: Scalar  # [v, e] the same of j
    order: Scalar  # [v, e] its number in the event list
    rest: Scalar  # [n] seconds from the last event of each node to the end of the round
    end: Scalar  # time at which the round ends
    send: Any  # of the nodes, row-local
    elapsed: Scalar  # seconds of the round
    n: int = struct.field(pytree_node=False)

    def participants(self) -> Float[Array, ""]:
        """All nodes run all the time."""
        return jnp.float32(self.n)

    def gradients(self) -> Float[Array, ""]:
        """Number of gradient events of this round."""
        return (self.grad < self.n).sum().astype(jnp.float32)

    def exchanges(self) -> Float[Array, ""]:
        """Number of exchanges of this round."""
        return (self.i < self.n).sum().astype(jnp.float32)

    def seconds(self, info: Info) -> Float[Array, ""]:
        """Simulated duration, known in advance."""
        return jnp.asarray(self.elapsed, jnp.float32)

    def deliver(self, message: Stacked, sender: Any, number: Any, key: Key) -> Stacked:
        """What receivers get for messages of events: `send`, its key by the event's number.

        Args:
            message: leaves `[m, ...]`.
            sender: `[m]` nodes; n for an empty slot.
            number: `[m]` numbers in the event list.
            key: the same in every wave of a round.
        """
        return _deliver(self.send, message, sender, number, key)


@struct.dataclass
class Messages:
    """Models that nodes push to others, by the round in which they arrive, in waves.

    An event is an arrival: the receiver makes its next model from its own and from the one that the
    sender had when the message left. Whatever a message has to wait for comes in an earlier wave:
    the arrival that made its model, and the earlier arrivals of its receiver. A model that is
    replaced while messages with it are under way is kept in a slot until the last of them is read.
    All of a wave read before any writes, so wave after wave equals one arrival after the other.

    Example:
        >>> net = networks.gossip(networks.graphs.make("ring", 6), rounds=5)(1, jax.random.key(0))
        >>> net.n, int(net.arrivals())
        (6, 6)
    """

    t: Scalar
    i: Scalar  # [v, c] receiver, n if the slot is empty
    j: Scalar  # [v, c] sender
    source: Scalar  # [v, c] where the model is: j if it still has it, else n + its slot
    save: Scalar  # [v, c] slot for the model that the receiver had, -1 if nobody will read it
    number: Scalar  # [v, c] of the arrival in the list of all, for keys
    left: Scalar  # [v, c] arrivals before the message left; at equal times sending comes first
    sent: Scalar  # [n] messages that left in this round, also those that are lost
    send: Any  # of the nodes, row-local
    elapsed: Scalar  # seconds of the round
    n: int = struct.field(pytree_node=False)
    slots: int = struct.field(pytree_node=False)

    def participants(self) -> Float[Array, ""]:
        """All nodes run all the time."""
        return jnp.float32(self.n)

    def arrivals(self) -> Float[Array, ""]:
        """Number of messages that arrive in this round."""
        return (self.i < self.n).sum().astype(jnp.float32)

    def seconds(self, info: Info) -> Float[Array, ""]:
        """Simulated duration, known in advance."""
        return jnp.asarray(self.elapsed, jnp.float32)

    def deliver(self, message: Stacked, sender: Any, number: Any, key: Key) -> Stacked:
        """As for `Events`."""
        return _deliver(self.send, message, sender, number, key)


def _deliver(send, message, sender, number, key):
    who = comm.pick((send.byzantine, send.id, send.live), sender)

    def one(message, byzantine, id, live, number):
        alone = send.replace(byzantine=byzantine[None], id=id[None], live=live[None])
        message = jax.tree.map(lambda a: a[None], message)
        return jax.tree.map(lambda a: a[0], alone(message, jax.random.fold_in(key, number)))

    return jax.vmap(one)(message, who[0], who[1], who[2], number)


__all__ = ["Arrivals", "Cohort", "Events", "Graph", "Links", "Messages", "Send"]
