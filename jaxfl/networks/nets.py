"""The nets: what the outside world does in one round, as records that algorithms read.

A network is a frozen pytree with `__call__(t, key) -> net`, and three class attributes that
`simulate` compares with what an algorithm needs: `kind` (the net it makes), `static` (the graph
never changes) and `lossless` (nothing fails). Its arrays are traced: they can be swept and
differentiated, and a new graph of the same shape does not recompile.

A kind of net has three class attributes: `example` (the code of a network that makes it), `server`
(clients meet a server, a few at a time, and not each other on a graph) and `common` (all messages
of a round are there at once; otherwise the network is a timeline, drawn in advance).

Every net counts messages, by one rule: **what is sent is paid for up, also if it is lost; what
arrives is paid for down.** An algorithm says how large a message is (`net.info(..., up=, down=)`).
Who is absent sends nothing and hears nothing, and what others send to it is lost.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl import struct
from jaxfl.engine import comm, parts
from jaxfl.networks.adversaries import Send, ranged
from jaxfl.types import Info, Key, Scalar, Stacked, Work, fork


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


def _info(here, work, up, down, w, aux):
    """The costs of slots, 0 where nobody is, beside a mean loss."""
    slots = lambda a: jnp.where(here, jnp.asarray(a, jnp.result_type(float)), 0)
    return Info(_mean(here, work.loss, w), slots(up), slots(down), slots(work.grads), aux)


def _mean(here, loss, w):
    """The mean loss of those who are there, NaN of nobody."""
    if jnp.shape(loss) != here.shape:
        raise ValueError(
            f"loss must be one number per slot of the net, shape {here.shape}, got shape "
            f"{jnp.shape(loss)}; let the clients return it: `g, work = clients.grads(x, key)`"
        )
    w = here.astype(jnp.result_type(float)) if w is None else w
    total = w.sum()
    mean = comm.mix((w / jnp.where(total != 0, total, 1)).ravel(), loss.ravel())
    return jnp.where(total != 0, mean, jnp.nan)


def _each(node, number, n):
    """Numbers of events `[...]`, summed by node `[n]`; those of an empty slot, node n, go."""
    number = jnp.broadcast_to(jnp.asarray(number, jnp.result_type(float)), node.shape)
    return jnp.zeros(n, number.dtype).at[node].add(number, mode="drop")


@struct.dataclass
class Cohort:
    """Who takes part this round.

    Example:
        >>> net = networks.Cyclic(5, 2)(2, jax.random.key(0))
        >>> net.idx.tolist(), net.weight.tolist()
        ([4, 5], [1.0, 0.0])
    """

    example: ClassVar[str] = "`Uniform(n, size)`"
    server: ClassVar[bool] = True
    common: ClassVar[bool] = True

    t: Scalar  # round, unbatched
    idx: Scalar  # [s] clients; an empty slot is n
    weight: Scalar  # [s] 1, or 1/(n p_i), or 0 for an empty slot
    send: Any  # adversary and channel
    links: Links  # of the slots
    place: Any = None  # [s] among the clients that a device holds, if it holds a part of them
    everybody: bool = struct.field(pytree_node=False, default=False)  # idx is 0, 1, ..., n - 1

    @property
    def places(self) -> Int[Array, " s"]:
        """Where the clients of the slots are among those of the round."""
        return self.idx if self.place is None else self.place

    @property
    def here(self) -> Bool[Array, " s"]:
        """Which slots hold a client that takes part."""
        return self.weight != 0

    def participants(self) -> Float[Array, ""]:
        """How many clients take part."""
        return self.here.sum().astype(jnp.float32)

    def info(
        self,
        work: Work,
        *,
        up: Scalar,
        down: Scalar,
        w: Any = None,
        aux: Any = (),
    ) -> Info:
        """What the round reports: what each slot did, 0 where it is empty.

        Args:
            work: of each slot, its loss `[s]` and gradients, `[s]` or one number for all.
            up: bits of the message that a client sends, `[s]` or one number.
            down: bits of the message that a client receives, `[s]` or one number.
            w: `[s]`, of the mean loss; by default equal over those who take part. The mean over
                nobody is NaN.
            aux: anything else, a pytree of arrays.
        """
        return _info(self.here, work, up, down, w, aux)

    def wait(self, new: Any, old: Any) -> Any:
        """The new state of a server, or the old one where nobody takes part."""
        came = (self.weight != 0).any()
        return jax.tree.map(lambda a, b: jnp.where(came, a, b), new, old)

    def seconds(self, info: Info) -> Float[Array, ""]:
        """Simulated duration: the slowest participant downloads, computes and uploads.

        Each by its own work, bits and links.
        """
        links, up, down = self.links, jnp.asarray(info.up), jnp.asarray(info.down)
        messages = (up > 0).astype(jnp.float32) + (down > 0)
        each = links.compute * info.grads + messages * links.latency
        each = each + up / links.up + down / links.down
        return jnp.where(self.here, each, 0).max().astype(jnp.float32)


@struct.dataclass
class Arrivals:
    """Whose updates fill the server's buffer this round, and how old their starting model is.

    Example:
        >>> net = networks.arrivals(10, buffer=3, rounds=50)(40, jax.random.key(0))
        >>> net.idx.shape, bool(net.age.max() < 40)
        ((3,), True)
    """

    example: ClassVar[str] = "`arrivals(n, buffer, rounds)`"
    server: ClassVar[bool] = True
    common: ClassVar[bool] = False

    t: Scalar
    idx: Scalar  # [k] clients; an empty slot is n
    age: Scalar  # [k] rounds since the client received its model
    weight: Scalar  # [k]
    send: Any
    elapsed: Scalar  # simulated seconds since the last round, from the schedule
    place: Any = None  # [k] as for `Cohort`

    @property
    def places(self) -> Int[Array, " k"]:
        """Where the clients of the slots are among those of the round."""
        return self.idx if self.place is None else self.place

    @property
    def here(self) -> Bool[Array, " k"]:
        """Which slots hold an update that arrives."""
        return self.weight != 0

    def participants(self) -> Float[Array, ""]:
        """How many updates arrive."""
        return self.here.sum().astype(jnp.float32)

    def info(
        self,
        work: Work,
        *,
        up: Scalar,
        down: Scalar,
        w: Any = None,
        aux: Any = (),
    ) -> Info:
        """As for `Cohort`. What an update cost counts in the round in which it arrives, the
        download of its first model too."""
        return _info(self.here, work, up, down, w, aux)

    def seconds(self, info: Info) -> Float[Array, ""]:
        """Simulated duration, known in advance: timings do not depend on parameters."""
        return jnp.asarray(self.elapsed, jnp.float32)


@struct.dataclass
class Graph:
    """Who hears whom this round. An inactive node does nothing: its row and column are identity.

    A message is a nonzero weight off the diagonal. Its sender pays for it up, also if it is lost
    (a link that fails, a receiver that is absent or does not wait for it), its receiver pays for
    it down when it arrives: `sent` counts the first, `heard` the second.

    Example:
        >>> network = networks.LinkFailures(networks.topology("ring", 6), rate=1.0)
        >>> net = network(0, jax.random.key(0))
        >>> net.sent.tolist(), net.heard().tolist()
        ([2.0, 2.0, 2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    """

    example: ClassVar[str] = '`topology("ring", n)`'
    server: ClassVar[bool] = False
    common: ClassVar[bool] = True

    t: Scalar
    w: comm.Weights
    active: Scalar  # [n] bool
    send: Any
    links: Links
    sent: Scalar  # [n] messages that leave a node, also those that are lost

    @property
    def here(self) -> Bool[Array, " n"]:
        """Which nodes are active."""
        return self.active

    def participants(self) -> Float[Array, ""]:
        """How many nodes are active."""
        return self.active.sum().astype(jnp.float32)

    def heard(self) -> Float[Array, " n"]:
        """Messages that arrive at each node."""
        return messages(self.w)[1]

    def mix(self, x: Stacked, key: Key, name: str = "send") -> Stacked:
        """Sends x, and gives each node the weighted mean of what it hears; its own row is true.

        Args:
            x: what nodes hold, leaves `[n, ...]`.
            key: of the round.
            name: of the message, where a round has several.
        """
        return comm.mix(self.w, self.send(x, fork(key, name)), own=x)

    def aggregate(
        self, rule: Any, x: Stacked, key: Key, name: str = "send", memory: Any = ()
    ) -> tuple[Stacked, Any]:
        """As `mix`, with an aggregator and its memory `[n, ...]` in place of the mean."""
        return parts.gossip(rule, self.w, self.send(x, fork(key, name)), x, memory)

    def info(
        self,
        work: Work,
        *,
        up: Scalar,
        down: Scalar,
        w: Any = None,
        aux: Any = (),
    ) -> Info:
        """As for `Cohort`, by node; `up` and `down` are bits of a message to one neighbour.

        A node sends as many as `sent` says and receives as many as it `heard`.
        """
        up, down = up * self.sent, down * self.heard()
        return _info(self.active, work, up, down, w, aux)

    def seconds(self, info: Info) -> Float[Array, ""]:
        """Simulated duration: every active node computes, then sends; the last message ends it.

        Each by its own work and bits. What is lost takes its share of an uplink, but where links
        work in parallel (`[n, k]`) nothing waits for it.
        """
        links = self.links
        latency, up = jnp.asarray(links.latency), jnp.asarray(links.up)
        ready = jnp.where(self.active, links.compute * info.grads, 0)
        bits = jnp.where(self.active, info.up, 0)
        if max(latency.ndim, up.ndim) < 2:
            each = ready + jnp.where(bits > 0, latency + bits / up, 0)
            return each.max().astype(jnp.float32)
        near = comm.to_near(self.w)
        sender = lambda a: a[near.idx] if a.ndim == 1 else a
        size = bits / jnp.maximum(self.sent, 1) if up.ndim == 2 else bits
        arrival = ready[near.idx] + sender(latency) + size[near.idx] / sender(up)
        arrival = jnp.where(_edges(near), arrival, 0)
        return jnp.maximum(ready.max(), arrival.max()).astype(jnp.float32)


def _edges(near):
    return (near.w != 0) & (near.idx != jnp.arange(near.idx.shape[0])[:, None])


def messages(w: comm.Weights) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """How many messages leave each node, and arrive at it: nonzero weights off the diagonal."""
    if isinstance(w, comm.Shifts):
        moved = jnp.array([s % w.n != 0 for s in w.shifts])
        every = jnp.full(w.n, ((w.w != 0) & moved).sum(), jnp.float32)
        return every, every
    if isinstance(w, comm.Dense):
        edges = (w.w != 0) & ~jnp.eye(len(w.w), dtype=bool)
        return edges.sum(0).astype(jnp.float32), edges.sum(1).astype(jnp.float32)
    edges = _edges(w).astype(jnp.float32)
    return _each(w.idx, edges, len(edges)).astype(jnp.float32), edges.sum(1)


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

    example: ClassVar[str] = "`poisson(graph, rounds)`"
    server: ClassVar[bool] = False
    common: ClassVar[bool] = False

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

    @property
    def here(self) -> Bool[Array, " n"]:
        """All nodes run all the time."""
        return jnp.ones(self.n, bool)

    def participants(self) -> Float[Array, ""]:
        """All nodes run all the time."""
        return jnp.float32(self.n)

    def info(
        self,
        work: Work,
        *,
        up: Scalar,
        down: Scalar,
        w: Any = None,
        aux: Any = (),
    ) -> Info:
        """As for `Cohort`, of events: `work` is that of gradient events `[v, c]`.

        In an exchange each of the two sends a message of `up` bits and receives one of `down`.
        """
        met = _each(self.i, 1.0, self.n) + _each(self.j, 1.0, self.n)
        mean = _mean(self.grad < self.n, work.loss, w)
        return Info(mean, up * met, down * met, _each(self.grad, work.grads, self.n), aux)

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

    example: ClassVar[str] = "`gossip(graph, rounds)`"
    server: ClassVar[bool] = False
    common: ClassVar[bool] = False

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

    @property
    def here(self) -> Bool[Array, " n"]:
        """All nodes run all the time."""
        return jnp.ones(self.n, bool)

    def participants(self) -> Float[Array, ""]:
        """All nodes run all the time."""
        return jnp.float32(self.n)

    def info(
        self,
        work: Work,
        *,
        up: Scalar,
        down: Scalar,
        w: Any = None,
        aux: Any = (),
    ) -> Info:
        """As for `Cohort`, of arrivals: `work` is that of arrivals `[v, c]`.

        A node pays `up` for each message that leaves it, `down` for each that arrives at it.
        """
        heard = _each(self.i, 1.0, self.n)
        mean = _mean(self.i < self.n, work.loss, w)
        return Info(mean, up * self.sent, down * heard, _each(self.i, work.grads, self.n), aux)

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
