"""The command line: it parses and prints; everything else is `jaxfl.compare` and `jaxfl.plots`."""

import argparse
import codecs
import dataclasses
import inspect
import os
import re
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from jaxfl.runs import folder
from jaxfl.studies.registry import registries
from jaxfl.types import nearest, shown

HELP = """\
usage: jaxfl COMMAND [options]

jaxfl simulates federated and decentralised learning.

  compare          compare algorithms on real, non-IID data: a table and a figure
  run NAME         one algorithm, tuned and repeated as in compare
  sweep FILE       every combination of the settings of a TOML file, kept in a folder
  report FOLDER    one page (HTML) of the results that a folder holds
  list [KIND]      what there is: algorithms, data, models, graphs, ...
  show NAME        what the documentation says of any of these
  graph NAME       draw a graph and its spectrum; spectral gap and mixing time
  partition        draw who holds what
  info             devices, versions, precision

jaxfl COMMAND --help lists the options of a command. Errors are one message and exit
status 2; --debug shows where they come from.

examples:
  jaxfl compare --quick
  jaxfl compare --algorithms fedavg scaffold "dsgd @ torus" --alpha 0.5 --rounds 100
  jaxfl run "fedprox(mu=0.1)" --data wine --clients 10 --cohort 5 --minimum 1
  srun jaxfl run fedavg --clients 64 --cohort 32 --distributed
  jaxfl sweep sweep.toml --dry-run
  jaxfl graph "erdos_renyi(p=0.3)" --n 16 --out graph.pdf
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, 2 for an error, 130 if it was interrupted.

    Args:
        argv: the words after `jaxfl`; those of the process by default.
    """
    _streams()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(HELP, end="", flush=True)
            return 0
        if words[0] == "--version":
            words[0] = "info"
        if words[0] not in COMMANDS:
            raise ValueError(f"no command {shown(words[0])}{nearest(words[0], list(COMMANDS))}")
        COMMANDS[words[0]](words[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough: `jaxfl list | head -1`
        _closed()
    except SystemExit as stop:  # the parser's, after its own message
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt as stop:
        why = _spelled(str(stop)) or "interrupted"
        print(f"jaxfl: {why}", file=sys.stderr, flush=True)
        if argv is None and threading.active_count() > 1:  # a program that runs cannot be stopped
            os._exit(130)
        return 130
    except Exception as error:  # also what a library says of a size or a file
        if debug:
            raise
        print(f"jaxfl: error: {_spelled(_said(error))}", file=sys.stderr)
        if isinstance(error, OSError):  # that of stdout itself would come again at the exit
            _closed()
        return 2
    return 0


def _said(error):
    """An error in words, cut if it is very long."""
    text = str(error)
    if not isinstance(error, ValueError | OSError | ImportError | MemoryError):
        text = f"{type(error).__name__}: {text.strip()}; --debug shows where it comes from"
    text = text or ("not enough memory" if isinstance(error, MemoryError) else type(error).__name__)
    return text if len(text) <= 4000 else f"{text[:2500]}...{text[-1000:]}"


def _spelled(text):
    """Python's `clients=20` as --clients 20; options of names, "fedprox(mu=0.1)", stay."""
    from jaxfl.studies.config import Config

    text = re.sub(r"\bn=(\d+) clients", r"clients=\1", text)
    names = "|".join([*(f.name for f in dataclasses.fields(Config)), "out", "n"])
    value = r"'[^']*'|\"[^\"]*\"|\[[^]]*\]|\([^)]*\)|[^\s,;:`()]*[^\s,;:.`()]"
    call = r"\w\([^()]*(?:\([^()]*\)[^()]*)*\)"

    def option(match):
        if not match[1]:
            return match[0]
        words = re.sub(r"[\[\](),]", " ", match[2]) if match[2][0] in "[(" else match[2]
        return " ".join([f"--{match[1]}", *words.split()])

    text = re.sub(rf"{call}|(?<![\w.-])({names})=({value})", option, text)
    return text.replace("the same call", "the same command")


def _streams():
    """A closed stdout or stderr takes everything, one that is not UTF-8 what it can write."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="jaxfl")


def _plain(error):
    """Signs that an encoding does not have: those of tables in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(_ASCII.get(sign, "?") for sign in wrong), error.end


_ASCII = {"±": "+-", "†": "+", "–": "-", "−": "-", "²": "2", "…": "...", "λ": "lambda", "·": "*"}


codecs.register_error("jaxfl", _plain)


def _closed():
    """What is still in a buffer goes nowhere, so that Python does not complain at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


# Commands --------------------------------------------------------------------------------------


def _compare(words: list[str]) -> None:
    """Compare algorithms on real, non-IID data."""
    extras = {"out": (str, "jaxfl-results", "folder for the table, the figure and the results")}
    config, given = _configure("compare", words, extras)
    _report(config, given["out"], figure=True)


def _run(words: list[str]) -> None:
    """One algorithm, tuned and repeated as in compare."""
    extras = {
        "name": (Positional, None, "the algorithm, with options: 'fedprox(mu=0.1)', 'dsgd @ ring'"),
        "out": (str, "", "folder for the table, the figure and the results; none by default"),
    }
    extras |= {
        "distributed": (bool, False, "spread the clients over the devices of all processes"),
        "coordinator": (str, "", "HOST:PORT of process 0, where no cluster (SLURM, MPI) tells"),
        "processes": (int, 0, "how many there are, with --coordinator"),
        "process": (int, -1, "which one this is, with --coordinator"),
    }
    config, given = _configure("run", words, extras, without=("algorithms",))
    config = dataclasses.replace(config, algorithms=(given["name"],))
    out = given["out"]
    mesh = _join(*(given[k] for k in ("distributed", "coordinator", "processes", "process")))
    _report(config, out, figure=bool(out), **({} if mesh is None else {"mesh": mesh}))


def _join(distributed: bool, coordinator: str, processes: int, process: int) -> Any:
    """Meets the other processes; the mesh of all their devices, or None without --distributed."""
    given = (bool(coordinator), processes > 0, process >= 0)
    if any(given) and not (distributed and all(given) and process < processes):
        raise ValueError(
            "--coordinator, --processes and --process go together, with --distributed; for "
            "example, on the second of two hosts: "
            "`--distributed --coordinator first:1234 --processes 2 --process 1`"
        )
    if not distributed:
        return None
    import jax

    names = ("coordinator_address", "num_processes", "process_id")
    where: dict[str, Any] = dict(zip(names, (coordinator, processes, process)))
    try:  # before anything asks for a device
        jax.distributed.initialize(**(where if coordinator else {}))
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the processes did not meet: {error}; outside of SLURM, MPI or a TPU pod, say where: "
            "`--distributed --coordinator HOST:PORT --processes 2 --process 0`"
        ) from error
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((jax.device_count(),), ("clients",), axis_types=auto)


def _report(config: Any, out: str, figure: bool, mesh: Any = None) -> None:
    import jax

    from jaxfl.studies.compare import compare

    cache()
    if mesh is not None and jax.process_index():  # computes with the others, says nothing
        compare(config, mesh=mesh)
        return
    comparison = compare(config, out=out or None, progress=True, mesh=mesh)
    _console().print(comparison)
    if figure:
        print(
            f"\nin {out}: comparison.png, .pdf, table.txt, .csv, .md, .tex, config.toml, results.nc"
        )
        again = shlex.quote(f"{out}-again")
        config_file = shlex.quote(str(Path(out, "config.toml")))
        print(f"to repeat it: jaxfl compare --config {config_file} --out {again}")


def _sweep(words: list[str]) -> None:
    """Run every combination of the settings of a TOML file; the same command goes on.

    The file holds fields of Config (rounds, data, algorithms, ...) and a table [sweep] of lists, or
    tables [[sweep]], one for each point. stop_at, patience and width are as in jaxfl.sweep.
    """
    given = _parse(
        "sweep",
        words,
        {
            "file": (Positional, None, "the settings; a folder of a sweep: go on with it"),
            "out": (str, "", "folder for the results; the file's name without .toml by default"),
            "dry_run": (bool, False, "say how many runs, programs and how much memory, and stop"),
        },
    )
    from jaxfl.studies.plan import plan
    from jaxfl.studies.sweep import Space, sweep

    path = Path(given["file"])
    path = path / "sweep.toml" if path.is_dir() else path
    space, options = Space.read(path)
    own = (path.parent / "provenance.json").exists()  # the file of a folder made before
    out = Path(given["out"] or (path.parent if own else path.with_suffix("")))
    if given["dry_run"]:
        cache()
        print(plan(space, out=out, width=options.get("width", 0)))
        return
    cache()
    try:
        ds = sweep(space, out=out, progress=True, **options)
    except KeyboardInterrupt as stop:
        done = f"; chunks that are done are in {str(out)!r}: the same command goes on"
        raise KeyboardInterrupt(str(stop) or f"interrupted{done if out.exists() else ''}") from stop
    from jaxfl.studies import results

    _console().print(results.Summary(ds))
    print(f"\nin {out}: results.nc, sweep.toml, provenance.json, chunks")
    print(f"to look at it: jaxfl report {shlex.quote(str(out))}")


def _page(words: list[str]) -> None:
    """Write a page of a sweep or comparison: tables, figures, provenance, citations."""
    given = _parse(
        "report",
        words,
        {
            "folder": (Positional, None, "with results.nc"),
            "out": (str, "", "the page; report.html in the folder by default"),
        },
    )
    from jaxfl.studies.report import report

    print(report(given["folder"], given["out"] or None))


def _list(words: list[str]) -> None:
    """What there is."""
    given = _parse("list", words, {"kind": (Positional, "", "algorithms, data, models, ...")})
    kinds = registries()
    if given["kind"] and given["kind"] not in kinds:
        raise ValueError(f"no kind {shown(given['kind'])}{nearest(given['kind'], list(kinds))}")
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for kind, registry in kinds.items():
        if given["kind"] in ("", kind):
            table.add_row(f"[bold]{kind}[/bold]", "")
            for name, thing in registry.items():
                table.add_row(f"  {name}", _escape(_first(thing)))
    _console().print(table)


def _show(words: list[str]) -> None:
    """The documentation of anything that has a name."""
    given = _parse("show", words, {"name": (Positional, None, "of `jaxfl list`")})
    known = {name: thing for registry in registries().values() for name, thing in registry.items()}
    name = given["name"].lower()
    if name not in known:
        raise ValueError(f"nothing is called {shown(given['name'])}{nearest(name, list(known))}")
    console, thing = _console(), known[name]
    console.print(f"[bold]{_escape(thing.__name__)}[/bold]{_escape(_signature(thing))}\n")
    for line in _text(thing).splitlines():
        label = re.match(r"([A-Z]\w+):(.*)", line)
        argument = re.match(r"    (\w+):(.*)", line)
        if label:
            text = f"[bold]{label[1]}:[/bold]{_escape(label[2])}"
        elif argument:
            text = f"    [cyan]{argument[1]}[/cyan]:{_escape(argument[2])}"
        else:
            text = _escape(line)
        console.print(text, soft_wrap=True)


def _graph(words: list[str]) -> None:
    """Draw a graph and the spectrum of its weights, and say how fast it mixes."""
    given = _parse(
        "graph",
        words,
        {
            "name": (
                Positional,
                None,
                "of `jaxfl list graphs`, with options: 'erdos_renyi(p=0.3)'",
            ),
            "n": (int, 16, "number of nodes"),
            "weights": (str, "", "rule for mixing weights, of `jaxfl list weights`"),
            "seed": (int, 0, "of random graphs"),
            "out": (str, "", "picture to write; NAME.png by default"),
        },
    )
    from jaxfl import plots
    from jaxfl.networks import graphs, mixing_facts, weights
    from jaxfl.studies.names import parse

    call = parse(given["name"])
    if call.name == "random_out":
        raise ValueError(
            "random_out is drawn anew every round, so it has no one picture; draw one such graph: "
            "`jaxfl graph random_out_fixed`"
        )
    g = graphs.make(call.name, given["n"], seed=given["seed"], **call.options)
    w = None
    if given["weights"]:
        if call.name in graphs.SCHEDULES:
            raise ValueError(f"{call.name} has weights of its own; leave --weights out")
        many = {"sparse": True} if len(g) > 2500 and given["weights"] != "fastest" else {}
        w = weights.make(given["weights"], g, **many)
    facts = mixing_facts(g, w)
    draw = lambda: plots.graph_and_spectrum(g, w, title=call.name, width=6)[0]
    path = _picture(given["out"] or f"{call.name}.png", draw)
    for fact, value in facts.items():
        print(f"{fact.replace('_', ' '):12} {value:.6g}")
    print(f"{'picture':12} {path}")


def _partition(words: list[str]) -> None:
    """Draw who holds what."""
    extras = {"out": (str, "partition.png", "picture to write")}
    from jaxfl.studies.config import FIELDS, role
    from jaxfl.studies.experiment import dataset, partitions

    without = tuple(name for name in FIELDS if role(name) != "task" and name != "seed")
    config, given = _configure("partition", words, extras, without=without, check=False)
    from jaxfl import plots

    data = dataset(config.data)
    if data.classes is None or data.train["y"].ndim > 1:
        raise ValueError(f"data {config.data!r} has no labels to draw; for example --data digits")
    facts = partitions(config, data)[0].skew(data.train["y"])
    sizes, effective = facts["sizes"], facts["effective"]
    path = _picture(given["out"], lambda: plots.partition(facts["histogram"]))
    print(f"clients      {facts['n']}")
    print(f"examples     {sizes.min()} to {sizes.max()} per client, {sizes.sum()} in all")
    print(f"variation    {facts['cv']:.3g} (deviation of the sizes over their mean)")
    print(f"labels       {effective.min():.2g} to {effective.max():.2g} per client, effectively")
    print(f"picture      {path}")


def _info(words: list[str]) -> None:
    """Devices, versions, precision."""
    _parse("info", words, {})
    import platform
    from importlib.metadata import version

    import jax

    from jaxfl import __version__

    names = ("jax", "jaxlib", "flax", "optax", "numpy", "xarray")
    devices = ", ".join(f"{d.platform}:{d.id} ({d.device_kind})" for d in jax.devices())
    settings: Any = jax.config
    wide = "on" if settings.jax_enable_x64 else "off"
    matmul = settings.jax_default_matmul_precision or "the backend's default"
    print(f"jaxfl        {__version__}")
    print(f"python       {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"versions     {', '.join(f'{n} {version(n)}' for n in names)}")
    print(f"devices      {devices}; {os.cpu_count()} CPU cores")
    print(f"precision    float32 (mixing exact), float64 {wide}, local matmuls {matmul}")
    print(f"cache        {cache_dir() or 'none, for there is no home folder'}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "compare": _compare,
    "run": _run,
    "sweep": _sweep,
    "report": _page,
    "list": _list,
    "show": _show,
    "graph": _graph,
    "partition": _partition,
    "info": _info,
}


# Parsing ---------------------------------------------------------------------------------------


_LONG = 10_000


class Positional(str):
    """A word without a dash."""


def _parse(command: str, words: list[str], fields: dict[str, tuple[Any, Any, str]]) -> dict:
    """Options `{name: (type, default, help)}`; a default of None is required."""
    import tyro

    if long := [w for w in words if len(w) > _LONG]:
        raise ValueError(
            f"no word may be longer than {_LONG:,} signs, got one of {len(long[0]):,}: "
            f"{shown(long[0])}; `jaxfl {command} --help` lists what there is"
        )
    positional = [name for name, (kind, *_) in fields.items() if kind is Positional]
    columns: list[Any] = []
    for name, (kind, default, words_of_help) in fields.items():
        if kind is Positional:
            about = tyro.conf.arg(help=words_of_help, metavar=name.upper())
            kind = Annotated[tyro.conf.Positional[str], about]
        else:
            about = tyro.conf.arg(help=words_of_help, help_behavior_hint=_hint(default))
            kind = Annotated[kind, about]
        columns.append((name, kind) if default is None else (name, kind, default))
    columns.sort(key=lambda column: (len(column) > 2, column[0] not in positional))
    options = dataclasses.make_dataclass("options", columns, frozen=True)
    given = tyro.cli(
        options,
        prog=f"jaxfl {command}",
        description=_text(COMMANDS[command]),
        args=words,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}


def _hint(default):
    several = isinstance(default, tuple)
    text = " ".join(map(str, default)) if several else str(default)
    return f"(default: {text})" if text and not isinstance(default, bool) else ""


def _configure(
    command: str,
    words: list[str],
    extras: dict[str, tuple[Any, Any, str]],
    without: tuple[str, ...] = (),
    check: bool = True,
) -> tuple[Any, dict]:
    """A `Config` from options over a file over the defaults, and the other options."""
    from jaxfl.studies.config import Config

    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--config", default="", nargs="?")
    early.add_argument("--quick", action="store_true")
    first, _ = early.parse_known_args(words)
    base = Config.from_toml(first.config) if first.config else Config()
    base = base.quick() if first.quick else base
    about = dict(re.findall(r"^    (\w+): ((?:.|\n        )*)", _text(Config), re.M))
    fields = dict(extras)
    if check:
        fields["config"] = (str, "", "TOML file of settings; options here win over it")
        fields["quick"] = (bool, False, "fewer rounds, seeds and learning rates: a look")
    names = [f.name for f in dataclasses.fields(Config) if f.name not in without]
    types = {f.name: f.type for f in dataclasses.fields(Config)}
    for name in names:
        fields[name] = (types[name], getattr(base, name), " ".join(about[name].split()))
    given = _parse(command, words, fields)
    chosen = {name: given.pop(name) for name in names}
    if not check:  # settings of other commands do not matter here
        return dataclasses.replace(base, **chosen, seeds=1), given
    return Config.make(base, **chosen), given


# Printing --------------------------------------------------------------------------------------


def _console() -> Any:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(highlight=False, width=width)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _text(thing: Any) -> str:
    from jaxfl.studies.citation import text

    return text(thing)


def _first(thing: Any) -> str:
    return _text(thing).split("\n\n")[0].replace("\n", " ")


def _signature(thing: Any) -> str:
    parameters = inspect.signature(thing).parameters.values()
    parts = []
    for p in parameters:
        plain = p.default is p.empty or type(p.default) is object or p.kind is p.VAR_KEYWORD
        star = "**" if p.kind is p.VAR_KEYWORD else ""
        parts.append(f"{star}{p.name}" if plain else f"{p.name}={p.default!r}")
    return f"({', '.join(parts)})"


def _picture(path: str, draw: Callable[[], Any]) -> str:
    """Draws and writes a picture, after making sure that it can be written."""
    from matplotlib import pyplot

    place = Path(path).resolve().parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise OSError(
            f"cannot write the picture {path!r}; choose a folder that exists: --out x.png"
        )
    figure = draw().figure
    try:
        folder.picture(path, figure, dpi=200)
    finally:
        pyplot.close(figure)
    return path


def cache_dir() -> Path | None:
    """Where compiled programs are kept between runs of the command line; None without a home."""
    import jax
    import platformdirs

    settings: Any = jax.config
    if given := settings.jax_compilation_cache_dir:
        return Path(given)
    try:
        root = platformdirs.user_cache_path("jaxfl", appauthor=False)
    except RuntimeError:  # some releases say so, others give "~/.cache"
        return None
    return root / "xla" if root.is_absolute() else None


def cache() -> None:
    """Keeps compiled programs in `cache_dir()`, if it can be written."""
    import jax

    path = cache_dir()
    try:
        if path is None:
            return
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(path, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(path))


if __name__ == "__main__":
    sys.exit(main())
