"""A configuration and the facts of its data as one program: its state, its step, its shapes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmatch import build
from jaxmatch.data import streaming
from jaxmatch.data.resident import Resident, Table
from jaxmatch.runtime.dispatch import jit_call
from jaxmatch.runtime.mesh import replicated, state_shardings
from jaxmatch.step import Step
from jaxmatch.types import Batch, PyTree, TrainState


@dataclass(frozen=True)
class Program:
    """What a run compiles, before there is any data or device memory.

    Attributes:
        config: the configuration.
        parts: what :func:`jaxmatch.build.build_parts` makes of it.
    """

    config: ConfigDict
    parts: build.Parts

    @classmethod
    def build(
        cls,
        config: ConfigDict,
        facts: Mapping[str, Any],
        devices: Sequence[Any] | None = None,
    ) -> Self:
        """The program over ``devices``, by default those of this process's platform.

        Devices of a topology that is only described (:mod:`jax.experimental.topologies`) compile
        but do not run. Frozen networks are stood in for by the student, of which only the size
        matters here. Raises InputError on any setting that cannot work.
        """
        return cls(config, build.with_stand_ins(build.build_parts(config, facts, devices)))

    @cached_property
    def optimizer(self) -> Any:
        """The gradient transformation."""
        return self.parts.optim.build(self.config.steps, self.parts.model.layers)

    def init(self) -> TrainState:
        """The state before the first step; to be called inside ``jax.jit``."""
        return build.build_state(self.config, self.parts, self.optimizer)

    @cached_property
    def step(self) -> Step:
        """The pure step."""
        return build.build_step(self.config, self.parts, self.optimizer)

    @cached_property
    def examples(self) -> Callable[[Resident | Batch, TrainState], Batch]:
        """From the data and a state to the raw examples of its step."""
        return build.examples_of(self.parts)

    @cached_property
    def state(self) -> TrainState:
        """The state as shapes."""
        return jax.eval_shape(self.init)

    @cached_property
    def shardings(self) -> PyTree:
        """Where each array of the state lives."""
        return state_shardings(self.state, self.parts.mesh, self.config.memory_placement)

    @cached_property
    def data(self) -> Resident | Batch:
        """What a call takes beside the state, as shapes: the resident set, or a step's examples."""
        parts, spec = self.parts, self.parts.spec
        frozen = build.stand_ins(parts, self.state)
        if self.config.data.stream:
            return streaming.shapes(spec, parts.crops, parts.mesh)._replace(frozen=frozen)

        def images(count: int) -> Table:
            rows = jax.ShapeDtypeStruct((count, int(np.prod(parts.image_shape))), jnp.uint8)
            return Table(rows, parts.image_shape)

        def labels(count: int) -> Any:
            return jax.ShapeDtypeStruct((count,), jnp.int32)

        counts = len(spec.labels), spec.unlabeled
        labeled, unlabeled = ((images(count), labels(count)) for count in counts)
        return Resident(*labeled, *unlabeled, frozen=frozen)

    def jit(self, steps_per_call: int | None = None) -> Any:
        """The jitted call (state, data) -> (state, meter), which is lowered with their shapes."""
        data = self.data
        places = streaming.places(data._replace(frozen=None)) if self.config.data.stream else None
        if places is not None and data.frozen is not None:
            everywhere = replicated(self.parts.mesh)
            places = places._replace(frozen=jax.tree.map(lambda _: everywhere, data.frozen))
        return jit_call(
            self.step,
            self.examples,
            steps_per_call or self.config.steps_per_call,
            self.parts.mesh,
            self.shardings,
            places,
        )

    def trace(self, steps_per_call: int | None = None) -> Any:
        """The call as ``jax.jit(...).trace`` gives it, for these shapes."""
        return self.jit(steps_per_call).trace(self.state, self.data)

    def with_parts(self, **parts: Any) -> Self:
        """The same program of other parts."""
        return replace(self, parts=replace(self.parts, **parts))
