"""Several runs that differ in their seed alone, trained by one program.

A small network leaves a GPU idle for most of a step. Here ``jax.vmap`` over the seeds makes one
step of several runs, each of which stays what it is alone: its draws, its order of images, its
folder and its checkpoints, so that either way of training continues what the other began. The seeds
are laid over the devices, each of which takes the whole batch of its own seeds, so that a step
exchanges nothing between devices.
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
from ml_collections import ConfigDict

from jaxmatch.config import saved
from jaxmatch.config.checks import check_settings
from jaxmatch.errors import InputError, JaxmatchError, Stopped
from jaxmatch.program import Program
from jaxmatch.record.folder import RunFolder
from jaxmatch.runtime import paths
from jaxmatch.runtime.checkpoint import Checkpoints
from jaxmatch.runtime.compilation import jit
from jaxmatch.runtime.dispatch import Meter, make_call, merge, on_cpu
from jaxmatch.runtime.mesh import check_memory, over_batch, replicated
from jaxmatch.runtime.termination import Stop, termination_noted
from jaxmatch.training.footprint import check_step
from jaxmatch.training.run import Run
from jaxmatch.training.shared import Shared
from jaxmatch.training.train import completed, prepare
from jaxmatch.types import PyTree, TrainState

log = logging.getLogger(__name__)

# The one generator whose draws for a key are the same alone and under ``jax.vmap``.
GENERATOR = "threefry2x32"

Calls = Callable[[Sequence[TrainState]], list[tuple[TrainState, Meter]]]


def train(runs: Sequence[tuple[ConfigDict, str | Path | None]]) -> list[dict[str, Any]]:
    """Train, or continue, runs that are equal but for their seed.

    Args:
        runs: the configuration and the folder of each, as :func:`jaxmatch.train` takes them.

    Returns:
        The content of ``summary.json`` of each run, in order. Their seconds, as those in
        ``metrics.jsonl``, are the clock's, in which all of them were trained.

    Raises:
        InputError: if anything cannot work, before anything is compiled or written.
        Stopped: after SIGTERM or Ctrl-C (SIGINT), once the states of all are saved.
        JaxmatchError: of the first run that failed, once the others are finished; of exit code 1
            where an error was unexpected, whose traceback is logged.
    """
    started = time.monotonic()
    check([config for config, _ in runs])
    for config, _ in runs:
        check_settings(config)
    folders = [paths.path(given or Path("runs") / saved.run_name(c)) for c, given in runs]
    if len({paths.absolute(folder) for folder in folders}) < len(folders):
        raise InputError("two of the runs have the same folder; give each its own.")
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
        summaries, errors = group.go(terminated)
    _raise(errors, {run: folders[position] for position, run in prepared.items()})
    return [
        summary if summary is not None else summaries[prepared[position]]
        for position, summary in enumerate(known)
    ]


def check(configs: Sequence[ConfigDict]) -> None:
    """InputError where runs of these configurations cannot be trained by one program."""
    if jax.process_count() > 1:
        raise InputError("several processes train one run at a time; start one for each group.")
    for config in configs:
        check_one(config)
    first, *others = (key(config) for config in configs)
    if any(other != first for other in others):
        raise InputError("only runs that are equal but for their seed can be trained together.")
    if (generator := str(jax.config.values["jax_default_prng_impl"])) != GENERATOR:
        raise InputError(
            f"runs trained together would not draw as they do alone with the generator {generator};"
            f" set jax_default_prng_impl to {GENERATOR}."
        )


def check_one(config: ConfigDict) -> None:
    """InputError where a run of this configuration cannot be trained along with others."""
    if "order" in config:
        raise InputError("runs in stages cannot be trained together; train each by itself.")
    if config.data.stream:
        raise InputError(
            "runs on streamed images cannot be trained together; set data.stream=False or train "
            "each by itself."
        )
    if config.wandb:
        raise InputError("runs trained together cannot log to wandb; leave wandb empty.")


def key(config: ConfigDict) -> str:
    """The same for all configurations that are equal but for their seed."""
    values = saved.to_json(config)
    values.pop("seed", None)
    return json.dumps(values, sort_keys=True)


def seed_devices(config: ConfigDict, seeds: int) -> int:
    """On how many devices so many runs are trained soonest; fewer where more would not help.

    All of them evaluate each run, so their number divides its batches.
    """
    present = config.devices or len(jax.devices())
    counts = [count for count in range(1, present + 1) if config.data.batch_size % count == 0]
    return min(counts, key=lambda count: (-(-seeds // count), count))


class Group:
    """Runs of one process that are still to be trained, as one program does."""

    def __init__(self, runs: Sequence[Run]):
        """Trace the program; InputError where it cannot work or does not fit into memory."""
        self._summaries: dict[Run, dict[str, Any]] = {}
        self._errors: dict[Run, Exception] = {}
        self._runs = tuple(runs)
        self._compiled: tuple[tuple[Run, ...], Calls] | None = None
        if runs:
            self._calls(self._runs)

    def go(self, terminated: Stop) -> tuple[dict[Run, dict[str, Any]], dict[Run, Exception]]:
        """Train all to their end: the summaries of those that got there, the errors of others.

        What goes wrong while one run logs, evaluates or saves ends that run alone.
        """
        states: dict[Run, TrainState] = {}
        with contextlib.ExitStack() as opened:
            for run in self._runs:
                opened.enter_context(run)
                with self._apart(run):
                    self._keep(run, run.start(), states)
            while states:
                runs = tuple(states)
                replies = self._calls(runs)([states.pop(run) for run in runs])
                # Asked once for all: a run that went on by itself would need another program.
                stop = terminated()
                for run in runs:
                    with self._apart(run):
                        state = run.after(*replies.pop(0), lambda stop=stop: stop)
                        self._keep(run, state, states)
                        del state  # the next call is given it, and frees it
        return self._summaries, self._errors

    def _keep(self, run: Run, state: TrainState, states: dict[Run, TrainState]) -> None:
        """Keep a state for the next call, or finish a run whose steps are taken."""
        if run.done:
            self._summaries[run] = run.finish(state)
        else:
            states[run] = state

    @contextlib.contextmanager
    def _apart(self, run: Run) -> Iterator[None]:
        """What goes wrong in the block ends this run alone."""
        try:
            yield
        # Hours of the other runs are worth more than a clean end of this one.
        except Exception as error:
            self._errors[run] = error
            run.__exit__(type(error), error, error.__traceback__)
            if not isinstance(error, JaxmatchError):
                log.exception("%s: an unexpected error. The other runs go on.", run.folder)
            elif not isinstance(error, Stopped):
                log.warning("%s: %s The other runs go on.", run.folder, error)

    def _calls(self, runs: tuple[Run, ...]) -> Calls:
        """The program of these runs; when one has ended, a smaller one for the others."""
        if self._compiled is None or self._compiled[0] != runs:
            self._compiled = None  # its stacked data is freed first
            self._compiled = (runs, compile_calls(runs))
        return self._compiled[1]


def compile_calls(runs: Sequence[Run], at_once: int | None = None) -> Calls:
    """One program for ``steps_per_call`` steps of each run: states -> (state, meter) of each.

    Args:
        runs: equal but for their seed, on the same devices.
        at_once: how many seeds a device computes at once, by ``jax.vmap``; the program runs again
            for others. By default all, on a CPU one: there a convolution with a kernel for each
            seed takes twice as long as one after the other.

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
    width = at_once * mesh.size  # seeds of one call
    scanned = 1 if on_cpu(mesh) else config.steps_per_call
    over_seeds, everywhere = over_batch(mesh), replicated(mesh)

    leaves = [jax.tree.leaves(run.data) for run in runs]
    structure = jax.tree.structure(run.data)
    differs = [any(leaf is not same[0] for leaf in same) for same in zip(*leaves, strict=True)]
    common = [leaf for leaf, own in zip(leaves[0], differs, strict=True) if not own]

    def own(position: int) -> list[jax.Array]:
        return [leaf for leaf, own in zip(leaves[position], differs, strict=True) if own]

    alone = Program.build(_on_one_device(config), run.facts)
    alone = replace(alone, frozen=run.program.frozen)
    check_step(alone, seeds=at_once, frozen=run.data.frozen)

    def one(state: TrainState, own: list[Any], common: list[Any]) -> tuple[TrainState, Meter]:
        mine, others = iter(own), iter(common)
        data = structure.unflatten(next(mine if own else others) for own in differs)
        # Labels differ by seed, so here they are no constants.
        spec: Any = replace(alone.spec, labels=data.labeled_labels)
        step = replace(alone, spec=spec).step
        return make_call(step, alone.examples, scanned)(state, data)

    def on_each_device(states: TrainState, own: list[Any], common: list[Any]) -> PyTree:
        if at_once > 1:
            return jax.vmap(one, (0, 0, None))(states, own, common)
        states, own = _part((states, own), 0)
        return jax.tree.map(lambda leaf: leaf[None], one(states, own, common))

    seeds = PartitionSpec("data")
    program = jit(
        jax.shard_map(
            on_each_device,
            mesh=mesh,
            in_specs=(seeds, seeds, PartitionSpec()),
            out_specs=seeds,
            check_vma=False,
        ),
        donate_argnums=0,
    )
    add = jax.jit(merge, donate_argnums=0)
    stack = jax.jit(_stacked, out_shardings=over_seeds)
    unstack = jax.jit(
        lambda tree: [_part(tree, position) for position in range(width)],
        out_shardings=[(run.program.shardings, everywhere)] * width,
    )
    # The last call is filled up with the first runs, whose second results are dropped.
    members = [
        [position % count for position in range(start, start + width)]
        for start in range(0, count, width)
    ]
    owned = [stack([own(position) for position in positions]) for positions in members]
    shapes = jax.eval_shape(stack, [run.program.state] * width)
    jax.eval_shape(program, shapes, owned[0], common)

    def calls(states: Sequence[TrainState]) -> list[tuple[TrainState, Meter]]:
        replies = []
        with jax.transfer_guard("disallow"):
            stacked = [stack([states[position] for position in some]) for some in members]
            meters: list[Any] = [None] * len(stacked)
            for _ in range(config.steps_per_call // scanned):
                for part, data in enumerate(owned):
                    stacked[part], new = program(stacked[part], data, common)
                    meters[part] = new if meters[part] is None else add(meters[part], new)
            while stacked:
                replies += unstack((stacked.pop(0), meters.pop(0)))
        return replies[:count]

    return calls


def check_shapes(runs: Sequence[Run]) -> None:
    """InputError where the arrays of runs differ in more than their values."""

    def of(run: Run) -> PyTree:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (run.program.state, run.data))

    for run in runs[1:]:
        if of(run) != of(runs[0]):
            raise InputError(
                f"{run.folder} and {runs[0].folder} have numbers of images of their own, so they "
                "cannot be trained together; train each by itself."
            )


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _part(tree: PyTree, position: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[position], tree)


def _on_one_device(config: ConfigDict) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.devices = 1
    return config


def _raise(errors: dict[Run, Exception], folders: dict[Run, Path]) -> None:
    """Raise one error for those of all runs: what stopped them, else unexpected, else the first."""
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
