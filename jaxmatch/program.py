"""The program of a run: its state, step and shapes, from a configuration and facts of the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.stages import Compiled, Traced
from jax.stages import Wrapped as JitWrapped
from ml_collections import ConfigDict

from jaxmatch.algorithms import build_algorithm
from jaxmatch.algorithms.unequal import Unequal, with_options
from jaxmatch.augment.build import build_augment
from jaxmatch.config.checks import check_batches, check_crops, check_settings
from jaxmatch.data import order as orders
from jaxmatch.data import streaming
from jaxmatch.data.crops import HostCrop
from jaxmatch.data.facts import Facts
from jaxmatch.data.loading import Plan
from jaxmatch.data.resident import Resident, Table, batch
from jaxmatch.errors import InputError
from jaxmatch.models.build import build_model
from jaxmatch.models.model import Model
from jaxmatch.models.network import make_network
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim
from jaxmatch.random import stream
from jaxmatch.runtime.dispatch import Call, jit_call, on_cpu, repeated, scanned
from jaxmatch.runtime.mesh import make_mesh, replicated, shard_batch, state_shardings
from jaxmatch.settings import build_section
from jaxmatch.step import ByIndex, FrozenNetwork, Step, init_state, make_train_step
from jaxmatch.types import Algorithm, Augment, Batch, Network, PyTree, Spec, TrainState


@dataclass(frozen=True, kw_only=True)
class Program:
    """The functions that a run compiles, and their shapes; :meth:`build` makes it without data.

    Attributes:
        config: the configuration.
        mesh: the devices.
        algorithm: the method.
        model: the Linen module.
        network: the function on which a method calls the model.
        augment: function from raw examples to views.
        crops: crops that the host makes of streamed images for each view of "labeled" and
            "unlabeled" examples.
        optim: the settings of the optimizer.
        ema: the settings of the teacher.
        spec: sizes for memories and schedules.
        classes: names of the classes.
        image_shape: (height, width, channels) of the raw images.
        mean: mean of the network's input.
        std: standard deviation of the network's input.
        frozen: networks that the method learns from, by role; empty until they are loaded.
        balanced: whether labeled examples are drawn equally often from each class.
    """

    config: ConfigDict
    mesh: Mesh
    algorithm: Algorithm
    model: Model
    network: Network
    augment: Augment
    crops: Mapping[str, tuple[HostCrop, ...]]
    optim: Optim
    ema: Ema
    spec: Spec
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    frozen: Mapping[str, FrozenNetwork] = field(default_factory=dict)
    balanced: bool = False

    @classmethod
    def build(
        cls,
        config: ConfigDict,
        facts: Facts,
        devices: Sequence[Any] | None = None,
    ) -> Self:
        """Build the program of ``config`` for data of ``facts``.

        Args:
            config: the configuration of one run or of one stage.
            facts: facts of the data (:meth:`jaxmatch.record.data.Data.facts`).
            devices: devices to choose from, by default those of the platform of this process. With
                devices of a topology (:mod:`jax.experimental.topologies`) the program compiles, but
                does not run.

        Raises:
            InputError: if a setting cannot work.
        """
        check_settings(config)
        data, unequal = config.data, build_section(Unequal, dict(config.unequal), "unequal")
        algorithm = with_options(build_algorithm(config.algorithm), unequal, config.algorithm.name)
        spec = Spec(
            classes=len(facts.classes),
            steps=config.steps,
            labels=facts.labels,
            unlabeled=facts.unlabeled,
            labeled_batch=data.batch_size if algorithm.labeled else 0,
            unlabeled_batch=data.batch_size * data.ratio if algorithm.unlabeled else 0,
            teacher_trains=config.ema.statistics == "own",
        )
        image_shape = facts.image_shape
        mean, std = tuple(data.mean), tuple(data.std)
        _check_data(spec, algorithm, image_shape, mean, std)
        if unequal.sampling == "balanced":
            _check_each_class_labeled(spec, facts.classes)
        check_crops(config, algorithm, image_shape)
        batches = (spec.labeled_batch, spec.unlabeled_batch)
        grouped = config.model.get("bn_groups", 1) > 1  # then a microbatch is some groups
        parts = 1 if grouped else config.microbatches
        mesh = make_mesh(config.devices, *batches, present=devices, parts=parts)
        model = build_model(
            config.model,
            classes=spec.classes,
            heads=algorithm.heads,
            dtype=config.dtype,
            remat=config.remat,
            frozen_trunk=config.optim.train == "head",
        )
        check_batches(config, model.bn_groups, mesh.size, batches)
        views, crops = build_augment(
            config.augment,
            config.views,
            algorithm,
            mean=mean,
            std=std,
            streamed_size=image_shape[:2] if data.stream else None,
        )
        return cls(
            config=config,
            mesh=mesh,
            algorithm=algorithm,
            model=model,
            network=make_network(
                model,
                mesh.size,
                config.forward,
                config.microbatches,
                on_cpu(mesh),
                config.precision,
            ),
            augment=views,
            crops=crops,
            optim=build_section(Optim, dict(config.optim), "optim"),
            ema=build_section(Ema, dict(config.ema), "ema"),
            spec=spec,
            classes=facts.classes,
            image_shape=image_shape,
            mean=mean,
            std=std,
            balanced=unequal.sampling == "balanced",
        )

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The gradient transformation."""
        return self.optim.build(self.config.steps, self.model.layers)

    def init(self) -> TrainState:
        """The state before the first step; call it inside ``jax.jit``."""
        return init_state(
            jax.random.key(self.config.seed),
            self.model,
            jnp.zeros((1, *self.image_shape)),
            self.algorithm,
            self.augment,
            self.optimizer,
            self.spec,
            self.optim.train,
        )

    @cached_property
    def step(self) -> Step:
        """The pure step.

        Raises:
            InputError: if a frozen network of the method is missing.
        """
        return make_train_step(
            self.algorithm,
            self.network,
            self.augment,
            self.optimizer,
            self.optim.rate(self.config.steps),
            self.ema,
            self.spec,
            self.frozen,
            self.model.random,
            self.optim.train,
        )

    def examples(self, data: Resident | Batch, state: TrainState) -> Batch:
        """The raw examples of a step, split over the devices.

        Args:
            data: the resident set, or streamed examples of the step, which are returned.
            state: the state before the step; its step number and key choose the examples.
        """
        if isinstance(data, Batch):
            return data
        order, spec = stream(state.key, "order"), self.spec
        balanced = spec.classes if self.balanced else 0
        drawn = batch(data, order, state.step, spec.labeled_batch, spec.unlabeled_batch, balanced)
        if self.mesh.size > 1:  # else it may be part of the program of several
            drawn = shard_batch(drawn, self.mesh)
        return drawn._replace(frozen=data.frozen)

    @cached_property
    def state(self) -> TrainState:
        """The shapes of the state."""
        return jax.eval_shape(self.init)

    @cached_property
    def shardings(self) -> PyTree:
        """The sharding of each array of the state."""
        return state_shardings(self.state, self.mesh, self.config.memory_placement)

    @cached_property
    def abstract(self) -> TrainState:
        """The shapes of the state with their shardings, to restore a checkpoint to."""
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            self.state,
            self.shardings,
        )

    @cached_property
    def data(self) -> Resident | Batch:
        """The shapes of the data that a call takes: the resident set, or the examples of a step.

        Variables of frozen networks have the shapes of the student here.
        """
        spec = self.spec
        frozen = dict.fromkeys(self.frozen, self.state.student()) or None
        if self.config.data.stream:
            return streaming.shapes(spec, self.crops, self.mesh)._replace(frozen=frozen)

        def images(count: int) -> Table:
            rows = jax.ShapeDtypeStruct((count, int(np.prod(self.image_shape))), jnp.uint8)
            return Table(rows, self.image_shape)

        def labels(count: int) -> PyTree:
            return jax.ShapeDtypeStruct((count,), jnp.int32)

        counts = len(spec.labels), spec.unlabeled
        labeled, unlabeled = ((images(count), labels(count)) for count in counts)
        return Resident(*labeled, *unlabeled, frozen=frozen)

    def plan(self, data: Resident) -> Plan:
        """The examples that this process reads at each step of a streamed set."""
        seed = self.config.seed
        key = stream(jax.random.key(seed), "order")
        return streaming.plan(
            data, key, self.spec, self.crops, seed, self.mesh, balanced=self.balanced
        )

    def jit(self, steps_per_call: int | None = None) -> JitWrapped:
        """The jitted call (state, data) -> (state, meter)."""
        return jit_call(
            self.step,
            self.examples,
            steps_per_call or self.config.steps_per_call,
            self.mesh,
            self.shardings,
            self._data_places,
        )

    def trace(self, steps_per_call: int | None = None) -> Traced:
        """The traced call (``jax.jit(...).trace``) for the shapes of state and data."""
        return self.jit(steps_per_call).trace(self.state, self.data)

    def compile(self, data: PyTree = None, steps_per_call: int | None = None) -> Call:
        """The function (state, feed) -> (state, meter) that takes the steps of a call.

        Args:
            data: the data that ``feed`` will return, or its shapes, to trace the steps at once; by
                default they are traced when they are first taken.
            steps_per_call: number of steps; by default that of the configuration.

        Raises:
            InputError: if the step cannot work.
        """
        call, steps = self.jit(steps_per_call), steps_per_call or self.config.steps_per_call
        if data is not None:
            jax.eval_shape(call, self.state, data)
        return repeated(call, steps // self.scanned(steps), self.mesh)

    @property
    def unit(self) -> int:
        """The number of steps between two looks of the host at the run: one on a CPU.

        There a step may take seconds, and the host dispatches each step anyway.
        """
        return 1 if on_cpu(self.mesh) else self.config.steps_per_call

    def executable(self, data: PyTree) -> Compiled:
        """The compiled program (state, data) -> (state, meter) of :meth:`scanned` steps.

        Args:
            data: arrays, or shapes with shardings.

        Raises:
            InputError: if the step cannot work.
        """
        return self.jit(self.unit).lower(self.abstract, data).compile()

    def repeat(self, executable: Compiled, steps: int) -> Call:
        """The function (state, feed) -> (state, meter) that takes ``steps`` steps.

        Args:
            executable: as :meth:`executable` returns it.
            steps: a multiple of :attr:`unit`; a run that was one of several takes more than one.
        """
        return repeated(executable, steps // self.scanned(self.unit), self.mesh)

    def scanned(self, steps_per_call: int | None = None) -> int:
        """The number of steps that one program takes; a call of more repeats the program."""
        steps = steps_per_call or self.config.steps_per_call
        return scanned(steps, self.mesh, self._data_places)

    @property
    def _data_places(self) -> PyTree | None:
        """The shardings of streamed examples; None for a resident set, which is replicated."""
        if not self.config.data.stream:
            return None
        places = streaming.places(self.data._replace(frozen=None))
        # One for all variables, since a frozen network may be of any architecture.
        return places._replace(frozen=replicated(self.mesh) if self.frozen else None)

    def with_stand_ins(self) -> Self:
        """The program with the student in place of frozen networks, to find sizes without them."""
        return replace(self, frozen=dict.fromkeys(self.algorithm.frozen, self.network))

    def forward_images(self, data: Resident | Batch) -> int:
        """The number of images that a step passes through networks, with targets and probes.

        ``data`` are arrays or shapes as :attr:`data`.
        """
        count = 0

        def counted(network: Network) -> Network:
            def call(variables: PyTree, views: PyTree, *rest: Any, **options: Any) -> Any:
                nonlocal count
                count += sum(len(images) for images in jax.tree.leaves(views))
                return network(variables, views, *rest, **options)

            return call

        frozen = {
            role: network if isinstance(network, ByIndex) else counted(network)
            for role, network in self.frozen.items()
        }
        same = replace(self, network=counted(self.network), frozen=frozen)
        jax.eval_shape(
            lambda state, data: same.step(state, same.examples(data, state)), self.state, data
        )
        return count


def _check_each_class_labeled(spec: Spec, classes: Sequence[str]) -> None:
    for number, name in enumerate(classes):
        if spec.labels and number not in spec.labels:
            raise InputError(
                f"unequal.sampling=balanced draws each class equally often, but {name!r} has no "
                "labeled image; label some, or set it to uniform."
            )


def _check_data(
    spec: Spec,
    algorithm: Algorithm,
    image_shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Refuse settings that do not fit the data."""
    if spec.labeled_batch < bool(algorithm.labeled) or spec.unlabeled_batch < bool(
        algorithm.unlabeled
    ):
        raise InputError("data.ratio must be at least 1 for this algorithm.")
    if algorithm.labeled and not spec.labels:
        raise InputError("no image is labeled; name some in the split file.")
    if algorithm.unlabeled and not spec.unlabeled:
        raise InputError("no unlabeled images are left; set data.include_labeled=True.")
    most = max(len(spec.labels), spec.unlabeled)
    if most > orders.LARGEST:
        raise InputError(
            f"{most:,} images are more than the {orders.LARGEST:,} that a run can have of one "
            "kind, labeled or unlabeled; leave some out."
        )
    channels = image_shape[-1]
    if not {len(mean), len(std)} <= {1, channels}:
        raise InputError(
            f"data.mean={mean} and data.std={std} must have one number, or {channels}."
        )
