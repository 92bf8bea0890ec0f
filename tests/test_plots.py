"""Pictures show the numbers they are given, fit one column, and refuse what they cannot show."""

import inspect
import json

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot
from matplotlib.text import Text

from jaxfl import metrics, networks, plots
from jaxfl.networks import graphs, spectra, weights
from jaxfl.plots import style
from jaxfl.studies.results import final


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def sweep():
    """As of `jaxfl.sweep`: the best is (alpha 1, lr 0.1), lr 10 diverges in some seeds."""
    at = {
        "algorithm": ["FedAvg", "DSGD @ ring"], "alpha": [0.1, 1.0], "lr": [0.01, 0.1, 1.0, 10.0],
        "seed": [0, 1, 2], "round": [10, 20, 30, 40], "client": np.arange(6),
    }  # fmt: skip
    over = ("algorithm", "alpha", "lr", "seed")
    size = lambda dims: [len(at[d]) for d in dims]
    a, al, lr, seed, t = np.meshgrid(*(np.arange(n) for n in size((*over, "round"))), indexing="ij")
    score = 0.9 - 0.1 * abs(lr - 1) - 0.04 * (1 - al) - 0.03 * a + 0.004 * seed - 0.2 / (t + 1)
    status = np.where((lr == 3) & (seed >= a), 3, 0)[..., 0].astype("i1")
    stopped = np.where(status == 3, 20, 40)
    status[0, 0, 0, 0], stopped[0, 0, 0, 0] = 1, 30
    live = np.array(at["round"]) <= stopped[..., None] - 10 * (status[..., None] == 3)
    curve = lambda v: ((*over, "round"), np.where(live, v, np.nan))
    per_round = np.array(at["round"]) * (1 + 9 * a)
    clients = np.where(
        (status < 3)[..., None], score[..., -1:] + np.linspace(-0.1, 0.08, 6), np.nan
    )
    variables = {
        "accuracy": curve(score),
        "valid_accuracy": curve(score - 0.01),
        "loss": curve(1 - score),
        "worst": curve(score - 0.1),
        "consensus": curve(np.where(a == 1, 0.5 / (t + 1), np.nan)),
        "megabytes": curve(per_round),
        "seconds": curve(per_round / 7),
        "grads": curve(per_round),
        "client_accuracy": ((*over, "client"), clients),
        "status": (over, status),
        "stopped": (over, stopped),
    }
    about = {"metric": "accuracy", "over": json.dumps({"alpha": at["alpha"], "seed": 3})}
    about["config"] = json.dumps({"byzantine": 1, "algorithms": ["fedavg", "dsgd @ ring"]})
    ds = xr.Dataset(variables, at, about)
    ds["alpha"].attrs["long_name"] = "concentration"
    return ds


def whole(axes):
    """Every text lies inside of its figure, and tick labels do not touch each other."""
    figure = np.ravel(axes)[0].figure
    figure.canvas.draw()
    hidden = set()
    inside = [child for ax in figure.axes for child in ax.child_axes]
    for ax in [*figure.axes, *inside]:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for ticks, used in (
                (axis.majorTicks, axis.get_major_ticks()),
                (axis.minorTicks, axis.get_minor_ticks()),
            ):
                labels = [x for t in ticks for x in (t.label1, t.label2)]
                drawn = [t for t in used if ax.axison and low <= t.get_loc() <= high]
                shown = [x for t in drawn for x in (t.label1, t.label2) if x.get_visible()]
                hidden |= {*labels} - {*shown}
                boxes = [x.get_window_extent() for x in shown if x.get_text()]
                touching = any(a.overlaps(b) for a, b in zip(boxes, boxes[1:]))
                assert ticks is axis.minorTicks or not touching
    frame = figure.bbox.padded(1.5)
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text() and text not in hidden:
            box = text.get_window_extent()
            assert frame.x0 <= box.x0 and frame.y0 <= box.y0, text.get_text()
            assert box.x1 <= frame.x1 and box.y1 <= frame.y1, text.get_text()


def test_learning_curves_of_a_sweep():
    ds = sweep()
    one = ds.sel(alpha=1.0, lr=0.1)
    axes = plots.learning_curves(one, ("rounds", "megabytes", "bits"), width=3.3)
    whole(axes)
    line = axes[0].lines[1]
    np.testing.assert_allclose(line.get_ydata(), 100 * one["accuracy"][1].mean("seed"))
    np.testing.assert_allclose(axes[2].lines[0].get_xdata(), 8e6 * one["megabytes"][0].mean("seed"))
    assert line.get_label() == "DSGD @ ring" and line.get_linestyle() == "--"
    (ax,) = plots.learning_curves(ds.sel(alpha=1.0, algorithm="FedAvg"), "rounds", width=3.3)
    whole(ax)
    assert ax.figure.legends[0].get_title().get_text() == "learning rate"
    assert len({ln.get_color() for ln in ax.lines if ln.get_marker() != "x"}) == 4
    crosses = [ln for ln in ax.lines if ln.get_marker() == "x"]
    assert [ln.get_xdata().item() for ln in crosses] == [10]  # lr 10, where it was last alive
    (ax,) = plots.learning_curves(one.isel(algorithm=0, seed=0), "rounds", name="loss")
    assert len(ax.lines) == 1 and ax.get_ylabel() == "test loss, all labels"
    (ax,) = plots.learning_curves(ds.sel(lr=0.1, algorithm="FedAvg"), "grads", by="alpha")
    assert len(ax.lines) == 2


def test_every_picture_draws_on_the_axes_it_is_given():
    """One word for it, `ax`: one of matplotlib's, or a list where there are panels."""
    pictures = [getattr(plots, name) for name in plots.__all__ if name != "COLOURS"]
    assert all("ax" in inspect.signature(draw).parameters for draw in pictures)
    _, panels = pyplot.subplots(1, 2)
    one = sweep().sel(alpha=1.0, lr=0.1)
    for draw in (
        lambda ax: plots.learning_curves(one, ("rounds", "megabytes"), ax=ax),
        lambda ax: plots.graph_and_spectrum(graphs.make("ring", 6), ax=ax),
    ):
        assert draw(list(panels)) == list(panels) and all(ax.has_data() for ax in panels)
        [ax.clear() for ax in panels]


def test_the_score_is_named_and_few_seeds_are_a_range():
    """Bands of four seeds, bars of three; a row of panels for every score."""
    ds = sweep().sel(alpha=1.0, lr=0.1)
    ds = ds.assign(own_accuracy=ds["accuracy"] + 0.02)
    names = ("accuracy", "own_accuracy")
    axes = plots.learning_curves(ds, ("rounds", "megabytes"), name=names, width=5.5)
    whole(axes)
    labels = [f"test accuracy, {k} labels (%)\nlogarithmic in the error" for k in ("all", "own")]
    assert [ax.get_ylabel() for ax in axes] == [labels[0], "", labels[1], ""]
    np.testing.assert_allclose(axes[2].lines[0].get_ydata(), axes[0].lines[0].get_ydata() + 2)
    scores = 100 * ds["own_accuracy"][0].values
    ends = np.array(axes[2].collections[0].get_segments())[..., 1]
    np.testing.assert_allclose(ends, np.stack([scores.min(0), scores.max(0)], 1))
    (ax,) = plots.learning_curves(ds, "rounds", scale="linear", width=3.3)
    assert ax.get_ylabel() == "test accuracy, all labels (%)"
    four = xr.concat([ds, ds.isel(seed=[0]).assign_coords(seed=[3])], "seed")
    (ax,) = plots.learning_curves(four, "rounds", width=3.3)
    band = ax.collections[0].get_paths()[0].vertices
    mean, half = metrics.t_interval(100 * four["accuracy"][0].transpose("round", "seed").values)
    assert np.isclose(band[:, 1].max(), (mean + half).max())
    (ax,) = plots.learning_curves(ds.isel(seed=[0]), "rounds", width=3.3)
    assert not ax.collections


def test_what_is_too_much_says_what_to_select():
    ds = sweep()
    with pytest.raises(ValueError, match=r"but alpha has 2 values \(0.1, 1\).*ds.sel\(alpha=0.1\)"):
        plots.learning_curves(ds)
    with pytest.raises(ValueError, match=r"ds.sel\(algorithm='FedAvg'\).*best\(ds, \['algorithm'"):
        plots.heatmap(ds, "lr", "alpha")
    with pytest.raises(ValueError, match=r"ds.sel\(\{'adversary.z': 1.0\}\)"):
        z = ds.isel(lr=0).expand_dims({"adversary.z": [1.0, 2.0]})
        plots.ecdf(z, by="alpha")
    with pytest.raises(ValueError, match="'alhpa'.*did you mean alpha|'alhpa'.*alpha"):
        plots.heatmap(ds.isel(algorithm=0), "lr", "alhpa")
    with pytest.raises(ValueError, match="robustness\\(ds, 'lr'\\)"):
        plots.robustness(ds.isel(alpha=0))
    with pytest.raises(ValueError, match="ecdf"):
        plots.heatmap(ds.isel(algorithm=0), "lr", "alpha", "client_accuracy")
    with pytest.raises(ValueError, match="no 'acuracy'.*accuracy"):
        plots.learning_curves(ds.isel(alpha=0, lr=0), name="acuracy")
    with pytest.raises(ValueError, match="no cost 'megabits'"):
        plots.pareto(ds, "megabits")
    with pytest.raises(ValueError, match="got list"):
        plots.learning_curves([1, 2])
    with pytest.raises(ValueError, match="with accuracy or r2"):
        plots.pareto(xr.Dataset({"a": 1}))
    with pytest.raises(ValueError, match="numbers along its axis"):
        plots.robustness(ds.isel(alpha=0, lr=0), "algorithm", by="")


def test_heatmap():
    ds = sweep().sel(algorithm="DSGD @ ring")
    ax = plots.heatmap(ds, "lr", "alpha")
    whole(ax)
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    expected = 100 * ds["valid_accuracy"].isel(round=-1).mean("seed", skipna=False)
    np.testing.assert_allclose(shown, expected)
    texts = {t.get_position(): t.get_text() for t in ax.texts}
    assert texts[(1, 1)] == "81.4" and texts[(3, 0)] == "2/3"  # diverged in two of three seeds
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.01", "0.1", "1", "10"]
    framed = [p for p in ax.patches if p.get_linewidth() == 2]
    assert [p.get_xy() for p in framed] == [(0.5, 0.5)]  # alpha 1, lr 0.1
    assert sum(p.get_hatch() is not None for p in ax.patches) == 2
    words = [t.get_text() for t in ax.figure.legends[0].get_texts()]
    assert words == ["best by validation", "diverged (in some seeds)"]
    assert [t.get_text() for t in plots.heatmap(ds, "alpha", "lr", "loss").texts][2] == "0.216"
    ax = plots.heatmap(sweep().isel(lr=1), "algorithm", "alpha")  # names stay readable
    whole(ax)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["FedAvg", "DSGD @ ring"]
    early = sweep().isel(algorithm=0, alpha=0)  # its first seed reached the target in round 30
    early = final(style.results(early), "accuracy").isel(lr=0, seed=0)
    assert float(early) == float(sweep()["accuracy"][0, 0, 0, 0, 2])


def test_heatmap_of_many_cells():
    """A thousand: no numbers, fewer ticks."""
    rng = np.random.default_rng(0)
    dims = ("mu", "lr", "seed", "round")
    score = rng.uniform(0.8, 0.99, (40, 25, 1, 1))
    ds = xr.Dataset(
        {"accuracy": (dims, score), "valid_accuracy": (dims, score)},
        {"lr": np.logspace(-3, 0, 25), "mu": np.logspace(-4, 1, 40), "round": [1]},
    )
    ax = plots.heatmap(ds.isel(seed=0), "lr", "mu")
    whole(ax)
    assert not ax.texts
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.001", "0.01", "0.1", "1"]
    np.testing.assert_allclose(ax.get_xticks(), [0, 8, 16, 24], atol=1e-9)
    ax = plots.heatmap(ds.isel(seed=0).assign_coords(lr=np.linspace(0.011, 0.987, 25)), "lr", "mu")
    whole(ax)
    assert 3 < len(ax.get_xticks()) < 25 and ax.get_xticklabels()[0].get_text() == "0.011"


def test_plain_numbers():
    assert style.plain([1e-4, 0.1, 1.0, 10, 3000]) == ["0.0001", "0.1", "1", "10", "3000"]
    assert style.plain(np.logspace(-3, 0, 7))[1] == "0.00316"
    assert style.plain([0.1, 0.1001]) == ["0.1", "0.1001"] and style.plain([1e-9]) == ["1e-09"]
    assert style.plain(["a"]) == ["a"] and style.plain([7]) == ["7"]


def test_robustness():
    ds = sweep().isel(alpha=0).rename(lr="byzantine").assign_coords(byzantine=[0, 1, 2, 3])
    ax = plots.robustness(ds, chance=0.1)
    whole(ax)
    scores = 100 * final(ds, "accuracy").mean("seed", skipna=False)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), scores[0])
    assert np.isnan(ax.lines[0].get_ydata()[3]) and ax.get_xlabel() == "Byzantine clients"
    crosses = [ln for ln in ax.lines if ln.get_marker() == "x"]
    assert [list(ln.get_xdata()) for ln in crosses] == [[3], [3]]
    assert [t.get_text() for t in ax.texts] == ["chance"]
    assert plots.robustness(sweep().isel(alpha=0), "lr").get_xscale() == "log"


def test_pareto():
    ds = sweep()
    ax = plots.pareto(ds)
    whole(ax)
    front = ax.lines[0].get_xydata()
    # FedAvg is cheaper and better; of its two alphas the same cost and the larger score
    best = 100 * float(final(ds, "accuracy").sel(algorithm="FedAvg", alpha=1, lr=0.1).mean())
    np.testing.assert_allclose(front, [[40, best]])
    assert [t.get_text() for t in ax.texts] == ["alpha 1"]
    dots = [c for c in ax.collections if len(c.get_offsets())]
    assert sum(len(c.get_offsets()) for c in dots) == 4
    assert sum(len(c.get_offsets()) for c in dots if c.get_alpha() == 1) == 1
    trade = ds.assign(megabytes=ds["megabytes"] / (1 + 30 * (ds["algorithm"] != "FedAvg")))
    ax = plots.pareto(trade.isel(alpha=1), "seconds")
    assert [(t.get_text(), t.get_color()) for t in ax.texts] == [
        ("FedAvg", "black"),
        ("DSGD @ ring", "0.5"),  # beaten in both
    ]
    ax = plots.pareto(trade.isel(alpha=1))
    assert [t.get_text() for t in ax.texts] == ["FedAvg", "DSGD @ ring"]
    assert (np.diff(ax.lines[0].get_xydata(), axis=0) > 0).all()
    with pytest.raises(ValueError, match="diverged"):
        plots.pareto(ds.isel(lr=3, algorithm=0))


def test_ecdf():
    ds = sweep().isel(alpha=1, lr=1)
    ax = plots.ecdf(ds)
    whole(ax)
    values = 100 * np.sort(ds["client_accuracy"][0, :, 1:].values.ravel())  # client 0 is Byzantine
    np.testing.assert_allclose(ax.lines[0].get_xdata()[1:], values)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.linspace(0, 1, 16))
    ax = plots.ecdf({"ours": [0.5, 0.7], "gone": [np.nan, 0.1]})
    np.testing.assert_allclose(ax.lines[0].get_xdata()[1:], [50, 70])
    assert [ln.get_label() for ln in ax.lines] == ["ours", "gone (diverged)"]
    with pytest.raises(ValueError, match="no 'client_accuracy', the scores of clients"):
        plots.ecdf(ds.drop_vars("client_accuracy"))


def test_spectrum():
    g = graphs.make("ring", 12)
    ax = plots.spectrum(g, title="ring")
    whole(ax)
    w = weights.make("metropolis", g)
    shown = ax.collections[-1].get_offsets()[:, 1]
    np.testing.assert_allclose(shown, np.sort(np.linalg.eigvalsh(w))[::-1], atol=1e-12)
    assert ax.get_title() == f"ring\ngap {spectra.gap(w):.3g}"
    directed = np.array([[0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0.5, 0.5]])
    ax = plots.spectrum(directed)
    values = np.linalg.eigvals(directed)
    shown = ax.collections[0].get_offsets()
    np.testing.assert_allclose(np.sort(shown[:, 1]), np.sort(values.imag), atol=1e-12)
    assert ax.get_xlabel() == "real part" and "|λ₂| 0.5" in ax.get_title()
    one, both = plots.graph_and_spectrum(graphs.make("one_peer_exponential", 8), title="one peer")
    whole([one, both])
    assert "gap 1 in 3 rounds" in both.get_title() and one.get_title() == "one peer"
    with pytest.raises(ValueError, match=r"\[n, n\]"):
        plots.spectrum(np.ones((3, 2)))


def test_networks_are_graphs_too():
    """A network's matrix, that of its graph, and the graph itself are the same picture."""
    g = graphs.make("exponential", 8)
    facts = networks.mixing_facts(g)
    for same in (networks.topology("exponential", 8), weights.make("column_stochastic", g)):
        assert networks.mixing_facts(same) == pytest.approx(facts)
    one = networks.mixing_facts(networks.topology("one_peer_exponential", 8))
    assert one == pytest.approx(networks.mixing_facts(graphs.make("one_peer_exponential", 8)))


def test_consensus_and_its_rate():
    """Gossip alone from the slowest direction lies on the predicted line, all else below it."""
    w = weights.make("metropolis", graphs.make("ring", 8))
    values, vectors = np.linalg.eigh(w)
    slow, x, found = (
        vectors[:, np.argsort(values)[-2]],
        np.arange(8.0) ** 2,
        {"slow": [], "any": []},
    )
    for _ in range(12):
        for name, y in (("slow", slow), ("any", x)):
            found[name].append(np.mean((y - y.mean()) ** 2))
        slow, x = w @ slow, w @ x
    ax = plots.consensus(found, {"slow": w, "any": networks.topology("ring", 8)})
    whole(ax)
    lines = {ln.get_color() + ln.get_linestyle(): ln for ln in ax.lines}
    for i, name in enumerate(found):
        dotted = lines[plots.COLOURS[i] + ":"]
        line = np.exp(np.interp(range(12), dotted.get_xdata(), np.log(dotted.get_ydata())))
        np.testing.assert_allclose(
            line, found[name][0] * (1 - spectra.gap(w)) ** (2 * np.arange(12))
        )
        assert (np.array(found[name]) <= line * (1 + 1e-9)).all()
    np.testing.assert_allclose(found["slow"], line * found["slow"][0] / line[0])
    ds = sweep().isel(alpha=0, lr=0)
    ax = plots.consensus(ds, 0.1)
    assert [ln.get_label() for ln in ax.lines] == ["DSGD @ ring", "gossip alone, (1 − gap)²ᵗ"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), ds["consensus"][1].mean("seed"))
    assert plots.consensus(jnp.array([1.0, 0.5]), rounds=[0, 5]).lines[0].get_xdata()[-1] == 5
    with pytest.raises(ValueError, match="decentralised"):
        plots.consensus(ds.isel(algorithm=0))
    with pytest.raises(ValueError, match="gap"):
        plots.consensus([1.0], 1.5)


def test_partition():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (20, 10))
    with pyplot.rc_context(style.STYLE):
        _, ax = pyplot.subplots(figsize=(3.3, 1.8), layout="constrained")
    whole(plots.partition(counts, ax=ax))
    assert len(ax.collections[0].get_offsets()) == (counts > 0).sum()
    above, right = ax.child_axes  # totals of the clients, and of the labels
    assert [bar.get_height() for bar in above.patches] == counts.sum(1).tolist()
    assert [bar.get_width() for bar in right.patches] == counts.sum(0).tolist()
    assert above.get_xlim() == ax.get_xlim() and right.get_ylim() == ax.get_ylim()
    ax = plots.partition(rng.integers(0, 50, (500, 62)))  # too many for dots
    np.testing.assert_array_equal(ax.images[0].get_array().shape, (62, 500))
    whole(ax)


def test_a_dollar_sign_is_one(tmp_path):
    """Names are not mathematical text: also `$\\frac$`, which is none, is drawn as it is."""
    ds = sweep().assign_coords(algorithm=[r"$\frac$ a$b", "fedavg"]).isel(lr=1, alpha=1)
    for ax in (*np.ravel(plots.learning_curves(ds)), plots.consensus({r"a$\x$": np.ones(3)})):
        ax.figure.savefig(tmp_path / "figure.svg")
        texts = [t for t in ax.figure.findobj(lambda o: hasattr(o, "get_parse_math"))]
        assert texts and not any(t.get_parse_math() for t in texts if "$" in t.get_text())
    ax = plots.consensus({"a": np.array([1.0, 1e-9])})
    assert "10⁻⁸" in [t.get_text() for t in ax.get_yticklabels()]
