"""Robust aggregators: how a receiver makes one model of messages some of which lie.

Those by distance return weights, so that they cost O(k^2 d) for the distances of k messages and
nothing of shape [k, k, d] ever exists; those by number sort every number by itself. Who does not
take part is left out, whatever its row holds. What is not finite is infinitely far.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from optax import tree

from jaxfl import struct
from jaxfl.engine import comm
from jaxfl.engine.fields import choice, count, hyper
from jaxfl.engine.parts import Heard, Remembers, aggregate
from jaxfl.types import Params, Scalar, Stacked


def median(x: Stacked, live: Any = None) -> Params:
    """The median of every number over the clients that take part; the mean of the middle two.

    Args:
        x: stacked messages, leaves `[n, ...]`.
        live: `[n]`, true or not 0 for who takes part; by default all. Traced.

    Returns:
        One model `[...]`, 0 if nobody takes part. Not finite where half or more are not.

    Source: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards
        Optimal Statistical Rates", ICML 2018, arXiv 1803.01498; reconstructed from memory.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [5.0], [jnp.nan]])
        >>> components.median(x).tolist(), components.median(x, jnp.array([1, 1, 1, 0])).tolist()
        ([3.0], [1.0])
    """
    live, n, m = _live(x, live)
    # Half of those who are left out come below all others and half above: the middle stays there.
    below = jnp.cumsum(~live) <= (n - m) // 2
    rows = _filled(x, live, jnp.where(below, -jnp.inf, jnp.inf))
    if n == 1:
        return comm.by_rank(m[None], rows)
    odd = m % 2 == 1
    low = jnp.where(odd, 1 - n % 2, 0.5) * (m > 0)
    return comm.by_rank(jnp.stack([low, (m > 0) - low]), rows, ranks=(n // 2 - 1, n // 2))


def trimmed_mean(x: Stacked, f: Scalar, live: Any = None) -> Params:
    """The mean of every number without its f smallest and its f largest values.

    Args:
        x: stacked messages, leaves `[n, ...]`.
        f: how many to leave out at each end, traced; at most so many that one or two are left.
        live: `[n]`, true or not 0 for who takes part; by default all. Traced.

    Returns:
        One model `[...]`, 0 if nobody takes part. Not finite where more than f are not.

    Source: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards
        Optimal Statistical Rates", ICML 2018, arXiv 1803.01498; reconstructed from memory.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [2.0], [jnp.nan]])
        >>> components.trimmed_mean(x, 1).tolist()
        [1.5]
    """
    live, n, m = _live(x, live)
    f, rank = jnp.clip(jnp.asarray(f), 0, jnp.maximum(m - 1, 0) // 2), jnp.arange(n)
    kept = (rank >= f) & (rank < m - f)
    return comm.by_rank(kept / jnp.maximum(kept.sum(), 1), _filled(x, live, jnp.inf))


def _live(x, live):
    """Who takes part, of how many, and how many do."""
    n = len(jax.tree.leaves(x)[0])
    live = jnp.ones(n, bool) if live is None else jnp.asarray(live) != 0
    return live, n, live.sum()


def _filled(x, live, fill):
    """Rows of those who do not take part replaced."""
    fill = jnp.broadcast_to(jnp.asarray(fill), live.shape)
    return comm.where(live, x, jax.tree.map(lambda a: _rows(fill, a), x))


def _rows(fill, a):
    return jnp.broadcast_to(fill.astype(a.dtype).reshape(-1, *(1,) * (a.ndim - 1)), a.shape)


def _present(squared, w):
    """Squared distances among those who are there, inf to all others; and who is there."""
    here = w != 0
    return jnp.where(here[:, None] & here[None], squared, jnp.inf), here


def _centre(coef, squared):
    """Distances of all messages to the combination of weights `coef`, whose sum is 1."""
    to = squared @ coef
    return jnp.sqrt(jnp.maximum(to - coef @ to / 2, 0))


def _finite(squared, w):
    """Distances and weights with messages that are not finite, seen from slot 0, left out."""
    good = jnp.isfinite(squared[0])
    return jnp.where(good[:, None] & good[None], squared, 0), jnp.where(good, w, 0)


def _rank(a):
    return jnp.argsort(jnp.argsort(a, axis=-1, stable=True), axis=-1)


_FAR = 1e33  # in place of inf in sums: above every sum of squares of numbers up to 1e12


@struct.dataclass
class Median:
    """The median of every number; the mean of the middle two.

    Weights count only as there or not there. NaN counts as inf.

    Source: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards
        Optimal Statistical Rates", ICML 2018, arXiv 1803.01498; byzfl's code was read.

    Example:
        >>> problem, liars = problems.quadratics(n=8, zeta=0.0), networks.first(2, 8)
        >>> world = networks.Attacked(networks.Everyone(8), liars, networks.SignFlip(scale=1e6))
        >>> run = jaxfl.simulate(
        ...     algorithms.FedAvg(lr=0.1, aggregator=components.Median()), problem.clients(), world,
        ...     jnp.zeros(5), jax.random.key(0), rounds=50,
        ... )
        >>> bool(jnp.abs(run.state.params).max() < 10)
        True
    """

    def sort(self, values: Stacked, w: Scalar) -> Params:
        """The median over the first axis."""
        return median(values, w)


@struct.dataclass
class TrimmedMean:
    """The mean of every number without its f smallest and its f largest values.

    Weights count only as there or not there. NaN counts as inf.

    Args:
        f: how many to leave out at each end, >= 0, traced; one or two are always left.

    Source: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards
        Optimal Statistical Rates", ICML 2018, arXiv 1803.01498; byzfl's code was read.

    Example:
        >>> rule = components.TrimmedMean(f=1)
        >>> rule.sort(jnp.array([0.0, 1.0, 2.0, jnp.nan]), jnp.full(4, 0.25)).item()
        1.5
    """

    f: Scalar = hyper(1.0)

    def sort(self, values: Stacked, w: Scalar) -> Params:
        """The trimmed mean over the first axis."""
        return trimmed_mean(values, self.f, w)


def _krum(squared, w, f, form):
    """The scores of Krum, inf for who is not there."""
    squared, here = _present(squared, w)
    n = here.sum()
    near = jnp.clip(n - f - (2 if form == "paper" else 1), 1, jnp.maximum(n - 1, 1))
    apart = jnp.where(jnp.eye(len(w), dtype=bool), jnp.inf, squared)
    apart = jnp.minimum(jnp.sort(apart, axis=1), _FAR)
    score = jnp.where(jnp.arange(len(w)) < near, apart, 0).sum(1)
    return jnp.where(here, score, jnp.inf), n


@struct.dataclass
class Krum:
    """The message that is nearest to its neighbours: of least sum of squared distances to them.

    Weights count only as there or not there.

    Args:
        f: Byzantine messages tolerated, >= 0, traced; the paper asks for n >= 2 f + 3.
        form: "paper" (a message has n - f - 2 neighbours) or "byzfl" (n - f - 1), static.

    Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine
        Tolerant Gradient Descent", NeurIPS 2017; byzfl's code was read.

    Example:
        >>> squared = comm.distances(jnp.array([[0.0], [1.0], [1.5], [1e6]]))
        >>> components.Krum(f=1).weigh(squared, jnp.full(4, 0.25)).tolist()
        [0.0, 1.0, 0.0, 0.0]
    """

    f: Scalar = hyper(1.0)
    form: str = choice("paper", "byzfl")

    def weigh(self, squared: Scalar, w: Scalar) -> Scalar:
        """1 for the message chosen; of equal scores the first."""
        score, _ = _krum(squared, w, self.f, self.form)
        return (jnp.arange(len(w)) == jnp.argmin(score)).astype(w.dtype)


@struct.dataclass
class MultiKrum:
    """The mean of the messages of least Krum score: n - f - 2 of them, or n - f as in byzfl.

    Weights count only as there or not there.

    Args:
        f: Byzantine messages tolerated, >= 0, traced.
        form: "paper" or "byzfl", as for `Krum`, static.

    Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine
        Tolerant Gradient Descent", NeurIPS 2017; byzfl's code was read.

    Example:
        >>> squared = comm.distances(jnp.array([[0.0], [1.0], [1.5], [1e6]]))
        >>> print(components.MultiKrum(f=1, form="byzfl").weigh(squared, jnp.ones(4)).round(2))
        [0.33 0.33 0.33 0.  ]
    """

    f: Scalar = hyper(1.0)
    form: str = choice("paper", "byzfl")

    def weigh(self, squared: Scalar, w: Scalar) -> Scalar:
        """Equal weights of those chosen."""
        score, n = _krum(squared, w, self.f, self.form)
        many = jnp.clip(n - self.f - (2 if self.form == "paper" else 0), 1, jnp.maximum(n, 1))
        kept = ((_rank(score) < many) & jnp.isfinite(score)).astype(w.dtype)
        return kept / jnp.maximum(kept.sum(), 1)


@struct.dataclass
class GeometricMedian:
    """The point of least sum of distances, by smoothed Weiszfeld steps: RFA.

    z <- sum_i b_i x_i / sum_i b_i,  b_i = w_i / max(nu, |z - x_i|).

    Args:
        nu: least distance, > 0, traced.
        steps: static.
        start: "mean" (of the messages) or "own" (of the receiver: 0 on a server, as in byzfl),
            static.

    Source: Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", IEEE
        Transactions on Signal Processing 2022, arXiv 1912.13445; byzfl's code was read.

    Example:
        >>> squared = comm.distances(jnp.array([[0.0], [1.0], [10.0]]))
        >>> rule = components.GeometricMedian(nu=1e-6, steps=100)
        >>> print(rule.weigh(squared, jnp.full(3, 1 / 3)).round(2))
        [0. 1. 0.]
    """

    nu: Scalar = hyper(0.1, low=1e-30)
    steps: int = count(3)
    start: str = choice("mean", "own")

    def weigh(self, squared: Scalar, w: Scalar) -> Scalar:
        """The weights of the last step."""
        squared, w = _finite(squared, w)
        own = (jnp.arange(len(w)) == 0).astype(w.dtype)
        total = w.sum()
        mean = jnp.where(total > 0, w / jnp.where(total > 0, total, 1), own)

        def step(_, coef):
            b = w / jnp.maximum(self.nu, _centre(coef, squared))
            return jnp.where(total > 0, b / jnp.where(total > 0, b.sum(), 1), own)

        return jax.lax.fori_loop(0, self.steps, step, own if self.start == "own" else mean)


@struct.dataclass
class CenteredClipping:
    """Steps from the last output towards the messages, each of bounded length.

    v <- v + sum_i w_i (x_i - v) min(1, tau / |x_i - v|);  v is kept for the next round.

    Args:
        tau: longest step, >= 0, traced.
        steps: static.

    Source: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML
        2021, arXiv 2012.10333; byzfl's code was read. v starts at 0.

    Example:
        >>> alg = algorithms.FedAvg(lr=0.1, aggregator=components.CenteredClipping(tau=1.0))
        >>> print(jaxfl.grid(alg, lr=[0.1, 0.2]).aggregator.tau)
        [1. 1.]
    """

    tau: Scalar = hyper(10.0)
    steps: int = count(1)

    def init(self, x: Params, n: int) -> Params:
        """v = 0."""
        return tree.zeros_like(x)

    def combine(self, heard: Heard, memory: Params) -> tuple[Params, Params]:
        """The new centre, twice."""
        first = lambda v, rows: jnp.concatenate([v[None], rows])
        rows = jax.tree.map(first, memory, heard.rows)
        squared, w = _finite(comm.distances(rows), jnp.concatenate([jnp.zeros(1), heard.w]))
        start = (jnp.arange(len(w)) == 0).astype(w.dtype)

        def step(_, coef):
            far = _centre(coef, squared)
            share = w * jnp.minimum(1, self.tau / jnp.where(far > 0, far, 1))
            share = jnp.where(far > 0, share, w)
            return coef * (1 - share.sum()) + share

        v = comm.mix(jax.lax.fori_loop(0, self.steps, step, start), rows)
        return v, v


@struct.dataclass
class ClippedGossip:
    """The own model and the differences to the neighbours', each clipped: for graphs.

    x_i <- x_i + sum_j w_ij clip(z_j - x_i, tau).

    Args:
        tau: longest difference, >= 0, traced.

    Source: He, Karimireddy, Jaggi, "Byzantine-Robust Decentralized Learning via ClippedGossip",
        2022, arXiv 2202.01545; the authors' code was read. Theirs adapts tau to the neighbours'
        distances, here it is given.

    Example:
        >>> squared, w = jnp.array([0.0, 1.0, 100.0]), jnp.full(3, 1 / 3)
        >>> print(components.ClippedGossip(tau=1.0).weigh(squared, w).round(2))
        [0.63 0.33 0.03]
    """

    tau: Scalar = hyper(1.0)
    near: ClassVar[bool] = True

    def weigh(self, squared: Scalar, w: Scalar) -> Scalar:
        """The clipped weights; what is cut off goes to the own model."""
        far = jnp.sqrt(squared)
        share = w * jnp.minimum(1, self.tau / jnp.where(far > 0, far, 1))
        share = jnp.where(far > 0, share, w).at[0].set(0)
        return share.at[0].set(1 - share.sum())


@struct.dataclass
class NearestNeighbours:
    """The mean of all messages but the f farthest from the own one, which always stays: NNA.

    Weights count only as there or not there.

    Args:
        f: how many to leave out, >= 0, traced.

    Source: Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust Collaborative Learning
        with Linear Gradient Overhead", ICML 2023, arXiv 2209.10931; the authors' code was read: of
        |V| messages |V| - f are kept.

    Example:
        >>> squared = jnp.array([0.0, 1.0, 1e12])
        >>> components.NearestNeighbours(f=1).weigh(squared, jnp.full(3, 1 / 3)).tolist()
        [0.5, 0.5, 0.0]
    """

    f: Scalar = hyper(1.0)
    near: ClassVar[bool] = True

    def weigh(self, squared: Scalar, w: Scalar) -> Scalar:
        """Equal weights of those kept."""
        here = (w != 0).at[0].set(True)
        squared = jnp.where(here, squared, jnp.inf)
        keep = (_rank(squared) < here.sum() - self.f) & jnp.isfinite(squared)
        keep = keep.at[0].set(True).astype(w.dtype)
        return keep / keep.sum()


@struct.dataclass
class NNM:
    """Before another rule, each message becomes the mean of the n - f nearest to it, itself too.

    Weights count only as there or not there. A message that is not finite stays so.

    Args:
        f: Byzantine messages tolerated, >= 0, traced.
        rule: `TrimmedMean(f)`, `Krum(f)`, `Median()`, ...

    Source: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing: A Recipe for
        Optimal Byzantine ML under Heterogeneity", AISTATS 2023, arXiv 2302.01772; byzfl's code was
        read.

    Example:
        >>> alg = algorithms.FedAvg(lr=0.1, aggregator=components.NNM(2.0, components.Krum(2.0)))
        >>> type(alg.aggregator.rule).__name__
        'Krum'
    """

    f: Scalar = hyper(1.0)
    rule: Any = TrimmedMean()

    def init(self, x: Params, n: int) -> Any:
        """The memory of the rule."""
        return self.rule.init(x, n) if isinstance(self.rule, Remembers) else ()

    def combine(self, heard: Heard, memory: Any) -> tuple[Params, Any]:
        """What the rule makes of the means."""
        squared, here = _present(heard.squared(), heard.w)
        own = jnp.eye(len(here), dtype=bool)
        squared = jnp.where(own, -1.0, squared)  # first, also among equals
        near = (_rank(squared) < here.sum() - self.f) & jnp.isfinite(squared) | own
        near = jnp.where(here[:, None], near, own).astype(heard.w.dtype)
        mixed = comm.mix(comm.Dense(near / near.sum(1, keepdims=True)), heard.rows)
        return aggregate(self.rule, dataclasses.replace(heard, rows=mixed), memory)
