"""Metrics of a classifier on held-out images: functions of probabilities and labels, in one table.

A new metric is a function here and its line in :data:`METRICS`. Training then records it as
``test/<network>/<metric>`` and ``validation/<network>/<metric>``.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from jaxmatch.evaluation.forward import Answers

# Probabilities [n C], whose rows sum to 1, and labels [n], positions in 0..C-1, to the metric.
Metric = Callable[[np.ndarray, np.ndarray], float]


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose most probable class is their label."""
    return float(np.mean(probabilities.argmax(-1) == labels))


METRICS: Mapping[str, Metric] = MappingProxyType({"accuracy": accuracy})


def score(answers: Answers, labels: np.ndarray) -> dict[str, float]:
    """All metrics, by name, of the probabilities in ``answers`` [n C] for the true ``labels`` [n].

    Unreadable images do not count.
    """
    probabilities, known = answers.values[answers.readable], labels[answers.readable]
    return {name: metric(probabilities, known) for name, metric in METRICS.items()}
