"""What the documentation says is so: docstrings, tables, every block of code, every link."""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import pydoc
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import jax
import pytest

import jaxfl
from jaxfl.algorithms import ALGORITHMS
from jaxfl.studies import citation as docs
from jaxfl.studies.registry import made

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING, DOCS = ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
CLASSES = {docs._class(alg).__name__: docs._class(alg) for alg in ALGORITHMS.values()}
MODULES = [m.name for m in pkgutil.walk_packages(jaxfl.__path__, "jaxfl.")]
READ = re.compile(r"\b(was|were) read\b|\breconstruct")

every_class = pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)


def check_grammar(cls):
    """The fixed form of an algorithm's docstring."""
    text, part = inspect.getdoc(cls), docs.sections(cls)
    _, _, rest = text.partition("\nUse:")
    assert rest, "Use: is missing"
    assert part["summary"].endswith(".") and part["recurrence"], "one sentence, then the recurrence"
    found = re.findall(r"^(\S.*?):", "Use:" + rest, re.MULTILINE)
    optional = [name for name in docs.LABELS if name != "Raises" or name in found]
    assert found == optional, f"labels must be {optional}, got {found}"
    outside = [line for line in rest.splitlines()[1:] if re.match(r"\S", line)]
    assert len(outside) == len(found) - 1, "every other line is indented"
    assert all(part[label.lower()] for label in found)
    assert ">>> " in part["example"]
    texts = [text for label, text in part.items() if label not in ("args", "example")]
    assert all(text.endswith(".") for text in texts)
    assert max(map(len, text.splitlines())) <= 96


def check_fields(cls):
    """Args are exactly the fields, in order, and say what is traced and what static."""
    args = docs.sections(cls)["args"]
    if inspect.isfunction(cls):
        assert list(args) == ["fields"] and list(inspect.signature(cls).parameters)[1:] == [
            "fields"
        ]
        return
    fields = dataclasses.fields(cls)
    assert list(args) == [f.name for f in fields]
    for field in fields:
        says = re.findall(r"\btraced\b|\bstatic\b", args[field.name])
        if dataclasses.is_dataclass(field.default):
            continue  # a component, with its own fields
        traced = field.metadata.get("pytree_node", True)
        assert says[:1] == ["traced" if traced else "static"], field.name


def check_needs(cls):
    """The words of Needs are those that `simulate` checks."""
    text, needs = docs.sections(cls)["needs"], made(cls).needs
    assert text.startswith(f"{needs.net.__name__} nets")
    both = needs.rows and needs.columns
    words = {
        r"\bstatic\b": needs.static,
        r"\blossless\b": needs.lossless,
        r"\bdoubly stochastic\b": both,
        r"\brows sum to 1\b": needs.rows and not both,
        r"\bcolumns sum to 1\b": needs.columns and not both,
        r"\brow-local\b": needs.local,
    }
    for word, true in words.items():
        assert bool(re.search(word, text)) == true, f"{word} in {text!r}"


def check_source(cls):
    """Every clause but the last is a reference; the last says what was read."""
    *clauses, read = docs._CLAUSE.split(docs.sections(cls)["source"])
    references = docs.references(cls)
    assert len(references) == len(clauses) >= 1, (
        'Last names, "Title", Venue year; ...; what was read'
    )
    assert READ.search(read), "say which code or paper was read, or that it is a reconstruction"
    for reference, clause in zip(references, clauses, strict=True):
        assert 1980 <= reference.year <= 2100 and reference.title and reference.venue
        assert all(re.match(r"[A-Z]\S*( \S+){0,3}$", name) for name in reference.authors)
        assert reference.arxiv or "arXiv" not in clause


CHECKS = (check_grammar, check_fields, check_needs, check_source)


@pytest.mark.quick
@every_class
@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_docstrings_of_algorithms(cls, check):
    check(cls)


@pytest.mark.quick
def test_checks_see_what_is_wrong():
    """A docstring with each part spoiled in turn is refused."""
    fedavg = CLASSES["FedAvg"]
    for old, new, check in (
        ("Use:", "When:", check_grammar),
        ("Sent:", "Bits:", check_grammar),
        ("    lr: local", "    eta: local", check_fields),
        ("steps: local steps on independent minibatches, static", "steps: traced", check_fields),
        ("Needs: Cohort nets", "Needs: Graph nets", check_needs),
        ("Needs: Cohort nets", "Needs: Cohort nets, static", check_needs),
        ("AISTATS 2017", "AISTATS", check_source),
        ("was read", "is nice", check_source),
    ):
        text = inspect.getdoc(fedavg)
        assert old in text
        spoiled = type("FedAvg", (fedavg,), {"__doc__": text.replace(old, new, 1)})
        with pytest.raises((AssertionError, KeyError)):
            check(spoiled)


@pytest.mark.quick
def test_sections_and_citations():
    part, fedopt = docs.sections("fedadam"), ALGORITHMS["fedopt"]
    assert part == docs.sections(fedopt) == docs.sections(fedopt(lr=1.0))
    assert list(part)[:3] == ["summary", "recurrence", "use"] and "kind" in part["args"]
    with pytest.raises(ValueError, match="did you mean 'scaffold'"):
        docs.sections("scafold")
    text = jaxfl.cite("fedavg", ALGORITHMS["scaffold"], ALGORITHMS["fedavg"](lr=0.1))
    assert text.count("@inproceedings") == 2 and text.count("@software") == 1
    assert "author = {McMahan and Moore and Ramage and Hampson and {Aguera y Arcas}}" in text
    assert "eprint = {1910.06378}" in text and "booktitle = {ICML}" in text
    keys = [r.key for cls in CLASSES.values() for r in docs.references(cls)]
    titles = {r.title for cls in CLASSES.values() for r in docs.references(cls)}
    assert len(set(keys)) == len(titles), "two sources share a BibTeX key"
    for entry in jaxfl.cite(*CLASSES).split("\n\n")[1:]:
        assert entry.count("{") == entry.count("}") and entry.startswith("@")
    assert "{Gossip Algorithms" not in jaxfl.cite("choco(order='code')")  # the variant that ran
    journal = docs.Reference(("Nedic",), "On graphs", "SIAM Journal on Optimization", 2017)
    assert journal.bibtex().startswith("@article{nedic2017graphs,\n")
    preprint = docs.Reference(("Li", "Hu"), "On it", "arXiv", 2019, "1909.06335")
    assert preprint.bibtex().startswith("@misc") and "arXiv:1909.06335, 2019" in preprint.plain()


@pytest.mark.quick
def test_citations_of_what_a_run_used():
    """Names with options, instances with their parts, settings; nothing that nobody published."""
    import json

    import xarray as xr

    from jaxfl import algorithms, components, data, models, networks

    said = lambda *used: re.findall(r"^(\w+): ", jaxfl.cite(*used).partition("\n\n")[0], re.M)[:-1]
    assert said("dsgd @ exponential") == ["DSGD", "exponential"]
    assert said("choco(compress=qsgd(16)) @ ring") == ["Choco", "QSGD"]
    world = networks.Attacked(networks.topology("ring", 8), networks.first(1, 8), networks.ALIE())
    assert said(algorithms.Choco(lr=0.1, compress=components.QSGD()), world) == [
        *("Choco", "QSGD", "ALIE")
    ]
    assert said(data.mixture(3, size=20), models.lenet5(), data.shards, "metropolis", "leaf") == [
        *("mixture", "lenet5", "shards", "metropolis", "leaf")
    ]
    assert said(data.load("iris"), components.TopK(0.1), networks.Everyone(3)) == []
    settings = {"algorithms": ["fedavg"], "partition": "dirichlet(variant='client')"}
    config = jaxfl.Config.make(**settings, adversary="ipm", graph="exponential")
    assert said(config) == ["FedAvg", "dirichlet", "mlp"], "no attackers, no graph"
    assert "Hsu" in jaxfl.cite(config) and "Zeng" not in jaxfl.cite(config)
    over = {"algorithm": ["scaffold", "dsgd"], "adversary": ["alie", "ipm"], "byzantine": [1]}
    attrs = {"config": json.dumps(dataclasses.asdict(config)), "over": json.dumps(over)}
    assert said(xr.Dataset(attrs=attrs)) == [
        *("Scaffold", "DSGD", "dirichlet", "mlp", "exponential", "ALIE", "IPM")
    ]
    points = json.dumps([{"algorithm": "ditto"}, {"data": "synthetic(alpha=1)"}])
    assert said(xr.Dataset(attrs=attrs | {"over": points})) == [
        *("Ditto", "dirichlet", "mlp", "synthetic")
    ]
    with pytest.raises(ValueError, match="did you mean 'scaffold'"):
        jaxfl.cite("scafold(lr=1)")
    text = jaxfl.cite(networks.ALIE(), networks.WEIGHTS["metropolis"])
    entry = next(e for e in text.split("\n\n") if e.startswith("@inproceedings{baruch2019"))
    assert "\n  title" not in entry, "a title that no docstring has is not made up"
    assert r"Systems \& Control Letters" in text
    every = [thing for kind in docs._registries().values() for thing in kind.values()]
    keys = {r.key: (r.title, r.year) for thing in every for r in docs.references(thing)}
    for thing in every:
        for reference in docs.references(thing):
            assert keys[reference.key] == (reference.title, reference.year), "one key, two sources"


# The README and its kind --------------------------------------------------------------------------


@pytest.mark.quick
def test_the_table_is_current(tmp_path):
    text = (DOCS / "algorithms.md").read_text(encoding="utf-8")
    assert docs.rewrite(text) == text, "the table is stale: python -m jaxfl.studies.citation"
    stale = tmp_path / "algorithms.md"
    stale.write_text(text.replace("| `FedAvg` |", "| `FedAvrg` |"), encoding="utf-8")
    docs.main(stale)
    assert stale.read_text(encoding="utf-8") == text
    with pytest.raises(ValueError, match="must hold"):
        docs.rewrite("no markers")


@pytest.mark.quick
def test_the_tables_name_everything():
    """Every registry is listed in full, and every name in the lists exists."""
    from jaxfl import components, data, models, networks, problems  # noqa: F401

    text = (DOCS / "worlds.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([A-Z][^|]*?) \| (.*) \|$", text, re.MULTILINE))
    named = {row.split(",")[0]: set(re.findall(r"`(\w+)`", cell)) for row, cell in rows.items()}
    assert named["Graphs"] == set(networks.GRAPHS)
    assert named["Graphs that change"] == set(networks.topologies.TIME_VARYING)
    assert named["Mixing weights"] == set(networks.WEIGHTS) | {"sdp"}
    assert named["Data"] == set(data.DATASETS)
    assert named["Models"] == set(models.MODELS) | {"from_functions", "from_linen", "from_nnx"}
    for row, module in (
        ("Cohorts", networks),
        ("What goes wrong", networks),
        ("Partitions", data),
        ("Compressors", components),
    ):
        missing = [name for name in named[row] if not hasattr(module, name)]
        assert not missing, f"{row}: {missing}"


def test_names_of_other_frameworks_lead_somewhere():
    """Every name of ours in the table exists, and takes the arguments that stand with it."""
    text = (DOCS / "from.md").read_text("utf-8")
    rows = re.findall(r"^\| (Flower|FedJAX|PFLlib|gossipy) \| .* \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) >= 20
    modules = "algorithms components networks data models metrics".split()
    names = {name: importlib.import_module(f"jaxfl.{name}") for name in modules}
    names |= {"jaxfl": jaxfl, "jax": jax}
    for _, cell in rows:
        found, loose = [], set()
        for code in re.findall(r"`(.*?)`", cell):
            name, _, inside = code.partition("(")
            if name.endswith("=") or re.match(r"\w+=", name):
                loose |= {name.partition("=")[0]}
                continue
            head, *parts = name.split(".")
            thing = functools.reduce(getattr, parts, names[head])
            known = set(inspect.signature(thing).parameters)
            asked = set(re.findall(r"(\w+)=", inside))
            assert asked <= known, f"{name} has no {asked - known}"
            found.append(known)
        assert found and loose <= set().union(*found), f"{loose} in {cell!r}"


def blocks(path):
    """The Python blocks of a page, with the line each begins at; long runs are made short."""
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text[: match.start(1)].count("\n")
        code = re.sub(r'(rounds"?(?:=|: ))\d+', r"\g<1>4", match[1])
        code = re.sub(r'(every"?(?:=|: ))\d+', r"\g<1>2", code)
        yield compile("\n" * line + code, str(path), "exec")


@pytest.fixture
def page(monkeypatch, tmp_path):
    """Runs all blocks of pages in one namespace, in an empty folder, and returns it."""

    def execute(name, package, *paths):
        module = ModuleType(name)
        module.__package__ = package
        setattr(module, name.rpartition(".")[2], module)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.chdir(tmp_path)
        for path in paths:
            for code in blocks(path):
                exec(code, vars(module))
        return module

    return execute


@pytest.mark.filterwarnings("ignore:best at the edge")  # after so few rounds
def test_pages_run(page, capsys):
    """Every block, the README's first; the error that is quoted is the one that is raised."""
    module = page("readme", "", README, *PAGES)
    assert module.final.history.loss.shape == (4,)
    assert "nan" not in capsys.readouterr().out
    with pytest.raises(ValueError) as error:
        args = module.clients, module.world, module.params, module.key
        jaxfl.simulate(module.algorithms.DSGD(lr=0.1), *args, rounds=4)
    assert f"ValueError: {error.value}" in (DOCS / "guarantees.md").read_text(encoding="utf-8")


def test_contributing_runs(page):
    """Its algorithm passes the checks of docstrings and the whole contract, its oracle included."""
    import test_algorithms

    module = page("oracles.server.fedavgm", "oracles.server", CONTRIBUTING)
    for check in CHECKS:
        check(module.FedAvgM)
    contract = [  # all but what the engine alone is answerable for
        f
        for name, f in vars(test_algorithms).items()
        if name.startswith("test_") and list(inspect.signature(f).parameters) == ["case"]
        if name != "test_blocks_and_devices"
    ]
    assert len(contract) >= 5
    for test in contract:
        test(module.row)


@pytest.mark.quick
def test_links_and_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert jaxfl.__version__ == project["version"]
    assert f"\nversion: {project['version']}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0] == project["version"]
    assert f"version = {{{project['version']}}}" in README.read_text(encoding="utf-8")
    for path in (README, CONTRIBUTING):
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{path.name} points to {link}"
    assert len(README.read_text(encoding="utf-8").split()) < 900


@pytest.mark.quick
def test_ci_and_hooks_run_the_same():
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    entries = re.findall(r"entry: (.*)", hooks)
    assert len(entries) == 3 and set(entries) <= set(ci)


# The package --------------------------------------------------------------------------------------


def public(module):
    """Public functions, classes and methods that a module defines itself."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            yield name, value
            for inner, method in vars(value).items():
                method = getattr(method, "__func__", method)
                qualname = getattr(getattr(method, "fget", method), "__qualname__", "")
                if qualname == f"{name}.{inner}":  # not a function that is a field's default
                    yield qualname, method


def documented(name, value):
    if name.rpartition(".")[2].startswith("_") or name.endswith(".replace"):
        return True  # private, special, or made by flax
    doc = value.__doc__ or ""
    return bool(doc) and not doc.startswith(f"{name}(")  # what dataclasses make up


@pytest.mark.quick
@pytest.mark.parametrize("name", ["jaxfl", *MODULES])
def test_public_names_have_docstrings(name):
    """All but `init` and `round` of algorithms, which the protocol documents."""
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    told = (".init", ".round") if name.startswith("jaxfl.algorithms.") else ("?",)
    names = [(n, value) for n, value in public(module) if not n.endswith(told)]
    silent = [n for n, value in names if not documented(n, value)]
    assert not silent


@pytest.mark.quick
def test_public_interface():
    public = [name for name in dir(jaxfl) if not name.startswith("_")]
    assert len(public) <= 26
    for name in public:
        assert getattr(jaxfl, name) is not None
        assert f"`{name}`" in jaxfl.__doc__
    assert len(jaxfl.__doc__.splitlines()) <= 40
    example = re.search(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)[1]
    assert example in inspect.getdoc(jaxfl).replace("\n    ", "\n"), "the README's twelve lines"
    assert len(pydoc.render_doc(jaxfl, renderer=pydoc.plaintext).splitlines()) <= 80
    importlib.import_module("jaxfl.studies.compare")
    assert inspect.isfunction(jaxfl.compare), "the function, not the module of that name"
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = jaxfl.nothing_of_the_kind


@pytest.mark.quick
def test_import_is_light():
    """Heavy libraries wait until they are needed; flax brings linen and rich by itself."""
    heavy = (
        "sklearn matplotlib xarray pandas h5py orbax tensorstore networkx scipy cvxpy tyro tomli_w"
    )
    code = (
        "import sys, jaxfl\n"
        f"early = [m for m in {heavy.split()} if m in sys.modules]\n"
        "early += [m for m in sys.modules if m.startswith(('jaxfl.compare', 'jaxfl.plots'))]\n"
        "assert not early, early\n"
        "from jaxfl import algorithms, networks, data, models, metrics, problems\n"
        f"early = [m for m in {heavy.split()} if m in sys.modules]\n"
        "assert not early, early\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.quick
def test_no_addresses_and_no_paths_of_machines():
    """No URLs, no absolute paths of somebody's machine, in any text of the tree."""
    roots = "work|tmp|home|root|Users|mnt|opt"
    bad = re.compile("ht" + rf"tps?://|[\"'\s(=](/({roots})/\w)")
    suffixes = (".py", ".md", ".toml", ".yaml", ".cff", ".txt", ".json", ".ipynb", "")
    shown = (".ci", ".pre-commit-config.yaml")
    found = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = any(p.startswith(".") and p not in shown for p in parts)
        made = parts[0] in ("build", "dist", "jaxfl-results", "LICENSE")
        if hidden or made or path.suffix not in suffixes or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if bad.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found


# What is installed --------------------------------------------------------------------------------


def test_docstrings_are_there_without_docstrings():
    """`python -OO` takes them out; citations, `show` and the options of commands need them."""
    code = (
        "import jaxfl\nfrom jaxfl import cli\nfrom jaxfl.studies import citation as docs\n"
        "assert 'McMahan' in jaxfl.cite('fedavg') and 'FedAvg' in docs.table()\n"
        "raise SystemExit(cli.main(['show', 'scaffold']) or cli.main(['compare', '--help']))"
    )
    words = [sys.executable, "-OO", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Karimireddy" in done.stdout and "--failures" in done.stdout


def hook():
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FORGE = "ht" + "tps://forge.example/"  # no address of anybody's


@pytest.mark.parametrize("home", ["", f"{FORGE}jaxfl/jaxfl/"])
def test_an_index_page_has_no_dead_links(home):
    """Figures and links of the README are absolute, or words while nobody knows the address."""
    made = hook().absolute(README.read_text(encoding="utf-8"), home)
    links = re.findall(r"\]\(([^)]+)\)", made)
    assert all(link.startswith((FORGE, "#")) for link in links)
    assert bool(links) == bool(home) and "how to add an algorithm" in made or home
    if home:
        base = home.rstrip("/")
        assert f"({base}/raw/main/benchmarks/results/compare.png)" in made
        assert f"({base}/blob/main/CONTRIBUTING.md)" in made
    code = "```text\n[a](b)\n```\n"
    assert hook().absolute(code + "![x](y.png) [a](b) [c](#d) `[e](f)`", "") == (
        code + " a [c](#d) `[e](f)`"
    )
    assert all(url.startswith(FORGE) for url in hook().urls(home).values())
    assert bool(hook().urls(home)) == bool(home)


def test_one_address_for_package_and_notebooks():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    home = settings["tool"]["hatch"]["metadata"]["hooks"]["custom"]["home"]
    source = f"git+{home}" if home else ".."  # the copy of the repository around them
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert len(notebooks) == 6
    for path in notebooks:
        assert f'SOURCE = \\"{source}\\"' in path.read_text(encoding="utf-8"), path
    include = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert all((ROOT / name.strip("/")).exists() for name in include)
