"""Many steps in one dispatch: a scan over steps whose metrics are summed on the device."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmatch.runtime.compilation import jit
from jaxmatch.runtime.mesh import replicated
from jaxmatch.step import Step
from jaxmatch.types import Array, Batch, PyTree, Ratio, TrainState

Feed = Callable[[], PyTree]  # the data of the next step


class Meter(NamedTuple):
    """Metrics summed over the steps of a call, and the first step that was not finite."""

    sums: dict[str, Ratio]
    bad_step: Array  # [] int32; -1: none so far
    bad_term: Array  # [] int32, position in watched(sums)


Call = Callable[[TrainState, Feed], tuple[TrainState, Meter]]


def watched(names: Any) -> list[str]:
    """The metrics that must stay finite: each loss term, then their total, then the gradient."""
    terms = sorted(name for name in names if name.startswith("loss/") and name != "loss/total")
    return [*terms, "loss/total", "optim/gradient_norm"]


def make_call(
    step: Step, examples_of: Callable[[PyTree, TrainState], Batch], steps_per_call: int
) -> Callable[[TrainState, PyTree], tuple[TrainState, Meter]]:
    """``steps_per_call`` steps as one function (state, data) -> (state, meter), still to be jitted.

    ``examples_of(data, state)`` gives the raw examples of the state's step.
    """

    def one(state: TrainState, data: PyTree) -> tuple[TrainState, Meter]:
        at = state.step
        state, metrics = step(state, examples_of(data, state))
        sums = {
            name: value if isinstance(value, Ratio) else Ratio(value, jnp.ones(()))
            for name, value in metrics.items()
        }
        sums = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), sums)
        bad = jnp.stack([~jnp.isfinite(sums[name].total) for name in watched(sums)])
        bad_step = jnp.where(bad.any(), at, -1)
        return state, Meter(sums, bad_step, bad.argmax().astype(jnp.int32))

    if steps_per_call == 1:
        return one

    def call(state: TrainState, data: PyTree) -> tuple[TrainState, Meter]:
        def body(carry: tuple[TrainState, Meter], _: None) -> tuple[Any, None]:
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
) -> Any:
    """:func:`make_call` jitted over ``mesh``, the state donated: (state, data) -> (state, meter).

    ``places`` are the shardings of the state (:func:`~jaxmatch.runtime.mesh.state_shardings`); all
    else is on every device, but for data that differs from step to step, whose shardings are
    ``data_places``. A call takes :func:`scanned` steps.
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
    """How many of a call's steps are one program; the host dispatches as many as it takes.

    It is a single step where the data differs from step to step, and on a CPU, where XLA computes
    convolutions inside a loop by a path that is over ten times slower (jax-ml/jax#12868).
    """
    return 1 if data_places is not None or on_cpu(mesh) else steps_per_call


def repeated(call: Any, times: int, mesh: Mesh) -> Call:
    """A jitted call several times, as one: (state, feed) -> (state, meter).

    ``feed()`` gives the data of the next call; nothing else is sent to the devices.
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
    """Whether the devices are a CPU's, where the host dispatches every step by itself."""
    return mesh.devices.flat[0].platform == "cpu"


def means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The metrics of an interval from (total, count) pairs; those never counted are left out."""
    return {
        name: float(total) / float(count)
        for name, (total, count) in sums.items()
        if count > 0 and math.isfinite(total)
    }
