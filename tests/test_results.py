"""What is asked of the result of a sweep, on numbers whose answers are known."""

import warnings

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from jaxfl import results, struct
from jaxfl.algorithms import FedAvg
from jaxfl.engine.fields import hyper
from jaxfl.studies import config
from jaxfl.studies.experiment import role

RNG = np.random.default_rng(0)
NOISE = RNG.normal(0, 0.01, (2, 3, 2, 4, 5))


def made(noise=1.0):
    """Two algorithms, three rates, two attacks, four seeds, five evaluations."""
    dims = ("algorithm", "lr", "adversary", "seed", "round")
    valid = np.zeros((2, 3, 2, 4, 5))
    valid += np.array([[0.3, 0.5, 0.4], [0.3, 0.5, 0.7]])[:, :, None, None, None]
    valid += np.array([0.0, -0.1])[None, None, :, None, None]
    valid += np.linspace(0, 0.2, 5)
    variables = {
        "valid_accuracy": valid,
        "accuracy": valid + 0.05 + noise * NOISE,
        "megabytes": np.broadcast_to(np.arange(1.0, 6), valid.shape),
        "grads": np.broadcast_to(np.arange(1.0, 6) * 10, valid.shape),
        "seconds": np.broadcast_to(np.arange(1.0, 6) * 2, valid.shape),
    }
    status, stopped = np.zeros((2, 3, 2, 4), np.int8), np.full((2, 3, 2, 4), 50)
    ds = xr.Dataset(
        {k: (dims, v.copy()) for k, v in variables.items()}
        | {"status": (dims[:-1], status), "stopped": (dims[:-1], stopped)},
        {
            "algorithm": ["a", "b"],
            "lr": [0.1, 0.3, 1.0],
            "adversary": ["x", "y"],
            "seed": range(4),
            "round": range(10, 60, 10),
        },
        {"metric": "accuracy"},
    )
    return ds


def ends(ds, at, rounds, status):
    """A run ends early."""
    ds["status"][at], ds["stopped"][at] = status, rounds
    for name in ("accuracy", "valid_accuracy", "megabytes"):
        ds[name][(*at, slice(rounds // 10, None))] = np.nan
    return ds


def test_final_is_the_last_round_of_each_run():
    ds = ends(ends(made(), (0, 1, 0, 2), 30, 1), (1, 0, 1, 1), 20, 3)
    last = results.final(ds)
    assert float(last[0, 1, 0, 2]) == float(ds.accuracy[0, 1, 0, 2, 2])
    assert np.isnan(last[1, 0, 1, 1]) and np.isfinite(last).sum() == 47
    with pytest.raises(ValueError, match="no variable 'acuracy'"):
        results.final(ds, "acuracy")


def test_best_is_chosen_on_validation_data_only():
    ds = made()
    ds["accuracy"][:, 0] = 0.99  # a test score must not tempt
    with pytest.warns(UserWarning, match="edge of the grid: lr = 1"):
        found = results.best(ds)
    assert found.lr.dims == ("algorithm", "adversary")
    assert found.lr.values.tolist() == [[0.3, 0.3], [1.0, 1.0]]
    assert found.lr_edge.values.tolist() == [[False, False], [True, True]]
    np.testing.assert_array_equal(found.accuracy[0], ds.accuracy[0, 1])
    np.testing.assert_array_equal(found.accuracy[1], ds.accuracy[1, 2])


def test_best_of_other_dimensions_and_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = results.best(made(), ["algorithm", "lr"], quiet=True)
        two = results.best(made().isel(lr=[1, 2]))  # two values have no inside
    assert found.algorithm.values.tolist() == ["b", "b"] and "lr_edge" in found.coords
    assert "lr_edge" not in two.coords
    with pytest.raises(ValueError, match="no dimension 'mu'"):
        results.best(made(), "mu")


def test_a_setting_that_diverges_in_a_seed_is_not_chosen():
    ds = ends(made(), (1, 2, 0, 3), 20, 3)
    found = results.best(ds, quiet=True)
    assert found.lr.sel(algorithm="b").values.tolist() == [0.3, 1.0]


def test_intervals():
    ds = made()
    found = results.interval(ds)
    a = ds.accuracy.values[..., -1]
    low, high = scipy.stats.t.interval(0.95, 3, a.mean(-1), scipy.stats.sem(a, axis=-1))
    np.testing.assert_allclose(found["mean"], a.mean(-1))
    np.testing.assert_allclose(found["half"], (high - low) / 2)
    assert results.interval(ds, "accuracy")["mean"].dims[-1] == "round"
    assert np.isnan(results.interval(ds.isel(seed=[0]))["half"]).all()


def test_paired_differences_are_those_of_scipy():
    ds = made().isel(lr=2, adversary=0)
    found = results.paired(ds, "algorithm", "a")
    a = ds.accuracy.values[..., -1]
    test = scipy.stats.ttest_rel(a[1], a[0])
    np.testing.assert_allclose(found["p"][1], test.pvalue)
    np.testing.assert_allclose(found["mean"][1], (a[1] - a[0]).mean())
    low, high = test.confidence_interval()
    np.testing.assert_allclose(found["half"][1], (high - low) / 2)
    assert found["mean"][0] == 0 and np.isnan(found["p"][0])
    with pytest.raises(ValueError, match="reference must be one of"):
        results.paired(ds, "algorithm", "c")


def test_ranks():
    ds = ends(made(0.0), (1, 2, 0, 0), 20, 3)
    found = results.ranks(ds).isel(adversary=0)
    assert found.sel(lr=1.0).values.T.tolist() == [[1, 2], [2, 1], [2, 1], [2, 1]]
    assert (found.sel(lr=0.1) == 1.5).all()  # ties


def test_costs_to_a_target():
    found = results.to_target(made(0.0), 0.64)
    # algorithm a at lr 0.3: 0.55, 0.60, 0.65: the third evaluation
    one = found.sel(algorithm="a", lr=0.3, adversary="x")
    assert (one.rounds == 30).all() and (one.megabytes == 3).all() and (one.seconds == 6).all()
    assert np.isinf(found.sel(lr=0.1)["rounds"]).all() and found.attrs["target"] == 0.64


def test_the_worst_case():
    ds = made(0.0)
    found = results.worst_case(ds)
    assert (found.adversary == "y").all() and found.score.dims == ("algorithm", "lr")
    np.testing.assert_allclose(found.score.sel(algorithm="a", lr=0.3), 0.65)
    ds = ends(ds, (0, 1, 0, 0), 20, 3)
    bad = results.worst_case(ds).sel(algorithm="a", lr=0.3)
    assert bad.adversary == "x" and np.isnan(bad.score)


def test_the_summary():
    ds = ends(made(0.0), (1, 2, 0, 0), 20, 3)
    headers, rows = results.Summary(ds).cells()
    assert headers == ["algorithm", "adversary", "lr", "validation [%]", "all labels [%]"]
    assert rows[0][:4] == ["a", "x", "0.3", "70.0 ± 0.0"] and rows[3][2] == "1*"
    assert any("wider one" in note for note in results.Summary(ds).notes())


def test_points_are_named_in_the_summary():
    ds = made(0.0).isel(adversary=0).rename(lr="point")
    ds = ds.assign_coords(point=range(3), mu=("point", [0.0, 0.1, 1.0]), w=("point", [*"abc"]))
    headers, rows = results.Summary(ds).cells()
    assert headers[1] == "point" and [row[1] for row in rows] == ["mu 0.1, w b", "mu 1, w c"]


def test_methods_with_personal_models_are_chosen_on_their_own_labels():
    """`valid_choice` is there where it differs, and is what chooses."""
    ds = made(0.0).isel(adversary=0)
    ds["valid_choice"] = ds["valid_accuracy"].copy()
    ds["valid_choice"][1, 0] = 0.95  # of "b" the own labels like the least rate
    assert results.choice(ds) == "valid_choice"
    assert results.choice(ds.drop_vars("valid_choice")) == "valid_accuracy"
    assert results.best(ds, quiet=True).lr.values.tolist() == [0.3, 0.1]
    ds = ds.assign(own_accuracy=ds["accuracy"] + 0.01, worst=ds["accuracy"] - 0.1)
    headers, rows = results.Summary(ds).cells()
    assert headers[2:] == ["validation [%]", "all labels [%]", "own labels [%]", "worst tenth"]
    assert rows[1][1] == "0.1*" and rows[1][2] == "95.0 ± 0.0" and rows[0][4] == "76.0 ± 0.0"
    assert any("own labels for personal models" in note for note in results.Summary(ds).notes())


@pytest.mark.parametrize("seeds", [1, 2, 3, 4])
def test_few_seeds_have_a_range_and_no_t_interval(seeds):
    ds = made().isel(seed=range(seeds))
    a = ds.accuracy.values[..., -1]
    found, pairs = results.interval(ds), results.paired(ds, "algorithm", "a")
    for one, values in ((found, a), (pairs, a - a[:1])):
        np.testing.assert_allclose(one["mean"], values.mean(-1))
        if seeds < 4:
            np.testing.assert_allclose(one["low"], values.min(-1))
            np.testing.assert_allclose(one["high"], values.max(-1))
            assert np.isnan(one["half"]).all()
        else:
            np.testing.assert_allclose(one["high"] - one["mean"], one["half"])
            np.testing.assert_allclose(one["mean"] - one["low"], one["half"])
    assert np.isnan(pairs["p"]).all() == (seeds < 4)
    text = results.Summary(ds).cells()[1][0][4]
    assert ("±" in text, "to" in text) == (seeds == 4, seeds in (2, 3))


def test_a_seed_that_diverged_leaves_no_mean():
    """Not that of the others, in any answer; chosen only where no setting is without."""
    ds = ends(made(0.0), (1, 2, 0, 3), 20, 3)
    place = dict(algorithm="b", lr=1.0, adversary="x")
    for found in (results.interval(ds), results.paired(ds, "lr", 0.1)):
        assert all(np.isnan(float(found[k].sel(place))) for k in found)
    every = made(0.0)
    for k, seeds in enumerate([(0, 1), (0,), (0, 1, 2)]):
        for seed in seeds:
            every = ends(every, (0, k, 0, seed), 20, 3)
    chosen = results.best(every, quiet=True)
    assert chosen.lr.sel(algorithm="a").values.tolist() == [0.3, 0.3]
    assert (chosen["status"].sel(algorithm="a", adversary="x") == 3).sum() == 1
    assert results.Summary(every).cells()[1][0][3:] == ["1 of 4 diverged", "–"]


def test_only_what_is_for_tuning_is_chosen(monkeypatch):
    """Every field of Config says its role; a new one of the world is left alone, and so is a point
    that sets one."""
    roles = {name: field.metadata["role"] for name, field in config.FIELDS.items()}
    assert set(roles.values()) == {"task", "world", "tuning", "run", "report"}
    tuned = {"model", "weights", "lr", "steps", "batch", "precision"}
    assert {name for name, role in roles.items() if role == "tuning"} == tuned
    fields = {"noise": config.setting(1.0, "world", low=0)}
    monkeypatch.setattr(config, "FIELDS", config.FIELDS | fields)
    for name in set(config.FIELDS) - {"lr", "seed"}:  # which `made` has already
        ds = made(0.0).rename(adversary=name)
        found = results.best(ds, quiet=True)
        chosen = name in tuned
        assert found.lr.dims == (("algorithm",) if chosen else ("algorithm", name))
        points = made(0.0).isel(adversary=0).rename(lr="point")
        points = points.assign_coords(point=range(3), **{name: ("point", [0.0, 0.1, 1.0])})
        assert ("point" in results.best(points, quiet=True).dims) != chosen


@struct.dataclass
class Mechanism:
    """Adds noise."""

    noise: float = hyper(1.0, role="world")
    rate: float = hyper(0.5)


@struct.dataclass
class Private:
    """Has a noise of its own, and a part with one."""

    lr: float = hyper(tune=True)
    noise: float = hyper(1.0, role="world")
    part: Mechanism = Mechanism()


def test_a_field_of_an_algorithm_can_be_of_the_world():
    alg, plain = Private(0.1), FedAvg(lr=0.1)
    assert [role(k, [alg]) for k in ("noise", "part.noise", "part.rate", "lr", "alpha")] == [
        "world", "world", "tuning", "tuning", "task",
    ]  # fmt: skip
    assert role("noise", [plain, alg]) == "world" and role("noise", [plain]) == "tuning"
    assert role("privacy", [plain]) == "world" and role("aggregator", [plain]) == "tuning"
    ds = made(0.0).rename(adversary="noise").assign_coords(noise=[1.0, 2.0])
    assert "noise" not in results.best(ds, quiet=True).dims
    ds["noise"].attrs["role"] = "world"
    assert "noise" in results.best(ds, quiet=True).dims
