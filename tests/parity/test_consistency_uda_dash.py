"""USB's recorded Dash steps, thresholds and training signals; a wrong library fails them."""

from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.parity import consistency_uda_dash, functions
from experiments.parity.__main__ import main
from experiments.parity.rows import TOLERANCE, Case, UnknownCaseError
from jaxmatch.algorithms import dash, uda
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.optim import schedules

GOLDEN = Path(__file__).parents[1] / "golden"
NAME = "dash_update_crossing"


def rows(name):
    with jax.enable_x64(True):
        return functions.replay(Case(GOLDEN / f"{name}.npz"), TOLERANCE).rows()


@pytest.mark.slow  # its threshold stays below
def test_dash_equals_the_reference(capsys):
    assert main([str(GOLDEN / f"{NAME}.npz")]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert all(" ok   override: dash.below" in line for line in lines[:-1])
    assert lines[-1].endswith("failed 0, unknown 0 quantities")


@pytest.mark.slow
def test_a_wrong_dash_fails(monkeypatch, capsys):
    wrong = lambda logits, target: 1.0001 * cross_entropy(logits, target)  # noqa: E731
    right = dash.Dash.threshold
    monkeypatch.setattr(dash, "cross_entropy", wrong)
    monkeypatch.setattr(dash.Dash, "threshold", lambda *given: 1.0001 * right(*given))
    assert main([str(GOLDEN / f"{NAME}.npz")]) == 1
    failed = {line.split()[1] for line in capsys.readouterr().out.splitlines() if "FAIL" in line}
    losses = {"out/sup_loss", "out/unsup_loss", "grad/0", "final/parameters", "ema/parameters"}
    assert {*losses, "state/rho"} <= failed
    assert not failed & {"out/mask", "out/lr", "state/rho_init"}


def test_functions_equal_the_reference():
    signals, thresholds = rows("fn_uda_tsa"), rows("fn_dash_rho")
    assert {row.quantity for row in signals} == {"out/tsa"}
    assert {row.quantity for row in thresholds} == {"out/rho", "out/use_hard_label"}
    for row in (*signals, *thresholds):
        assert row.passed
        assert row.source == "library"


def test_wrong_functions_fail(monkeypatch):
    signal, threshold = schedules.training_signal, dash.Dash.threshold
    late = lambda name, step, *sizes: signal(name, step - 1, *sizes)  # noqa: E731
    monkeypatch.setattr(schedules, "training_signal", late)
    assert not rows("fn_uda_tsa")[0].passed
    monkeypatch.setattr(
        dash.Dash,
        "threshold",
        lambda self, step, memory, spec: threshold(self, step + 1, memory, spec),
    )
    assert not all(row.passed for row in rows("fn_dash_rho"))


def test_uda_s_overrides_still_rest_on_the_library(monkeypatch):
    """The recorded cross-entropy is the library's divergence and a constant."""
    target, logits = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    case = type("Case", (), {"meta": {"hyperparameters": {"tsa_schedule": "none"}}})

    def value(divergence):
        monkeypatch.setattr(uda, "kl_divergence", divergence)
        (override,) = consistency_uda_dash.UDA.overrides(case)
        assert str(override) == "uda.kl_divergence"
        return override.function(target, logits)

    right = uda.kl_divergence
    expected = cross_entropy(logits, jax.nn.softmax(target))
    np.testing.assert_allclose(value(right), expected, rtol=1e-5)
    zero = value(lambda *pair: 0 * right(*pair))
    np.testing.assert_allclose(expected - zero, right(target, logits), rtol=1e-4, atol=1e-6)


def test_a_contradictory_threshold_is_said(tmp_path):
    with np.load(GOLDEN / f"{NAME}.npz") as file:
        arrays = {**file, "init_state/rho_update_cnt": np.array(2)}
    np.savez(tmp_path / "changed.npz", **arrays)
    with pytest.raises(UnknownCaseError, match="not that of its number of decays"):
        consistency_uda_dash.DASH.memory(Case(tmp_path / "changed.npz"))
