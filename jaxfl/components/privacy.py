"""Differential privacy of clients: the mechanism inside the program, its accountant outside.

`claim` reads records only, never a run, and says what was done as an event of `dp_accounting`, of
which `epsilon` makes a number. It speaks of the models that leave the server; training losses in
the history are not covered, nor is what is chosen on them.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from optax import tree

from jaxfl import struct
from jaxfl.components.oracles import norm
from jaxfl.engine.fields import hyper
from jaxfl.types import Count, Key, Params, Scalar, whole


@struct.dataclass
class Gaussian:
    """Messages of bounded norm, and normal noise on their sum: user-level DP-FedAvg.

    x <- x + server_lr (sum_i clip(d_i, clip) + N(0, (noise clip)^2 I)) / size.

    The mean is over a constant, never over how many came, and the noise comes also if nobody did:
    the theorem needs both. Every client counts once, whatever `weighting` says.

    Args:
        size: expected clients of a round, q n, > 0, traced.
        clip: bound on the norm of a message over all leaves, > 0, traced.
        noise: standard deviation of the noise, in units of clip, >= 0, traced.

    Source: McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language
        Models", ICLR 2018, arXiv 1710.06963, algorithm 1; reconstructed from memory. A message that
        is not finite counts as 0.

    Example:
        >>> private = components.Gaussian(clip=0.5, noise=1.0, size=100.0)
        >>> network = networks.Bernoulli(1000, 0.1)
        >>> alg = algorithms.FedAvg(lr=0.1, privacy=private)
        >>> print(private.bound(jnp.array([3.0, 4.0])))
        [0.3 0.4]
    """

    size: Scalar = hyper(low=1e-30, role="world")
    clip: Scalar = hyper(1.0, low=1e-30, role="world")
    noise: Scalar = hyper(1.0, role="world")
    private: ClassVar[bool] = True
    role: ClassVar[str] = "world"

    def weights(self, w: Scalar) -> Scalar:
        """1 / size for everybody who came."""
        return (w != 0) / jnp.asarray(self.size, w.dtype)

    def bound(self, v: Params) -> Params:
        """A message of norm `clip` at most."""
        length = norm(v)
        good = jnp.isfinite(length)
        scale = jnp.where(length > self.clip, self.clip / jnp.where(length > 0, length, 1), 1)
        return jax.tree.map(lambda a: jnp.where(good, a * scale, 0).astype(a.dtype), v)

    def release(self, total: Params, key: Key) -> Params:
        """The mean with its noise."""
        leaves, treedef = jax.tree.flatten(total)
        deviation = self.noise * self.clip / self.size
        keys = jax.random.split(key, len(leaves))
        noise = [deviation * jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves)]
        return tree.add(total, treedef.unflatten(noise))


def claim(alg: Any, network: Any, rounds: Count) -> Any:
    """What a run does to the privacy of a client, as an event of `dp_accounting`.

    Poisson cohorts (`Bernoulli`) and full participation are accounted for by adding or removing a
    client, cohorts of a fixed size (`Uniform`) by replacing one, where a sum moves by twice the
    clip.

    Args:
        alg: an algorithm with a field `privacy`.
        network: where it runs.
        rounds: how many.

    Returns:
        The event and its neighbouring relation; None without privacy.

    Raises:
        ValueError: an algorithm that says nothing of privacy, a network whose cohorts are not drawn
            with known probability, a size that is not that of its cohorts, traced values.

    Example:
        >>> alg = algorithms.FedAvg(lr=0.1, privacy=components.Gaussian(size=100.0))
        >>> event, relation = components.claim(alg, networks.Bernoulli(1000, 0.1), rounds=200)
        >>> type(event).__name__, relation.name
        ('SelfComposedDpEvent', 'ADD_OR_REMOVE_ONE')
    """
    accounting = _accounting()
    privacy = getattr(alg, "privacy", None)
    if privacy is None or not privacy.private:
        return None
    who = type(alg).__name__
    if not getattr(alg, "private", False):
        raise ValueError(
            f"{who} has not been shown to be private in all that it keeps; use one that has, such "
            "as `FedAvg(privacy=...)`"
        )
    if any(isinstance(a, Tracer) for a in jax.tree.leaves((privacy, network))):
        raise ValueError("privacy must be known to be claimed, got traced values; call it outside")
    drawn = getattr(network, "sampling", None)
    if drawn is None:
        raise ValueError(
            f"{type(network).__name__} does not draw its cohorts with a known probability; use "
            f"`Bernoulli(n, rate)`, `Uniform(n, size)` or `Everyone(n)`"
        )
    kind, many = drawn
    if abs(float(privacy.size) - many) > 1e-6 * many:
        raise ValueError(
            f"privacy.size must be the expected size of a cohort, {many:g}, got "
            f"{float(privacy.size):g}; use `Gaussian(size={many:g})`"
        )
    noise, relation = float(privacy.noise), accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    if many == network.n:
        event = accounting.GaussianDpEvent(noise)
    elif kind == "poisson":
        event = accounting.PoissonSampledDpEvent(
            many / network.n, accounting.GaussianDpEvent(noise)
        )
    else:
        relation = accounting.NeighboringRelation.REPLACE_ONE
        event = accounting.SampledWithoutReplacementDpEvent(
            network.n, int(many), accounting.GaussianDpEvent(noise / 2)
        )
    return accounting.SelfComposedDpEvent(event, whole("rounds", rounds)), relation


def epsilon(alg: Any, network: Any, rounds: Count, delta: float) -> float:
    """The epsilon of a run at a delta; inf without privacy.

    By privacy loss distributions, or for cohorts of a fixed size by Rényi divergences.

    Args:
        alg, network, rounds: as for `claim`.
        delta: in (0, 1), such as 1 / n.

    Raises:
        ValueError: as for `claim`; a delta out of range.
        ImportError: without `dp_accounting`: `pip install "jaxfl[privacy]"`.

    Example:
        >>> alg = algorithms.FedAvg(lr=0.1, privacy=components.Gaussian(size=100.0))
        >>> world = networks.Bernoulli(1000, 0.1)
        >>> print(f"{components.epsilon(alg, world, rounds=200, delta=1e-3):.2f}")
        7.10
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}; for example `delta=1 / n`")
    if (claimed := claim(alg, network, rounds)) is None:
        return float("inf")
    event, relation = claimed
    _accounting()
    from dp_accounting import pld, rdp

    replaced = relation.name == "REPLACE_ONE"
    accountant: Any = (rdp.RdpAccountant if replaced else pld.PLDAccountant)(
        neighboring_relation=relation
    )
    return float(accountant.compose(event).get_epsilon(delta))


def _accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ImportError(
            'an accountant of privacy needs dp_accounting: `pip install "jaxfl[privacy]"`'
        ) from error
    return dp_accounting
