"""Runs on one device use the library, say so, and are the same bits again, interrupted or not."""

import shutil
from pathlib import Path

import pytest
from helpers import assert_bitwise, assert_close
from tiny_runs import PERIOD, STEPS, arguments, start_program, state_of, without_seconds

from experiments.parity.__main__ import main as parity
from jaxmatch.models import onednn
from jaxmatch.record.metrics import read

GOLDEN = Path(__file__).parents[1] / "golden"
DTYPES = ("float32", "bfloat16")
needs_library = pytest.mark.skipif(
    not onednn.library().present,
    reason=f"this machine has no compiler or no oneDNN: {onednn.library().text}",
)


def run(words, workdir, devices=1):
    process = start_program(["train", *words, f"--workdir={workdir}"], devices)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return (workdir / "log.txt").read_text().splitlines()


def cut(workdir, copy, step):
    """A copy of a run that was killed after the checkpoint of ``step``."""
    shutil.copytree(workdir, copy)
    (copy / "summary.json").unlink()
    for checkpoint in (copy / "checkpoints").iterdir():
        if checkpoint.name.isdecimal() and int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)


def assert_same(one, other):
    assert_bitwise(state_of(one), state_of(other))
    assert without_seconds(read(one)) == without_seconds(read(other))


@needs_library
@pytest.mark.slow
def test_a_run_and_its_continuation_end_bitwise_alike(data, tmp_path):
    words = arguments(data)
    assert "convolutions by oneDNN" in run(words, tmp_path / "one")[0]
    cut(tmp_path / "one", tmp_path / "cut", STEPS - 2 * PERIOD)
    log = "\n".join(run(words, tmp_path / "cut"))
    assert f"continuing from the checkpoint of step {STEPS - 2 * PERIOD}" in log
    assert_same(tmp_path / "cut", tmp_path / "one")


@pytest.mark.slow
@needs_library
def test_without_the_library_a_run_differs_by_rounding(data, tmp_path, monkeypatch):
    words = arguments(data)
    run(words, tmp_path / "one")
    monkeypatch.setenv("JAXMATCH_ONEDNN", "off")
    log = run(words, tmp_path / "off")
    assert "convolutions by XLA (JAXMATCH_ONEDNN is off)" in log[0]
    params = (state_of(tmp_path / name).params for name in ("off", "one"))
    assert_close(*params, 1e-3)


@pytest.mark.slow
def test_several_devices_say_nothing_of_the_library(data, tmp_path):
    log = run(arguments(data), tmp_path / "four", devices=4)
    assert not any("convolutions" in line for line in log)


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_real_network_is_the_same_bits_again(dtype, tmp_path):
    words = [
        "--config=fixmatch:mnist5k,labels=40",
        "--config.steps=30",
        "--config.steps_per_call=5",
        *(f"--config.{kind}_every=10" for kind in ("log", "eval", "save")),
        "--config.keep=3",
        f"--config.dtype={dtype}",
    ]
    run(words, tmp_path / "one")
    run(words, tmp_path / "two")
    assert_same(tmp_path / "two", tmp_path / "one")
    cut(tmp_path / "one", tmp_path / "cut", 10)
    run(words, tmp_path / "cut")
    assert_same(tmp_path / "cut", tmp_path / "one")


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("setting", ["on", "off"])
def test_parity_in_float64_is_the_same_with_and_without(setting, monkeypatch):
    """In float64 XLA computes: what the library could break is where a program calls it."""
    monkeypatch.setattr(
        "jaxmatch.models.onednn.lowering.library",
        lambda: onednn.Library(text=setting, dtypes=DTYPES if setting == "on" else ()),
    )
    cases = [GOLDEN / f"{name}.npz" for name in ("fixmatch_hard_nocat", "net_wrn_28_2", "vat")]
    assert parity([str(case) for case in cases]) == 0
