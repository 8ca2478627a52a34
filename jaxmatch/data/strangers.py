"""An experiment with strangers: some classes of a data set are known, images of the others are not.

The protocol is that of Saito et al., "OpenMatch", NeurIPS 2021, section 4,
https://arxiv.org/abs/2105.14148: labels and test images are of the known classes, while the
unlabeled images are of all classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxmatch.data.source import Source
from jaxmatch.errors import InputError, some, suggest
from jaxmatch.types import STRANGER

PART = "known_classes"  # key in Source.parts


def with_strangers(source: Source, known: Sequence[str], keep: bool = True) -> Source:
    """The source with the ``known`` classes only, in the source's order.

    Training images of other classes have the label ``STRANGER``, which only metrics read. Held-out
    images of other classes are left out.

    Args:
        source: the whole data set, which is no folder.
        known: names of at least two of its classes.
        keep: keep training images of other classes.

    Raises:
        InputError: if the names do not fit, or the source is a folder.
    """
    if source.listed is not None:
        raise InputError(
            f"data.known_classes is for data sets whose classes are all known. In {source.name} "
            "move the images of other classes to unlabeled/, and leave it out."
        )
    for name, count in Counter(known).items():
        if name not in source.classes:
            raise InputError(
                f"data.known_classes names {name!r}, which is no class of {source.name}; "
                f"{suggest(name, source.classes)}"
            )
        if count > 1:
            raise InputError(f"data.known_classes names {name!r} twice.")
    if len(known) < 2:
        raise InputError("data.known_classes must name at least two classes.")
    kept = [number for number, name in enumerate(source.classes) if name in known]
    others = [name for name in source.classes if name not in known]
    table = np.full(len(source.classes), STRANGER, np.int32)
    table[kept] = np.arange(len(kept))

    def renamed(labels: np.ndarray) -> np.ndarray:
        return np.where(labels >= 0, table[labels], labels).astype(np.int32)

    labels, tests, validations = map(
        renamed, (source.labels, source.test_labels, source.validation_labels)
    )
    stays = np.full(len(labels), True) if keep else labels != STRANGER
    use = f"{(labels == STRANGER).sum():,} training images of other classes ({some(others)}) are "
    use += "unlabeled images." if keep else "left out."
    return replace(
        source,
        classes=tuple(source.classes[number] for number in kept),
        images=source.images[stays],
        labels=labels[stays],
        rows=source.rows[stays],
        test_images=source.test_images[tests != STRANGER],
        test_labels=tests[tests != STRANGER],
        validation_images=source.validation_images[validations != STRANGER],
        validation_labels=validations[validations != STRANGER],
        # Which images a run has follows from the setting, too; this keeps them apart in caches.
        parts={**source.parts, PART: f"{','.join(map(str, kept))} {'all' if keep else 'alone'}"},
        survey=replace(source.survey, notes=(*source.survey.notes, use)),
    )
