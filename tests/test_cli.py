"""The command line parses and prints; the numbers are Python's to the last digit."""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_compare import small

from jaxfl import cli
from jaxfl.runs.checkpoint import Interrupted
from jaxfl.runs.folder import read_netcdf
from jaxfl.studies.comparison import Comparison


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setattr(cli, "cache", lambda: None)


def run(capsys, *words):
    status = cli.main(words)
    out, err = capsys.readouterr()
    return status, out, err


def test_numbers_are_those_of_python(tmp_path, capsys):
    """From the saved configuration, one algorithm alone: bit for bit what it was among others."""
    found, folder = small()
    words = ("compare", "--config", str(folder / "config.toml"), "--algorithms", "fedavg")
    status, out, err = run(capsys, *words, "--out", str(tmp_path / "new"))
    assert status == 0, err
    again = Comparison.load(tmp_path / "new")
    ours = found.results.sel(algorithm=["FedAvg", "Local"])
    assert again.results.drop_attrs().equals(ours.drop_attrs())
    assert again.text().splitlines()[1].split() == out.splitlines()[1].split()
    assert "FedAvg" in err  # progress
    row, before = again.rows()[0], found.rows()[0]
    for name in ("score", "score_half", "worst"):
        np.testing.assert_equal(getattr(row, name), getattr(before, name))


def test_options_win_over_the_file_and_quick(monkeypatch, capsys, tmp_path):
    seen = []
    monkeypatch.setattr(cli, "_report", lambda config, out, figure: seen.append((config, out)))
    path = tmp_path / "config.toml"
    path.write_text("rounds = 60\nseeds = 3\nlr = [0.1, 0.2, 0.3, 0.4]\n")
    words = ["--config", str(path), "--seeds", "1", "--lr", "0.5", "2", "--alpha", "1"]
    assert run(capsys, "compare", *words)[0] == 0
    config, out = seen[-1]
    assert (config.rounds, config.seeds, config.lr, config.alpha) == (60, 1, (0.5, 2.0), 1.0)
    assert out == "jaxfl-results"
    words = ["run", "dsgd(steps=2) @ torus", "--quick", "--rounds", "100", "--out", "there"]
    assert run(capsys, *words)[0] == 0
    config, out = seen[-1]
    assert config.algorithms == ("dsgd(steps=2) @ torus",) and out == "there"
    assert (config.rounds, config.seeds) == (100, 2)


def test_list_and_show(capsys):
    status, out, _ = run(capsys, "list")
    assert status == 0
    for name in ("scaffold", "digits", "dirichlet", "mlp", "ring", "metropolis", "alie", "topk"):
        assert f"\n  {name} " in out
    status, out, _ = run(capsys, "list", "models")
    assert status == 0 and "mlp" in out and "ring" not in out
    for name in ("Scaffold", "fedadam", "ring", "mlp", "dirichlet", "topk", "digits", "metropolis"):
        status, out, _ = run(capsys, "show", name)
        assert status == 0 and out.lower().startswith(name.lower())
    assert "Karimireddy" in run(capsys, "show", "scaffold")[1]


def test_graph_and_partition(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "graph", "ring", "--n", "16")
    assert status == 0 and "0.0507" in out and "mixing time  45" in out
    assert Path("ring.png").read_bytes()[:4] == b"\x89PNG"
    words = ("graph", "erdos_renyi(p=0.5)", "--n", "8", "--weights", "max_degree")
    assert run(capsys, *words, "--out", "er.pdf")[0] == 0
    assert Path("er.pdf").read_bytes()[:4] == b"%PDF"
    status, out, _ = run(capsys, "partition", "--clients", "5", "--alpha", "0.3")
    assert status == 0 and "clients      5" in out and Path("partition.png").exists()


def test_a_sweep_of_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = """
        data = "wine"
        clients = 4
        cohort = 2
        minimum = 2
        rounds = 4
        every = 2
        [sweep]
        lr = [0.03, 0.1]
        seed = 2
    """
    Path("rates.toml").write_text("\n".join(map(str.strip, text.splitlines())))
    assert cli.main(["sweep", "rates.toml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "4 combinations: lr (2), seed (2)" in said and "1 program\n" in said
    assert not Path("rates").exists()
    assert cli.main(["sweep", "rates.toml"]) == 0
    said = capsys.readouterr().out
    assert "validation [%]" in said and "over 2 seeds" in said and "jaxfl report rates" in said
    results = read_netcdf("rates/results.nc")
    assert cli.main(["sweep", "rates", "--dry-run"]) == 0
    assert "1 of 1 chunks are there, 0:00:00 left" in capsys.readouterr().out
    assert cli.main(["sweep", "rates"]) == 0  # everything is there already
    again = read_netcdf("rates/results.nc")  # but for the sessions
    assert again.drop_attrs().equals(results.drop_attrs())
    Path("rates.toml").write_text(Path("rates.toml").read_text().replace("0.03", "0.3"))
    assert cli.main(["sweep", "rates.toml"]) == 2
    assert "holds another sweep" in capsys.readouterr().err


def test_help_fits_a_screen(capsys):
    for words in ((), ("--help",), ("help",)):
        status, out, _ = run(capsys, *words)
        assert status == 0 and all(f"\n  {name} " in out for name in cli.COMMANDS)
        assert len(out.splitlines()) <= 24 and max(map(len, out.splitlines())) <= 88
    for command in cli.COMMANDS:
        status, out, err = run(capsys, command, "--help")
        assert status == 0 and f"jaxfl {command}" in out and not err
    assert "--failures" in run(capsys, "compare", "--help")[1]


@pytest.mark.parametrize(
    "words, message",
    [
        ("comparre", "did you mean 'compare'"),
        ("compare --roundss 3", "--rounds"),
        ("compare --rounds few", "few"),
        ("compare --algorithms fedavgg", "did you mean 'fedavg'"),
        ("run", "NAME"),
        ("run fedavgg", "did you mean 'fedavg'"),
        ("run dsgd@rong", "did you mean 'ring'"),
        ("sweep", "FILE"),
        ("sweep none.toml", "cannot read the sweep"),
        ("compare --data digit", "did you mean 'digits'"),
        ("compare --config nowhere.toml", "cannot read the configuration"),
        ("compare --config", "--config"),
        ("compare --cohort 21", "cohort must be at most --clients 20, got 21; use `--cohort 20`"),
        ("compare --lr 0.3 0.1", "use `--lr 0.1 0.3 1.0`"),
        ("compare --clients 1000000000000", "1000000000000"),
        ("compare --rounds 1000000000000", "rounds must be at most 2,147,483,647"),
        ("compare --steps 1000000000000", "steps must be at most"),
        ("compare --seeds 10000000", "seeds must be at most 22,222"),
        ("graph ring --n 1000000000000", "1000000000000 nodes has about 1e+12 edges"),
        ("graph complete --n 1000000", "edges"),
        ("compare --data nowhere.csv", "there is no such file"),
        ("compare --algorithms fedavg(steps=0)", "`FedAvg(steps=1)`"),
        ("compare --lr -0.1", "lr must be positive"),
        ("compare --alpha -1", "alpha must be above 0"),
        ("compare --steps 0", "steps must be at least 1"),
        ("compare --out file/below", "cannot write to the output folder"),
        ("list nothing", "no kind 'nothing'"),
        ("show scafold", "did you mean 'scaffold'"),
        ("graph rong", "did you mean 'ring'"),
        ("graph random_out", "drawn anew every round"),
        ("graph ring --weights metro", "metropolis"),
        ("graph ring --n 0", "n"),
        ("graph ring --out nowhere/x.png", "cannot write the picture"),
        ("partition --data diabetes", "no labels to draw"),
        ("partition --minimum 1000", "--minimum 1000 for --clients 20"),
        ("graph " + "x" * 9000, "unknown graph 'xxx"),
        ("graph " + "x" * 10**7, "no word may be longer"),
        ("list " + "x" * 9000, "no kind 'xxx"),
        ("y" * 10**7, "no command 'yyy"),
    ],
)
def test_bad_input_is_one_message_and_status_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    status, out, err = run(capsys, *words.split())
    assert status == 2
    assert message in err and "Traceback" not in err + out and len(err) < 5000
    assert [p.name for p in tmp_path.iterdir()] == ["file"]  # nothing half done


@pytest.mark.parametrize("said", ["stopped with 3 of 8 runs finished, in 'out'", ""])
def test_an_interrupted_command_says_what_it_kept(said, capsys, monkeypatch):
    def interrupted(words):
        raise Interrupted(said) if said else KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "sweep", interrupted)
    status, out, err = run(capsys, "sweep", "a.toml")
    assert (status, out, err) == (130, "", f"jaxfl: {said or 'interrupted'}\n")


def test_debug_shows_where_errors_come_from(capsys):
    with pytest.raises(ValueError, match="no command"):
        cli.main(["--debug", "bla"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="where XDG says")
def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.cache_dir() == tmp_path / "jaxfl" / "xla"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.cache_dir() == tmp_path / ".cache" / "jaxfl" / "xla"


@pytest.mark.parametrize("found", [Path("~/.cache/jaxfl"), RuntimeError("no home")])
def test_nobody_has_no_home(monkeypatch, found, capsys):
    """An unknown user without HOME: nothing is cached, and no folder is called ~."""
    import platformdirs

    def nowhere(*names, **options):
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.undo()  # the real `cache`
    monkeypatch.setattr(platformdirs, "user_cache_path", nowhere)
    assert cli.cache_dir() is None
    cli.cache()
    assert not Path("~").exists()
    status, out, _ = run(capsys, "info")
    assert status == 0 and "none, for there is no home" in out


@pytest.mark.parametrize(
    "error, words",
    [
        (ImportError('fastest needs cvxpy: pip install "jaxfl[sdp]"'), "fastest needs cvxpy"),
        (MemoryError(), "not enough memory"),
        (OverflowError("too large to convert"), "OverflowError: too large to convert; --debug"),
        (RuntimeError("RESOURCE_EXHAUSTED: 3 PB\n"), "RESOURCE_EXHAUSTED: 3 PB; --debug shows"),
        (AttributeError("x" * 10**6), "AttributeError: xxx"),
        (KeyError("objects"), "KeyError: 'objects'; --debug"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("use `rounds=5`, `lr=[0.1, 0.3]` or `data='digits'`"),
         "use `--rounds 5`, `--lr 0.1 0.3` or `--data 'digits'`"),
        (ValueError("write \"fedavg(steps=5) @ torus\", `algorithms=('fedavg',)`"),
         "write \"fedavg(steps=5) @ torus\", `--algorithms 'fedavg'`"),
        (ValueError("for n=20 clients: use `minimum=1`; the same call goes on"),
         "for --clients 20: use `--minimum 1`; the same command goes on"),
        (KeyboardInterrupt(), "jaxfl: interrupted\n"),
        (Interrupted("stopped; the same call goes on"), "stopped; the same command goes on"),
    ],
)  # fmt: skip
def test_whatever_a_command_raises_is_one_message(error, words, monkeypatch, capsys):
    def command(_):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "info", command)
    status, out, err = run(capsys, "info")
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert words in err and not out and len(err) < 5000
    assert "nothing was written" not in err
    if not isinstance(error, KeyboardInterrupt):
        with pytest.raises(type(error)):
            cli.main(["info", "--debug"])


def process(*words, python=(), **options):
    words = [sys.executable, *python, "-m", "jaxfl.cli", *words]
    env = os.environ | {"COLUMNS": "80"} | options.pop("env", {})
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120} | options
    return subprocess.run(words, env=env, check=False, **options)


def test_process():
    done = process("info", text=True)
    assert done.returncode == 0
    assert "devices      cpu:0" in done.stdout and f"numpy {np.__version__}" in done.stdout


def test_streams_that_are_closed_full_or_not_utf8(tmp_path):
    """Somebody who reads a line, nobody, a full disk, a terminal of the last century."""
    shell = f"{shlex.quote(sys.executable)} -m jaxfl.cli list"
    options = {"capture_output": True, "text": True, "timeout": 120}
    pipe = f"set -o pipefail; {shell} | head -1; {shell} algorithms >&-; echo $?"
    done = subprocess.run(["bash", "-c", pipe], **options)
    assert done.stdout.split() == ["algorithms", "0"] and not done.stderr
    if Path("/dev/full").exists():
        done = subprocess.run(["bash", "-c", f"{shell} > /dev/full"], **options)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space" in done.stderr
    words = ("compare", "--algorithms", "fedavg", "--data", "iris", "--model", "logistic",
             "--clients", "4", "--cohort", "2", "--minimum", "1", "--rounds", "4", "--every", "2",
             "--seeds", "4", "--lr", "0.1", "--out", str(tmp_path / "out"))  # fmt: skip
    done = process(*words, env={"PYTHONIOENCODING": "ascii"})
    text = done.stdout.decode("ascii")
    assert done.returncode == 0 and b"Traceback" not in done.stderr and "FedAvg" in text
    assert "±" in (tmp_path / "out" / "table.txt").read_text(encoding="utf-8")


def test_interrupted_compare_ends_at_once_and_says_so(tmp_path):
    """While its first program compiles or runs, for minutes, with the other eight behind it."""
    listens = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code = listens + "from jaxfl.cli import main; raise SystemExit(main())"  # also in a background
    words = [sys.executable, "-c", code, "compare", "--rounds", "100000", "--every", "1000"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, cwd=tmp_path, text=True) as child:
        assert child.stderr is not None
        deadline = time.monotonic() + 100
        while not (tmp_path / "jaxfl-results").exists() and time.monotonic() < deadline:
            time.sleep(0.1)  # that folder is the last thing before they start
        time.sleep(1)
        child.send_signal(signal.SIGINT)
        start = time.monotonic()
        try:
            said = child.communicate(timeout=60)[1]
        finally:
            child.kill()
        assert child.returncode == 130 and time.monotonic() - start < 30
    assert "0 of 10 algorithms done, and nothing is kept" in said and "Traceback" not in said


def test_progress_fits_a_narrow_terminal():
    """Numbers in one line, words in the next, cut with three dots."""
    from rich.console import Console

    from jaxfl.studies.progress import two_lines

    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, legacy_windows=False)
    with two_lines(console=console) as bar:
        bar.add_task("3 of 40 runs", total=10, words="best 0.9 " + "x" * 200)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).splitlines()
    assert max(map(len, lines)) <= 80 and any(line.rstrip().endswith("…") for line in lines)
