"""The ablation of FixMatch's threshold: its points, and what is made of finished runs."""

import io
import json

import pytest
from PIL import Image

from experiments.threshold import results
from experiments.threshold.sweep import THRESHOLDS
from jaxmatch.cli import sweep
from jaxmatch.errors import InputError

# Of the last four lines two are in the last 20% of the steps: 150 > 120.
COVERAGE = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.4, 0.8]
ACCURACY = [0.5] * 8 + [0.9, 0.75]


def write(base, threshold, accuracy=0.9, changed=None):
    """A run folder of ten lines, without pseudo-label accuracies where nothing is confident."""
    folder = base / f"tau{threshold}-s0"
    folder.mkdir(parents=True)
    config = {"seed": 0, "algorithm": {"threshold": threshold if changed is None else changed}}
    (folder / "config.json").write_text(json.dumps(config))
    lines = []
    for number, (coverage, right) in enumerate(zip(COVERAGE, ACCURACY, strict=True), 1):
        line = {"step": 15 * number, "pseudo/coverage": coverage, "pseudo/accuracy": right}
        if threshold > 1:
            line["pseudo/coverage"] = 0.0
            del line["pseudo/accuracy"]
        lines.append(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    summary = {"steps": 150, "seconds": 30.0, "teacher": {"last": accuracy}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_points_differ_in_the_threshold_alone(tmp_path):
    found = sweep.points(str(results.HERE / "sweep.py"), base=tmp_path)
    assert [point.config.algorithm.threshold for point in found] == list(THRESHOLDS)
    assert [point.workdir.name for point in found] == [f"tau{tau}-s0" for tau in THRESHOLDS]
    assert len({(point.config.steps, point.config.data.labels) for point in found}) == 1
    assert {0.0, 0.95, 1.01} < set(THRESHOLDS)


def test_figures_are_of_the_last_fifth_of_the_steps(tmp_path):
    entry = results.entry(write(tmp_path, 0.95, accuracy=0.931))
    assert entry["accuracy"] == 0.931
    assert entry["coverage"] == pytest.approx((0.4 + 0.8) / 2)
    assert entry["error"] == pytest.approx((0.4 * 0.1 + 0.8 * 0.25) / (0.4 + 0.8))


def test_without_confident_labels_there_is_no_error(tmp_path):
    entry = results.entry(write(tmp_path, 1.01))
    assert (entry["coverage"], entry["error"]) == (0, None)


def test_command_writes_table_picture_and_figures(tmp_path, capsys):
    for threshold, accuracy in ((0.0, 0.6), (0.95, 0.9), (1.01, 0.8)):
        write(tmp_path / "runs", threshold, accuracy)
    (tmp_path / "runs" / "tau0.5-s0").mkdir()  # it has not finished
    results.main([str(tmp_path / "runs"), "-o", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| tau | seeds | test accuracy | coverage | pseudo-label error |"
    assert lines[2] == "| 0 | 0 | 60.0 | 60.0 | 20.0 |"
    assert lines[3] == "| 0.5 | not run |  |  |  |"
    assert lines[-1] == "| 1.01 | 0 | 80.0 | 0.0 |  |"
    assert len(lines) == 2 + len(THRESHOLDS)
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(kept) == ["0.0", "0.95", "1.01"]
    assert kept["0.95"]["0"]["seconds"] == 30
    with Image.open(io.BytesIO((tmp_path / "out" / "threshold.png").read_bytes())) as image:
        assert image.width > 2 * image.height


@pytest.mark.slow
def test_several_seeds_have_a_deviation():
    entry = {"coverage": 0.5, "error": 0.1}
    found = {"0.95": {"0": {"accuracy": 0.9, **entry}, "1": {"accuracy": 0.94, **entry}}}
    assert "| 0.95 | 0, 1 | 92.0 ± 2.8 | 50.0 ± 0.0 | 10.0 ± 0.0 |" in results.table(found)
    assert results.plot(found)


def test_a_run_of_another_threshold_is_refused(tmp_path):
    write(tmp_path, 0.9, changed=0.95)
    with pytest.raises(InputError, match="another threshold"):
        results.collect(tmp_path)
