"""Writers of metrics: what they get, what files hold, what a resumed run leaves."""

import importlib
import json
import sys
from types import ModuleType, SimpleNamespace

import jax.numpy as jnp
import pytest
from harness import CLIENTS, KEY, X0, N

from jaxfl.algorithms import FedAvg
from jaxfl.networks import Uniform
from jaxfl.runs.run import run
from jaxfl.runs.writers import JSONLines, TensorBoard, WandB, Writer


class Log:
    """The least that is a writer."""

    def __init__(self):
        self.lines, self.closed = [], 0

    def write(self, round, values):
        self.lines.append((round, dict(values)))

    def close(self):
        self.closed += 1


def go(*writers, lr=0.05, **options):
    options = dict(rounds=12, chunk=4) | options
    return run(FedAvg(lr=lr, steps=2), CLIENTS, Uniform(N, 3), X0, KEY, writers=writers, **options)


def evaluate(state):
    return {"a": {"norm": jnp.abs(state.params).sum()}, "params": state.params}


def test_values():
    """Per evaluation, or per chunk: mean loss, costs so far, and what is a number."""
    log = Log()
    assert isinstance(log, Writer) and log.closed == 0
    end = go(log, every=2, evaluate=evaluate)
    assert [t for t, _ in log.lines] == [2, 4, 6, 8, 10, 12] and log.closed == 1
    totals = end.history.totals()
    for k, (t, values) in enumerate(log.lines):
        want = {name: a[t - 1] for name, a in totals.items() if name != "rounds"}
        want["train_loss"] = end.history.loss[t - 2 : t].mean()
        want["a/norm"] = end.evaluations["a"]["norm"][k]
        assert values == pytest.approx(want, rel=1e-12) and {*values} == {*want}
        assert all(type(v) is float for v in values.values())
    again, chunks = Log(), Log()
    go(again, every=2, evaluate=evaluate, chunk=6)  # chunks change nothing
    assert again.lines == log.lines
    end = go(chunks)
    assert [t for t, _ in chunks.lines] == [4, 8, 12]
    assert chunks.lines[1][1]["train_loss"] == pytest.approx(end.history.loss[4:8].mean())
    with pytest.raises(ValueError, match="writers must have `write.*got 3"):
        go(3)


def test_json_lines(tmp_path):
    """Valid JSON whatever the numbers; appended, and whole after every line."""
    path = tmp_path / "new" / "run.jsonl"
    lines = JSONLines(path)
    lines.write(2, {"loss": 0.1, "worst": float("nan"), "top": float("inf")})
    read = lambda: [json.loads(line) for line in path.read_text().splitlines()]
    assert read() == [{"round": 2, "loss": 0.1, "worst": None, "top": None}]
    lines.close()
    for t in (4, 6):
        lines.write(t, {"loss": float(t)})
    with open(path, "ab") as file:
        file.write(b'{"round": 7, "lo\xff')
    again = JSONLines(path)
    again.resume(4)
    assert [line["round"] for line in read()] == [2, 4]
    again.write(8, {"loss": 1})
    again.close()
    assert [line["round"] for line in read()] == [2, 4, 8]
    JSONLines(tmp_path / "nothing.jsonl").resume(3)
    assert not (tmp_path / "nothing.jsonl").exists()


def test_a_diverging_run_is_valid_json(tmp_path):
    go(JSONLines(tmp_path / "a"), lr=1e200)
    last = json.loads((tmp_path / "a").read_text().splitlines()[-1])
    assert last["train_loss"] is None and last["grads"] > 0


@pytest.mark.parametrize("name, cls", [("tensorboard", TensorBoard), ("wandb", WandB)])
def test_extras_are_named(monkeypatch, name, cls):
    for module in (name, f"{name}.summary"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'extra \'{name}\': `pip install "jaxfl\[{name}\]"`'):
        cls(**({"folder": "x"} if cls is TensorBoard else {}))


def test_tensorboard_and_wandb_calls(monkeypatch, tmp_path):
    """What the two libraries are asked, on objects in their place."""
    said = []

    def recorder(name):
        call = lambda method: lambda *a, **k: said.append((name, method, a, k))
        methods = ("add_scalar", "flush", "close", "log", "finish")
        return SimpleNamespace(**{m: call(m) for m in methods})

    board, wandb = ModuleType("tensorboard.summary"), ModuleType("wandb")
    board.Writer = lambda folder: said.append(("Writer", folder)) or recorder("board")
    wandb.init = lambda **options: said.append(("init", options)) or recorder("wandb")
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "tensorboard.summary", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for writer in (TensorBoard(tmp_path), WandB(project="p")):
        writer.write(5, {"loss": 0.5})
        writer.close()
        writer.close()
    assert said == [
        ("Writer", str(tmp_path)),
        ("board", "add_scalar", ("loss", 0.5, 5), {}),
        ("board", "flush", (), {}),
        ("board", "close", (), {}),
        ("init", {"project": "p"}),
        ("wandb", "log", ({"loss": 0.5},), {"step": 5}),
        ("wandb", "finish", (), {}),
    ]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_it(tmp_path):
    pytest.importorskip("tensorboard", reason="extra `tensorboard` is not installed")
    name = "tensorboard.backend.event_processing.event_accumulator"
    go(TensorBoard(tmp_path), every=2, evaluate=evaluate)
    events = importlib.import_module(name).EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"train_loss", "megabytes", "a/norm"} <= {*events.Tags()["tensors"]}
    assert [e.step for e in events.Tensors("train_loss")] == [2, 4, 6, 8, 10, 12]
