"""Many steps in one dispatch: a scan over steps that sums their metrics on the device."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.stages import Compiled, Wrapped

from jaxmatch.runtime.compilation import jit
from jaxmatch.runtime.mesh import replicated
from jaxmatch.step import Step
from jaxmatch.types import Array, Batch, PyTree, Ratio, TrainState

Feed = Callable[[], PyTree]  # the data of the next step


class Meter(NamedTuple):
    """Metrics summed over the steps of a call, and the first step with a metric not finite."""

    sums: dict[str, Ratio]
    bad_step: Array  # [] int32; -1 if all were finite
    bad_term: Array  # [] int32, position in watched(sums)


Call = Callable[[TrainState, Feed], tuple[TrainState, Meter]]


def watched(names: Iterable[str]) -> list[str]:
    """The metrics that must stay finite: each loss term, their total, the gradient's norm."""
    terms = sorted(name for name in names if name.startswith("loss/") and name != "loss/total")
    return [*terms, "loss/total", "optim/gradient_norm"]


def make_call(
    step: Step, examples_of: Callable[[PyTree, TrainState], Batch], steps_per_call: int
) -> Callable[[TrainState, PyTree], tuple[TrainState, Meter]]:
    """``steps_per_call`` steps as one function (state, data) -> (state, meter), not jitted.

    ``examples_of(data, state)`` returns the raw examples of the state's step.
    """

    def one(state: TrainState, data: PyTree) -> tuple[TrainState, Meter]:
        number = state.step
        state, metrics = step(state, examples_of(data, state))
        sums = {
            name: value if isinstance(value, Ratio) else Ratio(value, jnp.ones(()))
            for name, value in metrics.items()
        }
        sums = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), sums)
        bad = jnp.stack([~jnp.isfinite(sums[name].total) for name in watched(sums)])
        bad_step = jnp.where(bad.any(), number, -1)
        return state, Meter(sums, bad_step, bad.argmax().astype(jnp.int32))

    if steps_per_call == 1:
        return one

    def call(state: TrainState, data: PyTree) -> tuple[TrainState, Meter]:
        def body(carry: tuple[TrainState, Meter], _: None) -> tuple[tuple[TrainState, Meter], None]:
            state, new = one(carry[0], data)
            return (state, merge(carry[1], new)), None

        shapes = jax.eval_shape(one, state, data)[1]
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        empty = empty._replace(bad_step=jnp.full((), -1, jnp.int32))
        return jax.lax.scan(body, (state, empty), length=steps_per_call)[0]

    return call


def merge(meter: Meter, new: Meter) -> Meter:
    """The meter of the steps of ``meter`` followed by those of ``new``."""
    clean = meter.bad_step < 0
    return Meter(
        jax.tree.map(jnp.add, meter.sums, new.sums),
        jnp.where(clean, new.bad_step, meter.bad_step),
        jnp.where(clean, new.bad_term, meter.bad_term),
    )


def jit_call(
    step: Step,
    examples_of: Callable[[PyTree, TrainState], Batch],
    steps_per_call: int,
    mesh: Mesh,
    places: PyTree,
    data_places: PyTree | None = None,
) -> Wrapped:
    """:func:`make_call` of :func:`scanned` steps, jitted: (state, data) -> (state, meter).

    The state is donated.

    Args:
        step: the train step.
        examples_of: as of :func:`make_call`.
        steps_per_call: the steps of a call.
        mesh: the devices.
        places: the shardings of the state (:func:`~jaxmatch.runtime.mesh.state_shardings`).
        data_places: the shardings of data that differs from step to step; None for data that stays
            the same, on every device.
    """
    everywhere = replicated(mesh)
    return jit(
        make_call(step, examples_of, scanned(steps_per_call, mesh, data_places)),
        mesh,
        in_shardings=(places, everywhere if data_places is None else data_places),
        out_shardings=(places, everywhere),
        donate_argnums=0,
    )


def scanned(steps_per_call: int, mesh: Mesh, data_places: PyTree | None = None) -> int:
    """The number of a call's steps that are one program; the host dispatches it repeatedly.

    It is 1 if the data differs from step to step. It is 1 on a CPU, too: there XLA computes
    convolutions inside a loop by a path that is over ten times slower (jax-ml/jax#12868).
    """
    return 1 if data_places is not None or on_cpu(mesh) else steps_per_call


def repeated(call: Wrapped | Compiled, times: int, mesh: Mesh) -> Call:
    """One call (state, feed) -> (state, meter) that runs a program ``times`` times.

    ``feed()`` returns the data of the program's next run; nothing else is sent to the devices.
    """
    add = jax.jit(merge, out_shardings=replicated(mesh), donate_argnums=0)

    def run(state: TrainState, feed: Feed) -> tuple[TrainState, Meter]:
        with jax.transfer_guard("disallow"):
            state, meter = call(state, feed())
            for _ in range(times - 1):
                state, new = call(state, feed())
                meter = add(meter, new)
        return state, meter

    return run


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are those of a CPU."""
    return mesh.devices.flat[0].platform == "cpu"


def means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The means of metrics from (total, count) pairs, without those whose count is 0."""
    return {
        name: float(total) / float(count)
        for name, (total, count) in sums.items()
        if count > 0 and math.isfinite(total)
    }
