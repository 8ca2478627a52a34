"""Held-out metrics: one table, of which training records every entry."""

import numpy as np
import pytest

from jaxmatch.evaluation import metrics
from jaxmatch.evaluation.forward import Answers


def answers(readable=(True, True, True, True)):
    """Probabilities of three classes for four images, whose largest are 0, 1, 2 and 2."""
    rows = [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.0, 0.1, 0.9], [0.1, 0.4, 0.5]]
    return Answers(np.array(rows, np.float32), np.array(readable))


def test_only_readable_images_count():
    labels = np.array([0, 1, 2, 0])
    assert metrics.score(answers(), labels) == {"accuracy": 0.75}
    assert metrics.score(answers((False, True, True, True)), labels) == {"accuracy": 2 / 3}


def test_a_metric_is_a_function_and_a_line(monkeypatch):
    def negative_log_likelihood(probabilities, labels):
        return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())

    monkeypatch.setattr(metrics, "METRICS", metrics.METRICS | {"nll": negative_log_likelihood})
    found = metrics.score(answers(), np.array([0, 1, 2, 0]))
    assert found["nll"] == pytest.approx(-np.log([0.6, 0.5, 0.9, 0.1]).mean(), rel=1e-6)
    assert found["accuracy"] == 0.75
