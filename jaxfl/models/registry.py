"""Models by name, sized from examples."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from math import prod
from typing import Any

import numpy as np

from jaxfl.models.dense import logistic, mlp
from jaxfl.models.factors import factors
from jaxfl.models.model import Model
from jaxfl.models.sequence import char_lstm, transformer, word_lstm
from jaxfl.models.vision import cifar_cnn, cnn1d, fedavg_cnn, lenet5, resnet18

BUILDERS = (
    logistic,
    mlp,
    fedavg_cnn,
    cifar_cnn,
    lenet5,
    resnet18,
    cnn1d,
    factors,
    char_lstm,
    word_lstm,
    transformer,
)
MODELS: dict[str, Callable[..., Model]] = {builder.__name__: builder for builder in BUILDERS}


_MOST = 1_000_000  # outputs of which a model has weights for each


def make(name: str, examples: dict[str, Any], classes: int, **options: Any) -> Model:
    """Build a model by name, of the size that the examples ask for.

    Args:
        name: a key of `MODELS`.
        examples: arrays with a leading example axis; `x` [N, ...] gives the shape of one example.
        classes: number of outputs (of tokens, for a language model).
        options: further arguments of the builder; they win over what the examples say. Lists (of a
            configuration file) become tuples.

    Raises:
        ValueError: if there is no such model, it has no such option, or examples and classes are
            none that it takes (images with channels first, a million outputs).

    Example:
        >>> digits = data.load("digits")
        >>> model = models.make("mlp", digits.train, digits.classes, hidden=[32])
        >>> jax.eval_shape(model.apply, model.init(jax.random.key(0)), digits.test["x"][:5]).shape
        (5, 10)
    """
    if name not in MODELS:
        near = get_close_matches(name, MODELS, cutoff=0.4) or sorted(MODELS)
        raise ValueError(
            f"name: expected one of {sorted(MODELS)}, got {name!r}. Use name={near[0]!r}"
            + "".join(f" or {other!r}" for other in near[1:])
            + "."
        )
    if not hasattr(examples["x"], "shape"):
        raise ValueError(
            f"examples: expected an array x [N, ...], got a {type(examples['x']).__name__}. "
            "Use np.asarray(x)."
        )
    shape = tuple(examples["x"].shape[1:])
    if not isinstance(classes, int | np.integer) or classes < 1:
        raise ValueError(
            f"classes: expected the number of outputs, at least 1, got {classes!r}. Use 1 for a "
            "regression with one target."
        )
    if classes > max(_MOST, len(examples["x"])):
        raise ValueError(
            f"classes: expected at most {_MOST:,}, or one per example, got {classes:,}: the number "
            "of classes is the largest label + 1. Use np.unique(y, return_inverse=True)[1] as y."
        )
    sizes = {"inputs": prod(shape), "shape": shape, "length": shape[0] if shape else 1}
    sizes |= {"classes": int(classes), "vocab": int(classes)}
    if np.issubdtype(examples["x"].dtype, np.integer) and examples["x"].size:
        sizes["items"] = int(examples["x"].max()) + 1
    known = inspect.signature(MODELS[name]).parameters
    if unknown := options.keys() - known.keys():
        raise ValueError(
            f"options: expected some of {list(known)} for {name}, got {sorted(unknown)}. "
            f"Use make({name!r}, examples, {classes})."
        )
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return MODELS[name](**{k: v for k, v in sizes.items() if k in known} | options)
