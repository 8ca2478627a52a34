"""Classes, confusions and calibration of runs as parts of a page."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxmatch.evaluation.forward import Answers
from jaxmatch.evaluation.metrics import evaluation
from jaxmatch.report import judged
from jaxmatch.report.results import Group, Run, Stage


def run(seed, classes, images=400, evaluated="teacher", settings=None, **changed):
    """A finished run whose predictions are random, with all metrics."""
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(len(classes)), images)
    labels = random.integers(0, len(classes), images)
    metrics = evaluation(Answers(probabilities, np.ones(images, bool)), labels, classes)
    values = {"last": 0.5, "metrics": {**metrics, **changed}}
    summary = {"evaluated": evaluated, "steps": 20, evaluated: values}
    stage = Stage(name="", settings={"seed": seed}, lines=[], summary=summary, finished=True)
    return Run(folder=None, method="m", stages=(stage,))


def group(label, *runs):
    return Group(label=label, runs=runs, differs={})


class Text(HTMLParser):
    """Checks that elements are closed, and collects the cells of tables and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in ("br", "img", "meta", "source"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


CLASSES = ("<b>a&", "b", "c")


def test_a_cell_is_the_percentage_of_its_row_over_all_seeds():
    runs = [run(seed, CLASSES) for seed in range(2)]
    matrix = sum(np.array(one.stages[0].summary["teacher"]["metrics"]["confusion"]) for one in runs)
    page = Text(judged.sections([group("m", *runs)]))
    rows = {row[0]: row[1:] for row in page.rows if row and row[0] in CLASSES}
    expected = np.rint(100 * matrix / matrix.sum(1, keepdims=True))
    for name, row in zip(CLASSES, matrix, strict=True):  # the last table has the counts
        assert rows[name] == [f"{count:,}" for count in row]
    drawn = next(row for row in page.rows if len(row) == 4 and row[0] == "b")
    assert list(map(float, drawn[1:])) == expected[1].tolist()


def test_bars_are_as_long_as_the_mean_recall():
    runs = [run(seed, CLASSES) for seed in range(3)]
    recall = [
        one.stages[0].summary["teacher"]["metrics"]["per_class"]["b"]["recall"] for one in runs
    ]
    text = judged.class_bars({"m": judged.metrics_of(group("m", *runs))})
    assert f"width:{100 * np.mean(recall):.1f}%" in text
    assert "&lt;b&gt;a&amp;" in text
    assert "<b>a" not in text


def test_bins_of_seeds_are_added():
    first, second = (
        run(seed, CLASSES).stages[0].summary["teacher"]["metrics"]["reliability"] for seed in (0, 1)
    )
    joined = judged._joined([first, second])
    assert joined["count"] == np.add(first["count"], second["count"]).tolist()
    for place, count in enumerate(joined["count"]):
        sums = [one["count"][place] * (one["accuracy"][place] or 0) for one in (first, second)]
        assert joined["accuracy"][place] == pytest.approx(sum(sums) / count if count else 0)


def test_what_a_run_lacks_is_left_out():
    old = run(0, CLASSES)
    metrics = old.stages[0].summary["teacher"]["metrics"]
    del metrics["reliability"], metrics["confusion"]
    text = judged.sections([group("old", old)])
    assert "Classes" in text
    assert "Confidence" not in text
    assert "Confusions" not in text
    none = run(0, CLASSES)
    none.stages[0].summary["teacher"].pop("metrics")
    free = run(0, CLASSES)
    free.stages[0].summary["teacher"] = None
    assert judged.sections([group("none", none), group("free", free)]) == ""


def test_many_classes_and_groups_keep_the_page_small():
    classes = tuple(f"class {number}" for number in range(100))
    groups = [group(f"m{number}", run(number, classes)) for number in range(9)]
    text = judged.sections(groups)
    Text(text)
    assert len(text) < 200_000
    assert "The 24 of 100 classes with the least recall." in text
    assert "Of 9 groups the first 7 are drawn." in text
    assert "100 classes are too many to draw." in text
    assert "The most frequent confusions" in text


def without_images(one, *names):
    """The run with classes that have no test images."""
    for name in names:
        row = one.stages[0].summary["teacher"]["metrics"]["per_class"][name]
        row.update(recall=0.0, f1=0.0, support=0, precision=0.25)
    return one


def test_a_class_without_images_has_neither_recall_nor_f1():
    both = [without_images(run(seed, CLASSES), "b") for seed in range(2)]
    text = judged.class_bars({"m": judged.metrics_of(group("m", *both))})
    assert "<span>- · precision 25.0 · F1 -</span>" in text
    other = run(2, CLASSES)
    row = other.stages[0].summary["teacher"]["metrics"]["per_class"]["b"]
    text = judged.class_bars({"m": judged.metrics_of(group("m", *both, other))})
    assert f"<span>{100 * row['recall']:.1f}% · precision" in text  # of the run that has images


def test_classes_without_images_are_not_the_worst():
    classes = tuple(f"class {number}" for number in range(100))
    bare = [f"class {number}" for number in range(50)]
    text = judged.sections([group("m", without_images(run(0, classes), *bare))])
    bars = text.partition('<div class="bars">')[2].partition("<h2>")[0]
    shown = [number for number in range(100) if f"<div>class {number}<br>" in bars]
    assert len(shown) == 24
    assert min(shown) >= 50


def test_headings_tell_the_step():
    one, other = run(0, CLASSES), run(1, CLASSES)
    text = judged.sections([group("m", one)])
    for heading in ("Classes", "Confusions", "Confidence"):
        assert f"<h2>{heading}, at step 20, the last</h2>" in text
    other.stages[0].summary["steps"] = 30
    text = judged.sections([group("m", one), group("n", other)])
    assert "<h2>Classes, at the last step</h2>" in text


def test_groups_with_other_classes_have_bars_of_their_own():
    text = judged.sections([group("x", run(0, CLASSES)), group("y", run(0, ("p", "q")))])
    assert "<h2>Classes: x, at step 20, the last</h2>" in text
    assert "<h2>Classes: y, at step 20, the last</h2>" in text


def test_a_perfect_network_lies_on_the_dashed_line():
    reliability = {
        "count": [0] * 14 + [10],
        "accuracy": [None] * 14 + [1.0],
        "confidence": [None] * 14 + [1.0],
    }
    text = judged._reliability({"m": judged._joined([reliability])})
    (x, y) = re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text).groups()
    assert float(x) == judged.LEFT + judged.SPAN
    assert float(y) == judged.BOTTOM - judged.SPAN
