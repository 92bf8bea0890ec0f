"""An index that no model has is refused before anything is computed, wherever one is taken."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxfl import data, metrics, models
from jaxfl.algorithms import FedAvg
from jaxfl.engine.clients import Clients
from jaxfl.engine.simulate import simulate
from jaxfl.networks import Everyone, Uniform
from jaxfl.runs.run import run
from jaxfl.studies import experiment
from jaxfl.studies.config import Config

KEY = jax.random.key(0)
N, SIZE, INPUTS = 4, 24, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(SIZE, INPUTS))
PART = data.iid(SIZE, n=N)


def labels(classes, shape=(SIZE,)):
    y = RNG.integers(0, classes, shape)
    y.flat[:2] = 0, classes - 1  # both ends
    return y


def linear(outputs):
    """A model whose outputs are as many as its parameters say."""
    return models.from_functions(lambda key: jnp.ones((INPUTS, outputs)), lambda p, x: x @ p)


TOKENS = models.from_functions(lambda key: jnp.ones(5), lambda p, x: x[..., None] * p[None, None])


def state(model):
    return FedAvg.State(model.init(KEY))


def make(model, y, loss=models.cross_entropy, x=X, **options):
    return Clients.make({"x": x, "y": y}, PART, loss(model), batch=2, **options)


def simulated(model, y, **options):
    """The arrays, or the evaluator, are only seen here."""
    fine = make(model, np.zeros_like(y))
    if not options:
        fine = replace(fine, data=fine.data._replace(arrays={"x": X, "y": jnp.asarray(y)}))
    call = lambda: simulate(
        FedAvg(lr=0.1), fine, Everyone(N), model.init(KEY), KEY, rounds=1, **options
    )
    return jax.eval_shape(call)  # refused while it is traced


def evaluated(model, y):
    both = metrics.together(one=metrics.Evaluate(model, {"x": jnp.asarray(X), "y": jnp.asarray(y)}))
    return simulated(model, y, every=1, evaluate=both)


def held_out(model, y):
    clients = make(model, y, lambda model: lambda params, examples, key: examples["x"][:, 0])
    return metrics.HeldOut(model, clients)(state(model))


def on_the_host(model, y):
    clients = make(model, y, host=True)
    return run(FedAvg(lr=0.1), clients, Uniform(N, N), model.init(KEY), KEY, rounds=2)


def of_a_data_set(model, y):
    fine = {"x": X, "y": np.zeros(SIZE, int)}
    mine = data.Dataset("mine", fine, fine | {"y": y}, fine, classes=model.init(KEY).shape[-1])
    return experiment.task(Config.make(), mine, model)


PLACES = {
    "clients": make,
    "regularised": partial(make, loss=lambda m: models.regularised(models.cross_entropy(m), 0.1)),
    "other arrays in simulate": simulated,
    "evaluator in simulate": evaluated,
    "evaluate": lambda m, y: metrics.Evaluate(m, {"x": X, "y": y})(state(m)),
    "held out": held_out,
    "host": on_the_host,
    "compare": of_a_data_set,
    "label weights": lambda m, y: metrics.label_weights(
        PART, y, np.arange(m.init(KEY).shape[-1]), m.init(KEY).shape[-1]
    ),
    "held labels": lambda m, y: metrics.label_weights(
        PART, np.zeros(SIZE, int), y, m.init(KEY).shape[-1]
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("classes", [3, 200])  # picked by a mask, and by an index
def test_labels_outside_of_the_outputs(place, classes):
    model, y = linear(classes), labels(classes)
    PLACES[place](model, y)
    for shift, low, high in ((1, 1, classes), (-1, -1, classes - 2)):
        seen = r"-?\d+ to \d+" if place == "host" else f"{low} to {high}"  # there by and by
        words = rf"labels {seen}, and the model has {classes} outputs.*np\.unique"
        with pytest.raises(ValueError, match=words):
            PLACES[place](model, y + shift)


KINDS = {
    "float labels": (lambda: make(linear(3), X[:, 0]), "must be integers.*float64.*squared_error"),
    "float labels, evaluated": (
        lambda: metrics.Evaluate(linear(3), {"x": X, "y": X[:, 0]})(state(linear(3))),
        r"targets, 3 per example.*got 1; labels are integers: `y\.astype\(int\)`",
    ),
    "truth values": (
        lambda: metrics.Evaluate(linear(1), {"x": X, "y": X[:, 0] > 0})(state(linear(1))),
        r"bool must be targets.*`y\.astype\(int\)`",
    ),
    "integer targets": (
        lambda: metrics.Evaluate(linear(1), {"x": X, "y": labels(9)})(state(linear(1))),
        r"has 1 output, .*floats: `y\.astype\(np\.float32\)`",
    ),
    "integer targets of clients": (
        lambda: metrics.HeldOut(linear(1), make(linear(1), labels(9), models.squared_error))(
            state(linear(1))
        ),
        r"has 1 output, .*floats: `y\.astype\(np\.float32\)`",
    ),
    "several integer targets": (
        lambda: metrics.Evaluate(linear(2), {"x": X, "y": labels(9, (SIZE, 2))})(state(linear(2))),
        r"labels \[N, 2\], which outputs \(2,\).*floats: `y\.astype\(np\.float32\)`",
    ),
    "label weights of fewer classes": (
        lambda: metrics.Evaluate(linear(3), {"x": X, "y": labels(3)}, jnp.ones((N, 2))).check(),
        "label_weights must have a column per class, got 2 for labels 0 to 2",
    ),
    "float label weights": (
        lambda: metrics.label_weights(PART, X[:, 0], labels(3), 3),
        "must be integers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_targets_of_the_wrong_kind(name):
    call, words = KINDS[name]
    with pytest.raises(ValueError, match=words):
        call()


def test_params_of_fewer_outputs_than_the_model_begins_with():
    clients = make(linear(3), labels(3))
    for start in (simulate, run):
        with pytest.raises(ValueError, match="labels 0 to 2, and the model has 2 outputs"):
            start(FedAvg(lr=0.1), clients, Everyone(N), jnp.ones((INPUTS, 2)), KEY, rounds=1)


def test_examples_of_nobody_may_be_without_a_label():
    y, (order, start, count) = labels(3), PART[:3]
    y[order[start[0] + 1]] = -1
    with pytest.raises(ValueError, match=rf"row {order[start[0] + 1]} has -1.*rows = y >= 0"):
        make(linear(3), y)
    start, count = start.copy(), count.copy()
    start[0], count[0] = start[0] + 2, count[0] - 2
    loss = models.cross_entropy(linear(3))
    clients = Clients.make({"x": X, "y": y}, (order, start, count), loss)
    metrics.HeldOut(linear(3), clients)(state(linear(3)))
    with pytest.raises(ValueError, match="row"):
        metrics.Evaluate(linear(3), {"x": X, "y": y})(state(linear(3)))


def test_labels_that_augmentation_makes_are_not_those_of_the_arrays():
    def mixed(examples, key):
        return {"x": examples["x"][:, 1:], "y": examples["y"] - 1}

    def hot(examples, key):
        return examples | {"y": jax.nn.one_hot(examples["y"] - 1, 2)}

    smaller = models.from_functions(lambda key: jnp.ones((INPUTS - 1, 3)), lambda p, x: x @ p)
    with pytest.raises(ValueError, match="labels 1 to 3"):  # as far as one can see
        make(smaller, labels(3) + 1, augment=mixed)
    make(linear(2), labels(2) + 1, models.squared_error, augment=hot)
    make(linear(2), labels(2) + 1, augment=hot)  # `simulate` says what the loss does not take


# Padding -----------------------------------------------------------------------------------------


def sequences(pad):
    y = labels(5, (SIZE, 6))
    y[RNG.random(y.shape) < 0.4] = pad
    return y, RNG.normal(size=(SIZE, 6))


@pytest.mark.parametrize("pad", [-1, 0, 4, 99])
def test_padding_is_what_the_loss_says(pad):
    y, x = sequences(pad)
    loss = partial(models.sequence_cross_entropy, pad=pad)
    clients = make(TOKENS, y, loss, x=x)
    p = jnp.asarray(RNG.normal(size=5))
    z = x[..., None] * np.asarray(p)
    logs = z - np.log(np.exp(z).sum(-1, keepdims=True))
    kept = y != pad
    picked = np.take_along_axis(logs, np.where(kept, y, 0)[..., None], -1)[..., 0]
    expected = {
        "accuracy": (z.argmax(-1) == y)[kept].mean(),
        "loss": -picked[kept].mean(),
    }
    for evaluate in (
        metrics.Evaluate(TOKENS, {"x": x, "y": y}, pad=pad),
        metrics.Evaluate(TOKENS, {"x": x, "y": y}, pad=pad, block=5),
    ):
        found = evaluate(FedAvg.State(p))
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-12)
    found = metrics.HeldOut(TOKENS, clients)(FedAvg.State(p))
    rows = PART.of(1)
    own = (z.argmax(-1) == y)[rows][kept[rows]].mean()
    np.testing.assert_allclose(found["clients"][1], own, atol=1e-12)
    for other in {-1, 99} - {pad}:
        bad = np.where(np.arange(6) == 2, other, y)
        calls = (
            lambda bad=bad: make(TOKENS, bad, loss, x=x),
            lambda bad=bad: metrics.Evaluate(TOKENS, {"x": x, "y": bad}, pad=pad)(FedAvg.State(p)),
        )
        for call in calls:
            with pytest.raises(ValueError, match=rf"row 0 has {other}"):
                call()


@pytest.mark.parametrize("classes", [3, 200])
def test_labels_that_nobody_could_look_at_are_nan(classes):
    model, y = linear(classes), labels(classes)
    for wrong in (-1, classes):
        bad = jnp.asarray(y).at[5].set(wrong)
        loss = jax.jit(models.cross_entropy(model))(model.init(KEY), {"x": X, "y": bad})
        assert np.isnan(loss[5]) and np.isfinite(np.delete(loss, 5)).all()
        found = jax.jit(lambda e: e(state(model)))(metrics.Evaluate(model, {"x": X, "y": bad}))
        assert np.isnan(found["loss"]) and np.isnan(found["accuracy"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint32, np.int64, bool])
@pytest.mark.parametrize("classes", [2, 300])
def test_labels_of_any_integers(dtype, classes):
    model, y = linear(classes), labels(2)
    loss = models.cross_entropy(model)
    clients = make(model, y.astype(dtype))
    values = [loss(model.init(KEY), {"x": X, "y": jnp.asarray(y.astype(d))}) for d in (dtype, int)]
    np.testing.assert_array_equal(*values)
    if dtype is not bool:
        found = metrics.HeldOut(model, clients)(state(model))
        np.testing.assert_allclose(found["loss"], values[0].mean())


# Tokens ------------------------------------------------------------------------------------------

VOCAB = 9


class Embedded(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Embed(VOCAB, 4)(x).mean(1))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.embed, self.head = nnx.Embed(VOCAB, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.embed(x).mean(1))


def table(look_up):
    draw = lambda key: jnp.ones((VOCAB, 2))
    return models.from_functions(draw, lambda params, x: look_up(params, x).sum(1))


BY = {
    "char_lstm": lambda: models.char_lstm(VOCAB, 5, every=False),
    "word_lstm": lambda: models.word_lstm(VOCAB, 5, every=False),
    "transformer": lambda: models.transformer(VOCAB, 8, 1, 2, 8, 5, every=False),
    "linen": lambda: models.from_linen(Embedded(), jnp.ones((1, 5), int)),
    "nnx": lambda: models.from_nnx(Nnx),
    "functions": lambda: table(lambda e, x: e[x]),
    "take": lambda: table(lambda e, x: jnp.take(e, x, axis=0)),
    "shifted": lambda: table(lambda e, x: e[(x + 3) - 3]),
    "mapped": lambda: table(lambda e, x: jax.vmap(jax.vmap(lambda i: e[i]))(x)),
}


def tokens(low=0, high=VOCAB - 1):
    x = RNG.integers(0, VOCAB, (SIZE, 5))
    x[7, 3], x[9, 1] = low, high
    return x


@pytest.mark.parametrize("name", BY)
def test_tokens_that_a_model_does_not_know(name):
    model, y = BY[name](), labels(2)
    make(model, y, x=tokens())
    for x, words in (
        (tokens(high=VOCAB), f"0 to {VOCAB}, and the model looks up {VOCAB} in a table of {VOCAB}"),
        (tokens(low=-1), rf"-1 to {VOCAB - 1}, .*looks up -1 .*jnp\.maximum\(x, 0\)"),
    ):
        with pytest.raises(ValueError, match=words):
            make(model, y, x=x)
        with pytest.raises(ValueError, match=words):
            metrics.Evaluate(model, {"x": x, "y": y}).check()


FINE = {
    "clip": lambda e, x: e.at[x].get(mode="clip"),
    "filled": lambda e, x: e.at[x].get(mode="fill", fill_value=0.0),
    "masked": lambda e, x: jnp.where((x >= 0)[..., None], e[jnp.maximum(x, 0) % VOCAB], 0),
    "replaced": lambda e, x: e[jnp.where((x < 0) | (x >= VOCAB), 0, x)],
    "shifted": lambda e, x: e[(x + 1) // 2],
    "numbers": lambda e, x: x[..., None] * e[:1],
}


@pytest.mark.parametrize("name", FINE)
def test_what_a_model_does_itself_with_numbers_beyond_a_table(name):
    make(table(FINE[name]), labels(2), x=tokens(-1, VOCAB))


def test_images_of_integers_are_no_tokens():
    x = RNG.integers(0, 256, (SIZE, 8, 8, 1)).astype(np.uint8)
    make(models.mlp(64, 2, (4,)), labels(2), x=x)
    make(models.cifar_cnn(2, (8, 8, 1)), labels(2), x=x)


# Asked once --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A loss that notes when it is asked."""

    asked: Any

    def __call__(self, params, examples, key):
        return examples["x"] @ params

    def check(self, examples, params=None, augment=None, rows=None):
        self.asked.append(params is not None)

    def __hash__(self):
        return id(self.asked)


def test_what_passed_is_not_checked_again():
    loss = Asked([])
    clients = Clients.make({"x": X}, PART, loss)
    assert loss.asked == [False]
    for lr in (0.1, 0.2):
        call = lambda x, lr=lr: simulate(FedAvg(lr=lr), clients, Everyone(N), x, KEY, rounds=1)
        jax.eval_shape(call, jnp.ones(INPUTS))
        jax.eval_shape(call, jnp.zeros(INPUTS))
    assert loss.asked == [False, True]
    Clients.make({"x": X}, PART, loss)  # other arrays
    assert loss.asked == [False, True, False]
    jax.eval_shape(lambda clients: clients.check(), clients)  # nothing to look at
    assert loss.asked == [False, True, False]


# What x may be -----------------------------------------------------------------------------------

LISTS = {
    "clients": lambda x, y: Clients.make({"x": x, "y": y}, PART, models.cross_entropy(linear(3))),
    "evaluate": lambda x, y: metrics.Evaluate(linear(3), {"x": x, "y": y})(state(linear(3))),
    "make": lambda x, y: models.make("mlp", {"x": x, "y": y}, 3),
    "linen": lambda x, y: models.from_linen(nn.Dense(3), x),
}


@pytest.mark.parametrize("place", LISTS)
def test_lists_of_numbers_are_not_printed(place):
    with pytest.raises((ValueError, TypeError), match=r"array|batch") as error:
        LISTS[place](X.tolist(), labels(3).tolist())
    assert len(str(error.value)) < 250
    assert any(fix in str(error.value) for fix in ("np.asarray", "jnp.ones"))


@pytest.mark.parametrize("name", ["fedavg_cnn", "cifar_cnn", "lenet5", "resnet18"])
def test_images_have_channels_last(name):
    for shape in ((3, 32, 32), (1, 28, 28), (3, 32, 48)):
        x = np.zeros((2, *shape), np.float32)
        with pytest.raises(ValueError, match=r"channels last.*Use x\.transpose\(0, 2, 3, 1\)"):
            models.make(name, {"x": x}, 10)
        build = models.MODELS[name]
        model = build(10, (32, 32, 3))
        with pytest.raises(ValueError, match=r"Use x\.transpose\(0, 2, 3, 1\)"):
            jax.eval_shape(model.apply, jax.eval_shape(model.init, KEY), x)
        models.make(name, {"x": x.transpose(0, 2, 3, 1)}, 10)


def test_images_too_small_to_pool():
    with pytest.raises(ValueError, match="at least 2 x 2 pixels to pool, got 1 x 1"):
        jax.eval_shape(models.fedavg_cnn(10, (3, 3, 1)).init, KEY)


def test_outputs_are_not_counted_by_the_largest_label():
    examples = {"x": X, "y": np.arange(SIZE)}
    with pytest.raises(ValueError, match=r"classes: .*got 1,000,000,001: .*np\.unique"):
        models.make("logistic", examples, 10**9 + 1)
    with pytest.raises(ValueError, match="classes: expected the number of outputs"):
        models.make("logistic", examples, 0)
