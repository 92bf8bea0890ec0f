"""What an algorithm must look like: its class, its fields, its state, what a round returns.

All of it is known while a program is traced, so a program that is there already pays nothing.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.engine import marks
from jaxfl.types import Info, shown

_ORDER = jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating


def name(alg: Any) -> str:
    """The name of an algorithm, or of its class."""
    return alg.__name__ if isinstance(alg, type) else type(alg).__name__


def component(value: Any) -> bool:
    """Whether a field holds a record with fields of its own."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def own(value: Any) -> None:
    """Raises ValueError for a record of flax: `jit` may take its class for another one."""
    if hasattr(type(value), "_flax_dataclass"):
        raise ValueError(
            f"{name(value)} is a record of flax.struct, and JAX takes classes of as many fields "
            "for one another, now and then, without a word; make it with `from jaxfl import struct`"
        )


def form(alg: Any, needs: type) -> None:
    """Raises ValueError for what is no pytree of hyperparameters with `init`, `round` and `needs`.

    Args:
        alg: the algorithm.
        needs: the class of its attribute `needs`.
    """
    if isinstance(alg, type) or not (hasattr(alg, "init") and hasattr(alg, "round")):
        raise ValueError(
            f"alg must be an algorithm with its hyperparameters, got {shown(alg)}; for example "
            "`FedAvg(lr=0.1)`"
        )
    who = name(alg)
    if any(leaf is alg for leaf in jax.tree.leaves(alg)):
        raise ValueError(
            f"{who} must be a pytree, so that programs take its hyperparameters; `from jaxfl "
            "import struct`, and above the class `@struct.dataclass`"
        )
    if not isinstance(found := getattr(type(alg), "needs", None), needs | property):
        raise ValueError(
            f"{who}.needs must be a class attribute that says which nets it understands, got "
            f"{shown(found)}; for example `needs: ClassVar[Needs] = Needs(Cohort)`"
        )
    for field in dataclasses.fields(alg) if component(alg) else ():
        value = getattr(alg, field.name)
        if field.name == "needs":
            raise ValueError(
                f"{who}.needs must be an attribute of the class, not a field; write `needs: "
                "ClassVar[Needs] = Needs(Cohort)`"
            )
        if not field.metadata.get("pytree_node", True):
            _static(f"{who}.{field.name}", value)


def given(where: str, value: Any) -> None:
    """Raises ValueError where a traced field holds anything but numbers, arrays, a component."""
    bad = [a for a in jax.tree.leaves(value) if not hasattr(a, "dtype")]
    bad = [a for a in bad if not isinstance(a, bool | int | float | complex)]
    if not bad:
        return
    field, what = where.rpartition(".")[2], shown(value)
    if isinstance(value, type):
        fix = f"make one: `{field}={value.__name__}(...)`"
    elif hasattr(value, "update"):
        what, fix = (
            "an optax optimiser",
            "as the solver: `solver=components.Optax(optax.adam(1.0))`",
        )
    elif any(map(component, bad)):
        fix = "a component is a record, `from jaxfl import struct`: `@struct.dataclass`"
    elif any(map(callable, bad)):
        what = "a function"
        fix = f"what changes with the round is a factor: `schedule=scaled({field}=f)`"
    else:
        fix = f"for example `{field}=0.1`"
    raise ValueError(f"{where} must be a number, got {what}; {fix}")


def _static(where, value):
    try:
        hash(value)
    except TypeError:
        raise ValueError(
            f"{where} is static and must be hashable, got {shown(value)}; for example a tuple in "
            "place of a list: `(1, 2)`"
        ) from None


def number(where: str, value: Any, *, many: bool = False) -> None:
    """Raises ValueError where a hyperparameter is not one number.

    Args:
        where: its name.
        value: what was given, or is traced.
        many: an array is fine, too.
    """
    field, several = where.rpartition(".")[2], isinstance(value, list | tuple)
    if several and many:
        raise ValueError(
            f"{where} must be a number or an array, got a {type(value).__name__}; for example "
            f"`{field}=np.array([...])`"
        )
    if np.ndim(value) and not many:
        size = np.size(value)
        raise ValueError(
            f"{where} has {size} value{'s' * (size != 1)}, and a run takes one number; map the run "
            f"over them, with `sweep = jaxfl.grid(alg, {field}=[...])`: `jax.vmap(run)(sweep)`"
        )


def state(alg: Any, made: Any, n: int) -> None:
    """Raises ValueError for a first state without a model, or with rows that are not all clients'.

    Args:
        alg: the algorithm.
        made: what its `init` returned.
        n: number of clients.
    """
    if not hasattr(marks.plain(made), "params"):
        raise ValueError(
            f"{name(alg)}.init must return a state whose `params` is the model, got "
            f"{type(made).__name__}; for example `return self.State(params)` with "
            "`class State(NamedTuple): params: Params`"
        )
    for path, a in jax.tree.leaves_with_path(made, is_leaf=marks.is_rows):
        if marks.is_rows(a):
            bad = [jnp.shape(leaf) for leaf in jax.tree.leaves(a) if jnp.shape(leaf)[:1] != (n,)]
            if bad:
                raise ValueError(
                    f"state{jax.tree_util.keystr(path)} of {name(alg)} must have one row for each "
                    f"of {n} clients, got shape {bad[0]}; use `clients.rows(x)` for n copies of x"
                )


def returned(alg: Any, out: Any, before: Any, net: Any) -> tuple[Any, Info]:
    """What a round returned, its state in the dtypes of the one before.

    Args:
        alg: the algorithm.
        out: what its `round` returned.
        before: the state it was given.
        net: the net it was given.

    Raises:
        ValueError: anything but a state like the one before and an `Info` of numbers.
    """
    who = f"{name(alg)}.round"
    if type(out) is not tuple or len(out) != 2 or not isinstance(out[1], Info):
        kinds = [type(a).__name__ for a in out] if type(out) is tuple else type(out).__name__
        raise ValueError(
            f"{who} must return the new state and an Info, got {kinds}; end it with "
            "`return self.State(...), net.info(work, up=..., down=...)`"
        )
    new, info = out
    _info(who, info, net)
    (was, tree), (now, other) = (jax.tree.flatten_with_path(a) for a in (before, new))
    if tree != other:
        was, now = ({jax.tree_util.keystr(path) for path, _ in a} for a in (was, now))
        gone, more = sorted(was - now), sorted(now - was)
        said = [f"state{a} is missing" for a in gone] + [f"state{a} is new" for a in more]
        raise ValueError(
            f"{who} must return a state of one structure, {'; '.join(said[:4]) or 'got another'}: "
            f"it got {shown(tree)}, returned {shown(other)}; keep it: `state._replace(params=x)`"
        )
    return tree.unflatten([_kept(who, *a, b) for a, (_, b) in zip(was, now, strict=True)]), info


def _kept(who, path, old, new):
    where, new = f"state{jax.tree_util.keystr(path)}", jnp.asarray(new)
    if new.shape != old.shape:
        raise ValueError(
            f"{who} must keep the shape of {where}: it was {old.shape}, is {new.shape}; let `init` "
            "return what rounds return, such as `jax.tree.map(jnp.zeros_like, params)`"
        )
    if new.dtype == old.dtype:
        return new
    if _kind(old) < _kind(new) or _kind(new) < 0:
        raise ValueError(
            f"{who} must keep the kind of {where}: it was {old.dtype}, is {new.dtype}, and would "
            f"be cast back; make `init` return {new.dtype}, or round it: `jnp.rint(a).astype(int)`"
        )
    return new.astype(old.dtype)


def _kind(a):
    """Booleans, integers, floats and complex numbers in this order, -1 for all else."""
    return next((i for i, kind in enumerate(_ORDER) if jnp.issubdtype(a.dtype, kind)), -1)


def _info(who, info, net):
    """A loss that is one number, costs that are one or one per slot."""
    for field, value in zip(Info._fields[:4], info[:4]):
        allowed = ((),) if field == "loss" else ((), net.here.shape)
        if (shape := jnp.shape(value)) not in allowed:
            raise ValueError(
                f"{who} must report {field} as one number{' or one per slot' * (field != 'loss')}, "
                f"{' or '.join(map(str, allowed))}, got shape {shape}; use `net.info(work, "
                "up=comm.bits(x), down=comm.bits(x))`"
            )
