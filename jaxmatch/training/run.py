"""One training run as its host sees it: what to log, evaluate and save, and when.

The caller runs the compiled steps, of one run (:mod:`jaxmatch.training.train`) or of several by one
program (:mod:`jaxmatch.training.together`); :class:`Run` logs, evaluates and saves between them::

    with run:
        state = run.start()
        while not run.done:
            state, meter = call(state, run.feed)
            state = run.after(state, meter, terminated)
        summary = run.finish(state)
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxmatch.augment import ctaugment
from jaxmatch.config import saved
from jaxmatch.data import streaming
from jaxmatch.data.facts import Facts
from jaxmatch.data.loading import Plan
from jaxmatch.data.resident import Table, resident
from jaxmatch.errors import InputError, NonFiniteError
from jaxmatch.evaluation.classifier import load
from jaxmatch.evaluation.forward import accuracy, make_embed, make_features, make_predict
from jaxmatch.evaluation.probe import MOST_IMAGES, PROBES, Sets, measure, missing, probe_sets
from jaxmatch.functional.diagnostics import collapsed
from jaxmatch.models import onednn
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.record.curves import plot
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import MetricsLog, open_wandb, summarise
from jaxmatch.record.progress import SILENT, Progress
from jaxmatch.runtime import hosts
from jaxmatch.runtime.checkpoint import Checkpoints
from jaxmatch.runtime.dispatch import Call, Feed, Meter, means, on_cpu, watched
from jaxmatch.runtime.json_files import read_object
from jaxmatch.runtime.mesh import check_memory, put, replicated
from jaxmatch.runtime.termination import Stop
from jaxmatch.training.footprint import check_step
from jaxmatch.types import PyTree, TrainState
from jaxmatch.weights import transfer

DUE = ("log", "eval", "save")  # each at its own period
# While a label-free method trains, k-NN uses at most so many training and test images.
KNN_MEMORY, KNN_QUERIES = 4000, 1000


class Run:
    """One training run on this process: the state of the host, no more.

    Attributes:
        program: what it compiles.
        step: how many steps were taken.
        feed: gives the data of the next call; of a streamed set from :meth:`start` on.
    """

    def __init__(
        self,
        config: ConfigDict,
        folder: Path,
        data: run_data.Data,
        facts: Facts,
        program: Program,
        frozen: PyTree,
        checkpoints: Checkpoints,
        started: float,
        put: Callable[[PyTree, Any], PyTree] = put,
        alone: bool = True,
    ):
        """Put the data on the devices; nothing is compiled or written.

        ``facts``: those of the data and of the ``frozen`` networks' variables. ``put`` places data
        as :func:`jaxmatch.runtime.mesh.put` does. ``alone``: no other run writes to the terminal.

        Raises:
            InputError: if the state does not fit into memory, or ``config.init_from`` not the run.
        """
        self.config, self.folder, self.program = config, folder, program
        self.files = RunFolder(folder)
        self.split, self.facts, self.record_of_data = data.split, facts, data.record
        self.checkpoints, self.started, self.alone = checkpoints, started, alone
        everywhere = replicated(program.mesh)
        check_memory(
            program.mesh,
            {"memory": program.state.memory, "state": program.state},
            config.memory_placement,
        )
        self.held_out: dict[str, Any] = {}
        if program.algorithm.labeled:
            self.held_out["test"] = (data.source.test_images, data.source.test_labels)
        if data.validation_images is not None:
            self.held_out["validation"] = (data.validation_images, data.validation_labels)
        held_out = sum(math.prod(images.shape) for images, _ in self.held_out.values())
        check_step(program, 0 if config.data.stream else held_out, frozen=frozen)
        self.init = jax.jit(program.init, out_shardings=program.shardings)
        images = resident(data.source, data.split, config.data.include_labeled)
        images = images._replace(frozen=put(frozen, everywhere) if frozen else None)
        self.plan: Plan | None = None
        if config.data.stream:
            self.plan = program.plan(images)
            self.data = streaming.shapes(program.spec, program.crops, program.mesh)._replace(
                frozen=images.frozen
            )
        else:
            self.data = images = put(images, everywhere)
        self.unlabeled_images = images.unlabeled_images
        strict = config.data.strict
        self.predict = make_predict(*program.forward, strict=strict)
        self.features = make_features(*program.forward, strict=strict, spread=True)
        self.embed = make_embed(*program.forward, strict=strict)
        self.source = data.source
        self.probed: Sets | None = None
        known = (data.source.labels >= 0).any() and (data.source.test_labels >= 0).any()
        if known and not program.algorithm.labeled:
            self.probed = probe_sets(data.source, KNN_MEMORY, KNN_QUERIES)
        self.held_out = {
            name: (images if self.plan else put(Table.of(images), everywhere), labels)
            for name, (images, labels) in self.held_out.items()
        }
        self.step = 0
        self.feed: Feed = lambda: self.data
        self._opened = contextlib.ExitStack()
        self._metrics: Any = None
        self._progress: Any = None
        self.trunk = None
        if config.init_from and not checkpoints.steps():
            self.trunk = self.read_trunk()

    def compile(self) -> Call:
        """What takes the steps of this run alone; InputError where they cannot work."""
        return self.program.compile(self.data)

    def record(self) -> None:
        """Write what the run is to its folder; InputError where other processes have another."""
        settings, facts = saved.to_json(self.config), self.facts
        told = json.dumps([settings, facts.to_json(), self.split.hash, self.record_of_data.digest])
        hosts.check_same("configuration or data", told)
        hosts.check_shared(self.folder)
        if hosts.leader():
            self.files.write_config(settings, facts)
            self.files.write_record(self.record_of_data)
            self.files.write_split(self.split)

    def __enter__(self) -> Self:
        """The run itself, which closes its files at the end of the block."""
        return self

    def __exit__(self, *error: Any) -> None:
        """Close the files; a full disk does not hide an error that is already on its way."""
        self._opened.__exit__(*error)

    @property
    def done(self) -> bool:
        """Whether all steps are taken."""
        return self.step == self.config.steps

    def start(self) -> TrainState:
        """Open the record and the display, and go on from the newest checkpoint, if there is one.

        Returns:
            The state from which the next step is taken.

        Raises:
            InputError: if the checkpoint is not this run's.
            DiskError: if the run folder cannot be written.
        """
        state, self.step = self.begin()
        if self.done and hosts.from_leader(self.files.summary_file.exists):
            return state  # all is done but for probes
        if self.step == 0:
            state = self.refreshed(state)
        self._open()
        return state

    def _open(self) -> None:
        config, first = self.config, self.step
        self._metrics = self._progress = SILENT
        if hosts.leader():
            wandb = None
            if config.wandb:
                wandb = open_wandb(config.wandb, self.folder, saved.to_json(config))
            metrics = MetricsLog(
                self.folder,
                resume_step=first,
                expected=first - first % config.log_every,
                wandb=wandb,
            )
            self._metrics = self._opened.enter_context(metrics)
            progress = Progress(config.steps, first, self.folder, self.folder.name, self.alone)
            self._progress = self._opened.enter_context(progress)
        if self.program.mesh.size == 1 and on_cpu(self.program.mesh):
            self._progress.message(onednn.library().text)
        if first:
            self._progress.message(f"continuing from the checkpoint of step {first}")
        # The losses since the last line before a restart are not in the next line's means.
        lines = self._metrics.lines()
        self._earlier = max((line.get("time/seconds", 0.0) for line in lines), default=0.0)
        self._interval: dict[str, list[float]] = {}
        self._pending: Meter | None = None
        self._mark = time.monotonic(), first
        if self.plan is not None:
            self.feed = self._opened.enter_context(self._streamed(self.plan))

    def after(self, state: TrainState, meter: Meter, terminated: Stop) -> TrainState:
        """Log, evaluate and save what is due after a call.

        The metrics of a call are fetched after the next one is dispatched, unless they are due, so
        that the devices do not wait.

        Args:
            state: after the call.
            meter: of the call.
            terminated: tells whether to save and stop.

        Returns:
            The state from which the next step is taken.

        Raises:
            NonFiniteError: if a loss became NaN or Inf.
            DiskError: if the run folder cannot be written.
            Stopped: once the state is saved.
        """
        config = self.config
        self.step += config.steps_per_call
        state = self.refreshed(state)
        if self._pending is not None:
            self.collect(self._pending)
        self._pending = meter
        stop = terminated()
        due = {kind: self.done or self.step % config[f"{kind}_every"] == 0 for kind in DUE}
        if not (any(due.values()) or stop):
            return state
        self.collect(self._pending)
        self._pending = None
        self.tell(state, log=due["log"], evaluate=due["eval"])
        if due["save"] or stop:
            self.save(state)
        if stop and not self.done:
            self.checkpoints.wait()
            raise stop(
                f"stopped by {stop.cause} at step {self.step} after saving; the same command "
                "continues."
            )
        return state

    def tell(self, state: TrainState, *, log: bool, evaluate: bool) -> None:
        """Write a line of means since the last one, of held-out accuracies, or of both."""
        values: dict[str, float] = {}
        if log:
            values |= means({name: (total, n) for name, (total, n) in self._interval.items()})
            self._interval.clear()
            if collapsed(values):
                self._progress.message(
                    f"step {self.step}: the features have collapsed, they are the same for all "
                    "images (features/spread in metrics.jsonl)"
                )
        if evaluate:
            values |= self.evaluate(state)
        if values:
            now, (mark, mark_step) = time.monotonic(), self._mark
            values["time/seconds"] = self._earlier + now - self.started
            self._metrics.write(self.step, values)
            rate = (self.step - mark_step) * self.images_per_step / (now - mark)
            self._progress.update(self.step, values, rate)
            self._mark = now, self.step

    def save(self, state: TrainState) -> None:
        """Save a checkpoint, and what was told before it; NonFiniteError where it would be bad."""
        if not _finite((state.params, state.stats, state.teacher)):
            raise self.diverged("a parameter", self.step - 1)
        self._metrics.flush()
        self._progress.flush()
        self.checkpoints.save(self.step, state)

    def finish(self, state: TrainState) -> dict[str, Any]:
        """Write the curves and ``summary.json`` of a run whose steps are taken.

        Returns:
            The content of ``summary.json``.
        """
        if self._metrics is not None:  # otherwise an earlier process wrote them
            self.checkpoints.wait()
            lines = self._metrics.lines()
            self._opened.close()
            if hosts.leader():
                plot({self.folder.name: lines}, self.files.curves)
                seconds = self._earlier + time.monotonic() - self.started
                summary = self.summary(lines, state.policy, seconds)
                self.files.write_summary(summary)
            hosts.synchronize("summary written")
        return self.with_probes(state)

    def with_probes(self, state: TrainState) -> dict[str, Any]:
        """The content of summary.json once the probes that it misses are added to the file.

        Each is written as soon as it is known: a restart does not repeat it.
        """
        summary = read_object(self.files.summary_file) or {}
        if names := missing(summary):
            sets = probe_sets(self.source, MOST_IMAGES, MOST_IMAGES)
            summary["probe_images"] = {
                part: len(some.labels) for part, some in sets._asdict().items()
            }
            for name, value in self.probe(state, sets, names):
                summary["probe"][name] = value
                if hosts.leader():
                    self.files.write_summary(summary)
            hosts.synchronize("probes written")
        return summary

    def _streamed(self, plan: Plan) -> streaming.Feed:
        """What gives the examples of one step after another, from the next on."""
        config, mesh, frozen = self.config, self.program.mesh, self.data.frozen
        options = {"strict": config.data.strict, "frozen": frozen}
        return streaming.Feed(plan, mesh, self.step, config.steps, config.workers, **options)

    def begin(self) -> tuple[TrainState, int]:
        """The newest checkpoint's state and step, or the initial state and 0."""
        restored = self.checkpoints.restore(self.program.abstract)
        if restored is not None:
            if restored[1] % self.config.steps_per_call:
                raise InputError(
                    f"the checkpoint of step {restored[1]} in {self.folder} lies inside a call of "
                    f"steps_per_call={self.config.steps_per_call}; give a divisor of that step."
                )
            return restored
        state = self.init()
        if self.trunk is not None:
            state, self.trunk = transfer.transfer(state, self.trunk), None
        return state, 0

    def due_refresh(self, step: int) -> bool:
        """Whether the method looks at all images after ``step`` steps."""
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
            state, lambda net: self.embed(net, self.unlabeled_images)
        )
        return state.replace(memory=put(memory, self.program.shardings.memory))

    def read_trunk(self) -> PyTree:
        """The encoder that ``config.init_from`` names; InputError where it differs."""
        config, algorithm = self.config, self.program.algorithm
        name, student = config.init_from, self.program.state.student()
        if transfer.names_weights(name):
            return transfer.read_encoder(name, transfer.target_encoder(student, algorithm, config))
        source = load(transfer.source_folder(name, self.folder))
        trunk = transfer.source_encoder(source.variables(), source.program.algorithm, config)
        transfer.check_encoder(trunk, transfer.target_encoder(student, algorithm, config), name)
        return trunk

    @property
    def images_per_step(self) -> int:
        """Labeled and unlabeled ones."""
        return self.program.spec.labeled_batch + self.program.spec.unlabeled_batch

    def collect(self, meter: Meter) -> None:
        """Fetch a call's metrics and add them up; NonFiniteError where a loss is not finite."""
        sums, bad_step, bad_term = jax.device_get(meter)
        if bad_step >= 0:
            raise self.diverged(watched(sums)[bad_term], bad_step)
        for name, (total, count) in sums.items():
            have = self._interval.setdefault(name, [0.0, 0.0])
            have[0] += float(total)
            have[1] += float(count)

    def diverged(self, term: str, step: int) -> NonFiniteError:
        """What to raise where ``term`` is not finite at ``step``."""
        self.checkpoints.wait()
        saved = self.checkpoints.steps()
        last = f"the last good checkpoint is that of step {saved[-1]}" if saved else "none is saved"
        return NonFiniteError(
            f"{term} became NaN or Inf at step {step}; {last}. "
            "Lower optim.learning_rate or set optim.clip_norm."
        )

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Accuracies of teacher and student on the held-out images, or k-NN's without labels."""
        if self.probed is not None:
            found = self.probe(state, self.probed, ["knn"])
            return {f"probe/{name}": value for name, value in found}
        return {
            f"{name}/{network}/accuracy": accuracy(self.predict, variables, images, labels)
            for name, (images, labels) in self.held_out.items()
            for network, variables in _networks(state).items()
        }

    def probe(
        self, state: TrainState, sets: Sets, names: Sequence[str]
    ) -> Iterator[tuple[str, float]]:
        """What the features of the network that the method reports are worth."""
        network = _networks(state)[self.program.algorithm.evaluated]
        return measure(self.features, network, sets, self.program.mesh, names)

    def summary(
        self, lines: list[dict[str, Any]], policy: PyTree, seconds: float
    ) -> dict[str, Any]:
        """The content of summary.json; the probes in it are still to be made."""
        spec, steps, algorithm = self.program.spec, self.config.steps, self.program.algorithm
        images = self.program.forward_images(self.data)
        refreshes = sum(map(self.due_refresh, range(0, steps, self.config.steps_per_call)))
        summary = summarise(
            lines,
            algorithm=self.config.algorithm.name,
            evaluated=algorithm.evaluated,
            steps=steps,
            images_seen={
                "labeled": steps * spec.labeled_batch,
                "unlabeled": steps * spec.unlabeled_batch,
            },
            forward_images=steps * images + refreshes * spec.unlabeled,
            seconds=seconds,
        )
        if self.config.augment == "ctaugment":
            summary["ctaugment"] = ctaugment.describe(policy)
        if algorithm.labeled:
            return summary
        probe = None if self.probed is None else dict.fromkeys(PROBES)
        return {**summary, "probe": probe, "collapsed": collapsed(lines[-1] if lines else {})}


def _networks(state: TrainState) -> dict[str, PyTree]:
    return {"teacher": state.teacher, "student": state.student()}


@jax.jit
def _finite(tree: PyTree) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
