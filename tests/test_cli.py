"""The command line parses and prints; the numbers are Python's to the last digit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_compare import small

from jaxfl import cli
from jaxfl.checkpoint import Interrupted
from jaxfl.compare import Comparison


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
    ours = found.results.sel(algorithm=["FedAvg"]).drop_vars("consensus")
    assert again.results.drop_attrs().equals(ours.drop_attrs())
    assert again.text().splitlines()[1].split() == out.splitlines()[1].split()
    assert "FedAvg" in err  # progress
    row, before = again.rows()[0], found.rows()[0]
    assert (row.score, row.score_half, row.worst) == (before.score, before.score_half, before.worst)


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
    results = Path("rates/results.nc").read_bytes()
    assert cli.main(["sweep", "rates", "--dry-run"]) == 0
    assert "1 of 1 chunks are there, 0:00:00 left" in capsys.readouterr().out
    assert cli.main(["sweep", "rates"]) == 0  # everything is there already
    assert len(results) == len(Path("rates/results.nc").read_bytes())
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
        ("compare --cohort 21", "cohort must be at most clients=20"),
        ("compare --lr -0.1", "lr must be positive"),
        ("compare --alpha -1", "alpha must be above 0"),
        ("compare --steps 0", "steps must be at least 1"),
        ("compare --out file/below", "cannot write to the output folder"),
        ("list nothing", "no kind 'nothing'"),
        ("show scafold", "did you mean 'scaffold'"),
        ("graph rong", "did you mean 'ring'"),
        ("graph ring --weights metro", "metropolis"),
        ("graph ring --n 0", "n"),
        ("graph ring --out nowhere/x.png", "cannot write the picture"),
        ("partition --data diabetes", "no labels to draw"),
        ("partition --minimum 1000", "minimum=1000"),
    ],
)
def test_bad_input_is_one_message_and_status_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    status, out, err = run(capsys, *words.split())
    assert status == 2
    assert message in err and "Traceback" not in err + out
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


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.cache_dir() == tmp_path / "jaxfl" / "xla"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cli.cache_dir().parts[-4:] == ("Library", "Caches", "jaxfl", "xla")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert cli.cache_dir() == tmp_path / "jaxfl" / "xla"


def test_process():
    words = [sys.executable, "-m", "jaxfl.cli", "info"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert "devices      cpu:0" in done.stdout and f"numpy {np.__version__}" in done.stdout
