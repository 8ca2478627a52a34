"""Metrics that every pseudo-labeling method reports of its unlabeled batch."""

from jaxmatch.types import Array, Ratio


def pseudo_label_metrics(
    weak: Array, confident: Array, label: Array | None, strong: Array | None = None
) -> dict[str, Array | Ratio]:
    """Coverage of the threshold, and accuracies where the true labels are known.

    Args:
        weak: [b C] logits or probabilities that the pseudo-labels are the argmax of.
        confident: [b] bool, which of them are used.
        label: [b] true labels, -1 = unknown; read by metrics only.
        strong: [b C] logits of the strong views, if the method has them.
    """
    metrics: dict[str, Array | Ratio] = {"pseudo/coverage": confident.mean()}
    if label is None:
        return metrics
    known = label >= 0
    right = (weak.argmax(-1) == label) & known
    metrics["pseudo/accuracy"] = Ratio((right & confident).sum(), (known & confident).sum())
    metrics["unlabeled/weak_accuracy"] = Ratio(right.sum(), known.sum())
    if strong is not None:
        right_strong = (strong.argmax(-1) == label) & known
        metrics["unlabeled/strong_accuracy"] = Ratio(right_strong.sum(), known.sum())
    return metrics
