"""Train several runs that differ only in their seeds by one program.

A small network leaves a GPU idle for most of a step. ``jax.vmap`` over the seeds makes one step of
the steps of several runs. Each run keeps the draws, the order of images, the folder and the
checkpoints that it has alone, so that either way of training continues the other's runs. The seeds
are split over the devices. A device computes the whole batch of each of its seeds, so that devices
exchange nothing during a step.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.stages import Wrapped
from ml_collections import ConfigDict

from jaxmatch.config import saved
from jaxmatch.data.resident import Resident
from jaxmatch.errors import InputError, JaxmatchError, Stopped
from jaxmatch.program import Program
from jaxmatch.record.folder import RunFolder
from jaxmatch.runtime import paths
from jaxmatch.runtime.checkpoint import Checkpoints, check_place
from jaxmatch.runtime.compilation import jit
from jaxmatch.runtime.dispatch import Meter, make_call, merge, on_cpu
from jaxmatch.runtime.mesh import check_memory, over_batch, replicated
from jaxmatch.runtime.termination import Stop, termination_noted
from jaxmatch.training.footprint import check_step
from jaxmatch.training.run import Run
from jaxmatch.training.shared import Shared, differing
from jaxmatch.training.train import announce, chosen, completed, default_folder, prepare
from jaxmatch.types import PyTree, TrainState

log = logging.getLogger(__name__)

# The only generator that draws the same for a key alone and under ``jax.vmap``.
GENERATOR = "threefry2x32"

Calls = Callable[[Sequence[TrainState]], list[tuple[TrainState, Meter]]]


def train(runs: Sequence[tuple[ConfigDict, str | Path | None]]) -> list[dict[str, Any]]:
    """Train, or continue, runs that differ only in their seeds.

    Args:
        runs: the configuration and the folder of each run, as :func:`jaxmatch.train` takes them.

    Returns:
        The content of ``summary.json`` of each run, in order. The seconds in it, and in
        ``metrics.jsonl``, are those of the whole program.

    Raises:
        InputError: if anything cannot work, before anything is compiled or written.
        Stopped: after SIGTERM or Ctrl-C (SIGINT), once the states of all runs are saved.
        JaxmatchError: if a run failed, once the others are finished; it has the class of the first
            failure. An unexpected error gives exit code 1, and its traceback is logged.
    """
    started = time.monotonic()
    check([config for config, _ in runs])
    folders = [paths.path(given or default_folder(c)) for c, given in runs]
    if len({paths.absolute(folder) for folder in folders}) < len(folders):
        raise InputError("two of the runs have the same folder; give each run its own.")
    for folder in folders:
        check_place(folder)
    found = [chosen(config, folder) for (config, _), folder in zip(runs, folders, strict=True)]
    for note in dict.fromkeys(note for _, notes in found for note in notes):
        log.warning("%s", note)
    runs = [(config, folder) for (config, _), folder in zip(found, folders, strict=True)]
    known = [completed(config, folder) for (config, _), folder in zip(runs, folders, strict=True)]
    todo = [position for position, summary in enumerate(known) if summary is None]
    for folder, summary in zip(folders, known, strict=True):
        if summary is not None:
            log.warning("%s is already complete.", folder)
    shared = Shared()
    with contextlib.ExitStack() as opened:
        terminated = opened.enter_context(termination_noted())
        prepared: dict[int, Run] = {}
        devices = None
        for position in todo:
            config, folder = runs[position][0], folders[position]
            checkpoints = Checkpoints(RunFolder(folder).checkpoints, keep=config.keep)
            opened.enter_context(checkpoints)
            if devices is None:
                devices = seed_devices(config, len(todo))
            prepared[position] = prepare(
                config, folder, checkpoints, started, shared=shared, devices=devices
            )
        group = Group(list(prepared.values()))
        for run in prepared.values():
            run.record()
        announce(list(prepared.values()))
        summaries, errors = group.train(terminated)
    _raise(errors, {run: folders[position] for position, run in prepared.items()})
    return [
        summary if summary is not None else summaries[prepared[position]]
        for position, summary in enumerate(known)
    ]


def check(configs: Sequence[ConfigDict]) -> None:
    """Check that one program can train the runs of these configurations.

    Raises:
        InputError: if it cannot.
    """
    if jax.process_count() > 1:
        raise InputError("several processes train one run at a time; start one for each group.")
    for config in configs:
        check_one(config)
    first, *others = (key(config) for config in configs)
    if any(other != first for other in others):
        raise InputError("only runs that are equal but for their seed can be trained together.")
    if (generator := str(jax.config.values["jax_default_prng_impl"])) != GENERATOR:
        raise InputError(
            f"with the generator {generator} runs trained together would not draw as they do alone;"
            f" set jax_default_prng_impl to {GENERATOR}."
        )


def check_one(config: ConfigDict) -> None:
    """Check that a run of this configuration can be trained together with others.

    Raises:
        InputError: if it cannot.
    """
    if "order" in config:
        raise InputError("runs in stages cannot be trained together; train each by itself.")
    if config.data.stream:
        raise InputError(
            "runs on streamed images cannot be trained together; set data.stream=False or train "
            "each by itself."
        )
    if config.minutes:
        raise InputError("runs trained together need equal steps; give steps instead of minutes.")
    if config.wandb:
        raise InputError("runs trained together cannot log to wandb; leave wandb empty.")


def key(config: ConfigDict) -> str:
    """A text that is equal for configurations that differ only in their seeds."""
    values = saved.to_json(config)
    values.pop("seed", None)
    return json.dumps(values, sort_keys=True)


def seed_devices(config: ConfigDict, seeds: int) -> int:
    """The number of devices that train the ``seeds`` in the shortest time.

    It is the smallest such number. It divides the batch size, because all devices together
    evaluate each run.
    """
    present = config.devices or len(jax.devices())
    counts = [count for count in range(1, present + 1) if config.data.batch_size % count == 0]
    return min(counts, key=lambda count: (-(-seeds // count), count))


class Group:
    """Runs that one program trains."""

    def __init__(self, runs: Sequence[Run]):
        """Trace the program.

        Raises:
            InputError: if it cannot work or does not fit into memory.
        """
        self._summaries: dict[Run, dict[str, Any]] = {}
        self._errors: dict[Run, Exception] = {}
        self._runs = tuple(runs)
        if len(runs) > 1:
            for run in runs:  # each return to the host copies the states of all runs
                run.unit = run.config.steps_per_call
        self._compiled: tuple[tuple[Run, ...], Calls] | None = None
        if runs:
            self._calls(self._runs)

    def train(self, terminated: Stop) -> tuple[dict[Run, dict[str, Any]], dict[Run, Exception]]:
        """Train all runs.

        An error while a run logs, evaluates or saves ends only that run.

        Returns:
            The summaries of the finished runs and the errors of the others.
        """
        states: dict[Run, TrainState] = {}
        with contextlib.ExitStack() as opened:
            for run in self._runs:
                opened.enter_context(run)
                with self._isolated(run):
                    self._keep(run, run.start(terminated), states)
            while states:
                runs = tuple(states)
                replies = self._calls(runs)([states.pop(run) for run in runs])
                # One answer for all runs: a run that went on alone would need another program.
                stop = terminated()
                for run in runs:
                    with self._isolated(run):
                        state = run.after(*replies.pop(0), lambda stop=stop: stop)
                        self._keep(run, state, states)
                        del state  # so that the next call, which donates it, frees it
        return self._summaries, self._errors

    def _keep(self, run: Run, state: TrainState, states: dict[Run, TrainState]) -> None:
        """Keep a state for the next call, or finish a run whose steps are taken."""
        if run.done:
            self._summaries[run] = run.finish(state)
        else:
            states[run] = state

    @contextlib.contextmanager
    def _isolated(self, run: Run) -> Iterator[None]:
        """An error in the block ends only this run."""
        try:
            yield
        # The other runs may hold hours of work, so even an unexpected error does not end them.
        except Exception as error:
            self._errors[run] = error
            run.__exit__(type(error), error, error.__traceback__)
            if not isinstance(error, JaxmatchError):
                log.exception("%s: an unexpected error. The other runs go on.", run.folder)
            elif not isinstance(error, Stopped):
                log.warning("%s: %s The other runs go on.", run.folder, error)

    def _calls(self, runs: tuple[Run, ...]) -> Calls:
        """The program of these runs; it is compiled again for fewer runs once one has ended."""
        if self._compiled is None or self._compiled[0] != runs:
            self._compiled = None  # frees its stacked data first
            self._compiled = (runs, compile_calls(runs))
        return self._compiled[1]


def compile_calls(runs: Sequence[Run], at_once: int | None = None) -> Calls:
    """Compile ``steps_per_call`` steps of each run as one program: states -> [(state, meter)].

    Args:
        runs: runs that differ only in their seeds, on the same devices.
        at_once: the number of seeds that a device computes at once, by ``jax.vmap``; the program
            runs again for the others. By default all of them, but one on a CPU, where a
            convolution with a kernel for each seed takes twice as long as one after the other.

    Raises:
        InputError: if the step cannot work, if the runs' arrays have different shapes, or if the
            states do not fit into memory.
    """
    run, count = runs[0], len(runs)
    mesh, config = run.program.mesh, run.config
    check_shapes(runs)
    check_memory(mesh, {f"the states of {count} runs": [run.program.state for run in runs]})
    if count == 1:
        call = run.compile()
        return lambda states: [call(states[0], lambda: run.data)]
    at_once = at_once or (1 if on_cpu(mesh) else -(-count // mesh.size))
    scanned = 1 if on_cpu(mesh) else config.steps_per_call
    differs = differing([run.data for run in runs])
    program = _program_of_seeds(run, differs, at_once, scanned)

    width = at_once * mesh.size  # seeds of one call
    stack = jax.jit(_stacked, out_shardings=over_batch(mesh))
    unstack = jax.jit(
        lambda tree: [_part(tree, position) for position in range(width)],
        out_shardings=[(run.program.shardings, replicated(mesh))] * width,
    )
    add = jax.jit(merge, donate_argnums=0)
    # The first runs fill up the last call; their second results are dropped.
    members = [
        [position % count for position in range(start, start + width)]
        for start in range(0, count, width)
    ]
    data_of_members = [
        jax.tree.map(
            lambda own, *leaves: stack(leaves) if own else leaves[0],
            differs,
            *(runs[position].data for position in positions),
        )
        for positions in members
    ]
    jax.eval_shape(program, jax.eval_shape(stack, [run.program.state] * width), data_of_members[0])

    def calls(states: Sequence[TrainState]) -> list[tuple[TrainState, Meter]]:
        replies = []
        with jax.transfer_guard("disallow"):
            stacked = [stack([states[position] for position in some]) for some in members]
            meters: list[Meter | None] = [None] * len(stacked)
            for _ in range(config.steps_per_call // scanned):
                for part, data in enumerate(data_of_members):
                    stacked[part], new = program(stacked[part], data)
                    meters[part] = new if meters[part] is None else add(meters[part], new)
            while stacked:
                replies += unstack((stacked.pop(0), meters.pop(0)))
        return replies[:count]

    return calls


def _program_of_seeds(run: Run, differs: PyTree, at_once: int, scanned: int) -> Wrapped:
    """The jitted program (states, data) -> (states, meters); the seeds are the first axis.

    Args:
        run: one of the runs.
        differs: a tree of bool like ``run.data``: whether the arrays differ between the runs. Only
            these have the seeds as first axis.
        at_once: the number of seeds of a device.
        scanned: the number of steps.
    """
    mesh, seeds = run.program.mesh, PartitionSpec("data")
    alone = Program.build(_on_one_device(run.config), run.facts)
    alone = replace(alone, frozen=run.program.frozen)
    check_step(alone, seeds=at_once, frozen=run.data.frozen)

    def steps_of_one(state: TrainState, data: Resident) -> tuple[TrainState, Meter]:
        # Each seed has labels of its own, so here they are no constants.
        spec: Any = replace(alone.spec, labels=data.labeled_labels)
        step = replace(alone, spec=spec).step
        return make_call(step, alone.examples, scanned)(state, data)

    def on_each_device(states: TrainState, data: Resident) -> PyTree:
        if at_once > 1:
            axes = jax.tree.map(lambda own: 0 if own else None, differs)
            return jax.vmap(steps_of_one, (0, axes))(states, data)
        data = jax.tree.map(lambda own, leaf: leaf[0] if own else leaf, differs, data)
        return jax.tree.map(lambda leaf: leaf[None], steps_of_one(_part(states, 0), data))

    return jit(
        jax.shard_map(
            on_each_device,
            mesh=mesh,
            in_specs=(seeds, jax.tree.map(lambda own: seeds if own else PartitionSpec(), differs)),
            out_specs=seeds,
            check_vma=False,
        ),
        donate_argnums=0,
    )


def check_shapes(runs: Sequence[Run]) -> None:
    """Check that the states and data of all runs have the same shapes, dtypes and input scale.

    Raises:
        InputError: if they do not.
    """

    def of(run: Run) -> PyTree:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (run.program.state, run.data))

    for run in runs[1:]:
        if of(run) != of(runs[0]):
            raise InputError(
                f"{run.folder} and {runs[0].folder} have different numbers of images, so they "
                "cannot be trained together; train each by itself."
            )
        if _scale(run) != _scale(runs[0]):
            mean, std = ("".join(f"{value:g}," for value in each) for each in _scale(runs[0]))
            raise InputError(
                f"{run.folder} and {runs[0].folder} have different training images, of which "
                "data.mean and data.std are taken, so they cannot be trained together; give both "
                f"runs one scale, such as --config.data.mean='({mean})' "
                f"--config.data.std='({std})', or train each by itself."
            )


def _scale(run: Run) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by which the program normalizes images."""
    return run.program.mean, run.program.std


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _part(tree: PyTree, position: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[position], tree)


def _on_one_device(config: ConfigDict) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.devices = 1
    return config


def _raise(errors: dict[Run, Exception], folders: dict[Run, Path]) -> None:
    """Raise one error for the errors of all runs, if there are any.

    Its class is that of the signal that stopped the runs; else JaxmatchError if an error was
    unexpected; else that of the first error.
    """
    if not errors:
        return
    kinds = [type(error) if isinstance(error, JaxmatchError) else None for error in errors.values()]
    texts = [
        f"{folders[run]}: {error if kind else repr(error)}"
        for kind, (run, error) in zip(kinds, errors.items(), strict=True)
    ]
    stopped = [kind for kind in kinds if kind and issubclass(kind, Stopped)]
    kind = stopped[0] if stopped else None if None in kinds else kinds[0]
    raise (kind or JaxmatchError)("; ".join(texts))
