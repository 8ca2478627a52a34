"""``calibration.json``: what it holds for several steps, and that a damaged one is refused."""

import json

import pytest

from jaxmatch.errors import InputError
from jaxmatch.record.folder import RunFolder


def entry(temperature, images=200):
    metrics = {"negative_log_likelihood": 0.5, "expected_calibration_error": 0.1}
    each = {"temperature": temperature, "before": metrics, "after": metrics}
    return {"images": images, "teacher": each, "student": each}


def test_the_newest_step_is_the_object_itself(tmp_path):
    files = RunFolder(tmp_path)
    assert files.read_calibrations() == {}
    files.write_calibrations({20: entry(1.5)})
    assert json.loads(files.calibration_file.read_text()) == {"step": 20, **entry(1.5)}
    both = {20: entry(1.5), 5: entry(2.0)}
    files.write_calibrations(both)
    content = json.loads(files.calibration_file.read_text())
    assert content == {"step": 20, **entry(1.5), "other_steps": {"5": entry(2.0)}}
    assert files.read_calibrations() == both
    files.write_calibrations({})
    files.write_calibrations({})
    assert not files.calibration_file.exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"step": None}, "the step is missing"),
        ({"step": 2.5}, "the step is missing"),
        ({"images": "many"}, "temperatures of step 20 are incomplete"),
        ({"student": None}, "temperatures of step 20 are incomplete"),
        ({"teacher": {"temperature": 0}}, "temperatures of step 20 are incomplete"),
        ({"teacher": {"temperature": "1.5"}}, "temperatures of step 20 are incomplete"),
        ({"teacher": {"temperature": float("nan")}}, "temperatures of step 20 are incomplete"),
        ({"teacher": {"temperature": 1.5}}, "temperatures of step 20 are incomplete"),
        ({"other_steps": [5]}, "the step is missing"),
        ({"other_steps": {"five": entry(1)}}, "other names than numbers"),
        ({"other_steps": {"5": {"images": 3}}}, "temperatures of step 5 are incomplete"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, problem):
    files = RunFolder(tmp_path)
    files.calibration_file.write_text(json.dumps({"step": 20, **entry(1.5), **change}))
    with pytest.raises(InputError, match=rf"calibration\.json is damaged \(.*{problem}") as error:
        files.read_calibrations()
    assert "remove it, and jaxmatch calibrate" in str(error.value)
