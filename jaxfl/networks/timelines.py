"""Worlds that are drawn in advance: the nets of all rounds, stacked."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl import struct
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


def _narrow(a: np.ndarray) -> np.ndarray:
    # cast on the host: JAX would compile a conversion for every shape
    wide = {"i": np.dtype(np.int32), "f": jnp.result_type(float)}.get(a.dtype.kind, a.dtype)
    return np.asarray(a, wide)


def _timeline(nets, n):
    return Timeline(jax.device_put(jax.tree.map(_narrow, nets)), n)  # all at once: it is quicker


# First step at which each node sends, and the steps between.
CLOCKS: dict[str, Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]] = {
    "sync": lambda rng, n, period: (rng.integers(0, period, n), np.full(n, period)),
    "async": lambda rng, n, period: (
        np.zeros(n, int),
        np.maximum(rng.normal(period, period / 10, n).astype(int), 1),
    ),
}


def _between(name, value, low, high=None):
    """The count, if it is in its range."""
    value = whole(name, value)
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"between {low} and n = {high}"
        raise ValueError(f"{name} must be {expected}, got {value}; for example `{name}={low}`")
    return value
