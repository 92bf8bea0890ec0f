"""Adversaries and channels: what becomes of a message between its sender and `mix`.

`send(message, key) -> message`, once per payload. A row-local adversary (`local = True`) sees its
own message only and works everywhere; the others read all honest messages of the round.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxfl import struct
from jaxfl.engine import comm
from jaxfl.types import Count, Key, Scalar, Stacked, whole


def ranged(
    default: Any = dataclasses.MISSING,
    *,
    low: float = 0.0,
    high: float = math.inf,
    many: bool = False,
) -> Any:
    """A traced field of a network with its range, read by `jaxfl.engine.fields.check_ranges`.

    With `many` it may be an array, such as one number per client; else it is one number.
    """
    return struct.field(default=default, metadata={"low": low, "high": high, "many": many})


@struct.dataclass
class Honest:
    """Everyone sends what the algorithm says.

    Example:
        >>> networks.Attacked(networks.Everyone(4)).adversary
        Honest()
    """

    local: ClassVar[bool] = True

    def __call__(self, message: Stacked, send: "Send", key: Key) -> Stacked:
        """The message."""
        return message


@struct.dataclass
class SignFlip:
    """A Byzantine client sends `-scale` times its own message.

    Args:
        scale: >= 0, traced.

    Source: standard attack; the per-client variant (epfml's bit flip), not byzfl's negated mean,
        which is `IPM(1)`.

    Example:
        >>> liars = networks.first(1, 3)
        >>> world = networks.Attacked(networks.Everyone(3), liars, networks.SignFlip(scale=4.0))
        >>> world(0, jax.random.key(0)).send(jnp.ones((3, 1)), jax.random.key(1)).tolist()
        [[-4.0], [1.0], [1.0]]
    """

    scale: Scalar = ranged(1.0)
    local: ClassVar[bool] = True

    def __call__(self, message: Stacked, send: "Send", key: Key) -> Stacked:
        """Negates the rows of Byzantine clients."""
        flipped = jax.tree.map(lambda a: (-self.scale * a).astype(a.dtype), message)
        return comm.where(send.byzantine, flipped, message)


@struct.dataclass
class GaussianNoise:
    """A Byzantine client sends N(0, sigma^2 I).

    Args:
        sigma: >= 0, traced.

    Source: byzfl's Gaussian.

    Example:
        >>> world = networks.Attacked(
        ...     networks.Everyone(20), networks.first(2, 20), networks.GaussianNoise(sigma=10.0)
        ... )
        >>> world.adversary
        GaussianNoise(sigma=10.0)
    """

    sigma: Scalar = ranged(1.0)
    local: ClassVar[bool] = True

    def __call__(self, message: Stacked, send: "Send", key: Key) -> Stacked:
        """Replaces the rows of Byzantine clients by noise."""
        noise = _normal(message, send.id, key)
        noise = jax.tree.map(lambda a, z: (self.sigma * z).astype(a.dtype), message, noise)
        return comm.where(send.byzantine, noise, message)


@struct.dataclass
class ALIE:
    """A little is enough: every Byzantine client sends mean - z * std of the honest messages.

    On a graph the mean is over all honest nodes, not a receiver's neighbours.

    Args:
        z: standard deviations, traced; `alie_z(n, f)` is the paper's choice, byzfl's default 1.5.

    Source: Baruch, Baruch, Goldberg, NeurIPS 2019; the sign as in epfml's code (byzfl adds), the
        standard deviation with one degree of freedom less (ddof = 1) as in both.

    Example:
        >>> liars = networks.first(4, 20)
        >>> world = networks.Attacked(networks.Everyone(20), liars, networks.ALIE(z=1.0))
        >>> int(world.byzantine.sum()), world.adversary
        (4, ALIE(z=1.0))
    """

    z: Scalar = ranged(1.5, low=-math.inf)
    local: ClassVar[bool] = False

    def __call__(self, message: Stacked, send: "Send", key: Key) -> Stacked:
        """Replaces the rows of Byzantine clients, coordinate by coordinate."""
        honest = send.honest()
        mean = comm.mix(honest / jnp.maximum(honest.sum(), 1), message)
        spread = comm.mix(
            honest / jnp.maximum(honest.sum() - 1, 1),
            jax.tree.map(lambda a, m: jnp.square(a - m[None]), message, mean),
        )
        root = lambda v: jnp.where(v > 0, jnp.sqrt(jnp.where(v > 0, v, 1)), 0)  # slope 0, not inf
        bad = jax.tree.map(lambda m, v: m - jnp.asarray(self.z, m.dtype) * root(v), mean, spread)
        return comm.where(send.byzantine, comm.stack(bad, len(honest)), message)


@struct.dataclass
class IPM:
    """Inner-product manipulation: every Byzantine client sends -epsilon * mean of the honest.

    On a graph the mean is over all honest nodes, not a receiver's neighbours.

    Args:
        epsilon: traced; .1 is stealthy, 1 is byzfl's sign flip, 2 its default.

    Source: Xie, Koyejo, Gupta, "Fall of Empires", UAI 2020.

    Example:
        >>> liars = networks.first(1, 4)
        >>> networks.Attacked(networks.Everyone(4), liars, networks.IPM(epsilon=2.0)).adversary
        IPM(epsilon=2.0)
    """

    epsilon: Scalar = ranged(0.1, low=-math.inf)
    local: ClassVar[bool] = False

    def __call__(self, message: Stacked, send: "Send", key: Key) -> Stacked:
        """Replaces the rows of Byzantine clients."""
        honest = send.honest()
        mean = comm.mix(honest / jnp.maximum(honest.sum(), 1), message)
        bad = jax.tree.map(lambda m: -jnp.asarray(self.epsilon, m.dtype) * m, mean)
        return comm.where(send.byzantine, comm.stack(bad, len(honest)), message)


@struct.dataclass
class Dissensus:
    """Each receiver gets what pushes it away from its honest neighbours; graphs only.

    Byzantine neighbours of an honest node i send
    x_i - epsilon * sum_{honest j} w_ij (x_j - x_i) / sum_{byzantine j} w_ij.

    Args:
        epsilon: traced; 1 leaves i where it was (isolation), more pushes apart.

    Source: He, Karimireddy, Jaggi, arXiv 2022, arXiv 2202.01545; as in their code.

    Example:
        >>> ring = networks.topology("ring", 4)
        >>> world = networks.Attacked(ring, networks.first(1, 4), networks.Dissensus(epsilon=2.0))
        >>> world.adversary
        Dissensus(epsilon=2.0)
    """

    epsilon: Scalar = ranged(1.0, low=-math.inf)
    local: ClassVar[bool] = False
    held: ClassVar[bool] = True  # receivers get different messages

    def __call__(self, message: Stacked, send: "Send", key: Key) -> comm.Held:
        """Coefficients over the honest messages, by receiver and slot."""
        near = send.near
        if near is None:
            raise ValueError(
                "Dissensus needs a Graph net: it sends different vectors to different receivers; "
                "on a server use ALIE or IPM"
            )
        n, k = near.idx.shape
        own = jnp.arange(n)
        bad = send.byzantine[near.idx] & (near.idx != own[:, None])  # [n, k]
        good = ~bad & (near.idx != own[:, None])
        plain = jax.nn.one_hot(near.idx, n, dtype=near.w.dtype)  # [n, k, n]
        pull = jnp.einsum("ik,ikm->im", jnp.where(good, near.w, 0), plain)
        pull = pull - jnp.where(good, near.w, 0).sum(1)[:, None] * jnp.eye(n, dtype=pull.dtype)
        mass = jnp.where(bad, near.w, 0).sum(1)
        ratio = self.epsilon / jnp.where(mass > 0, mass, 1)
        push = jnp.eye(n, dtype=pull.dtype) - ratio[:, None] * pull
        return comm.Held(message, jnp.where(bad[:, :, None], push[:, None, :], plain))


@struct.dataclass
class Perfect:
    """A channel that changes nothing.

    Example:
        >>> message = {"w": jnp.ones((4, 2))}
        >>> net = networks.Everyone(4)(0, jax.random.key(0))
        >>> net.send(message, jax.random.key(1)) is message, net.send.channel
        (True, Perfect())
    """

    def __call__(self, message: Stacked, send: "Send", key: Key) -> Stacked:
        """The message."""
        return message


@struct.dataclass
class Noisy:
    """A channel that adds N(0, sigma^2) to every number sent.

    Args:
        sigma: >= 0, traced.

    Example:
        >>> world = networks.Attacked(networks.topology("ring", 8), channel=networks.Noisy(0.01))
        >>> world.channel
        Noisy(sigma=0.01)
    """

    sigma: Scalar = ranged(0.0)

    def __call__(self, message: Any, send: "Send", key: Key) -> Any:
        """The message with noise, independent by sender."""
        add = lambda a, z: (a + self.sigma * z).astype(a.dtype)
        if not isinstance(message, comm.Held):
            return jax.tree.map(add, message, _normal(message, send.id, key))
        # one more row per sender, its noise, which every slot but the own takes from its sender
        idx, rows = send.near.idx, message.rows
        n = idx.shape[0]
        noise = _normal(jax.tree.map(lambda a: a[:n], rows), send.id, key)
        noise = jax.tree.map(lambda z: add(jnp.zeros_like(z), z), noise)
        heard = jax.nn.one_hot(idx, n, dtype=message.coef.dtype)
        heard = jnp.where((idx == jnp.arange(n)[:, None])[:, :, None], 0, heard)
        return comm.Held(
            jax.tree.map(lambda a, z: jnp.concatenate([a, z]), rows, noise),
            jnp.concatenate([message.coef, heard], -1),
        )


@struct.dataclass
class Send:
    """The net's `send`: the adversary, then the channel.

    Example:
        >>> liars = networks.first(1, 3)
        >>> world = networks.Attacked(networks.Everyone(3), liars, networks.SignFlip())
        >>> net = world(0, jax.random.key(0))
        >>> net.send(jnp.array([[1.0], [2.0], [3.0]]), jax.random.key(1)).tolist()
        [[-1.0], [2.0], [3.0]]
    """

    byzantine: Scalar  # [s] bool
    id: Scalar  # [s] identities, keys follow them
    live: Scalar  # [s] bool, False for empty slots and inactive nodes
    adversary: Any = Honest()
    channel: Any = Perfect()
    near: Any = None  # the graph by neighbour slot, for adversaries that aim at a receiver

    @property
    def local(self) -> bool:
        """Whether every message can be sent without seeing the others."""
        return self.adversary.local

    def honest(self) -> Scalar:
        """`[s]` 1.0 for those who are live and honest."""
        return (self.live & ~self.byzantine).astype(jnp.result_type(float))

    def __call__(self, message: Stacked, key: Key) -> Any:
        """What receivers get for a stacked message, leaves `[s, ...]`."""
        attack, noise = jax.random.split(key)
        return self.channel(self.adversary(message, self, attack), self, noise)


def honest(idx: Any, live: Any) -> Send:
    """A send that changes nothing."""
    return Send(jnp.zeros(idx.shape, bool), idx, live)


def alie_z(n: Count, f: Count) -> float:
    """ALIE's z for f Byzantine of n: the normal quantile of 1 - s / (n - f), s = n // 2 + 1 - f.

    Raises:
        ValueError: unless 0 <= f and a majority needs honest supporters, s > 0.

    Example:
        >>> round(networks.alie_z(50, 24), 2)
        1.43
    """
    from statistics import NormalDist

    n, f = whole("n", n), whole("f", f)
    supporters = n // 2 + 1 - f
    if not (f >= 0 and supporters > 0):
        raise ValueError(
            f"f must be from 0 to n // 2 = {n // 2}, got {f}; a majority needs no z: `ALIE()`"
        )
    return NormalDist().inv_cdf((n - f - supporters) / (n - f))


def _normal(message, ids, key):
    leaves, tree = jax.tree.flatten(message)
    keys = jax.random.split(key, len(leaves))

    def rows(key, leaf):
        by_id = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
        return jax.vmap(lambda k: jax.random.normal(k, leaf.shape[1:], leaf.dtype))(by_id)

    return tree.unflatten([rows(k, a) for k, a in zip(keys, leaves, strict=True)])
