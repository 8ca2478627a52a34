"""Runs in buckets: a commit is a marker written last, and a run ends as one on a disk does.

The slow tests talk to servers on this machine: moto for s3://, gcp-storage-emulator for gs://.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from buckets import in_memory, serving
from helpers import assert_bitwise, toy_images
from PIL import Image
from processes import finish, start
from tiny_runs import arguments, start_program, state_of, without_seconds

from jaxmatch.data import sources, splits
from jaxmatch.data.source import Reading
from jaxmatch.errors import DiskError, InputError
from jaxmatch.record.metrics import MetricsLog, read
from jaxmatch.runtime import paths
from jaxmatch.runtime.checkpoint import Checkpoints, check_place
from jaxmatch.weights.files import read_weights, write_weights

STEPS, PERIOD = 60, 5
OPTIONS = {"steps": STEPS, "eval_every": 10, "keep": 2}


@pytest.fixture
def bucket():
    with in_memory() as files:
        yield files


def state(step):
    return {"a": jnp.arange(6.0) * step, "none": jnp.zeros((0, 3)), "step": jnp.int32(step)}


def saved(folder, *steps, keep=3):
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))
        checkpoints.wait()
        return checkpoints.steps()


def restored(folder):
    with Checkpoints(folder) as checkpoints:
        found = checkpoints.restore(jax.eval_shape(lambda: state(1)))
    if found is not None:
        assert_bitwise(jax.device_get(found[0]), jax.device_get(state(found[1])))
    return found and found[1]


def test_checkpoints_in_a_bucket(bucket):
    folder = paths.path("s3://bucket/run/checkpoints")
    assert restored(folder) is None
    assert saved(folder, 1, 2, 3, 4, keep=2) == [3, 4]
    assert restored(folder) == 4
    assert {name.partition("/")[0] for name in paths.files_in(folder)} == {"3", "4"}
    last = max(i for i, name in enumerate(bucket.written) if "/4/" in name)
    assert bucket.written[last].endswith("4/manifest.json")  # the marker comes last


def test_a_folder_without_its_list_is_no_checkpoint_and_is_swept(bucket):
    folder = paths.path("s3://bucket/run/checkpoints")
    saved(folder, 1, 2)
    (folder / "2" / "manifest.json").unlink()
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [1]
        assert restored(folder) == 1
        checkpoints.save(5, state(5))
        checkpoints.wait()
    assert {name.partition("/")[0] for name in paths.files_in(folder)} == {"1", "5"}


def test_a_damaged_checkpoint_in_a_bucket_is_passed_over_and_replaced(bucket, caplog):
    folder = paths.path("s3://bucket/run/checkpoints")
    saved(folder, 1, 2)
    paths.write_whole(folder / "2" / "tensors.json", b"{}")
    assert restored(folder) == 1
    assert "has changed since it was written" in caplog.text
    saved(folder, 2)
    assert restored(folder) == 2


def test_a_failed_upload_is_a_disk_error_and_leaves_the_older_ones(bucket, monkeypatch):
    folder = paths.path("s3://bucket/run/checkpoints")
    saved(folder, 1)
    write = paths.write_whole

    def fail(path, content):
        if path.name == "_METADATA":
            raise OSError(5, "the network is down")
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("jaxmatch.runtime.checkpoint.write_whole", fail)
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(2, state(2))
            with pytest.raises(DiskError, match=r"step 2 could not be .*the network is down"):
                checkpoints.wait()
    assert restored(folder) == 1
    assert {name.partition("/")[0] for name in paths.files_in(folder)} == {"1"}


def test_several_processes_need_a_bucket_that_orbax_writes_to(bucket, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    check_place(tmp_path)
    with pytest.raises(InputError, match=r"several processes cannot save to s3://bucket/run"):
        check_place(paths.path("s3://bucket/run"))


def test_metrics_in_a_bucket_are_there_before_a_checkpoint_relies_on_them(bucket):
    run = paths.path("s3://bucket/run")
    with MetricsLog(run, resume_step=0) as record:
        for step in range(1, 50):
            record.write(step, {"x": step})
        assert len(record.lines()) == 49
        assert len(read(run)) < 49
        record.flush()
        assert len(read(run)) == 49
        written = bucket.written.count("bucket/run/metrics.jsonl")
        assert written == 2
    with MetricsLog(run, resume_step=30) as record:
        record.write(31, {"x": 31})
    assert [line["step"] for line in read(run)] == list(range(1, 32))


def test_data_splits_and_weights_in_a_bucket(bucket, data):
    folder = paths.path("s3://bucket/data")
    paths.write_whole(folder / "d.npz", data.read_bytes())
    there = sources.load("npz:s3://bucket/data/d.npz", Reading())
    here = sources.load(f"npz:{data}", Reading())
    np.testing.assert_array_equal(there.images, here.images)
    with pytest.raises(InputError, match=r"Cannot read s3://bucket/data/no\.npz"):
        sources.load("npz:s3://bucket/data/no.npz", Reading())
    paths.write_whole(folder / "bad.npz", b"PK")
    with pytest.raises(InputError, match=r"bad\.npz is damaged, or no \.npz file"):
        sources.load("npz:s3://bucket/data/bad.npz", Reading())
    split = splits.balanced(here, 8, seed=0)
    splits.write("s3://bucket/data/split.json", split)
    assert splits.read("s3://bucket/data/split.json").hash == split.hash
    for name in ("w.npz", "w.safetensors"):
        write_weights(f"s3://bucket/data/{name}", {"a": np.arange(3.0)})
        assert read_weights(f"s3://bucket/data/{name}")["a"].tolist() == [0, 1, 2]
        with pytest.raises(InputError, match="exists; remove it"):
            write_weights(f"s3://bucket/data/{name}", {})
    with pytest.raises(InputError, match=r"there is no weights file s3://bucket/data/no\.npz"):
        read_weights("s3://bucket/data/no.npz")
    with pytest.raises(InputError, match="ArrayRecord files are read from a file system"):
        sources.load("tfds:cifar10", Reading(directory="s3://bucket/tfds"))


def test_a_folder_of_images_in_a_bucket_is_as_on_a_disk(bucket, tmp_path):
    photos(tmp_path)
    for path in tmp_path.rglob("*.*"):
        name = path.relative_to(tmp_path).as_posix()
        paths.write_whole(paths.path(f"s3://bucket/photos/{name}"), path.read_bytes())
    here, there = (
        sources.load(f"folder:{root}", Reading(image_size=8))
        for root in (tmp_path, "s3://bucket/photos")
    )
    assert there.listed == here.listed
    assert there.location == "s3://bucket/photos"
    np.testing.assert_array_equal(there.images, here.images)
    streamed = sources.load("folder:s3://bucket/photos", Reading(image_size=8, stream=True))
    np.testing.assert_array_equal(np.asarray(streamed.images), here.images)
    names = streamed.naming
    assert names.rows["ant/0.png"] == 0
    paths.write_whole(
        paths.path("s3://bucket/split.txt"), b"s3://bucket/photos/bee/1.png\n./ant/0.png\n"
    )
    split = splits.read("s3://bucket/split.txt", names)
    assert [here.names[row] for row in split.indices] == ["bee/1.png", "ant/0.png"]


def photos(root):
    """Class folders of 40 pictures, a table of labels beside them, and unlabeled ones."""
    images, labels = toy_images(40, 0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = ("ant", "bee", "unlabeled", "unlabeled/deep")[label]
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name / f"{number}.png")
    Image.fromarray(images[0]).save(root / "loose.png")
    (root / "notes.txt").write_text("ignored")


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reference") / "run"
    command("train", *arguments(data, **OPTIONS), f"--workdir={workdir}")
    return workdir


@pytest.fixture(params=["s3", "gs"])
def server(request, monkeypatch):
    """The address of a folder of an object store that other processes can reach."""
    with serving(request.param) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield f"{request.param}://bucket/folder"


def program(code, *words):
    """What a process prints that can reach the server."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from jaxmatch.runtime import paths\n" + code, *words],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fetched(address, folder):
    program(
        "import shutil\n"
        "with paths.on_this_machine(paths.path(sys.argv[1])) as copy:\n"
        "    shutil.copytree(copy, sys.argv[2])",
        address,
        str(folder),
    )
    return folder


def command(*words):
    started = start_program(words)
    output, error = started.communicate(timeout=200)
    assert started.returncode == 0, error
    return output


WAIT = """
import time
folder = paths.path(sys.argv[1])
known = set(sys.argv[2].split(","))
end = time.monotonic() + 90
while time.monotonic() < end:
    names = [name.split("/") for name in paths.files_in(folder)]
    steps = {name[0] for name in names}
    complete = {name[0] for name in names if name[1:] == ["manifest.json"]}
    if steps - complete - known and complete - known:
        print(*(steps - complete), flush=True)
        break
"""


@pytest.mark.slow
def test_a_run_killed_while_it_saves_to_a_bucket_ends_as_one_on_a_disk(
    server, data, reference, tmp_path
):
    words = ["train", *arguments(data, **OPTIONS), f"--workdir={server}"]
    known = "-"
    for kill in range(2):
        code = "import sys; from jaxmatch.runtime import paths" + WAIT
        watch = subprocess.Popen(
            [sys.executable, "-c", code, f"{server}/checkpoints", known],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            text=True,
        )
        run = start_program(words)
        line = watch.stdout.readline()  # a folder without its list: a save is under way
        run.kill()
        watch.communicate()
        error = run.communicate()[1]
        assert line, error
        assert run.returncode == -signal.SIGKILL, error
        copy = fetched(server, tmp_path / f"killed {kill}")
        steps = sorted(int(p.parent.name) for p in copy.glob("checkpoints/*/manifest.json"))
        assert steps
        torn = {path.name for path in copy.glob("checkpoints/*")} - set(map(str, steps))
        print("killed with checkpoints", steps, "and torn", torn)
        lines = [line["step"] for line in read(copy)]
        assert [step for step in lines if step <= steps[-1]] == list(
            range(PERIOD, steps[-1] + 1, PERIOD)
        )
        known = ",".join(map(str, steps))
    command(*words)
    copy = fetched(server, tmp_path / "end")
    assert {path.name for path in copy.glob("checkpoints/*")} == {str(STEPS - PERIOD), str(STEPS)}
    assert_bitwise(state_of(copy), state_of(reference))
    assert without_seconds(read(copy)) == without_seconds(read(reference))
    log = (copy / "log.txt").read_text()
    assert log.count("continuing from the checkpoint") == 2


UPLOAD = """
from pathlib import Path
for file in Path(sys.argv[1]).rglob("*.png"):
    name = file.relative_to(sys.argv[1]).as_posix()
    paths.write_whole(paths.path(f"{sys.argv[2]}/{name}"), file.read_bytes())
"""


@pytest.mark.slow
def test_every_command_reads_and_writes_buckets(server, data, reference, tmp_path):
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / "a.png")
    program(
        "paths.write_whole(paths.path(sys.argv[2]), open(sys.argv[1], 'rb').read())",
        str(data),
        f"{server}/data.npz",
    )
    source = f"npz:{server}/data.npz"
    command("train", *arguments(source, **OPTIONS), f"--workdir={server}/run")
    found = json.loads(command("evaluate", "--json", f"--workdir={server}/run"))
    ours = json.loads(command("evaluate", "--json", f"--workdir={reference}"))
    assert found == ours
    for folder in (server, tmp_path):
        where = (f"--workdir={server}/run",)
        command("predict", *where, tmp_path / "a.png", "-o", f"{folder}/p.csv")
        command("export", *where, "--naming=torchssl", "-o", f"{folder}/w.safetensors")
        command("report", f"{server}/run", reference, "-o", f"{folder}/r.html")
    child = ("train", *arguments(source, **OPTIONS | {"steps": 5}))
    command(*child, f"--config.init_from={server}/run", f"--workdir={server}/a")
    command(*child, f"--config.init_from={reference}", f"--workdir={server}/b")
    command(*child, f"--config.data.split={server}/a/split.json", f"--workdir={server}/c")
    photos(tmp_path / "photos")
    program(UPLOAD, str(tmp_path / "photos"), f"{server}/photos")
    for stream in (False, True):
        options = OPTIONS | {"steps": 5, "data__image_size": 8, "data__stream": stream}
        options |= {"chosen": ",labels=8", "workers": 1}
        words = arguments(f"folder:{server}/photos", **options)
        command("train", *words, f"--workdir={server}/photos-{stream}")
        command("evaluate", f"--workdir={server}/photos-{stream}")
    copy = fetched(server, tmp_path / "copy")
    for name in ("p.csv", "w.safetensors"):
        assert (copy / name).read_bytes() == (tmp_path / name).read_bytes()
    for name in ("r.html", "r_comparison.png", "r_losses.png"):
        assert (copy / name).stat().st_size > 1000
    assert_bitwise(state_of(copy / "a"), state_of(copy / "b"))
    assert (copy / "c" / "summary.json").exists()
    assert len(list((copy / "run" / "events").iterdir())) == 1
    shutil.rmtree(copy)
    output = command("train", "--json", *arguments(source, **OPTIONS), f"--workdir={server}/run")
    assert json.loads(output)["steps"] == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("server", ["gs"], indirect=True)
def test_two_processes_share_a_run_in_a_bucket(server, data, tmp_path):
    words = ["train", *arguments(data, **OPTIONS, devices=2), f"--workdir={server}"]
    finish(start(2, 1, words))
    whole = fetched(server, tmp_path / "whole")
    program(
        "folder = paths.path(sys.argv[1])\n"
        "(folder / 'summary.json').unlink()\n"
        "(folder / 'checkpoints' / sys.argv[2] / 'manifest.json').unlink()",
        server,
        str(STEPS),
    )
    (_, said), _ = finish(start(2, 1, words))
    assert f"continuing from the checkpoint of step {STEPS - PERIOD}" in said
    copy = fetched(server, tmp_path / "copy")
    assert_bitwise(state_of(copy), state_of(whole))
    assert without_seconds(read(copy)) == without_seconds(read(whole))


@pytest.mark.slow
@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_two_processes_are_refused_where_orbax_does_not_write(server, data):
    words = ["train", *arguments(data, **OPTIONS, devices=2), f"--workdir={server}"]
    for _, said in finish(start(2, 1, words), code=2):
        assert "several processes cannot save to" in said
