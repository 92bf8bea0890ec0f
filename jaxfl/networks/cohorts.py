"""Cohorts: which clients take part in a round of a server method."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxfl import struct
from jaxfl.engine import comm
from jaxfl.engine.examples import positions
from jaxfl.networks.adversaries import honest, ranged
from jaxfl.networks.nets import Cohort, Links
from jaxfl.types import Count, Key, Scalar, whole, wholes

_PAIRS = 64  # slots up to which comparing all pairs is cheaper than sorting


def _fits(n, size, name="size"):
    if n < 1 or not 1 <= size <= n:
        raise ValueError(
            f"{name} must be between 1 and n = {n}, got {size}; "
            f"for all clients use `Everyone({max(n, 1)})`"
        )


def _cohort(t, idx, n, links, weight=None):
    live = idx < n
    weight = live.astype(jnp.result_type(float)) if weight is None else weight
    return Cohort(t, idx, weight, honest(idx, live), links.at(idx))


@struct.dataclass
class Everyone:
    """All n clients, every round.

    Args:
        n: number of clients, static.
        links: speeds, for simulated seconds.

    Example:
        >>> networks.Everyone(4)(0, jax.random.key(0)).idx.tolist()
        [0, 1, 2, 3]
    """

    n: Count = struct.field(pytree_node=False)
    links: Links = Links()
    kind: ClassVar[type] = Cohort
    static: ClassVar[bool] = True
    lossless: ClassVar[bool] = True

    def __post_init__(self):
        wholes(self, "n")
        _fits(self.n, self.n, "n")

    @property
    def sampling(self) -> tuple[str, float]:
        """How cohorts are drawn, and how many clients they have in the mean: what privacy needs."""
        return "fixed", float(self.n)

    def __call__(self, t: Scalar, key: Key) -> Cohort:
        """The net of round t."""
        net = _cohort(t, jnp.arange(self.n, dtype=jnp.int32), self.n, self.links)
        return dataclasses.replace(net, everybody=True)


@struct.dataclass
class Uniform:
    """A uniformly random cohort of fixed size without replacement, in O(size) for large n.

    Args:
        n: number of clients, static.
        size: of the cohort, 1 to n, static.
        links: speeds, for simulated seconds.

    Example:
        >>> net = networks.Uniform(1_000_000, 8)(0, jax.random.key(0))
        >>> len(set(net.idx.tolist())), float(net.participants())
        (8, 8.0)
    """

    n: Count = struct.field(pytree_node=False)
    size: Count = struct.field(pytree_node=False)
    links: Links = Links()
    kind: ClassVar[type] = Cohort
    static: ClassVar[bool] = True
    lossless: ClassVar[bool] = True

    def __post_init__(self):
        wholes(self, "n", "size")
        _fits(self.n, self.size)

    @property
    def sampling(self) -> tuple[str, float]:
        """How cohorts are drawn, and how many clients they have in the mean: what privacy needs."""
        return "fixed", float(self.size)

    def __call__(self, t: Scalar, key: Key) -> Cohort:
        """The net of round t."""
        return _cohort(t, sample(key, self.n, self.size), self.n, self.links)


def sample(key: Key, n: Count, size: Count) -> Int[Array, " size"]:
    """`size` of n numbers without replacement, every subset equally likely.

    Small cohorts: draw with replacement and redraw what repeats an earlier slot until nothing does.
    The procedure treats all numbers alike, so every subset is equally likely. Ten of a thousand
    take a hundredth of a permutation, and no longer than ten of a million.
    """
    if 4 * size > n:
        return jnp.argsort(jax.random.bits(key, (n,), jnp.uint32))[:size].astype(jnp.int32)

    def repeats(idx):
        if size <= _PAIRS:
            earlier = jnp.arange(size)[:, None] > jnp.arange(size)[None]
            return ((idx[:, None] == idx[None]) & earlier).any(1)
        by_value = jnp.argsort(idx, stable=True)
        twin = idx[by_value][1:] == idx[by_value][:-1]
        return jnp.zeros(size, bool).at[by_value[1:]].set(twin)

    def redraw(carry):
        idx, again, i = carry
        fresh = jax.random.bits(jax.random.fold_in(key, i), (size,), jnp.uint32) % jnp.uint32(n)
        idx = jnp.where(again, fresh.astype(jnp.int32), idx)
        return idx, repeats(idx), i + 1

    first = jnp.zeros(size, jnp.int32), jnp.ones(size, bool), jnp.int32(0)
    return jax.lax.while_loop(lambda carry: carry[1].any(), redraw, first)[0]


def _smallest(rank, size):
    """Where the `size` smallest are, in order; of a million a sort takes a hundred times longer."""
    if 4 * size > len(rank):
        return jnp.argsort(rank)[:size].astype(jnp.int32)
    return jax.lax.top_k(-rank, size)[1].astype(jnp.int32)


@struct.dataclass
class Bernoulli:
    """Every client takes part with its own probability, independently: a cohort of random size.

    Args:
        n: number of clients, static.
        rate: probability, scalar or `[n]`, in [0, 1], traced.
        slots: capacity of the cohort, static; 0 for n. Of more clients than slots, a random subset
            is kept.
        unbiased: weight 1 / (n rate_i) instead of 1, so that weights sum to 1 on average, traced, 0
            or 1; where c clients came and a subset was kept, c / slots times that.
        links: speeds, for simulated seconds.

    Example:
        >>> network = networks.Bernoulli(1000, rate=0.1, slots=200)
        >>> network.n, network.rate, network.slots
        (1000, 0.1, 200)
    """

    n: Count = struct.field(pytree_node=False)
    rate: Scalar = ranged(0.5, high=1.0, many=True)
    slots: Count = struct.field(pytree_node=False, default=0)
    unbiased: Scalar = ranged(0.0, high=1.0)
    links: Links = Links()
    kind: ClassVar[type] = Cohort
    static: ClassVar[bool] = True
    lossless: ClassVar[bool] = True

    def __post_init__(self):
        wholes(self, "n", "slots")
        _fits(self.n, self.slots or self.n, "slots")

    @property
    def sampling(self) -> tuple[str, float] | None:
        """As for `Uniform`; None where probabilities differ, or too many may come for the slots."""
        if np.ndim(self.rate) or 0 < self.slots < self.n:
            return None
        return "poisson", float(self.rate) * self.n

    def __call__(self, t: Scalar, key: Key) -> Cohort:
        """The net of round t."""
        size = self.slots or self.n
        coin, order = jax.random.split(key)
        rate = jnp.broadcast_to(jnp.asarray(self.rate, jnp.result_type(float)), (self.n,))
        chosen = jax.random.uniform(coin, (self.n,), rate.dtype) < rate
        rank = jnp.where(chosen, jax.random.uniform(order, (self.n,), rate.dtype), 2.0)
        first = _smallest(rank, size)
        idx = jnp.where(rank[first] < 2, first, self.n)
        kept = jnp.maximum(chosen.sum() / size, 1)  # over the share that is kept of too many
        weight = jnp.where(self.unbiased > 0, kept / (self.n * jnp.where(rate > 0, rate, 1)), 1.0)
        weight = jnp.where(idx < self.n, weight.at[idx].get(mode="clip"), 0)
        return _cohort(t, idx, self.n, self.links, weight)


@struct.dataclass
class Weighted:
    """A cohort of fixed size without replacement, client i with probability proportional to rate i.

    Drawn one after another with renormalised rates (Gumbel top-k). Rates that follow a client's
    data make participation correlated with it: `label_rates`.

    Args:
        rate: `[n]`, >= 0, traced; a client of rate 0 never takes part, its slot may stay empty.
        size: of the cohort, 1 to n, static.
        links: speeds, for simulated seconds.

    Example:
        >>> network = networks.Weighted(np.array([1.0, 1.0, 0.0, 2.0]), size=3)
        >>> sorted(network(0, jax.random.key(0)).idx.tolist())
        [0, 1, 3]
    """

    rate: Scalar = ranged(many=True)
    size: Count = struct.field(pytree_node=False, default=1)
    links: Links = Links()
    kind: ClassVar[type] = Cohort
    static: ClassVar[bool] = True
    lossless: ClassVar[bool] = True

    def __post_init__(self):
        wholes(self, "size")

    @property
    def n(self) -> int:
        """Number of clients."""
        return self.rate.shape[-1]

    def __call__(self, t: Scalar, key: Key) -> Cohort:
        """The net of round t."""
        _fits(self.n, self.size)
        rate = jnp.asarray(self.rate, jnp.result_type(float))
        score = jnp.log(rate) + jax.random.gumbel(key, rate.shape, rate.dtype)
        best, idx = jax.lax.top_k(score, self.size)
        idx = jnp.where(best > -jnp.inf, idx, self.n).astype(jnp.int32)
        return _cohort(t, idx, self.n, self.links)


@struct.dataclass
class Cyclic:
    """Clients in fixed groups that take turns, the last group filled up by empty slots.

    Args:
        n: number of clients, static.
        size: of a group, 1 to n, static.
        links: speeds, for simulated seconds.

    Example:
        >>> [networks.Cyclic(6, 2)(t, jax.random.key(0)).idx.tolist() for t in range(4)]
        [[0, 1], [2, 3], [4, 5], [0, 1]]
    """

    n: Count = struct.field(pytree_node=False)
    size: Count = struct.field(pytree_node=False)
    links: Links = Links()
    kind: ClassVar[type] = Cohort
    static: ClassVar[bool] = True
    lossless: ClassVar[bool] = True

    def __post_init__(self):
        wholes(self, "n", "size")
        _fits(self.n, self.size)

    def __call__(self, t: Scalar, key: Key) -> Cohort:
        """The net of round t."""
        groups = -(-self.n // self.size)
        idx = (jnp.asarray(t) % groups) * self.size + jnp.arange(self.size)
        return _cohort(t, jnp.minimum(idx, self.n).astype(jnp.int32), self.n, self.links)


@struct.dataclass
class Available:
    """A cohort drawn uniformly from the clients that are available in a round.

    Args:
        available: `[rounds, n]` bool, indexed by round; `markov` makes one.
        size: of the cohort, 1 to n, static; fewer available clients leave empty slots.
        links: speeds, for simulated seconds.

    Example:
        >>> by_day = np.array([[True, True, False, False], [False, False, True, True]])
        >>> network = networks.Available(by_day, size=2)
        >>> [sorted(network(t, jax.random.key(0)).idx.tolist()) for t in (0, 1)]
        [[0, 1], [2, 3]]
    """

    available: Scalar
    size: Count = struct.field(pytree_node=False, default=1)
    links: Links = Links()
    kind: ClassVar[type] = Cohort
    static: ClassVar[bool] = True
    lossless: ClassVar[bool] = True

    def __post_init__(self):
        wholes(self, "size")

    @property
    def n(self) -> int:
        """Number of clients."""
        return self.available.shape[-1]

    @property
    def rounds(self) -> int:
        """For how many rounds availability is known."""
        return self.available.shape[-2]

    def __call__(self, t: Scalar, key: Key) -> Cohort:
        """The net of round t."""
        _fits(self.n, self.size)
        u = jax.random.uniform(key, (self.n,))
        rank = jnp.where(jnp.asarray(self.available)[t] > 0, u, 2.0)
        first = _smallest(rank, self.size)
        idx = jnp.where(rank[first] < 2, first, self.n)
        return _cohort(t, idx, self.n, self.links)


@struct.dataclass
class Drop:
    """Clients of a cohort drop out at random, before they work: an empty slot, weight 0.

    Who drops out receives, computes and sends nothing: its state stays, and it costs nothing. The
    server goes on with the others, so models are also those of uploads that are lost; the costs of
    such uploads, which were paid for, are not counted.

    Args:
        network: a network of cohorts.
        rate: probability, scalar or `[n]`, in [0, 1], traced.

    Example:
        >>> network = networks.Drop(networks.Everyone(100), rate=1.0)
        >>> float(network(0, jax.random.key(0)).participants())
        0.0
    """

    network: Any
    rate: Scalar = ranged(0.0, high=1.0, many=True)
    kind: ClassVar[type] = Cohort
    lossless: ClassVar[bool] = False

    @property
    def static(self) -> bool:
        """Whether the network never changes."""
        return self.network.static

    @property
    def n(self) -> int:
        """Number of clients."""
        return self.network.n

    def __call__(self, t: Scalar, key: Key) -> Cohort:
        """The net of round t."""
        inner, coin = jax.random.split(key)
        net = self.network(t, inner)
        rate = jnp.asarray(self.rate)
        rate = comm.pick(rate, net.idx) if rate.ndim else rate
        kept = (net.idx < self.n) & (jax.random.uniform(coin, net.idx.shape) >= rate)
        return net.replace(
            idx=jnp.where(kept, net.idx, self.n),
            weight=jnp.where(kept, net.weight, 0),
            send=net.send.replace(live=kept),
            everybody=False,
        )


def markov(
    n: Count,
    size: Count,
    rounds: Count,
    *,
    up: float,
    down: float,
    seed: int | np.random.Generator = 0,
    links: Links | None = None,
) -> Available:
    """Cohorts from clients that come and go as two-state Markov chains.

    Args:
        n: number of clients.
        size: of the cohort.
        rounds: for how many rounds the chains are drawn.
        up: probability that an unavailable client becomes available, in (0, 1].
        down: probability that an available one becomes unavailable, in [0, 1].
        seed: of the chains, which start in their stationary law up / (up + down).
        links: speeds, for simulated seconds.

    Raises:
        ValueError: probabilities out of range, size not in 1 to n, rounds < 1.

    Example:
        >>> network = networks.markov(10, 3, rounds=100, up=0.2, down=0.1)
        >>> network.available.shape
        (100, 10)
    """
    n, size, rounds = whole("n", n), whole("size", size), whole("rounds", rounds)
    _fits(n, size)
    if not (0 < up <= 1 and 0 <= down <= 1):
        raise ValueError(
            f"up must be in (0, 1] and down in [0, 1], got {up} and {down}; "
            "for example `up=0.5, down=0.1`"
        )
    if rounds < 1:
        raise ValueError(f"rounds must be >= 1, got {rounds}; use the `rounds` of `simulate`")
    rng = np.random.default_rng(seed)
    state = rng.random(n) < up / (up + down)
    states = np.empty((rounds, n), bool)
    for t in range(rounds):
        states[t] = state
        state = np.where(state, rng.random(n) >= down, rng.random(n) < up)
    return Available(jnp.asarray(states), size, links or Links())


def label_rates(labels: np.ndarray, partition: tuple, strength: float) -> np.ndarray:
    """Participation rates that follow a client's labels: exp(-strength * mean label rank).

    Args:
        labels: `[N]` integer labels.
        partition: whose examples are whose.
        strength: 0 for equal rates; at 1 a client that holds only the last class takes part e
            times less often than one that holds only the first.

    Returns:
        `[n]` rates with mean 1, for `Weighted`.

    Example:
        >>> y = np.array([0, 0, 1, 1])
        >>> rates = networks.label_rates(y, data.shards(y, 2, 1), strength=1.0)
        >>> network = networks.Weighted(rates, size=1)
        >>> sorted(rates.round(2).tolist())
        [0.54, 1.46]
    """
    order, start, count = (np.asarray(a) for a in partition[:3])
    rank = np.asarray(labels, float) / max(1, int(np.max(labels)))
    owner = np.repeat(np.arange(len(count)), count)
    mean = np.bincount(owner, rank[order[positions(start, count)]], len(count)) / count
    rate = np.exp(-strength * mean)
    return rate / rate.mean()
