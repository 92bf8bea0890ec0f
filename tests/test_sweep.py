"""Sweeps: the grid they make, their numbers against single runs, folders, early stops."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr

import jaxfl
from jaxfl import results
from jaxfl.runs import folder
from jaxfl.studies import execution
from jaxfl.studies.config import FIELDS, Config
from jaxfl.studies.names import parse
from jaxfl.studies.plan import Group
from jaxfl.studies.sweep import Space

SMALL = {
    "data": "wine", "clients": 4, "cohort": 2, "minimum": 2, "rounds": 4, "every": 2, "batch": 4,
    "steps": 2, "model": "mlp(hidden=[4])",
}  # fmt: skip
NO_BATCH = {k: v for k, v in SMALL.items() if k != "batch"}
OVER = {"lr": [0.03, 0.1, 1e200], "alpha": [0.3, 3.0], "seed": 2}


pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def small(tmp_path_factory, compiled_once):
    """A sweep of twelve runs, its folder, and the number of chunks."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    return jaxfl.sweep(OVER, out=out, width=4, devices=1, **SMALL), out


def configs(over, **settings):
    return list(Space.make(over, **settings).runs())


# Settings ----------------------------------------------------------------------------------------


def test_the_product_in_order():
    space = Space.make({"alpha": [0.1, 1.0], "lr": [0.1, 0.2], "seed": [3, 5]}, **SMALL)
    assert list(space.axes) == ["alpha", "lr", "seed"] and space.size == 8
    got = [(c.alpha, c.lr, c.seed) for c in space.runs()]
    assert got == [(a, (b,), s) for a, b, s in itertools.product([0.1, 1.0], [0.1, 0.2], [3, 5])]


def test_several_algorithms_and_rates_of_the_configuration_are_axes():
    space = Space.make({"alpha": [1.0]}, algorithms=["fedavg", "dsgd"], lr=[0.1, 0.2], **SMALL)
    assert {k: len(v) for k, v in space.axes.items()} == {
        "algorithm": 2, "alpha": 1, "lr": 2, "seed": 5,
    }  # fmt: skip


def test_points():
    over = [{"lr": 0.1, "mu": 0.0}, {"lr": 0.2, "mu": 1.0, "algorithm": "fedprox"}]
    found = configs(over, algorithms=["fedprox(mu=9.0)"], seeds=1, **SMALL)
    assert [c.algorithms[0] for c in found] == [
        "fedprox(mu=0.0, lr=0.1)",
        "fedprox(lr=0.2, mu=1.0)",
    ]


def test_names_of_algorithms_components_and_options():
    over = {"compress": ["topk(0.5)", "qsgd(4)"], "compress.fraction": [0.1, 0.2], "lr": [0.1]}
    got = [c.algorithms[0] for c in configs(over, algorithms=["choco"], seeds=1, **SMALL)]
    assert got == [
        "choco(compress=topk(fraction=0.1), lr=0.1)",
        "choco(compress=topk(fraction=0.2), lr=0.1)",
        "choco(compress=qsgd(4), lr=0.1)",
        "choco(compress=qsgd(4), lr=0.1)",
    ]
    over = {"graph": ["ring", "erdos_renyi"], "graph.p": [0.3, 0.6], "adversary.z": [1.0]}
    got = configs(
        over, algorithms=["dsgd"], adversary="alie", byzantine=1, seeds=1, lr=0.1, **SMALL
    )
    graphs = ["ring", "ring", "erdos_renyi(p=0.3)", "erdos_renyi(p=0.6)"]
    assert [c.graph for c in got] == graphs and got[0].adversary == "alie(z=1.0)"
    rest = {k: v for k, v in SMALL.items() if k != "steps"}
    steps = configs({"steps": [1, 3]}, algorithms=["fedavg"], lr=0.1, seeds=1, **rest)
    assert [c.algorithms[0] for c in steps] == [
        "fedavg(steps=1, lr=0.1)",
        "fedavg(steps=3, lr=0.1)",
    ]


@pytest.mark.parametrize(
    "text", ["choco(compress=topk(0.1), lr=0.3) @ erdos_renyi(p=0.3)", "mlp(hidden=[32, 16])", "a"]
)
def test_names_are_written_as_they_are_read(text):
    assert str(parse(text)) == text


def test_what_cannot_differ_is_run_once():
    options = {**SMALL, "lr": 0.1, "algorithms": ["fedprox", "dsgd"]}
    over = {"graph": ["ring", "complete"], "mu": [0.0, 0.1], "failures": [0.1, 0.2], "seed": 2}
    plan = jaxfl.plan(over, devices=1, **options)
    # FedProx ignores graphs and failures, D-SGD ignores mu
    assert plan.where.size == 32 and plan.runs == 2 * 2 + 4 * 2
    assert plan.where.shape == (2, 2, 2, 2, 2)
    prox, dsgd = plan.where
    assert (prox == prox[:1, :, :1]).all() and (dsgd == dsgd[:, :1]).all()


def test_programs_are_as_many_as_need_be():
    def programs(over, **settings):
        rest = {k: v for k, v in SMALL.items() if k not in over}
        plan = jaxfl.plan(over, devices=1, **{**rest, "seeds": 1, "lr": 0.1, **settings})
        return len(plan.groups), plan.separate

    traced = {"alpha": [0.1, 1.0], "lr": [0.1, 0.2], "seed": 2, "mu": [0.0, 0.1]}
    assert programs(traced, algorithms=["fedprox"]) == (1, [])
    attack = {"byzantine": [1, 2], "adversary.z": [1.0, 2.0], "failures": [0.1, 0.2]}
    assert programs(attack, algorithms=["dsgd"], adversary="alie") == (1, [])
    assert programs({"latency": [0.0, 1.0]}, algorithms=["dsgd"]) == (1, [])
    weights = {"weights": ["metropolis", "lazy"]}
    assert programs(weights, algorithms=["dsgd"], graph="star") == (1, [])
    assert programs({"churn": [0.0, 0.5]}, algorithms=["gossiplearning"]) == (1, [])
    assert programs({"cohort": [1, 2], "alpha": [0.1, 1.0]}) == (2, ["cohort"])
    assert programs({"steps": [1, 2], "batch": [2, 4]}) == (4, ["steps", "batch"])
    assert programs({"algorithm": ["fedavg", "dsgd", "fedbuff"]}) == (3, ["algorithm"])


def test_a_plan_says_what_will_be():
    text = str(jaxfl.plan({"lr": [0.1, 0.2], "batch": [1, 2], "seed": 3}, devices=1, **NO_BATCH))
    for line in ("12 combinations", "2 programs, one for each batch", "2 chunks of at most 6 runs"):
        assert line in text


# Numbers -----------------------------------------------------------------------------------------


def test_labels_and_shapes(small):
    ds, _ = small
    assert dict(ds.sizes) == {"lr": 3, "alpha": 2, "seed": 2, "round": 2, "client": 4}
    assert ds.accuracy.dims == ("lr", "alpha", "seed", "round")
    assert ds["round"].values.tolist() == [2, 4] and ds.seed.values.tolist() == [0, 1]
    assert ds.client_accuracy.dims == ("lr", "alpha", "seed", "client")
    for name, variable in ds.variables.items():
        assert "long_name" in variable.attrs or name == "point", name
    assert ds.megabytes.attrs["units"] == "MB" and ds.attrs["metric"] == "accuracy"
    assert json.loads(ds.attrs["over"]) == {**OVER, "seed": [0, 1]}
    assert len(ds.accuracy.sel(lr=0.1).mean("seed").plot(hue="alpha")) == 2


def test_axes_say_what_they_are_for(small):
    assert {k: small[0][k].attrs["role"] for k in OVER} == {
        "lr": "tuning", "alpha": "task", "seed": "run",
    }  # fmt: skip


def test_a_run_has_the_numbers_of_a_comparison(small):
    ds, _ = small
    for alpha in (0.3, 3.0):
        options = {"seeds": 2, "alpha": alpha, "lr": OVER["lr"], "reference": ""}
        found = jaxfl.compare(algorithms=["fedavg"], **options, **SMALL)
        old = found.results.isel(algorithm=0)
        new = ds.sel(alpha=alpha)
        live = ~np.asarray(new.status == 3)
        assert set(new.data_vars) <= set(old.data_vars)  # one vocabulary
        np.testing.assert_array_equal(new["round"], old["round"])
        for name, values in new.data_vars.items():
            assert values.dims == old[name].dims, name
            if name not in ("status", "stopped"):
                ours, theirs = values.values[live], old[name].values[live]
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9, err_msg=name)


def test_networks_of_all_kinds_have_the_numbers_of_a_comparison():
    names = ["dsgd @ complete", "fedbuff"]
    options = {**SMALL, "lr": 0.1, "byzantine": 1, "adversary": "signflip", "failures": 0.2}
    ds = jaxfl.sweep({"failures": [0.0, 0.2], "seed": 2}, algorithms=names, devices=1,
                     **{k: v for k, v in options.items() if k != "failures"})  # fmt: skip
    old = jaxfl.compare(algorithms=names, seeds=2, reference="", **options).results.isel(lr=0)
    new = ds.sel(failures=0.2)
    np.testing.assert_allclose(new.accuracy, old.accuracy, rtol=1e-9)
    np.testing.assert_allclose(new.seconds, old.seconds, rtol=1e-9)
    assert np.abs(ds.loss.sel(failures=0.0) - ds.loss.sel(failures=0.2))[0].min() > 0


def test_width_and_devices_change_nothing(small):
    ds, _ = small
    for options in ({"width": 3, "devices": 1}, {"width": 12, "devices": 8}):
        other = jaxfl.sweep(OVER, **options, **SMALL)
        xr.testing.assert_allclose(other, ds, rtol=1e-9)


def test_a_run_that_diverges_leaves(small):
    ds, _ = small
    bad = ds.sel(lr=1e200)
    assert (bad.status == 3).all() and (bad.stopped == 2).all()
    assert (ds.status.sel(lr=[0.03, 0.1]) == 0).all()
    assert np.isnan(bad.megabytes.isel(round=1)).all()
    meanings = ds.status.attrs["flag_meanings"].split()
    assert meanings[3] == "diverged" and len(meanings) == len(ds.status.attrs["flag_values"])


def test_a_run_whose_loss_is_absurd_has_diverged():
    """A finite r2 of minus a million: it ran to the end, and counts as diverged there."""
    options = {**SMALL, "data": "diabetes", "model": "logistic"}
    ds = jaxfl.sweep({"lr": [0.03, 3.0], "seed": 2}, devices=1, **options)
    assert np.isfinite(ds.r2).all() and (ds.r2.sel(lr=3.0).isel(round=-1) < -1e3).all()
    assert ds.status.values.tolist() == [[0, 0], [3, 3]] and (ds.stopped == 4).all()
    assert np.isnan(results.final(ds).sel(lr=3.0)).all()
    found = jaxfl.compare(algorithms=["fedavg"], seeds=2, lr=(0.03, 3.0), reference="", **options)
    assert found.results["status"].values.tolist() == [[[0, 0], [3, 3]]]
    np.testing.assert_allclose(ds.client_r2[0], found.results["client_r2"][0, 0], rtol=1e-9)


def test_two_scores_and_what_seeds_draw_are_those_of_a_comparison():
    """Split and graph by seed, personal models, and runs of both kinds side by side."""
    names = ["ditto", "dsgd @ erdos_renyi(p=0.3)"]
    options = {**SMALL, "lr": 0.1, "clients": 6, "model": "logistic"}
    ds = jaxfl.sweep({"vary": ["run", "all"], "seed": 2}, algorithms=names, devices=1, **options)
    for vary in ("run", "all"):
        options["vary"] = vary
        old = jaxfl.compare(algorithms=names, seeds=2, reference="", **options).results.isel(lr=0)
        new = ds.sel(vary=vary)
        scores = "accuracy", "own_accuracy", "worst", "valid_own_accuracy", "personal_accuracy"
        for name in scores:
            np.testing.assert_allclose(new[name], old[name], rtol=1e-9, err_msg=name)
        np.testing.assert_array_equal(new.valid_choice[0], new.valid_own_accuracy[0])
        np.testing.assert_array_equal(new.valid_choice[1], new.valid_accuracy[1])
    assert (ds.loss.sel(vary="run") != ds.loss.sel(vary="all")).all()
    notes = results.Summary(ds).notes()
    assert any("intervals do not cover the split" in note for note in notes)


def test_early_stops_change_no_other_run(monkeypatch):
    options = {**SMALL, "rounds": 8, "every": 1}
    over = {"lr": [1e-4, 0.03, 0.1, 1e200], "seed": 2}
    whole = jaxfl.sweep(over, devices=1, **options)
    target = float(np.nanmedian(whole.valid_accuracy.max("round")))
    ds = jaxfl.sweep(over, devices=1, stop_at=target, patience=3, **options)
    assert {1, 2, 3} <= set(ds.status.values.ravel().tolist())
    for at in np.ndindex(4, 2):
        score, old = ds.valid_accuracy.values[at], whole.valid_accuracy.values[at]
        end, best, since = int(ds.stopped.values[at]), -np.inf, 0
        expected = 0
        for e, value in enumerate(old):  # noqa: B007
            since = 0 if value > best else since + 1
            best = max(best, value)
            expected = 3 if np.isnan(value) else 1 if value >= target else 2 if since >= 3 else 0
            if expected:
                break
        assert end == e + 1 and int(ds.status.values[at]) == expected
        np.testing.assert_allclose(score[:end], old[:end], rtol=1e-12)
        assert np.isnan(score[end:]).all()


def test_batches_get_smaller_as_runs_leave(monkeypatch):
    widths = []
    program = Group.program

    def spy(self, width, *rest):
        widths.append(width)
        return program(self, width, *rest)

    monkeypatch.setattr(Group, "program", spy)
    over = {"lr": [0.1, 1e200, 1e201, 1e202], "seed": 1}
    ds = jaxfl.sweep(over, devices=1, **{**SMALL, "rounds": 8, "every": 2})
    assert widths == [4, 1, 1, 1] and ds.status.values.ravel().tolist() == [0, 3, 3, 3]


# Folders -----------------------------------------------------------------------------------------


def test_the_folder(small):
    ds, out = small
    names = {p.name for p in out.iterdir()} - {".lock"}
    assert {"results.nc", "sweep.toml", "provenance.json", "chunks"} <= names
    assert len(list((out / "chunks").iterdir())) == 3
    xr.testing.assert_identical(results.load(out), ds)
    about = json.loads((out / "provenance.json").read_text())
    assert about["widths"] == [4] and about["sessions"][0]["versions"]["jax"] == jax.__version__
    assert about["sessions"][0]["start"] <= about["sessions"][0]["end"]
    space, options = Space.read(out / "sweep.toml")
    assert space == Space.make(OVER, **SMALL) and options == {"stop_at": np.inf, "patience": 0}


def test_a_flipped_number_in_the_result_is_noticed(small, tmp_path):
    ds, out = small
    data = bytearray((out / "results.nc").read_bytes())
    at = data.find(np.ascontiguousarray(ds.megabytes.values).tobytes())
    assert at > 0
    data[at + 3] ^= 1
    (tmp_path / "results.nc").write_bytes(data)
    with pytest.raises(ValueError, match="results.nc.*run that again"):
        results.load(tmp_path)


@pytest.fixture
def copied(small, tmp_path):
    shutil.copytree(small[1], tmp_path / "out")
    return tmp_path / "out"


def test_the_same_call_goes_on(small, copied, monkeypatch):
    ran = []
    run = execution._run
    monkeypatch.setattr(execution, "_run", lambda *a: ran.append(a[1]) or run(*a))
    (copied / "chunks" / "000001.npz").unlink()
    ds = jaxfl.sweep(OVER, out=copied, width=7, devices=1, **SMALL)  # the folder's width counts
    assert len(ran) == 1
    for name in ds:  # bit for bit
        assert ds[name].values.tobytes() == small[0][name].values.tobytes(), name
    assert len(json.loads((copied / "provenance.json").read_text())["sessions"]) == 2


def test_an_interrupted_chunk_goes_on_where_it_was(small, tmp_path, monkeypatch):
    ticks = itertools.count()
    stops = lambda: next(ticks) >= 1  # after the first of two spans
    monkeypatch.setattr(execution, "graceful", lambda say: _context(stops))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
        jaxfl.sweep(OVER, out=tmp_path / "out", width=4, devices=1, **SMALL)
    assert [p.name for p in (tmp_path / "out" / "chunks").iterdir()] == ["000000.partial.npz"]
    monkeypatch.undo()
    ds = jaxfl.sweep(OVER, out=tmp_path / "out", width=4, devices=1, **SMALL)
    for name in ds:
        assert ds[name].values.tobytes() == small[0][name].values.tobytes(), name
    assert not list((tmp_path / "out").glob("chunks/*partial*"))


def _context(value):
    import contextlib

    return contextlib.nullcontext(value)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_chunk_is_named(copied, damage):
    path = copied / "chunks" / "000000.npz"
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        with np.load(path) as file:
            data[data.find(file["score"].tobytes()) + 1] ^= 16
    elif damage == "empty":
        data = b""
    else:
        data = (copied / "chunks" / "000001.npz").read_bytes()
    path.write_bytes(data)
    with pytest.raises(ValueError, match="000000.npz.*damaged.*delete it"):
        jaxfl.sweep(OVER, out=copied, devices=1, **SMALL)


def test_folders_of_others_are_refused(copied, tmp_path):
    with pytest.raises(ValueError, match="another sweep: settings.sweep.lr.* was .*, is"):
        jaxfl.sweep({**OVER, "lr": [0.5]}, out=copied, **SMALL)
    with pytest.raises(ValueError, match="another sweep: settings.batch was 4, is 8; choose"):
        jaxfl.sweep(OVER, out=copied, **{**SMALL, "batch": 8})
    with pytest.raises(ValueError, match="another sweep: settings.patience was 0, is 3"):
        jaxfl.sweep(OVER, out=copied, patience=3, **SMALL)
    about = json.loads((copied / "provenance.json").read_text())
    for text, message in (
        (folder.sealed(about | {"format": 99}), "format 99, this is 2"),
        (json.dumps({"format": 1, "objects": {}, "widths": [4]}), "format 1, this is 2"),
        (folder.sealed(about | {"kind": "comparison"}), "holds a comparison, not a sweep"),
        (json.dumps(about | {"widths": [3]}), "provenance.json' was changed"),
        ("{", "cannot read a sweep: .*provenance.json', which jaxfl writes, is .*not JSON"),
        ("[]", "cannot read a sweep: .*provenance.json"),
    ):
        (copied / "provenance.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            jaxfl.sweep(OVER, out=copied, **SMALL)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds other files, such as 'thesis.tex'"):
        jaxfl.sweep(OVER, out=tmp_path / "other", **SMALL)
    with pytest.raises(OSError, match="cannot write to the output folder"):
        jaxfl.sweep(OVER, out=tmp_path / "other" / "thesis.tex", **SMALL)


def test_one_process_at_a_time(copied):
    code = f"from jaxfl.runs import folder; l = folder.locked({str(copied)!r}); l.__enter__(); "
    code += "print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(OSError, match="another process is writing"):
            jaxfl.sweep(OVER, out=copied, **SMALL)
        other.send_signal(signal.SIGKILL)  # no stale lock
    with folder.locked(copied):
        pass


def test_a_full_disk_loses_nothing(small, tmp_path, monkeypatch):
    whole, saved = np.savez, []

    def full(path, **arrays):
        if saved:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        saved.append(path)
        whole(path, **arrays)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left.*everything before it is kept"):
        jaxfl.sweep(OVER, out=tmp_path / "out", width=4, devices=1, **SMALL)
    assert len(list((tmp_path / "out" / "chunks").iterdir())) == 1
    monkeypatch.undo()
    ds = jaxfl.sweep(OVER, out=tmp_path / "out", width=4, devices=1, **SMALL)
    assert ds.accuracy.values.tobytes() == small[0].accuracy.values.tobytes()


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("over", "settings", "match"),
    [
        ({}, {}, "over must be a table of lists"),
        ([], {}, "over must be a table of lists"),
        ({"lr": []}, {}, "lr needs a list of values"),
        ({"lr": 0.1}, {}, "lr needs a list of values"),
        ({"lr": [0.1, 0.1]}, {}, "lr holds 0.1 twice"),
        ({"seed": 0}, {}, "seed needs a list"),
        ([{"lr": 0.1}, {"lr": 0.1}], {}, "twice"),
        ([{"lr": [0.1]}], {}, "takes one value"),
        ({"alpa": [1.0]}, {}, "did you mean 'alpha'"),
        ({"mu": [1.0]}, {}, "has 'mu'"),  # FedAvg has none
        ({"compress.fraction": [1.0]}, {}, "none of these settings has"),
        ({"rounds": [10, 20]}, {}, "rounds cannot be swept"),
        ({"select": ["own", "all"]}, {}, "select cannot be swept"),
        ({"alpha": [0.1]}, {"alpha": 1.0}, "both swept and set"),
        ({"algorithm": ["fedavg"]}, {"algorithms": ["dsgd", "fedavg"]}, "both swept and set"),
        ({"algorithm": ["fedagv"]}, {}, "did you mean 'fedavg'"),
        ({"alpha": [0.1, -1.0]}, {}, "in the run .*alpha must be above 0"),
        ({"alpha": ["a"]}, {}, "alpha must be a number"),
        ({"cohort": [2, 99]}, {}, "cohort must be at most"),
        ({"graph": ["ring", "rign"]}, {"algorithms": ["dsgd"]}, "ring"),
        ({"lr": [0.1 + i for i in range(2000)], "seed": 5000}, {}, "10,000,000 runs"),
        ({"lr": [object()]}, {}, "numbers, names and lists"),
        ({"algorithm": ["dsgd(lr=[0.1, 0.2])"], "lr": [0.1]}, {}, "sweep them"),
        ({"lr": [0.1]}, {"patience": -1}, "patience a whole number"),
        ({"lr": [0.1]}, {"stop_at": float("nan")}, "stop_at must be a score"),
        ({"lr": [0.1]}, {"devices": 99}, "devices 1 to"),
    ],
)
def test_bad_input(over, settings, match, tmp_path):
    rest = {k: v for k, v in SMALL.items() if k not in over}
    with pytest.raises(ValueError, match=match):
        jaxfl.sweep(over, out=tmp_path / "out", **{**rest, **settings})
    assert not list(tmp_path.glob("out/chunks/*"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("rounds = ", "cannot read the sweep"),
        ("rounds = 10", r"no table \[sweep\]"),
        ("ruonds = 10\n[sweep]\nlr = [0.1]", "did you mean 'rounds'"),
        ("patience = 'a'\n[sweep]\nlr = [0.1]", "patience must be a number"),
        ("[sweep]\n", "over must be a table"),
        ("sweep = 3", "over must be a table"),
    ],
)
def test_bad_files(text, match, tmp_path):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError, match=match):
        Space.read(tmp_path / "a.toml")


def test_files_are_read_back():
    for over in (OVER, [{"lr": 0.1, "alpha": 0.2}, {"lr": 0.3}]):
        space = Space.make(over, Config(), rounds=20)
        path = Path(os.environ.get("TMPDIR", "/tmp")) / f"sweep-{os.getpid()}.toml"
        try:
            path.write_text(space.toml())
            assert Space.read(path)[0] == space
        finally:
            path.unlink()


OTHER = {  # another value of every setting that can be swept, and where it counts
    "data": ("iris", {}), "clients": (5, {}), "partition": ("iid", {}), "alpha": (9.0, {}),
    "minimum": (7, {}), "model": ("logistic", {}), "weights": ("lazy", {}), "lr": (0.3, {}),
    "graph": ("complete", {}), "cohort": (3, {"algorithms": ["fedavg"]}),
    "steps": (3, {"algorithms": ["fedavg"]}), "batch": (5, {}), "precision": ("bfloat16", {}),
    "byzantine": (1, {}), "adversary": ("ipm", {"byzantine": 1}), "failures": (0.5, {}),
    "churn": (0.5, {}), "compute": (1.0, {}), "latency": (1.0, {}), "up": (1.0, {}),
    "down": (1.0, {}), "seed": (7, {}), "vary": ("split", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", [k for k, f in FIELDS.items() if not f.metadata["fixed"]])
def test_every_setting_changes_what_is_run(name):
    """A new one must too: no piece of a run may be taken for that of another value."""
    value, more = OTHER[name]
    usual = {"algorithms": ["dsgd"], "seeds": 1, "lr": 0.1, "vary": "run", **SMALL, **more}
    first = usual.pop(name, FIELDS[name].default)
    plan = jaxfl.plan({name: [first, value]}, devices=1, **usual)
    groups = {run: group for group in plan.groups for run in group.runs}
    parts = [groups[k].rows(np.flatnonzero(groups[k].runs == k)) for k in range(plan.runs)]
    assert len(parts) == 2
    static = groups[0].treedefs != groups[1].treedefs
    assert static or not all(map(np.array_equal, *parts))
