"""Networks whose parts do not fit together."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.engine import comm
from jaxfl.networks.failures import Attacked
from jaxfl.networks.nets import Cohort, Graph, Links


def layers(network: Any) -> Iterator[Any]:
    """A network and those that it wraps, from the outside in."""
    while network is not None:
        yield network
        network = getattr(network, "network", None)


def speeds(network: Any) -> Links:
    """The links of all clients, however the network is wrapped; no time where it has none."""
    found = (layer.links for layer in layers(network) if hasattr(layer, "links"))
    return next(found, Links(compute=0.0, latency=0.0, up=jnp.inf, down=jnp.inf))


def check(network: Any, rounds: int) -> None:
    """Raises ValueError for wrappers around the wrong kind of network and arrays of wrong sizes.

    Shapes are known also under `jit` and `vmap`. Ranges are the business of
    `jaxfl.engine.fields.check_ranges`.
    """
    n = network.n
    for layer in layers(network):
        name, inner = type(layer).__name__, getattr(layer, "network", None)
        if inner is not None and not isinstance(layer, Attacked) and inner.kind is not layer.kind:
            fix = "Drop(network, rate)" if inner.kind is Cohort else "LinkFailures(network, rate)"
            raise ValueError(
                f"{name} needs a network that makes {layer.kind.__name__} nets, got "
                f"{type(inner).__name__}, which makes {inner.kind.__name__}; use `{fix}`"
            )
        if isinstance(layer, Attacked):
            _aimed(layer)
        drawn = getattr(layer, "rounds", rounds)
        present = np.shape(getattr(layer, "present", 0.0))
        if len(present) == 2:
            drawn = present[0]
        if drawn < rounds:
            raise ValueError(
                f"{name} is drawn for {drawn} rounds, asked for {rounds}; "
                f"draw it with `rounds={rounds}`"
            )
        table = ((drawn, n),) if hasattr(layer, "present") else ()
        for field in ("rate", "present", "byzantine"):
            _sized(name, field, getattr(layer, field, 0.0), n, table)
        links = getattr(layer, "links", Links())
        _sized("Links", "compute", links.compute, n)
        _sized("Links", "down", links.down, n)
        table = ()
        if layer.kind is Graph and 2 in (np.ndim(links.latency), np.ndim(links.up)):
            table = (jax.eval_shape(_slots, layer).shape,)
        _sized("Links", "latency", links.latency, n, table)
        _sized("Links", "up", links.up, n, table)


def _aimed(network):
    name, kind = type(network.adversary).__name__, network.kind
    if getattr(network.adversary, "held", False) and (kind.server or not kind.common):
        raise ValueError(
            f"{name} sends different messages to different receivers, which needs Graph nets, got "
            f"{kind.__name__}; on a server use `ALIE()` or `IPM()`"
        )
    if not network.adversary.local and not kind.common:
        raise ValueError(
            f"{name} must see all messages of a round at once, which {kind.__name__} nets do not "
            "have; use a row-local adversary such as `SignFlip()`"
        )


def _slots(network):
    return comm.to_near(network(jnp.int32(0), jax.random.key(0)).w).idx


def _sized(name, field, value, n, more=()):
    shape = np.shape(value) if value is not None else ()
    if shape not in ((), (n,), *more):
        allowed = " or ".join(str(s) for s in ((n,), *more))
        raise ValueError(
            f"{name}.{field} must be one number or have shape {allowed}, got shape {shape}; "
            f"for example `{field}=np.zeros({n})`"
        )
