"""Whether a trained network beats the baselines for its labels."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

ON_FEATURES = "features_"  # begins the names of baselines on features of a network
TITLES = {
    "logistic_regression": "logistic regression on pixels",
    "svc": "SVC on pixels",
    "knn": "k-NN on pixels",
    "label_spreading": "label spreading on pixels",
    "features_logistic_regression": "logistic regression on features",
    "features_knn": "k-NN on features",
    "features_label_spreading": "label spreading on features",
    "features_self_training": "self-training on features",
}


def compare(summary: Mapping[str, Any], baselines: Mapping[str, Any]) -> str | None:
    """A sentence if a run does not beat the best baseline for its labels; None if it does.

    It compares the last test accuracy of the network that the method reports and, if the summary
    has it, the balanced accuracy.

    Args:
        summary: the content of ``summary.json``.
        baselines: the content of ``baselines.json`` (:mod:`jaxmatch.evaluation.baselines`).
    """
    return verdict(summary["algorithm"], [summary], [baselines])


def verdict(
    name: str, summaries: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]]
) -> str | None:
    """As :func:`compare`, for the means over several runs and over the baselines of each.

    >>> run = {"evaluated": "teacher", "teacher": {"last": 0.665}}
    >>> svc = {"title": "SVC on pixels", "test": {"accuracy": 0.754, "balanced_accuracy": 0.7}}
    >>> verdict("fixmatch", [run], [{"baselines": {"svc": svc}}])
    'fixmatch does not beat SVC on pixels: test accuracy 66.5% against 75.4%.'
    """
    lost = []
    for metric, word in (("accuracy", "test accuracy"), ("balanced_accuracy", "balanced accuracy")):
        own = [_accuracy(summary, metric) for summary in summaries]
        known = [value for value in own if value is not None]
        best = best_of(baselines, metric)
        if not known or len(known) < len(own) or best is None:
            continue
        if fmean(known) <= best[1] and fmean(known) < 1:  # nothing beats 100%
            lost.append((best[0], f"{word} {fmean(known):.1%} against {best[1]:.1%}"))
    if not lost:
        return None
    titles = list(dict.fromkeys(title for title, _ in lost))
    return f"{name} does not beat {' and '.join(titles)}: {', '.join(t for _, t in lost)}."


def best_of(baselines: Sequence[Mapping[str, Any]], metric: str) -> tuple[str, float] | None:
    """Title and value of the best baseline by its mean test metric; None if there are none."""
    means = {TITLES.get(name, name): value for name, value in mean_of(baselines, metric).items()}
    return max(means.items(), key=lambda item: item[1]) if means else None


def mean_of(baselines: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """The mean of a test metric by baseline, of those that all of ``baselines`` hold."""
    names = [set(some["baselines"]) for some in baselines]
    shared = set.intersection(*names) if names else set()
    return {
        name: fmean(some["baselines"][name]["test"][metric] for some in baselines)
        for name in TITLES
        if name in shared
    }


def _accuracy(summary: Mapping[str, Any], metric: str) -> float | None:
    """The last accuracy, or another last metric, of the network that a method reports."""
    network = summary.get(summary["evaluated"]) or {}
    return network.get("last") if metric == "accuracy" else network.get("metrics", {}).get(metric)
