"""What is measured: evaluators that run inside the program, and statistics of finished runs.

An evaluator is a pytree with `__call__(state) -> dict of arrays`, for `simulate(evaluate=...)`: its
data are traced, not baked into the program. Whether `state.params` is one server model or one model
per client follows from its shapes. A model whose outputs are not finite has accuracy NaN, so that
a diverged run says so.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from jaxfl import struct
from jaxfl.engine import comm
from jaxfl.engine.clients import Clients
from jaxfl.engine.contract import Models, Personal
from jaxfl.engine.examples import check_once
from jaxfl.models import labels as checks
from jaxfl.types import Params, Scalar, Stacked

_NUMBERS = 1 << 22  # input numbers of one block of an evaluation, unless `block` says otherwise


# Inside the program ------------------------------------------------------------------------------


@struct.dataclass
class Evaluate:
    """Two scores on held-out examples: on all labels, and on each client's own.

    All labels: the model, or the mean over the models of the nodes, on every example. Labels are
    integers (`accuracy`, `loss`: cross-entropy) or floats (`r2`, `mse`, `mae`, and `loss`, the mean
    squared error). For models per node `each [n]` is the first of them by node, `average` that of
    the mean model, `consensus` the distance of `consensus`. A state with `personal` models beside a
    shared one has here the scores of the shared one, and `personal`, the mean of the others.

    Own labels, with `label_weights`: every client's model (its personal one, that of its node, or
    the shared one) on the examples that `owner` gives to the client; of a client without any, on
    all of them, an example of group c weighted by `label_weights[i, c]`. `clients [n]` are these
    scores, `own` and `own_loss` their means by `share` and `counts`, `worst` the mean of the worst
    tenth. A client's r2 is 1 - (its mean squared error) / (variance of all targets), so that the
    mean by examples of one shared model is the plain r2, as it is with accuracies.

    Args:
        model: `jaxfl.models.Model`, static.
        data: `{"x": [N, ...], "y": [N, ...]}`.
        label_weights: `[n, groups]`, of `label_weights`.
        share: `[n]`, weights of the clients in means, equal by default; 0 leaves a client out (a
            Byzantine one).
        counts: `[n]`, weights of the clients in `own`, times `share`; equal by default.
        block: examples at once, static; 0 chooses by their size.
        groups: `[N]`, group of each example; by default its label.
        owner: `[N]`, the client whose example it is, n for nobody's.
        rows: `[M]`, which of the N examples are held out; all by default.
        pad: of labels `[N, T]`, the one that marks padding, as in `sequence_cross_entropy`; static.

    Raises:
        ValueError: labels that the model has no output for, targets of another size than outputs.

    Source: re-weighting by label histograms: the code of pFedGraph.

    Example:
        >>> iris = data.load("iris")
        >>> model = models.make("logistic", iris.train, iris.classes)
        >>> evaluate = metrics.Evaluate(model, iris.valid)
        >>> sorted(evaluate(algorithms.FedAvg.State(model.init(jax.random.key(0)))))
        ['accuracy', 'loss']
    """

    model: Any = struct.field(pytree_node=False)
    data: Any
    label_weights: Any = None
    share: Any = None
    counts: Any = None
    block: int = struct.field(pytree_node=False, default=0)
    groups: Any = None
    owner: Any = None
    rows: Any = None
    pad: int = struct.field(pytree_node=False, default=-1)

    def check(self) -> None:
        """Raises ValueError where data do not fit the model; traced data cannot be seen."""
        own = () if self.label_weights is None else jnp.shape(self.label_weights)[-1:]

        def check():
            _check(self.model, self.data, self.pad)
            groups = np.asarray(self.data["y"] if self.groups is None else self.groups)
            most = np.max(groups, initial=0) + 1
            if own and most > own[0]:
                raise ValueError(
                    f"label_weights must have a column per class, got {own[0]} for labels 0 to "
                    f"{most - 1}; `label_weights(partition, labels, held, classes={most})`"
                )

        check_once(check, (self.model, self.pad, own), (self.data, self.groups))

    def __call__(self, state: Any) -> dict[str, Scalar]:
        """The scores of a state."""
        self.check()
        if not self.data["y"].shape[0]:
            raise ValueError("data holds no examples to evaluate on; `load(name, test=0.2)`")
        params = state.params
        stacked = is_stacked(params, self.model)
        examples = self._held()
        scores, own = self._of(params, stacked, *examples)
        first = next(iter(scores))
        if stacked:
            each, share = scores[first], _normal(self.share, scores[first])
            scores = comm.mix(share, scores) | {"each": each}
            mean = comm.mix(share, params)
            scores["average"] = self._of(mean, False, *examples)[0][first]
            scores["consensus"] = consensus(params, share)
        if isinstance(state, Personal) and state.personal.rows is not params:
            theirs, own = self._of(state.personal, True, *examples)
            scores["personal"] = comm.mix(_normal(self.share, theirs[first]), theirs[first])
        if own is not None:
            clients, losses = own
            w = _product(self.share, self.counts, clients)
            scores |= {"own": comm.mix(w, clients), "own_loss": comm.mix(w, losses)}
            scores |= {"clients": clients, "worst": worst(clients, share=self.share)}
        return scores

    def _held(self) -> Any:
        """x, y, groups and owners of the held-out examples."""
        groups = self.data["y"] if self.groups is None else self.groups
        held = lambda a: a if a is None or self.rows is None else a[self.rows]
        return tuple(map(held, (self.data["x"], self.data["y"], groups, self.owner)))

    def _of(self, params, stacked, x, y, groups, owner):
        """Scores, and those on own labels, of one model, or of each, leaves `[n, ...]`."""
        q = None if self.label_weights is None else jnp.asarray(self.label_weights)
        who = None if q is None else jnp.arange(len(q))
        each = params if isinstance(params, Models) else Models(params)
        apply = partial(each.predict, self.model)
        one = lambda row: self._one(apply, each.make(row[0]), row[1], row[2], x, y, groups, owner)
        if not stacked:
            return one((params, q, who))
        at_once = max(1, _NUMBERS // max(x.size, 1))
        if at_once >= len(each):
            return jax.vmap(one)((each.rows, q, who))
        return jax.lax.map(one, (each.rows, q, who), batch_size=at_once)

    def _one(self, apply, params, q, who, x, y, groups, owner):
        """Scores of one model, and those on the own labels of client `who`, or of each client."""
        # hits or errors, losses, how many
        sums = jnp.stack(self._examples(partial(apply, params), x, y))
        variance = None if _labels(y) else jnp.square(y - y.mean(0)[None]).mean()
        finite = jnp.isfinite(sums[1]).all()

        def scores(hit, loss, kept):
            if variance is None:
                return jnp.where(finite, hit / kept, jnp.nan), loss / kept
            return 1 - loss / kept / variance, loss / kept

        hit, loss, kept = sums.sum(1)
        score, mean = scores(hit, loss, kept)
        found = {"accuracy": score} if variance is None else {"r2": score, "mse": mean}
        found |= {"loss": mean} if variance is None else {"mae": hit / kept, "loss": mean}
        if q is None:
            return found, None
        by_group = jax.ops.segment_sum(sums.T, groups, q.shape[-1])  # [groups, 3]
        by_group = by_group.reshape((1,) * (q.ndim - 1) + by_group.shape)
        own = (q[..., None].astype(sums.dtype) * by_group).sum(-2)  # [3] or [n, 3]
        if owner is not None:
            if q.ndim == 1:
                theirs = jnp.where((owner == who)[None], sums, 0).sum(1)
            else:
                theirs = jax.ops.segment_sum(sums.T, owner, len(q))
            own = jnp.where(theirs[..., 2:] > 0, theirs, own)
        return found, scores(*jnp.moveaxis(own, -1, 0))

    def _examples(self, apply, x, y):
        """What `_score` says of every example, in blocks of examples."""
        size, total = max(1, math.prod(x.shape[1:])), len(x)
        block = min(self.block or max(1, _NUMBERS // size), total)
        if block == total:
            return _score(apply(x), y, self.pad)
        pad = -total % block
        parts = jax.tree.map(
            lambda a: jnp.concatenate([a, a[:pad]]).reshape(-1, block, *a.shape[1:]), (x, y)
        )
        one = lambda part: _score(apply(part[0]), part[1], self.pad)
        out = jax.lax.map(one, parts)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:total], out)


@struct.dataclass
class HeldOut:
    """Accuracy (or r2) and loss of every client on its own held-out examples.

    Client i is scored by its own model: personal, decentralised, or the server's. Padding of labels
    `[N, T]` is what the clients' loss says, -1 if it says nothing. `accuracy` and
    `loss` are means by number of examples, `clients [n]` and `losses [n]` those of each client,
    `worst` is the mean of the worst tenth.

    Args:
        model: `jaxfl.models.Model`, static.
        clients: the held-out examples, as `Clients` (`train, held = clients.split(test=0.2)`).

    Raises:
        ValueError: labels that the model has no output for, targets of another size than outputs.

    Example:
        >>> problem = problems.least_squares(n=4)
        >>> train, held = problem.clients().split(test=0.2)
        >>> held.count.tolist()
        [4, 4, 4, 4]
    """

    model: Any = struct.field(pytree_node=False)
    clients: Clients

    def check(self) -> None:
        """Raises ValueError where examples do not fit the model; traced ones cannot be seen."""
        pad = self._pad()
        check = lambda examples, rows: _check(self.model, examples, pad, rows)
        self.clients.check_owned(check, (self.model, pad))

    def _pad(self):
        pad = getattr(self.clients.loss, "pad", None)
        return -1 if pad is None else pad

    def __call__(self, state: Any) -> dict[str, Scalar]:
        """The scores of a state."""
        self.check()
        if isinstance(state, Personal):
            each = state.personal
        elif is_stacked(state.params, self.model):
            each = Models(state.params)
        else:
            each = Models(comm.stack(state.params, self.clients.n))

        def one(client, row, key):
            xi = client.all(key)
            examples = client.get(xi)
            y = examples["y"]
            outputs = each.predict(self.model, each.make(row), examples["x"])
            hit, loss, kept = _score(outputs, y, self._pad())
            w = xi.weight.astype(loss.dtype)
            mean, total = _dot(w, loss) / _dot(w, kept), _dot(w, hit) / _dot(w, kept)
            if _labels(y):
                return jnp.where(jnp.isfinite(mean), total, jnp.nan), mean
            y = y.reshape(len(y), -1)
            w = w / w.sum()
            centre = (w[:, None] * y).sum(0)[None]
            return 1 - mean / _dot(w, jnp.square(y - centre).mean(1)), mean

        score, loss = self.clients.each(one, each.rows, key=jax.random.key(0))
        w = self.clients.count / self.clients.count.sum()
        name = "accuracy" if _labels(self.clients.data.arrays["y"]) else "r2"
        means = {name: _dot(w.astype(score.dtype), score), "loss": _dot(w.astype(loss.dtype), loss)}
        return means | {"clients": score, "losses": loss, "worst": worst(score)}


def _dot(a, b):
    return (a * b).sum()  # not a matrix product, which GPUs shorten to TF32


@struct.dataclass
class Distance:
    """Euclidean distance to a known optimum.

    `distance` is |x - x*|; for models per client it is the root of the mean square, and `average`
    the distance of the mean model, `consensus` as in `consensus`.

    Args:
        optimum: x*, of the model's shapes.

    Example:
        >>> far = metrics.Distance(jnp.array([3.0, 4.0]))
        >>> float(far(algorithms.FedAvg.State(jnp.zeros(2)))["distance"])
        5.0
    """

    optimum: Params

    def __call__(self, state: Any) -> dict[str, Scalar]:
        """The distances of a state."""
        x, optimum = state.params, self.optimum
        if jnp.ndim(jax.tree.leaves(x)[0]) == jnp.ndim(jax.tree.leaves(optimum)[0]):
            return {"distance": jnp.sqrt(_squared(x, optimum))}
        n = jax.tree.leaves(x)[0].shape[0]
        mean = jax.tree.map(lambda a: a.mean(0), x)
        return {
            "distance": jnp.sqrt(_squared(x, comm.stack(optimum, n)) / n),
            "average": jnp.sqrt(_squared(mean, optimum)),
            "consensus": consensus(x),
        }


@struct.dataclass
class Together:
    """Several evaluators as one; `together` makes it.

    Example:
        >>> far = metrics.Distance(jnp.ones(1))
        >>> both = metrics.Together({"far": far, "x": lambda state: state.params})
        >>> sorted(both(algorithms.FedAvg.State(jnp.zeros(1))))
        ['far', 'x']
    """

    parts: Mapping[str, Any]

    def __call__(self, state: Any) -> dict[str, Any]:
        """What each evaluator says of a state, by name."""
        return {name: part(state) for name, part in self.parts.items()}


def together(**evaluators: Any) -> Together:
    """Several evaluators as one, whose result is a dict of theirs: `together(valid=..., test=...)`.

    Plain functions `f(state)` are welcome too.

    Example:
        >>> both = metrics.together(far=metrics.Distance(jnp.ones(1)), x=lambda state: state.params)
        >>> sorted(both(algorithms.FedAvg.State(jnp.zeros(1))))
        ['far', 'x']
    """
    plain = {k: jax.tree_util.treedef_is_leaf(jax.tree.structure(v)) for k, v in evaluators.items()}
    return Together({k: jax.tree_util.Partial(v) if plain[k] else v for k, v in evaluators.items()})


def is_stacked(params: Any, model: Any) -> bool:
    """Whether these are models of all clients (leaves `[n, ...]`) and not one model (`[...]`).

    Example:
        >>> model = models.logistic(4, 3)
        >>> params = model.init(jax.random.key(0))
        >>> metrics.is_stacked(params, model), metrics.is_stacked(comm.stack(params, 5), model)
        (False, True)
    """
    one = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    shapes, given = [a.shape for a in one], [jnp.shape(a) for a in jax.tree.leaves(params)]
    if given != shapes and [s[1:] for s in given] != shapes:
        raise ValueError(
            f"params must have the shapes of {model.name}, {shapes}, or one leading client axis "
            f"more, got {given}; evaluate with the model that made them: `model.init(key)`"
        )
    return given != shapes


def consensus(stacked: Stacked, share: Float[Array, " n"] | None = None) -> Float[Array, ""]:
    """Xi = (1/n) sum_i |x_i - mean|^2, over all leaves.

    Args:
        stacked: models `[n, ...]`.
        share: `[n]` weights of the clients that sum to 1, equal by default; 0 leaves one out.

    Example:
        >>> float(metrics.consensus({"w": jnp.array([[0.0], [2.0]])}))
        1.0
    """
    n = jax.tree.leaves(stacked)[0].shape[0]
    w = jnp.full(n, 1 / n) if share is None else share
    mean = comm.mix(w, stacked)
    apart = jax.tree.map(lambda a, m: jnp.square(a - m[None]).reshape(n, -1).sum(1), stacked, mean)
    squared = jnp.stack(jax.tree.leaves(apart)).sum(0)
    return jnp.where(w != 0, w.astype(squared.dtype) * squared, 0).sum()


def worst(values: Float[Array, " n"], fraction: float = 0.1, share: Any = None) -> Float[Array, ""]:
    """Mean of the worst tenth of the clients, rounded, at least one.

    Args:
        values: `[n]`, larger is better; NaN makes the result NaN.
        fraction: how many of the clients, static.
        share: `[n]`, 0 leaves a client out.

    Example:
        >>> float(metrics.worst(jnp.array([1.0, 0.5, 0.75, 0.25]), fraction=0.5))
        0.375
    """
    live = jnp.ones(len(values), bool) if share is None else jnp.asarray(share) != 0
    k = jnp.maximum(jnp.floor(fraction * live.sum() + 0.5), 1).astype(values.dtype)
    ranked = jnp.sort(jnp.where(live, values, jnp.inf))
    chosen = jnp.arange(len(values)) < k
    mean = jnp.where(chosen, ranked, 0).sum() / k
    return jnp.where((jnp.isnan(values) & live).any(), jnp.nan, mean)


def dispersion(values: Float[Array, "*batch n"]) -> dict[str, Scalar]:
    """How much clients differ: `std`, `min` and `max` over the last axis.

    Example:
        >>> found = metrics.dispersion(jnp.array([0.5, 1.0]))
        >>> {name: float(value) for name, value in found.items()}
        {'std': 0.25, 'min': 0.5, 'max': 1.0}
    """
    values = jnp.asarray(values)
    return {"std": values.std(-1), "min": values.min(-1), "max": values.max(-1)}


def _check(model, data, pad, rows=None):
    """One function for all scores; see `jaxfl.models.labels`."""
    numbers = [a for name in ("x", "y") for a in jax.tree.leaves(data[name])]
    if not all(hasattr(a, "dtype") for a in numbers):
        raise ValueError(
            "data must hold arrays x and y with one row per example, got numbers outside of one; "
            "make them arrays: `{name: np.asarray(a) for name, a in data.items()}`"
        )
    checks.check_tokens(model, data["x"])
    outputs = checks.outputs(model, data["x"])
    if outputs is not None:
        checks.check_scored(data["y"], outputs, pad if data["y"].ndim > 1 else None, rows)


def _score(outputs, y, pad):
    """Sums over the labels of every example: hits, cross-entropy, and their number.

    Of float targets: absolute and squared error. `pad` marks padding among labels `[N, T]`. A label
    that has no output makes the cross-entropy NaN.
    """
    if _labels(y):
        y = y.astype(jnp.promote_types(y.dtype, jnp.int32))  # of 8 bits has no 300
        logp, padding = jax.nn.log_softmax(outputs, axis=-1), (y == pad) & (y.ndim > 1)
        kept = (~padding).astype(outputs.dtype)
        # beyond the outputs is NaN, below 0 would count from the end
        at = jnp.where(padding, 0, jnp.where(y < 0, outputs.shape[-1], y))
        picked = jnp.take_along_axis(logp, at[..., None], axis=-1)[..., 0]
        hit, loss = kept * (outputs.argmax(-1) == y), -kept * picked
    else:
        error = outputs.reshape(y.shape) - y
        hit, loss, kept = jnp.abs(error), jnp.square(error), jnp.ones_like(error)
    return tuple(a.reshape(len(y), -1).sum(1) for a in (hit, loss, kept))


_labels = checks.are_labels


def _squared(x, y):
    parts = jax.tree.map(lambda a, b: jnp.square(a - b).sum(), x, y)
    return jnp.stack(jax.tree.leaves(parts)).sum()


def _normal(share, like):
    w = jnp.ones_like(like) if share is None else jnp.asarray(share, like.dtype)
    return w / w.sum()


def _product(share, counts, like):
    return _normal(_normal(share, like) * _normal(counts, like), like)


# On the host -------------------------------------------------------------------------------------


def label_weights(
    partition: Any, labels: ArrayLike, held: ArrayLike, classes: int, *, strict: bool = True
) -> Float[np.ndarray, "n classes"]:
    """Weights of held-out examples that give each client its own share of labels.

    Client i weights an example of class c by (its training examples of c) / (held-out ones of c).

    Args:
        partition: who owns which training example.
        labels: `[N]`, of the training examples.
        held: labels of the held-out examples.
        classes: their number.
        strict: whether a client none of whose labels is held out is an error; else it weights all
            examples alike.

    Raises:
        ValueError: labels that are no integers from 0 to `classes` - 1; all of a client's labels
            are missing among the held-out examples.

    Example:
        >>> partition, _ = data.natural([0, 0, 1, 1])
        >>> metrics.label_weights(partition, [0, 0, 0, 1], held=[0, 1], classes=2).tolist()
        [[1.0, 0.0], [0.5, 0.5]]
    """
    labels, held = np.asarray(labels), np.asarray(held)
    for y in (labels, held):
        checks.check_labels(y, np.empty((0, classes)))
    own = np.stack(
        [
            np.bincount(labels[_rows(partition, i)], minlength=classes)
            for i in range(len(partition.start))
        ]
    )
    total = np.bincount(held, minlength=classes)
    weights = own * (total > 0) / np.maximum(total, 1)
    weights[~weights.any(1) & (not strict)] = 1
    if not weights.any(1).all():
        raise ValueError(
            f"clients {np.flatnonzero(~weights.any(1))[:5].tolist()} hold only labels that no "
            "held-out example has; hold out more: `load(name, test=0.2)`"
        )
    return weights / weights.sum(1, keepdims=True)


def _rows(partition, i):
    start, count = partition.start[i], partition.count[i]
    return partition.order[start : start + count]


def to_target(
    curve: Float[np.ndarray, "*batch e"], totals: Mapping[str, np.ndarray], target: float
) -> dict[str, np.ndarray]:
    """What it cost until a score first reached a target, at the resolution of the evaluations.

    Args:
        curve: the score at evenly spaced evaluations, the last one after the last round.
        totals: of `History.totals`, arrays `[*batch, rounds]`.
        target: the score to reach; larger is better.

    Returns:
        `rounds`, `megabytes`, `grads` and `seconds`, each `[*batch]`, inf where never reached.

    Example:
        >>> totals = {"rounds": np.arange(1.0, 7.0), "megabytes": 2.0 * np.arange(1, 7)}
        >>> found = metrics.to_target(np.array([0.5, 0.8, 0.9]), totals, target=0.75)
        >>> {name: float(cost) for name, cost in found.items()}
        {'rounds': 4.0, 'megabytes': 8.0}
    """
    curve = np.asarray(curve, float)
    rounds = next(iter(totals.values())).shape[-1]
    every, rest = divmod(rounds, curve.shape[-1])
    if rest:
        raise ValueError(
            f"{rounds} rounds cannot have {curve.shape[-1]} evenly spaced evaluations; pass the "
            "whole curve of `run.evaluations` and the totals of the same run"
        )
    reached = curve >= target  # False for NaN
    first = reached.argmax(-1)
    at = np.expand_dims((first + 1) * every - 1, -1)
    cost = {k: np.take_along_axis(np.asarray(v, float), at, -1)[..., 0] for k, v in totals.items()}
    return {k: np.where(reached.any(-1), v, np.inf) for k, v in cost.items()}


def t_interval(values: ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
    """Mean over the last axis and the half width of its Student t interval.

    Returns:
        Mean and half width; the half width of a single value is NaN.

    Example:
        >>> mean, half = metrics.t_interval([0.8, 0.9, 1.0])
        >>> round(float(mean), 2), round(float(half), 2)
        (0.9, 0.25)
    """
    from scipy.special import stdtrit

    values = np.asarray(values, float)
    n = values.shape[-1]
    mean = values.mean(-1)
    if n < 2:
        return mean, np.full_like(mean, np.nan)
    return mean, stdtrit(n - 1, (1 + level) / 2) * values.std(-1, ddof=1) / math.sqrt(n)


FEWEST = 4  # seeds of a t interval; with two its half width is 9 times their distance


def interval(values: ArrayLike, level: float = 0.95) -> tuple[Any, Any, Any, Any]:
    """Mean over the last axis, and between what: a t interval, or of fewer than 4 values the range.

    A value that is not finite makes all of it NaN.

    Returns:
        Mean, half width of the t interval (NaN where it is the range), lower and upper end.

    Example:
        >>> [round(float(v), 2) for v in metrics.interval([0.8, 0.9, 1.0])]
        [0.9, nan, 0.8, 1.0]
        >>> [round(float(v), 2) for v in metrics.interval([0.8, 0.8, 1.0, 1.0])]
        [0.9, 0.18, 0.72, 1.08]
    """
    values = np.asarray(values, float)
    values = np.where(np.isfinite(values).all(-1, keepdims=True), values, np.nan)
    mean, half = t_interval(values, level)
    if values.shape[-1] < FEWEST:
        return mean, np.full_like(mean, np.nan), values.min(-1), values.max(-1)
    return mean, half, mean - half, mean + half


def spelled(values: ArrayLike, scale: float = 1.0, digits: int = 3, sign: str = "") -> str:
    """A mean over seeds as text, with half its 95% t interval, or with the range of a few seeds.

    Args:
        values: by seed.
        scale: 100 for percent.
        digits: after the point.
        sign: "+" to show it.

    Example:
        >>> metrics.spelled([0.588, 0.767], 100, 1), metrics.spelled([0.5, 0.5, 0.6, 0.6], 100, 1)
        ('67.8 (58.8 to 76.7)', '55.0 ± 9.2')
    """
    values = scale * np.asarray(values, float)
    mean, half, low, high = interval(values)
    if not np.isfinite(mean):
        return "NaN"
    form = lambda a: f"{a:{sign}.{digits}f}"
    if np.isfinite(half):
        return f"{form(mean)} ± {half:.{digits}f}"
    return form(mean) + (f" ({form(low)} to {form(high)})" if len(values) > 1 else "")


def paired(values: ArrayLike, reference: ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
    """Mean of `values - reference`, seed by seed over the last axis, and its t interval.

    Example:
        >>> difference, half = metrics.paired([0.8, 0.9, 1.0], [0.7, 0.8, 0.8])
        >>> round(float(difference), 2), round(float(half), 2)
        (0.13, 0.14)
    """
    return t_interval(np.asarray(values, float) - np.asarray(reference, float), level)
