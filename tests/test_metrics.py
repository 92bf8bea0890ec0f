"""Evaluators and statistics against NumPy by hand."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl import data, metrics, models
from jaxfl.engine.clients import Clients
from jaxfl.engine.contract import Models
from jaxfl.engine.simulate import History

N, TEST, INPUTS, CLASSES = 12, 23, 3, 4
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(TEST, INPUTS)), RNG.integers(0, CLASSES, TEST)
WEIGHTS = RNG.random((N, CLASSES)) * (RNG.random((N, CLASSES)) < 0.7) + 0.01
MODEL = models.logistic(INPUTS, CLASSES)
EXAMPLES = {"x": jnp.asarray(X), "y": jnp.asarray(Y)}


class State(NamedTuple):
    params: Any


class Both(NamedTuple):
    params: Any
    own: Any

    @property
    def personal(self):
        return Models(self.own)


@jax.jit  # evaluators are pytrees: their data are traced
def score(evaluate, state):
    return evaluate(state)


def draw(*lead):
    kernel, bias = RNG.normal(size=(*lead, CLASSES, INPUTS)), RNG.normal(size=(*lead, CLASSES))
    return {"head": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}


ONE, MANY = draw(), draw(N)


def row(params, i):
    return jax.tree.map(lambda a: a[i], params)


def logits(params, x=X):
    return x @ np.asarray(params["head"]["kernel"]).T + np.asarray(params["head"]["bias"])


def accuracy(params):
    return (logits(params).argmax(1) == Y).mean()


def loss(params, x=X, y=Y):
    z = logits(params, x)
    return (np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]).mean()


def own(params, i):
    """acc_i = sum_c q_ic correct_c / sum_c q_ic total_c."""
    right = logits(params).argmax(1) == Y
    correct = np.array([right[c == Y].sum() for c in range(CLASSES)])
    total = np.bincount(Y, minlength=CLASSES)
    return (WEIGHTS[i] * correct).sum() / (WEIGHTS[i] * total).sum()


def test_server_model():
    found = score(metrics.Evaluate(MODEL, EXAMPLES, WEIGHTS), State(ONE))
    clients = np.array([own(ONE, i) for i in range(N)])
    assert set(found) == {"accuracy", "loss", "own", "own_loss", "clients", "worst"}
    np.testing.assert_allclose(found["accuracy"], accuracy(ONE), atol=1e-12)
    np.testing.assert_allclose(found["loss"], loss(ONE), atol=1e-12)
    np.testing.assert_allclose(found["clients"], clients, atol=1e-12)
    np.testing.assert_allclose(found["worst"], clients.min(), atol=1e-12)  # a tenth of 12 is one


def test_model_per_client():
    share = (np.arange(N) >= 2).astype(float)  # the first two are left out
    evaluate = metrics.Evaluate(MODEL, EXAMPLES, WEIGHTS, share)
    found = score(evaluate, State(MANY))
    each = np.array([accuracy(row(MANY, i)) for i in range(N)])
    mean = jax.tree.map(lambda a: a[2:].mean(0), MANY)
    apart = [
        np.square(np.asarray(a)[2:] - np.asarray(m)).reshape(N - 2, -1).sum(1)
        for a, m in zip(jax.tree.leaves(MANY), jax.tree.leaves(mean), strict=True)
    ]
    clients = np.array([own(row(MANY, i), i) for i in range(N)])
    np.testing.assert_allclose(found["each"], each, atol=1e-12)
    np.testing.assert_allclose(found["accuracy"], each[2:].mean(), atol=1e-12)
    losses = [loss(row(MANY, i)) for i in range(2, N)]
    np.testing.assert_allclose(found["loss"], np.mean(losses), atol=1e-12)
    np.testing.assert_allclose(found["average"], accuracy(mean), atol=1e-12)
    np.testing.assert_allclose(found["consensus"], np.mean(sum(apart)), rtol=1e-12)
    np.testing.assert_allclose(found["clients"], clients, atol=1e-12)
    np.testing.assert_allclose(found["worst"], clients[2:].min(), atol=1e-12)


def test_personal_models():
    counts = RNG.integers(1, 9, N)
    found = score(metrics.Evaluate(MODEL, EXAMPLES, WEIGHTS, counts=counts), Both(ONE, MANY))
    clients = np.array([own(row(MANY, i), i) for i in range(N)])
    np.testing.assert_allclose(found["accuracy"], accuracy(ONE), atol=1e-12)
    np.testing.assert_allclose(found["clients"], clients, atol=1e-12)
    mean = (counts * clients).sum() / counts.sum()
    np.testing.assert_allclose(found["own"], mean, atol=1e-12)
    everywhere = np.mean([accuracy(row(MANY, i)) for i in range(N)])
    np.testing.assert_allclose(found["personal"], everywhere, atol=1e-12)


class Alone(NamedTuple):
    """Personal models and no other, as of `Local`."""

    params: Any

    @property
    def personal(self):
        return Models(self.params)


@pytest.mark.parametrize(
    ("state", "model"),
    [
        (State(ONE), lambda i: ONE),
        (State(MANY), lambda i: row(MANY, i)),
        (Both(ONE, MANY), lambda i: row(MANY, i)),
        (Alone(MANY), lambda i: row(MANY, i)),
    ],
    ids=["shared", "nodes", "personal", "alone"],
)
@pytest.mark.parametrize("targets", [False, True], ids=["labels", "targets"])
def test_own_examples(state, model, targets):
    """Own examples where a client has some, else all by groups; rows pick what is held out."""
    groups = RNG.integers(0, CLASSES, TEST)
    owner = RNG.integers(0, N - 2, TEST)  # two have none, and some examples are nobody's
    owner[:3] = N
    rows = RNG.permutation(TEST)[: TEST - 4]
    y = RNG.normal(size=(TEST, CLASSES)) if targets else Y
    counts, share = RNG.integers(1, 9, N), (np.arange(N) > 0).astype(float)
    evaluate = metrics.Evaluate(
        MODEL, {"x": EXAMPLES["x"], "y": jnp.asarray(y)}, WEIGHTS, share, counts, 5,
        jnp.asarray(groups), jnp.asarray(owner), jnp.asarray(rows),
    )  # fmt: skip
    found = score(evaluate, state)
    scores, losses = [], []
    for i in range(N):
        z = logits(model(i))[rows]
        if targets:
            loss = np.square(z - y[rows]).mean(1)
            variance = np.square(y[rows] - y[rows].mean(0)).mean()
        else:
            loss = np.log(np.exp(z).sum(1)) - z[np.arange(len(rows)), y[rows]]
        w = (owner[rows] == i).astype(float)
        w = w if w.any() else WEIGHTS[i][groups[rows]]
        losses.append((w * loss).sum() / w.sum())
        hits = z.argmax(1) == y[rows] if not targets else None
        scores.append(1 - losses[-1] / variance if targets else (w * hits).sum() / w.sum())
    weight = counts * share / (counts * share).sum()
    np.testing.assert_allclose(found["clients"], scores, atol=1e-12)
    np.testing.assert_allclose(found["own"], weight @ scores, atol=1e-12)
    np.testing.assert_allclose(found["own_loss"], weight @ losses, atol=1e-12)
    np.testing.assert_allclose(found["worst"], min(scores[1:]), atol=1e-12)
    assert ("personal" in found) == isinstance(state, Both)


def test_one_shared_model_scores_the_same_on_own_examples():
    """The mean by number of own examples is the score on all of them, of targets too."""
    owner = RNG.integers(0, N, TEST)
    counts = np.bincount(owner, minlength=N)
    weights = np.ones((N, 1))
    for y in (Y, RNG.normal(size=(TEST, CLASSES))):
        held = {"x": EXAMPLES["x"], "y": jnp.asarray(y)}
        groups = jnp.zeros(TEST, int)
        found = score(
            metrics.Evaluate(MODEL, held, weights, None, counts, 0, groups, jnp.asarray(owner)),
            State(ONE),
        )
        np.testing.assert_allclose(found["own"], found.get("accuracy", found.get("r2")), atol=1e-12)


def test_shared_model_as_a_personal_one_has_the_plain_accuracy():
    # Clients' labels have the shares of the held-out ones: the mean by examples is plain.
    labels = np.repeat(Y, 5)
    split = data.dirichlet(labels, N, 0.3, seed=1)
    weights = metrics.label_weights(split, labels, Y, CLASSES)
    own_shares = weights * np.bincount(Y, minlength=CLASSES)
    histogram = split.skew(labels)["histogram"]
    np.testing.assert_allclose(
        own_shares / own_shares.sum(1, keepdims=True),
        histogram / histogram.sum(1, keepdims=True),
        atol=1e-12,
    )
    same = jax.tree.map(lambda a: jnp.stack([a] * N), ONE)
    found = score(metrics.Evaluate(MODEL, EXAMPLES, weights, counts=split.count), Both(ONE, same))
    np.testing.assert_allclose(found["own"], accuracy(ONE), atol=1e-12)


def test_blocks_of_examples():
    whole, parts = (metrics.Evaluate(MODEL, EXAMPLES, WEIGHTS, block=b) for b in (0, 5))
    for state in (State(ONE), State(MANY)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),
            score(whole, state),
            score(parts, state),
        )


def test_diverged_model_has_no_accuracy():
    broken = jax.tree.map(lambda a: a.at[0].set(jnp.nan), MANY)
    found = score(metrics.Evaluate(MODEL, EXAMPLES, WEIGHTS), State(broken))
    assert np.isnan(found["accuracy"]) and np.isnan(found["worst"]) and np.isnan(found["each"][0])
    np.testing.assert_allclose(found["each"][1], accuracy(row(MANY, 1)), atol=1e-12)
    left_out = score(metrics.Evaluate(MODEL, EXAMPLES, WEIGHTS, np.arange(N) > 0), State(broken))
    rest = [accuracy(row(MANY, i)) for i in range(1, N)]
    np.testing.assert_allclose(left_out["accuracy"], np.mean(rest), atol=1e-12)
    assert np.isfinite(left_out["worst"]) and np.isfinite(left_out["consensus"])


def test_regression():
    model, y = models.logistic(INPUTS, 1), RNG.normal(size=TEST)
    params = {"head": {name: a[:1] for name, a in ONE["head"].items()}}
    error = logits(params)[:, 0] - y
    found = score(metrics.Evaluate(model, {"x": EXAMPLES["x"], "y": jnp.asarray(y)}), State(params))
    np.testing.assert_allclose(found["mse"], np.mean(error**2), atol=1e-12)
    np.testing.assert_allclose(found["mae"], np.mean(abs(error)), atol=1e-12)
    np.testing.assert_allclose(found["r2"], 1 - np.mean(error**2) / y.var(), atol=1e-12)
    split = data.iid(TEST, 3, seed=3)
    clients = Clients.make({"x": X, "y": y}, split, models.squared_error(model), batch=2)
    found = score(metrics.HeldOut(model, clients), State(params))
    rows = [split.of(i) for i in range(3)]
    r2 = [1 - np.mean(error[r] ** 2) / y[r].var() for r in rows]
    np.testing.assert_allclose(found["clients"], r2, atol=1e-12)
    np.testing.assert_allclose(found["r2"], np.dot(split.count, r2) / TEST, atol=1e-12)


def test_held_out_examples_of_clients():
    split = data.iid(TEST, N, seed=3)
    clients = Clients.make({"x": X, "y": Y}, split, models.cross_entropy(MODEL), batch=2)
    for params in (ONE, MANY):
        found = score(metrics.HeldOut(MODEL, clients), State(params))
        own_params = [row(params, i) if params is MANY else params for i in range(N)]
        rows = [split.of(i) for i in range(N)]
        hits = [logits(p, X[r]).argmax(1) == Y[r] for p, r in zip(own_params, rows, strict=True)]
        losses = [loss(p, X[r], Y[r]) for p, r in zip(own_params, rows, strict=True)]
        np.testing.assert_allclose(found["clients"], [h.mean() for h in hits], atol=1e-12)
        np.testing.assert_allclose(found["accuracy"], np.concatenate(hits).mean(), atol=1e-12)
        np.testing.assert_allclose(found["losses"], losses, atol=1e-12)
        np.testing.assert_allclose(found["worst"], min(h.mean() for h in hits), atol=1e-12)


def test_tokens_that_are_padding_do_not_count():
    model = models.from_functions(lambda key: {"w": jnp.zeros(2)}, lambda p, x: x * p["w"].sum())
    x, y = RNG.normal(size=(3, 4, 5)), RNG.integers(0, 5, (3, 4))
    y[0, 2:], y[1, :] = -1, -1
    found = metrics.Evaluate(model, {"x": jnp.asarray(x), "y": jnp.asarray(y)})(
        State({"w": jnp.full(2, 0.5)})
    )
    np.testing.assert_allclose(found["accuracy"], (x.argmax(-1) == y)[y >= 0].mean(), atol=1e-12)


def test_distance_and_together():
    optimum, x = RNG.normal(size=3), RNG.normal(size=(N, 3))
    evaluate = metrics.together(far=metrics.Distance(optimum), twice=lambda s: 2 * s.params)
    server, nodes = (score(evaluate, State(jnp.asarray(a))) for a in (x[0], x))
    np.testing.assert_allclose(server["far"]["distance"], np.linalg.norm(x[0] - optimum))
    np.testing.assert_allclose(server["twice"], 2 * x[0])
    squares = np.square(x - optimum).sum(1)
    np.testing.assert_allclose(nodes["far"]["distance"], np.sqrt(squares.mean()))
    np.testing.assert_allclose(nodes["far"]["average"], np.linalg.norm(x.mean(0) - optimum))
    apart = np.square(x - x.mean(0)).sum(1).mean()
    np.testing.assert_allclose(nodes["far"]["consensus"], apart)
    np.testing.assert_allclose(metrics.consensus({"x": jnp.asarray(x)}), apart)


@pytest.mark.parametrize("n, k", [(1, 1), (4, 1), (14, 1), (15, 2), (20, 2), (100, 10)])
def test_worst_tenth(n, k):
    values = RNG.random(n)
    np.testing.assert_allclose(metrics.worst(jnp.asarray(values)), np.sort(values)[:k].mean())
    with_nan = np.where(np.arange(n) == 0, np.nan, values)
    assert np.isnan(metrics.worst(jnp.asarray(with_nan)))


def test_spread():
    values = RNG.random((2, N))
    found = metrics.dispersion(jnp.asarray(values))
    for name in ("std", "min", "max"):
        np.testing.assert_allclose(found[name], getattr(values, name)(1))


def test_cost_to_a_target():
    history = History(
        loss=np.zeros((2, 6)),
        up=np.full((2, 6), 3e6),
        down=np.full((2, 6), 1e6),
        grads=np.full((2, 6), 5.0),
        aux=(),
        clients=np.full((2, 6), 4.0),
        seconds=np.array([[1, 2, 3, 4, 5, 6.0]] * 2),
    )
    curve = np.array([[0.1, 0.6, 0.5], [0.1, np.nan, 0.2]])  # after 2, 4 and 6 rounds
    cost = metrics.to_target(curve, history.totals(), 0.5)
    np.testing.assert_allclose(cost["rounds"], [4, np.inf])
    np.testing.assert_allclose(cost["megabytes"], [4 * 2.0, np.inf])  # 4 clients x 4 Mbit = 2 MB
    np.testing.assert_allclose(cost["grads"], [4 * 20, np.inf])
    np.testing.assert_allclose(cost["seconds"], [10, np.inf])
    with pytest.raises(ValueError, match="evenly spaced"):
        metrics.to_target(curve[:, :2].repeat(2, 1), history.totals(), 0.5)


def test_intervals():
    a, b = np.array([1.0, 2, 3, 4, 5]), np.array([1.0, 1, 2, 2, 2])
    mean, half = metrics.t_interval(a)
    assert mean == 3
    np.testing.assert_allclose(half, 2.7764451051977987 * np.sqrt(2.5 / 5))  # t(.975, 4)
    mean, half = metrics.paired(a, b)
    np.testing.assert_allclose(mean, 1.4)
    np.testing.assert_allclose(half, 2.7764451051977987 * np.std(a - b, ddof=1) / np.sqrt(5))
    assert np.isnan(metrics.t_interval([1.0])[1]) and np.isnan(metrics.t_interval([1, np.nan])[0])
    np.testing.assert_array_equal(metrics.t_interval(np.ones((3, 2)))[1], np.zeros(3))


def test_bad_input():
    with pytest.raises(ValueError, match="no examples"):
        metrics.Evaluate(MODEL, {"x": EXAMPLES["x"][:0], "y": EXAMPLES["y"][:0]})(State(ONE))
    with pytest.raises(ValueError, match="shapes of logistic"):
        metrics.Evaluate(MODEL, EXAMPLES)(State({"head": {"w": X, "b": Y}}))
    split = data.Partition(*(np.array(a, np.int32) for a in ([0, 1], [0, 1], [1, 1])))
    with pytest.raises(ValueError, match="no held-out example"):
        metrics.label_weights(split, [0, 1], [1, 1], 2)
