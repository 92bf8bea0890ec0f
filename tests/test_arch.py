"""The house: who may import whom, no circles, no room too large, algorithms in their folders."""

import ast
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import networkx as nx
import pytest
from cases import CASES
from harness import CLIENTS, KEY

import jaxfl
from jaxfl import struct
from jaxfl.algorithms import ALGORITHMS, FedAvg
from jaxfl.components import Everything, Identity, Mean, Median, NoPrivacy
from jaxfl.engine import marks
from jaxfl.engine.contract import Personal
from jaxfl.engine.simulate import simulate
from jaxfl.networks import Cohort, Graph, Uniform

ROOT = Path(jaxfl.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
}
BASE = {"types", "hdf5", "struct"}
ROOMS = {  # room -> rooms that it may import, besides itself and the base
    "engine": set(),
    "components": {"engine"},
    "networks": {"engine"},
    "algorithms": {"engine", "components", "networks"},
    "data": set(),
    "models": {"engine"},
    "metrics": {"engine", "models"},
    "problems": {"engine", "data"},
    "runs": {"engine", "networks"},
    "studies": {*"engine components networks algorithms data models metrics runs".split()},
    "plots": {"engine", "networks", "metrics", "studies"},
    "cli": {"networks", "runs", "studies", "plots"},
}
KNOWN = {  # what looks the other way, and why
    ("engine", "networks.checks"),  # a run refuses networks that do not fit together
    ("data", "plots.clients"),  # a description draws itself
    ("studies", "plots"),  # so do comparisons and reports
    ("studies", "plots.style"),
}


def arrows():
    """Who imports whom, imports inside functions included."""
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxfl":
                for name in node.names:
                    whole = f"{node.module}.{name.name}"[6:]
                    yield module, whole if whole in FILES else node.module[6:]


@pytest.mark.quick
def test_rooms():
    """Imports go down only, and in no circle."""
    found = {(a, b) for a, b in arrows() if b and a != b}
    room = lambda module: module.split(".")[0]
    up = {
        (a, b)
        for a, b in found
        if room(a) not in BASE and room(b) not in {room(a), *BASE} | ROOMS[room(a)]
        if (room(a), b) not in KNOWN
    }
    assert not up
    assert {(room(a), b) for a, b in found} >= KNOWN, "an exception that nobody needs"
    assert nx.is_directed_acyclic_graph(nx.DiGraph(found))


def test_no_record_is_taken_for_another():
    """Of a hundred classes with one field, and of five parts with none."""
    fields = {"__annotations__": {"x": float}}
    kinds = [struct.dataclass(type(f"R{i}", (), dict(fields))) for i in range(100)]
    which = jax.jit(lambda record: kinds.index(type(record)))
    assert [int(which(kind(1.0))) for kind in kinds] == list(range(100))
    parts = [Mean(), Median(), NoPrivacy(), Identity(), Everything()]
    assert len({jax.tree.structure(part) for part in parts}) == 5
    alg = FedAvg(lr=0.1, aggregator=Foreign())
    with pytest.raises(ValueError, match="Foreign is a record of flax.struct.*from jaxfl import"):
        simulate(alg, CLIENTS, Uniform(8, 3), jnp.zeros(5), KEY, rounds=1)


@flax.struct.dataclass
class Foreign:
    """Made by somebody else."""


@pytest.mark.quick
def test_no_file_is_too_long():
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in FILES.items()}
    assert max(lines.values()) <= 700


@pytest.mark.quick
@pytest.mark.parametrize("case", CASES, ids=str)
def test_folder_is_what_a_method_is(case):
    """By the kind of net, and of those with a server by whether clients have their own models."""
    alg = case.algorithm
    folder, net = type(alg).__module__.split(".")[2], alg.needs.net
    state = marks.plain(jax.eval_shape(lambda: alg.init(jnp.zeros(5), CLIENTS, KEY)))
    server = "personal" if isinstance(state, Personal) else "server"
    assert folder == {Cohort: server, Graph: "graph"}.get(net, "asynchronous")


@pytest.mark.quick
def test_every_algorithm_has_a_row():
    classes = {a for a in ALGORITHMS.values() if isinstance(a, type)}
    assert {type(case.algorithm) for case in CASES} == classes
