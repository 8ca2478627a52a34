"""One training run on the host: it logs, evaluates and saves between the compiled steps.

The caller runs the steps, of one run (:mod:`jaxmatch.training.train`) or of several by one program
(:mod:`jaxmatch.training.together`)::

    with run:
        state = run.start(terminated)
        while not run.done:
            state, meter = call(state, run.feed)
            state = run.after(state, meter, terminated)
        summary = run.finish(state)
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxmatch.config import saved
from jaxmatch.data import splits, streaming
from jaxmatch.data.facts import Facts
from jaxmatch.data.loading import Plan
from jaxmatch.data.resident import Resident, resident
from jaxmatch.errors import InputError, NonFiniteError, Stopped
from jaxmatch.evaluation import temperature
from jaxmatch.evaluation.forward import make_embed
from jaxmatch.evaluation.trunk import read_trunk
from jaxmatch.functional.diagnostics import collapsed
from jaxmatch.models import onednn
from jaxmatch.program import Program
from jaxmatch.record import coverage, findings
from jaxmatch.record.curves import plot
from jaxmatch.record.data import Data
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import MetricsLog, open_wandb
from jaxmatch.record.progress import SILENT, Progress, Silent
from jaxmatch.runtime import hosts, mesh
from jaxmatch.runtime.checkpoint import Best, Checkpoints
from jaxmatch.runtime.dispatch import Call, Feed, Meter, on_cpu, watched
from jaxmatch.runtime.termination import Stop
from jaxmatch.training import ending
from jaxmatch.training.best import BestCheckpoint
from jaxmatch.training.first_classifier import starts_fitted, with_fitted
from jaxmatch.training.footprint import check_compiled, check_step, program_bytes
from jaxmatch.training.held_out import HeldOut
from jaxmatch.training.interval import Interval, Kept, read_kept
from jaxmatch.training.shared import Shared
from jaxmatch.types import Batch, PyTree, TrainState
from jaxmatch.weights import transfer

log = logging.getLogger(__name__)


class Run:
    """One training run on this process: everything but its state and its compiled steps.

    Attributes:
        program: the network, the method and the devices.
        data: the training set on the devices; of a streamed set, the shapes of a step's examples.
        feed: gives the data of the next call; of a streamed set, only after :meth:`start`.
        step: the number of steps taken.
        found: what was found where the images are; None for a run that continues.
    """

    def __init__(
        self,
        config: ConfigDict,
        folder: Path,
        data: Data,
        facts: Facts,
        program: Program,
        frozen: PyTree,
        checkpoints: Checkpoints,
        started: float,
        shared: Shared | None = None,
    ):
        """Put the data on the devices; nothing is compiled or written.

        Args:
            config: the configuration to record; ``program`` may be placed on other devices.
            folder: the run folder.
            data: images and labels on the host.
            facts: of the data and of the frozen networks.
            program: of the configuration.
            frozen: variables of the frozen networks by role.
            checkpoints: of the run.
            started: the time of the start by ``time.monotonic``.
            shared: the arrays that several runs of this process have in common, if there are
                several.

        Raises:
            InputError: if the state does not fit into memory, or ``config.init_from`` does not fit
                the network.
        """
        self.config, self.folder, self.program = config, folder, program
        self.files = RunFolder(folder)
        self.source, self.split, self._on_host = data.source, data.split, data
        self.facts, self.record_of_data = facts, data.record
        self.found = findings.find(data) if data.known is None else None
        self.checkpoints, self.started = checkpoints, started
        self.alone = shared is None  # else other runs write to the terminal, too
        mesh.check_memory(
            program.mesh,
            {"memory": program.state.memory, "state": program.state},
            config.memory_placement,
        )
        self.held_out = HeldOut(program, data)
        self.best = BestCheckpoint(self.held_out.selection, checkpoints)
        streamed = config.data.stream
        check_step(program, 0 if streamed else self.held_out.bytes, frozen=frozen)
        self.init = jax.jit(program.init, out_shardings=program.shardings)
        self.embed = make_embed(program)

        put = mesh.put if shared is None else shared.put
        everywhere = mesh.replicated(program.mesh)
        images = resident(data.source, data.split, config.data.include_labeled, data.more)
        images = images._replace(frozen=put(frozen, everywhere) if frozen else None)
        self.plan: Plan | None = None
        self.data: Resident | Batch
        if streamed:
            self.plan = program.plan(images)
            shapes = streaming.shapes(program.spec, program.crops, program.mesh)
            self.data = shapes._replace(frozen=images.frozen)
        else:
            self.data = images = put(images, everywhere)
            self.held_out.place(put, everywhere)
        self.unlabeled_images = images.unlabeled_images

        self.step = 0
        self.unit = program.unit  # steps of a call
        self.feed: Feed = lambda: self.data
        self._opened = contextlib.ExitStack()
        self._metrics: MetricsLog | Silent | None = None  # until the record is opened
        self._progress: Progress | Silent = SILENT
        self._began: list[str] = []  # sentences about the first state
        new = not checkpoints.steps()
        self.trunk, self._taken = None, ()
        if config.init_from and new:
            self.trunk, self._taken = read_trunk(config, folder, program)
            for sentence in self._taken:
                log.warning("%s", sentence)

    def compile(self) -> Call:
        """Compile the steps of this run alone.

        Raises:
            InputError: if they cannot work, or if the compiled program does not fit into memory.
        """
        if self.checkpoints.steps()[-1:] == [self.config.steps]:  # no step is left to take
            return self.program.compile(steps_per_call=self.unit)
        begun = time.monotonic()
        executable = self.program.executable(self.data)
        needed = program_bytes(executable)
        check_compiled(self.program.mesh, needed)
        log.warning(
            "compiled the step in %.0f s; it needs %.2g GB of memory on a device.",
            time.monotonic() - begun,
            needed / 1e9,
        )
        return self.program.repeat(executable, self.unit)

    def measure(self, call: Call, times: int) -> float:
        """The seconds of a step, from ``times`` calls after a first one; their results are dropped.

        Args:
            call: as :meth:`compile` returns it.
            times: the number of calls.
        """
        with contextlib.ExitStack() as opened:
            feed = self.feed
            if self.plan is not None:
                feed = opened.enter_context(self._streamed(self.plan))
            state, _ = jax.block_until_ready(call(self.init(), feed))
            begun = time.monotonic()
            for _ in range(times):
                state, _ = call(state, feed)
            jax.block_until_ready(state)
        return (time.monotonic() - begun) / (times * self.unit)

    def record(self) -> None:
        """Write configuration, data and split to the run folder.

        Raises:
            InputError: if another process has another configuration or other data.
        """
        settings, facts = saved.to_json(self.config), self.facts
        digest = self.record_of_data.digest
        content = json.dumps([settings, facts.to_json(), self.split.hash, digest])
        hosts.check_same("configuration or data", content)
        hosts.check_shared(self.folder)

        def write() -> None:
            self.files.write_config(settings, facts)
            self.files.write_record(self.record_of_data)
            if self.found is not None:
                self.files.write_findings(self.found)
            self.files.write_split(self.split)  # last, because with it the run has begun

        hosts.from_leader(write)

    def __enter__(self) -> Self:
        """Return itself; the end of the block closes its files."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files; a full disk does not hide an earlier error."""
        self._opened.__exit__(kind, error, traceback)

    @property
    def done(self) -> bool:
        """Whether all steps are taken."""
        return self.step == self.config.steps

    def start(self, terminated: Stop) -> TrainState:
        """Open the record and the display; restore the newest checkpoint, if there is one.

        A line of metrics that a signal kept from being written is written now.

        Args:
            terminated: tells whether to stop.

        Returns:
            The state before the next step.

        Raises:
            InputError: if the checkpoint belongs to another run.
            DiskError: if the run folder cannot be written.
            Stopped: after a signal.
        """
        state, self.step = self.begin()
        if self.done and hosts.from_leader(self._summarised):
            return state  # at most probes are missing, so the record stays closed
        # A checkpoint of the end of a run that is now longer was saved without its refresh. A
        # refresh depends on nothing that it changes, so one more gives the same memory.
        state = self.refreshed(state)
        if self._open() and (best := self._line_and_best(state, terminated)):
            hosts.agreed(self._flush)
            self.checkpoints.mark(best)
        return state

    def _summarised(self) -> bool:
        """Whether ``summary.json`` is of all steps; a run that is extended has an older one."""
        summary = self.files.read_summary()
        return summary is not None and summary["steps"] >= self.config.steps

    def begin(self) -> tuple[TrainState, int]:
        """The newest checkpoint's state and step, or the initial state and 0."""
        restored = self.checkpoints.restore(self.program.abstract)
        if restored is not None:
            if restored[1] % self.unit:
                raise InputError(
                    f"the checkpoint of step {restored[1]} in {self.folder} lies inside a call of "
                    f"steps_per_call={self.unit}; give a divisor of that step."
                )
            return restored
        state = self.init()
        if self.trunk is not None:
            state, self.trunk = transfer.transfer(state, self.trunk), None
            if starts_fitted(self.config):
                rows = splits.locate(self.source, self.split)
                some, labels = self.source.images[rows], self.source.labels[rows]
                state, told = with_fitted(state, self.program, some, labels)
                self._began.append(told)
        return state, 0

    def _open(self) -> bool:
        """Open the record and the display; whether the line of this step is still to be written."""
        owed = hosts.agreed(self._open_files)
        if self.plan is not None:
            self.feed = self._opened.enter_context(self._streamed(self.plan))
        return hosts.from_leader(lambda: owed)

    def _open_files(self) -> bool:
        """As :meth:`_open`, for this process: only the first one has files."""
        config, first, kept = self.config, self.step, Kept()
        self._metrics = SILENT
        if hosts.leader():
            wandb = None
            if config.wandb:
                wandb = open_wandb(config.wandb, self.folder, saved.to_json(config))
            kept = read_kept(self.files.interval_file, first)
            written = first - 1 if kept.sums else first
            metrics = MetricsLog(
                self.folder,
                resume_step=first,
                expected=written - written % config.log_every,
                wandb=wandb,
            )
            self._metrics = self._opened.enter_context(metrics)
            progress = Progress(config.steps, first, self.folder, self.folder.name, self.alone)
            self._progress = self._opened.enter_context(progress)
            ending.forget_calibrations(self.files, first)
        alone = self.program.mesh.size == 1
        if alone and on_cpu(self.program.mesh) and self.program.model.convolves:
            self._progress.message(onednn.library().text)
        for line in findings.lines(self.found) if self.found else ():
            self._progress.note(line)
        for line in self._taken:
            self._progress.note(line)
        for line in self._began:
            self._progress.message(line)
        if first:
            self._progress.message(f"continuing from the checkpoint of step {first}")
        lines = self._metrics.lines()
        self.best.begin(lines)
        self._coverage = coverage.Watch(config, lines)
        seconds = [line.get("time/seconds", 0.0) for line in lines]
        self._earlier = max([kept.seconds, *seconds])
        last = lines[-1] if lines else {"step": 0}
        owed = bool(kept.sums) and self._line_due() and last["step"] < first
        # The line of this step may have been written since, with the means of these sums.
        done = last["step"] == first and kept.sums.keys() & last.keys()
        self._interval = Interval(first, {} if done else kept.sums)
        self._pending: Meter | None = None
        self._first = first
        return owed

    def _streamed(self, plan: Plan) -> streaming.Feed:
        """Gives the examples of one step after another, from the next one on."""
        config, devices = self.config, self.program.mesh
        options = {"strict": config.data.strict, "frozen": self.data.frozen}
        return streaming.Feed(plan, devices, self.step, config.steps, config.workers, **options)

    def after(self, state: TrainState, meter: Meter, terminated: Stop) -> TrainState:
        """Log, evaluate and save whatever is due after a call.

        Metrics that are not due are fetched after the next call is dispatched, so that the devices
        do not wait.

        Args:
            state: after the call.
            meter: of the call.
            terminated: tells whether to save and stop.

        Returns:
            The state before the next step.

        Raises:
            NonFiniteError: if a loss became NaN or Inf.
            DiskError: if the run folder cannot be written.
            Stopped: after a signal, once the state is saved.
        """
        self.step += self.unit
        state = self.refreshed(state)
        if self._pending is not None:
            self.collect(self._pending)
        self._pending = meter
        stop = terminated()
        if self.step == self._first + self.unit:  # whatever the periods, to show that it works
            self.collect(meter)
            self._pending = None
            self._interval.trained()
            hosts.agreed(lambda: self._show(self._interval.means()))
        self._progress.tick(self.step)
        if not (self._line_due() or self._due("save") or stop):
            return state
        if self._pending is not None:
            self.collect(self._pending)
            self._pending = None
        try:
            if stop:
                raise self._stopped(stop)
            best = self._line_and_best(state, terminated)
        except Stopped:  # the line of this step is written when the run continues
            self.save(state)
            self.checkpoints.wait()
            raise
        if best or self._due("save"):
            self.save(state, best)
        return state

    def _due(self, kind: str) -> bool:
        """Whether one of "log", "eval" and "save" is due after the present step."""
        return self.done or self.step % self.config[f"{kind}_every"] == 0

    def _line_due(self) -> bool:
        return self._due("log") or self._due("eval")

    def _stopped(self, stop: type[Stopped]) -> Stopped:
        return stop(
            f"stopped by {stop.cause} at step {self.step} after saving; the same command continues."
        )

    def _line_and_best(self, state: TrainState, terminated: Stop) -> Best | None:
        """Write the line that is due, and what belongs to the checkpoint if it is the best so far.

        Raises:
            Stopped: after a signal during the evaluation, of which nothing is written.
        """

        def between() -> None:
            if stop := terminated():
                raise self._stopped(stop)

        values = self.write_line(state, between) if self._line_due() else {}
        best = self.best.improved(self.step, values)
        if best is not None and not self.done:
            ending.write_calibration(self.step, state, self.held_out, self.files)
            if self.config.select:  # the checkpoint that predict uses
                ending.write_known_images(self.step, state, self.held_out, self.files)
        return best

    def due_refresh(self, step: int) -> bool:
        """Whether the method refreshes its memory after ``step`` steps."""
        algorithm = self.program.algorithm
        if not algorithm.refresh_steps:
            return False
        due = step % algorithm.refresh_steps == 0 and step >= algorithm.start_step
        return due and step < self.config.steps

    def refreshed(self, state: TrainState) -> TrainState:
        """``state`` with its memory refreshed, if that is due."""
        if not self.due_refresh(self.step):
            return state
        memory = self.program.algorithm.refresh(
            state, lambda variables: self.embed(variables, self.unlabeled_images)
        )
        return state.replace(memory=mesh.put(memory, self.program.shardings.memory))

    def collect(self, meter: Meter) -> None:
        """Fetch a call's metrics and add them up.

        Raises:
            NonFiniteError: if a loss is not finite.
        """
        sums, bad_step, bad_term = jax.device_get(meter)
        if bad_step >= 0:
            raise self.diverged(watched(sums)[bad_term], bad_step)
        self._interval.add(sums)

    def diverged(self, term: str, step: int) -> NonFiniteError:
        """The error to raise if ``term`` is not finite at ``step``."""
        self.checkpoints.wait()
        steps = self.checkpoints.steps()
        last = (
            f"the last good checkpoint is that of step {steps[-1]}"
            if steps
            else "no checkpoint is saved"
        )
        return NonFiniteError(
            f"{term} became NaN or Inf at step {step}; {last}. "
            "Lower optim.learning_rate or set optim.clip_norm."
        )

    def write_line(self, state: TrainState, between: Callable[[], None]) -> dict[str, float]:
        """Write the training metrics' means since the last line, held-out metrics, or both.

        Args:
            state: after the present step.
            between: called before each batch of an evaluation; if it raises, nothing is written.

        Returns:
            What was written.
        """
        self._interval.trained()
        found = self.evaluate(state, between) if self._due("eval") else {}
        self._interval.evaluated()
        values, messages = {}, []
        if self._due("log"):
            values |= self._interval.means()
            self._interval.forget()
            if collapsed(values):
                messages.append(
                    f"step {self.step}: the features have collapsed, they are the same for all "
                    "images (features/spread in metrics.jsonl)"
                )
            if advice := self._coverage.advice(self.step, values):
                messages.append(advice)
        values |= found
        values["time/seconds"] = self._seconds()
        hosts.agreed(lambda: self._write(values, messages))
        self._interval.begin(self.step)
        return values

    def _write(self, values: dict[str, float], messages: Sequence[str]) -> None:
        """Write messages and the metrics of the present step, and show them."""
        assert self._metrics is not None
        for message in messages:
            self._progress.message(message)
        self._metrics.write(self.step, values)
        self._show(values, self._interval.evaluation_share)

    def _show(self, values: dict[str, float], evaluation_share: float = 0.0) -> None:
        """Show metrics, speed, and the time that the rest of the run will take."""
        spec = self.program.spec
        speed = self._interval.speed(self.step, spec.labeled_batch + spec.unlabeled_batch)
        self._progress.update(self.step, values, speed, evaluation_share)

    def evaluate(self, state: TrainState, between: Callable[[], None]) -> dict[str, float]:
        """The held-out metrics, as ``metrics.jsonl`` names them; the last are of all images."""
        return self.held_out.evaluate(state, whole=self.done, between=between)

    def save(self, state: TrainState, best: Best | None = None) -> None:
        """Save the lines so far, then a checkpoint, which ``best`` marks as the best one.

        Raises:
            NonFiniteError: if a parameter or statistic is not finite.
        """
        if not _finite((state.params, state.stats, state.teacher)):
            raise self.diverged("a parameter", self.step - 1)
        hosts.agreed(self._flush)
        self.checkpoints.save(self.step, state, best)
        self._interval.paused()

    def _seconds(self) -> float:
        """The seconds of this process and of earlier ones."""
        return self._earlier + time.monotonic() - self.started

    def _flush(self) -> None:
        """Write what the files of the record do not have yet."""
        assert self._metrics is not None
        self._metrics.flush()
        self._progress.flush()
        if hosts.leader():
            file, seconds = self.files.interval_file, self._seconds()
            self._interval.save(file, self.step, seconds, self.config.keep)

    def finish(self, state: TrainState) -> dict[str, Any]:
        """Write temperatures, curves and ``summary.json`` of a run whose steps are all taken.

        Returns:
            The content of ``summary.json``.
        """
        if self._metrics is not None:  # otherwise an earlier process wrote them
            self.checkpoints.wait()
            lines = self._metrics.lines()
            calibration = ending.write_calibration(
                self.step, state, self.held_out, self.files, self.checkpoints.steps()
            )
            told = temperature.sentences(calibration, self.program.algorithm.evaluated)
            hosts.agreed(lambda: [self._progress.message(sentence) for sentence in told])
            if not (self.config.select and self.best.found and self.best.found.step < self.step):
                ending.write_known_images(self.step, state, self.held_out, self.files)
            hosts.agreed(self._opened.close)
            metrics = self.held_out.report(state, calibration)

            def write() -> None:
                plot({self.folder.name: lines}, self.files.curves)
                self.files.write_summary(self.summary(lines, metrics, state))
                self.files.interval_file.unlink(missing_ok=True)
                ending.write_baselines(self.config, self.program, self._on_host, self.files)

            hosts.from_leader(write)
        return self.with_probes(state)

    def summary(
        self, lines: list[dict[str, Any]], metrics: dict[str, dict[str, Any]], state: TrainState
    ) -> dict[str, Any]:
        """The content of ``summary.json``, as :func:`jaxmatch.training.ending.summary` makes it."""
        images = self.config.steps * self.program.forward_images(self.data)
        refreshes = sum(map(self.due_refresh, range(0, self.config.steps, self.unit)))
        return ending.summary(
            self.config,
            self.program,
            lines,
            metrics,
            policy=state.policy,
            seconds=self._seconds(),
            best=self.best.found,
            forward_images=images + refreshes * self.program.spec.unlabeled,
            probes=self.held_out.knn is not None,
        )

    def with_probes(self, state: TrainState) -> dict[str, Any]:
        """Measure the probes that ``summary.json`` lacks, and return its content."""
        return ending.with_probes(state, self.held_out, self._on_host, self.files)


@jax.jit
def _finite(tree: PyTree) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
