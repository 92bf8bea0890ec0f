"""The main job in small: what it chooses, what it reports, what it writes, what it refuses."""

import atexit
import csv
import functools
import itertools
import json
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import jax
import matplotlib
import numpy as np
import pytest
from harness import record_world

import jaxfl
from jaxfl import data, metrics, models, networks, plots
from jaxfl.algorithms import FedAvg
from jaxfl.compare import Comparison
from jaxfl.config import DEFAULT, Config, parse
from jaxfl.experiment import dataset, partitions
from jaxfl.networks import graphs

HUGE = 1e200  # diverges in the second step
SMALL = {
    "data": "iris",
    "clients": 4,
    "minimum": 3,
    "alpha": 1.0,
    "model": "mlp(hidden=[4])",
    "rounds": 4,
    "every": 2,
    "seeds": 2,
    "lr": (0.1, 1.0, HUGE),
    "cohort": 2,
    "steps": 3,
    "batch": 5,
}


@functools.cache
def small():
    """One comparison for all tests of this file and of the command line, saved."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    algorithms = ("fedavg", "dsgd(lr=[0.1, 1.0]) @ ring")
    return jaxfl.compare(algorithms=algorithms, out=folder, **SMALL), folder


def test_results_are_labelled():
    found, _ = small()
    ds = found.to_xarray()
    assert list(ds["algorithm"].values) == ["FedAvg", "DSGD @ ring"]
    assert dict(ds.sizes) == {
        "algorithm": 2, "lr": 3, "seed": 2, "evaluation": 2, "client": 4, "round": 4,
    }  # fmt: skip
    np.testing.assert_array_equal(ds["evaluation"], [2, 4])
    np.testing.assert_array_equal(ds["rate"], [[0.1, 1, HUGE], [0.1, 1, np.nan]])
    assert all("long_name" in v.attrs and "units" in v.attrs for v in ds.data_vars.values())
    assert {ds[k].dtype for k in ("diverged", "edge", "personal")} == {np.dtype("int8")}
    assert Config.make(**json.loads(ds.attrs["config"])) == found.config
    assert jax.tree.leaves(found.states["DSGD @ ring"].params)[0].shape[:2] == (2, 4)


def test_validation_chooses():
    ds = small()[0].results
    valid = ds["valid_score"].isel(evaluation=-1).values.mean(-1)
    np.testing.assert_array_equal(ds["chosen"], np.where(valid == valid, valid, -1).argmax(1))


@pytest.mark.parametrize("best", range(3))
def test_test_data_do_not_choose(best):
    """Planted: test scores rank the learning rates the other way round."""
    result = sys.modules["jaxfl.compare"]._result
    valid = np.full((2, 3, 1), 0.5)  # seed, lr, evaluation
    valid[:, best] = 0.6
    scores = {"valid_score": valid, "score": 1 - valid}
    totals = dict.fromkeys(("grads", "megabytes", "seconds"), np.zeros((2, 3, 1)))
    history = SimpleNamespace(loss=np.zeros((2, 3, 1)), totals=lambda: totals)
    found = result(SimpleNamespace(lr=np.ones(3)), history, scores)
    assert found["chosen"] == best
    assert found["edge"] == (best != 1)
    valid[0, best] = np.nan  # one diverged seed: the mean over seeds is not finite
    assert result(SimpleNamespace(lr=np.ones(3)), history, scores)["chosen"] != best
    valid[:] = np.nan
    found = result(SimpleNamespace(lr=np.ones(3)), history, scores)
    assert found["chosen"] == 0 and not found["edge"]


def test_edge_is_flagged():
    found, _ = small()
    edges = found.results["edge"].values.astype(bool)
    chosen = found.results["chosen"].values
    np.testing.assert_array_equal(edges, [chosen[0] in (0, 2), True])
    assert [r.edge for r in found.rows()] == list(edges)
    assert [row[1].endswith("*") for row in found.cells()[1]] == list(edges)
    assert "edge of the grid" in found.text() and "DSGD @ ring." in found.text()


def test_diverged_runs_are_named_beside_the_others():
    found, _ = small()
    assert "FedAvg diverged at lr=1e+200 (2 of 2 seeds)." in found.notes()
    assert np.isfinite([r.score for r in found.rows()]).all()
    ds = found.results.copy(deep=True)  # planted: every run of the second one diverged
    for name in ("score", "valid_score", "worst"):
        ds[name][1] = np.nan
    ds["diverged"][1, :2] = 1
    fedavg, dsgd = Comparison(found.config, ds).rows()
    assert fedavg == found.rows()[0]._replace(
        **{k: getattr(fedavg, k) for k in ("reached", "rounds", "grads", "megabytes", "seconds")}
    )
    assert np.isnan([dsgd.score, dsgd.difference, dsgd.worst]).all()
    assert dsgd.diverged and not dsgd.reached and np.isinf(dsgd.rounds)
    lines = Comparison(found.config, ds).text().splitlines()
    assert lines[2].split()[4:7] == ["NaN"] * 3
    assert "DSGD @ ring diverged at lr=0.1 (2 of 2 seeds), lr=1 (2 of 2 seeds)." in lines
    Comparison(found.config, ds).plot()
    matplotlib.pyplot.close("all")


def test_table_by_hand():
    found, _ = small()
    best = found.best()
    final = best["score"].isel(evaluation=-1).values.astype(float)
    rows = found.rows()
    t = 12.706204736174698  # t(.975, 1)
    np.testing.assert_allclose(rows[0].score, final[0].mean())
    np.testing.assert_allclose(rows[0].score_half, t * final[0].std(ddof=1) / np.sqrt(2))
    gap = final[1] - final[0]
    np.testing.assert_allclose(rows[1].difference, gap.mean())
    np.testing.assert_allclose(rows[1].difference_half, t * gap.std(ddof=1) / np.sqrt(2))
    assert found.target == 0.9 * np.median(final.mean(1))
    model = models.make("mlp", {"x": np.zeros((1, 4))}, 3, hidden=[4])
    sent = 2 * 2 * model.size * 64 / 8e6  # cohort of 2, both ways, float64
    ds = found.results.sel(algorithm="FedAvg").isel(lr=0, seed=0)
    np.testing.assert_allclose(ds["megabytes"], sent * np.arange(1, 5), rtol=1e-6)
    np.testing.assert_allclose(ds["grads"], 2 * 3 * np.arange(1, 5))
    reached = best["score"].values[0] >= found.target
    rounds = np.where(reached[:, 0], 2, np.where(reached[:, 1], 4, np.nan))
    np.testing.assert_allclose(rows[0].rounds, np.nanmean(rounds))


def test_equals_simulate():
    """One run of the program is `simulate` with that learning rate, partition and key."""
    found, _ = small()
    config, iris = found.config, dataset("iris")
    model = models.make("mlp", iris.train, 3, hidden=[4])
    split = partitions(config, iris)[1]
    clients = jaxfl.Clients.make(iris.train, split, models.cross_entropy(model), batch=5)
    first, key = jax.random.split(jax.random.key(1))
    weights = metrics.label_weights(split, iris.train["y"], iris.test["y"], 3)
    run = jaxfl.simulate(
        FedAvg(lr=0.1, steps=3),
        clients,
        networks.Uniform(4, 2),
        model.init(first),
        key,
        rounds=4,
        every=2,
        evaluate=metrics.Evaluate(model, iris.test, weights),
    )
    ours = found.results.isel(algorithm=0, lr=0, seed=1)
    np.testing.assert_allclose(ours["train_loss"], run.history.loss, rtol=1e-10)
    np.testing.assert_allclose(ours["score"], run.evaluations["accuracy"], atol=1e-12)
    np.testing.assert_allclose(ours["clients"], run.evaluations["clients"], atol=1e-12)
    np.testing.assert_allclose(ours["seconds"], run.history.totals()["seconds"], rtol=1e-6)


def test_columns_from_raw_results():
    """Costs from who met whom with how many batches, scores from models; then costs to a target."""
    speed = {"compute": 0.5, "latency": 0.1, "up": 1e4, "down": 2e4}
    names = (
        "fedavg(epochs=1, weighting='count')",
        "dsgd(epochs=1) @ star",
        "gradienttracking @ ring",
    )
    settings = SMALL | speed | {"lr": (0.3,), "failures": 0.3, "churn": 0.3, "rounds": 6}
    found = jaxfl.compare(algorithms=names, **settings)
    iris, model, n = dataset("iris"), models.make("mlp", {"x": np.zeros((1, 4))}, 3, hidden=[4]), 4
    links, own, size = networks.Links(**speed), np.arange(n)[:, None], 64 * model.size
    ring, star = (networks.graph(name, n, links=links) for name in ("ring", "star"))
    unsure = lambda w: networks.Churn(networks.LinkFailures(w, 0.3, "row"), 0.7, "row")
    worlds = networks.Uniform(n, 2, links), unsure(star), unsure(ring)
    splits, costs = partitions(found.config, iris), np.zeros((3, 2, 6, 3))
    for (i, world), seed in itertools.product(enumerate(worlds), range(2)):
        batches = -(-splits[seed].count // 5) if i < 2 else np.ones(n)
        tape = record_world(world, 6, jax.random.split(jax.random.key(seed))[1])
        nets = jax.tree.map(np.asarray, tape.nets)
        for t in range(6):
            net = jax.tree.map(lambda a, t=t: a[t], nets)
            if i == 0:
                here, sent, heard = net.idx, np.ones(n), np.ones(n)
            else:
                graph = networks.graphs.make(("star", "ring")[i - 1], n)
                here = np.flatnonzero(net.active)
                sent = np.array([graph.degree(j) for j in range(n)]) * (1, 2)[i - 1]
                heard = ((net.w.w != 0) & (net.w.idx != own)).sum(1) * (1, 2)[i - 1]
            ends = [0.5 * batches[j] + 0.1 + sent[j] * size / 1e4 for j in here]
            ends = [end + 0.1 + size / 2e4 for end in ends] if i == 0 else ends
            work = [batches[here].sum(), (sent + heard)[here].sum() * size / 8e6, max([0, *ends])]
            work += np.array([n, 0, 0.5]) * (i == 2 and t == 0)  # the first gradients
            costs[i, seed, t] = work
    costs, best = costs.cumsum(2), found.best()
    for k, name in enumerate(("grads", "megabytes", "seconds")):
        np.testing.assert_allclose(best[name], costs[..., k], rtol=1e-6, err_msg=name)
    for i, label in enumerate(best["algorithm"].values):  # all of a graph's nodes are scored
        x = found.states[label].params
        x = x if i else jax.tree.map(lambda a: a[:, None], x)
        each = jax.vmap(jax.vmap(lambda x: model.apply(x, iris.test["x"])))(x)
        chance = np.asarray(jax.nn.log_softmax(each, -1))
        right = np.take_along_axis(chance, iris.test["y"][None, None, :, None], -1)[..., 0]
        final = best.isel(algorithm=i, evaluation=-1)
        np.testing.assert_allclose(final["loss"], -right.mean((1, 2)), rtol=1e-6)
        hits = (chance.argmax(-1) == iris.test["y"]).mean((1, 2))
        np.testing.assert_allclose(final["score"], hits, rtol=1e-6)
    for i, line in enumerate(found.rows()):
        reached = [first(score >= found.target) for score in best["score"].values[i]]
        at = [(seed, 2 * e + 1) for seed, e in enumerate(reached) if e is not None]
        assert line.reached == len(at)
        for k, name in enumerate(("grads", "megabytes", "seconds")):
            want = np.mean([costs[i, seed, t, k] for seed, t in at]) if at else np.inf
            np.testing.assert_allclose(getattr(line, name), want, rtol=1e-6)
        np.testing.assert_allclose(line.rounds, np.mean([t + 1 for _, t in at]) if at else np.inf)


def first(reached):
    return int(np.argmax(reached)) if reached.any() else None


def test_files():
    found, folder = small()
    names = {"results.nc", "config.toml", *(f"table.{k}" for k in ("txt", "csv", "md"))}
    assert {p.name for p in folder.iterdir()} == names | {"comparison.png", "comparison.pdf"}
    assert Config.from_toml(folder / "config.toml") == found.config
    again = Comparison.load(folder)
    assert again.config == found.config
    assert again.results.identical(found.results)
    np.testing.assert_equal(again.rows(), found.rows())
    assert again.text() == (folder / "table.txt").read_text(encoding="utf-8")
    written = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [float(r["score"]) for r in written] == [r.score for r in found.rows()]
    assert (folder / "table.md").read_text(encoding="utf-8").count("\n| ") == 3
    assert (
        repr(found) == str(found) == found.text()
        and found.text(200).splitlines()[0] in found._repr_html_()
    )


def test_table_fits_a_narrow_terminal():
    found, _ = small()
    wide, narrow = found.text(120), found.text(80)
    assert max(map(len, narrow.splitlines())) <= 80 < max(map(len, wide.splitlines()))
    for words in map(str.split, wide.splitlines()[1:3]):
        assert all(word in narrow.split() for word in words)
    assert "…" not in narrow


def test_text_is_text_in_a_notebook_too(monkeypatch):
    import rich.console

    found, _ = small()
    plain = found.text()
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)  # there rich displays
    assert found.text() == plain


def test_pictures():
    from matplotlib import pyplot

    found, folder = small()
    before = dict(matplotlib.rcParams)
    axes = found.plot()
    assert [ax.get_xlabel() for ax in axes] == [
        "communication rounds", "sent and received (MB)", "simulated time (s)",
    ]  # fmt: skip
    assert [len(ax.lines) for ax in axes] == [2, 2, 2]
    best = found.best()["score"].values[0].mean(0)
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), 100 * best)
    styles = {(line.get_color(), line.get_marker()) for line in axes[0].lines}
    assert len(styles) == 2
    (one,) = found.plot(folder / "one.png", against=("grads",), scale="linear", width=3.4)
    assert (folder / "one.png").stat().st_size > 10_000
    (folder / "one.png").unlink()
    with pytest.raises(ValueError, match="scale"):
        found.plot(scale="log")
    for name, n in (("ring", 5), ("exponential", 6), ("star", 5), ("path", 5), ("grid", 6)):
        ax = plots.graph(graphs.make(name, n), title=name)
        assert ax.get_title().startswith(f"{name}\ngap ")
    ax = plots.graph(graphs.make("one_peer_exponential", 8))
    assert ax.get_title() == "gap 1, mixing time 3 rounds"  # one period averages exactly
    ax = plots.partition(np.array([[3, 0], [0, 5], [1, 1]]), title="who")
    assert len(ax.collections[0].get_offsets()) == 4
    assert dict(matplotlib.rcParams) == before
    pyplot.close("all")


def test_describe_of_graphs():
    _, w, facts = plots.describe(graphs.make("complete", 4))
    np.testing.assert_allclose(w, 0.25)
    assert facts == {"nodes": 4, "edges": 6, "gap": pytest.approx(1), "mixing_time": 1}
    _, _, facts = plots.describe(graphs.make("one_peer_ring", 6))
    assert 0 < facts["gap"] < 1 and np.isfinite(facts["mixing_time"])


def test_personal_models_byzantine_clients_and_schedules():
    """Ditto is scored by its personal models, the others have a schedule for each seed."""
    names = "ditto", "fedbuff", "gossiplearning @ complete"
    changes = {**SMALL, "algorithms": names, "lr": (0.1,), "byzantine": 1, "failures": 0.2}
    found = jaxfl.compare(**changes)
    ds = found.results.isel(lr=0, evaluation=-1)
    np.testing.assert_array_equal(ds["personal"], [1, 0, 0])
    assert "†" in found.cells()[1][0][2] and "†" in found.text()
    assert (ds["score"][0] != ds["shared_score"][0]).any()
    counts = [p.count for p in partitions(found.config, dataset("iris"))]
    for seed, count in enumerate(counts):
        clients = ds["clients"].values[0, seed]
        mean = np.dot(count[1:], clients[1:]) / count[1:].sum()  # the first is Byzantine
        np.testing.assert_allclose(ds["score"][0, seed], mean)
    np.testing.assert_allclose(ds["worst"], ds["clients"].values[..., 1:].min(-1))
    seconds = found.results["seconds"].isel(algorithm=1, lr=0)
    assert (seconds[0] != seconds[1]).any()
    gossip = found.results.isel(algorithm=2, lr=0)
    assert (gossip["seconds"] == np.arange(1, 5)).all()
    assert (gossip["megabytes"][0] != gossip["megabytes"][1]).any() and (ds["score"][2] > 0.3).all()


def test_regression_and_objects():
    table = data.load("diabetes")
    found = jaxfl.train(
        "fedavg", **SMALL | {"data": table, "model": models.logistic(10, 1), "lr": 0.1}
    )
    assert found.metric == "r2" and "R²" in found.text() and "worst" not in found.results
    assert found.results["score"].isel(evaluation=-1).max() > 0
    assert len(found.rows()) == 1 and not found.rows()[0].edge
    found.plot()
    matplotlib.pyplot.close("all")


# Configuration -------------------------------------------------------------------------------


def test_default_is_the_main_job():
    config = Config.make()
    assert len(DEFAULT) == 9 and len(config.lr) == 5
    assert (config.data, config.clients, config.alpha) == ("digits", 20, 0.1)
    assert (config.rounds, config.every, config.seeds) == (200, 20, 5)
    assert (config.cohort, config.steps) == (10, 10)


def test_configuration_file(tmp_path):
    config = Config.make(
        algorithms=["fedavg(lr=[0.1, 1])", "choco(compress=topk(0.2)) @ torus"],
        alpha=1,
        lr=(0.1, 1 / 3),
        target=0.1 + 0.2,
    )
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert Config.from_toml(path) == config
    path.write_text("rounds = 40\n", encoding="utf-8")
    assert Config.from_toml(path) == Config(rounds=40)
    quick = Config().quick()
    assert quick.seeds == 2 and len(quick.lr) == 3 and quick.rounds % quick.every == 0
    assert Config.make(quick, rounds=80).rounds == 80


def test_names_with_options():
    call = parse("Choco(gamma=-.5, compress=TopK(0.1), lr=[1, inf]) @ Torus(rows=2)")
    assert call.name == "choco" and call.options["gamma"] == -0.5
    assert call.options["compress"].name == "topk" and call.options["compress"].args == (0.1,)
    assert call.options["lr"] == [1, float("inf")]
    assert call.on is not None and call.on.name == "torus" and call.on.options == {"rows": 2}
    assert call.text == "(gamma=-0.5, TopK(0.1))"
    for text in ("", "a b", "a.b", "a()()", "lambda: 1", "__import__('os').system('x')", "[1]"):
        with pytest.raises(ValueError, match="cannot read"):
            parse(text)
    with pytest.raises(ValueError, match="no component 'print'"):
        parse("fedavg(solver=print(1))").built()


REFUSED = [
    ({"rouns": 3}, "did you mean 'rounds'"),
    ({"rounds": "many"}, "rounds must be a whole number"),
    ({"rounds": 2.5}, "rounds must be a whole number"),
    ({"alpha": "x"}, "alpha must be a number"),
    ({"data": 3}, "data must be a name or a Dataset"),
    ({"partition": 3}, "partition must be a string"),
    ({"seeds": 0}, "seeds must be at least 1"),
    ({"steps": 0}, "steps must be at least 1"),
    ({"rounds": 30}, "every must be a divisor of rounds=30"),
    ({"lr": (0.1, -1.0)}, "lr must be positive and rising"),
    ({"lr": ()}, "lr must be positive and rising"),
    ({"lr": (0.1, float("nan"))}, "lr must be positive and rising"),
    ({"alpha": 0.0}, "alpha must be above 0"),
    ({"cohort": 21}, "cohort must be at most clients=20"),
    ({"byzantine": 20}, "byzantine must be below clients=20"),
    ({"failures": 1.0}, r"failures must be in \[0, 1\)"),
    ({"up": -1.0}, "up must be above 0"),
    ({"algorithms": ()}, "algorithms must be one name or more"),
    ({"algorithms": "fedavgg"}, "did you mean 'fedavg'"),
    ({"algorithms": "fedavg(mu=1)"}, "FedAvg has no field 'mu'"),
    ({"algorithms": "fedavg(steps=0)"}, "FedAvg.steps must be"),
    ({"algorithms": "fedprox(mu=-1)"}, r"FedProx.mu must be in \[0"),
    ({"algorithms": "fedprox(mu=[0, 1])"}, "only lr takes several values"),
    ({"algorithms": "fedavg(lr=[1, 0.1])"}, "lr must be positive and rising"),
    ({"algorithms": "fedavg(3)"}, "need names"),
    ({"algorithms": ("fedavg", "fedavg(lr=1)")}, "'FedAvg' is there twice"),
    ({"algorithms": "fedavg @ ring"}, "needs Cohort nets"),
    ({"algorithms": "dadao"}, "cannot be compared by its lr alone"),
    ({"algorithms": "dsgd @ rong"}, "did you mean 'ring'"),
    ({"algorithms": "gossiplearning @ rong"}, "did you mean 'ring'"),
    ({"algorithms": "gossiplearning @ random_matching"}, "changes every round"),
    ({"algorithms": "gossiplearning", "byzantine": 1, "adversary": "alie"}, "row-local"),
    ({"algorithms": "exactdiffusion", "failures": 0.5}, "ExactDiffusion"),
    ({"algorithms": "choco(compress=topq(0.1))"}, "did you mean 'topk'"),
    ({"algorithms": "choco(compress=topk(ratio=0.1))"}, "topk has no 'ratio'"),
    ({"data": "digit"}, "did you mean 'digits'"),
    ({"data": "digits(colour=1)"}, "digits has no 'colour'"),
    ({"data": "nowhere.npz"}, "cannot read data 'nowhere.npz': no such file"),
    ({"data": "table('nowhere.csv', target='y')"}, "nowhere.csv"),
    ({"data": "table('adult.csv')"}, "table: missing a required .*argument: 'target'"),
    ({"partition": "dirichlett"}, "did you mean 'dirichlet'"),
    ({"partition": "natural"}, "no natural clients"),
    ({"partition": "shards(k=2)"}, "shards has no 'k'"),
    ({"minimum": 1000}, "minimum=1000"),
    ({"model": "mpl"}, "mlp"),
    ({"model": "mlp(width=3)"}, "width"),
    ({"precision": "float16"}, "precision must be one of"),
    ({"byzantine": 1, "adversary": "signflop"}, "did you mean 'signflip'"),
]


@pytest.mark.parametrize("changes, message", REFUSED, ids=lambda v: str(v)[:40])
def test_bad_input(changes, message, monkeypatch):
    monkeypatch.setattr(sys.modules["jaxfl.compare"], "_compare", None)  # nothing may be computed
    few = {"algorithms": ("fedavg",), "model": "logistic", "seeds": 1}
    with pytest.raises(ValueError, match=message):
        jaxfl.compare(**few | changes)


def test_bad_files(tmp_path):
    path = tmp_path / "config.toml"
    for text in ("rounds = ", "rounds = 'a'", "rouns = 3", "\0"):
        path.write_text(text)
        with pytest.raises(ValueError, match="configuration"):
            Config.from_toml(path)
    with pytest.raises(ValueError, match="cannot read the configuration"):
        Config.from_toml(tmp_path)
    with pytest.raises(ValueError, match="cannot read a comparison"):
        Comparison.load(tmp_path)
    np.savez(tmp_path / "bad.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="bad.npz.*expected arrays x and y.*found x"):
        dataset(str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "good.npz", x=np.ones((9, 2)), y=np.arange(9) % 3, client=[*"aaabbbccc"])
    assert dataset(str(tmp_path / "good.npz")).partition.n == 3


def test_data_of_any_format(tmp_path, monkeypatch):
    """A folder, a file, a file with options; a name of a data set comes before a file."""
    from test_files import CSV, make_idx

    make_idx(tmp_path)
    assert dataset(str(tmp_path)).train["x"].shape[1:] == (4, 5, 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iris").write_bytes(CSV)
    assert dataset("iris").classes == 3 and len(dataset("iris").train["y"]) > 90
    (tmp_path / "a.csv").write_bytes(CSV)
    with pytest.raises(ValueError, match=r"use `data=\"table\('a.csv', target='label'\)\"`"):
        dataset("a.csv")
    call = "table('a.csv', target='label', client='country', features=['age'])"
    assert dataset(call).partition.n >= 1 and dataset(call).classes == 2


def test_unwritable_folder_is_refused_before_computing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["jaxfl.compare"], "_compare", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        jaxfl.compare(out=tmp_path / "file", **SMALL)
    with pytest.raises(OSError, match="cannot write to the output folder"):
        jaxfl.compare(out=tmp_path / "file" / "below", **SMALL)


def test_files_are_whole_or_not_there(tmp_path):
    from jaxfl.folder import atomic

    def fails(path):
        Path(path).write_text("half")
        raise RuntimeError

    (tmp_path / "table.txt").write_text("old")
    with pytest.raises(RuntimeError):
        atomic(tmp_path / "table.txt", fails)
    assert [p.name for p in tmp_path.iterdir()] == ["table.txt"]
    assert (tmp_path / "table.txt").read_text() == "old"
