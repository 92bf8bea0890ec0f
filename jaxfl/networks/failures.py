"""What goes wrong: lost links, absent nodes, Byzantine clients."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl import struct
from jaxfl.engine import comm
from jaxfl.networks.adversaries import Honest, ranged
from jaxfl.networks.nets import Graph
from jaxfl.types import Count, Key, Scalar, whole


@struct.dataclass
class LinkFailures:
    """Every link of a network fails with a probability, independently, round by round.

    A link in both directions fails in both. Symmetric weights go to both diagonals, so that the
    matrix stays doubly stochastic; on a directed graph either its rows or its columns keep their
    sums. What is lost was sent: its sender pays for it.

    Args:
        network: of nodes, whose links fail.
        rate: probability, in [0, 1], traced.
        keep: "row" (the receiver puts a lost weight on itself: gossip) or "column" (the sender
            keeps the mass: push-sum), static; "" for the sums that the network has, "row" if both.

    Example:
        >>> network = networks.LinkFailures(networks.topology("ring", 8), rate=0.2)
        >>> network.n, network.rate
        (8, 0.2)
    """

    network: Any
    rate: Scalar = ranged(0.0, high=1.0)
    keep: str = struct.field(pytree_node=False, default="")
    kind: ClassVar[type] = Graph
    static: ClassVar[bool] = False
    lossless: ClassVar[bool] = False

    @property
    def n(self) -> int:
        """Number of nodes."""
        return self.network.n

    @property
    def sums(self) -> str:
        """Which sums of the weights are 1, as for `Static`."""
        return _lossy(self.network.sums, self.keep)

    @property
    def column(self) -> int:
        """1 if columns, but not rows, sum to 1."""
        return int(self.sums == "column")

    def __call__(self, t: Scalar, key: Key) -> Graph:
        """The net of round t."""
        inner, coin = jax.random.split(key)
        net = self.network(t, inner)
        near = comm.to_near(net.w)
        u = jax.random.uniform(coin, near.idx.shape)
        own = jnp.arange(self.n)[:, None]
        mutual = near.back >= 0
        twin = u[near.idx, jnp.maximum(near.back, 0)]  # both ends read the draw of the lower index
        u = jnp.where(mutual & (near.idx < own), twin, u)
        return _without(net, near, (u >= self.rate) | (near.idx == own), self.column)


def _lossy(sums, keep):
    """Which sums are 1 once links are lost: both only if they are lost in both directions alike."""
    if keep not in ("", "row", "column"):
        raise ValueError(f'keep must be "row", "column" or "", got {keep!r}; use `keep="row"`')
    if sums == "symmetric":
        return sums
    own = "row" if sums == "doubly" else sums
    if sums != "doubly" and keep not in ("", own):
        raise ValueError(f'keep="{keep}" needs weights whose {keep}s sum to 1; use `keep="{own}"`')
    return keep or own


def _without(net, near, kept, column, **fields):
    """The net with edges not kept lost: to the receiver's diagonal, or the sender's if column."""
    lost = jnp.where(kept, 0, near.w)
    diagonal = jnp.zeros_like(near.w[:, 0]).at[near.idx].add(lost) if column else lost.sum(1)
    near = near.replace(w=jnp.where(kept, near.w, 0).at[:, 0].add(diagonal))
    send = net.send.replace(near=None if net.send.near is None else near)
    return net.replace(**{"w": near, "send": send, **fields})


@struct.dataclass
class Churn:
    """Nodes are absent at random: an absent node computes nothing, sends nothing, keeps its state.

    Its neighbours do not know and send to it as ever: that is lost, and they pay for it.

    Args:
        network: of nodes that come and go.
        present: probability that a node is active in a round, scalar or `[n]`, in [0, 1], or
            `[rounds, n]` by round: `markov(...).available` for nodes that stay away for a while.
            Traced.
        keep: as for `LinkFailures`.

    Example:
        >>> network = networks.Churn(networks.topology("ring", 1000), present=0.5)
        >>> 400 < int(network(0, jax.random.key(0)).active.sum()) < 600
        True
    """

    network: Any
    present: Scalar = ranged(1.0, high=1.0, many=True)
    keep: str = struct.field(pytree_node=False, default="")
    kind: ClassVar[type] = Graph
    static: ClassVar[bool] = False
    lossless: ClassVar[bool] = False

    @property
    def n(self) -> int:
        """Number of nodes."""
        return self.network.n

    @property
    def sums(self) -> str:
        """Which sums of the weights are 1, as for `Static`."""
        return _lossy(self.network.sums, self.keep)

    @property
    def column(self) -> int:
        """1 if columns, but not rows, sum to 1."""
        return int(self.sums == "column")

    def __call__(self, t: Scalar, key: Key) -> Graph:
        """The net of round t."""
        inner, coin = jax.random.split(key)
        net = self.network(t, inner)
        present = self.present[t] if jnp.ndim(self.present) == 2 else self.present
        active = net.active & (jax.random.uniform(coin, (self.n,)) < present)
        near = comm.to_near(net.w)
        own = jnp.arange(self.n)[:, None]
        kept = (active[:, None] & active[near.idx]) | (near.idx == own)
        sent = jnp.where(active, net.sent, 0)
        net = _without(net, near, kept, self.column, active=active, sent=sent)
        return net.replace(send=net.send.replace(live=active))


@struct.dataclass
class Attacked:
    """A network some of whose clients are Byzantine, or whose channel is imperfect.

    Args:
        network: any network.
        byzantine: `[n]` bool or 0/1, who is Byzantine, traced; `first(f, n)` marks the first f. By
            default nobody.
        adversary: what they send: `SignFlip()`, `ALIE(...)`, `IPM(...)`, ...
        channel: what happens to every message: `Noisy(sigma)`.

    Example:
        >>> ring = networks.topology("ring", 8)
        >>> world = networks.Attacked(ring, networks.first(2, 8), networks.SignFlip())
        >>> world(0, jax.random.key(0)).send.byzantine.tolist()
        [True, True, False, False, False, False, False, False]
    """

    network: Any
    byzantine: Scalar = 0
    adversary: Any = Honest()
    channel: Any = None

    @property
    def kind(self) -> type:
        """The net it makes."""
        return self.network.kind

    @property
    def static(self) -> bool:
        """Whether the graph never changes."""
        return self.network.static

    @property
    def lossless(self) -> bool:
        """Whether nothing fails."""
        return self.network.lossless

    @property
    def sums(self) -> str:
        """Which sums of the weights are 1, as for `Static`; "" without a graph."""
        return getattr(self.network, "sums", "")

    @property
    def column(self) -> int:
        """1 if columns, but not rows, sum to 1."""
        return int(self.sums == "column")

    @property
    def n(self) -> int:
        """Number of clients."""
        return self.network.n

    def __call__(self, t: Scalar, key: Key) -> Any:
        """The net of round t."""
        net = self.network(t, key)
        send = net.send
        byzantine = jnp.broadcast_to(jnp.asarray(self.byzantine, bool), (self.n,))
        byzantine = byzantine.at[send.id].get(mode="clip") & send.live
        near = comm.to_near(net.w) if isinstance(net, Graph) and not self.adversary.local else None
        channel = send.channel if self.channel is None else self.channel
        return dataclasses.replace(
            net,
            send=send.replace(
                byzantine=byzantine, adversary=self.adversary, channel=channel, near=near
            ),
        )


def first(f: Count, n: Count) -> np.ndarray:
    """`[n]` bool: the first f of n clients.

    Example:
        >>> networks.first(2, 5).tolist()
        [True, True, False, False, False]
    """
    return np.arange(whole("n", n)) < whole("f", f)
