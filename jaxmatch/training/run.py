"""One training run as its host sees it: what to log, evaluate and save, and when.

A run does not take its steps. It is a generator that asks for them, so that one program can take
those of one run (:mod:`jaxmatch.training.train`) or of several (:mod:`jaxmatch.training.together`).
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxmatch.augment import ctaugment
from jaxmatch.config import recipe as configuration
from jaxmatch.data import record as records
from jaxmatch.data import splits, streaming
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
from jaxmatch.record.folder import SUMMARY
from jaxmatch.record.metrics import MetricsLog, open_wandb, summarise
from jaxmatch.record.progress import SILENT, Progress
from jaxmatch.runtime import hosts
from jaxmatch.runtime.checkpoint import Checkpoints
from jaxmatch.runtime.dispatch import Call, Feed, Meter, means, on_cpu, watched
from jaxmatch.runtime.json_files import read_object, write_json
from jaxmatch.runtime.mesh import check_memory, put, replicated
from jaxmatch.runtime.termination import Stop
from jaxmatch.training.footprint import check_step
from jaxmatch.types import PyTree, TrainState
from jaxmatch.weights import transfer

DUE = ("log", "eval", "save")  # each at its own period
# While a label-free method trains, k-NN uses at most so many training and test images.
KNN_MEMORY, KNN_QUERIES = 4000, 1000

# Yields a state, with what gives its data, whenever ``steps_per_call`` steps are to be taken from
# it; is sent the state after them and their metrics; returns the content of summary.json.
Flow = Generator[tuple[TrainState, Feed], tuple[TrainState, Meter], dict[str, Any]]


class Run:
    """One training run on this process: the state of the host, no more."""

    def __init__(
        self,
        config: ConfigDict,
        folder: Path,
        data: run_data.Data,
        facts: dict[str, Any],
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
        self.trunk = None
        if config.init_from and not checkpoints.steps():
            self.trunk = self.read_trunk()

    def compile(self) -> Call:
        """What takes the steps of this run alone; InputError where they cannot work."""
        return self.program.compile(self.data)

    def record(self) -> None:
        """Write what the run is to its folder; InputError where other processes have another."""
        settings = {**configuration.to_json(self.config), "facts": self.facts}
        digest = self.record_of_data.digest
        hosts.check_same("configuration or data", json.dumps(settings) + self.split.hash + digest)
        hosts.check_shared(self.folder)
        if hosts.leader():
            write_json(self.folder / "config.json", settings)
            records.write(self.folder, self.record_of_data)
            splits.write(self.folder / "split.json", self.split)

    def go(self, terminated: Stop) -> Flow:
        """The run from its newest checkpoint, or its beginning, to its end.

        ``terminated()`` tells whether to save and stop.

        Raises:
            NonFiniteError, DiskError, Stopped: as :func:`jaxmatch.training.train.train`.
        """
        config = self.config
        state, first = self.begin()
        if first == config.steps and hosts.from_leader((self.folder / SUMMARY).exists):
            return self.with_probes(state)  # all else is done
        wandb = None
        if config.wandb and hosts.leader():
            wandb = open_wandb(config.wandb, self.folder, configuration.to_json(config))
        if first == 0:
            state = self.refreshed(state, first)
        with contextlib.ExitStack() as opened:
            record = progress = SILENT
            if hosts.leader():
                record = opened.enter_context(
                    MetricsLog(
                        self.folder,
                        resume_step=first,
                        expected=first - first % config.log_every,
                        wandb=wandb,
                    )
                )
                progress = opened.enter_context(
                    Progress(config.steps, first, self.folder, self.folder.name, self.alone)
                )
            if self.program.mesh.size == 1 and on_cpu(self.program.mesh):
                progress.message(onednn.library().text)
            if first:
                progress.message(f"continuing from the checkpoint of step {first}")
            # The losses since the last line before a restart are not in the next line's means.
            earlier = max((line.get("time/seconds", 0.0) for line in record.lines()), default=0.0)
            interval: dict[str, list[float]] = {}
            pending: Meter | None = None
            mark, mark_step = time.monotonic(), first
            stride = config.steps_per_call
            feed = opened.enter_context(self.feed(first))
            for step in range(first + stride, config.steps + 1, stride):
                state, meter = yield state, feed
                state = self.refreshed(state, step)
                if pending is not None:
                    self.collect(pending, interval)
                pending = meter
                last = step == config.steps
                stop = terminated()
                due = {kind: last or step % config[f"{kind}_every"] == 0 for kind in DUE}
                if not (any(due.values()) or stop):
                    continue
                self.collect(pending, interval)
                pending = None
                values: dict[str, float] = {}
                if due["log"]:
                    values |= means({name: (total, n) for name, (total, n) in interval.items()})
                    interval.clear()
                    if collapsed(values):
                        progress.message(
                            f"step {step}: the features have collapsed, they are the same for all "
                            "images (features/spread in metrics.jsonl)"
                        )
                if due["eval"]:
                    values |= self.evaluate(state)
                if values:
                    now = time.monotonic()
                    values["time/seconds"] = earlier + now - self.started
                    record.write(step, values)
                    rate = (step - mark_step) * self.images_per_step / (now - mark)
                    progress.update(step, values, rate)
                    mark, mark_step = now, step
                if due["save"] or stop:
                    if not _finite((state.params, state.stats, state.teacher)):
                        raise self.diverged("a parameter", step - 1)
                    record.flush()
                    progress.flush()
                    self.checkpoints.save(step, state)
                if stop and not last:
                    self.checkpoints.wait()
                    raise stop(
                        f"stopped by {stop.cause} at step {step} after saving; "
                        "the same command continues."
                    )
            self.checkpoints.wait()
            lines = record.lines()
        if hosts.leader():
            plot({self.folder.name: lines}, self.folder / "curves.png")
            seconds = earlier + time.monotonic() - self.started
            summary = self.summary(lines, state.policy, seconds)
            write_json(self.folder / "summary.json", summary)
        hosts.synchronize("summary written")
        return self.with_probes(state)

    def with_probes(self, state: TrainState) -> dict[str, Any]:
        """The content of summary.json once the probes that it misses are added to the file.

        Each is written as soon as it is known: a restart does not repeat it.
        """
        file = self.folder / SUMMARY
        summary = read_object(file) or {}
        if names := missing(summary):
            sets = probe_sets(self.source, MOST_IMAGES, MOST_IMAGES)
            summary["probe_images"] = {
                part: len(some.labels) for part, some in sets._asdict().items()
            }
            for name, value in self.probe(state, sets, names):
                summary["probe"][name] = value
                if hosts.leader():
                    write_json(file, summary)
            hosts.synchronize("probes written")
        return summary

    def feed(self, first: int) -> contextlib.AbstractContextManager[Feed]:
        """What gives the data of step ``first`` and, at each call, of the next."""
        if self.plan is None:
            return contextlib.nullcontext(lambda: self.data)
        config, mesh, frozen = self.config, self.program.mesh, self.data.frozen
        options = {"strict": config.data.strict, "frozen": frozen}
        return streaming.Feed(self.plan, mesh, first, config.steps, config.workers, **options)

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
        algorithm: Any = self.program.algorithm
        if not hasattr(algorithm, "refresh"):
            return False
        due = step % algorithm.refresh_steps == 0 and step >= algorithm.start_step
        return due and step < self.config.steps

    def refreshed(self, state: TrainState, step: int) -> TrainState:
        """``state`` after ``step`` steps with its memory refreshed, if that is due."""
        if not self.due_refresh(step):
            return state
        algorithm: Any = self.program.algorithm
        memory = algorithm.refresh(state, lambda net: self.embed(net, self.unlabeled_images))
        return state.replace(memory=put(memory, self.program.shardings.memory))

    def read_trunk(self) -> PyTree:
        """The encoder that ``config.init_from`` names; InputError where it differs."""
        config, algorithm = self.config, self.program.algorithm
        name, student = config.init_from, self.program.state.student()
        if transfer.names_weights(name):
            return transfer.read_encoder(name, transfer.wanted(student, algorithm, config))
        source = load(transfer.source_folder(name, self.folder))
        trunk = transfer.given(source.variables(), source.program.algorithm, config)
        transfer.check_encoder(trunk, transfer.wanted(student, algorithm, config), name)
        return trunk

    @property
    def images_per_step(self) -> int:
        """Labeled and unlabeled ones."""
        return self.program.spec.labeled_batch + self.program.spec.unlabeled_batch

    def collect(self, meter: Meter, interval: dict[str, list[float]]) -> None:
        """Fetch a call's metrics and add them up; NonFiniteError where a loss is not finite."""
        sums, bad_step, bad_term = jax.device_get(meter)
        if bad_step >= 0:
            raise self.diverged(watched(sums)[bad_term], bad_step)
        for name, (total, count) in sums.items():
            have = interval.setdefault(name, [0.0, 0.0])
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
