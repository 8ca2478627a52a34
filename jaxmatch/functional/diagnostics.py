"""Metrics that methods report for their unlabeled batch.

An accuracy counts the images whose true label is known and that are no labeled examples of the run:
the run learns the labels of those, so that they would say nothing about unlabeled images.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxmatch.functional.similarity import normalize
from jaxmatch.types import STRANGER, Array, Ratio

# A features/spread below this is a collapse: the mean embedding then has a length above 0.998.
COLLAPSED = 0.05


def pseudo_label_metrics(
    weak: Float[Array, "b C"],
    confident: Bool[Array, "b"] | Float[Array, "b"],
    label: Int[Array, "b"] | None,
    strong: Float[Array, "b C"] | None = None,
) -> dict[str, Array | Ratio]:
    """Coverage of the threshold, and accuracies where the true labels are known.

    Coverage is the share of the whole batch, as the loss uses it. ``pseudo/strangers_passed`` is
    the share of the images of none of the classes, as far as they are known, that have a
    pseudo-label.

    >>> weak = jnp.array([[0.9, 0.1], [0.4, 0.6]])
    >>> metrics = pseudo_label_metrics(weak, weak.max(-1) > 0.8, jnp.array([0, 0]))
    >>> print(metrics["pseudo/coverage"], metrics["pseudo/accuracy"])
    0.5 Ratio(total=Array(1, dtype=int32), count=Array(1, dtype=int32))

    Args:
        weak: logits or probabilities; the pseudo-labels are their argmax.
        confident: which pseudo-labels are used, or their weight in [0, 1].
        label: true labels, -1 = unknown or a labeled example, ``STRANGER`` = of none of the
            classes; only metrics read them.
        strong: logits of the strong views, if the method has them.
    """
    metrics: dict[str, Array | Ratio] = {"pseudo/coverage": confident.mean()}
    if label is None:
        return metrics
    known, stranger = label >= 0, label == STRANGER
    right = (weak.argmax(-1) == label) & known
    metrics["pseudo/accuracy"] = Ratio((right * confident).sum(), (known * confident).sum())
    metrics["pseudo/strangers_passed"] = Ratio((stranger * confident).sum(), stranger.sum())
    return {**metrics, **unlabeled_accuracy(weak, label, strong)}


def stranger_metrics(
    judged: Bool[Array, "b"], label: Int[Array, "b"] | None
) -> dict[str, Array | Ratio]:
    """The share of a batch that a method judges strange, and of its known images among them.

    >>> metrics = stranger_metrics(jnp.array([True, False]), jnp.array([1, -2]))
    >>> print(metrics["pseudo/judged_strangers"], metrics["pseudo/knowns_left_out"].total)
    0.5 1

    Args:
        judged: which images the method takes for images of none of the classes.
        label: as of :func:`pseudo_label_metrics`.
    """
    metrics: dict[str, Array | Ratio] = {"pseudo/judged_strangers": judged.mean()}
    if label is None:
        return metrics
    known = label >= 0
    return {**metrics, "pseudo/knowns_left_out": Ratio((judged & known).sum(), known.sum())}


def unlabeled_accuracy(
    weak: Float[Array, "b C"],
    label: Int[Array, "b"] | None,
    strong: Float[Array, "b C"] | None = None,
) -> dict[str, Array | Ratio]:
    """Accuracies of the predictions on weak and strong views; arguments as above.

    >>> metrics = unlabeled_accuracy(jnp.array([[0.9, 0.1], [0.4, 0.6]]), jnp.array([0, -1]))
    >>> print(metrics["unlabeled/weak_accuracy"])
    Ratio(total=Array(1, dtype=int32), count=Array(1, dtype=int32))
    """
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


def feature_spread(embeddings: Float[Array, "b d"]) -> dict[str, Array]:
    """The metric ``features/spread``, which falls to 0 when all embeddings become equal.

    It is the standard deviation of a coordinate of the unit embeddings over the batch, averaged
    over the coordinates, times sqrt(d). It is about 1 where they fill the sphere evenly (Chen & He,
    "Exploring Simple Siamese Representation Learning", CVPR 2021, section 4.1,
    https://arxiv.org/abs/2011.10566).

    >>> print(feature_spread(jnp.ones((4, 3)))["features/spread"].round(4))
    0.0

    Args:
        embeddings: of any length; they are normalised here.
    """
    unit = normalize(jax.lax.stop_gradient(embeddings))
    return {"features/spread": jnp.std(unit, axis=0).mean() * unit.shape[1] ** 0.5}


def collapsed(metrics: Mapping[str, float]) -> bool:
    """Whether the embeddings of an interval are almost equal, by its :func:`feature_spread`.

    >>> collapsed({"features/spread": 0.01})
    True
    """
    return bool(metrics.get("features/spread", 1.0) < COLLAPSED)
