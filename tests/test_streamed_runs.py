"""Whole runs over streamed sets: what a resident set computes, on real loader processes."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import assert_bitwise, assert_close, on_host
from PIL import Image
from test_multihost import finish, start
from tiny_runs import arguments, compiler_cache, state_of, train_tiny

from jaxmatch import load
from jaxmatch.errors import InputError
from jaxmatch.metrics import read

GOLDEN = Path(__file__).parent / "golden"
SHORT = {"steps": 10, "workers": 2, "chosen": ",labels=8", "data__image_size": 8}


@pytest.fixture(scope="module", autouse=True)
def cache():
    with compiler_cache():
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """48 training and 12 test JPEGs of two colours and many sizes."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.RandomState(0)
    for part, each in (("train", 24), ("test", 6)):
        for number, name in enumerate(("red", "blue")):
            (root / part / name).mkdir(parents=True)
            for image in range(each):
                levels = random.randint(0, 100, (*random.randint(8, 20, 2), 3))
                levels[..., 2 * number] += 120
                file = root / part / name / f"{image:02d}.jpg"
                Image.fromarray(levels.astype(np.uint8)).save(file, quality=95)
    return root


def test_a_streamed_run_is_the_resident_run(pictures, tmp_path):
    name = f"folder:{pictures}"
    for stream in (False, True):
        train_tiny(name, tmp_path / str(stream), data__stream=stream, **SHORT)
    streamed, held = (tmp_path / str(stream) for stream in (True, False))
    assert_bitwise(state_of(streamed), state_of(held))
    for ours, theirs in zip(read(streamed), read(held), strict=True):
        assert {**ours, "time/seconds": 0} == {**theirs, "time/seconds": 0}
    images = load(streamed).predict(np.zeros((3, 8, 8, 3), np.uint8))
    assert images.probabilities.shape == (3, 2)


@pytest.mark.slow
def test_crops_of_the_host_do_not_depend_on_workers_devices_or_a_restart(pictures, tmp_path):
    options = {**SHORT, "data__stream": True, "views__weak__area": "(0.3, 1.0)"}
    name = f"folder:{pictures}"
    train_tiny(name, tmp_path / "whole", **options)
    train_tiny(name, tmp_path / "other", **options | {"workers": 1, "devices": 2})
    assert_close(state_of(tmp_path / "other"), state_of(tmp_path / "whole"), 1e-4)
    # A run whose last checkpoints are gone goes on from the earlier ones.
    for step in (10,):
        shutil.rmtree(tmp_path / "other" / "checkpoints" / str(step))
    (tmp_path / "other" / "summary.json").unlink()
    train_tiny(name, tmp_path / "other", **options | {"workers": 3, "devices": jax.device_count()})
    assert_close(state_of(tmp_path / "other"), state_of(tmp_path / "whole"), 1e-4)


@pytest.mark.slow
def test_two_processes_load_their_shares_of_the_same_run(pictures, tmp_path):
    def words(workdir):
        options = {**SHORT, "devices": 4, "data__stream": True, "views__weak__area": "(0.3, 1.0)"}
        return ["train", *arguments(f"folder:{pictures}", **options), f"--workdir={workdir}"]

    for count in (1, 2):
        finish(start(count, 4 // count, words(tmp_path / str(count))))
    assert_close(on_host(state_of(tmp_path / "2")), on_host(state_of(tmp_path / "1")), 2e-5)
    for ours, theirs in zip(read(tmp_path / "2"), read(tmp_path / "1"), strict=True):
        for key in ("test/teacher/accuracy", "test/student/accuracy"):
            assert ours[key] == theirs[key]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fixmatch", "fixmatch_eman", "comatch", "simmatch"])
def test_an_imagenet_recipe_trains_through_the_real_pipeline(method, tmp_path):
    shutil.unpack_archive(GOLDEN / "imagenet.zip", tmp_path)
    listed = tmp_path / "labeled.txt"
    listed.write_text("n01440764_1.JPEG\nn01440764_5.JPEG\nn01443537_2.JPEG\nn01484850_3.JPEG\n")
    overrides = {
        "data.directory": tmp_path,
        "data.image_size": 32,
        "data.batch_size": 4,
        "data.ratio": 2,
        "model.bn_groups": 1,
        "steps": 4,
        "steps_per_call": 2,
        "log_every": 2,
        "eval_every": 4,
        "save_every": 4,
        "optim.warmup_steps": 1,
        "workers": 2,
        "devices": 2,
    }
    if method == "comatch":
        overrides["algorithm.queue"] = 32
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    config = f"--config={method}:tfds:imagenet2012,labels=12811,split={listed}"
    workdir = tmp_path / "run"
    finish(start(1, 2, ["train", config, *flags, f"--workdir={workdir}"]))
    lines = read(workdir)
    assert [line["step"] for line in lines] == [2, 4]
    assert all(np.isfinite(line["loss/total"]) for line in lines)
    assert "test/teacher/accuracy" in lines[-1]


def test_ops_before_the_crop_are_refused(pictures, tmp_path):
    options = {**SHORT, "data__stream": True, "views__weak__area": "(0.3, 1.0)"}
    with pytest.raises(InputError, match=r"views\.strong\.order=weak_first"):
        train_tiny(
            f"folder:{pictures}", tmp_path / "run", views__strong__order="ops_first", **options
        )
    assert not (tmp_path / "run").exists()
