"""Losses: hashable functions `loss(params, examples, key) -> [B]`, one number per example.

Losses built twice the same way are equal, so that nothing compiles twice. With `key=None` the
model predicts as in evaluation (no dropout).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxfl.models import labels
from jaxfl.models.model import Model
from jaxfl.types import Key, Params

Examples = dict[str, Any]
_MASKED = 128  # classes up to which a label is picked by a mask


@dataclass(frozen=True)
class Loss:
    """A model's outputs on `examples["x"]`, measured against the examples.

    Args:
        model: the model.
        measure: `measure(outputs, examples) -> [B]`, or `[B, tasks]` for several tasks: a
            module-level function or a frozen record, so that equal losses are equal.

    Example:
        >>> absolute = lambda outputs, examples: jnp.abs(outputs - examples["y"]).sum(-1)
        >>> linear = lambda params, x: x @ params
        >>> model = models.from_functions(lambda key: jnp.zeros((2, 1)), linear)
        >>> loss = models.Loss(model, absolute)
        >>> loss(model.init(None), {"x": jnp.ones((3, 2)), "y": jnp.ones((3, 1))}, None).tolist()
        [1.0, 1.0, 1.0]
    """

    model: Model
    measure: Callable[[Any, Examples], Any]

    def __call__(
        self, params: Params, examples: Examples, key: Key | None = None
    ) -> Float[Array, "b ..."]:
        outputs = self.model.apply(params, examples["x"], key, train=key is not None)
        return self.measure(outputs, examples)

    @property
    def pad(self) -> int | None:
        """The label that marks padding, if any does."""
        return getattr(self.measure, "pad", None)

    def check(
        self,
        examples: Examples,
        params: Params = None,
        augment: Callable[..., Any] | None = None,
        rows: Any = None,
    ) -> None:
        """Raises ValueError for labels that the model has no output for, and tokens unknown to it.

        A measure may have a `check(outputs, examples, rows)` of its own.

        Args:
            examples: all arrays, leaves `[N, ...]`.
            params: of the model; by default those that its `init` makes.
            augment: `augment(examples, key)`, if the loss gets that: what has another shape or
                dtype then is not what is looked up.
            rows: what the examples are called in messages.
        """
        plain = seen = labels.like(examples)
        if augment is not None:
            try:
                seen = jax.eval_shape(augment, plain, jax.random.key(0))
            except Exception:  # whatever the user's function raises: `simulate` says so
                return
        same = {name for name in ("x", "y") if name in plain and plain[name] == seen.get(name)}
        if "x" in same:
            labels.check_tokens(self.model, examples["x"], params)
        outputs = None
        if "y" in same and "x" in seen:
            outputs = labels.outputs(self.model, seen["x"], params)
        if outputs is not None and hasattr(self.measure, "check"):
            self.measure.check(outputs, examples, rows)


@dataclass(frozen=True)
class Regularised:
    """A loss plus `l2/2` times the squared norm of all parameters.

    Example:
        >>> loss = lambda params, examples, key: jnp.zeros(2)
        >>> models.Regularised(loss, 2.0)(jnp.array([1.0, 2.0]), {}, None).tolist()
        [5.0, 5.0]
    """

    loss: Callable[..., Any]
    l2: float

    def __call__(
        self, params: Params, examples: Examples, key: Key | None = None
    ) -> Float[Array, "b ..."]:
        squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))
        return self.loss(params, examples, key) + self.l2 / 2 * squares

    @property
    def pad(self) -> int | None:
        """The label that marks padding, if any does."""
        return getattr(self.loss, "pad", None)

    @property
    def check(self) -> Any:
        """That of the loss, or None."""
        return getattr(self.loss, "check", None)


def cross_entropy(model: Model) -> Loss:
    """Cross-entropy of logits [B, C] and integer labels `y` [B], in nats; [B].

    Example:
        >>> linear = lambda params, x: x @ params
        >>> model = models.from_functions(lambda key: jnp.zeros((2, 4)), linear)
        >>> loss = models.cross_entropy(model)
        >>> examples = {"x": jnp.ones((3, 2)), "y": jnp.array([0, 1, 3])}
        >>> print(loss(model.init(None), examples, None).round(2))
        [1.39 1.39 1.39]
    """
    return Loss(model, _Labels())


def squared_error(model: Model) -> Loss:
    """Half the squared distance of outputs [B, ...] to targets `y` (as many numbers); [B].

    Example:
        >>> linear = lambda params, x: x @ params
        >>> model = models.from_functions(lambda key: jnp.zeros((2, 1)), linear)
        >>> examples = {"x": jnp.ones((2, 2)), "y": jnp.array([1.0, 2.0])}
        >>> models.squared_error(model)(model.init(None), examples, None).tolist()
        [0.5, 2.0]
    """
    return Loss(model, _squared_error)


def sequence_cross_entropy(model: Model, pad: int = -1) -> Loss:
    """Mean cross-entropy over the tokens of each sequence that are not padding; [B].

    Args:
        model: outputs logits [B, T, V] for labels `y` [B, T].
        pad: the label that marks padding; -1 where no label does.

    Returns: a loss that is 0 for a sequence of padding only.

    Deviations: sequences weigh the same however many tokens they have; frameworks that average over
        all tokens of a minibatch weigh a sequence by its length.

    Example:
        >>> loss = models.sequence_cross_entropy(models.char_lstm(vocab=90), pad=0)
        >>> loss.model.name
        'char_lstm'
    """
    return Loss(model, _Tokens(pad))


def regularised(loss: Callable[..., Any], l2: float) -> Regularised:
    """Add `l2/2` times the squared norm of all parameters to every example's loss.

    Args:
        loss: `loss(params, examples, key) -> [B]`.
        l2: at least 0, in units of the loss; a static number.

    Raises:
        ValueError: if `l2` is negative.

    Example:
        >>> loss = models.regularised(models.cross_entropy(models.logistic(4, 3)), l2=0.01)
        >>> loss.l2
        0.01
    """
    if l2 < 0:
        raise ValueError(f"l2: expected at least 0, got {l2}. Use l2=0 to turn it off.")
    return Regularised(loss, float(l2))


@dataclass(frozen=True)
class _Labels:
    def __call__(self, logits: Any, examples: Examples) -> Any:
        if logits.ndim != 2 or examples["y"].shape != logits.shape[:1]:
            raise ValueError(
                f"examples: expected labels y [B] for logits [B, C], got y {examples['y'].shape} "
                f"for logits {logits.shape}. Use sequence_cross_entropy(model) for sequences."
            )
        return _negative_log_likelihood(_wide(logits), examples["y"])

    def check(self, logits: Any, examples: Examples, rows: Any = None) -> None:
        """Raises ValueError for labels that have no logit."""
        if logits.ndim == 2 and examples["y"].ndim == 1:
            labels.check_labels(examples["y"], logits, rows=rows)


def _squared_error(outputs: Any, examples: Examples) -> Any:
    if examples["y"].size != outputs.size:
        raise ValueError(
            f"examples: expected as many targets y as outputs {outputs.shape}, got "
            f"{examples['y'].shape}. Use y.reshape(len(y), -1), or classes=y.shape[1]."
        )
    gaps = _wide(outputs) - examples["y"].reshape(outputs.shape)
    return jnp.sum(jnp.square(gaps), tuple(range(1, gaps.ndim))) / 2


@dataclass(frozen=True)
class _Tokens:
    pad: int

    def __call__(self, logits: Any, examples: Examples) -> Any:
        y = examples["y"]
        if logits.ndim != 3 or y.shape != logits.shape[:2]:
            raise ValueError(
                f"examples: expected labels y [B, T] for logits [B, T, V], got y {y.shape} for "
                f"logits {logits.shape}. Use cross_entropy(model) for one label per example."
            )
        kept = y != self.pad
        each = _negative_log_likelihood(_wide(logits), jnp.where(kept, y, 0))
        return jnp.sum(each * kept, 1) / jnp.maximum(jnp.sum(kept, 1), 1)

    def check(self, logits: Any, examples: Examples, rows: Any = None) -> None:
        """Raises ValueError for tokens that have no logit and are not padding."""
        if logits.ndim == 3 and examples["y"].ndim == 2:
            labels.check_labels(examples["y"], logits, self.pad, rows)


def _negative_log_likelihood(logits: Any, y: Any) -> Any:
    """Of labels y [...] under logits [..., C]; NaN for one that has no logit."""
    y = y.astype(jnp.promote_types(y.dtype, jnp.int32))  # of 8 bits cannot be compared with 300
    known = (y >= 0) & (y < logits.shape[-1])  # a program may meet labels that nobody checked
    if logits.shape[-1] > _MASKED:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    else:  # By a mask, whose gradient is a mask too; that of an index is a scatter.
        label = y[..., None] == jnp.arange(logits.shape[-1]).reshape(*(1,) * y.ndim, -1)
        loss = jax.nn.logsumexp(logits, -1) - jnp.where(label, logits, 0).sum(-1)
    return jnp.where(known, loss, jnp.nan)


def _wide(outputs: Any) -> Any:
    """At least float32: a sum of exponentials in bfloat16 has two digits."""
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
