"""The losses of MoCo v2, BYOL and SwAV equal the recorded ones; a wrong library fails its case."""

from pathlib import Path

import jax
import pytest

from experiments.parity import functions, functions_pretraining
from experiments.parity.rows import TOLERANCE, Case, Unknown
from jaxmatch.algorithms import byol, swav
from jaxmatch.functional.losses import info_nce
from jaxmatch.functional.memory import push
from jaxmatch.functional.sinkhorn import sinkhorn

GOLDEN = Path(__file__).parents[1] / "golden"
SOURCES = {
    "solo_mocov2plus": dict.fromkeys(
        ("out/loss", "grad/q1", "grad/q2", "out/queue", "out/queue_ptr"), "library"
    ),
    "solo_byol_simsiam": {
        "out/loss": "library",
        "grad/p": "library",
        "out/loss (SimSiam)": "reference only",
        "grad/p (SimSiam)": "reference only",
    },
    "solo_swav": dict.fromkeys(
        ("out/sinkhorn", "out/loss", "grad/swav/0", "grad/swav/1"), "library"
    ),
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


def test_a_wrong_contrast_fails(monkeypatch):
    def warmer(query, key, queue, temperature, valid):
        return info_nce(query, key, queue, 1.0001 * temperature, valid)

    monkeypatch.setattr(functions_pretraining, "info_nce", warmer)
    assert failed("solo_mocov2plus") == {"out/loss", "grad/q1", "grad/q2"}


def test_wrong_assignments_fail(monkeypatch):
    def warmer(scores, *, epsilon, iterations):
        return sinkhorn(scores, epsilon=1.0001 * epsilon, iterations=iterations)

    monkeypatch.setattr(functions_pretraining, "sinkhorn", warmer)
    assert failed("solo_swav") == {"out/sinkhorn"}


def test_a_wrong_swapped_prediction_fails(monkeypatch):
    original = swav.swapped_prediction

    def warmer(scores, codes, temperature):
        return original(scores, codes, 1.0001 * temperature)

    monkeypatch.setattr(swav, "swapped_prediction", warmer)
    assert failed("solo_swav") == {"out/loss", "grad/swav/0", "grad/swav/1"}


def test_a_wrong_queue_fails(monkeypatch):
    def reversed_push(queue, keys):
        return push(queue, {"embedding": keys["embedding"][::-1]})

    monkeypatch.setattr(functions_pretraining, "push", reversed_push)
    assert failed("solo_mocov2plus") == {"out/queue"}  # the loss does not know an order


def test_a_wrong_regression_fails(monkeypatch):
    halved = lambda *pair: byol.regression(*pair) / 2  # noqa: E731
    monkeypatch.setattr(functions_pretraining, "regression", halved)
    assert failed("solo_byol_simsiam") == {"out/loss", "grad/p"}
