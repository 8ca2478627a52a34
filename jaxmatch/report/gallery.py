"""Images of runs with their predictions, as parts of a page."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmatch.errors import JaxmatchError, counted
from jaxmatch.report.html import folded, table, text, thumbnail
from jaxmatch.report.results import Group, Run
from jaxmatch.report.shares import shares

MOST_RUNS = 3  # a report of more runs has no gallery unless it is asked for
MOST_GALLERIES = 7  # that a page has at most, so that its size is bounded
MOST_CLASSES = 100  # whose intervals are listed

KINDS = (
    (
        "mistakes",
        "The most confident mistakes",
        "Test images that are classified wrong. Some labels of the data may be wrong themselves.",
    ),
    (
        "uncertain",
        "The least certain test images",
        "Images of the test set with the smallest confidence.",
    ),
    (
        "wrong_pseudo_labels",
        "Unlabeled images whose pseudo-label is wrong",
        "Their true classes are known, but the run did not learn from them.",
    ),
)


def sections(groups: Sequence[Group], place: str = "") -> str:
    """A gallery of the first finished run of each group; a sentence in place of one that fails.

    Args:
        groups: of the page.
        place: where the data is now, if it has moved.
    """
    from jaxmatch.evaluation.examples import examples  # what follows imports the networks

    parts = []
    classifying = [  # a run without labels has no classifier
        group
        for group in groups
        if group.counted[0].accuracy("last", group.counted[0].evaluated) is not None
    ]
    for group in classifying[:MOST_GALLERIES]:
        run = group.counted[0]
        try:
            found = examples(run.folder, place)
        except JaxmatchError as error:
            parts.append(f"<p>No images of {text(group.label)} are shown: {text(error)}</p>")
            continue
        seed = f", seed {run.settings['seed']}" if len(group.counted) > 1 else ""
        title = f"Images: {text(group.label)}{seed}, {_when(run, found['step'])}"
        parts.append(f"<h2>{title}</h2>\n{gallery(found)}")
    if len(classifying) > MOST_GALLERIES:
        parts.append(
            f'<p class="soft">Images of the first {MOST_GALLERIES} of {len(classifying)} groups '
            "are shown.</p>"
        )
    return "\n".join(parts)


def _when(run: Run, step: int) -> str:
    """The step of the images' checkpoint, and which one of the run it is."""
    if step == run.stages[-1].summary["steps"]:
        return f"at step {step:,}, the last"
    return f"at step {step:,}{', the selected one' if run.settings['select'] else ''}"


def gallery(found: Mapping[str, Any]) -> str:
    """The content of :func:`jaxmatch.evaluation.examples.examples`."""
    numbers = {name: found.get(name, [0, 0]) for name in ("test", "unlabeled")}
    drawn = [
        f"{some:,} of {every:,} {name} images"
        for name, (some, every) in numbers.items()
        if some < every
    ]
    parts = [figures(found)]
    parts += [f'<p class="soft">Chosen from {" and ".join(drawn)}.</p>'] if drawn else []
    for kind, title, meaning in KINDS:
        if found[kind]:
            parts.append(f'<h3>{title}</h3>\n<p class="soft">{meaning}</p>\n{_images(found[kind])}')
    titles = {
        name: f"{text(name)}: {counted(each['count'], 'image')}"
        for name, each in found["by_class"].items()
    }
    classes = [
        f"<p><b>{title}</b></p>\n{_images(found['by_class'][name]['examples'])}"
        for name, title in titles.items()
    ]
    if classes:
        order = '<p class="soft">From the most to the least confident prediction.</p>'
        title = "Unlabeled images by predicted class"
        parts.append(folded(title, "\n".join([order, *classes])))
    return "\n".join(parts)


def figures(found: Mapping[str, Any]) -> str:
    """The accuracy with its interval, and, on demand, all metrics and those of the classes."""
    metrics, bounds = found["metrics"], found["intervals"]
    scalars = [name for name in metrics if isinstance(bounds.get(name), list)]
    rows = [
        {"metric": name.replace("_", " "), "value": _with_interval(metrics[name], bounds[name])}
        for name in scalars
    ]
    classes = [
        {
            "class": name,
            "images": f"{each['support']:,}",
            **{
                share: _with_interval(shares(each)[share], bounds["per_class"][name][share])
                for share in ("recall", "precision", "f1")
            },
        }
        for name, each in list(metrics["per_class"].items())[:MOST_CLASSES]
    ]
    if not rows:
        return ""
    accuracy = _with_interval(metrics["accuracy"], bounds["accuracy"])
    return (
        f"<p>Test accuracy: <b>{accuracy}</b>. In brackets the interval that 95% of resampled test "
        "sets give (bootstrap).</p>\n"
        + folded("All metrics with their intervals", table(rows))
        + folded("Classes with their intervals", table(classes))
    )


def _with_interval(value: float | None, bounds: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else "")


def _images(found: Sequence[Mapping[str, Any]]) -> str:
    return f'<ul class="images">{"".join(map(_image, found))}</ul>'


def _image(one: Mapping[str, Any]) -> str:
    content = base64.b64decode(one["picture"])
    wrong = one["truth"] not in ("", one["prediction"])
    truth = f"<br>is {text(one['truth'])}" if one["truth"] else ""
    predicted = f"<b{' class=wrong' if wrong else ''}>{text(one['prediction'])}</b>"
    return (
        f"<li>{thumbnail(content, one['name'])}"
        f"{predicted} {one['confidence']:.0%}{truth}"
        f'<span class="name" title="{text(one["name"])}">{text(one["name"])}</span></li>'
    )
