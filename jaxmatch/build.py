"""From a configuration to the objects of a run, with every check that needs no compilation."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxmatch.algorithms import ALGORITHMS
from jaxmatch.augment.chain import Chain
from jaxmatch.augment.contrast import Contrast
from jaxmatch.augment.ctaugment import CTAugment
from jaxmatch.augment.ctaugment_views import CTAugmentOps, CTAugmentViews
from jaxmatch.augment.host import divide
from jaxmatch.augment.randaugment import RandAugment
from jaxmatch.augment.views import Views
from jaxmatch.augment.weak import Weak
from jaxmatch.config.checks import check_batches, check_crops, check_numbers
from jaxmatch.config.recipe import CONTRASTS, build_dataclass
from jaxmatch.data import streaming
from jaxmatch.data.crops import HostCrop
from jaxmatch.data.loading import Plan
from jaxmatch.data.resident import Resident, batch
from jaxmatch.errors import InputError, suggest
from jaxmatch.models import DERIVED, MODELS
from jaxmatch.models.network import make_network
from jaxmatch.models.resnet import FEATURE_NORMS, STEMS
from jaxmatch.optim.optimizer import Ema, Optim
from jaxmatch.random import stream
from jaxmatch.runtime.dispatch import on_cpu
from jaxmatch.runtime.mesh import make_mesh, shard_batch
from jaxmatch.settings import check_values
from jaxmatch.step import Step, init_state, make_train_step
from jaxmatch.types import (
    Algorithm,
    Augment,
    Batch,
    Network,
    PyTree,
    Spec,
    TrainState,
    Transform,
)

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16")
MODEL_CHOICES = {
    "padding": ("same", "torch"),
    "conv_bias": ("all", "stem", "none"),
    "stem": STEMS,
    "feature_norm": FEATURE_NORMS,
}
STRONG = ("randaugment", "ctaugment", "contrast")
ORDERS = ("weak_first", "ops_first")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a step is made of."""

    mesh: Mesh
    algorithm: Algorithm
    model: Any
    network: Network
    frozen: Mapping[str, Network]  # by role; none until they are loaded
    augment: Augment
    crops: Mapping[str, tuple[HostCrop, ...]]  # of a streamed set: what the host cuts for each role
    optim: Optim
    ema: Ema
    spec: Spec
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build_algorithm(config: ConfigDict) -> Algorithm:
    """The algorithm of ``config.algorithm``; InputError on an unknown name or field."""
    values = dict(config.algorithm)
    name = values.pop("name")
    if name not in ALGORITHMS:
        raise InputError(f"unknown algorithm {name!r}; {suggest(name, ALGORITHMS)}")
    return build_dataclass(ALGORITHMS[name], values, "algorithm")


def check_settings(config: ConfigDict) -> None:
    """Refuse every setting that cannot work whatever the data; InputError names it."""
    check_numbers(config)
    algorithm = build_algorithm(config)
    make_network(build_model(config, 1, algorithm), 1, config.forward, precision=config.precision)
    build_transforms(config)
    build_ctaugment(config)
    build_dataclass(Optim, dict(config.optim), "optim").rate(config.steps)
    build_dataclass(Ema, dict(config.ema), "ema")
    if not config.data.mean or not config.data.std:
        raise InputError("data.mean and data.std need a number for all channels, or one for each.")


def build_parts(
    config: ConfigDict, facts: Mapping[str, Any], devices: Sequence[Any] | None = None
) -> Parts:
    """Everything but the data; ``facts`` as :meth:`Data.facts` gives them.

    ``devices`` are those to choose from, by default all of this process's platform.

    Raises:
        InputError: on any setting that cannot work.
    """
    check_settings(config)
    algorithm = build_algorithm(config)
    labeled_batch = config.data.batch_size if algorithm.labeled else 0
    unlabeled_batch = config.data.batch_size * config.data.ratio if algorithm.unlabeled else 0
    if labeled_batch < bool(algorithm.labeled) or unlabeled_batch < bool(algorithm.unlabeled):
        raise InputError("data.ratio must be at least 1 for this algorithm.")
    if algorithm.labeled and not facts["labels"]:
        raise InputError("no image is labeled; name some in the split file.")
    if algorithm.unlabeled and not facts["unlabeled"]:
        raise InputError("no unlabeled images are left; set data.include_labeled=True.")
    check_crops(config, algorithm, facts["image_shape"])
    mesh = make_mesh(config.devices, labeled_batch, unlabeled_batch, present=devices)
    model = build_model(config, len(facts["classes"]), algorithm)
    check_batches(config, model.bn_groups, mesh.size, (labeled_batch, unlabeled_batch))
    network = make_network(
        model, mesh.size, config.forward, config.microbatches, on_cpu(mesh), config.precision
    )
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    channels = facts["image_shape"][-1]
    if not {len(mean), len(std)} <= {1, channels}:
        raise InputError(
            f"data.mean={mean} and data.std={std} must have one number, or {channels}."
        )
    augment, crops = build_augment(config, algorithm, mean, std, facts["image_shape"])
    return Parts(
        mesh=mesh,
        algorithm=algorithm,
        model=model,
        network=network,
        frozen={},
        augment=augment,
        crops=crops,
        optim=build_dataclass(Optim, dict(config.optim), "optim"),
        ema=build_dataclass(Ema, dict(config.ema), "ema"),
        spec=Spec(
            classes=len(facts["classes"]),
            steps=config.steps,
            labels=tuple(facts["labels"]),
            unlabeled=facts["unlabeled"],
            labeled_batch=labeled_batch,
            unlabeled_batch=unlabeled_batch,
            teacher_trains=config.ema.statistics == "own",
        ),
        classes=tuple(facts["classes"]),
        image_shape=tuple(facts["image_shape"]),
        mean=mean,
        std=std,
    )


def build_state(config: ConfigDict, parts: Parts, optimizer: Any) -> TrainState:
    """The state before the first step; to be called inside ``jax.jit`` or ``jax.eval_shape``."""
    return init_state(
        jax.random.key(config.seed),
        parts.model,
        jnp.zeros((1, *parts.image_shape)),
        parts.algorithm,
        parts.augment,
        optimizer,
        parts.spec,
    )


def build_step(config: ConfigDict, parts: Parts, optimizer: Any) -> Step:
    """The pure step of the run."""
    rate = parts.optim.rate(config.steps)
    return make_train_step(
        parts.algorithm,
        parts.network,
        parts.augment,
        optimizer,
        rate,
        parts.ema,
        parts.spec,
        parts.frozen,
    )


def with_stand_ins(parts: Parts) -> Parts:
    """``parts`` with the student as its frozen networks, where only their size matters."""
    roles = getattr(parts.algorithm, "frozen", ())
    return replace(parts, frozen=dict.fromkeys(roles, parts.network))


def stand_ins(parts: Parts, state: TrainState) -> dict[str, PyTree] | None:
    """The student's variables for those of the networks of :func:`with_stand_ins`."""
    return dict.fromkeys(parts.frozen, state.student()) or None


def forward_images(
    config: ConfigDict, parts: Parts, optimizer: Any, shapes: TrainState, data: Any
) -> int:
    """How many images a step passes through the networks, those of targets and probes included."""
    count = 0

    def counted(network: Network) -> Network:
        def call(variables: PyTree, views: PyTree, train: bool = True) -> tuple[PyTree, PyTree]:
            nonlocal count
            count += sum(len(images) for images in jax.tree.leaves(views))
            return network(variables, views, train)

        return call

    frozen = {role: counted(network) for role, network in parts.frozen.items()}
    parts = replace(parts, network=counted(parts.network), frozen=frozen)
    step = build_step(config, parts, optimizer)
    examples = examples_of(parts)
    jax.eval_shape(lambda state, data: step(state, examples(data, state)), shapes, data)
    return count


def examples_of(parts: Parts) -> Callable[[Resident | Batch, TrainState], Batch]:
    """The raw examples of a state's step, split over the devices; streamed ones as they came."""

    def examples(data: Resident | Batch, state: TrainState) -> Batch:
        if isinstance(data, Batch):
            return data
        order = stream(state.key, "order")
        spec = parts.spec
        drawn = batch(data, order, state.step, spec.labeled_batch, spec.unlabeled_batch)
        if parts.mesh.size > 1:  # one device's program may be a part of that of several
            drawn = shard_batch(drawn, parts.mesh)
        return drawn._replace(frozen=data.frozen)

    return examples


def build_plan(config: ConfigDict, parts: Parts, data: Resident) -> Plan:
    """What this process reads at each step of a streamed set."""
    key = stream(jax.random.key(config.seed), "order")
    return streaming.plan(data, key, parts.spec, parts.crops, config.seed, parts.mesh)


def build_model(config: ConfigDict, classes: int, algorithm: Algorithm) -> Any:
    """The Linen module of ``config.model`` with the heads that the algorithm asks for."""
    values = dict(config.model)
    name = values.pop("name")
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; {suggest(name, MODELS)}")
    if config.dtype not in DTYPES:
        raise InputError(f"unknown dtype {config.dtype!r}; {suggest(config.dtype, DTYPES)}")
    model, fixed = MODELS[name]
    check_values(model, values, "model")
    for key, known in MODEL_CHOICES.items():
        if key in values and values[key] not in known:
            raise InputError(f"unknown model.{key} {values[key]!r}; {suggest(values[key], known)}")
    if "depth" in values and (values["depth"] < 4 or (values["depth"] - 4) % 6):
        raise InputError(
            f"model.depth={values['depth']} is not 6n + 4 (four, ten, sixteen, ... layers)."
        )
    known = [key for key in model.__dataclass_fields__ if key not in (*DERIVED, *fixed)]
    for key in values:
        if key not in known:
            raise InputError(f"model {name} has no setting {key!r}; {suggest(key, known)}")
    return model(
        classes=max(1, classes),  # images without any label still pass a classifier
        heads=algorithm.heads,
        dtype=jnp.bfloat16 if config.dtype == "bfloat16" else None,
        remat=config.remat,
        **fixed,
        **values,
    )


def build_augment(
    config: ConfigDict,
    algorithm: Algorithm,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    image_shape: Sequence[int],
) -> tuple[Augment, Mapping[str, tuple[HostCrop, ...]]]:
    """The augmentation of ``config.augment`` for the view roles of ``algorithm``.

    Beside it what the host crops of streamed images, empty for others.
    """
    views = Views(
        transforms=build_transforms(config),
        labeled=algorithm.labeled,
        unlabeled=algorithm.unlabeled,
        mean=mean,
        std=std,
    )
    crops: Mapping[str, tuple[HostCrop, ...]] = {}
    if config.data.stream:
        crops, views = divide(views, (image_shape[0], image_shape[1]))
    if config.augment != "ctaugment":
        return views, crops
    return CTAugmentViews(
        views=views,
        ctaugment=build_ctaugment(config),
        ops_first=config.views.strong.order == "ops_first",
    ), crops


def build_ctaugment(config: ConfigDict) -> CTAugment:
    """CTAugment with the settings of ``config.views.ctaugment``."""
    return build_dataclass(CTAugment, dict(config.views.ctaugment), "views.ctaugment")


def build_transforms(config: ConfigDict) -> dict[str, Transform]:
    """The transform of each view role from ``config.views`` and ``config.augment``.

    Under CTAugment the strong one is that of its first policy.
    """
    if config.augment not in STRONG:
        raise InputError(f"unknown augment {config.augment!r}; {suggest(config.augment, STRONG)}")
    values = dict(config.views.weak)
    area = values.pop("area")
    weak: Transform = build_dataclass(Weak, values, "views.weak")
    if area:  # ImageNet's: a resized crop of such a share of the image, for the padded one
        weak = Contrast(area=tuple(area), flip=0.5 * values["flip"], jitter=0.0, grayscale=0.0)
    contrasts = {
        role: build_dataclass(Contrast, dict(config.views[role]), f"views.{role}")
        for role in CONTRASTS
    }
    values = dict(config.views.strong)
    order = values.pop("order")
    if order not in ORDERS:
        raise InputError(f"unknown views.strong.order {order!r}; {suggest(order, ORDERS)}")
    ops: Transform = build_dataclass(RandAugment, values, "views.strong")
    if config.augment == "ctaugment":
        ops = CTAugmentOps(ctaugment=build_ctaugment(config))
    chain = Chain(transforms=(weak, ops) if order == "weak_first" else (ops, weak))
    strong = contrasts["contrast"] if config.augment == "contrast" else chain
    return {"weak": weak, "strong": strong, **contrasts}
