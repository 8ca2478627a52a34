"""Recorded steps of VAT, which fail when the library is wrong."""

import json
from functools import wraps
from pathlib import Path

import numpy as np
import pytest

from experiments.parity.__main__ import main
from jaxmatch.algorithms import vat
from jaxmatch.functional import adversarial
from jaxmatch.functional.losses import entropy

CASE = Path(__file__).parents[1] / "golden" / "vat.npz"


def failures(capsys):
    assert main([str(CASE)]) == 1
    return {line.split()[1] for line in capsys.readouterr().out.splitlines() if "FAIL" in line}


@pytest.mark.slow  # algorithms/test_vat.py holds the equation
def test_the_library_equals_the_reference(capsys):
    assert main([str(CASE)]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert all("tolerance 1e-06 ok   library" in line for line in lines[:-1])
    assert lines[-1].endswith("failed 0, unknown 0 quantities")


@pytest.mark.slow
def test_a_wrong_direction_fails(monkeypatch, capsys):
    right = adversarial.virtual_adversarial_direction

    def wrong(logits_of, images, logits, noise, xi):
        return right(logits_of, images, logits, noise[:, ::-1], xi)

    monkeypatch.setattr(vat, "virtual_adversarial_direction", wrong)
    failed = failures(capsys)
    assert {"fwd/2/logits", "fwd/3/logits", "out/unsup_loss", "final/parameters"} <= failed
    # The ramp starts at 0.
    assert not failed & {"grad/0", "out/lr", "out/ramp"}


@pytest.mark.slow
def test_a_wrong_entropy_fails(monkeypatch, capsys):
    monkeypatch.setattr(vat, "entropy", lambda logits: 1.0001 * entropy(logits))
    failed = failures(capsys)
    assert {"out/loss_entmin", "out/total_loss", "grad/0", "final/parameters"} <= failed
    assert not failed & {"out/lr", "out/ramp"}


@pytest.mark.slow
def test_statistics_of_another_pass_fail(monkeypatch, capsys):
    right = vat.VAT.loss

    @wraps(right)  # whose module the replay looks into
    def wrong(self, network, params, state, batch, *rest):
        value, update = right(self, network, params, state, batch, *rest)
        _, stats = network(state.student(params), batch.unlabeled.views)
        return value, update._replace(stats=stats)

    monkeypatch.setattr(vat.VAT, "loss", wrong)
    assert {"final/statistics", "ema/statistics"} <= failures(capsys)


def test_changes_of_embeddings_are_not_replayed(tmp_path, capsys):
    with np.load(CASE) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"]))
    meta["hyperparameters"]["vat_embed"] = True
    np.savez(tmp_path / "changed.npz", **{**arrays, "meta": np.array(json.dumps(meta))})
    assert main([str(tmp_path / "changed.npz")]) == 2
    assert "adversarial changes of embeddings are not in the library" in capsys.readouterr().out
