"""The way of a message: what the parts of an algorithm are, and how messages become one model.

On the client: compressor with its memory, clipping, `send`. At the receiver: aggregator, noise. A
server is one receiver, a graph is n of them. Slot 0 is always the receiver's own: its model on a
graph, the change 0 on a server, where it has weight 0 and is no candidate.

A rule sees weights that sum to 1. On a server weights keep their scale: what the rule returns, a
change, is multiplied by the sum that they had, 0 if nobody came. On a graph it is a model, which
stays as it is. Rules that count read who has a weight that is not 0.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl import struct
from jaxfl.engine import comm, distances
from jaxfl.engine.marks import Rows
from jaxfl.types import Key, Params, Scalar, Stacked, fork

_BATCH = 1 << 26  # bytes of messages that receivers of a graph look at at once


@runtime_checkable
class Weighs(Protocol):
    """An aggregator that weighs messages by their distances."""

    def weigh(self, squared: Float[Array, "k k"], w: Float[Array, " k"]) -> Float[Array, " k"]:
        """Coefficients of the messages, from squared distances (inf to what is not finite).

        With `near = True`, `squared` `[k]` are the distances from slot 0 only.
        """
        ...


@runtime_checkable
class Sorts(Protocol):
    """An aggregator of every number by itself."""

    def sort(self, values: Float[Array, "k ..."], w: Float[Array, " k"]) -> Float[Array, "..."]:
        """One number for each place."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """An aggregator with a memory."""

    def init(self, x: Params, n: int) -> Any:
        """The memory of one receiver of messages like x; of senders, `Rows(comm.stack(x, n))`."""
        ...

    def combine(self, heard: "Heard", memory: Any) -> tuple[Params, Any]:
        """What the receiver makes of the messages, and its new memory."""
        ...


@struct.dataclass
class Mean:
    """The weighted mean; the default of every `aggregator=`.

    Example:
        >>> algorithms.FedAvg(lr=0.1).aggregator
        Mean()
    """

    linear: ClassVar[bool] = True


@struct.dataclass
class Identity:
    """No compression; the default of every `compress=` but CHOCO's.

    Example:
        >>> float(components.Identity().bits({"w": jnp.ones(4, jnp.float32)}))
        128.0
    """

    def __call__(self, v: Params, key: Key) -> Params:
        """v."""
        return v

    def bits(self, v: Params) -> Scalar:
        """All of it."""
        return comm.bits(v)


@struct.dataclass
class NoPrivacy:
    """Messages as they are; the default of every `privacy=`.

    Example:
        >>> algorithms.FedAvg(lr=0.1).privacy
        NoPrivacy()
    """

    private: ClassVar[bool] = False
    role: ClassVar[str] = "world"  # no mechanism is chosen on validation data


@struct.dataclass
class Heard:
    """What one receiver has before it."""

    rows: Stacked  # [k, ...] messages, its own in slot 0
    w: Scalar  # [k] weights, sum 1 or all 0; 0 for a slot that is not there
    id: Scalar  # [k] identity of the senders

    def squared(self) -> Float[Array, "k k"]:
        """Squared distances between messages, inf to what is not finite."""
        return comm.distances(self.rows)

    def mix(self, coef: Float[Array, " k"]) -> Params:
        """The messages weighed."""
        return comm.mix(coef, self.rows)


def _bounded(x):
    """Finite numbers up to 1e12, as distances see them: small weights must not meet larger ones."""
    if isinstance(x, comm.Held):
        return x
    most = distances._BOUND
    return jax.tree.map(lambda a: jnp.where(jnp.isfinite(a), jnp.clip(a, -most, most), a), x)


def aggregate(rule: Any, heard: Heard, memory: Any = ()) -> tuple[Params, Any]:
    """What one receiver makes of its messages: the one place that tells aggregators apart.

    Args:
        rule: `Mean()`, or what `Weighs`, `Sorts` or `Remembers`.
        heard: with weights of any sum.
        memory: of the rule.
    """
    w = heard.w / jnp.where((total := heard.w.sum()) > 0, total, 1)
    if isinstance(rule, Mean):
        return heard.mix(w), memory
    heard = dataclasses.replace(heard, w=w, rows=_bounded(heard.rows))
    if isinstance(rule, Remembers):
        return rule.combine(heard, memory)
    if isinstance(rule, Sorts):
        return jax.tree.map(lambda a: rule.sort(a, w).astype(a.dtype), heard.rows), memory
    squared = heard.squared()
    return heard.mix(rule.weigh(squared[0] if getattr(rule, "near", False) else squared, w)), memory


def gossip(
    rule: Any, w: comm.Weights, sent: Any, own: Stacked, memory: Any = ()
) -> tuple[Stacked, Any]:
    """`aggregate` for every node of a graph.

    Args:
        rule: as for `aggregate`.
        w: who hears whom.
        sent: stacked messages, leaves `[n, ...]`, or `Held`.
        own: what the nodes hold of themselves.
        memory: of the rule, leaves `[n, ...]`.

    Returns:
        Leaves `[n, ...]`, and the memory.
    """
    if isinstance(rule, Mean):
        return comm.mix(w, sent, own=own), memory
    near, sent = comm.to_near(w), _bounded(sent)
    slots = jnp.arange(len(near.w))
    if isinstance(rule, Weighs) and not isinstance(rule, Remembers):
        close = getattr(rule, "near", False)
        squared = (comm.slot_distances if close else _pairs)(near, sent, own)
        share = near.w / near.w.sum(1, keepdims=True)
        coef = jax.vmap(rule.weigh)(squared, share)
        return comm.mix(dataclasses.replace(near, w=coef), sent, own=own), memory

    def one(i, memory):
        return aggregate(rule, Heard(_rows(near, sent, own, i), near.w[i], near.idx[i]), memory)

    return jax.lax.map(lambda a: one(*a), (slots, memory), batch_size=_batch(near, own))


def initial(rule: Any, x: Params, n: int) -> Any:
    """The memory of an aggregator at each of n nodes of a graph, for models like x."""
    return Rows(comm.stack(rule.init(x, n), n)) if isinstance(rule, Remembers) else ()


def _rows(near, sent, own, i):
    """The messages [k, ...] that receiver i has before it."""
    if isinstance(sent, comm.Held):
        rows = comm.mix(comm.Dense(sent.coef[i]), sent.rows)
    else:
        rows = comm.pick(sent, near.idx[i])
    return jax.tree.map(lambda a, own: a.at[0].set(own[i]), rows, own)


def _batch(near, own):
    size = sum(a.nbytes // len(a) for a in jax.tree.leaves(own)) * near.w.shape[1]
    return max(1, min(len(near.w), _BATCH // max(size, 1)))


def _pairs(near, sent, own):
    """Squared distances `[n, k, k]` between the messages of every receiver.

    Receiver by receiver where they have few neighbours, or messages of their own.
    """
    n, k = near.idx.shape
    if (
        isinstance(sent, comm.Held) or n > distances._SPARSE * k
    ):  # few neighbours, or messages by receiver
        each = lambda i: comm.distances(_rows(near, sent, own, i))
        return jax.lax.map(each, jnp.arange(n), batch_size=_batch(near, own))
    senders = comm.distances(sent)[near.idx[:, :, None], near.idx[:, None]]
    mine = comm.slot_distances(near, sent, own)
    return senders.at[:, 0].set(mine).at[:, :, 0].set(mine)


class Memory(NamedTuple):
    """What the way of a message remembers, by payload."""

    aggregator: Any = ()
    feedback: Any = ()  # of the compressor, a row per client


@struct.dataclass
class Uplink:
    """The way of messages from clients to a server, of the fields of an algorithm.

    Raises:
        ValueError: privacy under an aggregator that is not linear, whose sensitivity nobody knows.
    """

    aggregator: Any = Mean()
    compress: Any = Identity()
    privacy: Any = NoPrivacy()

    def __post_init__(self):
        if self.privacy.private and not getattr(self.aggregator, "linear", False):
            raise ValueError(
                f"privacy needs a sum whose sensitivity is known, and {_name(self.aggregator)} is "
                "no sum; use `aggregator=Mean()`, or `privacy=NoPrivacy()`"
            )

    @classmethod
    def of(cls, alg: Any) -> "Uplink":
        """The uplink of an algorithm, of those of the three fields that it has."""
        names = (f.name for f in dataclasses.fields(cls))
        return cls(**{name: getattr(alg, name) for name in names if hasattr(alg, name)})

    def wait(self, net: Any, new: Any, old: Any) -> Any:
        """The server's new state, or where nobody takes part the old one; noise moves it always."""
        return new if self.privacy.private else net.wait(new, old)

    def init(self, n: int, *payloads: Params) -> Any:
        """The memory before the first round, of messages of these payloads.

        Raises:
            ValueError: privacy of several payloads, which would need one bound for all.
        """
        if self.privacy.private and len(payloads) > 1:
            raise ValueError(
                f"privacy needs one payload, and these messages have {len(payloads)}; use an "
                "algorithm that sends one, such as `FedAvg`"
            )
        rule, compress = self.aggregator, self.compress
        remembered, feedback = (), ()
        if isinstance(rule, Remembers):
            remembered = tuple(rule.init(x, n) for x in payloads)
        if hasattr(compress, "init"):
            feedback = tuple(Rows(comm.stack(compress.init(x), n)) for x in payloads)
        return Memory(remembered, feedback) if remembered or feedback else ()

    def outgoing(self, payloads: tuple, feedback: Any, key: Key) -> tuple[tuple, Any]:
        """What leaves a client, and what it keeps of it: clipping comes last, whatever it keeps."""
        names = ("compress", *(f"compress {k}" for k in range(1, len(payloads))))
        if feedback:
            both = [
                self.compress.step(v, e, fork(key, name))
                for v, e, name in zip(payloads, feedback, names, strict=True)
            ]
            payloads, feedback = zip(*both, strict=True)
        elif not isinstance(self.compress, Identity):
            named = zip(payloads, names, strict=True)
            payloads = tuple(self.compress(v, fork(key, name)) for v, name in named)
        if self.privacy.private:
            payloads = tuple(map(self.privacy.bound, payloads))
        return payloads, feedback

    def incoming(
        self, w: Scalar, sent: tuple, id: Scalar, remembered: Any
    ) -> tuple[list[Params], Any]:
        """What a server makes of all messages, payload by payload."""
        out, memory = [], []
        for k, (w_k, rows) in enumerate(zip(w, sent, strict=True)):
            own = lambda a: jnp.concatenate([jnp.zeros_like(a[:1]), a])
            heard = Heard(jax.tree.map(own, rows), own(w_k), own(id))
            model, kept = aggregate(self.aggregator, heard, remembered[k] if remembered else ())
            total = w_k.sum()
            scale = lambda a, total=total: jnp.where(total > 0, total * a, 0).astype(a.dtype)
            out.append(jax.tree.map(scale, model))
            memory.append(kept)
        return out, tuple(memory) if remembered else remembered


def _name(part):
    return type(part).__name__
