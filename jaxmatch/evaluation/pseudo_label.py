"""Pseudo-labels of the unlabeled images of several runs, averaged: ensembled self-training.

Zhang et al., "Revisiting Semi-Supervised Learning in the Era of Foundation Models", NeurIPS 2025,
https://arxiv.org/abs/2503.09707: networks of other kinds, or fine-tuned in other ways, make other
errors, so that their average labels the unlabeled images better than each of them. A last run
learns from all of these labels (``data.pseudo_labels``).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from jaxmatch.data import splits
from jaxmatch.errors import InputError, some
from jaxmatch.evaluation.classifier import load
from jaxmatch.record import pseudo_labels, run_data
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.pseudo_labels import Table


class Predicted(NamedTuple):
    """The predictions of a run for its unlabeled images, in storage order."""

    folder: Path
    classes: tuple[str, ...]
    names: tuple[str, ...]
    contents: tuple[str, ...]
    probabilities: np.ndarray  # [n C] float32; NaN for unreadable images
    of_files: bool


def probability(stacked: np.ndarray) -> np.ndarray:
    """The mean over runs [r n C] of probabilities: [n C]."""
    return stacked.mean(0)


def rank(stacked: np.ndarray) -> np.ndarray:
    """The mean over runs [r n C] of the classes' ranks in each image, as shares of 1: [n C].

    The least probable of C classes has 0 points and the most probable C - 1; equal ones share their
    points (Borda's count). So only the order of a run's classes counts, not how confident it is.
    """
    points = rankdata(stacked, axis=-1) - 1
    return points.mean(0) / (stacked.shape[-1] * (stacked.shape[-1] - 1) / 2)


def vote(stacked: np.ndarray) -> np.ndarray:
    """The share of runs [r n C] that predict each class: [n C].

    So each run counts equally, however confident it is.
    """
    return np.eye(stacked.shape[-1])[stacked.argmax(-1)].mean(0)


AVERAGES = MappingProxyType({"probability": probability, "rank": rank, "vote": vote})


def averaged(stacked: np.ndarray, average: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The labels [n], their confidence [n] and the averages [n C] of the runs' probabilities.

    Between classes with equal averages the larger mean probability decides. The confidence is the
    average of the label; of ranks it is that of the best possible one, so that it is 1 if all runs
    agree.

    Args:
        stacked: [r n C], probabilities of r runs; NaN where an image is unreadable. Such an image
            has the label -1.
        average: a name in :data:`AVERAGES`.
    """
    readable = np.isfinite(stacked).all((0, 2))
    values = stacked.astype(np.float64)[:, readable]
    found = np.full(stacked.shape[1:], np.nan)
    found[readable] = means = AVERAGES[average](values)
    best = np.isclose(means, means.max(1, keepdims=True), rtol=0, atol=1e-9)
    labels = np.full(len(found), -1)
    labels[readable] = np.where(best, values.mean(0), -1).argmax(1)
    confidence = np.full(len(found), np.nan)
    most = stacked.shape[-1] / 2 if average == "rank" else 1.0
    confidence[readable] = means[np.arange(len(means)), labels[readable]] * most
    return labels, confidence, found


def make(
    workdirs: Sequence[str | Path],
    average: str = "probability",
    step: int | str | None = None,
    place: str = "",
) -> tuple[Table, bool]:
    """The averaged pseudo-labels of runs with the same data, labeled images and classes.

    Each run predicts by the network that it reports, on images without augmentation. It predicts
    its unlabeled training images alone: neither validation nor test images.

    Args:
        workdirs: the run folders; of a run in stages the last stage counts.
        average: a name in :data:`AVERAGES`.
        step: the checkpoints' step, "best" or "newest"; by default as in
            :func:`jaxmatch.evaluation.classifier.load`.
        place: where the data is now, if it has moved.

    Returns:
        The pseudo-labels, and whether their names are paths.

    Raises:
        InputError: if a folder is no run with a classifier or is named twice, or the runs have
            different classes or unlabeled images.
    """
    if average not in AVERAGES:
        raise InputError(f"unknown average {average!r}; known: {', '.join(AVERAGES)}.")
    folders = [os.path.realpath(RunFolder.at(workdir).path) for workdir in workdirs]
    for number, folder in enumerate(folders):
        if folder in folders[:number]:  # it would have two votes
            raise InputError(f"{workdirs[number]} is named twice; name each run once.")
    runs = [predicted(workdir, step, place) for workdir in workdirs]
    for other in runs[1:]:
        check_same(runs[0], other)
    labels, confidence, found = averaged(np.stack([run.probabilities for run in runs]), average)
    return Table(
        names=runs[0].names,
        contents=runs[0].contents,
        classes=runs[0].classes,
        confidence=confidence.astype(np.float32),
        probabilities=found.astype(np.float32),
        labels=labels,
    ), runs[0].of_files


def predicted(workdir: str | Path, step: int | str | None = None, place: str = "") -> Predicted:
    """The predictions of one run; arguments and errors are those of :func:`make`."""
    classifier = load(workdir, step)
    if not classifier.program.algorithm.labeled:
        raise InputError(
            f"{workdir} was trained without labels and has no classifier; fine-tune it first "
            "(--config=finetune, --config.init_from)."
        )
    data = run_data.load_recorded(classifier.config, classifier.folder, place=place)
    source = data.source
    labeled = splits.locate(source, data.split)
    unlabeled = np.setdiff1d(np.arange(len(source.rows)), labeled)
    if not len(unlabeled):
        raise InputError(f"{workdir} has no unlabeled images; every training image is labeled.")
    rows = source.rows[unlabeled]
    return Predicted(
        folder=classifier.folder,
        classes=classifier.classes,
        names=pseudo_labels.names(source, rows),
        contents=pseudo_labels.contents(source, data.record, rows),
        probabilities=classifier.predict(source.images[unlabeled]).probabilities,
        of_files=source.listed is not None,
    )


def check_same(one: Predicted, other: Predicted) -> None:
    """Check that two runs have the same classes and the same unlabeled images.

    Raises:
        InputError: if not; it names the first image that differs.
    """
    both = f"{one.folder} and {other.folder}"
    if one.classes != other.classes:
        raise InputError(
            f"{both} tell other classes apart: {some(one.classes)}, and {some(other.classes)}; "
            "give runs on the same classes."
        )
    known: tuple[Mapping[str, Any], ...] = tuple(
        dict(zip(run.names, run.contents, strict=True)) for run in (one, other)
    )
    for name in sorted(known[0].keys() ^ known[1].keys()):
        raise InputError(
            f"{both} have other unlabeled images: {name!r} is one in only one of them; give runs "
            "with the same data, labeled images and validation set."
        )
    for name, content in known[0].items():
        if known[1][name] != content:
            raise InputError(
                f"{both} have other images: {name!r} differs in content; give runs on the same "
                "data."
            )
