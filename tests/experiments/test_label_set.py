"""Many runs on one label set: the same ten labels, recorded by method and steps."""

import json

import pytest

from experiments.mnist5k import label_set_results
from experiments.mnist5k.label_set import CHANGES, RUNS, USUAL_STEPS, sweep
from jaxmatch.config.flags import from_flags
from jaxmatch.errors import InputError


@pytest.mark.parametrize("kind", RUNS)
def test_runs_differ_in_the_random_numbers_alone(kind):
    runs = list(sweep(kind))
    assert len({run["workdir"] for run in runs}) == len(runs) == sum(map(len, RUNS[kind].values()))
    for run in runs[:: len(runs) // 4]:
        words = [f"--config.{key}={run[key]}" for key in run.keys() - {"config", "workdir"}]
        config, _ = from_flags(run["config"], words)
        assert config.steps == CHANGES[kind].get("steps", USUAL_STEPS)
        assert f"{config.algorithm.name}-{config.seed}" == run["workdir"]
        assert config.data.split.endswith("mnist5k_labels10_seed1.json")


def test_another_kind_is_refused():
    with pytest.raises(InputError, match="give 'early', 'short'"):
        list(sweep("late"))


def write(folder, steps, accuracy):
    folder.mkdir(parents=True)
    figures = dict.fromkeys(("last", "mean_20", "median_20", "best", "evaluations"), accuracy)
    summary = {"evaluated": "teacher", "steps": steps, "forward_images": 1, "seconds": 1.0}
    summary |= {"images_seen": {"labeled": 1, "unlabeled": 1}, "teacher": figures}
    (folder / "summary.json").write_text(json.dumps(summary))
    line = {"step": 300, "test/teacher/accuracy": 0.3}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def test_short_runs_have_their_steps_in_the_key_and_runs_are_added(tmp_path):
    file = tmp_path / "label_set.json"
    write(tmp_path / "whole" / "fixmatch-0", USUAL_STEPS, 0.5)
    write(tmp_path / "early" / "supervised-10", 300, 0.3)
    write(tmp_path / "early" / "supervised-2", 300, 0.4)
    (tmp_path / "early" / "supervised-3").mkdir()  # it has not finished
    for folder in ("whole", "early"):
        label_set_results.main([str(tmp_path / folder), "-o", str(file)])
    found = json.loads(file.read_text())
    assert found["fixmatch,labels=10,seed=1"] == {"0": {"accuracy": 0.5, "curve": {"300": 0.3}}}
    assert list(found["supervised,labels=10,seed=1,steps=300"]) == ["2", "10"]
