"""What a run writes once all its steps are taken: temperatures, summary, baselines and probes."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxmatch.augment import ctaugment
from jaxmatch.errors import InputError
from jaxmatch.evaluation.probe import MOST_IMAGES, PROBES, missing, probe_sets
from jaxmatch.functional.diagnostics import collapsed
from jaxmatch.program import Program
from jaxmatch.record import coverage
from jaxmatch.record.data import Data
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import summarise
from jaxmatch.runtime import hosts
from jaxmatch.runtime.checkpoint import Best
from jaxmatch.training.held_out import HeldOut
from jaxmatch.types import PyTree, TrainState
from jaxmatch.weights import transfer

log = logging.getLogger(__name__)


def summary(
    config: ConfigDict,
    program: Program,
    lines: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Mapping[str, Any]],
    *,
    policy: PyTree,
    seconds: float,
    best: Best | None,
    forward_images: int,
    probes: bool,
) -> dict[str, Any]:
    """The content of ``summary.json``; its probes are not measured yet.

    Args:
        config: of the run.
        program: of the run.
        lines: of ``metrics.jsonl``.
        metrics: of the last state by set and network, as :meth:`HeldOut.report` returns them.
        policy: of the augmentation, at the end.
        seconds: that the run took, over all its starts.
        best: the checkpoint that ``keep_best`` chose, if any.
        forward_images: that went through the network, over all steps.
        probes: whether probes can be measured.
    """
    spec, steps, algorithm = program.spec, config.steps, program.algorithm
    found = summarise(
        lines,
        algorithm=config.algorithm.name,
        evaluated=algorithm.evaluated,
        steps=steps,
        images_seen={
            "labeled": steps * spec.labeled_batch,
            "unlabeled": steps * spec.unlabeled_batch,
        },
        forward_images=forward_images,
        seconds=seconds,
        metrics=metrics,
        best=best._asdict() if best else None,
    )
    if best and config.select:
        found["best"]["selected"] = True  # it is what is loaded by default
    if config.augment == "ctaugment":
        found["ctaugment"] = ctaugment.describe(policy)
    unused = coverage.at_end(lines, steps) if coverage.has_threshold(config) else None
    if unused is not None:
        found["unlabeled_unused"] = unused._asdict()
    if algorithm.labeled:
        return found
    probe = dict.fromkeys(PROBES) if probes else None
    return {**found, "probe": probe, "collapsed": collapsed(lines[-1] if lines else {})}


def write_calibration(
    step: int,
    state: TrainState,
    held_out: HeldOut,
    files: RunFolder,
    present: Collection[int] | None = None,
) -> dict[str, Any] | None:
    """Fit the temperatures of ``step`` to the validation set, if there is one, and keep them.

    Args:
        step: the number of steps taken.
        state: after them.
        held_out: of the run.
        files: of the run.
        present: the steps with a checkpoint; temperatures of other earlier ones are removed.

    Returns:
        The temperatures (:func:`jaxmatch.evaluation.temperature.of_networks`).
    """
    found = held_out.calibration(state)
    if found is None:
        return None

    def write() -> None:
        known = files.read_calibrations()
        kept = {each: known[each] for each in known if present is None or each in present}
        files.write_calibrations({**kept, step: found})

    hosts.from_leader(write)
    return found


def forget_calibrations(files: RunFolder, step: int) -> None:
    """Remove the temperatures of steps behind which a run has fallen back to ``step``."""
    known = files.read_calibrations()
    kept = {each: found for each, found in known.items() if each <= step}
    if kept.keys() != known.keys():
        files.write_calibrations(kept)


def write_known_images(step: int, state: TrainState, held_out: HeldOut, files: RunFolder) -> None:
    """Write how strange the validation set looks to the networks of ``state``, if there is one."""
    known = held_out.known_images(state, step)
    if known is not None:
        hosts.from_leader(lambda: files.write_known_images(known))


def write_baselines(config: ConfigDict, program: Program, data: Data, files: RunFolder) -> None:
    """Write what simple classifiers reach with the same labels, if nobody has.

    This is done for runs on own images, and for runs that began from a trained network.

    Args:
        config: of the run.
        program: of the run.
        data: images and labels on the host.
        files: of the run.
    """
    begun = config.init_from and not config.init_from.startswith(transfer.STAGE)
    if not ((config.size or begun) and program.algorithm.labeled):
        return
    from jaxmatch.evaluation import baselines  # scikit-learn takes a second to import

    try:
        if files.read_baselines() is None:
            files.write_baselines(baselines.of_data(config, data, files.path))
    except InputError as error:
        log.warning("no baselines: %s", error)


def with_probes(
    state: TrainState, held_out: HeldOut, data: Data, files: RunFolder
) -> dict[str, Any]:
    """Measure the probes that ``summary.json`` lacks, and return its content.

    Each probe is written as soon as it is known, so that a restart does not repeat it.

    Args:
        state: the last one.
        held_out: of the run.
        data: images and labels on the host.
        files: of the run.
    """
    found = files.read_summary() or {}
    if names := missing(found):
        sets = probe_sets(data.source, MOST_IMAGES, MOST_IMAGES)
        found["probe_images"] = {part: len(some.labels) for part, some in sets._asdict().items()}
        found["probe_labels"] = "all known"  # none of which the run saw
        for name, value in held_out.probe(state, sets, names):
            found["probe"][name] = value
            hosts.from_leader(lambda: files.write_summary(found))
    return found
