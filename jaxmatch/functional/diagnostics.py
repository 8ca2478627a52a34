"""Metrics that methods report of their unlabeled batch."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxmatch.functional.similarity import normalize
from jaxmatch.types import Array, Ratio

COLLAPSED = 0.05  # of feature_spread: the mean embedding has a length of 0.999


def pseudo_label_metrics(
    weak: Array, confident: Array, label: Array | None, strong: Array | None = None
) -> dict[str, Array | Ratio]:
    """Coverage of the threshold, and accuracies where the true labels are known.

    Args:
        weak: [b C] logits or probabilities that the pseudo-labels are the argmax of.
        confident: [b] bool, which of them are used, or how much they count, in [0, 1].
        label: [b] true labels, -1 = unknown; read by metrics only.
        strong: [b C] logits of the strong views, if the method has them.
    """
    metrics: dict[str, Array | Ratio] = {"pseudo/coverage": confident.mean()}
    if label is None:
        return metrics
    known = label >= 0
    right = (weak.argmax(-1) == label) & known
    metrics["pseudo/accuracy"] = Ratio((right * confident).sum(), (known * confident).sum())
    return {**metrics, **unlabeled_accuracy(weak, label, strong)}


def unlabeled_accuracy(
    weak: Array, label: Array | None, strong: Array | None = None
) -> dict[str, Array | Ratio]:
    """Accuracies of predictions [b C], as :func:`pseudo_label_metrics`, of any method."""
    if label is None:
        return {}
    views = {"weak": weak} if strong is None else {"weak": weak, "strong": strong}
    known = label >= 0
    return {
        f"unlabeled/{name}_accuracy": Ratio(
            ((prediction.argmax(-1) == label) & known).sum(), known.sum()
        )
        for name, prediction in views.items()
    }


def feature_spread(embeddings: Array) -> dict[str, Array]:
    """Whether embeddings collapse: ``features/spread``, which falls to 0 when all become equal.

    It is the standard deviation of a coordinate of the unit embeddings over the batch, averaged
    over the coordinates, times sqrt(d): about 1 where they fill the sphere evenly (Chen & He,
    "Exploring Simple Siamese Representation Learning", CVPR 2021, section 4.1,
    https://arxiv.org/abs/2011.10566).

    Args:
        embeddings: [b d], normalised here.
    """
    unit = normalize(jax.lax.stop_gradient(embeddings))
    return {"features/spread": jnp.std(unit, axis=0).mean() * unit.shape[1] ** 0.5}


def collapsed(metrics: Mapping[str, float]) -> bool:
    """Whether the embeddings of an interval are all but equal, by its :func:`feature_spread`."""
    return metrics.get("features/spread", 1.0) < COLLAPSED
