"""Checkpoints: bitwise, atomic, rotated, and never trusted when damaged."""

import errno
import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmatch.cli.main import is_not_orbax
from jaxmatch.errors import DiskError, InputError
from jaxmatch.runtime import paths
from jaxmatch.runtime.checkpoint import MARK, Best, Checkpoints
from jaxmatch.types import TrainState


def mesh(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


def shardings(state, devices):
    """Everything replicated but the bank, which is cut over the devices."""
    everywhere = NamedSharding(mesh(devices), PartitionSpec())
    cut = NamedSharding(mesh(devices), PartitionSpec("data"))
    placed = jax.tree.map(lambda _: everywhere, state)
    return placed.replace(memory={**placed.memory, "bank": cut})


@lru_cache
def make_state(step=1, devices=4):
    def make():
        noise = jax.random.normal(jax.random.key(step), (64, 32))
        return TrainState(
            step=jnp.int32(step),
            key=jax.random.key(7, impl="rbg"),
            params={"block.0": {"kernel": noise, "a/b": noise[0].astype(jnp.bfloat16)}},
            stats={},
            teacher={"params": [noise * 2], "batch_stats": (noise[0], ())},
            optimizer=((), {"count": jnp.int32(step), "flags": jnp.array([True, False])}),
            memory={"bank": jnp.arange(8.0) * step, "empty": jnp.zeros((0, 5))},
            policy=(),
        )

    return jax.jit(make, out_shardings=shardings(jax.eval_shape(make), devices))()


def abstract(state, devices=4):
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings(state, devices),
    )


def bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert bits(one) == bits(other)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step))
    return folder


@pytest.fixture
def saved(written, tmp_path):
    """A folder with intact checkpoints of steps 1, 2 and 3."""
    return shutil.copytree(written, tmp_path / "checkpoints")


def newest(directory):
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore(abstract(make_state()))


SAME_DEVICES = [pytest.param(each, each, marks=pytest.mark.slow) for each in (1, 4)]


@pytest.mark.parametrize(("written", "read"), [(4, 1), (1, 4), *SAME_DEVICES])
def test_round_trip_is_bitwise_on_any_number_of_devices(tmp_path, written, read):
    state = make_state(devices=written)
    with Checkpoints(tmp_path / "deep" / "checkpoints") as checkpoints:
        checkpoints.save(5, state)
        restored, step = checkpoints.restore(abstract(state, read))
    assert step == 5
    assert_same(restored, state)
    assert jax.random.key_impl(restored.key) == jax.random.key_impl(state.key)
    expected = jax.tree.leaves(shardings(state, read))
    for leaf, sharding in zip(jax.tree.leaves(restored), expected, strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_the_best_checkpoint_is_kept_beside_the_newest_ones(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 7):
            best = Best(step, "validation/teacher/accuracy", step / 10) if step in (1, 2) else None
            checkpoints.save(step, make_state(step), best)
            checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.best() == Best(2, "validation/teacher/accuracy", 0.2)
        restored, step = checkpoints.restore(abstract(make_state()), "best")
        assert step == 2
        assert_same(restored, make_state(2))
        checkpoints.mark(Best(5, "validation/teacher/accuracy", 0.5))
        checkpoints.save(7, make_state(7))
        checkpoints.wait()
        assert checkpoints.steps() == [5, 6, 7]
        checkpoints.save(8, make_state(8))
        checkpoints.wait()
        assert checkpoints.steps() == [5, 7, 8]
        checkpoints.mark(None)
        checkpoints.save(9, make_state(9))
        checkpoints.wait()
        assert checkpoints.steps() == [8, 9]
    assert newest(tmp_path)[1] == 9


MARKS = ("", "[]", '{"step": 7, "key": "a", "value": 1.0}')


@pytest.mark.parametrize(
    "mark", [None, *(pytest.param(each, marks=pytest.mark.slow) for each in MARKS)]
)
def test_a_missing_or_damaged_mark_marks_nothing(saved, mark):
    if mark is not None:
        (saved / MARK).write_text(mark)
    with Checkpoints(saved, keep=1) as checkpoints:
        assert checkpoints.best() is None
        with pytest.raises(InputError, match=r"no best checkpoint.*present: 1, 2, 3"):
            checkpoints.restore(abstract(make_state()), "best")
        checkpoints.save(4, make_state(4))
        checkpoints.wait()
        assert checkpoints.steps() == [4]


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def thirds():
    return {"pi": jnp.array(np.pi), "thirds": jnp.arange(5) / 3}


def test_round_trip_of_float64_without_shardings(tmp_path, x64):
    state = thirds()
    assert state["pi"].dtype == jnp.float64
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        restored, _ = checkpoints.restore(jax.eval_shape(thirds))
    assert_same(restored, state)


def test_float64_is_never_cut_silently(tmp_path):
    """``jax.enable_x64`` holds for one thread only."""
    with jax.enable_x64(True), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, thirds())
        with pytest.raises(InputError, match="pi came back as float32, not float64: set jax_en"):
            checkpoints.restore(jax.eval_shape(thirds))


def test_every_value_survives(tmp_path):
    values = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45], np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"values": jnp.asarray(values)})
        restored, _ = checkpoints.restore({"values": jax.ShapeDtypeStruct((6,), jnp.float32)})
    assert np.asarray(restored["values"]).tobytes() == values.tobytes()


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    @partial(jax.jit, donate_argnums=0)
    def advance(array):
        return array * 0 - 1

    everywhere = NamedSharding(mesh(4), PartitionSpec())
    array = jax.device_put(jnp.arange(2_000_000.0), everywhere)
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 4):
            checkpoints.save(step, {"array": array + step})
            array_of_step = array + step
            checkpoints.save(step, {"array": array_of_step})
            jax.block_until_ready(advance(array_of_step))
        for step in range(1, 4):
            restored, _ = checkpoints.restore(jax.eval_shape(lambda: {"array": array}), step)
            np.testing.assert_array_equal(restored["array"], np.arange(2_000_000.0) + step)


def test_nothing_there(tmp_path):
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.restore(abstract(make_state())) is None
    assert not (tmp_path / "none").exists()


def test_keeps_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (5, 20, 100):
            checkpoints.save(step, {"x": jnp.float32(step)})
        checkpoints.wait()
        assert checkpoints.steps() == [20, 100]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["100", "20"]
    with pytest.raises(InputError, match="keep=0 must be at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_explicit_step(saved):
    with Checkpoints(saved) as checkpoints:
        restored, step = checkpoints.restore(abstract(make_state()), step=2)
        assert step == 2
        assert_same(restored, make_state(2))
        with pytest.raises(InputError, match=r"no checkpoint of step 9 .*present: 1, 2, 3\."):
            checkpoints.restore(abstract(make_state()), step=9)


def test_saving_a_step_again_replaces_it_and_drops_later_ones(saved):
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(2, make_state(77))
        restored, step = checkpoints.restore(abstract(make_state()))
        assert checkpoints.steps() == [1, 2]
    assert step == 2
    assert_same(restored, make_state(77))


def test_a_kill_while_a_step_is_replaced_loses_none(saved, monkeypatch):
    def killed(path):
        raise RuntimeError("killed")

    with Checkpoints(saved) as checkpoints:
        monkeypatch.setattr(paths, "remove_folder", killed)
        checkpoints.save(3, make_state(77))
        with pytest.raises(DiskError, match="killed"):
            checkpoints.wait()
    monkeypatch.undo()
    with Checkpoints(saved) as checkpoints:
        restored, step = checkpoints.restore(abstract(make_state()))
    assert step == 3
    assert_same(restored, make_state(77))


def damages():
    def truncate(path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def flip(path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def zero(path):
        path.write_bytes(bytes(path.stat().st_size))

    return {"delete": Path.unlink, "truncate": truncate, "flip": flip, "zero": zero}


# Each restores a dozen times; half a file and zeros are other bytes as a flipped bit is.
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(act, marks=() if name == "flip" else pytest.mark.slow)
        for name, act in damages().items()
    ],
    ids=damages().keys(),
)
def test_any_damaged_file_of_the_newest_is_noticed(saved, damage, caplog):
    """One file at a time: the previous checkpoint is used, and the log says so."""
    pristine = saved.parent / "pristine"
    shutil.copytree(saved / "3", pristine)
    files = [path.relative_to(pristine) for path in pristine.rglob("*") if path.is_file()]
    assert len(files) > 8
    for name in files:
        shutil.rmtree(saved / "3")
        shutil.copytree(pristine, saved / "3")
        if damage is not Path.unlink and (saved / "3" / name).stat().st_size == 0:
            continue
        damage(saved / "3" / name)
        caplog.clear()
        restored, step = newest(saved)
        assert step == 2, name
        assert_same(restored, make_state(2))
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert f"{saved / '3'} is damaged" in record.getMessage()
        assert f"{saved / '2'} is used instead" in record.getMessage()


@pytest.mark.parametrize(
    "kept",
    [
        "format.json",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("", "tensors.json", "arrays/")),
    ],
)
def test_a_list_that_leaves_files_out_is_damage(saved, kept, caplog):
    """Nobody would notice that what is not listed has changed."""
    manifest = saved / "3" / "manifest.json"
    hashes = json.loads(manifest.read_text())
    few = {name: found for name, found in hashes.items() if kept and name.startswith(kept)}
    manifest.write_text(json.dumps(few))
    assert newest(saved)[1] == 2
    assert "is not in manifest.json" in caplog.text or "lists no arrays" in caplog.text


@pytest.mark.parametrize(
    "content",
    ["[]", *(pytest.param(each, marks=pytest.mark.slow) for each in ("3", "null", '"x"'))],
)
def test_a_list_of_another_kind_is_damage(saved, content, caplog):
    (saved / "3" / "manifest.json").write_text(content)
    assert newest(saved)[1] == 2
    assert "manifest.json is no list of hashes" in caplog.text


def test_a_run_that_fell_back_goes_on(saved):
    (saved / "3" / "manifest.json").unlink()
    with Checkpoints(saved) as checkpoints:
        _, step = checkpoints.restore(abstract(make_state()))
        assert step == 2
        checkpoints.save(3, make_state(3))
        restored, step = checkpoints.restore(abstract(make_state()))
        assert step == 3
        assert_same(restored, make_state(3))
        assert checkpoints.steps() == [1, 2, 3]


def test_all_damaged_is_an_error(saved):
    for step in "123":
        shutil.rmtree(saved / step / "arrays")
    with pytest.raises(InputError, match=r"No intact checkpoint: .*3 is damaged.*1 is damaged"):
        newest(saved)
    with Checkpoints(saved) as checkpoints, pytest.raises(InputError, match="2 is damaged"):
        checkpoints.restore(abstract(make_state()), step=2)


def test_another_configuration_is_refused_by_its_first_tensor(saved, caplog):
    state = abstract(make_state())
    wider = state.replace(teacher={**state.teacher, "params": [jax.ShapeDtypeStruct((4,), int)]})
    more = state.replace(policy={"bins": jax.ShapeDtypeStruct((4,), jnp.float32)})
    fewer = state.replace(params={})
    other_key = state.replace(key=jax.eval_shape(jax.random.key, 0))
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(InputError, match=r"teacher/params/0 is float32\[64,32\] there but int"):
            checkpoints.restore(wider)
        with pytest.raises(InputError, match=r"policy/bins is absent there but float32\[4\] here"):
            checkpoints.restore(more)
        with pytest.raises(InputError, match=r"params/block.0/a/b is bfloat16\[32\] there but abs"):
            checkpoints.restore(fewer)
        with pytest.raises(InputError, match=r"key is key<rbg>\[\] there but key<fry>\[\] here"):
            checkpoints.restore(other_key)
    assert not caplog.records


@pytest.fixture
def filtered():
    """The log as the command line has it."""
    log = logging.getLogger("absl")
    log.addFilter(is_not_orbax)
    yield
    log.removeFilter(is_not_orbax)


@pytest.mark.usefixtures("filtered")
def test_full_disk_is_a_disk_error_at_the_next_call(saved, capfd):
    """A limit on the size of files makes every large write fail, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(saved) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            checkpoints.save(4, make_state(4))
            with pytest.raises(DiskError, match=r"step 4 could not .*file too large") as raised:
                checkpoints.wait()
            checkpoints.save(5, make_state(5))
            with pytest.raises(DiskError, match="step 5"):
                checkpoints.save(6, make_state(6))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert raised.value.exit_code == 4
        assert "\n" not in str(raised.value)
        assert capfd.readouterr() == ("", "")
        assert checkpoints.steps() == [1, 2, 3]
        checkpoints.save(7, make_state(7))
        restored, step = checkpoints.restore(abstract(make_state()))
    assert step == 7
    assert_same(restored, make_state(7))


def test_unwritable_folder_is_a_disk_error(tmp_path):
    (tmp_path / "file").write_text("")
    with Checkpoints(tmp_path / "file") as checkpoints:
        assert checkpoints.restore(abstract(make_state())) is None
        with pytest.raises(DiskError, match=r"step 1 could not be written .*not a directory"):
            checkpoints.save(1, make_state())


def test_read_only_folder_is_a_disk_error(saved, monkeypatch):
    """Root may write anywhere, so the refusals of a read-only mount are simulated."""

    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with Checkpoints(saved) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "mkdir", refuse)
            with pytest.raises(DiskError, match="read-only file system"):
                checkpoints.save(4, make_state(4))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", refuse)
            checkpoints.save(4, make_state(4))
            with pytest.raises(DiskError, match="read-only file system"):
                checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3]


def test_a_failed_save_does_not_hide_the_error_on_its_way(saved, monkeypatch, caplog):
    monkeypatch.setattr(Path, "rename", lambda *_: os.open("/nonexistent/x", 0))

    def fail():
        with Checkpoints(saved) as checkpoints:
            checkpoints.save(4, make_state(4))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "step 4 could not be written" in caplog.text


def test_leftovers_of_killed_saves_are_not_checkpoints_and_are_removed(saved):
    shutil.copytree(saved / "3", saved / "saving-4")
    (saved / "saving-4.orbax-checkpoint-tmp-1").mkdir()
    (saved / "removing-1").mkdir()
    restored, step = newest(saved)
    assert step == 3
    assert_same(restored, make_state(3))
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(4, make_state(4))
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3", "4"]


def test_orbax_is_silent(tmp_path, capfd):
    from absl import logging as absl_logging

    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.INFO)
    try:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, make_state())
            checkpoints.restore(abstract(make_state()))
    finally:
        absl_logging.set_verbosity(verbosity)
    assert capfd.readouterr() == ("", "")


def test_no_file_is_a_pickle(saved):
    for path in (saved / "3").rglob("*"):
        if path.is_file():
            assert not path.read_bytes().startswith(b"\x80")
    assert json.loads((saved / "3" / "tensors.json").read_text())["memory/empty"] == "float32[0,5]"


KILLED = """
import os, signal, sys, threading, time
import jax
jax.config.update("jax_num_cpu_devices", 4)
sys.path[:0] = [{root!r}, {tests!r}, {folder!r}]
from test_checkpoint import abstract, make_state
from jaxmatch.runtime.checkpoint import MARK, Best, Checkpoints

checkpoints = Checkpoints({directory!r}, keep=2)
restored = checkpoints.restore(abstract(make_state()))
step = restored[1] if restored else 0
checkpoints.save(step + 1, make_state(step + 1))
checkpoints.wait()
threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGKILL)).start()
while True:
    step += 1
    checkpoints.save(step + 1, make_state(step + 1))
"""


def kill_while_saving(directory, delay):
    here = Path(__file__).resolve().parents[1]
    code = KILLED.format(
        root=str(here.parent),
        tests=str(here),
        folder=str(here / "runtime"),
        directory=str(directory),
        delay=delay,
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert b"damaged" not in done.stderr


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_an_intact_newest(tmp_path, caplog):
    """Processes that do nothing but save are killed at various moments, one after the other."""
    before = 0
    for kill in range(12):
        kill_while_saving(tmp_path, 0.05 + 0.0137 * kill)
        restored, step = newest(tmp_path)
        assert step > before
        assert_same(restored, make_state(step))
        before = step
    assert not caplog.records


@pytest.mark.slow  # training/test_resume.py kills a run
def test_a_kill_while_saving_leaves_an_intact_newest(tmp_path, caplog):
    kill_while_saving(tmp_path, 0.123)
    restored, step = newest(tmp_path)
    assert_same(restored, make_state(step))
    assert not caplog.records


PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("localhost:{port}", 2, {rank})
sys.path[:0] = [{root!r}, {tests!r}, {folder!r}]
from test_checkpoint import abstract, assert_same_shards, make_state
from jaxmatch.runtime.checkpoint import MARK, Best, Checkpoints

with Checkpoints({directory!r}, keep=2) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step))
    restored, step = checkpoints.restore(abstract(make_state()))
    assert (step, checkpoints.steps()) == (3, [2, 3])
    assert_same_shards(restored, make_state(3))
"""


def assert_same_shards(actual, expected):
    """Of a state that is spread over several processes, compare what lies here."""
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
        for mine, yours in zip(one.addressable_shards, other.addressable_shards, strict=True):
            assert bits(mine.data) == bits(yours.data)


@pytest.mark.slow
def test_two_processes_share_one_checkpoint(tmp_path):
    here = Path(__file__).resolve().parents[1]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    processes = []
    for rank in range(2):
        code = PROCESS.format(
            root=str(here.parent),
            tests=str(here),
            folder=str(here / "runtime"),
            directory=str(tmp_path),
            port=port,
            rank=rank,
        )
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True
            )
        )
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    restored, _ = newest(tmp_path)
    assert_same(restored, make_state(3))
