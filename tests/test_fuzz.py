"""Mutants of files, of configurations and of names: a valid result, or an error that says what."""

import collections
import copy
import dataclasses
import datetime

import fuzzing
import fuzzing_parts
import numpy as np
import pytest
from fuzzing import Case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_files import KINDS, make

from jaxfl import data
from jaxfl.studies.config import Config
from jaxfl.studies.names import Call, build, parse
from jaxfl.studies.registry import components

FEW = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
CHECKED = ("idx.gz", "cifar.tar.gz", "npz.deflated")
LOCAL = {
    "idx": lambda raw: 16,
    "cifar.bin": lambda raw: 0,
    "csv": lambda raw: raw.index(b"\n") + 1,
    "libsvm": lambda raw: 0,
}


def case(kind, folder):
    """The right file of a kind."""
    path, load = make(kind, folder)
    return Case(kind, path, load, checked=kind in CHECKED, local=LOCAL.get(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_files(kind, tmp_path):
    one = case(kind, tmp_path)

    @settings(max_examples=40, **FEW)
    @given(st.data())
    def run(draw):
        fuzzing.judge(one, *draw.draw(fuzzing.mutants(one)))

    run()


# Right containers of wrong things ------------------------------------------------------------


def read(load, folder):
    """A valid data set, or an error that names the file."""
    with fuzzing.limits():
        try:
            fuzzing.valid(load())
        except (ValueError, OSError) as error:
            return refused(error, str(folder))
    return "read"


def hdf5_rule(draw, folder):
    """HDF5 whose groups hold anything: shapes, types, links, claims to be large."""
    import h5py

    path, names = folder / "some_train.h5", ["pixels", "label", "snippets", "tokens", "image"]
    n = draw(st.integers(0, 3))
    right = {
        "pixels": np.zeros((n, 28, 28), "f4"),
        "label": np.arange(n),
        "snippets": [b"to be"] * n,
        "tokens": [b"how do"] * n,
        "image": np.zeros((n, 32, 32, 3), "u1"),
    }
    shapes = st.sampled_from([(), (0,), (3,), (3, 28, 28), (3, 0), (10**9, 28, 28), (2**40,)])
    types = st.sampled_from(["f4", "f8", "i8", "u1", "S3", "c8", "?", [("a", "f4"), ("b", "S2")]])
    kinds = st.sampled_from(["right"] * 6 + ["any", "soft", "away", "group", "text"])
    with h5py.File(path, "w") as file:
        for client in draw(st.lists(st.sampled_from(["a", "b", "é", "1"]), unique=True)):
            group = file.create_group(f"examples/{client}")
            for name in draw(st.lists(st.sampled_from(names), unique=True, max_size=3)):
                what = draw(kinds)
                if what == "right":
                    group[name] = right[name]
                elif what == "any":
                    shape = draw(shapes)
                    chunks = True if shape and 0 not in shape else None
                    group.create_dataset(name, shape, np.dtype(draw(types)), chunks=chunks)
                elif what == "text":
                    group[name] = "a single text"
                elif what == "group":
                    group.create_group(name)
                elif what == "soft":
                    group[name] = h5py.SoftLink("/examples")
                else:
                    group[name] = h5py.ExternalLink("other.h5", "/examples")
    task = draw(st.sampled_from(["words", "tags"]))
    return read(lambda: data.tff(path, task=task), folder)


def columns_rule(draw, folder):
    """Parquet whose columns are of any type, read as a table and as a Hugging Face set."""
    pa = pytest.importorskip("pyarrow", reason="the extra jaxfl[data] is not installed")
    from pyarrow import parquet

    n = draw(st.integers(0, 4))
    columns = st.sampled_from(
        [
            pa.array(range(n)),
            pa.array([0.5] * n),
            pa.array([float("nan")] * n),
            pa.array([1e300] * n),
            pa.array([2**40] * n),
            pa.array([None] * n, pa.float32()),
            pa.array([None] * n),
            pa.array([True] * n),
            pa.array(["a b"] * n),
            pa.array([b"\xff"] * n),
            pa.array([[1.0, 2.0]] * n, pa.list_(pa.float32())),
            pa.array([[1.0] * i for i in range(n)], pa.list_(pa.float32())),
            pa.array([[[1], [2]]] * n, pa.list_(pa.list_(pa.int8()))),
            pa.array([{"a": 1}] * n, pa.struct([("a", pa.int8())])),
            pa.array([{"bytes": b"no image"}] * n, pa.struct([("bytes", pa.binary())])),
            pa.array([datetime.date(2026, 1, 1)] * n, pa.date32()),
            pa.array(["a", "b", "a", "b"][:n]).dictionary_encode(),
        ]
    )
    path = folder / "train.parquet"
    parquet.write_table(pa.table({name: draw(columns) for name in ("x", "y", "who")}), path)
    client = draw(st.sampled_from([None, "who"]))
    if draw(st.booleans()):
        return read(lambda: data.huggingface(path, client=client), folder)
    return read(lambda: data.table(path, target="y", client=client), folder)


# Configurations ------------------------------------------------------------------------------

TOML = Config(algorithms=("fedavg(lr=[0.1, 0.3])", "dsgd @ ring"), lr=(0.1, 1.0)).to_toml().encode()
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 10**18, 10**400, 2**63])
    | st.floats()
    | st.integers(1, 20)
    | st.floats(0.01, 0.99)
    | st.text(max_size=9)
    | st.sampled_from(["fedavg", "dsgd @ ring", "natural", "dirichlet", "mlp(hidden=[3])", ""])
    | st.just(datetime.date(2026, 1, 1)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


def checked(config):
    """A configuration that was accepted is in range, and survives being written."""
    assert isinstance(config, Config)
    config._check()
    for field in dataclasses.fields(config):
        assert type(getattr(config, field.name)) is type(field.default), field.name
    return "read"


def refused(error, *names):
    said = str(error)
    assert any(name in said for name in names), f"none of {names} in {said!r}"
    assert len(said) < 3000, f"{len(said)} letters"
    return "refused"


def toml_rule(draw, folder):
    """Bytes of a TOML file."""
    path = folder / "config.toml"
    path.write_bytes(draw(fuzzing.spoiled(TOML)))
    with fuzzing.limits(largest=1 << 26):
        try:
            return checked(Config.from_toml(path))
        except ValueError as error:
            return refused(error, str(path))


def settings_rule(draw, folder):
    """Any value for any setting."""
    fields = dataclasses.fields(Config)
    changes = {}
    for field in draw(st.lists(st.sampled_from(fields), min_size=1, max_size=3)):
        right = {int: st.integers(1, 9), float: st.floats(0.01, 0.99)}.get(type(field.default))
        changes[field.name] = draw(VALUES if right is None else right | VALUES)
    with fuzzing.limits(largest=1 << 26):
        try:
            return checked(Config.make(**changes))
        except ValueError as error:
            return refused(error, *changes, "clients")


NAMES = st.sampled_from(
    [
        *(b"fedprox(mu=0.1)", b"dsgd(steps=5, lr=[0.1, 0.3]) @ erdos_renyi(p=0.3)"),
        *(
            b"choco(compress=topk(0.1)) @ ring",
            b"mlp(hidden=[200, -3, inf])",
            b"topk(fraction=0.5)",
        ),
        *(
            b"table('a.csv', target='y')",
            b"qsgd(16)",
            b"randk(0.5, scaled=1)",
            b"momentum(beta=0.9)",
        ),
    ]
)


def names_rule(draw, folder):
    """Names with options, and the components that they build."""
    text = draw(NAMES.flatmap(fuzzing.spoiled)).decode("latin1")
    with fuzzing.limits(largest=1 << 26):
        try:
            call = parse(text)
            assert isinstance(call, Call) and call.name == call.name.lower()
            if call.name in components():
                build(call)
            return "read"
        except ValueError as error:
            return refused(error, "write a name", " has no ", "it takes ", "no component")


RULES = {
    "hdf5": hdf5_rule,
    "columns": columns_rule,
    "configuration": toml_rule,
    "settings": settings_rule,
    "names": names_rule,
}


@pytest.mark.parametrize("name", RULES)
def test_rules(name, tmp_path):
    @settings(max_examples=60, **FEW)
    @given(st.data())
    def run(draw):
        RULES[name](draw.draw, tmp_path)

    run()


@pytest.mark.parametrize("kind", fuzzing_parts.FORMATS)
def test_parts(kind, tmp_path):
    """None is silent: what a part says against train is refused, or read as it says."""
    if kind in ("parquet", "huggingface"):
        pytest.importorskip("pyarrow", reason="the extra jaxfl[data] is not installed")
    counts = collections.Counter()

    @settings(max_examples=60, **FEW)
    @given(st.data())
    def run(draw):
        world = draw.draw(fuzzing_parts.worlds(kind))
        said, why = fuzzing_parts.verdict(world, kind, tmp_path)
        assert said != "silent", why
        counts[said] += 1

    run()
    assert counts["refused"] and counts["right"], counts


def test_what_is_silent_is_seen(tmp_path, monkeypatch):
    """The rule itself: columns by position, ids that merge."""
    from jaxfl.data import parts, tables

    def by_position(file, known, target, client, layout, hint):
        columns = tuple(n for n in known if n not in (target, client))
        return dataclasses.replace(layout, columns=columns)

    rows = [["0.5", "1", "0", "7"], ["1.5", "2", "1", "7.0"]]
    names = ["a", "b", "y", "who"]
    world = lambda other: fuzzing_parts.World(
        {"train": names, "test": other},
        {"train": rows, "test": [[r[names.index(n)] for n in other] for r in rows]},
        {"train": {}, "test": {}},
    )
    assert fuzzing_parts.verdict(world(names), "csv", tmp_path)[0] == "refused"
    rows[1][3] = "07"
    swapped = world(["b", "a", "y", "who"])
    assert fuzzing_parts.verdict(swapped, "csv", tmp_path) == ("right", "")
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_named", by_position)
        assert fuzzing_parts.verdict(swapped, "csv", tmp_path)[0] == "silent"
    monkeypatch.setattr(parts, "_counted", lambda text: int(text))
    said, why = fuzzing_parts.verdict(swapped, "csv", tmp_path)
    assert said == "silent" and "clients" in why


def test_what_is_wrong_is_seen(tmp_path):
    """The rule itself: a reader that hangs, warns, allocates, mixes up or says nothing."""
    import time
    import warnings

    one = case("cifar.bin", tmp_path)
    assert fuzzing.judge(one, one.raw) == "read" and fuzzing.judge(one, b"") == "refused"

    def shuffled(path):
        d = one.right
        return dataclasses.replace(d, train={"x": d.train["x"][::-1], "y": d.train["y"]})

    def fails(error):
        def load(path):
            raise error

        return load

    def reading(load):
        other = copy.copy(one)
        other.load = load
        return other

    spoiled = bytes([one.raw[0] ^ 1]) + one.raw[1:]
    for load, error in (
        (shuffled, AssertionError),
        (fails(ValueError("no name")), AssertionError),
        (fails(KeyError("train.bin")), KeyError),
        (lambda path: warnings.warn("hm", stacklevel=1), UserWarning),
        (lambda path: np.ones(fuzzing.LARGEST // 4) and None, (AssertionError, ValueError)),
    ):
        with pytest.raises(error):
            fuzzing.judge(reading(load), spoiled)
    with pytest.raises(fuzzing.Hang), fuzzing.limits(seconds=0.05):
        time.sleep(1)
