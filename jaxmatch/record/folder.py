"""The run folder: the paths of its files, and their contents, checked when they are read."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from jaxmatch.config.stages import stage_folders
from jaxmatch.data import record as records
from jaxmatch.data import splits
from jaxmatch.data.facts import Facts
from jaxmatch.data.record import Record
from jaxmatch.data.splits import Split
from jaxmatch.errors import DiskError, InputError
from jaxmatch.record import calibration, contents, unknown
from jaxmatch.record.calibration import Calibrations
from jaxmatch.record.unknown import KnownImages
from jaxmatch.runtime import paths
from jaxmatch.runtime.json_files import RESTORE, damaged, read_object, write_json

log = logging.getLogger(__name__)

Check = Callable[[dict[str, Any]], Any]  # raises ValueError if something is missing
Found = TypeVar("Found")

FINDINGS_ADVICE = "remove it, which only loses the text about the images"


def keep(write: Callable[[Found], None], found: Found) -> None:
    """Write what was measured and can be measured again; warn if the folder cannot be written."""
    try:
        write(found)
    except DiskError as error:
        log.warning("%s The result is not kept.", error)


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, or of a run in stages.

    Attributes:
        path: of the folder, which need not exist.
    """

    path: Path

    @classmethod
    def at(cls, place: str | Path) -> Self:
        """The folder of the run at ``place``; for a run in stages, the folder of its last stage.

        Raises:
            InputError: if its settings are damaged.
        """
        folder = cls(paths.path(place))
        values = folder.read_config()
        if values is None or "order" not in values:
            return folder
        return cls(folder.path / list(stage_folders(values))[-1])

    @property
    def config_file(self) -> Path:
        """The settings and the facts of the data."""
        return self.path / "config.json"

    @property
    def summary_file(self) -> Path:
        """The results; the file exists once all steps are taken."""
        return self.path / "summary.json"

    @property
    def baselines_file(self) -> Path:
        """The accuracies of classical classifiers; the file exists once somebody asked for them."""
        return self.path / "baselines.json"

    @property
    def calibration_file(self) -> Path:
        """The temperatures that probabilities are calibrated with; the file needs validation."""
        return self.path / "calibration.json"

    @property
    def unknown_file(self) -> Path:
        """How strange known images look; the file needs validation, or somebody who asked."""
        return self.path / "unknown.json"

    @property
    def examples_file(self) -> Path:
        """Some images with their predictions; the file exists once a report has shown them."""
        return self.path / "examples.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The metrics, a line of JSON for each time that the run logged or evaluated."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """The folder of the metrics for TensorBoard."""
        return self.path / "events"

    @property
    def interval_file(self) -> Path:
        """Sums of metrics since the last line, and seconds, at the newest checkpoints of a run.

        It is removed when the run is complete.
        """
        return self.path / "interval.json"

    @property
    def log(self) -> Path:
        """The messages for people."""
        return self.path / "log.txt"

    @property
    def curves(self) -> Path:
        """The plots of the metrics."""
        return self.path / "curves.png"

    @property
    def findings_file(self) -> Path:
        """What was found where the images are; runs of older versions lack it."""
        return self.path / "findings.json"

    @property
    def begun(self) -> bool:
        """Whether the run has chosen its images."""
        folder = self.checkpoints
        saved = folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())
        return saved or (self.path / splits.FILE).exists()

    @property
    def trained(self) -> bool:
        """Whether there are checkpoints or metrics."""
        return self.checkpoints.exists() or self.metrics.exists()

    def read_config(self) -> dict[str, Any] | None:
        """The whole content of ``config.json``; None if there is no file.

        It holds the settings of a run and ``facts``, or the ``stages`` of a run in stages and their
        ``order``.

        Raises:
            InputError: if the file cannot be read or is damaged.
        """
        return self._read(self.config_file, contents.check_config)

    def read_facts(self) -> Facts:
        """The facts of the run's data.

        Raises:
            InputError: if they are missing or damaged.
        """
        values = (read_object(self.config_file) or {}).get("facts")
        try:
            return Facts.from_json(values if isinstance(values, dict) else {})
        except (TypeError, ValueError) as error:
            raise self.damaged(str(error)) from error

    def write_config(self, settings: Mapping[str, Any], facts: Facts | None = None) -> None:
        """Write the settings of a run and the facts of its data, or those of stages, without facts.

        Raises:
            DiskError: if the file cannot be written.
        """
        more = {} if facts is None else {"facts": facts.to_json()}
        write_json(self.config_file, {**settings, **more})

    def read_summary(self) -> dict[str, Any] | None:
        """The summary of a finished run; None if there is no file.

        Raises:
            InputError: if the file cannot be read or is damaged.
        """
        advice = "remove it and repeat the train command, which writes it from the last checkpoint"
        return self._read(self.summary_file, contents.check_summary, advice)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary.

        Raises:
            DiskError: if the file cannot be written.
        """
        write_json(self.summary_file, summary)

    def read_findings(self) -> dict[str, Any] | None:
        """What was found where the images are; None if an older version wrote the run.

        Raises:
            InputError: if the file cannot be read or is damaged.
        """
        return read_object(self.findings_file, FINDINGS_ADVICE)

    def write_findings(self, found: Mapping[str, Any]) -> None:
        """Write what was found where the images are.

        Raises:
            DiskError: if the file cannot be written.
        """
        write_json(self.findings_file, found)

    def read_baselines(self) -> dict[str, Any] | None:
        """The baselines for the labels of the run; None if there are none, or for other labels.

        Raises:
            InputError: if a file cannot be read or is damaged.
        """
        advice = "remove it, and jaxmatch baseline --workdir=RUN writes it again"
        found = read_object(self.baselines_file, advice)
        if found is None or found.get("split") != self.read_split().hash:
            return None
        return _checked(self.baselines_file, found, contents.check_baselines, advice)

    def write_baselines(self, baselines: Mapping[str, Any]) -> None:
        """Write the baselines.

        Raises:
            DiskError: if the file cannot be written.
        """
        write_json(self.baselines_file, baselines)

    def read_calibrations(self) -> dict[int, dict[str, Any]]:
        """What :mod:`jaxmatch.record.calibration` describes, by the step; empty without a file.

        Raises:
            InputError: if the file cannot be read or is damaged.
        """
        advice = "remove it, and jaxmatch calibrate --workdir=RUN writes it again"
        return self._read(self.calibration_file, calibration.from_json, advice) or {}

    def write_calibrations(self, found: Calibrations) -> None:
        """Write the calibrations by their step; without any, remove the file.

        Raises:
            DiskError: if the file cannot be written.
        """
        if found:
            write_json(self.calibration_file, calibration.to_json(found))
        elif self.calibration_file.exists():
            self.calibration_file.unlink()

    def read_known_images(self) -> dict[int, KnownImages]:
        """What :mod:`jaxmatch.record.unknown` describes, by step; nothing without a file.

        Raises:
            InputError: if the file cannot be read or is damaged.
        """
        advice = "remove it, and jaxmatch predict --unknown writes it again"
        return self._read(self.unknown_file, unknown.from_json, advice) or {}

    def write_known_images(self, known: KnownImages) -> None:
        """Write how strange known images look at a step, beside other steps in the file.

        Raises:
            DiskError: if the file cannot be written.
        """
        try:
            others = self.read_known_images()
        except InputError:  # a damaged file is written again
            others = {}
        write_json(self.unknown_file, unknown.to_json({**others, known.step: known}), indent=None)

    def read_examples(self, made: Mapping[str, Any]) -> dict[str, Any] | None:
        """What :mod:`jaxmatch.evaluation.examples` describes; None if there is none.

        Args:
            made: some of the values; those of other ones are as none.

        Raises:
            InputError: if the file cannot be read or is damaged.
        """
        advice = "remove it, and jaxmatch report writes it again"
        found = read_object(self.examples_file, advice)
        if found is None or not made.items() <= found.items():
            return None
        return _checked(self.examples_file, found, contents.check_examples, advice)

    def write_examples(self, found: Mapping[str, Any]) -> None:
        """Write some images with their predictions.

        Raises:
            DiskError: if the file cannot be written.
        """
        write_json(self.examples_file, found, indent=None)

    def read_split(self) -> Split:
        """The labeled examples.

        Raises:
            InputError: if the file cannot be read.
        """
        return splits.read(self.path / splits.FILE)

    def write_split(self, split: Split) -> None:
        """Write the labeled examples.

        Raises:
            DiskError: if the file cannot be written.
        """
        splits.write(self.path / splits.FILE, split)

    def read_record(self) -> Record | None:
        """The record of the data; None if an older version wrote the run.

        Raises:
            InputError: if the file is damaged.
        """
        return records.read(self.path)

    def write_record(self, record: Record) -> None:
        """Write the record of the data.

        Raises:
            DiskError: if the file cannot be written.
        """
        records.write(self.path, record)

    def _read(self, file: Path, check: Check, advice: str = RESTORE) -> Any:
        found = read_object(file, advice)
        return None if found is None else _checked(file, found, check, advice)

    def damaged(self, problem: str) -> InputError:
        """The error to raise if the settings are damaged."""
        return damaged(self.config_file, problem)


def _checked(file: Path, found: dict[str, Any], check: Check, advice: str) -> Any:
    """What ``check`` makes of the object in a file, or the object itself."""
    try:
        made = check(found)
    except ValueError as error:
        raise damaged(file, str(error), advice) from error
    return found if made is None else made
