"""Replays recorded training steps through the library's own train step and loss.

Optimizer, schedule, EMA, network and loss are the library's. Only the augmentation is replaced, by
the recorded views, and what the lines of a case name as overridden.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.compare import (
    Names,
    compare_gradient,
    compare_states,
    compare_step,
    compare_variables,
)
from experiments.parity.entries import (
    COMMON_QUANTITIES,
    QUICK_COMPILATION,
    Argument,
    Override,
    Quantities,
    Replay,
    Result,
)
from experiments.parity.networks import model_shapes
from experiments.parity.networks_vit import whole_patches
from experiments.parity.recording import (
    PASSES,
    RecordedViews,
    RecordingAlgorithm,
    RecordingModel,
    keep_gradient,
    skip_unreached,
)
from experiments.parity.rows import Case, Comparison
from experiments.parity.tensors import find_naming, from_torch
from jaxmatch.models.network import Forward, make_network
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim
from jaxmatch.step import make_train_step
from jaxmatch.types import NOT_GIVEN, Array, Batch, Examples, Outputs, PyTree, Spec, TrainState


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A recorded run in the library's terms.

    Attributes:
        entry: what replays its algorithm.
        model: the network.
        optim: the optimizer and its schedule.
        ema: the teacher; its decay at step s is ``decays[s]``.
        decays: one for each step.
        spec: of the run.
        steps: where the schedule ends.
        forward: how the network joins its views.
        start: the library's step count at the first recorded step.
        student, teacher: what precedes the tensors' names before the first step.
        final_student, final_teacher: and after the last.
        skips: whether the optimizer passes over parameters without a recorded gradient as long as
            theirs is 0; otherwise they decay.
        overridden: what of the library, beside the entry's overrides, is not used as it is.
    """

    entry: Replay
    model: Any
    optim: Optim
    ema: Ema
    decays: Sequence[float]
    spec: Spec
    steps: int
    forward: Forward = "joint"
    start: int = 0
    student: str = "init/"
    teacher: str = "init/"
    final_student: str = "final/"
    final_teacher: str = "ema/"
    skips: bool = False
    overridden: Sequence[str] = ()


def run(case: Case, setup: Setup, tolerance: float) -> Comparison:
    """Replay all steps of a case and hold them against the recorded ones."""
    entry, overrides = setup.entry, setup.entry.overrides(case)
    replaced = [*map(str, overrides), *setup.overridden]
    source = f"override: {', '.join(replaced)}" if replaced else "library"
    comparison = Comparison(case, tolerance, source)
    quantities = {**COMMON_QUANTITIES, **entry.quantities(case)}

    views = entry.views(case)
    batches = [read_batch(case, step, views) for step in range(case.meta["steps"])]
    shapes = model_shapes(setup.model, batches[0].views[0])
    tensors = case.under(setup.student)
    names = Names(find_naming(tensors, shapes), setup.student.removeprefix("init/"))
    state, step = build(case, setup, quantities, overrides, shapes, names)
    if entry.begin is not None:
        state = entry.begin(case, comparison, setup, shapes, names, state)
    for number, batch in enumerate(batches):
        state, metrics = step(state, batch, setup.decays[number], entry.draws(case, number))
        if number == 0:
            compare_gradient(comparison, case, names, state.optimizer[0])
        metrics = {**metrics, **entry.settings(case, number)}
        compare_step(comparison, case, number, metrics, quantities)
        compare_states(comparison, case, number, entry.states(case, state.memory))

    student = state.student()
    compare_variables(comparison, case, names, setup.final_student, student, setup.student)
    # Statistics that are copied or averaged come with the student's count of updates.
    own = setup.ema.statistics == "own"
    counted, start = (state.teacher, setup.teacher) if own else (student, setup.student)
    passes = counted["batch_stats"][PASSES]
    teacher = {**state.teacher, "batch_stats": {**state.teacher["batch_stats"], PASSES: passes}}
    compare_variables(comparison, case, names, setup.final_teacher, teacher, start)
    return comparison


def build(
    case: Case,
    setup: Setup,
    quantities: Quantities,
    overrides: Sequence[Override],
    shapes: PyTree,
    names: Names,
) -> tuple[TrainState, Callable[..., tuple[TrainState, dict[str, Any]]]]:
    """The state before the first step, and the compiled step.

    The step takes the state, the batch, the EMA's decay and the draws of the loss.
    """
    student, teacher = (
        read_variables(case, key, shapes, names) for key in (setup.student, setup.teacher)
    )
    optimizer = setup.optim.build(setup.steps, setup.model.layers)
    if setup.skips:
        optimizer = skip_unreached(optimizer, unreached(case, setup.student, shapes, names))
    optimizer = keep_gradient(optimizer)
    # Only the schedule goes on from an earlier step: momentum and Adam's moments start anew.
    optimizer_state: Any = optimizer.init(student["params"])
    *moments, schedule = optimizer_state
    schedule = schedule._replace(count=jnp.asarray(setup.start, jnp.int32))

    passes: list[Outputs] = []
    wanted = {
        name: value for name, value in quantities.items() if isinstance(value, Argument | Result)
    }
    method = setup.entry.build(case)
    given = setup.entry.memory
    state = TrainState(
        step=jnp.asarray(setup.start, jnp.int32),
        key=jax.random.key(0),
        params=student["params"],
        stats=student["batch_stats"],
        teacher=teacher,
        optimizer=(*moments, schedule),
        memory=given(case) if given else method.init(jax.random.key(0), setup.spec),
        policy=(),
    )
    network = make_network(RecordingModel(setup.model, passes), forward=setup.forward)
    rate = setup.optim.rate(setup.steps)

    def step(
        state: TrainState, batch: Batch, decay: Any, draws: PyTree
    ) -> tuple[TrainState, dict[str, Any]]:
        ema = replace(setup.ema, decay=decay)
        algorithm: Any = RecordingAlgorithm(method, passes, wanted, overrides, draws)
        train = make_train_step(
            algorithm, network, RecordedViews(), optimizer, rate, ema, setup.spec
        )
        return train(state, batch)

    return state, jax.jit(step, compiler_options=QUICK_COMPILATION)


def read_batch(case: Case, step: int, views: Sequence[str]) -> Batch:
    """The recorded inputs of one step, NCHW to NHWC."""

    def images(name: str) -> Array:
        values = case[f"batch/{step}/{name}"].transpose(0, 2, 3, 1)
        return whole_patches(jnp.asarray(values, case.meta["dtype"]), case.meta)

    def integers(name: str) -> Array:
        key = f"batch/{step}/{name}"
        return jnp.asarray(case[key], jnp.int32) if key in case else NOT_GIVEN

    labeled = Examples((images("x_lb"),), integers("y_lb"), integers("idx_lb"))
    if not views:
        return Batch(labeled, None)
    return Batch(labeled, Examples(tuple(map(images, views)), index=integers("idx_ulb")))


def read_variables(case: Case, key: str, shapes: PyTree, names: Names) -> dict[str, PyTree]:
    """The network whose tensors' names follow ``key``, with a count of updates."""
    read = from_torch(case.under(key), shapes, naming=names.naming)
    variables = jax.tree.map(jnp.asarray, read)
    # The EMA averages it with the other statistics, so it is not an integer.
    variables["batch_stats"][PASSES] = jnp.zeros((), float)
    return variables


def unreached(case: Case, key: str, shapes: PyTree, names: Names) -> PyTree:
    """1 where a parameter has no recorded gradient, else 0, in the shapes of the parameters."""
    reached = case.names("grad/0/" + names.prefix)
    flags = {
        name: np.full(value.shape, name not in reached) for name, value in case.under(key).items()
    }
    return from_torch(flags, shapes, naming=names.naming)["params"]
