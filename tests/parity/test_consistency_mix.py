"""Recorded steps of MixMatch and ReMixMatch, which fail when the library is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.parity.__main__ import main
from jaxmatch.algorithms import mixmatch, remixmatch
from jaxmatch.functional.alignment import sharpen
from jaxmatch.functional.losses import squared_difference

GOLDEN = Path(__file__).parents[1] / "golden"
METHODS = {"mixmatch_late": "MixMatch", "remixmatch": "ReMixMatch"}


def failures(name, capsys):
    assert main([str(GOLDEN / f"{name}.npz")]) == 1
    return {line.split()[1] for line in capsys.readouterr().out.splitlines() if "FAIL" in line}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixmatch_late", "remixmatch"])
def test_the_library_equals_the_reference(name, capsys):
    assert main([str(GOLDEN / f"{name}.npz")]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert all(f" ok   override: {METHODS[name]}.forward" in line for line in lines[:-1])
    assert lines[-1].endswith("failed 0, unknown 0 quantities")


@pytest.mark.slow
def test_a_wrong_mixmatch_fails(monkeypatch, capsys):
    wrong = lambda *pair: 1.0001 * squared_difference(*pair)  # noqa: E731
    monkeypatch.setattr(mixmatch, "squared_difference", wrong)
    failed = failures("mixmatch_late", capsys)
    assert {"out/unsup_loss", "out/total_loss", "grad/0", "final/parameters"} <= failed
    assert not failed & {"out/lr", "out/ramp", "final/num_batches_tracked"}


@pytest.mark.slow
def test_a_wrong_remixmatch_fails(monkeypatch, capsys):
    monkeypatch.setattr(remixmatch, "sharpen", lambda q, t: sharpen(q, 1.0001 * t))
    failed = failures("remixmatch", capsys)
    assert {"out/unsup_loss", "out/u1_loss", "out/total_loss", "final/parameters"} <= failed
    assert not failed & {"out/lr", "out/ramp", "state/da_p_target"}


@pytest.mark.slow
def test_a_wrong_rotation_fails(monkeypatch, capsys):
    right = remixmatch.rotate
    wrong = lambda images, turns: right(images, -turns)  # noqa: E731
    monkeypatch.setattr(remixmatch, "rotate", wrong)
    monkeypatch.setattr("experiments.parity.consistency_mix.rotate", wrong)
    failed = failures("remixmatch", capsys)
    assert {"fwd/11/logits", "out/rot_loss", "grad/0"} <= failed


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (
            "mixmatch_late",
            lambda arrays, meta: meta["hyperparameters"].update(mixup_manifold=True),
            "MixUp of features is not in the library",
        ),
        (
            "mixmatch_late",
            lambda arrays, meta: arrays.update({"draw/0/mixup_lam_used": np.array(0.2)}),
            "mixup_lam_used is not the larger",
        ),
        (
            "remixmatch",
            lambda arrays, meta: arrays.update({"batch/0/rot_v": np.arange(8) % 4}),
            "x_ulb_s_0_rot is not x_ulb_s_0 turned by rot_v",
        ),
    ],
)
def test_an_unknown_description_is_said(tmp_path, capsys, name, change, reason):
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"]))
    change(arrays, meta)
    arrays["meta"] = np.array(json.dumps(meta))
    np.savez(tmp_path / "changed.npz", **arrays)
    assert main([str(tmp_path / "changed.npz")]) == 2
    assert reason in capsys.readouterr().out
