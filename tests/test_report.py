"""The page stands alone, says what the results say, and refuses what is no result."""

import base64
import dataclasses
import json
import re
import shlex
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from test_compare import small
from test_plots import sweep

import jaxfl
from jaxfl import cli, results
from jaxfl.runs import folder
from jaxfl.studies.config import Config


class Page(HTMLParser):
    """What a page holds; refuses tags that are not closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.tables, self.text = [], [], [], ""
        self.tags, self.attributes = set(), set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {k for k, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def alone(path):
    """The page, after checks that it needs nothing else."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & page.tags
    assert page.attributes <= {"lang", "charset", "name", "content", "class", "alt", "src"}
    assert not re.search(r"url\(|@import", text)
    for image in page.images:
        kind, data = image["src"].split(",")
        assert kind == "data:image/svg+xml;base64" and image["alt"]
        ET.fromstring(base64.b64decode(data))  # well-formed
    return page


def save(ds, path, config=None, **attrs):
    """A folder of a sweep."""
    config = config or Config.make(algorithms=["fedavg", "dsgd @ ring"], rounds=40, every=10)
    ds.attrs |= {"config": json.dumps(dataclasses.asdict(config)), "provenance": "{}", **attrs}
    path.mkdir(exist_ok=True)
    ds.to_netcdf(path / "results.nc", engine="h5netcdf")
    return path


def test_of_a_sweep(tmp_path, capsys):
    ds = sweep().assign_coords(algorithm=["fedavg", "dsgd @ ring"])
    about = {"sessions": [folder.provenance() | {"end": "later"}] * 2}
    save(ds, tmp_path, provenance=json.dumps({"start": "old"}))
    (tmp_path / "provenance.json").write_text(folder.sealed(about))
    (tmp_path / "sweep.toml").write_text("alpha = '<script>alert(1)</script>'\n")
    assert cli.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    page = alone(tmp_path / "report.html")
    swept, best, provenance = page.tables
    assert swept[1:3] == [["algorithm", "fedavg, dsgd @ ring"], ["alpha", "0.1, 1"]]
    headers, rows = results.Summary(ds).cells()
    assert best == [headers, *rows] and rows[1][:3] == ["fedavg", "1", "0.1"]
    assert "48 runs: 37 ran to the end, 1 reached their target, 10 diverged." in page.text
    assert ["device", about["sessions"][0]["device"]] in provenance and [
        "end",
        "later",
    ] in provenance
    assert "<script>alert(1)</script>" in page.text and f"jaxfl sweep {tmp_path}" in page.text
    assert "Communication-Efficient Learning" in page.text and "@software{jaxfl" in page.text
    kinds = (
        "Learning curves",
        "Final score",
        "validation scores",
        "cost",
        "Scores of clients on their own labels",
        "Distance",
    )
    for kind in kinds:
        assert kind in page.text


def test_edges_points_and_names_that_are_not_known(tmp_path):
    """A list of points is drawn as such; a best value at the edge is marked."""
    ds = sweep().isel(algorithm=0, alpha=0, client=slice(0))
    config = Config.make(rounds=40, every=10)
    hostile = ["<img src=x onerror=alert(1)>", "fedavg"]
    both = ds.isel(lr=slice(1, 4)).drop_vars("client_accuracy").expand_dims(algorithm=hostile)
    page = alone(jaxfl.report(save(both, tmp_path / "edge", config)))
    assert page.tables[1][1][0] == hostile[0] and len(page.images) == 3
    both = both.assign_coords(algorithm=["mine(a=1)", "fedavg"])
    page = alone(jaxfl.report(save(both, tmp_path / "edge", config)))
    assert page.tables[1][1][:2] == ["mine(a=1)", "0.1*"]
    assert "Not known here: mine." in page.text and "best at the edge of the grid" in page.text
    points = ds.isel(lr=[1, 3]).rename(lr="point").drop_vars(["client_accuracy", "point", "alpha"])
    points = points.assign_coords(lr=("point", [0.1, 10.0]), alpha=("point", [0.1, 1.0]))
    page = alone(jaxfl.report(save(points.rename(alpha="mu"), tmp_path / "tuned", config)))
    assert [row[0] for row in page.tables[1]] == ["point", "lr 0.1, mu 0.1"], "chosen"
    page = alone(jaxfl.report(save(points, tmp_path / "points", config)))
    names = ["lr 0.1, alpha 0.1", "lr 10, alpha 1"]
    assert [row[0] for row in page.tables[1]] == ["point", *names], "no partition is chosen"
    assert page.tables[0][1] == ["point", "lr 0.1, alpha 0.1; lr 10, alpha 1"]
    first = (tmp_path / "points" / "report.html").read_bytes()
    assert jaxfl.report(tmp_path / "points").read_bytes() == first
    assert "Sweep of lr, alpha" in page.text and "3 diverged" in page.text


def test_of_a_comparison():
    found, path = small()
    made = jaxfl.report(path)
    try:
        page = alone(made)
    finally:
        made.unlink()
    headers, rows = found.cells()
    assert page.tables[0] == [headers, *rows]
    assert all(note in page.text for note in found.notes())
    assert found.config.to_toml().strip() in page.text
    said = {i["alt"].split(",")[0].split(";")[0] for i in page.images}
    assert {f"Learning curves on {k} labels" for k in ("all", "clients' own")} <= said
    assert all("ranges of seeds" in i["alt"] for i in page.images if "curves" in i["alt"])
    assert "config.toml" in page.text and "McMahan" in page.text
    assert {"start", "end", "device"} <= {row[0] for row in page.tables[1]}


def test_what_is_no_result(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "nowhere"):
        assert cli.main(["report", str(path)]) == 2
        error = capsys.readouterr().err
        assert "no results" in error and error.count("\n") == 1
    (tmp_path / "sweep.toml").write_text("")
    with pytest.raises(ValueError, match="has not ended: `jaxfl sweep"):
        jaxfl.report(tmp_path)
    _, path = small()
    shutil.copy(path / "results.nc", tmp_path)
    whole = (tmp_path / "results.nc").read_bytes()
    rng = np.random.default_rng(0)
    for size in (0, 1, 7, *rng.integers(8, len(whole) - 1, 8)):
        (tmp_path / "results.nc").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="results.nc.*damaged"):
            jaxfl.report(tmp_path)
    (tmp_path / "results.nc").write_bytes(rng.bytes(1000))
    with pytest.raises(ValueError, match="damaged"):
        jaxfl.report(tmp_path)
    for drop in ("config", "metric", "provenance"):
        ds = sweep()
        save(ds, tmp_path)
        del ds.attrs[drop]
        ds.to_netcdf(tmp_path / "results.nc", engine="h5netcdf")
        with pytest.raises(ValueError, match="damaged"):
            jaxfl.report(tmp_path)
    sweep()[["loss"]].to_netcdf(tmp_path / "results.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="damaged"):
        jaxfl.report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_page_elsewhere_leaves_the_folder_as_it_is(tmp_path, monkeypatch, capsys):
    """Folders of others can be read: --out says where the page goes; without it, what to do."""
    source = small()[1]
    there = sorted(p.name for p in source.iterdir())
    assert jaxfl.report(source, tmp_path / "page.html") == tmp_path / "page.html"
    assert cli.main(["report", str(source), "--out", str(tmp_path / "other.html")]) == 0
    alone(tmp_path / "other.html")
    assert sorted(p.name for p in source.iterdir()) == there
    monkeypatch.setattr("os.access", lambda path, mode: False)  # also where tests are root
    with pytest.raises(OSError, match=r"choose another place: `out='report.html'`"):
        jaxfl.report(source)
    assert cli.main(["report", str(source)]) == 2
    assert "--out 'report.html'" in capsys.readouterr().err


def test_what_repeats_it_repeats_it(tmp_path, monkeypatch):
    """The command of the page, run as it stands, gives the same numbers in a folder of its own."""
    monkeypatch.setattr(cli, "cache", lambda: None)
    tiny = {"data": "iris", "model": "logistic", "clients": 3, "cohort": 2, "minimum": 1}
    tiny |= {"rounds": 4, "every": 2, "lr": [0.1], "seeds": 2}
    over = {"alpha": [0.3, 3.0]}
    jaxfl.compare(algorithms=["fedavg"], out=tmp_path / "a b", **tiny)
    jaxfl.sweep(over, out=tmp_path / "swept", stop_at=0.99, **tiny)
    for name in ("a b", "swept"):
        text = alone(jaxfl.report(tmp_path / name)).text
        command = re.search(r"To repeat it: jaxfl (.*)", text)[1]
        assert cli.main(shlex.split(command)) == 0
        first, again = (
            folder.read_netcdf(tmp_path / f"{name}{k}" / "results.nc") for k in ("", "-again")
        )
        np.testing.assert_array_equal(first["accuracy"], again["accuracy"])
    iris = jaxfl.data.load("iris")
    own = tiny | {"data": iris}
    jaxfl.compare(algorithms=["fedavg"], out=tmp_path / "own", **own)
    jaxfl.sweep(over, out=tmp_path / "own swept", **own)
    for name in ("own", "own swept"):
        text = alone(jaxfl.report(tmp_path / name)).text
        assert "To repeat it" not in text and "The data came from Python as objects" in text


@pytest.mark.parametrize("about", [[], [1], {"sessions": 3}, {"sessions": ["x"]}, "no"])
def test_a_damaged_provenance_is_an_error(about, tmp_path):
    tiny = {"data": "iris", "model": "logistic", "clients": 3, "cohort": 2, "minimum": 1}
    tiny |= {"rounds": 2, "every": 1, "seeds": 1}
    over = {"lr": [0.1]}
    jaxfl.sweep(over, out=tmp_path, **tiny)
    (tmp_path / "provenance.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="provenance"):
        jaxfl.report(tmp_path)
    with pytest.raises(ValueError, match=r"provenance\.json"):
        jaxfl.sweep(over, out=tmp_path, **tiny)
    (tmp_path / "provenance.json").write_text(json.dumps({"format": 1, "objects": []}))
    with pytest.raises(ValueError, match="has format 1, this is 2"):
        jaxfl.sweep(over, out=tmp_path, **tiny)
