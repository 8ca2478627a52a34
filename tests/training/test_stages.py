"""Runs in stages: one command, each stage resumes, and no stage starts that a later one forbids."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from helpers import assert_bitwise, on_host
from tiny_runs import OVERRIDES, PERIOD, STEPS, snapshot, state_of, without_extras, without_learning

from jaxmatch import load, train
from jaxmatch.config.flags import from_flags
from jaxmatch.config.saved import run_name
from jaxmatch.errors import InputError, Interrupted, Terminated
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import read
from jaxmatch.training import run

STAGES = ("1_simclr", "2_pseudo_label")


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


def configuration(data, chosen=",labels=16", **overrides):
    """SimCLR, then pseudo-labels; keywords write ``stage__section__key``."""
    values = {}
    for name in ("simclr", "pseudo_label"):
        values |= {f"stages.{name}.{key}": value for key, value in OVERRIDES.items()}
    values.pop("stages.simclr.algorithm.threshold")
    values["devices"] = 1
    values |= {
        f"stages.{key.replace('__', '.')}" if "__" in key else key: value
        for key, value in overrides.items()
    }
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    return from_flags(f"simclr+pseudo_label:npz:{data}{chosen}", flags)[0]


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "reference"
    with without_learning():
        train(configuration(data), workdir)
    return workdir


@pytest.fixture(scope="module")
def learned(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "learned"
    train(configuration(data), workdir)
    return workdir


def test_one_command_runs_all_stages(reference):
    present = {path.name for path in reference.iterdir()}
    assert present == {"config.json", "summary.json", *STAGES}
    assert {line["step"] for line in read(reference / STAGES[0])} == {5, 10, 15, 20}
    assert all("probe/knn" in line for line in read(reference / STAGES[0]))
    summary = json.loads((reference / "summary.json").read_text())
    first, second = (summary["stages"][name] for name in STAGES)
    assert summary["teacher"] == second["teacher"]
    assert set(first["probe"]) == {"knn", "linear"}
    assert first["teacher"] is None
    assert summary["images_seen"] == {"labeled": 8 * STEPS, "unlabeled": (16 + 16) * STEPS}
    assert summary["forward_images"] == first["forward_images"] + second["forward_images"]
    assert summary["seconds"] == pytest.approx(first["seconds"] + second["seconds"])


@pytest.mark.slow
def test_the_second_stage_starts_from_the_first_ones_encoder(data, learned, tmp_path):
    config = configuration(
        data, pseudo_label__optim__learning_rate=0, pseudo_label__model__bn_decay=1
    )
    shutil.copytree(learned / STAGES[0], tmp_path / "run" / STAGES[0])
    train(config, tmp_path / "run")
    first, second = (on_host(load(tmp_path / "run" / name).state) for name in STAGES)
    assert_bitwise(second.params["stem"], first.params["stem"])
    assert_bitwise(second.stats, first.stats)
    assert set(second.params) == {*first.params} - {"projection"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_resumes(stage, data, learned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(learned, run)
    (run / "summary.json").unlink()
    for name in STAGES[STAGES.index(stage) + 1 :]:
        shutil.rmtree(run / name)
    (run / stage / "summary.json").unlink()
    for step in (STEPS, STEPS - PERIOD):
        shutil.rmtree(run / stage / "checkpoints" / str(step))
    train(configuration(data), run)
    for name in STAGES:
        assert_bitwise(state_of(run / name), state_of(learned / name))


def test_a_finished_run_is_not_touched(data, reference):
    before = {path: value for path, value in snapshot(reference).items() if "_" in str(path.parent)}
    assert train(configuration(data), reference)["algorithm"] == "pseudo_label"
    after = snapshot(reference)
    inside = [path for path in before if path.parent != reference]
    assert all(after[path] == before[path] for path in inside)


def test_a_run_folder_is_either_level(reference):
    assert RunFolder.at(reference).path == reference / STAGES[1]
    assert RunFolder.at(reference / STAGES[0]).path == reference / STAGES[0]
    assert_bitwise(state_of(reference), state_of(reference / STAGES[1]))


def test_a_network_without_classifier_does_not_predict(reference):
    images = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="trained without labels"):
        load(reference / STAGES[0]).predict(images)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pseudo_label__model__depth": 10}, "another encoder"),
        ({"pseudo_label__data__labels": "6"}, "cannot be shared equally"),
        ({"chosen": ",labels=400"}, "asks for 100 images"),
        ({"simclr__data__labels": "8"}, "reads no labels"),
        ({"pseudo_label__algorithm__threshold": "x"}, "algorithm.threshold=x must be a number"),
    ],
)
def test_what_a_later_stage_forbids_stops_the_first(options, expected, data, tmp_path):
    with pytest.raises(InputError, match=expected):
        train(configuration(data, **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stage_from_which_a_later_one_has_begun_is_not_extended(data, tmp_path):
    """The later one would stay on the encoder of the shorter stage."""
    constant = {"simclr__optim__schedule": "constant", "simclr__optim__warmup_steps": 0}
    constant |= {"pseudo_label__optim__schedule": "constant", "pseudo_label__algorithm__ramp": 0}
    with without_learning():
        train(configuration(data, **constant), tmp_path)
        before = snapshot(tmp_path)
        longer = configuration(data, simclr__steps=2 * STEPS, **constant)
        with pytest.raises(
            InputError, match=rf"1_simclr cannot be extended from {STEPS} .* 2_pseudo_label has"
        ):
            train(longer, tmp_path)
        assert snapshot(tmp_path) == before
        last = configuration(data, pseudo_label__steps=2 * STEPS, **constant)
        assert train(last, tmp_path)["steps"] == 2 * STEPS


def test_a_folder_of_another_configuration_is_refused(data, reference):
    with pytest.raises(InputError, match=r"2_pseudo_label.*threshold: 0.4 -> 0.5"):
        train(configuration(data, pseudo_label__algorithm__threshold=0.5), reference)


def test_stages_share_seed_and_devices(data):
    config = configuration(data, seed=5, devices=2)
    assert {stage.seed for stage in config.stages.values()} == {5}
    assert {stage.devices for stage in config.stages.values()} == {2}
    assert run_name(config).startswith("simclr+pseudo_label-npz-colours-16-s5-")
    assert run_name(config) != run_name(configuration(data))
    assert run_name(configuration(data, seed=5)) == run_name(config)


@pytest.mark.parametrize(("number", "kind"), [(15, Terminated), (2, Interrupted)])
@pytest.mark.parametrize("moment", ["summary", "with_probes"])
@pytest.mark.slow
def test_a_signal_at_the_end_of_a_stage_keeps_the_next_from_starting(
    moment, number, kind, data, tmp_path, monkeypatch
):
    method = getattr(run.Run, moment)

    def signal_first(self, *arguments):
        os.kill(os.getpid(), number)
        return method(self, *arguments)

    monkeypatch.setattr(run.Run, moment, signal_first)
    config = configuration(data, simclr__steps=5, pseudo_label__steps=5)
    handlers = [signal.getsignal(each) for each in (2, 15)]
    with pytest.raises(kind, match=f"after the stage {STAGES[0]}"):
        train(config, tmp_path / "run")
    assert (tmp_path / "run" / STAGES[0] / "summary.json").exists()
    assert not (tmp_path / "run" / STAGES[1]).exists()
    assert [signal.getsignal(each) for each in (2, 15)] == handlers
