"""A model is a pair of functions; here are the record and the adapters that make one."""

import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import InvalidRngError

from jaxfl.types import Key, Params

STATE = (
    "module: expected a module whose only variables are parameters, got {kinds}. A running "
    "statistic is neither a parameter nor a gradient, so no algorithm would average or send it: "
    "BatchNorm trains on batch statistics and keeps no state, or is refused; GroupNorm is the "
    "default. Use {fix}."
)

DRAWS = (
    "key: expected a random key, because {name} draws at random in training, got None. "
    "Use model.apply(params, x, key, train=True)."
)


@dataclass(frozen=True)
class Model:
    """A model: a frozen, hashable pair of functions (not a pytree), static wherever it is used.

    Models built twice the same way are equal, so that nothing compiles twice.

    Args:
        name: what tables and files call it.
        init: `init(key) -> params`, a nested dict of arrays.
        apply: `apply(params, x, key=None, train=False) -> outputs` [B, ...]; `key` draws what
            training draws at random (dropout), `train` turns it on.

    Example:
        >>> model = models.logistic(4, 3)
        >>> model.name, model == models.logistic(4, 3)
        ('logistic', True)
    """

    name: str
    init: Callable[..., Params]
    apply: Callable[..., Any]

    @property
    def size(self) -> int:
        """The number of parameters."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return sum(prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def from_functions(
    init: Callable[..., Params], apply: Callable[..., Any], name: str = "functions"
) -> Model:
    """Make a model of any two functions.

    Args:
        init: `init(key) -> params`.
        apply: `apply(params, x)`, or with any of the further arguments `key` and `train`.
        name: what tables and files call it.

    Raises:
        TypeError: if `apply` needs an argument other than `key` and `train`.

    Example:
        >>> linear = lambda params, x: x @ params
        >>> model = models.from_functions(lambda key: jnp.zeros((4, 3)), linear)
        >>> model.apply(model.init(jax.random.key(0)), jnp.ones((2, 4))).shape
        (2, 3)
    """
    signature = inspect.signature(apply)
    names = set(list(signature.parameters)[2:]) & {"key", "train"}
    try:
        signature.bind(None, None, **dict.fromkeys(names))
    except TypeError as error:
        raise TypeError(
            f"apply: expected (params, x), with key and train if it takes them, got {signature}. "
            "Use lambda params, x, key: apply(params, key, x)."
        ) from error
    return Model(name, init, _Function(apply, "key" in names, "train" in names))


def from_linen(module: nn.Module, example: Any, name: str | None = None) -> Model:
    """Make a model of a flax linen module; its parameters are the plain `params` collection.

    Args:
        module: an unbound module. A flag `train`, `training`, `is_training` or `deterministic` of
            its `__call__` is set by `train`; every random stream draws from `key`.
        example: a batch [B, ...] (or its `jax.ShapeDtypeStruct`), of which only the trailing shape
            and the dtype are kept.
        name: what tables and files call it; by default the module's class.

    Raises:
        ValueError: if the module keeps state, such as BatchNorm's running statistics.

    Example:
        >>> from flax import linen
        >>> model = models.from_linen(linen.Dense(3), jnp.ones((1, 4)))
        >>> model.name, model.apply(model.init(jax.random.key(0)), jnp.ones((2, 4))).shape
        ('Dense', (2, 3))
    """
    init = _LinenInit(module, tuple(example.shape[1:]), str(example.dtype))
    kinds = jax.eval_shape(init.variables, jax.random.key(0)).keys() - {"params"}
    if kinds:
        fix = "nn.GroupNorm(num_groups=...) in place of nn.BatchNorm(...)"
        raise ValueError(STATE.format(kinds=f"also {sorted(kinds)}", fix=fix))
    return Model(name or type(module).__name__, init, _LinenApply(module))


def from_nnx(module: Any, *args: Any, name: str | None = None, **options: Any) -> Model:
    """Make a model of a flax nnx module; its parameters are the pure dict of its `nnx.Param`s.

    Args:
        module: a module's class or function, called `module(*args, rngs=nnx.Rngs(key), **options)`
            by `init(key)`; or a module, whose present parameters are then the start for every key.
        args: passed on; hashable (tuples, not lists), so that equal models are equal.
        name: what tables and files call it; by default the module's class.
        options: passed on by name, hashable too.

    Raises:
        ValueError: if the module keeps state, such as BatchNorm's running statistics.
        TypeError: if an argument cannot be hashed.

    Example:
        >>> from flax import nnx
        >>> model = models.from_nnx(nnx.Linear, 4, 3)
        >>> model.name, model.apply(model.init(jax.random.key(0)), jnp.ones((2, 4))).shape
        ('Linear', (2, 3))
    """
    from flax import nnx

    given = tuple(sorted(options.items()))
    try:
        hash((args, given))
    except TypeError as error:
        raise TypeError(
            f"args, options: expected hashable values, got {args}, {options}. "
            "Use a tuple in place of a list."
        ) from error
    if isinstance(module, nnx.Module):
        label, build = type(module).__name__, _Build(_Same(module), args, given)
    else:
        label, build = getattr(module, "__name__", "nnx"), _Build(module, args, given)
    *_, others = _parts(build)
    kinds = sorted({type(leaf).__name__ for _, leaf in nnx.to_flat_state(others)})
    if kinds:
        fix = "nnx.GroupNorm(features, num_groups=..., rngs=rngs) in place of nnx.BatchNorm(...)"
        raise ValueError(STATE.format(kinds=f"also {kinds}", fix=fix))
    return Model(name or label, _NnxInit(build), _NnxApply(build))


def _linen(name: str, module: nn.Module, shape: tuple[int, ...], dtype: str = "float32") -> Model:
    return Model(name, _LinenInit(module, shape, dtype), _LinenApply(module))


@dataclass(frozen=True)
class _Function:
    function: Callable[..., Any]
    key: bool
    train: bool

    def __call__(self, params: Params, x: Any, key: Key | None = None, train: bool = False) -> Any:
        options = ({"key": key} if self.key else {}) | ({"train": train} if self.train else {})
        return self.function(params, x, **options)


@dataclass(frozen=True)
class _LinenInit:
    module: nn.Module
    shape: tuple[int, ...]
    dtype: str

    def variables(self, key: Key) -> Any:
        example = jax.ShapeDtypeStruct((1, *self.shape), self.dtype)
        return self.module.lazy_init(key, example, **_flags(self.module, train=False))

    def __call__(self, key: Key) -> Params:
        return self.variables(key)["params"]


@dataclass(frozen=True)
class _LinenApply:
    module: nn.Module

    def __call__(self, params: Params, x: Any, key: Key | None = None, train: bool = False) -> Any:
        flags = _flags(self.module, train)
        try:  # one key serves all streams: flax falls back to it
            x = jax.tree.map(jnp.asarray, x)
            return self.module.apply({"params": params}, x, rngs=key, **flags)
        except InvalidRngError as error:
            raise ValueError(DRAWS.format(name=type(self.module).__name__)) from error


def _flags(module: nn.Module, train: bool) -> dict[str, Any]:
    named = inspect.signature(type(module).__call__).parameters
    flags = {"train": train, "training": train, "is_training": train, "deterministic": not train}
    return {name: value for name, value in flags.items() if name in named}


@dataclass(frozen=True, eq=False)
class _Same:
    """A module that exists already; equal to itself only."""

    module: Any

    def __call__(self, rngs: Any) -> Any:
        return self.module


@dataclass(frozen=True)
class _Build:
    module: Callable[..., Any]
    args: tuple[Hashable, ...]
    options: tuple[tuple[str, Hashable], ...]

    def __call__(self, key: Key) -> Any:
        from flax import nnx

        return self.module(*self.args, rngs=nnx.Rngs(key), **dict(self.options))


@cache
def _parts(build: _Build) -> Any:
    """The structure, and by shape only the parameters, the random streams and the rest."""
    from flax import nnx

    if isinstance(build.module, _Same):
        module = build.module.module
    else:
        module = nnx.eval_shape(lambda: build(jax.random.key(0)))
    return nnx.split(module, nnx.Param, nnx.RngState, ...)


@dataclass(frozen=True)
class _NnxInit:
    build: _Build

    def __call__(self, key: Key) -> Params:
        from flax import nnx

        return nnx.to_pure_dict(nnx.state(self.build(key), nnx.Param))


@dataclass(frozen=True)
class _NnxApply:
    build: _Build

    def __call__(self, params: Params, x: Any, key: Key | None = None, train: bool = False) -> Any:
        from flax import nnx

        graph, weights, draws, _ = _parts(self.build)
        if train and key is None and jax.tree.leaves(draws):
            raise ValueError(DRAWS.format(name="the nnx module"))
        stream: Any = jax.random.key(0) if key is None else key
        weights, draws = jax.tree.map(lambda leaf: leaf, (weights, draws))  # copies: set below
        nnx.replace_by_pure_dict(weights, params)
        for i, (_, leaf) in enumerate(nnx.to_flat_state(draws)):  # one key per stream, counts at 0
            if isinstance(leaf, nnx.RngKey):
                leaf.set_value(jax.random.split(jax.random.fold_in(stream, i), leaf.shape))
            else:
                leaf.set_value(jnp.zeros(leaf.shape, leaf.dtype))
        module = nnx.merge(graph, weights, draws)
        (module.train if train else module.eval)()
        return module(x)
