"""Labels, targets and tokens against a model, before anything is computed with them.

An index out of range is no error to JAX: it is clamped, masked, filled, or counts from the end.
"""

from functools import lru_cache
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxfl.engine.memory import opened
from jaxfl.types import Params


def like(tree: Any) -> Any:
    """Two examples of the arrays of a tree, by shape and dtype only."""
    dtype = jax.dtypes.canonicalize_dtype
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape[1:]), dtype(a.dtype)), tree)


def outputs(model: Any, x: Any, params: Params = None) -> Any:
    """What a model makes of two examples, by shape and dtype; None if it does not take them.

    Args:
        model: a `Model`.
        x: `[N, ...]`, its inputs, or what `like` makes of them.
        params: by default those that `model.init` makes.
    """
    found = _traced(model, x, params)
    return found and found[1]


def are_labels(y: Any) -> bool:
    """Whether these are labels, hence integers, and not targets of a regression."""
    return jnp.issubdtype(y.dtype, jnp.integer)


def check_labels(y: Any, logits: Any, pad: int | None = None, rows: Any = None) -> None:
    """Raises ValueError unless y are labels of these logits.

    Args:
        y: `[N]` or `[N, T]`.
        logits: of some examples, `[B, C]` or `[B, T, C]`; only the shape counts.
        pad: the label that marks padding, if any does.
        rows: what the examples are called in messages.
    """
    if y.dtype.kind not in "iub":
        raise ValueError(
            f"data['y'] must be integers, which labels are, got {y.dtype}; cast whole numbers, "
            "`y.astype(int)`, or learn targets: `models.squared_error(model)`"
        )
    classes = logits.shape[-1]
    y = np.asarray(y)
    if not y.size:
        return
    low, high = int(y.min()), int(y.max())
    if low >= (-1 if pad == -1 else 0) and high < classes:
        return
    bad = ((y < 0) | (y >= classes)) & (True if pad is None else y != pad)
    if not bad.any():
        return
    at = tuple(np.argwhere(bad)[0])
    row = at[0] if rows is None else rows[at[0]]
    fix = "`np.unique(y, return_inverse=True)[1]` numbers them 0, 1, ..."
    if classes == 1:
        fix = "targets of a regression are floats: `y.astype(np.float32)`"
    elif low < 0 and logits.ndim > 2:
        fix = f"say what padding is, `pad={low}`, or renumber: `np.unique(y, return_inverse=True)`"
    elif low < 0:
        fix += "; if one means that there is no label, leave those examples out: `rows = y >= 0`"
    s = "" if classes == 1 else "s"
    raise ValueError(
        f"data['y'] holds labels {low} to {high}, and the model has {classes} output{s}, for "
        f"labels 0 to {classes - 1} (row {row} has {y[at]}); {fix}"
    )


def check_scored(y: Any, found: Any, pad: int | None = None, rows: Any = None) -> None:
    """Raises ValueError unless y, labels or targets, can be compared with these outputs.

    Args:
        y: `[N, ...]`; integers are labels, floats are targets.
        found: outputs of some examples; only the shape counts.
        pad, rows: as for `check_labels`.
    """
    one, size = y.shape[1:], prod(found.shape[1:])
    if are_labels(y):
        if one != found.shape[1:-1]:
            fix = "targets of a regression are floats: `y.astype(np.float32)`"
            raise ValueError(
                f"data['y'] are labels [N, {', '.join(map(str, one))}], which outputs "
                f"{found.shape[1:]} per example do not have; {fix}"
            )
        check_labels(y, found, pad, rows)
    elif prod(one) != size or y.dtype.kind == "b":
        raise ValueError(
            f"data['y'] of {y.dtype} must be targets, {size} per example as the model's outputs, "
            f"got {prod(one)}; labels are integers: `y.astype(int)`"
        )


def check_tokens(model: Any, x: Any, params: Params = None) -> None:
    """Raises ValueError if the model looks up in a table what is not there, such as a token id.

    The lookups are found in the program of the model, with the least and the largest number of
    every column of x in place of x. One that says itself what is beyond the table (`mode="clip"`,
    a `fill_value`) is no fault.

    Args:
        model: a `Model`.
        x: `[N, ...]`, its inputs.
        params: by default those that `model.init` makes.
    """
    leaves = jax.tree.leaves(x)
    whole = [a.dtype.kind in "iu" and len(a) > 0 for a in leaves]
    if not any(whole):
        return
    found = _traced(model, x, params)
    if found is None or not found[2]:
        return
    ends = [
        np.stack([np.asarray(a).min(0), np.asarray(a).max(0)]) if w else None
        for a, w in zip(leaves, whole, strict=True)
    ]
    with jax.ensure_compile_time_eval():
        _follow(found[0], [*[None] * found[3], *ends], {}, ends)


def _traced(model, x, params):
    """The program of two examples, its output, whether it looks anything up, the parameters."""
    try:
        params = _start(model) if params is None else params
        shape = lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a))
        leaves, tree = jax.tree.flatten((jax.tree.map(shape, params), like(x)))
        return _trace(model, tree, tuple(leaves))
    except Exception:  # whatever the user's model raises: `simulate` says so with its own params
        return None


@lru_cache(64)
def _start(model):
    return jax.eval_shape(model.init, jax.random.key(0))


@lru_cache(64)
def _trace(model, tree, leaves):
    params, x = jax.tree.unflatten(tree, leaves)
    program, out = jax.make_jaxpr(model.apply, return_shape=True)(params, x)
    lookups = any(eqn.primitive.name == "gather" for eqn in equations(program))
    return (
        program,
        jax.ShapeDtypeStruct(out.shape, out.dtype),
        lookups,
        len(jax.tree.leaves(params)),
    )


def equations(program: Any) -> Any:
    """Every equation of a jaxpr, of those within it too."""
    for eqn in opened(program).eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from equations(inner)


def _is_program(value):
    return hasattr(opened(value), "eqns")


def _follow(program, args, shifted, ends):
    """Values of the outputs of a jaxpr as far as they follow from known integers, else None.

    Raises ValueError at a lookup in what is not known (parameters) of an index out of range.
    `shifted` has the sums of an array and a number, by which JAX lets indices count from the end.
    """
    jaxpr = opened(program)
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, getattr(program, "consts", ())))
    values |= zip(jaxpr.invars, args, strict=True)
    read = lambda v: v.val if isinstance(v, Literal) else values.get(v)
    for eqn in jaxpr.eqns:
        given, name, out = [read(v) for v in eqn.invars], eqn.primitive.name, None
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if inner is not None and name != "scan" and _called(eqn, opened(inner)):
            out = _follow(inner, given, shifted, ends)
        elif name == "gather" and given[0] is None and given[1] is not None:
            _look_up(eqn, given[1], ends)
        elif any(a is None for a in given) or not _whole(eqn.outvars[0].aval):
            pass
        elif name == "select_n" and shifted.get(id(given[-1]), (0,))[0] is given[1]:
            out = [given[1]]  # as it was
        else:
            out = _evaluated(eqn, given)
            if out is not None and name == "add" and eqn.invars[1].aval.ndim == 0:
                shifted[id(out[0])] = given[0], out[0]  # alive, else another gets its id
        if out is not None:
            values |= zip(eqn.outvars, out, strict=True)
    return [read(v) for v in jaxpr.outvars]


def _whole(aval):
    dtype = getattr(aval, "dtype", float)
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, bool)


def _called(eqn, inner):
    return len(inner.invars) == len(eqn.invars) and len(inner.outvars) == len(eqn.outvars)


def _evaluated(eqn, given):
    try:
        out = eqn.primitive.bind(*given, **eqn.params)
    except Exception:  # not all primitives can be called with numbers
        return None
    return out if eqn.primitive.multiple_results else [out]


def _look_up(eqn, index, ends):
    filled, numbers = eqn.params["fill_value"], eqn.params["dimension_numbers"]
    clipped = "CLIP" in str(eqn.params["mode"])
    if filled is not None and not np.isnan(filled):
        return
    index, table = np.asarray(index), eqn.invars[0].aval.shape
    for k, axis in enumerate(numbers.start_index_map):
        if clipped and axis in numbers.collapsed_slice_dims:  # kept where `vmap` clips `e[i]`
            continue
        last = table[axis] - eqn.params["slice_sizes"][axis]
        bad = (index[..., k] < 0) | (index[..., k] > last)
        if not bad.any():
            continue
        wrong = int(index[..., k][bad][0])
        low = min(int(a.min()) for a in ends if a is not None)
        high = max(int(a.max()) for a in ends if a is not None)
        fix = f"give it more, such as `vocab={high + 1}`, or renumber: "
        fix += "`np.unique(x, return_inverse=True)[1]`"
        if wrong < 0:
            fix = "renumber them, `np.unique(x, return_inverse=True)[1]`, or where such a number "
            fix += "is padding that the model masks, look up another: `embed(jnp.maximum(x, 0))`"
        raise ValueError(
            f"data['x'] holds numbers {low} to {high}, and the model looks up {wrong} in a table "
            f"of {table[axis]} rows; {fix}"
        )
