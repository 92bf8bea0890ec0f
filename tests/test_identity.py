"""What a run, a sweep, a comparison is: the same in every process, another for every difference."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from harness import KEY

import jaxfl
from jaxfl import components, data, models, networks, problems, struct
from jaxfl.algorithms import ALGORITHMS, FedAvg
from jaxfl.data import DATASETS
from jaxfl.engine.grid import scaled
from jaxfl.models import MODELS
from jaxfl.runs import folder
from jaxfl.runs.identity import agree, differences, identity
from jaxfl.studies.comparison import Comparison

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SMALL = {
    "data": "iris", "clients": 3, "cohort": 2, "minimum": 1, "steps": 1, "rounds": 2, "every": 1,
    "model": "logistic", "lr": 0.1, "partition": "iid",
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("compiled_once")


def differ(a, b):
    """What `agree` would say."""
    return differences(identity(a=a), identity(a=b))


# Functions ---------------------------------------------------------------------------------------


def made(text, **names):
    """The last function of a text."""
    exec(compile(text, f"{len(text)}.py", "exec"), names := {"__name__": "own", **names})
    return [f for f in names.values() if isinstance(f, types.FunctionType)][-1]


BASE = "def f(params, x, *, k=1):\n    y = x * 2\n    return y + k"
SAME = {
    "defined again": BASE,
    "other lines": "\n\n# here\n" + BASE.replace("return", "# there\n    return"),
    "a docstring": BASE.replace("    y =", "    'Words.'\n    y ="),
    "another variable": BASE.replace("y", "z"),
    "annotations": BASE.replace("params,", "params: int,"),
}
OTHER = {
    "a constant": BASE.replace("2", "3"),
    "its type": BASE.replace("2", "2.0"),
    "a default": BASE.replace("k=1", "k=2"),
    "an operator": BASE.replace("y + k", "y - k"),
    "an argument": BASE.replace("params", "model"),
    "a name": BASE.replace("def f", "def g"),
    "an attribute": BASE.replace("x *", "x.real *"),
    "a condition": BASE.replace("return y + k", "return y if k else k"),
    "stars": BASE.replace("x, *,", "x, *more,"),
}


@pytest.mark.parametrize("name", SAME)
def test_what_computes_the_same_is_the_same(name):
    assert not differ(made(BASE), made(SAME[name]))


@pytest.mark.parametrize("name", OTHER)
def test_other_code_is_another(name):
    assert differ(made(BASE), made(OTHER[name]))


def test_running_changes_nothing():
    """Python rewrites the instructions of what it runs often."""
    f = made(BASE)
    before = identity(f=f)
    for _ in range(100):
        f(0, 2.0)
    assert identity(f=f) == before


def with_global(value):
    return made("def f(x):\n    return [x + c for _ in x]", c=value)


def with_module(value):
    module = types.ModuleType("settings")
    module.scale, module.unused = value, object()
    return made("def f(x):\n    return m.scale * x", m=module)


def with_helper(value):
    text = (
        f"def g(x):\n    return x + {value}\ndef h(x):\n    return g(x)\ndef f(x):\n    return h(x)"
    )
    return made(text)


def with_class(value):
    text = f"class C:\n    def m(self):\n        return {value}\ndef f(x):\n    return C().m() + x"
    return made(text)


def with_closure(value):
    return lambda x: x * value


def with_inner(value):
    def outer(x):
        return (lambda y: y + value)(x)

    return outer


def with_attribute(value):
    def f(x):
        return x * f.scale

    f.scale = value
    return f


def with_self(value):
    class Own:
        def __init__(self):
            self.value = value

        def method(self, x):
            return x * self.value

    return Own().method


def with_call(value):
    class Own:
        __slots__ = ("value",)

        def __call__(self, x):
            return x * self.value

    own = Own()
    own.value = value
    return own


def with_subclass(value):
    return type("Own", (dict,), {"scale": value, "__call__": lambda self, x: self.scale * x})()


def with_rule(value):
    @jax.custom_vjp
    def f(x):
        return x

    f.defvjp(lambda x: (x, None), lambda _, g: (value * g,))
    return f


def with_decorator(value):
    def scale(f):
        @functools.wraps(f)
        def wrapper(x):
            return value * f(x)

        return wrapper

    return scale(lambda x: x)


def linen_of(value):
    class Net(linen.Module):
        width: int = 3

        @linen.compact
        def __call__(self, x):
            return value * linen.Dense(self.width)(x)

    return models.from_linen(Net(), jnp.ones((1, 4)))


def nnx_of(value):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return value * self.layer(x)

    return models.from_nnx(Net)


def nnx_module(value):
    net = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    net.bias[...] = jnp.full(3, float(value))
    return models.from_nnx(net)


def own_algorithm(value):
    @struct.dataclass
    class Mine(FedAvg):
        def round(self, state, clients, net, key):
            return super().round(state, clients, net, jax.random.fold_in(key, value))

    return Mine(lr=0.1)


def cached(value):
    return functools.cache(lambda x: x + value)


PLACES = {
    f.__name__: f
    for f in (
        with_global, with_module, with_helper, with_class, with_closure, with_inner, with_attribute,
        with_self, with_call, with_subclass, with_rule, with_decorator, linen_of, nnx_of,
        nnx_module, own_algorithm, cached,
    )
}  # fmt: skip
PLACES |= {
    "partial": lambda value: functools.partial(made(BASE), k=value),
    "traced partial": lambda value: jax.tree_util.Partial(made(BASE), k=value),
    "jit": lambda value: jax.jit(with_closure(value)),
    "vmap of grad": lambda value: jax.vmap(jax.grad(with_closure(value))),
    "checkpoint": lambda value: jax.checkpoint(with_closure(value)),
    "in a list": lambda value: [0, {"a": (with_closure(value),)}],
    "algorithm": lambda value: FedAvg(lr=0.1, steps=value),
    "optax": lambda value: components.Optax(optax.sgd(1.0, momentum=value / 10)),
    "adam": lambda value: optax.adam(1e-3, eps=value),
    "chain": lambda value: optax.chain(optax.clip(value), optax.adam(1.0)),
    "schedule": lambda value: scaled(lr=optax.cosine_decay_schedule(1.0, value)),
    "loss": lambda value: models.Regularised(models.cross_entropy(models.logistic(4, 3)), value),
    "model": lambda value: models.mlp(4, 3, hidden=(value,)),
    "functions": lambda value: models.from_functions(with_closure(value), lambda p, x: p),
    "initialiser": lambda value: linen.Dense(3, kernel_init=jax.nn.initializers.normal(value)),
    "network": lambda value: networks.Uniform(9, value),
    "set": lambda value: {3, "a", value, (1, 2)},
    "random numbers": np.random.default_rng,
    "key": jax.random.key,
    "path": lambda value: Path("a") / str(value),
    "masked": lambda value: np.ma.masked_equal(np.arange(5), value),
    "fields": lambda value: np.array([(1, value)], [("a", "i4"), ("b", "f8")]),
    "objects": lambda value: np.array([None, value], object),
    "long list": lambda value: [*range(100), value],
    "long table": lambda value: {i: i * value for i in range(100)},
    "long text": lambda value: "a" * 100 + str(value),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_a_value_counts_wherever_it_is(name):
    """Built twice it is the same, with another value it is not, and is named."""
    build = PLACES[name]
    assert not differ(build(1), build(1)), differ(build(1), build(1))
    assert differ(build(1), build(2))


def test_what_functions_call_is_named():
    said = differ(with_helper(1), with_helper(2))
    assert [line.partition(" was ")[0] for line in said] == ["code.g.its code.constants.0"]
    assert differ(with_closure(10), with_closure(20)) == ["a.closure.value was 10, is 20"]
    said = differ(PLACES["schedule"](10), PLACES["schedule"](20))
    assert said == ["a.closure.schedules.lr.closure.decay_steps was 10.0, is 20.0"]
    used = PLACES["schedule"](10)
    used(FedAvg(lr=0.1), 3)  # optax changes what it captured
    assert not differ(used, PLACES["schedule"](10))


def test_a_module_that_a_function_imports_counts(tmp_path, monkeypatch):
    """Before it is imported and after."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_rules.py").write_text("scale = 1")
    f = made("def f(x):\n    import math, own_rules\n    return own_rules.scale * math.pi * x")
    before = identity(f=f)
    f(1)
    assert identity(f=f) == before
    (tmp_path / "own_rules.py").write_text("scale = 2")
    found = differences(before, identity(f=f))
    assert len(found) == 1 and found[0].startswith("f.globals.import own_rules was ")


def test_cycles_end():
    loop = [1]
    loop.append(loop)
    text = "def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return even(n - {})"
    deep = []
    for _ in range(10_000):
        deep = [deep]
    assert not differ(made(text.format(1)), made(text.format(1)))
    assert differ(made(text.format(1)), made(text.format(2)))
    assert not differ(loop, loop) and differ(loop, [1, [1]])
    with pytest.raises(ValueError, match="nested too deeply"):
        identity(a=deep)


def test_types_count():
    values = 1, 1.0, True, "1", None, "None", b"1", 1 + 0j, [1], "[1]", {1: 1}, {"1": 1}, {1}
    found = [json.dumps(identity(a=v)["a"]) for v in values]
    assert len(set(found)) == len(found)


def test_what_holds_a_lock_is_known_by_its_type():
    assert not differ(os.scandir, os.scandir)
    with open(os.devnull) as file, pytest.warns(UserWarning, match="types TextIOWrapper nothing"):
        assert "of which nothing can be read" in identity(a=file)["a"]


# Arrays ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float32", "float64", "int32", "uint8", "bool", "bfloat16"])
def test_every_byte_of_an_array_counts(kind, tmp_path, monkeypatch):
    """Also of large ones, in memory, in a file, in any order, on a device."""
    monkeypatch.setattr("jaxfl.runs.identity._BLOCK", 1000)
    raw = np.random.default_rng(0).integers(0, 2, (70, 11, 3))
    a = raw.astype(jnp.dtype(kind))
    np.asarray(a).tofile(tmp_path / "a")
    mapped = np.memmap(tmp_path / "a", a.dtype, "r", shape=a.shape)
    for same in (a.copy(), np.asfortranarray(a), mapped, jnp.asarray(a), np.stack([a, a])[1]):
        assert not differ(a, same)
    for place in [(0, 0, 0), (69, 10, 2), (35, 5, 1)]:
        b = a.copy()
        b[place] = 1 - raw[place]
        assert differ(a, b) and differ(with_closure(a), with_closure(b))
    assert differ(a, a[:-1]) and differ(a, a.reshape(11, 70, 3))


def test_a_large_array_is_read_in_blocks(monkeypatch):
    import tracemalloc

    a = np.zeros((1 << 12, 1 << 10))
    monkeypatch.setattr("jaxfl.runs.identity._BLOCK", 1 << 16)
    tracemalloc.start()
    identity(a=a)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


# Processes ---------------------------------------------------------------------------------------

THINGS = """
import functools, json, sys
import jax, jax.numpy as jnp, numpy as np, optax
from flax import linen
from jaxfl import algorithms, components, models, networks, problems
from jaxfl.components import solvers as local
from jaxfl.runs.identity import identity
from jaxfl.engine.grid import scaled

SETTINGS = {"a", "b", "c", "d"}
class Net(linen.Module):
    names: frozenset = frozenset("abcdef")
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(x) if "a" in {"a", "b", "c", "g"} else len(SETTINGS)
def helper(x):
    return [x, SETTINGS]
print(json.dumps(identity(
    net=models.from_linen(Net(), jnp.ones((1, 4))),
    clients=problems.quadratics(n=4).clients(),
    optimiser=components.Optax(optax.adamw(optax.linear_schedule(1.0, 0.0, 10))),
    schedule=scaled(lr=lambda t: helper(t)),
    ring=networks.topology("ring", 5),
    algorithm=algorithms.Scaffold(lr=0.1),
    loss=models.cross_entropy(models.mlp(4, 3)),
    vmap=jax.vmap(jax.grad(helper)), jitted=jax.jit(helper), ufuncs=(np.exp, jnp.exp, jnp.add),
    objects=(object(), functools.partial(helper, 1), jax.nn.relu, len, str.upper, ..., slice(3)),
)))
"""


def test_every_process_says_the_same(tmp_path):
    """With another seed of hashes, from another file in another folder."""
    said = []
    for k, name in enumerate(("a.py", "b/other.py")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n" * 7 * k + THINGS)
        environment = os.environ | {"PYTHONHASHSEED": str(k), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, path], capture_output=True, text=True, env=environment, check=True
        )
        said.append(json.loads(done.stdout))
    assert not differences(*said) and said[0] == said[1]
    assert " at 0x" not in json.dumps(said)


def test_another_python_is_said():
    """Then functions count by name, and what they capture."""
    old, new = identity(f=made(BASE)), identity(f=made(OTHER["a constant"]))
    old["surroundings"]["python"] = "3.10"
    assert not differences(old, new)
    with pytest.warns(UserWarning, match="Python 3.10, now .*compared by name only"):
        agree("x", "another run", old, new)
    with pytest.raises(ValueError, match="f.defaults|f.keywords"):
        agree("x", "another run", old, identity(f=made(OTHER["a default"])))


def test_versions_are_warned_about():
    old, new = identity(a=1), identity(a=1)
    old["versions"]["jax"] = "0.1"
    with pytest.warns(UserWarning, match=r"begun with jax 0.1, now \d"):
        agree("x", "another run", old, new)


# Folders -----------------------------------------------------------------------------------------


class Switched:
    """The same call in other surroundings."""

    def __init__(self, name, value):
        self.name, self.value = name, value

    def __enter__(self):
        self.before = getattr(jax.config, self.name)
        jax.config.update(self.name, self.value)

    def __exit__(self, *error):
        jax.config.update(self.name, self.before)


SURROUNDINGS = {
    "surroundings.x64 was True, is False": ("jax_enable_x64", False),
    "surroundings.precision was None, is highest": ("jax_default_matmul_precision", "highest"),
    "surroundings.random was threefry2x32.*, is rbg": ("jax_default_prng_impl", "rbg"),
}


def run(out, **options):
    options = dict(rounds=2, chunk=1, checkpoint=out) | options
    alg = options.pop("alg", FedAvg(lr=0.1, steps=1))
    clients, x = problems.quadratics(n=4).clients(), jnp.zeros(5)
    return jaxfl.run(alg, clients, networks.Uniform(4, 3), x, KEY, **options)


def sweep(out, **options):
    return jaxfl.sweep({"seed": 2}, out=out, width=1, devices=1, **SMALL | options)


def table(out, **options):
    return jaxfl.compare(out=out, seeds=2, **{"algorithms": ["fedavg"]} | SMALL | options)


@pytest.mark.parametrize("call", [run, sweep, table])
def test_other_surroundings_are_refused_by_name(call, tmp_path):
    call(tmp_path / "out")
    for message, switch in SURROUNDINGS.items():
        with Switched(*switch), pytest.raises(ValueError, match=f"holds .*another .*{message}"):
            call(tmp_path / "out")
    call(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("schedule", PLACES["schedule"](10), PLACES["schedule"](20)),
        ("evaluate", with_closure(1), with_closure(100)),
        (
            "alg",
            *(
                FedAvg(lr=0.1, solver=components.Optax(optax.sgd(1.0, momentum=m)))
                for m in (0.9, 0.5)
            ),
        ),
        ("alg", own_algorithm(1), own_algorithm(2)),
    ],
)
def test_a_run_with_other_functions_is_another(name, one, other, tmp_path):
    if name == "evaluate":
        one, other = ((lambda state, f=f: f(state.params)) for f in (one, other))
    more = {"every": 1} if name == "evaluate" else {}
    run(tmp_path, **{name: one}, **more)
    run(tmp_path, **{name: one}, **more)
    with pytest.raises(ValueError, match="a checkpoint of another run: (schedule|eval|algo|code)"):
        run(tmp_path, **{name: other}, **more)


def write(shift):
    x = np.random.default_rng(0).normal(size=(90, 2)).round(3)
    rows = "".join(f"{a},{b},{int(a + shift > 0)}\n" for a, b in x)
    Path("d.csv").write_text("a,b,y\n" + rows)


def register(registry, name, thing):
    registry[name] = thing


def named_data(value):
    register(DATASETS, "mine", lambda: data.from_arrays(*_examples(value)))


def _examples(value):
    x = np.random.default_rng(0).normal(size=(90, 2))
    return x, (x[:, 0] + value > 0).astype(int)


def named_model(value):
    def mine(inputs: int, classes: int):
        init = lambda key: jnp.zeros((inputs, classes))
        return models.from_functions(init, lambda params, x: value * x @ params)

    register(MODELS, "mine", mine)


NAMES = {
    "file": (write, {"data": "table('d.csv', target='y')"}, r"data.*x|data.*y"),
    "data": (named_data, {"data": "mine"}, "data"),
    "model": (named_model, {"model": "mine"}, r"model.*closure.value was 1, is 2"),
    "algorithm": (
        lambda value: register(ALGORITHMS, "mine", type(own_algorithm(value))),
        {"algorithms": ["mine"]},
        r"code.*closure.value was 1, is 2",
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", [sweep, table])
def test_what_a_name_stands_for_counts(call, name, tmp_path, monkeypatch):
    """A file that was written again, what is registered: also when half of the runs are done."""
    monkeypatch.chdir(tmp_path)
    for registry in (DATASETS, MODELS, ALGORITHMS):
        monkeypatch.setitem(registry, "mine", None)
    change, options, message = NAMES[name]
    change(1)
    call("out", **options)
    for path in [*Path("out").glob("chunks/*")][1:]:
        path.unlink()
    change(2)
    with pytest.raises(ValueError, match=f"folder 'out' holds another .*{message}"):
        call("out", **options)


@pytest.mark.parametrize("call", [sweep, table])
@pytest.mark.parametrize("name", ["config.toml", "sweep.toml", "table.csv", ".hidden", "notes"])
def test_a_folder_with_files_of_others_is_left_alone(call, name, tmp_path):
    (tmp_path / name).write_text("mine")
    (tmp_path / ".lock").write_text("")  # of a process that was refused before
    with pytest.raises(ValueError, match=f"holds other files, such as '{name}'.*out="):
        call(tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {name: "mine", ".lock": ""}


def test_a_folder_of_another_kind_or_comparison_is_left_alone(tmp_path):
    found = table(tmp_path / "a")
    sweep(tmp_path / "b")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    for call, out, options, message in (
        (table, "a", {"rounds": 4}, "another comparison: settings.rounds was 2, is 4"),
        (sweep, "a", {}, "holds a comparison, not a sweep"),
        (table, "b", {}, "holds a sweep, not a comparison"),
    ):
        with pytest.raises(ValueError, match=message):
            call(tmp_path / out, **options)
    other = table(None, rounds=4)
    with pytest.raises(ValueError, match="another comparison: settings.rounds was 2, is 4"):
        other.save(tmp_path / "a")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    found.save(tmp_path / "a")  # its own may be written again
    Comparison.load(tmp_path / "a").save(tmp_path / "c")
    Comparison.load(tmp_path / "c").save(tmp_path / "a")
    (tmp_path / "a" / "table.csv").write_text("with my remarks")
    with pytest.raises(ValueError, match="table.csv' was changed since jaxfl wrote it; move it"):
        table(tmp_path / "a")
    with folder.locked(tmp_path / "c"), pytest.raises(OSError, match="another process is writing"):
        table(tmp_path / "c")


def test_the_users_own_settings_are_not_written_over(tmp_path, monkeypatch, capsys):
    from jaxfl import cli

    monkeypatch.setattr(cli, "cache", lambda: None)
    text = "# mine\ndata = 'iris'\nclients = 3\ncohort = 2\nminimum = 1\n[sweep]\nlr = [0.1]\n"
    for name in ("sweep.toml", "rates.toml"):
        path = tmp_path / name[0] / name
        path.parent.mkdir()
        path.write_text(text)
        assert cli.main(["sweep", str(path), "--out", str(path.parent)]) == 2
        assert "holds other files" in capsys.readouterr().err
        assert path.read_text() == text


def test_changed_settings_of_a_sweep_are_named(tmp_path):
    sweep(tmp_path / "out")
    path = tmp_path / "out" / "sweep.toml"
    text = path.read_text()
    for new in (text.replace("rounds = 2", "rounds = 4"), "rounds =", "\0"):
        path.write_text(new)
        with pytest.raises(ValueError, match="sweep.toml' was changed: .*delete it"):
            sweep(tmp_path / "out")
    path.unlink()
    sweep(tmp_path / "out")
    assert path.read_text() == text
    other = jaxfl.sweep({"seed": 2}, out=tmp_path / "b", width=1, devices=1, **SMALL | {"batch": 8})
    assert other.sizes["seed"] == 2
    (tmp_path / "b" / "chunks" / "000001.npz").replace(tmp_path / "out" / "chunks" / "000001.npz")
    with pytest.raises(ValueError, match="000001.npz' is damaged: it is of other settings"):
        sweep(tmp_path / "out")


def test_a_checkpoint_that_does_not_say_enough_is_refused(tmp_path):
    """Of the first format; a model in it is still read."""
    run(tmp_path / "out")
    for path in (tmp_path / "out").glob("*/jaxfl.json"):
        path.write_text(folder.sealed(folder.unsealed(path) | {"format": 1}))
    with pytest.raises(ValueError, match="of format 1, which does not say enough of its run"):
        run(tmp_path / "out")
    assert jaxfl.Checkpoints(tmp_path / "out").restore()[0] == 2


# Full disks --------------------------------------------------------------------------------------

LIMITED = """
import resource, signal, sys
import numpy as np
import matplotlib; matplotlib.use("Agg")
from matplotlib import pyplot
import xarray as xr
from pathlib import Path
from jaxfl.runs import folder
from jaxfl.studies.store import Partial

big = np.random.default_rng(0).normal(size=10**5)
figure, ax = pyplot.subplots()
ax.imshow(big.reshape(1000, 100), aspect="auto")
figure.savefig("warm.pdf"); figure.savefig("warm.png")
Path("warm.pdf").unlink(); Path("warm.png").unlink()
writers = {
    "a.nc": lambda p: folder.netcdf(p, xr.Dataset({"a": ("x", big)})),
    "a.txt": lambda p: folder.text(p, "a" * 10**6),
    "a.png": lambda p: folder.picture(p, figure, dpi=600),
    "a.pdf": lambda p: folder.picture(p, figure),
    "a.npz": lambda p: Partial(Path(p), {"runs": big}).write({"a": big}),
}
for name in writers:
    Path(name).write_text("before")
resource.setrlimit(resource.RLIMIT_FSIZE, (10**4, 10**4))
for name, write in writers.items():
    try:
        write(name)
        print("written", name)
    except OSError as error:
        print("refused", name, error)
    assert Path(name).read_text() == "before", name
assert sorted(p.name for p in Path().iterdir()) == sorted(writers), [*Path().iterdir()]
"""


def test_files_that_may_not_grow(tmp_path):
    """Every writer says so, leaves what was there and nothing else, and the process lives."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["refused", f"a.{kind}"] for kind in ("nc", "txt", "png", "pdf", "npz")
    ]
    assert all("File too large" in x and f"{x.split()[1]}'" in x for x in lines)
    assert not done.stderr


def test_a_picture_without_a_kind_is_png(tmp_path):
    from matplotlib import pyplot

    figure, _ = pyplot.subplots()
    folder.picture(tmp_path / "picture", figure)
    pyplot.close(figure)
    assert [p.name for p in tmp_path.iterdir()] == ["picture"]
    assert (tmp_path / "picture").read_bytes()[:4] == b"\x89PNG"


# At random ---------------------------------------------------------------------------------------


def test_fuzz(tmp_path, monkeypatch):
    """A few hundred mutants; benchmarks/fuzz_identity.py has thousands."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.find_spec("fuzz_identity")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.fuzz(60, 1, tmp_path)
    assert found["mutants"] >= 180 and found["wrong"] == 0
    assert {"sweep refused", "sweep made again", "comparison refused"} <= {*found["folders"]}
