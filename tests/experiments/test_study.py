"""What the scripts that collect a study's runs share."""

import importlib
import json

import pytest

from experiments import study

SCRIPTS = (
    "fashion_mnist.results",
    "fashion_mnist.views",
    "own_data.results",
    "pretrained.fashion_results",
    "pretrained.first_classifier_results",
    "strangers.results",
    "threshold.results",
    "unequal.results",
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_folder_without_a_finished_run_is_one_sentence(script, tmp_path, capsys):
    (tmp_path / "fixmatch-s0").mkdir()  # begun, not finished
    module = importlib.import_module(f"experiments.{script}")
    with pytest.raises(SystemExit) as raised:
        module.main([str(tmp_path), "-o", str(tmp_path / "out")])
    assert raised.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"experiments.{script.split('.')[0]}: {tmp_path} holds no finished run")
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_results_are_written_where_they_are_asked_for(tmp_path):
    def collect(runs):
        return {"runs": runs.name}

    words = [str(tmp_path / "sweep"), "-o", str(tmp_path / "out")]
    found, folder = study.collected(collect, tmp_path / "here" / "a.json", None, words)
    assert found == {"runs": "sweep"}
    assert folder == tmp_path / "out"
    assert json.loads((folder / "a.json").read_text()) == found


@pytest.mark.parametrize(
    ("values", "cell"), [((), "not run"), ((81.25,), "81.2"), ((80.0, 82.0, 87.0), "83.0 ± 3.6")]
)
def test_a_cell(values, cell):
    assert study.spread(values) == cell


def test_a_cell_without_figures_can_be_empty():
    assert study.spread((), empty="") == ""
    assert study.each((1.0, 2.55)) == "1.0 / 2.5"
