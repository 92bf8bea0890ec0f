"""The notebooks: executed on small settings, and as they are kept, with their figures."""

import os
import tempfile
from pathlib import Path

import nbformat
import pytest
from flags import FLAGS
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
GROUPED_BY = "path"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(path):
    """The code cells of a notebook, run in a kernel of its own."""
    flags = {"JAXFL_SMALL": "1", "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0"}
    flags["XLA_FLAGS"] = FLAGS  # not the suite's eight devices
    flags["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    notebook, cells = read(path)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources)
        client.execute(env={k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | flags)
    return cells


def outputs(cells):
    return [output for cell in cells for output in cell.outputs]


def figures(cells):
    found = [output.data for output in outputs(cells) if "data" in output]
    return [data["image/png"] for data in found if "image/png" in data]


def noise(cells):
    return [o.text for o in outputs(cells) if o.output_type == "stream" and o.name == "stderr"]


def texts(cells):
    for cell in cells:
        yield cell.source
        for output in cell.get("outputs", ()):
            data = {"stream": output.get("text", "")} | output.get("data", {})
            yield from (str(value) for kind, value in data.items() if "image" not in kind)


def test_all_six_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_on_small_settings(path):
    cells = execute(path)
    assert not noise(cells)
    assert len(figures(cells)) == len(figures(read(path)[1]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_as_it_ran(path):
    """In order, from the first cell to the last, without errors, noise, or anybody's paths."""
    cells = read(path)[1]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not noise(cells)
    assert all(output.output_type != "error" for output in outputs(cells))
    assert figures(cells) and sum(bool(cell.outputs) for cell in cells) > len(cells) // 2
    assert path.stat().st_size < 500_000
    for text in texts(read(path)[0].cells):
        assert not any(private in text for private in ("/tmp", "/home", "/root", "site-packages"))


def test_one_cell_installs_and_is_the_same_in_all():
    first = {read(path)[1][0].source for path in NOTEBOOKS}
    assert len(first) == 1
    lines = first.pop().splitlines()
    assert sum(line.startswith("SOURCE = ") for line in lines) == 1
    assert lines[-1].strip() == "%pip install --quiet {SOURCE}"
    for path in NOTEBOOKS:
        later = [cell.source for cell in read(path)[1][1:]]
        assert not any("pip install" in source or "SOURCE" in source for source in later)
