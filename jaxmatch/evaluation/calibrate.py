"""Fits the temperatures of a run that exists to its validation set, and keeps them with the run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxmatch.errors import InputError
from jaxmatch.evaluation.bootstrap import Resampling
from jaxmatch.evaluation.classifier import NETWORKS, Classifier, load
from jaxmatch.evaluation.temperature import of_networks
from jaxmatch.record.data import Data
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import in_summary
from jaxmatch.record.run_data import load_recorded


def calibrate(
    workdir: str | Path, step: int | str | None = None, place: str = ""
) -> tuple[Classifier, dict[str, Any]]:
    """Write ``calibration.json`` of one step, and the metrics in ``summary.json`` that follow.

    Only a summary of the same step changes.

    Args:
        workdir: the run folder.
        step: of the checkpoint, as of :func:`jaxmatch.evaluation.classifier.load`.
        place: where the data is now, if it has moved.

    Returns:
        The calibrated classifier, and its calibration
        (:func:`jaxmatch.evaluation.temperature.of_networks`).

    Raises:
        InputError: if there is no such checkpoint, or the run has no classifier or validation set.
        DiskError: if a file cannot be written.
    """
    classifier = load(workdir, step, calibrated=False)
    classifier.check_classifies()
    data = load_recorded(classifier.config, classifier.folder, place=place, needed="held")
    images, labels = data.validation_images, data.validation_labels
    found = None
    if images is not None and labels is not None:
        logits = {network: classifier.logits(images, network) for network in NETWORKS}
        found = of_networks(logits, labels)
    if found is None:
        raise InputError(
            f"{workdir} has no validation set, which a temperature is fitted to. Images that the "
            "run trained on would not do; train a new run with --config.data.validation=N, which "
            "holds out N of the labeled images."
        )
    files = RunFolder(classifier.folder)
    calibrated = replace(classifier, calibration=found)
    files.write_calibrations({**files.read_calibrations(), classifier.step: found})
    _repeat_summary(files, calibrated, data)
    return calibrated, found


def _repeat_summary(files: RunFolder, classifier: Classifier, data: Data) -> None:
    """Measure the metrics in the summary again."""
    summary = files.read_summary()
    if summary is None or summary["steps"] != classifier.step:
        return
    parts = (
        (summary, data.source.test_images, data.source.test_labels),
        (summary.get("validation") or {}, data.validation_images, data.validation_labels),
    )
    for part, images, labels in parts:
        for network in NETWORKS:
            if "metrics" in (part.get(network) or {}) and images is not None and labels is not None:
                resampling = Resampling() if "intervals" in part[network] else None
                metrics = classifier.score(images, labels, network, resampling)
                part[network] |= in_summary(metrics)
    files.write_summary(summary)
