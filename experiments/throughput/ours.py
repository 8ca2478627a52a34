"""The library's FixMatch for :mod:`experiments.throughput.compare`, in a worker process of its own.

Also writes the file that all contestants start from: the initial weights under PyTorch's names,
the views of the first step, and the images of the whole loop.
"""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.parity.recording import RecordedViews
from experiments.throughput.measure import random_data
from jaxmatch.config.dotted import flatten
from jaxmatch.config.flags import from_flags
from jaxmatch.config.saved import complete, to_json
from jaxmatch.data.facts import Facts
from jaxmatch.data.resident import Resident, Table, resident
from jaxmatch.errors import InputError
from jaxmatch.models import onednn
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.runtime.compilation import prepare_process
from jaxmatch.runtime.dispatch import Meter
from jaxmatch.runtime.mesh import replicated, shard_batch
from jaxmatch.types import Batch, Examples, PyTree, TrainState
from jaxmatch.weights.torch_names import from_torch, to_torch

# What the PyTorch contestants are written for, where no first step would tell the difference.
KNOWN = {
    "algorithm.name": "fixmatch",
    "algorithm.hard_labels": True,
    "augment": "randaugment",
    "data.include_labeled": True,
    "data.stream": False,
    "ema.schedule": "constant",
    "ema.statistics": "copied",
    "forward": "joint",
    "model.bn_groups": 1,
    "model.name": "wide_resnet",
    "optim.clip_norm": 0.0,
    "optim.decay": "kernels",
    "optim.name": "sgd",
    "optim.period_steps": 1,
    "optim.schedule": "cosine_7_16",
    "optim.warmup_steps": 0,
    "views.strong.order": "weak_first",
    "views.strong.table": "torchssl",
}
# PyTorch users pad strided convolutions on both sides, and would pay for anything else.
PADDING = "--config.model.padding=torch"
# An untrained network is sure of nothing. With a classifier so many times larger some weak views
# pass the threshold, so that the unsupervised loss takes part in the check of the first step.
SHARPENED = 12.0

Call = Callable[[TrainState, Callable[[], PyTree]], tuple[TrainState, Meter]]


class Worker:
    """Answers the requests of :mod:`experiments.throughput.compare`."""

    def export(
        self,
        path: str,
        config: str,
        overrides: list[str],
        random_images: list[int] | None,
        cpu_batch: int | None,
    ) -> dict[str, Any]:
        """Write weights, views and images to ``path``; the facts that describe them.

        ``cpu_batch`` replaces the labeled batch on a CPU, unless ``overrides`` names one.
        """
        given = {override.partition("=")[0] for override in overrides}
        if cpu_batch and jax.default_backend() == "cpu" and "--config.data.batch_size" not in given:
            overrides = [*overrides, f"--config.data.batch_size={cpu_batch}"]
        chosen, _ = from_flags(config, [PADDING, *overrides])
        values = flatten(to_json(chosen))
        for key, value in KNOWN.items():
            if values[key] != value:
                raise InputError(f"the PyTorch contestants know {key}={value} only.")
        data = random_data(chosen, *random_images) if random_images else run_data.load_new(chosen)
        program = Program.build(chosen, data.facts())
        images: Any = resident(data.source, data.split)

        @jax.jit
        def first(images: Resident) -> tuple[PyTree, Batch]:
            state = program.init()
            examples = program.examples(images, state)
            return state.student(), program.augment.apply((), state.key, examples)[0]

        student, views = first(jax.device_put(images, replicated(program.mesh)))
        weights = to_torch(student)
        weights["classifier.weight"] = weights["classifier.weight"] * SHARPENED
        np.savez(
            Path(path),
            allow_pickle=False,
            labeled=images.labeled_images.images,
            labels=images.labeled_labels,
            unlabeled=images.unlabeled_images.images,
            unlabeled_labels=images.unlabeled_labels,
            **{f"weights/{name}": value for name, value in weights.items()},
            **{
                "views/x": views.labeled.views[0],
                "views/label": views.labeled.label,
                "views/weak": views.unlabeled.views[0],
                "views/strong": views.unlabeled.views[1],
                "views/unlabeled_label": views.unlabeled.label,
            },
        )
        return {"settings": to_json(chosen), "facts": data.facts().to_json()}

    def prepare(
        self,
        path: str,
        settings: dict[str, Any],
        facts: dict[str, Any],
        forward: str,
        precision: str,
        measures: list[str],
        warm_up: int,
        steps: int,
        **_: Any,
    ) -> dict[str, Any]:
        """Compile everything, take the first step and say what came of it."""
        platform = jax.default_backend()
        if platform != "cpu":  # where float32 alone may mean TF32
            exact = "tensorfloat32" if precision == "tf32" else "float32"
            jax.config.update("jax_default_matmul_precision", exact)
        elif precision == "tf32":
            raise InputError("TF32 is a format of GPUs; choose --precision=float32.")
        config = complete(settings)
        config.forward = forward
        program = Contestant.build(config, Facts.from_json(facts))
        everywhere = replicated(program.mesh)
        with np.load(path) as saved:
            arrays = dict(saved)

        @partial(jax.jit, out_shardings=everywhere)
        def begin(variables: PyTree) -> TrainState:
            params, stats = variables["params"], variables["batch_stats"]
            return program.init().replace(params=params, stats=stats, teacher=variables)

        variables = from_torch(under(arrays, "weights/"), program.state.student())
        views = under(arrays, "views/")
        data = {
            "step": Batch(
                Examples((views["x"],), views["label"]),
                Examples((views["weak"], views["strong"]), views["unlabeled_label"]),
            ),
            "loop": Resident(
                Table.of(arrays["labeled"]),
                arrays["labels"],
                Table.of(arrays["unlabeled"]),
                arrays["unlabeled_labels"],
            ),
        }
        programs = {"step": replace(program, augment=RecordedViews()), "loop": program}
        self.data = {
            measure: jax.device_put(data[measure], everywhere)
            for measure in dict.fromkeys(("step", *measures))
        }
        self.states = {measure: begin(variables) for measure in self.data}
        # On a CPU the library dispatches each step by itself, elsewhere it scans over many: there
        # the steps of a turn are one scan, and the first step has a program of its own.
        self.at_once = 1 if platform == "cpu" else steps
        first = programs["step"].compile(steps_per_call=1)
        state, meter = first(self.states["step"], lambda: self.data["step"])
        self.states["step"] = state
        sums = jax.device_get(meter.sums)
        moved = {
            "parameters": distance(state.params, variables["params"]),
            "statistics": distance(state.stats, variables["batch_stats"]),
            "teacher": distance(state.teacher["params"], variables["params"]),
        }
        self.calls = {
            measure: first
            if measure == "step" and self.at_once == 1
            else programs[measure].compile(steps_per_call=self.at_once)
            for measure in self.data
        }
        self.warm_up = warm_up
        for measure in self.calls:
            self.turn(measure, 1)
        self.device = program.mesh.devices.flat[0]
        return {
            "first": {"loss": float(sums["loss/total"].total), **moved},
            "confident": float(sums["pseudo/coverage"].total),
            "platform": "cpu" if platform == "cpu" else "gpu",
            "device": f"{program.mesh.size} x {self.device.device_kind}",
            "versions": {"jax": jax.__version__, "python": sys.version.split()[0]},
            "notes": [onednn.library().text] if platform == "cpu" else [],
        }

    def turn(self, measure: str, steps: int) -> float:
        """Seconds of ``steps`` steps, or of the calls that hold as many."""
        call, data, state = self.calls[measure], self.data[measure], self.states[measure]
        meter: Any = None
        start = time.perf_counter()
        for _ in range(0, steps, self.at_once):
            state, meter = call(state, lambda: data)
        jax.block_until_ready((state, meter))
        seconds = time.perf_counter() - start
        self.states[measure] = state
        if not math.isfinite(float(meter.sums["loss/total"].total)):
            raise FloatingPointError("the loss is not finite, so its speed means nothing")
        return seconds

    def run(self, measure: str, steps: int) -> dict[str, float]:
        """Seconds a step, after ``warm_up`` steps that do not count."""
        self.turn(measure, self.warm_up)
        return {"seconds": self.turn(measure, steps) / steps}

    def finish(self) -> dict[str, Any]:
        """Peak memory."""
        memory = self.device.memory_stats()
        return {
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_device_bytes": memory["peak_bytes_in_use"] if memory else None,
        }


class Contestant(Program):
    """The program, which also takes views, of which every device has its share."""

    def examples(self, data: Resident | Batch, state: TrainState) -> Batch:
        """Those of training from images; from views the views."""
        if isinstance(data, Batch):
            return shard_batch(data, self.mesh)
        return super().examples(data, state)


def under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The arrays whose name begins so, by the rest of it."""
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def distance(new: PyTree, old: PyTree) -> float:
    """The Euclidean length of the difference of two trees of arrays."""
    squares = jax.tree.map(
        lambda a, b: float(np.square(np.asarray(a, np.float64) - np.asarray(b)).sum()), new, old
    )
    return math.sqrt(sum(jax.tree.leaves(squares)))


def main() -> None:
    # Whatever libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepare_process()
    worker = Worker()
    for line in sys.stdin:
        ((request, options),) = json.loads(line).items()
        print(json.dumps(getattr(worker, request)(**options)), file=answers, flush=True)


if __name__ == "__main__":
    main()
