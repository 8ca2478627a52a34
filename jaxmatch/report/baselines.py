"""The page of `jaxmatch baseline`: what classical classifiers reach with the same labels."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table


def page(found: Mapping[str, Any]) -> RenderableType:
    """A table with a row for each baseline, then what it was measured on.

    Args:
        found: the result of :func:`jaxmatch.evaluation.baselines.measure`.
    """
    parts = ["test", *(["validation"] if found["validation"] else [])]
    table = Table(
        "classifier on pixels",
        *(name for part in parts for name in (f"{part} accuracy", "balanced")),
        title=f"{found['data']}, {found['labels']:,} labels, seed {found['seed']}",
    )
    for one in found["baselines"].values():
        scores = [
            one[part][metric] for part in parts for metric in ("accuracy", "balanced_accuracy")
        ]
        name = one["title"].removesuffix(" on pixels")
        table.add_row(name, *(f"{score:.1%}" for score in scores))
    height, width, channels = found["pixels"]
    counts = [f"{found[part]:,} {part}" for part in ("unlabeled", *parts)]
    lines = [
        f"Images: {', '.join(counts)}. Pixels: {height}x{width}, {channels} "
        f"{'channel' if channels == 1 else 'channels'}.",
        *found["notes"],
        *(
            f"{one['title'].removesuffix(' on pixels')}: {one['settings']}."
            for one in found["baselines"].values()
        ),
    ]
    return Group(table, *lines)
