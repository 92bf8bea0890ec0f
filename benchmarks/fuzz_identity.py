"""Mutated code, numbers and folders: another thing has another identity, the same has the same.

    python benchmarks/fuzz_identity.py [--mutants 5000] [--seed 0]

A function is made of a text with places for a constant, a default, a captured value, a global, a
constant of a function and of a class that it calls, an attribute, an operator; one place gets
another value, or the text another form that computes the same. An optimiser of optax gets another
hyperparameter, an array another bit. And folders of a sweep and of a comparison are changed as in
`fuzz_checkpoints.py`: what is then read is what was written, or refused by the folder's name.
"""

import argparse
import collections
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from fuzz_checkpoints import CHANGES, change
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

import jaxfl
from jaxfl import components
from jaxfl.engine.grid import scaled
from jaxfl.runs.identity import identity
from jaxfl.studies.comparison import _claimed
from jaxfl.studies.store import Store
from jaxfl.studies.sweep import Space

TEXT = """
{shift}import functools
import math
G = {glob}
class Scale:
    {doc}
    width = {attribute}
    def __call__(self, x):
        return x + {method}
def helper(x):
    {doc}
    return [Scale()(x), {helper}]
def make(c, **kept):
    def f(params, x, *, k={keyword}):
        {doc}
        {local} = helper(x){comment}
        inner = lambda y: [y, {nested}]
        return inner([{local}, {constant}, G, c, k, math.pi {operator} 2])
    f.note = {note}
    return f
f = make({closure})
p = functools.partial(f, {partial})
"""
SAME = {  # forms of one function
    "shift": "\n\n",
    "doc": "'What it does.'",
    "local": "other",
    "comment": "  # a comment",
}
PLAIN = {"shift": "", "doc": "'.'", "local": "mine", "comment": "", "operator": "*"}
SLOTS = ("glob", "attribute", "method", "helper", "keyword", "nested", "constant", "note")
SLOTS = (*SLOTS, "closure", "partial")
NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text("ab1.\\\u00e9", max_size=80),
    st.binary(max_size=5),
    st.complex_numbers(allow_nan=False, allow_infinity=False),
)
VALUES = st.recursive(
    NUMBERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=2), inner),
    max_leaves=5,
)


def function(form: dict[str, str], values: dict[str, Any]) -> Any:
    """The partial function of a text."""
    names = {"__name__": "own", "nan": float("nan"), "inf": float("inf")}
    texts = {slot: repr(value) for slot, value in values.items()}
    code = compile(TEXT.format(**form, **texts), f"{len(form['shift'])}.py", "exec")
    exec(code, names)
    return names["p"]


def alike(a: Any, b: Any) -> bool:
    """Whether two values are the same, of the same type; the order of a dict does not count."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return repr(a) == repr(b)


def told(thing: Any) -> str:
    """An identity as it is written."""
    return json.dumps(identity(thing=thing), sort_keys=True)


def codes(mutants: int, number: int) -> collections.Counter:
    """Functions whose place changes, or whose form does."""
    counts: collections.Counter = collections.Counter()

    @_cases(mutants, number)
    @given(st.sampled_from((*SLOTS, "operator", *SAME)), VALUES, VALUES, VALUES)
    def one(place, base, before, after):
        values = dict.fromkeys(SLOTS, base)
        first = told(function(PLAIN, values | ({place: before} if place in SLOTS else {})))
        if place in SLOTS:
            second, equal = function(PLAIN, values | {place: after}), alike(before, after)
            assume(not equal or repr(before) == repr(after))  # code keeps the order of a dict
        elif place == "operator":
            second, equal = function(PLAIN | {"operator": "+"}, values), False
        else:
            second, equal = function(PLAIN | {place: SAME[place]}, values), True
        assert (first == told(second)) == equal, (place, base, before, after)
        counts[f"{place} {'same' if equal else 'other'}"] += 1

    one()
    return counts


PLACES = st.integers(0, 10**6)
RATES = st.floats(1e-6, 1.0)
OPTIMISERS = {
    "adam": (optax.adam, ("learning_rate", "b1", "b2", "eps")),
    "sgd": (optax.sgd, ("learning_rate", "momentum")),
    "lamb": (optax.lamb, ("learning_rate", "b1", "weight_decay")),
    "clipped": (
        lambda size, rate: optax.chain(optax.clip_by_global_norm(size), optax.sgd(rate)),
        ("size", "rate"),
    ),
    "scheduled": (
        lambda a, b, steps: optax.adam(optax.linear_schedule(a, b, 1 + int(1e6 * steps))),
        ("a", "b", "steps"),
    ),
    "schedule": (lambda a, b: scaled(lr=optax.polynomial_schedule(a, b, 2, 10)), ("a", "b")),
}


def optimisers(mutants: int, number: int) -> collections.Counter:
    """Hyperparameters in closures."""
    counts: collections.Counter = collections.Counter()

    @_cases(mutants, number)
    @given(st.sampled_from([*OPTIMISERS]), st.lists(RATES, min_size=4, max_size=4), PLACES, RATES)
    def one(name, rates, which, other):
        make, names = OPTIMISERS[name]
        values = dict(zip(names, rates))
        changed = values | {names[which % len(names)]: other}
        wrap = (lambda f: f) if name == "schedule" else components.Optax
        equal = (
            {k: int(1e6 * v) if k == "steps" else v for k, v in values.items()}
            == {k: int(1e6 * v) if k == "steps" else v for k, v in changed.items()}
        )  # fmt: skip
        assert (told(wrap(make(**values))) == told(wrap(make(**changed)))) == equal, (name, values)
        counts[f"{name} {'same' if equal else 'other'}"] += 1

    one()
    return counts


def arrays(mutants: int, number: int) -> collections.Counter:
    """One bit of an array, wherever it lies and however it is held."""
    counts: collections.Counter = collections.Counter()
    kinds = ("f4", "f8", "i4", "u1", "?", "c8", "i2")

    @_cases(mutants, number)
    @given(st.sampled_from(kinds), st.integers(1, 5000), PLACES, st.integers(0, 7), st.booleans())
    def one(kind, size, where, bit, captured):
        raw = np.random.default_rng(size).bytes(size * np.dtype(kind).itemsize)
        a = np.frombuffer(raw, np.uint8).copy()
        a = a & 1 if kind == "?" else a
        b = a.copy()
        b[where % len(b)] ^= 1 if kind == "?" else 1 << bit
        a, b = a.view(kind), b.view(kind)
        wrap = (lambda a: lambda x: x + a) if captured else (lambda a: a)
        shown = size <= 8 and np.array_equal(a, b, equal_nan=True)  # another NaN, another 0
        assert (told(wrap(a)) == told(wrap(b))) <= shown
        other = np.asfortranarray(np.stack([a, a], 1))[:, 0]
        assert told(wrap(a)) == told(wrap(other)) == told(wrap(a.astype(a.dtype.newbyteorder())))
        counts[kind] += 1

    one()
    return counts


SMALL: Any = {
    "data": "iris", "clients": 3, "cohort": 2, "minimum": 1, "steps": 1, "rounds": 2, "every": 1,
    "model": "logistic",
}  # fmt: skip
OVER = {"lr": [0.1, 0.3], "seed": 3}


def folders(mutants: int, number: int, work: Path) -> collections.Counter:
    """Files of a sweep and of a comparison, changed."""
    counts: collections.Counter = collections.Counter()
    space = Space.make(OVER, **SMALL)
    options = {"stop_at": float("inf"), "patience": 0}
    ds = jaxfl.sweep(space, out=work / "whole", width=2, devices=1)
    made = jaxfl.plan(space, width=2, devices=1)
    with Store.open(work / "whole", space, options) as store:
        store.start(made, 1)
        chunks = [store.read(i) for i in range(len(made.chunks))]
    found = jaxfl.compare(algorithms=["fedavg"], seeds=2, lr=0.1, out=work / "table", **SMALL)
    what = json.loads(found.results.attrs["identity"])
    assert ds.sizes["lr"] == 2 and len(chunks) == 3

    def read(place):
        """What a sweep that goes on takes of a folder."""
        with Store.open(place, space, options) as store:
            store.start(made, 1)
            read = [store.read(i) for i in range(len(made.chunks))]
            partial = store.partial(0).read()
        for now, whole in zip([*read, partial], [*chunks, None], strict=True):
            if now is not None:
                assert whole is not None
                np.testing.assert_equal(now, whole)
        return "made again" if None in read else "whole"

    def claim(place):
        """What a comparison that is repeated writes over: its own files."""
        own = {p.name: p.read_bytes() for p in (work / "table").iterdir()}
        there = {p.name: p.read_bytes() for p in place.iterdir()} if place.is_dir() else {}
        with _claimed(place, what):
            changed = [k for k in there if k in own and there[k] != own[k]]
            if "provenance.json" in there:
                assert not {*changed} - {"provenance.json", ".lock"}, changed
            return "written again"

    @_cases(mutants, number)
    @given(st.booleans(), st.lists(CHANGES, min_size=1, max_size=2))
    def one(swept, changes):
        place = work / "changed"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(work / ("whole" if swept else "table"), place)
        for each in changes:
            change(place, *each)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                said = (read if swept else claim)(place)
        except ValueError as error:
            assert str(place) in str(error), error
            said = "refused"
        counts[f"{'sweep' if swept else 'comparison'} {said}"] += 1

    one()
    return counts


def _cases(mutants, number):
    def wrap(f):
        options: Any = {"deadline": None, "database": None, "phases": [Phase.generate]}
        options["suppress_health_check"] = [*HealthCheck]
        return seed(number)(settings(max_examples=mutants, **options)(f))

    return wrap


def fuzz(mutants: int, number: int, work: Path) -> dict[str, Any]:
    """Counts of what was tried, by kind."""
    found = {
        "codes": codes(mutants, number),
        "optimisers": optimisers(mutants // 2, number),
        "arrays": arrays(mutants // 2, number),
        "folders": folders(mutants, number, work),
    }
    total = sum(counts.total() for counts in found.values())
    return {"mutants": total, "wrong": 0} | {k: dict(sorted(v.items())) for k, v in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mutants", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    from common import record

    jax.config.update("jax_enable_x64", True)
    with tempfile.TemporaryDirectory() as work:
        results = fuzz(asked.mutants, asked.seed, Path(work))
    print(results)
    record("fuzz_identity", results)


if __name__ == "__main__":
    main()
