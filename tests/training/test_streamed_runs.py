"""Whole runs over streamed sets: what a resident set computes, on real loader processes."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import assert_close, on_host
from PIL import Image
from processes import finish, start
from tiny_runs import arguments, start_program, state_of, train_tiny, without_extras

from jaxmatch import load
from jaxmatch.cli import main as cli
from jaxmatch.config.flags import from_flags
from jaxmatch.data.images import read_image
from jaxmatch.errors import InputError
from jaxmatch.record.metrics import read
from jaxmatch.record.run_data import load_new

GOLDEN = Path(__file__).parents[1] / "golden"
SHORT = {"steps": 10, "workers": 2, "chosen": ",labels=8", "data__image_size": 8}


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
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


@pytest.mark.parametrize(
    "options",
    [
        {"method": "pseudo_label", "devices": 1, "workers": 1, "steps": 5},
        pytest.param({}, marks=pytest.mark.slow),
    ],
    ids=["weak views", "strong views"],
)
def test_a_streamed_run_is_the_resident_run(pictures, tmp_path, options):
    name = f"folder:{pictures}"
    for stream in (False, True):
        train_tiny(name, tmp_path / str(stream), **{**SHORT, "data__stream": stream, **options})
    streamed, held = (tmp_path / str(stream) for stream in (True, False))
    # Two programs, of which one gathers the images: the compiler may round their sums differently.
    # Other pixels in two rows of one training image would change a weight by 4%.
    ours, theirs = state_of(streamed), state_of(held)
    np.testing.assert_array_equal(*(jax.random.key_data(each.key) for each in (ours, theirs)))
    assert_close(ours.replace(key=0), theirs.replace(key=0), 1e-6)
    for ours, theirs in zip(read(streamed), read(held), strict=True):
        assert {**ours, "time/seconds": 0} == pytest.approx({**theirs, "time/seconds": 0}, rel=1e-5)
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
@pytest.mark.parametrize(
    "method",
    [
        *("fixmatch", "fixmatch_eman", "comatch", "simmatch", "simmatch_v2", "s4l_rotation"),
        "flexmatch",
    ],
)
def test_an_imagenet_recipe_trains_through_the_real_pipeline(method, tmp_path):
    shutil.unpack_archive(GOLDEN / "imagenet.zip", tmp_path)
    # Four of the thousand classes have images here, and each class needs a labeled one.
    files = tmp_path / "imagenet2012" / "5.1.0"
    features, names = files / "features.json", files / "label.labels.txt"
    features.write_text(features.read_text().replace('"1000"', '"4"'))
    names.write_text("\n".join(names.read_text().split()[:4]))
    listed = tmp_path / "labeled.txt"
    listed.write_text("n01440764_1.JPEG\nn01491361_4.JPEG\nn01443537_2.JPEG\nn01484850_3.JPEG\n")
    overrides = {
        "data.directory": tmp_path,
        # The argument has the share of ImageNet that chooses the settings.
        "data.labels": 4,
        "data.split": listed,
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
    if method == "simmatch_v2":
        sides = (28, 24, 20, 16)  # of images of 32 pixels
        crops = from_flags(f"{method}:tfds:imagenet2012", [])[0].views.crops
        overrides["views.crops"] = tuple(
            (side, *area) for side, (_, *area) in zip(sides, crops, strict=True)
        )
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    preset = ",preset=torchssl" if method == "flexmatch" else ""
    config = f"--config={method}:tfds:imagenet2012,labels=12811{preset}"
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


@pytest.fixture
def damaged(pictures, tmp_path):
    """The pictures, of which a training and a test image are not readable.

    Of two processes with as many devices the second one evaluates the latter.
    """
    root = tmp_path / "damaged"
    shutil.copytree(pictures, root)
    for file in ("train/blue/07.jpg", "test/red/03.jpg"):
        (root / file).write_bytes((root / file).read_bytes()[:100])
    return root


@pytest.mark.slow
def test_an_unreadable_test_image_does_not_end_a_streamed_run(
    pictures, damaged, tmp_path, caplog, capsys
):
    options = {**SHORT, "data__stream": True, "steps": 5}
    summary = train_tiny(f"folder:{damaged}", tmp_path / "run", **options)
    found = load(tmp_path / "run")
    images = [
        pictures / "test" / name / f"{n:02d}.jpg" for name in ("blue", "red") for n in range(6)
    ]
    del images[9]
    labels = np.repeat([0, 1], [6, 5])
    levels = np.stack([read_image(file, (8, 8)) for file in images])
    for network in ("teacher", "student"):
        accuracy = np.mean(found.predict(levels, network).label == labels)
        assert summary[network]["last"] == accuracy
    name = str(damaged / "test" / "red" / "03.jpg")
    assert caplog.text.count(name) == 1
    assert "Left out, not readable as images" in caplog.text

    capsys.readouterr()
    cli.main(["evaluate", "--json", "--workdir", str(tmp_path / "run")])
    evaluated = json.loads(capsys.readouterr().out)
    assert [evaluated[network]["accuracy"] for network in ("teacher", "student")] == [
        summary[network]["last"] for network in ("teacher", "student")
    ]
    source = load_new(found.config).source
    label, confidence, probabilities = found.predict(source.test_images)
    assert np.flatnonzero(label < 0).tolist() == [9]
    assert np.isnan(confidence[9])
    assert np.isnan(probabilities[9]).all()


@pytest.mark.slow
def test_an_unreadable_test_image_is_an_error_where_strict(damaged, tmp_path):
    options = SHORT | {"data__stream": True, "data__strict": True, "chosen": ",labels=8"}
    (damaged / "train/blue/07.jpg").write_bytes((damaged / "train/blue/08.jpg").read_bytes())
    with pytest.raises(
        InputError, match=r"Not readable as images \(truncated: \S*test/red/03\.jpg\)\."
    ):
        train_tiny(f"folder:{damaged}", tmp_path / "run", **options)


@pytest.mark.slow
def test_pcl_clusters_a_set_with_an_unreadable_image(damaged, tmp_path, caplog):
    options = {**SHORT, "data__stream": True, "method": "pcl", "chosen": "", "workers": 1}
    options |= {"algorithm__queue": 40, "algorithm__clusters": "(3,)"}
    options |= {"algorithm__refresh_steps": 5, "algorithm__start_step": 0, "devices": 2}
    summary = train_tiny(f"folder:{damaged}", tmp_path / "run", **options)
    assert set(summary["probe"]) == {"knn", "linear"}
    assert "Replaced by the next ones, not readable as images" in caplog.text
    assert "Left out, not readable as images" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fixmatch", "pcl"])
def test_two_processes_leave_out_the_same_images(method, damaged, tmp_path):
    options = {**SHORT, "devices": 4, "data__stream": True, "method": method}
    if method == "pcl":
        options |= {"chosen": "", "algorithm__queue": 40, "algorithm__clusters": "(3,)"}
        options |= {"algorithm__refresh_steps": 5, "algorithm__start_step": 0}

    def words(workdir):
        return ["train", *arguments(f"folder:{damaged}", **options), f"--workdir={workdir}"]

    said = {
        count: finish(start(count, 4 // count, words(tmp_path / str(count)))) for count in (1, 2)
    }
    for count in (1, 2):
        assert "Left out, not readable as images" in said[count][0][1]
        assert said[count][0][1].count("test/red/03.jpg") == 1
        assert "train/blue/07.jpg" in said[count][0][1]  # whichever process met it
    assert said[2][1] == ("", "")
    assert_close(on_host(state_of(tmp_path / "2")), on_host(state_of(tmp_path / "1")), 2e-5)
    ours, theirs = (
        json.loads((tmp_path / count / "summary.json").read_text()) for count in ("2", "1")
    )
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    if method == "pcl":  # both make the probes that are missing, and nothing else
        summary = tmp_path / "2" / "summary.json"
        whole, lines = summary.read_text(), (tmp_path / "2" / "metrics.jsonl").read_bytes()
        summary.write_text(json.dumps({**ours, "probe": {**ours["probe"], "linear": None}}))
        finish(start(2, 2, words(tmp_path / "2")))
        assert summary.read_text() == whole
        assert (tmp_path / "2" / "metrics.jsonl").read_bytes() == lines
    # The processes stop together, whichever of them met the image: in training, then at evaluation.
    for file in ("train/blue/07.jpg", "test/red/03.jpg"):
        strict = [*words(tmp_path / file[:4]), "--config.data.strict=True"]
        for _, errors in finish(start(2, 2, strict), code=2):
            assert file in errors
        (damaged / file).write_bytes((damaged / file).with_name("05.jpg").read_bytes())


COUNTED = """
import sys
from jaxmatch.data import tfds
read = tfds._read_index
def counted(*arguments):
    print("index read", file=sys.stderr)
    return read(*arguments)
tfds._read_index = counted
"""


@pytest.mark.slow
def test_one_of_two_processes_reads_the_labels_of_all(tmp_path):
    """On hosts whose data folders are not shared."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        shutil.unpack_archive(GOLDEN / "imagenet.zip", folder)
    overrides = {"data.image_size": 16, "data.batch_size": 4, "data.ratio": 2, "steps": 2}
    overrides |= {"model.bn_groups": 1, "steps_per_call": 1, "log_every": 2, "eval_every": 2}
    overrides |= {"save_every": 2, "optim.warmup_steps": 1, "workers": 1, "devices": 2}
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    words = ["train", "--config=fixmatch:tfds:imagenet2012,labels=all", *flags]
    words.append(f"--workdir={tmp_path / 'run'}")
    environments = [{"TFDS_DATA_DIR": str(folder)} for folder in folders]
    said = finish(start(2, 1, words, before=(COUNTED,), environments=environments))
    assert said[0][1].count("index read") == 2
    assert "index read" not in said[1][1]
    assert len(list(folders[0].rglob("jaxmatch-*.npz"))) == 2
    assert list(folders[1].rglob("jaxmatch-*")) == []
    shard = next(folders[1].rglob("*train.array_record*"))
    shard.write_bytes(shard.read_bytes() + bytes(9))
    shutil.rmtree(tmp_path / "run")
    for _, errors in finish(start(2, 1, words, environments=environments), code=2):
        assert "processes 1 have another prepared imagenet2012 than process 0" in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_loaders_end_with_the_run(number, pictures, tmp_path):
    """However it ends: SIGKILL, or a second Ctrl-C, for neither of which it can clean up."""
    options = SHORT | {"data__stream": True, "steps": 5000, "save_every": 5000}
    words = ["train", *arguments(f"folder:{pictures}", **options), f"--workdir={tmp_path / 'run'}"]
    program = start_program(
        words, before="import time; from jaxmatch.runtime import checkpoint\n" + SLOW
    )
    while program.poll() is None and not read(tmp_path / "run"):
        time.sleep(0.05)
    workers = children(program.pid)
    assert len(workers) >= 2
    program.send_signal(number)
    if number == signal.SIGINT:
        time.sleep(1)
        program.send_signal(number)
    program.communicate(timeout=60)
    assert program.returncode == -number
    end = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(alive, workers))


SLOW = "checkpoint.Checkpoints.save = lambda *a: time.sleep(99)"


def children(process):
    """The processes that another one has started."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(number) for task in tasks for number in task.read_text().split()]


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().split()[2]
