"""The main job in small: what it chooses, what it reports, what it writes, what it refuses."""

import atexit
import csv
import dataclasses
import functools
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import harness
import jax
import jax.numpy as jnp
import matplotlib.pyplot
import numpy as np
import pytest

import jaxfl
from jaxfl import data, metrics, models, networks, plots, struct
from jaxfl.algorithms import ALGORITHMS, FedAvg
from jaxfl.engine import comm
from jaxfl.engine.contract import Personal
from jaxfl.engine.fields import hyper
from jaxfl.networks import graphs
from jaxfl.studies import compare as compare_module
from jaxfl.studies import experiment
from jaxfl.studies.comparison import Comparison
from jaxfl.studies.config import DEFAULT, Config
from jaxfl.studies.experiment import dataset, partitions
from jaxfl.studies.names import parse
from jaxfl.studies.registry import made
from jaxfl.studies.space import Space

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

NO_SEEDS = {k: v for k, v in SMALL.items() if k not in ("seeds", "lr")}


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
    assert list(ds["algorithm"].values) == ["FedAvg", "DSGD @ ring", "Local"]
    assert dict(ds.sizes) == {
        "algorithm": 3, "lr": 3, "seed": 2, "round": 2, "client": 4,
    }  # fmt: skip
    np.testing.assert_array_equal(ds["round"], [2, 4])
    rates = [0.1, 1, HUGE]
    np.testing.assert_array_equal(ds["rate"], [rates, [0.1, 1, np.nan], rates])
    assert all("long_name" in v.attrs and "units" in v.attrs for v in ds.data_vars.values())
    flags = ("status", "edge", "personal", "reference")
    assert {ds[k].dtype for k in flags} == {np.dtype("int8")}
    assert ds["reference"].values.tolist() == ds["personal"].values.tolist() == [0, 0, 1]
    assert Config.make(**json.loads(ds.attrs["config"])) == found.config
    assert jax.tree.leaves(found.states["DSGD @ ring"].params)[0].shape[:2] == (2, 4)


def test_validation_chooses():
    ds = small()[0].results
    names = (*["valid_accuracy"] * 2, "valid_own_accuracy")  # Local is made for its own labels
    valid = np.stack([ds[k].values[i, :, :, -1].mean(-1) for i, k in enumerate(names)])
    np.testing.assert_array_equal(ds["chosen"], np.where(valid == valid, valid, -1).argmax(1))


@pytest.mark.parametrize("best", range(3))
def test_test_data_do_not_choose(best):
    """Planted: test scores rank the learning rates the other way round."""
    result = compare_module._result
    valid, diverged = np.full((2, 3, 1), 0.5), np.zeros((2, 3, 1), bool)  # seed, lr, evaluation
    valid[:, best] = 0.6
    scores = {"choice": valid, "score": 1 - valid, "diverged": diverged}
    totals = dict.fromkeys(("grads", "megabytes", "seconds"), np.zeros((2, 3, 1)))
    ones = np.ones((2, 3, 1))
    history = SimpleNamespace(loss=ones, grads=ones, totals=lambda: totals)
    found = result(SimpleNamespace(lr=np.ones(3)), history, scores)
    assert found["chosen"] == best
    assert found["edge"] == (best != 1)
    diverged[0, best] = True  # one seed, with a finite score that is the best
    assert result(SimpleNamespace(lr=np.ones(3)), history, scores)["chosen"] != best
    diverged[0] = True  # nothing is left without: the fewest, not the best of what is left
    valid[1, (best + 1) % 3], diverged[1, (best + 1) % 3] = 0.9, True
    assert result(SimpleNamespace(lr=np.ones(3)), history, scores)["chosen"] == best
    valid[:], diverged[:] = np.nan, True
    found = result(SimpleNamespace(lr=np.ones(3)), history, scores)
    assert found["chosen"] == 0 and not found["edge"]


def test_edge_is_flagged():
    found, _ = small()
    edges = found.results["edge"].values.astype(bool)
    chosen = found.results["chosen"].values
    np.testing.assert_array_equal(edges, [chosen[0] in (0, 2), True, chosen[2] in (0, 2)])
    assert [r.edge for r in found.rows()] == list(edges)
    assert [row[1].endswith("*") for row in found.cells()[1]] == list(edges)
    named = ", ".join(r.algorithm for r in found.rows() if r.edge)
    assert f"a wider one may do better: {named}." in found.notes()[-4]


def test_diverged_runs_are_named_beside_the_others():
    found, _ = small()
    assert "FedAvg diverged at lr=1e+200 (2 of 2 seeds)." in found.notes()
    assert np.isfinite([r.score for r in found.rows()]).all()
    ds = found.results.copy(deep=True)  # planted: every run of the second one diverged
    for name in ("accuracy", "worst"):  # own scores stay finite, as after a loss of 1e28
        ds[name][1] = np.nan
    ds["status"][1, :2] = 3
    fedavg, dsgd, _ = Comparison(found.config, ds).rows()
    same = fedavg._fields[: fedavg._fields.index("reached")]  # the target is another one
    np.testing.assert_equal(*([getattr(r, k) for k in same] for r in (fedavg, found.rows()[0])))
    assert np.isnan([dsgd.score, dsgd.difference, dsgd.own, dsgd.own_difference, dsgd.worst]).all()
    assert dsgd.diverged == 2 and not dsgd.reached and np.isinf(dsgd.rounds)
    assert Comparison(found.config, ds).cells()[1][1][2:7] == ["2 of 2 diverged", *"––––"]
    lines = Comparison(found.config, ds).text(200).splitlines()
    assert "DSGD @ ring diverged at lr=0.1 (2 of 2 seeds), lr=1 (2 of 2 seeds)." in lines
    Comparison(found.config, ds).plot()
    matplotlib.pyplot.close("all")
    ds["status"][1, 0, 1] = ds["status"][1, 1, 1] = 0  # one seed is enough: no mean of the rest
    one = Comparison(found.config, ds)
    assert one.rows()[1].diverged == 1 and np.isnan(one.rows()[1].own)
    assert one.cells()[1][1][2] == "1 of 2 diverged"
    assert one.target == 0.9 * found.rows()[0].score  # of what did not diverge, without Local


def _people():
    """A regression of six people, who differ; one has no test example of its own."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(6), 20)
    x = rng.normal(size=(120, 3))
    y = x @ [1.0, -1.0, 0.5] + 0.7 * who + 0.1 * rng.normal(size=120)
    made = data.from_arrays(x, y.astype("f4"), client=[f"p{i}" for i in who], test=0.3)
    owner = np.empty(len(made.test["y"]), int)
    owner[made.partitions["test"].order] = made.partitions["test"].owner()
    keep = owner != 2
    test = {k: v[keep] for k, v in made.test.items()}
    split = made.partitions | {"test": data.natural(owner[keep])[0]}
    order = split["test"].order
    count = np.bincount(owner[keep], minlength=6).astype(np.int32)
    start = (np.cumsum(count) - count).astype(np.int32)
    split["test"] = data.Partition(order, start, count)
    return dataclasses.replace(made, test=test, partitions=split)


@pytest.mark.parametrize(
    ("source", "partition", "seeds"), [("iris", "dirichlet", 4), (_people, "natural", 2)]
)
def test_every_score_by_hand(source, partition, seeds):
    """All labels, own labels, worst tenth, intervals, differences, costs from the final models."""
    given = source if isinstance(source, str) else source()
    names = ["fedavg", "ditto(mu=0.5)", "dsgd @ ring"]
    some = {**SMALL, "model": "logistic", "lr": (0.05, 0.2), "byzantine": 1, "seeds": seeds}
    some |= {"data": given, "partition": partition}
    found = jaxfl.compare(algorithms=names, **some)
    known = dataset("iris") if isinstance(given, str) else given
    labels = known.classes is not None
    x, y, trained = known.test["x"], known.test["y"], known.train["y"]
    if not labels:
        mean, deviation = trained.mean(0), trained.std(0)
        standard = lambda v: ((v - mean) / deviation).astype("f4").astype(float)
        y, trained = standard(y), standard(trained)
        tenths = np.quantile(known.train["y"].astype(float), np.linspace(0, 1, 11)[1:-1])
    kind = lambda v: v if labels else np.digitize(deviation * v + mean, tenths)

    def own_weights(split, i):
        if not labels:
            mine = np.zeros(len(y))
            p = known.partitions["test"]
            mine[p.order[p.start[i] : p.start[i] + p.count[i]]] = 1
            if mine.any():
                return mine
        rows = kind(trained[split.order[split.start[i] : split.start[i] + split.count[i]]])
        group = kind(y)
        return np.array([(rows == g).sum() / (group == g).sum() for g in group])

    expected = {k: [] for k in ("score", "own", "worst")}
    splits = partitions(found.config, known)
    for state in found.states.values():
        score, own, worst = [], [], []
        for s, split in enumerate(splits):

            def outputs(tree, at, s=s):
                head = jax.tree.map(lambda a: np.asarray(a[s], float)[at], tree["head"])
                return x @ head["kernel"].T + head["bias"]

            def quality(z, w):
                if labels:
                    return w @ (z.argmax(1) == y) / w.sum()
                return 1 - (w @ np.square(z[:, 0] - y) / w.sum()) / y.var()

            shared = state.params["head"]["bias"].ndim == 2
            n = len(split.count)
            mine = state.personal.rows if isinstance(state, Personal) else state.params
            one = mine["head"]["bias"].ndim == 2
            nodes = [()] if shared else range(1, n)  # the first is Byzantine
            every = [quality(outputs(state.params, i), np.ones(len(y))) for i in nodes]
            each = np.array(
                [quality(outputs(mine, () if one else i), own_weights(split, i)) for i in range(n)]
            )
            score.append(np.mean(every))
            own.append(np.average(each[1:], weights=split.count[1:]))
            worst.append(each[1:].min())
        for name, values in zip(expected, (score, own, worst), strict=True):
            expected[name].append(values)
    values = {k: np.array(v) for k, v in expected.items()}
    values["difference"] = values["score"] - values["score"][0]
    values["own_difference"] = values["own"] - values["own"][0]
    t = 3.182446305284263  # t(.975, 3)
    rows, cells = found.rows(), found.cells()[1]
    scale, digits = (100, 1) if labels else (1, 3)
    tol = 1e-9 if labels else 1e-6  # targets, and so their variance, are float32
    for i, row in enumerate(rows):
        for k, v in enumerate(("score", "difference", "own", "own_difference", "worst")):
            mine = values[v][i]
            np.testing.assert_allclose(getattr(row, v), mine.mean(), atol=tol, err_msg=v)
            half = t * mine.std(ddof=1) / 2 if seeds == 4 else np.nan
            np.testing.assert_allclose(getattr(row, f"{v}_half"), half, atol=tol)
            sign = "+" if "difference" in v else ""
            spelled = [f"{scale * a:{sign}.{digits}f}" for a in (mine.mean(), min(mine), max(mine))]
            text = f"{spelled[0]} ({spelled[1]} to {spelled[2]})"
            if seeds == 4:
                text = f"{spelled[0]} ± {scale * half:.{digits}f}"
            text += "†" * (v == "own" and row.personal)
            assert cells[i][2 + k] == ("" if i == 0 and sign else text)
    assert [r.personal for r in rows] == [False, True, False, True]
    target = 0.9 * np.median(values["score"][:3].mean(1))
    np.testing.assert_allclose(found.target, target, atol=tol)
    best = found.best()
    for i, row in enumerate(rows):
        reached = best[found.metric].values[i] >= found.target
        first = np.where(reached[:, 0], 2, np.where(reached[:, 1], 4, np.inf))
        assert row.reached == np.isfinite(first).sum()
        if row.reached:
            np.testing.assert_allclose(row.rounds, first[np.isfinite(first)].mean())
    matplotlib.pyplot.close("all")


def test_costs_by_hand():
    found, _ = small()
    model = models.make("mlp", {"x": np.zeros((1, 4))}, 3, hidden=[4])
    sent = 2 * 2 * model.size * 64 / 8e6  # cohort of 2, both ways, float64
    ds = found.results.sel(algorithm="FedAvg").isel(lr=0, seed=0)
    np.testing.assert_allclose(ds["megabytes"], sent * np.array([2, 4]), rtol=1e-6)
    np.testing.assert_allclose(ds["grads"], 2 * 3 * np.array([2, 4]))
    alone = found.results.sel(algorithm="Local").isel(lr=0, seed=0)
    assert (alone["megabytes"] == 0).all() and (alone["grads"] == ds["grads"]).all()


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
    loss = run.history.loss.reshape(2, 2).mean(1)  # of the rounds since an evaluation
    np.testing.assert_allclose(ours["train_loss"], loss, rtol=1e-10)
    np.testing.assert_allclose(ours["accuracy"], run.evaluations["accuracy"], atol=1e-12)
    np.testing.assert_allclose(ours["client_accuracy"], run.evaluations["clients"][-1], atol=1e-12)
    np.testing.assert_allclose(ours["seconds"], run.history.totals()["seconds"][1::2], rtol=1e-6)


def test_columns_from_raw_results():
    """Costs from who met whom with how many batches, scores from models; then costs to a target."""
    speed = {"compute": 0.5, "latency": 0.1, "up": 1e4, "down": 2e4}
    names = (
        "fedavg(epochs=1, weighting='count')",
        "dsgd(epochs=1) @ star",
        "gradienttracking @ ring",
    )
    settings = SMALL | speed | {"lr": (0.3,), "failures": 0.3, "churn": 0.3, "rounds": 6}
    found = jaxfl.compare(algorithms=names, reference="", **settings)
    iris, model, n = dataset("iris"), models.make("mlp", {"x": np.zeros((1, 4))}, 3, hidden=[4]), 4
    links, own, size = networks.Links(**speed), np.arange(n)[:, None], 64 * model.size
    ring, star = (networks.topology(name, n, links=links) for name in ("ring", "star"))
    unsure = lambda w: networks.Churn(networks.LinkFailures(w, 0.3, "row"), 0.7, "row")
    worlds = networks.Uniform(n, 2, links), unsure(star), unsure(ring)
    splits, costs = partitions(found.config, iris), np.zeros((3, 2, 6, 3))
    for (i, world), seed in itertools.product(enumerate(worlds), range(2)):
        batches = -(-splits[seed].count // 5) if i < 2 else np.ones(n)
        tape = harness.record_world(world, 6, jax.random.split(jax.random.key(seed))[1])
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
        np.testing.assert_allclose(best[name], costs[:, :, 1::2, k], rtol=1e-6, err_msg=name)
    for i, label in enumerate(best["algorithm"].values):  # all of a graph's nodes are scored
        x = found.states[label].params
        x = x if i else jax.tree.map(lambda a: a[:, None], x)
        each = jax.vmap(jax.vmap(lambda x: model.apply(x, iris.test["x"])))(x)
        chance = np.asarray(jax.nn.log_softmax(each, -1))
        right = np.take_along_axis(chance, iris.test["y"][None, None, :, None], -1)[..., 0]
        final = best.isel(algorithm=i, round=-1)
        np.testing.assert_allclose(final["loss"], -right.mean((1, 2)), rtol=1e-6)
        hits = (chance.argmax(-1) == iris.test["y"]).mean((1, 2))
        np.testing.assert_allclose(final["accuracy"], hits, rtol=1e-6)
    for i, line in enumerate(found.rows()):
        reached = [first(score >= found.target) for score in best[found.metric].values[i]]
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
    names = {"results.nc", "config.toml", *(f"table.{k}" for k in ("txt", "csv", "md", "tex"))}
    names |= {"comparison.png", "comparison.pdf", "provenance.json", ".lock"}
    assert {p.name for p in folder.iterdir()} == names
    assert Config.from_toml(folder / "config.toml") == found.config
    again = Comparison.load(folder)
    assert again.config == found.config
    assert again.results.identical(found.results)
    np.testing.assert_equal(again.rows(), found.rows())
    assert again.text() == (folder / "table.txt").read_text(encoding="utf-8")
    written = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [float(r["score"]) for r in written] == [r.score for r in found.rows()]
    assert (folder / "table.md").read_text(encoding="utf-8").count("\n| ") == 4
    tex = (folder / "table.tex").read_text(encoding="utf-8")
    assert tex.count(r"\\") == 4 and tex.count("&") == 4 * 10 and r"[\%]" in tex
    assert (
        repr(found) == str(found) == found.text()
        and found.text().splitlines()[0] in found._repr_html_()
    )


def test_table_fits_a_narrow_terminal():
    found, _ = small()
    headers, rows = found.cells()
    for width, tables in ((200, 1), (140, 2), (80, 3)):
        text = found.text(width)
        assert max(map(len, text.splitlines())) <= width and "…" not in text
        lines = text.splitlines()
        assert sum(line.startswith("algorithm ") for line in lines) == tables
        words = [w for line in (headers, *rows) for cell in line for w in cell.split()]
        assert all(word in text.split() for word in words)


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
    assert [ax.get_xlabel() for ax in axes] == 2 * [
        "communication rounds", "sent and received (MB)", "simulated time (s)",
    ]  # fmt: skip
    assert [len(ax.lines) for ax in axes] == [3] * 6
    for k, name in ((0, "accuracy"), (3, "own_accuracy")):
        best = found.best()[name].values[0].mean(0)
        np.testing.assert_allclose(axes[k].lines[0].get_ydata(), 100 * best)
        bars = axes[k].collections[0].get_segments()  # of two seeds: from the one to the other
        ends = np.sort(100 * found.best()[name].values[0, :, 0])
        np.testing.assert_allclose(np.array(bars[0])[:, 1], ends)
    assert axes[0].get_ylabel().startswith("test accuracy, all labels (%)")
    assert axes[3].get_ylabel().startswith("test accuracy, own labels (%)")
    assert all("logarithmic in the error" in axes[k].get_ylabel() for k in (0, 3))
    styles = {(line.get_color(), line.get_marker()) for line in axes[0].lines}
    assert len(styles) == 3 and axes[0].lines[2].get_label() == "Local (reference)"
    flat = axes[1].lines[2].get_ydata()  # what it sends, nothing, has no place on that axis
    assert flat[0] == flat[1]
    (one,) = found.plot(
        folder / "one.png", name="own_accuracy", against=("grads",), scale="linear", width=3.4
    )
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


def test_facts_of_graphs():
    g = graphs.make("complete", 4)
    np.testing.assert_allclose(networks.facts.phases(g), [np.full((4, 4), 0.25)])
    facts = networks.mixing_facts(g)
    assert facts == {"nodes": 4, "edges": 6, "gap": pytest.approx(1), "mixing_time": 1}
    facts = networks.mixing_facts(graphs.make("one_peer_ring", 6))
    assert 0 < facts["gap"] < 1 and np.isfinite(facts["mixing_time"])


def test_personal_models_byzantine_clients_and_schedules():
    """Ditto's own labels are scored by its personal models; schedules differ by seed."""
    names = "ditto", "fedbuff", "gossiplearning @ complete"
    changes = {**SMALL, "algorithms": names, "lr": (0.1,), "byzantine": 1, "failures": 0.2}
    found = jaxfl.compare(**changes)
    ds = found.results.isel(lr=0, round=-1)
    np.testing.assert_array_equal(ds["personal"], [1, 0, 0, 1])
    assert "†" in found.cells()[1][0][4] and "†" in found.text()
    assert (ds["accuracy"][0] != ds["personal_accuracy"][0]).any()
    assert np.isnan(ds["personal_accuracy"][1:]).all()
    counts = [p.count for p in partitions(found.config, dataset("iris"))]
    for seed, count in enumerate(counts):
        clients = ds["client_accuracy"].values[0, seed]
        mean = np.dot(count[1:], clients[1:]) / count[1:].sum()  # the first is Byzantine
        np.testing.assert_allclose(ds["own_accuracy"][0, seed], mean)
    np.testing.assert_allclose(ds["worst"], ds["client_accuracy"].values[..., 1:].min(-1))
    seconds = found.results["seconds"].isel(algorithm=1, lr=0)
    assert (seconds[0] != seconds[1]).any()
    gossip = found.results.isel(algorithm=2, lr=0)
    assert (gossip["seconds"] == [2, 4]).all()
    assert (gossip["megabytes"][0] != gossip["megabytes"][1]).any() and (
        ds["accuracy"][2] > 0.3
    ).all()


def test_regression_and_objects():
    table = data.load("diabetes")
    found = jaxfl.train(
        "fedavg", **SMALL | {"data": table, "model": models.logistic(10, 1), "lr": 0.1}
    )
    assert found.metric == "r2" and "R²" in found.text() and "tenths of its targets" in found.text()
    assert found.results["r2"].isel(round=-1).max() > 0
    assert len(found.rows()) == 1 and not found.rows()[0].edge
    found.plot()
    matplotlib.pyplot.close("all")


def test_the_reference():
    """Alone it is not there; what is named is not added; nobody attacks it; a name of its own."""
    few = {**SMALL, "seeds": 1, "rounds": 2, "lr": 0.1, "model": "logistic"}
    labels = lambda **k: [r.algorithm for r in jaxfl.compare(**few | k).rows()]
    assert labels(algorithms=["fedavg"], reference="") == ["FedAvg"]
    assert labels(algorithms=["local", "fedavg"]) == ["Local", "FedAvg"]
    with pytest.raises(ValueError, match="no algorithm 'locla'"):
        labels(algorithms=["fedavg"], reference="locla")
    attack = {"byzantine": 1, "adversary": "dissensus"}  # which needs a graph
    found = jaxfl.compare(algorithms=["dsgd"], reference="local(steps=1)", **few | attack)
    assert [r.reference for r in found.rows()] == [False, True]
    assert found.cells()[1][1][0] == "Local(steps=1)‡"
    assert float(found.results["grads"][1].max()) == 2 * 2 * 1  # two rounds, two clients, a step


def test_who_never_took_part_is_counted():
    few = {**SMALL, "seeds": 2, "rounds": 2, "lr": 0.1, "model": "logistic", "cohort": 1}
    found = jaxfl.compare(algorithms=["ditto"], **few)
    drawn = found.results["untrained"].values
    assert (drawn >= 2).all() and (drawn[0] == drawn[1]).all()  # one of four, twice
    assert f"Local: up to {drawn.max()} of 4 clients never took part" in found.text(200)
    moved = [
        (a[s, i] != b[s, i]).any()
        for a in jax.tree.leaves(found.states["Ditto"].own)
        for b in [np.broadcast_to(a[:, :1], a.shape)]
        for s in range(2)
        for i in range(4)
    ]
    assert any(moved)


# What a seed draws ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "partition"),
    [("iris", "dirichlet"), ("diabetes", "dirichlet"), (_people, "natural")],
    ids=["labels", "targets", "natural"],
)
def test_seeds_draw_the_split(source, partition):
    """Every example trains, validates or tests, another way for every seed, and does only one."""
    known = dataset(source) if isinstance(source, str) else _people()
    if partition == "natural":  # whole again: everybody has test examples
        known = data.from_arrays(*(known.train[k] for k in "xy"), client=_who(known))
    config = Config.make(
        data="own", vary="split", partition=partition, clients=4, minimum=2, seeds=3, cohort=2
    )
    task = experiment.task(
        config, known, models.logistic(known.train["x"].shape[1], known.classes or 1)
    )
    pool = experiment.pooled(task.data)
    seen = []
    for seed, split in enumerate(partitions(config, task.data)):
        scores = task.scores(split, config, seed)
        parts = [split.order, *(np.asarray(getattr(scores, k).rows) for k in ("valid", "test"))]
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), range(len(pool["y"])))
        sizes = [len(getattr(known, k)["y"]) for k in ("train", "valid", "test")]
        assert np.allclose([len(p) for p in parts], sizes, atol=3)
        seen.append(set(parts[2].tolist()))
        if partition == "natural":
            owner = np.concatenate([experiment.owners(known, k) for k in experiment._PARTS])
            np.testing.assert_array_equal(np.asarray(scores.test.owner), owner)
            assert (owner[split.order] == split.owner()).all()
        if known.classes:
            shares = [np.bincount(pool["y"][p]) / len(p) for p in parts]
            np.testing.assert_allclose(shares, shares[:1] * 3, atol=0.05)
    assert len(set(map(frozenset, seen))) == 3
    again = experiment.divided(config, task.data, 1)
    assert again is not None and set(again["test"].tolist()) == seen[1]


def _who(known):
    owner = np.empty(len(known.train["y"]), int)
    owner[known.partition.order] = known.partition.owner()
    return owner


def test_who_never_trains_cannot_be_drawn():
    who = np.repeat(np.arange(10), 4)
    known = data.from_arrays(np.ones((40, 1)), np.arange(40) % 2, client=who, by="clients")
    with pytest.raises(ValueError, match="clients that never train.*vary='run'"):
        jaxfl.compare(data=known, partition="natural", vary="split", cohort=2)


def test_intervals_cover_what_seeds_draw():
    """A model that never changes: the interval is nothing but that of the split."""
    iris = dataset("iris")
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(4, 3)))
    model = models.from_functions(lambda key: {"w": w}, lambda params, x: x @ params["w"])
    halves, notes = {}, {}
    for vary in ("run", "split"):
        options = {**SMALL, "data": iris, "model": model, "seeds": 4, "lr": 1e-12, "rounds": 2}
        found = jaxfl.train("fedavg", vary=vary, **options)
        halves[vary], notes[vary] = found.rows()[0].score_half, found.notes()[1]
        if vary == "split":
            pool = experiment.pooled(iris)
            for seed in range(4):
                rows = experiment.divided(found.config, iris, seed)
                hit = (pool["x"] @ np.asarray(w)).argmax(1) == pool["y"]
                got = found.results["accuracy"].values[0, 0, seed, -1]
                np.testing.assert_allclose(got, hit[rows["test"]].mean())
    assert halves["run"] == 0 < 0.01 < halves["split"]
    assert notes["run"].endswith(
        "do not cover the split into training, validation and test examples."
    )
    assert "A seed draws the split into" in notes["split"] and "do not" not in notes["split"]


def test_seeds_draw_the_graph():
    """Random graphs differ by seed, in one form; without it, and of a ring, there is one."""
    job = compare_module._job
    make = lambda text, **k: job(text, Config.make(seeds=3, **k), 20).networks
    for text in ("dsgd @ erdos_renyi(p=0.2)", "dsgd @ erdos_renyi(p=0.5)", "choco @ regular"):
        several = make(text, vary="graph", failures=0.1)
        assert len(several) == 3 and len({jax.tree.structure(a) for a in several}) == 1
        shapes = {tuple(np.shape(a) for a in jax.tree.leaves(net)) for net in several}
        assert len(shapes) == 1
        dense = [np.asarray(comm.to_dense(net.network.w)) for net in several]
        assert (dense[0] != dense[1]).any() and (dense[1] != dense[2]).any()
        on = parse(text).on
        for seed, w in enumerate(dense):
            own = networks.topology(on.name, 20, seed=seed, **on.options).w
            np.testing.assert_allclose(w, comm.to_dense(own), atol=1e-12)
        assert len(make(text)) == 1
    assert len(make("dsgd @ ring", vary="graph")) == len(make("dsgd @ random_out", vary="all")) == 1
    many = make("gossiplearning @ erdos_renyi", vary="graph", rounds=20)
    assert len({jax.tree.structure(a) for a in many}) == 1


def test_what_intervals_cover_is_said():
    covers = lambda *names, **k: experiment.covers(Config.make(algorithms=names, **k))
    split = "the split into training, validation and test examples"
    assert covers("fedavg").endswith(f"intervals do not cover {split}.")
    assert covers("dsgd @ erdos_renyi").endswith(f"do not cover {split} nor the random graph.")
    assert covers("fedavg", "dsgd", graph="regular", vary="split").endswith("the random graph.")
    assert covers("dsgd @ erdos_renyi", vary="all").count("not") == 0
    assert "the partition" not in covers("fedavg", partition="natural")
    assert "random graph" not in covers("dsgd @ ring", "choco @ random_out", vary="run")


def test_divergence_is_seen_in_the_loss():
    """An r2 of -1e28 is finite and diverged; a huge loss of a classifier that is right is not."""
    for name, huge in (("diabetes", True), ("iris", False)):
        config = Config.make(data=name, model="logistic", clients=4, cohort=2)
        task = experiment.task(config, dataset(name))
        scores = task.scores(partitions(config, task.data)[0], config, 0)
        state = FedAvg.State(task.model.init(jax.random.key(0)))
        score = jax.jit(lambda scores, state: scores(state))
        assert not score(scores, state)["diverged"]
        x, y = task.data.train["x"], task.data.train["y"]
        target = np.eye(3)[y] if name == "iris" else y[:, None]
        kernel = np.linalg.lstsq(x, target, rcond=None)[0].T
        bias = target.mean(0) * np.ones(len(kernel))
        fit = {"head": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
        for factor in (1.0, 1e14):
            found = score(
                scores, state._replace(params=jax.tree.map(lambda a, k=factor: k * a, fit))
            )
            assert np.isfinite(found["valid_score"])
            assert found["diverged"] == (huge and factor > 1)
            if factor > 1:
                assert found["loss"] > 1e6 and (not huge or found["score"] < -1e20)
        wrong = jax.tree.map(lambda a: -1e14 * a, fit)
        assert score(scores, state._replace(params=wrong))["diverged"]


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
    path.write_text('batch = "all"\n', encoding="utf-8")
    whole = Config.from_toml(path)
    assert whole == Config.make(batch="all") and Config.make(whole, batch=4).batch == 4
    with pytest.raises(ValueError, match="whole number or \"all\", got 'every'"):
        Config.make(batch="every")


def test_names_with_options():
    call = parse("Choco(gamma=-.5, compress=TopK(0.1), lr=[1, inf]) @ Torus(rows=2)")
    assert call.name == "choco" and call.options["gamma"] == -0.5
    assert call.options["compress"].name == "topk" and call.options["compress"].args == (0.1,)
    assert call.options["lr"] == [1, float("inf")]
    assert call.on is not None and call.on.name == "torus" and call.on.options == {"rows": 2}
    assert call.text("lr") == "(gamma=-0.5, TopK(0.1))"
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
    ({"select": "test"}, "select must be one of auto, all, own, got 'test'"),
    ({"vary": "seed"}, "vary must be one of run, split, graph, all, got 'seed'"),
    ({"algorithms": ()}, "algorithms must be one name or more"),
    ({"algorithms": "fedavgg"}, "did you mean 'fedavg'"),
    ({"algorithms": "fedavg(mu=1)"}, "FedAvg has no field 'mu'"),
    ({"algorithms": "fedavg(steps=0)"}, "FedAvg.steps must be"),
    ({"algorithms": "fedprox(mu=-1)"}, r"FedProx.mu must be in \[0"),
    ({"algorithms": "fedprox(mu=[0, 1])"}, "one field takes several values, and mu and lr"),
    ({"algorithms": "fedprox(lr=1, mu=[1, 0])"}, "mu of .* must be rising numbers"),
    ({"algorithms": "fedprox(lr=1, mu=[-1, 0])"}, r"FedProx.mu must be in \[0"),
    ({"algorithms": "fedprox(steps=[1, 2])"}, "steps of .* is no traced number"),
    ({"algorithms": "fedavg(lr=[1, 0.1])"}, "lr must be positive and rising"),
    ({"algorithms": "fedavg(3)"}, "need names"),
    ({"algorithms": ("fedavg", "fedavg(lr=1)")}, "'FedAvg' is there twice"),
    ({"algorithms": "fedavg @ ring"}, "needs Cohort nets"),
    ({"algorithms": "dadao(chi1=1)"}, r"write 'dadao\(chi1=1, smoothness=1.0, convexity=1.0\)'"),
    ({"algorithms": "dsgd @ rong"}, "did you mean 'ring'"),
    ({"algorithms": "gossiplearning @ rong"}, "did you mean 'ring'"),
    ({"algorithms": "gossiplearning @ random_matching"}, "changes every round"),
    ({"algorithms": "gossiplearning", "byzantine": 1, "adversary": "alie"}, "row-local"),
    ({"algorithms": "exactdiffusion", "failures": 0.5}, "ExactDiffusion"),
    ({"algorithms": "choco(compress=topq(0.1))"}, "did you mean 'topk'"),
    ({"algorithms": "choco(compress=topk(ratio=0.1))"}, "topk has no 'ratio'"),
    ({"data": "digit"}, "did you mean 'digits'"),
    ({"data": "digits(colour=1)"}, "digits has no 'colour'"),
    ({"data": "nowhere.npz"}, "cannot read data .nowhere.npz.: there is no such file"),
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
    monkeypatch.setattr(compare_module, "_compare", None)  # nothing may be computed
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
    monkeypatch.setattr(compare_module, "_compare", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        jaxfl.compare(out=tmp_path / "file", **SMALL)
    with pytest.raises(OSError, match="cannot write to the output folder"):
        jaxfl.compare(out=tmp_path / "file" / "below", **SMALL)


def test_files_are_whole_or_not_there(tmp_path):
    from jaxfl.runs.folder import atomic

    def fails(path):
        Path(path).write_text("half")
        raise RuntimeError

    (tmp_path / "table.txt").write_text("old")
    with pytest.raises(RuntimeError):
        atomic(tmp_path / "table.txt", fails)
    assert [p.name for p in tmp_path.iterdir()] == ["table.txt"]
    assert (tmp_path / "table.txt").read_text() == "old"


def test_what_is_tuned_need_not_be_a_learning_rate():
    """DADAO has none: one setting, or a list of one field, on the clocks of a graph."""
    chi1 = round(networks.dadao_rates(graphs.make("ring", 4))["chi1"], 3)
    options = f"smoothness=20, chi1={chi1}"
    names = [f"dadao({options}, convexity=[0.5, 1.0])", f"dadao({options}, convexity=1)"]
    few = SMALL | {"model": "logistic", "rounds": 2, "every": 1, "reference": ""}
    found = jaxfl.compare(algorithms=names, **few)
    ds = found.results
    assert ds["tuned"].values.tolist() == ["convexity", ""] and dict(ds.sizes)["lr"] == 2
    np.testing.assert_array_equal(ds["rate"], [[0.5, 1], [np.nan] * 2])
    one, same = (ds["loss"].isel(algorithm=k).values for k in (0, 1))
    np.testing.assert_allclose(one[1], same[0])  # the same runs
    assert np.isfinite(one).all() and (one[0] != one[1]).all() and np.isnan(same[1]).all()
    assert float(ds["seconds"][0, 0, 0, -1]) == 2
    (first, value, *_), (second, none, *_) = found.cells()[1]
    assert first == f"DADAO({options}) @ ring" and value.startswith("convexity ")
    assert second == f"DADAO({options}, convexity=1) @ ring" and none == "–"
    assert "Learning rates, convexity: chosen by" in found.text()


@struct.dataclass
class Tuned(FedAvg):
    """FedAvg whose learning rate has another name, and a grid of its own; and a noise."""

    lr: float = hyper(0.1)
    rate: float = hyper(tune=(0.1, 1.0), default=0.1)
    noise: float = hyper(1.0, role="world")

    def round(self, state, clients, net, key):
        return FedAvg.round(self.replace(lr=self.rate), state, clients, net, key)


def test_an_algorithm_says_what_is_tuned(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "tuned", Tuned)
    config = Config.make(**SMALL)
    job = lambda text: experiment.job(text, config)
    assert job("tuned")[2:4] == ("rate", (0.1, 1.0)) and job("tuned").name == "Tuned"
    assert job("tuned(rate=[1, 2, 3])").lr == (1, 2, 3) and job("tuned(rate=2)").lr == (2,)
    assert job("fedavg")[2:4] == ("lr", config.lr) and job("fedadam(tau=0.1)").tuned == "lr"
    with pytest.raises(ValueError, match="noise of .* is not chosen on validation data"):
        job("tuned(rate=1, noise=[0.1, 1])")
    assert job("fedprox(lr=0.1, mu=[0, 1])")[::2] == ("FedProx(lr=0.1)", "mu", None)
    runs = lambda over, text: list(Space.make(over, algorithms=[text], seeds=1).runs())
    (alone,) = runs({"noise": [2.0]}, "tuned")  # no axis of learning rates, the rate is its default
    assert alone.algorithms == ("tuned(noise=2.0, rate=0.1)",)
    with pytest.raises(ValueError, match="several values of rate; sweep them, as rate"):
        runs({"noise": [2.0]}, "tuned(rate=[1, 2])")
    found = jaxfl.sweep({"rate": [0.1, 1.0], "seed": 2}, algorithms=["tuned"], **NO_SEEDS)
    same = jaxfl.sweep({"lr": [0.1, 1.0], "seed": 2}, algorithms=["fedavg"], **NO_SEEDS)
    assert found["accuracy"].dims == ("rate", "seed", "round")
    np.testing.assert_array_equal(found["accuracy"], same["accuracy"])


def test_every_learning_rate_is_marked():
    for maker in ALGORITHMS.values():
        fields = {f.name: f for f in dataclasses.fields(made(maker))}
        assert "lr" not in fields or fields["lr"].metadata["tune"] is True, maker
        assert not any(f.metadata.get("tune") for k, f in fields.items() if k != "lr"), maker
