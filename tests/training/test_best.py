"""``keep_best``: what it takes, and which checkpoint it keeps, however often a run is stopped."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_runs import STEPS, configuration, start_program, train_tiny, without_extras

from jaxmatch import load
from jaxmatch.errors import InputError
from jaxmatch.evaluation.selection import Selection
from jaxmatch.record.metrics import read
from jaxmatch.runtime.checkpoint import Best
from jaxmatch.training import run, together
from jaxmatch.training.best import BestCheckpoint
from jaxmatch.training.train import train

TEXT, KEY = "validation/accuracy", "validation/teacher/accuracy"
VALIDATION = {"data__validation": 12, "data__validation_draw": "balanced"}


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


def config_of(text, method):
    chosen = "" if method == "simclr" else ",labels=40"
    return configuration("mnist5k", method=method, chosen=chosen, keep_best=text)


def selection(text, method="fixmatch"):
    return Selection.of(config_of(text, method))


@pytest.mark.parametrize(
    ("text", "method", "key"),
    [
        ("validation/accuracy", "fixmatch", KEY),
        ("validation/teacher/accuracy", "fixmatch", KEY),
        ("validation/student/macro_f1", "fixmatch", "validation/student/macro_f1"),
        (
            "validation/negative_log_likelihood",
            "fixmatch",
            "validation/teacher/negative_log_likelihood",
        ),
    ],
)
def test_a_selection_names_a_network_and_a_metric(text, method, key):
    assert selection(text, method).key == key
    assert selection("", method) is None


def test_a_metric_that_the_validation_set_does_not_define_is_refused():
    found = selection("validation/roc_auc")
    found.check(2, np.array([0, 1, 1]))
    with pytest.raises(InputError, match="is not defined for this validation set, which lacks a"):
        found.check(2, np.array([1, 1, 1]))
    with pytest.raises(InputError, match="does not exist for 3 classes"):
        found.check(3, np.array([0, 1, 2]))
    with pytest.raises(InputError, match="needs a validation set"):
        found.check(2, np.zeros(0, int))


@pytest.mark.parametrize(
    ("text", "method", "problem"),
    [
        ("test/accuracy", "fixmatch", "would choose the checkpoint by the test set"),
        ("test/teacher/accuracy", "fixmatch", "hold out images with data.validation=N"),
        ("validation/acuracy", "fixmatch", "did you mean 'validation/accuracy'"),
        ("accuracy", "fixmatch", "did you mean 'validation/accuracy'"),
        ("validation/tacher/accuracy", "fixmatch", "did you mean 'validation/teacher/accuracy'"),
        ("validation/", "fixmatch", "is no metric of the validation set"),
        ("loss/total", "fixmatch", "is no metric of the validation set"),
        ("validation/accuracy", "simclr", "this method reads no labels"),
    ],
)
def test_what_chooses_no_checkpoint_is_refused(text, method, problem, tmp_path):
    config = config_of(text, method)
    with pytest.raises(InputError, match=problem):
        train(config, tmp_path / "run")
    with pytest.raises(InputError, match=problem):
        together.train([(config, tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_select_is_a_selection_that_later_commands_use():
    assert Selection.of(configuration("mnist5k", chosen=",labels=40", select=TEXT)).key == KEY
    both = {"select": TEXT, "keep_best": TEXT}
    assert Selection.of(configuration("mnist5k", chosen=",labels=40", **both)).key == KEY
    both["keep_best"] = "validation/macro_f1"
    with pytest.raises(InputError, match="select=validation/accuracy and keep_best=validation/mac"):
        Selection.of(configuration("mnist5k", chosen=",labels=40", **both))
    with pytest.raises(InputError, match="select=test/accuracy would choose"):
        Selection.of(configuration("mnist5k", chosen=",labels=40", select="test/accuracy"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"select": "validation/accuracy"}, "select=validation/.* needs a validation set"),
        ({"keep_best": "validation/accuracy"}, "needs a validation set"),
        ({"keep_best": "validation/top_5", **VALIDATION}, "does not exist for 4 classes"),
        ({"keep_best": "validation/roc_auc", **VALIDATION}, "does not exist for 4 classes"),
    ],
)
def test_data_without_the_metric_is_refused(data, tmp_path, options, problem):
    with pytest.raises(InputError, match=problem):
        train_tiny(data, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def lines(*values, key=KEY):
    return [{"step": 5 * number, key: value} for number, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("metric", "values", "present", "expected"),
    [
        ("accuracy", (0.5, 0.9, 0.7), (5, 10, 15), (10, 0.9)),
        ("accuracy", (0.5, 0.9, 0.9), (5, 10, 15), (10, 0.9)),  # the first of equal ones
        ("accuracy", (0.5, 0.9, 0.7), (5, 15), (15, 0.7)),  # the best is gone
        ("accuracy", (0.5, 0.9, 0.7), (), None),
        ("negative_log_likelihood", (0.5, 0.2, 0.7), (5, 10, 15), (10, 0.2)),
        ("expected_calibration_error", (0.1, 0.2, 0.3), (5, 10, 15), (5, 0.1)),
    ],
)
def test_the_best_of_the_recorded_evaluations(metric, values, present, expected):
    chosen = selection(f"validation/{metric}")
    found = chosen.best(lines(*values, key=chosen.key), present)
    assert found == (None if expected is None else (expected[0], chosen.key, expected[1]))


class Marks(SimpleNamespace):
    """The part of Checkpoints that a BestCheckpoint uses."""

    def steps(self):
        return self.present

    def best(self):
        return self.marked

    def mark(self, best):
        self.marked = best


@pytest.mark.parametrize("text", ["validation/accuracy", ""])
def test_a_run_that_continues_marks_what_it_finds(text):
    marks = Marks(present=[5, 10], marked=Best(15, KEY, 0.99))  # it fell back behind step 15
    best = BestCheckpoint(selection(text), marks)
    best.begin(lines(0.6, 0.5))
    assert marks.marked == best.found == (Best(5, KEY, 0.6) if text else None)
    assert best.improved(15, {KEY: 0.6, "test/teacher/accuracy": 1.0}) is None
    assert best.improved(15, {"loss/total": 0.1}) is None
    better = best.improved(20, {KEY: 0.7})
    assert better == (Best(20, KEY, 0.7) if text else None)
    assert best.found == better


class Crash(Exception):
    pass


@pytest.fixture
def scripted(monkeypatch):
    """Runs see these validation accuracies in turn; None is a crash."""
    evaluate = run.Run.evaluate

    def scripted(*accuracies):
        left = list(accuracies)

        def replaced(self, *position):
            if (accuracy := left.pop(0)) is None:
                raise Crash
            return evaluate(self, *position) | {KEY: accuracy}

        monkeypatch.setattr(run.Run, "evaluate", replaced)

    return scripted


@pytest.mark.slow
def test_the_best_checkpoint_survives_newer_ones_and_a_crash(data, tmp_path, scripted, caplog):
    options = {"method": "supervised", "keep": 1, "save_every": STEPS, **VALIDATION}
    options |= {"keep_best": "validation/teacher/accuracy", "devices": 1}
    scripted(0.5, 0.9, 0.7, None)
    with pytest.raises(Crash):
        train_tiny(data, tmp_path / "run", **options)
    scripted(0.7, 0.9)  # it continues after step 10
    summary = train_tiny(data, tmp_path / "run", **options)
    assert sorted(each.name for each in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "10",
        "20",
        "best.json",
    ]
    (line,) = [line for line in read(tmp_path / "run") if line["step"] == 10]
    names = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1")
    names += ("negative_log_likelihood", "expected_calibration_error")
    networks = {
        network: {name: line[f"test/{network}/{name}"] for name in names}
        for network in ("teacher", "student")
    }
    assert summary["best"] == {"step": 10, "key": KEY, "value": 0.9, "test": networks}
    assert summary["validation"]["teacher"]["best"] == 0.9
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert load(tmp_path / "run", "best").step == 10
    assert load(tmp_path / "run").step == STEPS
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    settings["select"] = settings["keep_best"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    assert load(tmp_path / "run").step == 10
    assert "the checkpoint of step 10, which select=validation/teacher/accuracy" in caplog.text
    assert load(tmp_path / "run", "newest").step == STEPS
    (tmp_path / "run" / "checkpoints" / "best.json").unlink()  # as before the first evaluation
    assert load(tmp_path / "run").step == STEPS


@pytest.mark.slow
def test_runs_trained_together_keep_their_own_best(data, tmp_path):
    options = {"method": "supervised", "keep": 1, "save_every": STEPS, **VALIDATION}
    options["keep_best"] = "validation/balanced_accuracy"
    options |= {"data__mean": "(0.5,)", "data__std": "(0.25,)"}  # else of their training images
    runs = [
        (configuration(data, chosen=f",labels=16,seed={seed}", **options), tmp_path / str(seed))
        for seed in (0, 1)
    ]
    for (_, folder), summary in zip(runs, together.train(runs), strict=True):
        key = "validation/teacher/balanced_accuracy"
        values = {line["step"]: line[key] for line in read(folder) if key in line}
        best = max(values, key=values.get)
        assert (summary["best"]["step"], summary["best"]["value"]) == (best, values[best])
        assert load(folder, "best").step == best


@pytest.mark.slow
def test_a_run_without_keep_best_has_none(data, tmp_path):
    summary = train_tiny(data, tmp_path / "run", method="supervised", steps=5)
    assert "best" not in summary
    assert "validation" not in summary
    assert summary["teacher"]["metrics"]["accuracy"] == summary["teacher"]["last"]
    words = ["evaluate", f"--workdir={tmp_path / 'run'}", "--step=best"]
    _, error = start_program(words).communicate(timeout=200)
    assert "no best checkpoint: only a run with keep_best" in error
