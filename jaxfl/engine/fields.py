"""Fields of records: traced hyperparameters, static counts and names, their ranges."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxfl import struct
from jaxfl.engine import checks
from jaxfl.types import Params, nearest


def _concrete(a):
    return not isinstance(a, Tracer)


def strong(alg: Any, params: Params) -> Any:
    """Traced fields as strongly typed float32, or the parameters' dtype if wider.

    `lr=1`, `lr=1.0` and `lr=jnp.array(1.0)` would otherwise be three programs.
    """
    wide = jnp.result_type(jnp.float32, *(_dtype(a) for a in jax.tree.leaves(params)))
    return jax.tree.map(lambda a: jnp.asarray(a, wide), alg)


def _dtype(a):
    dtype = jnp.result_type(a)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32


def _traced(field):
    return field.metadata.get("pytree_node", True)


_component, _name = checks.component, checks.name


def _unknown(what, name, known):
    return f"{what} has no field {name!r}{nearest(name, known)}"


def hyper(
    default: Any = dataclasses.MISSING,
    *,
    low: float = 0.0,
    high: float = np.inf,
    tune: bool | tuple[float, ...] = False,
    role: str = "",
) -> Any:
    """A traced hyperparameter; what is known of it lives in the field's metadata and only there.

    Args:
        default: its value, none by default.
        low, high: its range.
        tune: whether `compare` tries several values of it: those of `Config.lr`, or these.
        role: "world" of what is never chosen on validation data, such as a budget of privacy.

    Example:
        >>> from jaxfl.engine.fields import hyper
        >>> field = hyper(0.9, high=1.0)
        >>> field.default, field.metadata["high"]
        (0.9, 1.0)
    """
    about = {"low": low, "high": high, "tune": tune, "role": role}
    return struct.field(default=default, metadata=about)


def count(default: int, *, low: int = 1) -> Any:
    """A static count: it sets a shape or a trip count, one program per value.

    Example:
        >>> algorithms.FedAvg(lr=0.1, steps=5).steps
        5
        >>> jaxfl.grid(algorithms.FedAvg(lr=0.1, steps=0))
        Traceback (most recent call last):
            ...
        ValueError: FedAvg.steps must be in [1, inf], got 0; for example `FedAvg(steps=1)`
    """
    return struct.field(pytree_node=False, default=default, metadata={"low": low})


def choice(*names: str) -> Any:
    """A static name, the first by default: one program per value.

    Example:
        >>> jaxfl.grid(algorithms.DSGD(lr=0.1, order="cta")).order
        'cta'
    """
    return struct.field(pytree_node=False, default=names[0], metadata={"names": names})


def check_ranges(alg: Any, *, single: bool = False) -> None:
    """Raises ValueError for a hyperparameter out of its range, of components too; tracers pass.

    Args:
        alg: an algorithm, a network, a component.
        single: of one run, where a hyperparameter is one number, also while it is traced.
    """
    checks.own(alg)
    for field in dataclasses.fields(alg):
        value = getattr(alg, field.name)
        if _component(value):
            drawn = type(value) is getattr(alg, "kind", None)  # nets, stacked over rounds
            check_ranges(value, single=single and not drawn)
            continue
        if value is None:  # off
            continue
        if _traced(field):
            checks.given(f"{_name(alg)}.{field.name}", value)
        names = field.metadata.get("names")
        if names and value not in names:
            raise ValueError(
                f"{_name(alg)}.{field.name} must be one of {names}, got {value!r}; for example "
                f"`{_name(alg)}({field.name}={names[0]!r})`"
            )
        if "low" not in field.metadata:
            continue
        if single and _traced(field):
            checks.number(
                f"{_name(alg)}.{field.name}", value, many=field.metadata.get("many", False)
            )
        if not _concrete(value):
            continue
        low, high = field.metadata["low"], field.metadata.get("high", np.inf)
        if not _traced(field) and not isinstance(value, int | np.integer):
            raise ValueError(
                f"{_name(alg)}.{field.name} must be an integer, got {value!r}; for example "
                f"`{_name(alg)}({field.name}={max(low, 1)})`"
            )
        array = np.asarray(value, float)
        if not ((array >= low) & (array <= high)).all():
            bad = array[~((array >= low) & (array <= high))].ravel()[0]
            fit = max(low, min(high, 0.1)) if _traced(field) else low
            raise ValueError(
                f"{_name(alg)}.{field.name} must be in [{low}, {high}], got {bad:g}; for example "
                f"`{_name(alg)}({field.name}={fit})`"
            )
