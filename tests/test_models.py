"""Models: sizes, convolution forms, adapters, losses, equality."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

from jaxfl import models
from jaxfl.models import conv as conv_file

KEY = jax.random.key(0)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def filled(init, *args):
    """Parameters of the right shapes, without compiling a draw."""
    return jax.tree.map(lambda leaf: normal(2, *leaf.shape) / 4, jax.eval_shape(init, *args))


def close(a, b, tol=1e-12):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        p, q = np.asarray(p), np.asarray(q)
        np.testing.assert_allclose(p, q, rtol=tol, atol=tol * max(1.0, np.abs(q).max()))


# --- sizes

SIZES = [
    (models.logistic(784, 10), 7_850),
    (models.mlp(784, 10, (200, 200)), 199_210),
    (models.fedavg_cnn(), 1_663_370),
    (models.fedavg_cnn(padding="VALID"), 582_026),
    (models.fedavg_cnn(10, (32, 32, 3), padding="VALID"), 878_538),
    (models.fedavg_cnn(62, hidden=2048), 6_603_710),
    (models.cifar_cnn(), 1_626_442),
    (models.cifar_cnn(62, (28, 28, 1)), 1_206_590),
    (models.lenet5(), 62_006),
    (models.resnet18(), 11_173_962),
    (models.resnet18(100, groups=2), 11_220_132),
    (models.char_lstm(), 817_872),
    (models.char_lstm(90), 820_522),
    (models.word_lstm(), 4_050_748),
    (models.transformer(), 115_536),
]


@pytest.mark.parametrize(("model", "size"), SIZES, ids=lambda v: getattr(v, "name", v))
def test_parameter_counts_of_the_literature(model, size):
    assert model.size == size


# name, shape of one example, dtype, classes, options, shape of the outputs of two
SHAPES = [
    ("logistic", (5, 2), float, 3, {}, (2, 3)),
    ("mlp", (7,), float, 3, {"hidden": [4, 4]}, (2, 3)),
    ("fedavg_cnn", (9, 8), np.uint8, 4, {"hidden": 8}, (2, 4)),
    ("cifar_cnn", (9, 8, 2), float, 4, {}, (2, 4)),
    ("lenet5", (16, 17, 1), np.float32, 4, {}, (2, 4)),
    ("resnet18", (8, 8, 3), float, 5, {"groups": 2}, (2, 5)),
    ("cnn1d", (40,), float, 4, {}, (2, 4)),
    ("cnn1d", (21, 2), float, 4, {"channels": 3}, (2, 4)),
    ("factors", (), np.int32, 1, {"rank": 2}, (2, 1)),
    ("factors", (), np.int32, 1, {"items": 9}, (2, 1)),
    ("char_lstm", (6,), np.int32, 11, {}, (2, 6, 11)),
    ("char_lstm", (6,), np.int32, 11, {"every": False}, (2, 11)),
    ("word_lstm", (3,), np.int32, 7, {}, (2, 3, 7)),
    ("transformer", (6,), np.int32, 11, {"layers": 1}, (2, 6, 11)),
    ("transformer", (6,), np.int32, 11, {"every": False, "heads": 2}, (2, 11)),
]


@pytest.mark.parametrize(("name", "shape", "dtype", "classes", "options", "out"), SHAPES)
def test_make_sizes_a_model_from_examples(name, shape, dtype, classes, options, out):
    x = np.ones((2, *shape), dtype)
    model = models.make(name, {"x": x, "y": np.zeros(2, int)}, classes, **options)
    assert model.name == name
    params = jax.eval_shape(model.init, KEY)
    assert {type(node) for node in params.values()} <= {dict, jax.ShapeDtypeStruct}
    assert all(leaf.dtype == jnp.result_type(float) for leaf in jax.tree.leaves(params))
    outputs = jax.eval_shape(partial(model.apply, train=True), params, x, KEY)
    assert (outputs.shape, outputs.dtype) == (out, jnp.result_type(float))
    assert "head" in params


def test_every_registered_model_is_tried():
    assert {row[0] for row in SHAPES} == set(models.MODELS)


def test_wrong_names_options_and_shapes_say_what_to_write():
    examples = {"x": np.zeros((2, 28, 28))}
    with pytest.raises(ValueError, match="Use name='resnet18'"):
        models.make("resnet", examples, 10)
    with pytest.raises(ValueError, match=r"options: expected some of .* got \['depth'\]"):
        models.make("mlp", examples, 10, depth=3)
    with pytest.raises(ValueError, match="a divisor of 64, got 3"):
        models.resnet18(groups=3)
    with pytest.raises(ValueError, match="a divisor of width 64, got 5"):
        models.transformer(heads=5)
    model = models.transformer(length=4)
    with pytest.raises(ValueError, match="Use length=5"):
        jax.eval_shape(model.apply, jax.eval_shape(model.init, KEY), jnp.zeros((1, 5), int))
    model = models.lenet5()
    with pytest.raises(ValueError, match=r"x: expected images .* Use x\.reshape"):
        jax.eval_shape(model.apply, jax.eval_shape(model.init, KEY), jnp.zeros((1, 3072)))
    with pytest.raises(ValueError, match="kernel: expected at most the padded image"):
        jax.eval_shape(models.lenet5(shape=(8, 8, 3)).init, KEY)
    with pytest.raises(
        ValueError, match="form: expected one of .'serial', 'shifts', 'lax'. or None"
    ):
        jax.eval_shape(models.lenet5(form="fft").init, KEY)


# --- convolution

FORMS = [
    ((9, 8), (3, 3), (1, 1), "SAME"),
    ((9, 8), (3, 3), (2, 2), "SAME"),
    ((8, 9), (5, 3), (1, 3), "VALID"),
    ((9, 8), (1, 1), (2, 2), "SAME"),
    ((9, 8), (4, 5), (3, 2), ((2, 0), (1, 3))),
]


@pytest.mark.parametrize(("image", "size", "strides", "padding"), FORMS)
def test_forms_of_convolution_agree_with_gradients_and_over_clients(image, size, strides, padding):
    x, kernel = normal(1, 2, 2, *image, 3), normal(2, 2, *size, 3, 4)

    def lax_conv(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)

    def value(f, x, kernel):
        y, vjp = jax.vjp(f, x, kernel)
        return y, vjp(jnp.cos(y))

    ours = [
        partial(f, strides=strides, padding=padding)
        for f in (models.serial, models.shifts, models.grouped)
    ]

    @jax.jit
    def run(x, kernel):
        alone = jax.lax.map(lambda pair: value(lax_conv, *pair), (x, kernel))
        return alone, *(jax.vmap(partial(value, f))(x, kernel) for f in ours)

    alone, *stacked = run(x, kernel)
    for results in stacked:
        close(results, alone)


def test_the_form_follows_backend_dtype_and_devices_unless_given(monkeypatch):
    assert models.form("cpu", "bfloat16") == models.form("cpu", "float32") == "serial"
    assert models.form("cpu", "float64") == models.form("cpu", "float32", devices=2) == "shifts"
    assert models.form("gpu") == models.form("tpu") == "lax"
    x = jnp.ones((1, 4, 4, 2))

    def primitives(**options):
        layer = models.Conv(3, **options)
        return str(jax.make_jaxpr(layer.apply)(filled(layer.init, KEY, x), x)).replace("[", " ")

    assert not {"client_conv", "grouped_conv"} & set(primitives(form="shifts").split())
    assert "client_conv" in primitives(form="serial")
    assert "grouped_conv" in primitives(form="lax")
    monkeypatch.setattr(conv_file, "form", lambda *given: "lax")
    assert "grouped_conv" in primitives()


def test_conv_and_dense_are_those_of_flax():
    x = normal(0, 2, 7, 6, 3)
    for padding, strides in (("SAME", (1, 1)), ("VALID", (2, 1))):
        ours = models.Conv(4, (3, 2), padding=padding, strides=strides)
        theirs = nn.Conv(4, (3, 2), padding=padding, strides=strides)
        params = filled(ours.init, KEY, x)
        close(jax.jit(ours.apply)(params, x), jax.jit(theirs.apply)(params, x))
    for outputs in (2, 4):  # few and many for three inputs
        params = filled(models.Dense(outputs).init, KEY, x)
        theirs = jax.tree.map(lambda a: a.T, params)  # kernels are [out, in]
        ours = jax.jit(models.Dense(outputs).apply)(params, x)
        close(ours, jax.jit(nn.Dense(outputs).apply)(theirs, x))


@pytest.mark.parametrize(("image", "window"), [((6, 4), 2), ((7, 5), 2), ((7, 10), 3)])
def test_max_pool_is_that_of_flax(image, window):
    x = normal(0, 2, *image, 3)

    def value(pool, x):
        y, vjp = jax.vjp(pool, x)
        return y, vjp(jnp.cos(y))

    def theirs(x):
        return nn.max_pool(x, (window, window), (window, window))

    ours = partial(models.max_pool, window=window)
    close(*jax.jit(lambda x: (value(ours, x), value(theirs, x)))(x))


# --- sequences


def test_lstm_is_that_of_flax():
    x, layer = normal(0, 2, 5, 3), models.LSTM(4)
    params = jax.jit(layer.init)(KEY, x)["params"]
    np.testing.assert_array_equal(params["bias"], np.repeat([0, 1, 0, 0], 4))
    params["bias"] = normal(1, 16)
    gates = {
        **{
            f"i{g}": {"kernel": params["kernel"][:, 4 * i : 4 * i + 4]}
            for i, g in enumerate("ifgo")
        },
        **{
            f"h{g}": {
                "kernel": params["recurrent"][:, 4 * i : 4 * i + 4],
                "bias": params["bias"][4 * i : 4 * i + 4],
            }
            for i, g in enumerate("ifgo")
        },
    }
    theirs = nn.RNN(nn.OptimizedLSTMCell(4, param_dtype=float))
    expected = jax.jit(theirs.apply)({"params": {"cell": gates}}, x)
    close(jax.jit(layer.apply)({"params": params}, x), expected)
    for gate in np.split(np.asarray(params["recurrent"]), 4, 1):
        close(gate @ gate.T, np.eye(4))


@pytest.mark.parametrize("name", ["char_lstm", "transformer"])
def test_language_models_do_not_see_the_future(name):
    x = jnp.arange(12).reshape(2, 6) % 5
    model = models.make(name, {"x": x}, 5)
    short = models.make(name, {"x": x}, 5, every=False)

    @jax.jit
    def run(params, x):
        return model.apply(params, x), short.apply(params, x)

    both = jnp.concatenate([x, x.at[:, 4].set(3)])
    every, last = map(np.asarray, run(filled(model.init, KEY), both))
    before, after = every[:2], every[2:]
    close(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-6
    close(last, every[:, -1])


# --- adapters


class Linen(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, deterministic=True):
        x = nn.relu(nn.Dense(40, param_dtype=float, name="dense1")(x))
        x = nn.Dropout(self.rate, deterministic=deterministic)(x)
        return nn.Dense(33, param_dtype=float, name="head")(x)


class Nnx(nnx.Module):
    def __init__(self, inputs, rate=0.0, *, rngs):
        self.dense1 = nnx.Linear(inputs, 40, param_dtype=float, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(40, 33, param_dtype=float, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.dense1(x))))


def apply(params, x):
    x = jax.nn.relu(x @ params["dense1"]["kernel"].T + params["dense1"]["bias"][None])
    return x @ params["head"]["kernel"].T + params["head"]["bias"][None]


turned = partial(jax.tree.map, jnp.transpose)  # kernels are [out, in], those of flax [in, out]
X = jax.ShapeDtypeStruct((9, 6), float)
MLP = models.mlp(6, 33, (40,))
SAME = {
    "linen": lambda rate=0.0: models.from_linen(Linen(rate), X),
    "nnx": lambda rate=0.0: models.from_nnx(Nnx, 6, rate=rate),
    "nnx module": lambda rate=0.0: models.from_nnx(Nnx(6, rate, rngs=nnx.Rngs(0))),
}


@pytest.mark.parametrize("name", [*SAME, "functions"])
def test_adapters_agree(name):
    model = models.from_functions(MLP.init, apply) if name == "functions" else SAME[name]()
    assert type(jax.eval_shape(model.init, KEY)) is dict
    assert model.size == MLP.size
    params = filled(MLP.init, KEY)
    examples = {"x": normal(1, 5, 6), "y": jnp.arange(5) % 3}

    def total(params, model, key):
        params = turned(params) if name in SAME and model is not MLP else params
        values = models.cross_entropy(model)(params, examples, key)
        return values.sum(), (values, model.apply(params, examples["x"]))

    @jax.jit
    def run(params, key):
        grad = partial(jax.grad(total, has_aux=True), params)
        return [grad(m, k) for m in (model, MLP) for k in (None, key)]

    one, two, three, four = run(params, KEY)
    close(one, two)
    close(one, three)
    close(one, four)


@pytest.mark.parametrize("name", SAME)
def test_adapters_draw_a_model_per_key(name):
    model = SAME[name]()

    @jax.jit
    @jax.vmap
    def run(key):
        params = model.init(key)
        return params, model.apply(params, jnp.ones((5, 6)), key, train=True)

    stacked, outputs = run(jax.random.split(KEY, 2))
    assert outputs.shape == (2, 5, 33)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(
        lambda leaf: (2, *leaf.shape), jax.eval_shape(lambda key: turned(MLP.init(key)), KEY)
    )
    kernel = np.asarray(stacked["head"]["kernel"])
    assert (np.abs(kernel[0] - kernel[1]).max() > 0.01) == (name != "nnx module")


@pytest.mark.parametrize("name", SAME)
def test_dropout_draws_from_the_key_in_training_only(name):
    model, x = SAME[name](0.5), jnp.ones((64, 6))
    params = turned(filled(MLP.init, KEY))
    loss, examples = models.cross_entropy(model), {"x": x, "y": jnp.zeros(64, int)}

    @jax.jit
    def run(key):
        train = model.apply(params, x, key, train=True), loss(params, examples, key)
        return train, model.apply(params, x, key), loss(params, examples)

    (one, value), drawn, still = jax.tree.map(np.asarray, run(jax.random.key(1)))
    (two, _), again, _ = jax.tree.map(np.asarray, run(jax.random.key(2)))
    close(run(jax.random.key(1))[0], (one, value), 0)
    close(drawn, again, 0)
    assert np.abs(one - two).max() > 1e-3
    assert np.ptp(still) < 1e-12 < np.ptp(value)
    with pytest.raises(ValueError, match=r"key: expected a random key.*train=True\)"):
        jax.eval_shape(partial(model.apply, train=True), params, x)


def test_functions_may_take_key_and_train():
    def noisy(params, x, key, train):
        return x * params + jax.random.normal(key, x.shape) * train

    model = models.from_functions(lambda key: jnp.ones(()), noisy, name="noisy")
    assert model.name == "noisy"
    assert jnp.ptp(model.apply(jnp.ones(()), jnp.ones(9), KEY, train=True)) > 0
    assert jnp.ptp(model.apply(jnp.ones(()), jnp.ones(9), KEY)) == 0
    with pytest.raises(TypeError, match=r"apply: expected \(params, x\).*Use lambda"):
        models.from_functions(lambda key: None, lambda params, rng, x: x)


def test_running_statistics_are_refused_with_the_reason():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(6, rngs=rngs)

        def __call__(self, x):
            return self.norm(x)

    reason = r"got also \['{}'\].*BatchNorm.*GroupNorm is the default"
    with pytest.raises(ValueError, match=reason.format("batch_stats")):
        models.from_linen(nn.BatchNorm(use_running_average=False), X)
    for module in (Net, Net(nnx.Rngs(0))):
        with pytest.raises(ValueError, match=reason.format("BatchStat")):
            models.from_nnx(module)
    with pytest.raises(TypeError, match="Use a tuple"):
        models.from_nnx(Nnx, [6])


def flagged(flag, default, off):
    """Modules whose dropout is off where `off`, an expression of a flag of their call."""
    text = f"""
class Flagged(nn.Module):
    rate: float = 0.5
    @nn.compact
    def __call__(self, x, {flag}{default}):
        return nn.Dropout(self.rate, deterministic={off})(nn.Dense(16)(x))
class FlaggedNnx(nnx.Module):
    def __init__(self, rngs, rate=0.5):
        self.dense, self.drop = nnx.Linear(6, 16, rngs=rngs), nnx.Dropout(rate, rngs=rngs)
    def __call__(self, x, {flag}{default}):
        return self.drop(self.dense(x), deterministic={off})
"""
    exec(text, scope := {"nn": nn, "nnx": nnx})
    return scope["Flagged"], scope["FlaggedNnx"]


def adapters(flag, default, off):
    linen, nnx_ = flagged(flag, default, off)
    return {
        "linen": lambda **o: models.from_linen(linen(**o), X),
        "nnx": lambda **o: models.from_nnx(nnx_, **o),
        "nnx module": lambda **o: models.from_nnx(nnx_(nnx.Rngs(0), **o)),
    }


def draws(model):
    """Whether two keys give two outputs, in training and in evaluation."""
    x = jnp.ones((4, 6))
    params = model.init(KEY)
    keys = jax.random.split(KEY, 2)
    differ = lambda a: bool((jnp.ptp(a, 0) > 0).any())
    one = lambda train: lambda key: model.apply(params, x, key, train=train)
    return [differ(jax.vmap(one(train))(keys)) for train in (True, False)]


TRAIN, STILL = ["is_train", "train", "training"], ["inference", "eval_mode", "testing"]
NAMES = [
    *[(name, "=False", f"not {name}") for name in TRAIN],
    *[(name, "=True", name) for name in [*STILL, "deterministic"]],
    ("is_training", "", "not is_training"),
    ("train", "=None", "not train"),
]


@pytest.mark.parametrize("adapter", ["linen", "nnx", "nnx module"])
@pytest.mark.parametrize("flag", NAMES, ids=lambda f: "".join(f[:2]))
def test_dropout_is_on_in_training_by_whatever_flag(adapter, flag):
    assert draws(adapters(*flag)[adapter]()) == [True, False]


@pytest.mark.parametrize("adapter", ["linen", "nnx", "nnx module"])
def test_dropout_that_no_flag_turns_on_is_refused(adapter):
    refused = {
        ("noisy", "=False", "not noisy"): "noisy=True, but noisy is no flag that train sets",
        ("quiet", "=True", "quiet"): "quiet=False, but quiet is no flag that train sets",
        ("other", "=3", "True"): r"'Dropout'.* to draw at random in training, but no",
        ("another", "=3", "False"): r"to draw nothing at random in evaluation.*not train\)",
    }
    for flag, words in refused.items():
        with pytest.raises(ValueError, match=words):
            draws(adapters(*flag)[adapter]())
    with pytest.raises(TypeError, match=r"__call__\(self, x, mode\)\. Use .*is_train"):
        adapters("mode", "", "mode")[adapter]()
    for flag in (*refused, ("features", "=False", "not features")):
        assert draws(adapters(*flag)[adapter](rate=0.0)) == [False, False]  # none to turn on


def test_flags_that_are_attributes():
    class Field(nn.Module):
        train: bool = True

        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=not self.train)(nn.Dense(16)(x))

    class Both(nn.Module):
        deterministic: bool | None = None

        @nn.compact
        def __call__(self, x, deterministic=None):
            off = nn.merge_param("deterministic", self.deterministic, deterministic)
            return nn.Dropout(0.5, deterministic=off)(nn.Dense(16)(x))

    class Attribute(nnx.Module):
        def __init__(self, rngs):
            self.is_train, self.rngs = False, rngs
            self.dense = nnx.Linear(6, 16, rngs=rngs)

        def __call__(self, x):
            x = self.dense(x)
            return x + jax.random.normal(self.rngs(), x.shape) if self.is_train else x

    for module in (Field(), Field(False), Both(), Both(True), Both(False)):
        assert draws(models.from_linen(module, X)) == [True, False]
    for module in (Attribute, Attribute(nnx.Rngs(0))):
        assert draws(models.from_nnx(module)) == [True, False]


class Constant(nn.Module):
    of: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential([nn.Dense(3)]), r"module\.layers: .*got list.*a tuple in place of a list"),
        (nn.Sequential((nn.relu, Constant([1]))), r"module\.layers\.of: .*a tuple"),
        (Constant({"a": 1}), r"module\.of: .*got dict\. Use flax\.core\.freeze"),
        (Constant(jnp.ones(3)), r"module\.of: .*got array\. Use a tuple of its numbers"),
        (Constant(np.ones(3)), r"module\.of: .*got array\. Use a tuple of its numbers"),
        (Constant((1, [2])), r"module\.of: .*got tuple"),
    ],
)
def test_linen_modules_that_cannot_be_compared_are_refused_at_once(module, words):
    with pytest.raises(TypeError, match=words):
        models.from_linen(module, X)


def test_an_example_of_another_width_than_jax_has_gives_no_warning():
    with jax.enable_x64(False):
        model = models.from_linen(nn.Dense(3), np.ones((1, 6)))
        assert model.size == 21


class Scaled(nnx.Module):
    def __init__(self, rngs, full=jnp.full):
        self.mean, self.head = full(6, 2.0), nnx.Linear(6, 3, param_dtype=float, rngs=rngs)

    def __call__(self, x):
        return self.head(x - self.mean[None])


@pytest.mark.parametrize(
    "build",
    [
        lambda full: models.from_nnx(Scaled, full=full),
        lambda full: models.from_nnx(Scaled(nnx.Rngs(0), full)),
    ],
    ids=["class", "module"],
)
@pytest.mark.parametrize("full", [jnp.full, np.full])
def test_arrays_of_nnx_modules_are_constants(build, full):
    model, x = build(full), normal(1, 5, 6)
    params = filled(model.init, KEY)
    assert set(params) == {"head"}
    expected = (x - 2) @ params["head"]["kernel"] + params["head"]["bias"][None]
    close(jax.jit(model.apply)(params, x), expected)
    assert models.from_nnx(Scaled, full=full) == models.from_nnx(Scaled, full=full)


def test_constants_that_are_drawn_or_variables_are_refused():
    class Drawn(nnx.Module):
        def __init__(self, rngs):
            self.features = jax.random.normal(rngs.params(), (6,))

        def __call__(self, x):
            return x * self.features

    class Held(nnx.Module):
        def __init__(self, rngs):
            self.mean = nnx.Variable(jnp.zeros(6))

        def __call__(self, x):
            return x - self.mean

    with pytest.raises(ValueError, match=r"constants .* got features, which is drawn\. Use nnx"):
        models.from_nnx(Drawn)
    with pytest.raises(ValueError, match=r"a constant is a plain array, self\.mean"):
        models.from_nnx(Held)


# --- equality

TWICE = [
    *(partial(builder, **o) for builder, o in [(models.mlp, {"inputs": 6, "classes": 3})]),
    *(models.MODELS[name] for name in models.MODELS if name not in ("logistic", "mlp", "factors")),
    lambda: models.factors(items=7, rank=2),
    SAME["linen"],
    SAME["nnx"],
    lambda: models.from_functions(MLP.init, apply),
]


@pytest.mark.parametrize("build", TWICE)
def test_models_and_losses_built_twice_are_equal(build):
    for wrap in (
        lambda model: model,
        models.cross_entropy,
        models.squared_error,
        partial(models.sequence_cross_entropy, pad=0),
        lambda model: models.regularised(models.cross_entropy(model), 0.1),
    ):
        one, two = wrap(build()), wrap(build())
        assert one == two and hash(one) == hash(two) and one is not two


def test_equal_losses_do_not_recompile_and_others_differ():
    traced = []

    @partial(jax.jit, static_argnums=0)
    def mean(loss, params, examples):
        traced.append(loss)
        return loss(params, examples, KEY).mean()

    params = jax.eval_shape(MLP.init, KEY)
    params, examples = (
        jax.tree.map(jnp.zeros_like, params),
        {"x": jnp.ones((2, 6)), "y": jnp.zeros(2, int)},
    )
    for _ in range(2):
        mean(models.cross_entropy(models.mlp(6, 33, (40,))), params, examples)
    assert len(traced) == 1
    losses = {
        models.cross_entropy(models.mlp(6, 33, (40,))),
        models.cross_entropy(models.mlp(6, 33, (41,))),
        models.squared_error(models.mlp(6, 33, (40,))),
        models.sequence_cross_entropy(MLP, pad=0),
        models.sequence_cross_entropy(MLP, pad=1),
        models.regularised(models.cross_entropy(MLP), 0.1),
        models.regularised(models.cross_entropy(MLP), 0.2),
        models.cross_entropy(models.cifar_cnn()),
        models.cross_entropy(models.cifar_cnn(dropout=(0.0, 0.0))),
        models.cross_entropy(models.lenet5(form="lax")),
        models.cross_entropy(models.lenet5()),
    }
    assert len(losses) == 11
    assert jax.tree.leaves(MLP) == [MLP]  # a leaf, not a pytree


# --- losses

IDENTITY = models.from_functions(lambda key: {"w": jnp.full(3, 2.0)}, lambda params, x: x)


def test_losses_are_the_formulas_one_number_per_example():
    z, params = np.random.default_rng(0).normal(size=(4, 5, 3)), {"w": jnp.full(3, 2.0)}
    y = np.array([[0, 1, 2, 1, 0], [2, 2, -1, -1, -1], [-1] * 5, [1, 0, 0, 0, -1]])
    logs = z - np.log(np.exp(z).sum(-1, keepdims=True))
    expected = [
        np.mean([-logs[i, t, y[i, t]] for t in range(5) if y[i, t] >= 0] or [0.0]) for i in range(4)
    ]
    examples = {"x": jnp.asarray(z), "y": jnp.asarray(y)}
    close(jax.jit(models.sequence_cross_entropy(IDENTITY))(params, examples), np.array(expected))
    first = {"x": jnp.asarray(z[:, 0]), "y": jnp.array([0, 2, 1, 1])}
    picked = -logs[np.arange(4), 0, [0, 2, 1, 1]]
    loss = models.cross_entropy(IDENTITY)
    close(jax.jit(loss)(params, first, KEY), picked)
    close(jax.jit(models.regularised(loss, 0.5))(params, first, KEY), picked + 0.25 * 12)
    for y in (z[:, 0] * 3 + 1, z[:, 0, :1]):
        x = jnp.asarray(z[:, 0, : y.shape[1]])
        halves = 0.5 * ((np.asarray(x) - y) ** 2).sum(1)
        targets = jnp.asarray(y if y.shape[1] > 1 else y[:, 0])
        close(jax.jit(models.squared_error(IDENTITY))(params, {"x": x, "y": targets}), halves)


def test_losses_refuse_shapes_that_would_broadcast():
    x, params = jnp.ones((4, 3)), None
    for loss, y, fix in [
        (models.cross_entropy(IDENTITY), jnp.ones((4, 3), int), "Use sequence_cross_entropy"),
        (models.sequence_cross_entropy(IDENTITY), jnp.ones(4, int), "Use cross_entropy"),
        (models.squared_error(IDENTITY), jnp.ones(4), "Use y.reshape"),
    ]:
        with pytest.raises(ValueError, match="examples: expected .*" + fix):
            loss(params, {"x": x, "y": y})
    with pytest.raises(ValueError, match="l2: expected at least 0, got -1"):
        models.regularised(loss, -1.0)


def test_the_parameters_decide_the_dtype():
    model = models.lenet5(3, (16, 16, 1))
    examples = {"x": np.ones((2, 16, 16), np.uint8), "y": np.zeros(2, np.int32)}
    for dtype, wide in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32)):
        shapes = jax.eval_shape(model.init, KEY)
        params = jax.tree.map(lambda p, dtype=dtype: p.update(dtype=dtype), shapes)
        assert jax.eval_shape(model.apply, params, examples["x"]).dtype == dtype
        assert jax.eval_shape(models.cross_entropy(model), params, examples).dtype == wide


def test_features_are_what_the_last_layer_gets():
    """On every model of ours, and on those of others where they say which layer is the last."""
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.body, self.drop = nnx.Linear(4, 8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.fc = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.fc(self.drop(nnx.relu(self.body(x))))

    key, x = jax.random.key(0), jnp.linspace(-1, 1, 8).reshape(2, 4)
    for model, inputs in (
        (models.logistic(4, 3), x),
        (models.mlp(4, 3, hidden=(16, 6)), x),
        (models.lenet5(), jnp.ones((2, 32, 32, 3))),
        (models.char_lstm(length=5), jnp.ones((2, 5), int)),
    ):
        params = model.init(key)
        head = params["head"]
        found = np.asarray(model.features(params, inputs))
        np.testing.assert_allclose(
            found @ np.asarray(head["kernel"]).T + np.asarray(head["bias"]),
            model.apply(params, inputs),
            atol=1e-5,
        )
    model = models.from_nnx(Net, head="fc")
    params = model.init(key)
    found, last = np.asarray(model.features(params, x)), params["fc"]
    np.testing.assert_allclose(
        found @ np.asarray(last["kernel"]) + np.asarray(last["bias"]),
        model.apply(params, x),
        atol=1e-6,
    )
    assert (model.features(params, x, key, train=True) == 0).any(), "dropout comes before"
    assert model == models.from_nnx(Net, head="fc") != models.from_nnx(Net)
    linear = models.from_functions(lambda key: jnp.ones((4, 3)), lambda params, x: x @ params)
    mine = models.from_functions(linear.init, linear.apply, features=lambda params, x: 2 * x)
    assert (mine.features(None, x) == 2 * x).all()
    for other in (models.from_nnx(Net), linear):
        with pytest.raises(ValueError, match="does not say what its features are"):
            other.features(other.init(key), x)


def test_factors_are_biases_and_a_product():
    model = models.factors(items=5, rank=2)
    params = model.init(KEY)
    x, head = np.array([3, 0, 3]), params["head"]
    bias, items, taste = (np.asarray(a) for a in (params["bias"], params["items"], head["taste"]))
    want = bias[x] + float(head["bias"]) + items[x] @ taste
    np.testing.assert_allclose(model.apply(params, x), want[:, None], rtol=1e-12)
    assert sum(leaf.size for leaf in jax.tree.leaves(models.factors(5).init(KEY))) == 6
    with pytest.raises(ValueError, match="items must be 1 or more"):
        models.factors(0)
    with pytest.raises(ValueError, match=r"expected \(length,\).*lenet5 for images"):
        models.cnn1d(shape=(8, 8, 3))


def test_a_signal_is_an_image_one_pixel_high():
    """The convolutions of cnn1d against those of NumPy."""
    model = models.cnn1d(classes=3, shape=(13, 2), channels=4)
    params = jax.tree.map(lambda a: np.asarray(a) + 0.1, model.init(KEY))
    want = x = np.random.default_rng(0).normal(size=(2, 13, 2))
    for name in ("conv0", "conv1", "conv2"):
        kernel, bias = params[name]["kernel"][0], params[name]["bias"]
        padded = np.pad(want, ((0, 0), (1, 1), (0, 0)))
        starts = range(0, padded.shape[1] - len(kernel) + 1, 2)
        steps = [np.einsum("bwc,wco->bo", padded[:, s : s + len(kernel)], kernel) for s in starts]
        want = np.maximum(np.stack(steps, 1) + bias, 0)
    want = want.reshape(2, -1) @ params["head"]["kernel"].T + params["head"]["bias"]
    found = model.apply(jax.tree.map(jnp.asarray, params), x)
    np.testing.assert_allclose(found, want, atol=1e-10)
