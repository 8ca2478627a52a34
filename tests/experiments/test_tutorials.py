"""The notebooks: stored with their outputs, free of this machine's paths, and working."""

import csv
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "experiments" / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
# A rooted folder or a drive in front of a name: no URL, no "images/s", no HTML.
ABSOLUTE = re.compile(r"(?<![\w.:/<~])/[a-zA-Z][\w.-]*/\w|\b[A-Z]:\\\w")


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def texts(notebook):
    """The sources of all cells, and their outputs without images."""
    for cell in notebook["cells"]:
        yield "".join(cell["source"])
        for output in cell.get("outputs", ()):
            yield "".join(output.get("text", ()))
            for kind, data in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    yield "".join(data)


def test_there_are_two_notebooks():
    assert [file.stem for file in NOTEBOOKS] == ["add_a_method", "own_photos"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_outputs_are_stored(file):
    notebook = json.loads(file.read_text())
    cells = code_cells(notebook)
    assert notebook["nbformat"] == 4
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert any("test accuracy" in text for text in texts({"cells": cells}))
    images = [kind for output in outputs for kind in output.get("data", {}) if "image/" in kind]
    assert len(images) >= 2
    assert file.stat().st_size < 500_000


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_no_absolute_path_is_stored(file):
    for text in texts(json.loads(file.read_text())):
        assert not ABSOLUTE.search(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("wrote /tmp/x/runs", True),
        ("File '/home/me/a.py'", True),
        ("C:\\Users", True),
        ("204 images/s, runs/agree", False),
        ("https://example.org/a/b", False),
        ("<b>x</b>", False),
    ],
)
def test_absolute_paths_are_noticed(text, found):
    assert bool(ABSOLUTE.search(text)) == found


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Execute a notebook: the scratch folder that it made."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "scratch").mkdir()

    def run(name):
        notebook = nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)
        resources = {"metadata": {"path": str(tmp_path)}}
        nbclient.NotebookClient(notebook, timeout=1800, resources=resources).execute()
        (folder,) = (tmp_path / "scratch").glob("jaxmatch-*")
        return folder

    return run


@pytest.mark.slow
def test_the_new_method_learns(execute):
    folder = execute("add_a_method")
    accuracies = {
        name: json.loads((folder / "runs" / name / "summary.json").read_text())["teacher"]["last"]
        for name in ("supervised", "agree", "agree_strong")
    }
    assert min(accuracies.values()) > 0.4  # by chance 0.1
    assert accuracies["agree_strong"] > accuracies["supervised"]


@pytest.mark.slow
def test_predictions_of_photos_are_right(execute):
    folder = execute("own_photos")
    with open(folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum("unlabeled" in row["path"] for row in rows) == 300
    tested = [row for row in rows if row["path"].startswith("photos/test/")]
    right = [row["class"] == Path(row["path"]).parent.name for row in tested]
    assert len(right) == 100
    assert sum(right) > 80  # by chance 20
