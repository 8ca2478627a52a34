"""The candidates for short runs: each is a configuration, and the table has the finished ones."""

import json

import pytest

from experiments.mnist5k import slow_starts
from jaxmatch.config.flags import from_flags
from jaxmatch.errors import InputError


def test_every_run_is_a_configuration_of_1500_steps():
    runs = list(slow_starts.sweep())
    assert len({run["workdir"] for run in runs}) == len(runs) == 3 * 13
    for run in runs:
        words = [f"--config.{key}={run[key]}" for key in run.keys() - {"config", "workdir"}]
        config, _ = from_flags(run["config"], words)
        stages = [config.stages[name] for name in config.order] if "order" in config else [config]
        assert sum(stage.steps for stage in stages) == 1500
        assert stages[-1].data.validation == 500


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="did you mean 'simmatch_v2'"):
        list(slow_starts.sweep("simmatch"))


def write(folder, steps, accuracy):
    folder.mkdir(parents=True)
    summary = {"evaluated": "teacher", "steps": steps, "forward_images": 1, "seconds": 1.0}
    summary |= {"images_seen": {"labeled": 1, "unlabeled": 1}}
    (folder / "summary.json").write_text(json.dumps(summary))
    line = {"step": steps, "validation/teacher/accuracy": accuracy}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def test_the_table_counts_the_steps_of_both_stages(tmp_path):
    for seed, accuracy in ((3, 0.9), (4, 0.8)):
        write(tmp_path / f"selfmatch-450-s{seed}" / "1_simclr", 450, 0.1)
        write(tmp_path / f"selfmatch-450-s{seed}" / "2_fixmatch", 1050, accuracy)
    (tmp_path / "selfmatch-750-s3" / "1_simclr").mkdir(parents=True)
    *_, last = slow_starts.table(tmp_path).splitlines()
    assert last == "| `selfmatch` | 450 | 1500 | 90.0 / 80.0 | 85.0 |"
