"""A model is a pair of functions; here are the record and the adapters that make one."""

import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields
from functools import cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.errors import InvalidRngError

from jaxfl.models.labels import equations
from jaxfl.types import Key, Params

STATE = (
    "module: expected a module whose only variables are parameters, got {kinds}. A running "
    "statistic is neither a parameter nor a gradient, so no algorithm would average or send it: "
    "BatchNorm trains on batch statistics and keeps no state, or is refused; GroupNorm is the "
    "default. Use {fix}; a constant is a plain array, self.mean = jnp.zeros(4)."
)

STILL = (
    "module: expected {name} to draw nothing at random in evaluation, but it does. Use "
    "nn.Dropout(rate)(x, deterministic=not train), with train of `__call__(self, x, train=False)`."
)

DRAWS = (
    "key: expected a random key, because {name} draws at random in training, got None. "
    "Use model.apply(params, x, key, train=True)."
)


# Flags that `train` sets, with what they are in training.
_TRAIN = ("train", "training", "is_train", "is_training", "train_mode")
_STILL = ("deterministic", "inference", "eval", "evaluate", "eval_mode", "is_eval")
_STILL += ("test", "testing", "test_mode", "is_test")
FLAGS: dict[str, bool] = {name: name in _TRAIN for name in _TRAIN + _STILL}


def _untold(params: Params, x: Any, key: Key | None = None, train: bool = False) -> Any:
    raise ValueError(
        "the model does not say what its features are: call its last layer `head`, or name it, "
        "`models.from_linen(module, example, head='fc2')`, or `models.from_functions(init, apply, "
        "features=f)`"
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
        features: the same, for what the last layer gets, [B, ..., h].

    Raises:
        ValueError: from `features`, of a model that does not say what they are.

    Example:
        >>> model = models.logistic(4, 3)
        >>> model.name, model == models.logistic(4, 3)
        ('logistic', True)
        >>> model = models.mlp(4, 3, hidden=(16,))
        >>> model.features(model.init(jax.random.key(0)), jnp.ones((2, 4))).shape
        (2, 16)
    """

    name: str
    init: Callable[..., Params]
    apply: Callable[..., Any]
    features: Callable[..., Any] = _untold

    @property
    def size(self) -> int:
        """The number of parameters."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return sum(prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def from_functions(
    init: Callable[..., Params],
    apply: Callable[..., Any],
    name: str = "functions",
    features: Callable[..., Any] | None = None,
) -> Model:
    """Make a model of any two functions.

    Args:
        init: `init(key) -> params`.
        apply: `apply(params, x)`, or with any of the further arguments `key` and `train`.
        name: what tables and files call it.
        features: what its last layer gets, with the arguments of `apply`.

    Raises:
        TypeError: if `apply` or `features` needs an argument other than `key` and `train`.

    Example:
        >>> linear = lambda params, x: x @ params
        >>> model = models.from_functions(lambda key: jnp.zeros((4, 3)), linear)
        >>> model.apply(model.init(jax.random.key(0)), jnp.ones((2, 4))).shape
        (2, 3)
    """
    inner = _untold if features is None else _function("features", features)
    return Model(name, init, _function("apply", apply), inner)


def _function(name, function):
    signature = inspect.signature(function)
    names = set(list(signature.parameters)[2:]) & {"key", "train"}
    try:
        signature.bind(None, None, **dict.fromkeys(names))
    except TypeError as error:
        raise TypeError(
            f"{name}: expected (params, x), with key and train if it takes them, got {signature}. "
            f"Use lambda params, x, key: {name}(params, key, x)."
        ) from error
    return _Function(function, "key" in names, "train" in names)


def from_linen(
    module: nn.Module, example: Any, name: str | None = None, head: str = "head"
) -> Model:
    """Make a model of a flax linen module; its parameters are the plain `params` collection.

    Args:
        module: an unbound module, hashable (tuples, not lists, in its fields). A flag of its
            `__call__`, or a field, whose name is in `FLAGS` (`train`, `is_training`,
            `deterministic`, `inference`, ...) is set by `train`; every random stream draws from
            `key`.
        example: a batch [B, ...] (or its `jax.ShapeDtypeStruct`), of which only the trailing shape
            and the dtype are kept.
        name: what tables and files call it; by default the module's class.
        head: the layer whose input are the model's features, if there is one of this name.

    Raises:
        ValueError: if the module keeps state, such as BatchNorm's running statistics; if its
            dropout is off in training or on in evaluation, which is tried here.
        TypeError: if it cannot be hashed, or its `__call__` needs other arguments.

    Example:
        >>> from flax import linen
        >>> model = models.from_linen(linen.Dense(3), jnp.ones((1, 4)))
        >>> model.name, model.apply(model.init(jax.random.key(0)), jnp.ones((2, 4))).shape
        ('Dense', (2, 3))
    """
    if not hasattr(example, "dtype"):
        raise TypeError(
            f"example: expected a batch [B, ...], got a {type(example).__name__}. "
            "Use jnp.ones((1, 4))."
        )
    _check_fields(module)
    _check_call(type(module))
    dtype = jax.dtypes.canonicalize_dtype(example.dtype)
    init = _LinenInit(module, tuple(example.shape[1:]), str(dtype))
    kinds = jax.eval_shape(init.variables, jax.random.key(0)).keys() - {"params"}
    if kinds:
        fix = "nn.GroupNorm(num_groups=...) in place of nn.BatchNorm(...)"
        raise ValueError(STATE.format(kinds=f"also {sorted(kinds)}", fix=fix))
    apply, key = _LinenApply(module), jax.random.key(0)
    args = jax.eval_shape(init, key), jax.ShapeDtypeStruct((1, *init.shape), dtype)
    dropouts = []

    def noted(call, args, options, context):
        if _drops(context.module, nn.Dropout) and context.method_name == "__call__":
            dropouts.append(type(context.module).__name__)
        return call(*args, **options)

    def run(train, **more):
        with nn.intercept_methods(noted):
            return _draws(partial(apply.run, train=train, more=more), *args, key)

    try:
        jax.eval_shape(apply, *args)
    except ValueError as error:
        if not isinstance(error.__cause__, InvalidRngError):
            raise
        raise ValueError(STILL.format(name=type(module).__name__)) from error
    _check_dropout(type(module), run, dropouts)
    return Model(name or type(module).__name__, init, apply, _Features(apply, head))


def from_nnx(
    module: Any, *args: Any, name: str | None = None, head: str = "head", **options: Any
) -> Model:
    """Make a model of a flax nnx module; its parameters are the pure dict of its `nnx.Param`s.

    Args:
        module: a module's class or function, called `module(*args, rngs=nnx.Rngs(key), **options)`
            by `init(key)`; or a module, whose present parameters are then the start for every key.
            Its arrays that are no variables are constants. Flags are those of `from_linen`.
        args: passed on; hashable (tuples, not lists), so that equal models are equal.
        name: what tables and files call it; by default the module's class.
        head: the attribute whose input are the model's features, if there is one of this name.
        options: passed on by name, hashable too.

    Raises:
        ValueError: if the module keeps state, such as BatchNorm's running statistics, or constants
            that differ with the key; from the model's first call, if its dropout is off in training
            or on in evaluation, which is tried there.
        TypeError: if an argument cannot be hashed, or its `__call__` needs others than x.

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
    *_, others, kind = _parts(build)
    _check_call(kind)
    leaves = [leaf for _, leaf in nnx.to_flat_state(others)]
    kinds = sorted({type(leaf).__name__ for leaf in leaves if isinstance(leaf, nnx.Variable)})
    if kinds:
        fix = "nnx.GroupNorm(features, num_groups=..., rngs=rngs) in place of nnx.BatchNorm(...)"
        raise ValueError(STATE.format(kinds=f"also {kinds}", fix=fix))
    apply = _NnxApply(build)
    return Model(name or label, _NnxInit(build), apply, _Features(apply, head))


def _linen(name: str, module: nn.Module, shape: tuple[int, ...], dtype: str = "float32") -> Model:
    apply = _LinenApply(module)
    return Model(name, _LinenInit(module, shape, dtype), apply, _Features(apply, "head"))


@dataclass(frozen=True)
class _Function:
    function: Callable[..., Any]
    key: bool
    train: bool

    def __call__(self, params: Params, x: Any, key: Key | None = None, train: bool = False) -> Any:
        options = ({"key": key} if self.key else {}) | ({"train": train} if self.train else {})
        return self.function(params, x, **options)


@dataclass(frozen=True)
class _Features:
    """What a layer gets, while the model runs; XLA drops what comes after it."""

    apply: Any
    head: str

    def __call__(self, params: Params, x: Any, key: Key | None = None, train: bool = False) -> Any:
        seen: list[Any] = []
        self.apply.watched(params, x, key, train, self.head, seen.append)
        return seen[0] if seen else _untold(params, x)


@dataclass(frozen=True)
class _LinenInit:
    module: nn.Module
    shape: tuple[int, ...]
    dtype: str

    def variables(self, key: Key) -> Any:
        example = jax.ShapeDtypeStruct((1, *self.shape), self.dtype)
        module, flags = _flagged(self.module, train=False)
        return module.lazy_init(key, example, **flags)

    def __call__(self, key: Key) -> Params:
        return self.variables(key)["params"]


@dataclass(frozen=True)
class _LinenApply:
    module: nn.Module

    def __call__(self, params: Params, x: Any, key: Key | None = None, train: bool = False) -> Any:
        return self.run(params, x, key, train, {})

    def watched(self, params: Params, x: Any, key: Any, train: bool, head: str, note: Any) -> None:
        """A call in which a layer notes what it gets."""

        def noted(call, args, options, context):
            if context.module.path == (head,) and context.method_name == "__call__":
                note(args[0])
            return call(*args, **options)

        with nn.intercept_methods(noted):
            self(params, x, key, train)

    def run(self, params: Params, x: Any, key: Key | None, train: bool, more: Any) -> Any:
        """With more flags."""
        module, flags = _flagged(self.module, train)
        try:  # one key serves all streams: flax falls back to it
            x = jax.tree.map(jnp.asarray, x)
            return module.apply({"params": params}, x, rngs=key, **flags, **more)
        except InvalidRngError as error:
            raise ValueError(DRAWS.format(name=type(self.module).__name__)) from error


def _flagged(module: nn.Module, train: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The module with the flags that are its fields set, and those of its call."""
    flags = _flags(type(module), train)
    names = [
        f.name for f in fields(module) if f.name in FLAGS and _is_flag(getattr(module, f.name))
    ]
    # of one that may be either, flax wants one
    own: Any = {name: None if name in flags else FLAGS[name] is train for name in names}
    return (module.clone(**own) if own else module), flags


def _flags(kind: type, train: bool) -> dict[str, bool]:
    known = inspect.signature(kind.__call__).parameters
    names = [
        n for n, p in known.items() if n in FLAGS and (p.default is p.empty or _is_flag(p.default))
    ]
    return {name: FLAGS[name] is train for name in names}


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _check_call(kind: type) -> None:
    signature = inspect.signature(kind.__call__)
    try:
        signature.bind(None, None, **_flags(kind, False))
    except TypeError as error:
        raise TypeError(
            f"module: expected `__call__(self, x)`, with flags that train sets if it has any, got "
            f"{kind.__name__}.__call__{signature}. Use a default, or a name that train sets: "
            f"{', '.join(FLAGS)}."
        ) from error


def _check_fields(module: Any, name: str = "module") -> None:
    """Raises TypeError for a field that cannot be hashed."""
    for f in fields(module):
        value, where = getattr(module, f.name, None), f"{name}.{f.name}"
        if f.name in ("parent", "name"):
            continue
        for part in value if isinstance(value, tuple) else [value]:
            if isinstance(part, nn.Module):
                _check_fields(part, where)
        try:
            hash(value)
        except TypeError as error:
            kind = "array" if hasattr(value, "dtype") else type(value).__name__
            fix = {
                "list": "a tuple in place of a list",
                "dict": "flax.core.freeze(...) of it",
                "array": "a tuple of its numbers, and jnp.array of that in __call__",
            }
            raise TypeError(
                f"{where}: expected something hashable, so that equal models are equal, got "
                f"{kind}. Use {fix.get(kind, 'a tuple')}."
            ) from error


def _draws(f: Callable[..., Any], *args: Any) -> int:
    """How many arrays a function draws at random."""
    program = jax.make_jaxpr(f)(*args)
    return sum(eqn.primitive.name in ("random_bits", "random_gamma") for eqn in equations(program))


def _drops(module: Any, dropout: type) -> bool:
    """Whether a module, of class `dropout` or with a rate of it, drops anything out."""
    rate = getattr(module, "rate" if isinstance(module, dropout) else "dropout_rate", 0)
    return isinstance(rate, int | float) and 0 < rate < 1


def _check_dropout(kind: type, run: Callable[..., int], dropouts: list[str]) -> None:
    """Raises ValueError if `run(train, **flags)`, the number of draws, says dropout is off."""
    drawn, called = run(True), sorted({*dropouts})
    known = inspect.signature(kind.__call__).parameters
    others = [n for n, p in [*known.items()][2:] if n not in FLAGS and _is_flag(p.default)]
    for name in others:
        for value in (True, False):
            try:
                more = run(True, **{name: value})
            except Exception:  # whatever the module raises for what it was never called with
                continue
            if more > drawn:
                raise ValueError(
                    f"module: expected {kind.__name__} to draw as much in training as with "
                    f"{name}={value}, but {name} is no flag that train sets, so dropout is off. "
                    f"Use another name: {', '.join(FLAGS)}."
                )
    if called and not drawn:
        raise ValueError(
            f"module: expected {called} of {kind.__name__} to draw at random in training, but no "
            "flag turns it on. Use nn.Dropout(rate)(x, deterministic=not train), with train of "
            "`__call__(self, x, train=False)`, or rate 0."
        )


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
    """The structure, parameters and random streams by shape only, the rest, and the class."""
    from flax import nnx

    same = isinstance(build.module, _Same)
    module = build.module.module if same else nnx.eval_shape(lambda: build(jax.random.key(0)))
    parts = nnx.split(module, nnx.Param, nnx.RngState, ...)
    if not same and _constants(module):  # known by shape only, or left over from the tracing
        with jax.ensure_compile_time_eval():
            one, two = (build(jax.random.key(seed)) for seed in (0, 1))
        differ = lambda a, b: not np.array_equal(a, b)
        pairs = zip(_constants(one).items(), _constants(two).values(), strict=True)
        if names := [name for (name, a), b in pairs if differ(a, b)]:
            raise ValueError(
                f"module: expected constants that are the same for every key, got {names[0]}, "
                "which is drawn. Use nnx.Param(...) to train it, or jax.random.key(0) to draw it."
            )
        parts = nnx.split(one, nnx.Param, nnx.RngState, ...)
    graph, weights, draws, others = parts
    return graph, weights, draws, others, type(module)


def _constants(module: Any) -> dict[str, Any]:
    """The arrays of a module that are no variables, by path."""
    from flax import nnx

    found = {}
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Module):
            of = {
                n: a
                for n, a in vars(node).items()
                if isinstance(a, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
            }
            found |= {".".join(map(str, (*path, name))): a for name, a in of.items()}
    return found


_TRIED: set[Any] = set()  # what was built, and draws in training only


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
        if self.build not in _TRIED:
            self._try(params, x)
            _TRIED.add(self.build)
        draws = _parts(self.build)[2]
        if train and key is None and jax.tree.leaves(draws):
            raise ValueError(DRAWS.format(name="the nnx module"))
        return self.run(params, x, key, train, {})

    def _try(self, params, x):
        from flax import nnx

        graph, weights, draws, others, kind = _parts(self.build)
        modules = [node for _, node in nnx.iter_graph(nnx.merge(graph, weights, draws, others))]
        dropouts = [type(node).__name__ for node in modules if _drops(node, nnx.Dropout)]
        key = jax.random.key(0)
        run = lambda train, **more: _draws(
            lambda params, x, key: self.run(params, x, key, train, more), params, x, key
        )
        if run(False):
            raise ValueError(STILL.format(name=kind.__name__))
        _check_dropout(kind, run, dropouts)

    def watched(self, params: Params, x: Any, key: Any, train: bool, head: str, note: Any) -> None:
        """A call in which a layer notes what it gets."""

        def noted(module):
            if (layer := getattr(module, head, None)) is not None:
                setattr(
                    module, head, lambda x, *args, **more: (note(x), layer(x, *args, **more))[1]
                )
            return module

        self(params, x, key, train)  # checked as any call
        self.run(params, x, key, train, {}, noted)

    def run(self, params: Any, x: Any, key: Any, train: bool, more: Any, noted: Any = None) -> Any:
        """With more flags."""
        from flax import nnx

        graph, weights, draws, others, kind = _parts(self.build)
        stream: Any = jax.random.key(0) if key is None else key
        weights, draws = jax.tree.map(lambda leaf: leaf, (weights, draws))  # copies: set below
        nnx.replace_by_pure_dict(weights, params)
        for i, (_, leaf) in enumerate(nnx.to_flat_state(draws)):  # one key per stream, counts at 0
            if isinstance(leaf, nnx.RngKey):
                leaf.set_value(jax.random.split(jax.random.fold_in(stream, i), leaf.shape))
            else:
                leaf.set_value(jnp.zeros(leaf.shape, leaf.dtype))
        module = nnx.merge(graph, weights, draws, others)
        (module.train if train else module.eval)()
        for _, node in nnx.iter_graph(module):
            for name in FLAGS:
                if isinstance(node, nnx.Module) and isinstance(vars(node).get(name), bool):
                    setattr(node, name, FLAGS[name] is train)
        return (noted(module) if noted else module)(x, **_flags(kind, train), **more)
