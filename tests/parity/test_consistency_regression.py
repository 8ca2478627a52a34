"""Recorded steps of the Π-Model and Mean Teacher, which fail when the library is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import numpy_softmax

from experiments.parity import consistency_regression
from experiments.parity.__main__ import main
from jaxmatch.algorithms import mean_teacher
from jaxmatch.functional.losses import squared_difference

CASE = Path(__file__).parents[1] / "golden" / "meanteacher_corrected.npz"


def failures(path, capsys):
    assert main([str(path)]) == 1
    return {line.split()[1] for line in capsys.readouterr().out.splitlines() if "FAIL" in line}


def changed(folder, **values):
    """The case with other entries of its meta."""
    with np.load(CASE) as file:
        arrays = dict(file)
    arrays["meta"] = np.array(json.dumps({**json.loads(str(arrays["meta"])), **values}))
    np.savez(folder / "changed.npz", **arrays)
    return folder / "changed.npz"


def test_the_library_equals_the_reference(capsys):
    assert main([str(CASE)]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert all(" ok   library" in line for line in lines[:-1])
    assert lines[-1].endswith("failed 0, unknown 0 quantities")


@pytest.mark.slow
def test_a_wrong_difference_fails(monkeypatch, capsys):
    wrong = lambda *pair: 1.0001 * squared_difference(*pair)  # noqa: E731
    monkeypatch.setattr(mean_teacher, "squared_difference", wrong)
    failed = failures(CASE, capsys)
    assert {"out/unsup_loss", "out/total_loss", "final/parameters", "ema/parameters"} <= failed
    # The ramp starts at 0.
    assert not failed & {"grad/0", "out/lr", "out/ramp", "final/num_batches_tracked"}


@pytest.mark.slow
def test_the_reference_as_is_has_no_such_loss(tmp_path, capsys):
    failed = failures(changed(tmp_path, variant="reference as is"), capsys)
    assert {"out/unsup_loss", "final/parameters"} <= failed
    assert not failed & {"grad/0", "out/ramp"}


@pytest.mark.slow
def test_the_same_steps_without_a_teacher_are_another_method(tmp_path, capsys):
    failed = failures(changed(tmp_path, algorithm="pimodel"), capsys)
    assert {"fwd/1/logits", "out/unsup_loss", "final/parameters"} <= failed


def test_masked_examples_count_as_zero():
    logits, other = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    p, target, mask = numpy_softmax(logits), numpy_softmax(other), np.array([1, 0, 1, 0])
    found = consistency_regression.mean_squared_difference(logits, target, mask)
    np.testing.assert_allclose(found, np.sum((p - target)[::2] ** 2) / 12, rtol=1e-5)
