"""Metrics that methods report of their unlabeled batch."""

from jaxmatch.types import Array, Ratio


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
