"""The library's pure functions equal the recorded ones, and where not, the replay says so."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.parity import functions, functions_alignment, functions_contrastive
from experiments.parity.rows import TOLERANCE, Case, Unknown
from jaxmatch.functional import alignment, losses
from jaxmatch.optim import schedules

GOLDEN = Path(__file__).parents[1] / "golden"
SOURCES = {
    "fn_dist_align": {
        "out/ema/aligned": "override: align",
        "out/ema/p_model": "library",
        "out/ema/p_target": "library",
        "out/queue/aligned": "override: align",
        "out/queue/p_model_final": "library",
        "out/queue/p_target_final": "library",
        "out/queue/ptr_final": "library",
    },
    "fn_simmatch_official_schedule": {"out/lr": "library"},
    "fn_comatch_official_schedule": {
        "out/lr": "library",
        "out/lr (warm-up)": "reference only",
    },
    "solo_simclr": {
        "out/loss": "library",
        "grad/z": "library",
        "out/loss (many positives)": "reference only",
        "grad/z (many positives)": "reference only",
    },
}


def rows(name):
    with jax.enable_x64(True):
        return functions.replay(Case(GOLDEN / f"{name}.npz"), TOLERANCE).rows()


def failed(name):
    return {row.quantity for row in rows(name) if not row.passed}


@pytest.mark.parametrize("name", SOURCES)
def test_the_library_equals_the_reference(name):
    found = rows(name)
    assert not any(isinstance(row, Unknown) for row in found)
    assert {row.quantity: row.source for row in found} == SOURCES[name]
    assert [row for row in found if not row.passed] == []


def test_a_wrong_loss_fails(monkeypatch):
    wrong = lambda *pair: 1.0001 * losses.nt_xent(*pair)  # noqa: E731
    monkeypatch.setattr(functions_contrastive, "nt_xent", wrong)
    assert failed("solo_simclr") == {"out/loss", "grad/z"}


def test_a_wrong_rate_fails(monkeypatch):
    monkeypatch.setattr(schedules, "cosine", schedules.cosine_7_16)
    assert failed("fn_simmatch_official_schedule") == {"out/lr"}


def test_wrong_averages_fail(monkeypatch):
    push = alignment.push

    def late(queue, rows):
        return push(queue, {"marginal": jnp.roll(rows["marginal"], 1, axis=-1)})

    monkeypatch.setattr(alignment, "push", late)
    assert failed("fn_dist_align") == {"out/queue/aligned", "out/queue/p_model_final"}


def test_a_wrong_alignment_fails_under_its_override(monkeypatch):
    align = alignment.align

    def wrong(log_probabilities, marginal, prior):
        return align(log_probabilities, marginal**2, prior)

    replaced = partial(functions_alignment.padded, wrong)
    monkeypatch.setattr(functions_alignment, "align", replaced)
    assert failed("fn_dist_align") == {"out/ema/aligned", "out/queue/aligned"}
