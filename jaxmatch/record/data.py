"""The data of a run in host memory, with what identifies it and warnings about it."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from jaxmatch.data import splits
from jaxmatch.data.added import Added
from jaxmatch.data.copies import array_hashes, contradictions, copies, listed_hashes
from jaxmatch.data.facts import Facts
from jaxmatch.data.lazy import Images
from jaxmatch.data.record import Record, file_hashes
from jaxmatch.data.source import Source
from jaxmatch.data.splits import Split
from jaxmatch.record.pseudo_labels import PseudoLabels
from jaxmatch.runtime import paths


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images of a run in host memory.

    Attributes:
        source: training and test images, without those of the validation set.
        split: the labeled examples; none for a label-free method.
        include_labeled: whether the unlabeled pool contains the labeled examples.
        validation_images: [v h w 3] uint8; None without a validation set.
        validation_labels: [v] int32.
        validation_rows: positions of the validation images in storage order, sorted.
        name: as configured.
        directory: of a prepared TFDS set, as configured.
        known: the record that an earlier command wrote; None for a new run.
        earlier: the records of the runs that this one starts from or learns from.
        pseudo: the pseudo-labels that ``data.pseudo_labels`` names.
        learns_pseudo: whether images with pseudo-labels are further labeled examples.
        added: the class of each labeled example that ``data.added_labels`` adds, by its row.
        unused: number of training images that the split leaves out of the unlabeled pool.
    """

    source: Source
    split: Split
    include_labeled: bool = True
    validation_images: Images | None = None
    validation_labels: np.ndarray | None = None
    validation_rows: tuple[int, ...] = ()
    name: str = ""
    directory: str = ""
    known: Record | None = None
    earlier: tuple[Record, ...] = ()
    pseudo: PseudoLabels | None = None
    learns_pseudo: bool = False
    added: Added = field(default_factory=dict)
    unused: int = 0

    @cached_property
    def record(self) -> Record:
        """Identifies the images for later commands; hashes of streamed images are taken now."""
        if self.known is not None:
            return self.known
        source = self.source
        listed = source.listed
        if listed is not None:
            if not listed.apart:
                listed = replace(listed, validation=self.validation_rows)
            if not any(listed.hashes):  # streamed images have none yet
                rows = sorted({*self.split.indices.tolist(), *listed.validation, *listed.test})
                names = [listed.names[row] for row in rows]
                hashes = dict(
                    zip(rows, file_hashes(paths.path(source.location), names), strict=True)
                )
                listed = replace(
                    listed, hashes=tuple(hashes.get(row, "") for row in range(len(listed.names)))
                )
        return Record(
            name=self.name,
            directory=self.directory,
            location=source.location,
            classes=source.classes,
            parts=source.parts,
            listed=listed,
            added=tuple(sorted(self.added.items())),
        )

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about images that are in two sets of this run, or in one of an earlier run."""
        return (*self.copies(), *self.seen_by(self.earlier))

    def seen_by(self, earlier: Iterable[Record]) -> list[str]:
        """Warnings of earlier runs that were trained on test images of this run.

        Args:
            earlier: the records of the runs that this one starts from or learns from.
        """
        listed = self.record.listed
        if listed is None:
            return []
        tests, texts = listed_hashes(listed, listed.test), []
        for record in earlier:
            theirs = record.listed
            if theirs is None or theirs.ends != listed.ends:
                continue
            seen = set(listed_hashes(theirs, theirs.training.tolist()).values()) - {""}
            if names := [name for name, found in tests.items() if found in seen]:
                texts.append(
                    f"{len(names)} test images, such as {names[0]}, were training images of an "
                    "earlier run that this one builds on: the accuracy will be too high."
                )
        return texts

    def copies(self) -> list[str]:
        """Warnings of images that two sets or classes of this run have in common, by content."""
        source, listed = self.source, self.record.listed
        labeled = set(self.split.indices.tolist())
        pool = source.rows.tolist()
        classes = {
            row: source.classes[label]
            for row, label in zip(pool, source.labels.tolist(), strict=True)
            if label >= 0
        }
        if listed is not None:
            rows = {
                "test": listed.test,
                "validation": listed.validation,
                "labeled": sorted(labeled),
                "unlabeled": [row for row in pool if row not in labeled],
            }
            known = {listed.names[row]: name for row, name in classes.items()}
            return [
                *contradictions(listed_hashes(listed, pool), known),
                *copies({name: listed_hashes(listed, some) for name, some in rows.items()}),
            ]
        training = array_hashes(source.images, "training image")
        of = dict(zip(pool, training.items(), strict=False))
        sets = {
            "test": array_hashes(source.test_images, "test image"),
            "labeled": dict(of[row] for row in labeled if row in of),
            "unlabeled": dict(of[row] for row in pool if row in of and row not in labeled),
        }
        if self.validation_images is not None:
            sets["validation"] = array_hashes(self.validation_images, "validation image")
        known = {of[row][0]: name for row, name in classes.items() if row in of}
        return [*contradictions(training, known), *copies(sets)]

    def facts(self) -> Facts:
        """The facts that a trained run needs even if its data is gone."""
        source = self.source
        taken = 0 if self.include_labeled else len(self.split.indices)
        height, width, channels = source.images.shape[1:]
        return Facts(
            classes=source.classes,
            image_shape=(height, width, channels),
            labels=tuple(map(int, (*self.labels(), *self.more[1]))),
            unlabeled=len(source.images) - taken,
        )

    @property
    def more(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions and pseudo-labels of further labeled examples, each [m]; m is usually 0."""
        if self.pseudo is None or not self.learns_pseudo:
            return np.zeros(0, np.int64), np.zeros(0, np.int32)
        return self.pseudo.rows, self.pseudo.labels

    @property
    def labeled_images(self) -> Images:
        """The labeled examples [n h w 3] uint8, in split order."""
        return self.source.images[splits.locate(self.source, self.split)]

    def labels(self) -> np.ndarray:
        """The true label of each labeled example, in split order."""
        return self.source.labels[splits.locate(self.source, self.split)]
