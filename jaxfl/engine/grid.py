"""Many settings of one algorithm: grids for `vmap`, schedules over rounds."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.engine.fields import _component, _name, _traced, _unknown, check_ranges
from jaxfl.types import Scalar, shown


def grid(alg: Any, **values: Any) -> Any:
    """Every combination of hyperparameters, stacked: `jax.vmap(run)(grid(FedProx, lr=[...]))`.

    The last name varies fastest. Every traced leaf, of components too, gets the leading axis, so
    that `jax.vmap` maps them all. Ranges are checked here: inside `vmap` nothing is left to check.

    Args:
        alg: an algorithm class, or an instance whose other fields are kept.
        values: for traced fields, one number or a list of them; for static fields, one value.

    Returns:
        The algorithm with leaves `[product of lengths, ...]`.

    Raises:
        ValueError: an unknown field (with the nearest), a list for a static field, values out of
            range.

    Example:
        >>> sweep = jaxfl.grid(algorithms.FedProx, lr=[0.1, 1.0], mu=[0.0, 0.01, 0.1])
        >>> print(sweep.lr, sweep.mu)
        [0.1 0.1 0.1 1.  1.  1. ] [0.   0.01 0.1  0.   0.01 0.1 ]
    """
    if not dataclasses.is_dataclass(alg):
        raise ValueError(
            f"alg must be an algorithm or its class, got {alg!r}; for example "
            "`grid(FedAdam(lr=0.1), lr=[0.1, 0.2])`"
        )
    fields = {f.name: f for f in dataclasses.fields(alg)}
    for name in values:
        if name not in fields:
            raise ValueError(_unknown(_name(alg), name, list(fields)))
    static = {k: v for k, v in values.items() if not _traced(fields[k]) or _component(v)}
    for name, value in static.items():
        if isinstance(value, list | tuple | np.ndarray):
            raise ValueError(
                f"{name} is static: it sets a shape or a trip count, one program per value. Run "
                f"one grid for each: `for {name} in {list(value)}: ...`"
            )
    lists = {k: np.atleast_1d(np.asarray(v)) for k, v in values.items() if k not in static}
    for name, value in lists.items():
        if value.size == 0 or not np.issubdtype(value.dtype, np.number):
            raise ValueError(
                f"{name} must be a number or a list of them, got {values[name]!r}; for example "
                f"`{name}=[0.1, 0.2]`"
            )
    product = list(itertools.product(*lists.values()))
    columns = dict(zip(lists, zip(*product, strict=True), strict=True)) if lists else {}
    stacked = {k: jnp.asarray(v, jnp.result_type(float)) for k, v in columns.items()}
    new = {**static, **stacked}
    alg = alg(**new) if isinstance(alg, type) else dataclasses.replace(alg, **new)
    check_ranges(alg)
    size = len(product)
    return jax.tree.map(
        lambda a: (
            jnp.broadcast_to(jnp.asarray(a, jnp.result_type(float)), (size, *jnp.shape(a)))
            if jnp.ndim(a) == 0
            else jnp.asarray(a)
        ),
        alg,
    )


def scaled(**schedules: Any) -> Callable[[Any, Scalar], Any]:
    """A schedule for `simulate` that multiplies hyperparameters by functions of the round.

    Args:
        schedules: by field, such as `lr=optax.cosine_decay_schedule(1.0, 500)`; any optax schedule
            is such a function.

    Returns:
        `schedule(alg, t) -> alg`.

    Example:
        >>> import optax
        >>> from jaxfl.engine.grid import scaled
        >>> schedule = scaled(lr=optax.linear_schedule(1.0, 0.0, 10))
        >>> float(schedule(algorithms.FedAvg(lr=2.0), 5).lr)
        1.0
    """

    for name, f in schedules.items():
        if not callable(f):
            raise ValueError(
                f"{name} must be a function of the round, got {shown(f)}; for example "
                f"`scaled({name}=optax.cosine_decay_schedule(1.0, rounds))`"
            )

    def schedule(alg, t):
        fields = {f.name: f for f in dataclasses.fields(alg)}
        for name in schedules:
            if name not in fields:
                raise ValueError(_unknown(_name(alg), name, [*fields]))
            if not _traced(fields[name]) or _component(getattr(alg, name)):
                raise ValueError(
                    f"{_name(alg)}.{name} is no traced number, and cannot change with the round; "
                    "scale one that is: `scaled(lr=...)`"
                )
        return alg.replace(**{name: getattr(alg, name) * f(t) for name, f in schedules.items()})

    return schedule
