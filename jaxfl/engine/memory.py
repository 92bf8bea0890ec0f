"""Whether a run fits the memory of its device."""

import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxfl.engine import devices
from jaxfl.engine.clients import Clients
from jaxfl.types import Key, Params


def limit() -> int | None:
    """Bytes of memory of a device, None if that is not known."""
    if stats := jax.local_devices()[0].memory_stats():
        return stats.get("bytes_limit")
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        return None
    try:  # of the container
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (ValueError, OSError):
        return physical


def refuse(
    start: Any, alg: Any, clients: Clients, params: Params, key: Key, *, rounds: int
) -> None:
    """Raises MemoryError if data, state and history alone exceed the device's memory.

    Nothing is said of what is being traced.

    Args:
        start: the jitted `jaxfl.engine.simulate.init`, of whose trace the next call makes use.
        alg, clients, params, key, rounds: as for `simulate`.
    """
    given = (alg, clients, params, key)
    if any(isinstance(a, Tracer) for a in jax.tree.leaves(given)):
        return
    state = start.eval_shape(*given)
    share = 1 if clients.over is None else devices.along(clients.over)
    data, held, history = _bytes(clients), _bytes(state) // share, 28 * rounds
    text = f"data {_size(data)}, state {_size(held)} and history {_size(history)}"
    _refuse(data + held + history, limit(), f"{text} alone")


def _refuse(needed, limit, text):
    if limit is not None and needed > limit:
        raise MemoryError(
            f"{text}: {_size(needed)} where the device has {_size(limit)}. Two ways out: fewer "
            "clients at once on each device, `clients.replace(block=1)` or "
            "`jaxfl.spread(clients, mesh)`; or data and states on the host, "
            "`Clients.make(..., host=True)` and `run(..., offload=True)`"
        )


def _size(size):
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _bytes(tree):
    return sum(map(_item, jax.tree.leaves(tree)))


def _item(a):
    shape, dtype = jnp.shape(a), jnp.result_type(a)
    return math.prod(shape) * (8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize)


def opened(jaxpr: Any) -> Any:
    """The jaxpr within a closed one; from JAX 0.11 on there are no others."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def carried(scan: Any) -> range:
    """Which inputs of the equation of a scan it carries: after constants, before what it scans.

    By their axes, since releases of JAX differ in what they call these numbers.
    """
    body = opened(scan.params["jaxpr"])
    whole = lambda outer, inner: sum(a.aval.ndim == b.aval.ndim for a, b in zip(outer, inner))
    many, end = whole(scan.outvars, body.outvars), whole(scan.invars, body.invars)
    return range(end - many, end)
