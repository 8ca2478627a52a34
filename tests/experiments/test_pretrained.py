"""The study of the first classifier: its points, and what is made of finished runs."""

import json

import pytest

from experiments.pretrained import first_classifier_results as results
from experiments.pretrained.first_classifier import KINDS, RATES, SEEDS, STEPS
from jaxmatch.cli import sweep
from jaxmatch.errors import InputError


def write(base, name, accuracies=(0.5, 0.6, 0.7)):
    """A run folder with a line of metrics every 15 steps."""
    folder = base / name
    folder.mkdir(parents=True)
    tested = dict(zip(results.STEPS_SHOWN, accuracies, strict=True))
    lines = []
    for step in range(15, STEPS + 15, 15):
        line = {"step": step, "pseudo/coverage": 0.2 if step > 45 else 0.0}
        if step in tested:
            line["test/teacher/accuracy"] = tested[step]
        lines.append(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "summary.json").write_text("{}")
    svc = {"svc": {"test": {"accuracy": 0.75}}}
    (folder / "baselines.json").write_text(json.dumps({"baselines": svc}))
    return folder


def test_points_differ_in_classifier_rate_and_seed_alone(tmp_path):
    found = sweep.points(str(results.HERE / "first_classifier.py"), base=tmp_path)
    assert len(found) == len(KINDS) * len(RATES) * len(SEEDS)
    assert {point.config.classifier_init for point in found} == set(KINDS)
    assert {point.config.optim.learning_rate for point in found} == set(RATES)
    assert len({(point.config.steps, point.config.init_from) for point in found}) == 1


def test_entries_are_means_over_lines(tmp_path):
    entry = results.entry(write(tmp_path, "random-lr0.03-s0"))
    assert entry["coverage at first"] == pytest.approx(0.2 * 2 / 5)  # steps 60 and 75 of 5 lines
    assert entry["coverage"] == pytest.approx(0.2 * 17 / 20)
    assert [entry[f"accuracy at {step}"] for step in results.STEPS_SHOWN] == [0.5, 0.6, 0.7]


def test_the_table_has_a_row_for_each_point_and_baseline(tmp_path):
    for seed, accuracy in ((0, 0.7), (1, 0.8)):
        write(tmp_path, f"logistic-lr0.03-s{seed}", (0.5, 0.6, accuracy))
    rows = results.table(results.collect(tmp_path)).splitlines()
    assert len(rows) == 2 + len(KINDS) * len(RATES) + 1
    (row,) = [row for row in rows if row.startswith("| 0.03 | logistic")]
    assert row.split(" | ")[2] == "0, 1"
    assert row.endswith("75.0 ± 7.1 |")
    assert rows[-1].startswith("| - | SVC on pixels | 0, 1 |")
    assert rows[-1].endswith(" 75.0 ± 0.0 |")
    assert sum("not run" in row for row in rows) == 5
    assert len({row.count("|") for row in rows}) == 1
    with pytest.raises(InputError, match="holds no finished run"):
        results.collect(tmp_path / "nowhere")
