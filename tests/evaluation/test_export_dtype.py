"""A run that computed in bfloat16 is exported as a program that computes in float32."""

import json

import numpy as np
import pytest
from tiny_runs import train_tiny, write_data

import jaxmatch
from jaxmatch.cli.main import main
from jaxmatch.report.card import card_of

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    periods = dict.fromkeys(("steps", "steps_per_call", "log_every", "eval_every", "save_every"), 2)
    train_tiny(write_data(folder / "data.npz"), folder / "run", dtype="bfloat16", **periods)
    return folder / "run"


def refusal(capsys, *words):
    with pytest.raises(SystemExit, match="2"):
        main(["export", *map(str, words)])
    return capsys.readouterr().err


@pytest.mark.slow
def test_a_program_computes_in_the_asked_dtype(run, tmp_path):
    for name, words in (("usual", []), ("wide", ["--dtype=float32"])):
        main(["export", f"--workdir={run}", "-o", str(tmp_path / f"{name}.stablehlo"), *words])
    usual, wide = (
        jaxmatch.load(tmp_path / f"{name}.stablehlo").predict(IMAGES).probabilities
        for name in ("usual", "wide")
    )
    np.testing.assert_allclose(
        usual, jaxmatch.load(run).predict(IMAGES).probabilities, rtol=0, atol=2e-3
    )
    expected = jaxmatch.load(run, dtype="float32").predict(IMAGES).probabilities
    np.testing.assert_allclose(wide, expected, rtol=0, atol=1e-6)
    assert np.abs(wide - usual).max() > 1e-5  # bfloat16 has 8 bits of a number
    np.testing.assert_allclose(wide, usual, rtol=0, atol=0.02)
    row = "| computes in | float32, while the run computed in bfloat16: figures differ a little |"
    assert row in card_of(tmp_path / "wide.stablehlo").read_text()
    assert "| computes in | bfloat16 |" in card_of(tmp_path / "usual.stablehlo").read_text()
    assert json.loads((run / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.slow
def test_a_wrong_dtype_is_refused_by_name(run, tmp_path, capsys):
    path = tmp_path / "a.stablehlo"
    assert "unknown dtype 'float16'" in refusal(
        capsys, f"--workdir={run}", "-o", path, "--dtype=float16"
    )
    path = tmp_path / "a.npz"
    assert "--dtype needs a program (stablehlo, onnx); npz holds weights." in refusal(
        capsys, f"--workdir={run}", "-o", path, "--dtype=float32"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_onnx_takes_it_in_float32(run, tmp_path, capsys):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "a.onnx"
    assert "--dtype float32" in refusal(capsys, f"--workdir={run}", "-o", path)
    assert list(tmp_path.iterdir()) == []
    main(["export", f"--workdir={run}", "-o", str(path), "--dtype=float32"])
    expected = jaxmatch.load(run, dtype="float32").predict(IMAGES).probabilities
    found = jaxmatch.load(path).predict(IMAGES).probabilities
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
