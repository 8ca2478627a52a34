"""What evaluate prints for people, and the end of a run."""

import io
import shlex
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jaxmatch.cli.main import parser
from jaxmatch.evaluation.forward import Answers
from jaxmatch.evaluation.metrics import evaluation
from jaxmatch.report.scores import ending, scores


def text_of(content, width=80):
    """The tables as plain text."""
    file = io.StringIO()
    Console(file=file, width=width, highlight=False, markup=False).print(content)
    return file.getvalue()


def found(classes, names=None, **more):
    """What evaluate found of two images of each class, of which the student confuses one each."""
    labels = np.arange(2 * classes) % classes
    rows = {"teacher": labels, "student": np.where(labels == np.arange(2 * classes), labels, 0)}
    names = names or [f"class {number}" for number in range(classes)]

    def metrics(predicted):
        probabilities = np.eye(classes, dtype=np.float32)[predicted]
        return evaluation(Answers(probabilities, np.ones(len(labels), bool)), labels, names)

    networks = {network: metrics(predicted) for network, predicted in rows.items()}
    return {"step": 1500, "evaluated": "student", **networks, **more}


@pytest.mark.parametrize("validated", [False, True])
def test_a_row_for_each_network_and_set(validated):
    whole = found(2, ["cat [x]", "dog"])
    if validated:
        whole["validation"] = {key: whole[key] for key in ("teacher", "student")}
    lines = text_of(scores(whole)).splitlines()
    assert lines[0] == "Checkpoint of step 1,500"
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines]
    assert ["teacher", "test", "4", "100.0%", "100.0%", "100.0%"] in rows
    assert ["student", "(reported)", "test", "4", "75.0%", "75.0%", "73.3%"] in rows
    assert (["teacher", "validation", "4", "100.0%", "100.0%", "100.0%"] in rows) == validated
    assert ["cat", "[x]", "2", "100.0%", "66.7%", "80.0%"] in rows
    assert ["dog", "2", "50.0%", "100.0%", "66.7%"] in rows


def test_many_classes_have_no_table_of_their_own():
    assert "class 19" in text_of(scores(found(20)))
    assert "class 1" not in text_of(scores(found(21)))


def test_intervals_stand_in_brackets_and_the_temperature_below():
    whole = found(
        2, ["cat", "a dog with a long name"], bootstrap={"resamples": 500, "confidence": 0.9}
    )
    for network in ("teacher", "student"):
        each = whole[network]
        each["intervals"] = {name: [0.5, 0.875] for name in each if isinstance(each[name], float)}
        each["intervals"]["roc_auc"] = None
        shares = {"precision": [0.25, 1.0], "recall": [0.5, 0.755], "f1": None}
        each["intervals"]["per_class"] = dict.fromkeys(each["per_class"], shares)
    whole["validation"] = {key: whole[key] for key in ("teacher", "student")}
    metrics = {"negative_log_likelihood": 0.5, "expected_calibration_error": 0.123}
    each = {"temperature": 1.84, "before": metrics, "after": metrics}
    whole["calibration"] = {"images": 200, "teacher": each, "student": each}
    text = text_of(scores(whole))
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split("  ") for line in text.splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert rows.count(["accuracy", "100.0% (50.0 to 87.5)", "75.0% (50.0 to 87.5)"]) == 2
    assert ["4 test images", "teacher", "student (reported)"] in rows
    assert ["4 validation images", "teacher", "student (reported)"] in rows
    assert ["area under ROC", "1.000", "0.750"] in rows
    assert ["(50.0 to 75.5)", "(25.0 to 100.0)"] in rows
    assert ["cat", "2", "100.0%", "66.7%", "80.0%"] in rows
    words = " ".join(text.split())
    assert "temperature 1.84 (ECE 0.123 -> 0.123 on 200 validation images)" in words
    assert "in brackets: 90% intervals, over 500 resampled sets of images" in words


SUMMARY = {"algorithm": "simclr", "evaluated": "student", "steps": 1500, "seconds": 90.0}


def test_a_run_without_labels_ends_with_its_probes():
    summary = SUMMARY | {"teacher": None, "student": None, "probe": {"knn": 0.75, "linear": None}}
    first, probes, following, *commands = ending(Path("runs/my run"), summary)
    assert first == "simclr, 1,500 steps in 1.5 minutes: 'runs/my run'"
    assert probes == "test accuracy of probes of the student's features: knn 75.0%"
    assert following == "next:"
    words = [shlex.split(command) for command in commands]
    assert [command[1] for command in words] == ["probe", "train"]
    for command in words:
        _, overrides = parser().parse_known_args(command[1:])
        assert all(word.startswith("--config.init_from=") for word in overrides)
    assert ending(Path("run"), summary | {"probe": None})[1] == "next:"


def test_a_run_of_an_older_version_ends_without_balanced_accuracy():
    summary = SUMMARY | {"teacher": None, "student": {"last": 0.5}}
    assert ending(Path("run"), summary)[1] == "test accuracy of the student: 50.0%"


def test_two_classes_end_with_their_area_under_roc():
    metrics = {"balanced_accuracy": 0.6, "roc_auc": 0.7536}
    summary = SUMMARY | {"student": {"last": 0.5, "metrics": metrics}}
    expected = "test accuracy of the student: 50.0% (balanced 60.0%, area under ROC 0.754)"
    assert ending(Path("run"), summary)[1] == expected


@pytest.mark.parametrize(("accuracy", "told"), [(0.634, True), (0.688, True), (0.7, False)])
def test_an_accuracy_that_the_most_frequent_class_has_is_told(accuracy, told):
    per_class = {"defective": {"support": 312}, "intact": {"support": 688}}
    metrics = {"balanced_accuracy": 0.6, "per_class": per_class}
    summary = {
        "algorithm": "fixmatch",
        "evaluated": "teacher",
        "steps": 4,
        "seconds": 60.0,
        "teacher": {"last": accuracy, "metrics": metrics},
    }
    line = (
        "68.8% of the test images are 'intact', so that this answer alone has as good an accuracy; "
        "read the balanced one"
    )
    assert (line in ending(Path("run"), summary)) == told


@pytest.mark.parametrize(("count", "told"), [(None, ""), (1000, " on 1,000 of the test images")])
def test_which_images_the_best_checkpoint_was_tested_on(count, told):
    best = {"key": "validation/accuracy", "value": 0.5, "step": 20, "selected": True}
    best |= {"test": {"teacher": {"accuracy": 0.75}}}
    best |= {} if count is None else {"test_images": count}
    summary = SUMMARY | {"evaluated": "teacher", "teacher": {"last": 0.7}, "best": best}
    (line,) = (each for each in ending(Path("run"), summary) if each.startswith("best "))
    assert f"with test accuracy 75.0%{told} (evaluate, predict and export use it)" in line
