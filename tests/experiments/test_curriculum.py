"""A run in phases of different ratios: it ends, counts its images, and refuses what cannot work."""

import json

import pytest

import jaxmatch
from experiments.curriculum.train import phase_of, train
from jaxmatch.config.flags import from_flags
from jaxmatch.errors import InputError
from jaxmatch.record.metrics import read


def config():
    small = {"steps": 6, "steps_per_call": 1, "log_every": 2, "eval_every": 6, "save_every": 6}
    flags = [f"--config.{key}={value}" for key, value in small.items()]
    flags += ["--config.model.depth=10", "--config.model.width=0.25", "--config.data.batch_size=4"]
    return from_flags("fixmatch:digits,labels=20", flags)[0]


def test_phases_are_as_equal_as_may_be():
    assert [phase_of(call, 7, 3) for call in range(7)] == [0, 0, 0, 1, 1, 2, 2]


@pytest.mark.slow
def test_one_phase_is_the_run_of_that_ratio_and_more_are_not(tmp_path):
    def losses(folder):
        return [(line["loss/supervised"], line["loss/unsupervised"]) for line in read(folder)]

    plain = config()
    plain.data.ratio = 3
    jaxmatch.train(plain, tmp_path / "plain")
    train(config(), tmp_path / "one", [3])
    summary = train(config(), tmp_path / "grown", [1, 3])
    assert summary["steps"] == 6
    assert losses(tmp_path / "one") == losses(tmp_path / "plain")
    assert losses(tmp_path / "grown") != losses(tmp_path / "plain")
    assert json.loads((tmp_path / "grown/config.json").read_text())["data"]["ratio"] == 3


def test_a_used_folder_or_too_many_phases_are_refused(tmp_path):
    with pytest.raises(InputError, match="fewer --ratios"):
        train(config(), tmp_path / "new", [1] * 7)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/config.json").write_text("{}")
    with pytest.raises(InputError, match="not empty"):
        train(config(), tmp_path / "used", [1, 3])
