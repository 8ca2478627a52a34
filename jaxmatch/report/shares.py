"""Precision, recall and F1 of a class, as people read them."""

from collections.abc import Mapping
from typing import Any

SHARES = ("precision", "recall", "f1")


def shares(row: Mapping[str, Any]) -> dict[str, float | None]:
    """:data:`SHARES` of a class by their names.

    Recall and F1 of a class without images are None: they are shares of nothing.

    Args:
        row: of ``per_class`` (:mod:`jaxmatch.evaluation.metrics`).
    """
    return {key: row[key] if row["support"] or key == "precision" else None for key in SHARES}
