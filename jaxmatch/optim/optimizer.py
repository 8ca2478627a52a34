"""The optimizers as optax chains, SGD to LARS, and the EMA teacher."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from jaxmatch.errors import InputError, suggest
from jaxmatch.optim.schedules import cosine, learning_rate
from jaxmatch.settings import Count, Momentum, NonNegative, Positive, Range, Share, Whole, section
from jaxmatch.types import Array, PyTree

OPTIMIZERS = ("sgd", "adamw", "lars")
DECAYS = ("kernels", "not_batch_norm", "all")
TRUST_RATIOS = ("joint", "separate", "clipped")
EMA_SCHEDULES = ("constant", "cosine")
EMA_STATISTICS = ("copied", "averaged", "own")


@section("optim")
class Optim:
    """``config.optim``.

    Attributes:
        name: "sgd" (Nesterov momentum, weight decay as L2 inside the momentum), "adamw"
            (decoupled decay) or "lars": sgd whose gradient g + weight_decay w is first multiplied
            by a ratio for each array w; You, Gitman & Ginsburg, "Large Batch Training of
            Convolutional Networks", 2017, https://arxiv.org/abs/1708.03888.
        schedule: see :func:`jaxmatch.optim.schedules.learning_rate`.
        period_steps: after warm-up the rate changes only every so many steps (official SimMatch
            and CoMatch step it once an epoch on ImageNet).
        drops: shares of the run after which the "steps" schedule lowers the rate.
        drop_factor: what it multiplies the rate by.
        decay: which parameters decay: "kernels" of convolutions and dense layers,
            "not_batch_norm" (biases too) or "all".
        classifier_rate: the learning rate of the classifier as a multiple of the others'
            (fine-tuning).
        layer_decay: the learning rate of a layer is multiplied by this once for each layer
            between it and the classifier; 1 turns it off.
        clip_norm: largest global norm of the gradient, before decay; 0 turns it off.
        rate_inside_momentum: sgd and lars add up steps of the rate that held when they were taken
            (SimCLR), instead of multiplying the sum by the present rate (BYOL, SwAV, PyTorch).
        trust_ratio: of lars, with eta = ``trust_coefficient`` and d = ``weight_decay`` or 0:
            "joint" is eta |w| / |g + d w| (SimCLR, BYOL, WCL), "separate"
            eta |w| / (|g| + d |w| + 1e-8) (SwAV's LARC) and "clipped" that one divided by the
            rate, at most 1 (LARC with clipping; solo-learn, eta 0.02).
        trust_coefficient: positive.
        adapted: which parameters have a ratio, in the terms of ``decay``; of the others it is 1.
    """

    name: str = "sgd"
    learning_rate: NonNegative = 0.03
    schedule: str = "cosine_7_16"
    warmup_steps: Whole = 0
    period_steps: Count = 1
    drops: tuple[Annotated[float, Range(above=0, below=1)], ...] = ()
    drop_factor: Share = 0.1
    momentum: Momentum = 0.9
    nesterov: bool = True
    weight_decay: NonNegative = 5e-4
    decay: str = "kernels"
    classifier_rate: NonNegative = 1.0
    layer_decay: Share = 1.0
    clip_norm: NonNegative = 0.0
    rate_inside_momentum: bool = False
    trust_ratio: str = "joint"
    trust_coefficient: Positive = 1e-3
    adapted: str = "kernels"

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        for value, known in (
            (self.name, OPTIMIZERS),
            (self.decay, DECAYS),
            (self.trust_ratio, TRUST_RATIOS),
            (self.adapted, DECAYS),
        ):
            if value not in known:
                raise InputError(f"unknown optim setting {value!r}; {suggest(value, known)}")

    def rate(self, steps: int) -> Callable[[Array], Array]:
        """The base learning rate as a function of the optimizer's step count."""
        return learning_rate(
            self.schedule,
            self.learning_rate,
            steps,
            self.warmup_steps,
            period=self.period_steps,
            drops=self.drops,
            drop_factor=self.drop_factor,
        )

    def build(
        self, steps: int, layers: Sequence[Sequence[str]] = ()
    ) -> optax.GradientTransformation:
        """The transformation for a run of ``steps``; ``layers`` as ``WideResNet.layers``."""
        rate = self.rate(steps)
        decay = optax.add_decayed_weights(self.weight_decay, mask=partial(_mask, self.decay))
        momentum = optax.trace(self.momentum, self.nesterov)
        layer = (
            optax.identity() if self.layer_decay == 1 else scale_layers(self.layer_decay, layers)
        )
        if self.classifier_rate != 1:
            layer = optax.chain(layer, scale_classifier(self.classifier_rate))
        descend = optax.scale_by_learning_rate(rate)
        if self.name == "adamw":
            chained = (optax.scale_by_adam(), decay, layer, descend)
        elif self.rate_inside_momentum:
            chained = (*self._direction(decay, rate), layer, descend, momentum)
        else:
            chained = (*self._direction(decay, rate), momentum, layer, descend)
        clip = clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        return optax.chain(clip, *chained)

    def _direction(
        self, decay: optax.GradientTransformation, rate: Callable[[Array], Array]
    ) -> tuple[optax.GradientTransformation, ...]:
        """What happens to the gradient before momentum and rate."""
        if self.name == "sgd":
            return (decay,)
        adapted = partial(_mask, self.adapted)
        if self.trust_ratio == "joint":
            ratio = optax.scale_by_trust_ratio(trust_coefficient=self.trust_coefficient)
            return (decay, optax.masked(ratio, adapted))
        return (
            scale_by_separate_norms(
                self.trust_coefficient,
                self.weight_decay,
                partial(_mask, self.decay),
                adapted,
                rate if self.trust_ratio == "clipped" else None,
            ),
        )


def steps_taken(state: PyTree) -> Array:
    """The number of steps an optimizer built by :meth:`Optim.build` has taken; sets its rate."""
    return next(part for part in state if isinstance(part, optax.ScaleByScheduleState)).count


def scale_by_separate_norms(
    coefficient: float,
    weight_decay: float,
    decayed: Callable[[PyTree], PyTree],
    adapted: Callable[[PyTree], PyTree],
    rate: Callable[[Array], Array] | None = None,
) -> optax.GradientTransformation:
    """Weight decay and LARS's ratio as LARC has them: r (g + d w) for each array w.

    r = coefficient |w| / (|g| + d |w| + 1e-8), d = ``weight_decay`` where w decays, else 0. Where
    w or g is zero throughout, g stays as it is, so a parameter that the loss does not reach rests.
    NVIDIA Apex, https://github.com/NVIDIA/apex, ``LARC``.

    Args:
        coefficient: positive.
        weight_decay: d.
        decayed: from parameters to a tree of booleans, or to one for all.
        adapted: likewise; elsewhere r is 1.
        rate: the learning rate by steps taken. If given, r is divided by it and then at most 1, so
            that rate times r is the smaller of the two.
    """

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        now = None if rate is None else rate(state.count)

        def scale(gradient: Array, weight: Array, decays: bool, adapts: bool) -> Array:
            amount = weight_decay if decays else 0.0
            total = gradient + amount * weight
            if not adapts:
                return total
            size, slope = jnp.linalg.norm(weight.ravel()), jnp.linalg.norm(gradient.ravel())
            ratio = coefficient * size / (slope + amount * size + 1e-8)
            if now is not None:
                ratio = jnp.minimum(ratio / jnp.maximum(now, jnp.finfo(now.dtype).tiny), 1.0)
            moves = (size > 0) & (slope > 0)
            return jnp.where(moves, ratio.astype(gradient.dtype) * total, gradient)

        masks = (_spread(mask(params), params) for mask in (decayed, adapted))
        scaled = jax.tree.map(scale, updates, params, *masks)
        return scaled, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(
        lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update
    )


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Scale gradients by min(1, limit / (norm + 1e-6)), as PyTorch's ``clip_grad_norm_``."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda leaf: leaf * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_layers(decay: float, layers: Sequence[Sequence[str]]) -> optax.GradientTransformation:
    """Multiply the updates of ``layers[i]`` by decay^(last - i); unlisted modules count as last.

    A module is named by its path, such as "stem" or "group1/block2".
    """
    last = len(layers) - 1
    depth = {name: index for index, names in enumerate(layers) for name in names}

    def scale(names: list[str]) -> float:
        paths = ("/".join(names[: end + 1]) for end in range(len(names)))
        return decay ** (last - next((depth[path] for path in paths if path in depth), last))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        return jax.tree.map(jnp.multiply, updates, _map_names(scale, updates)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_classifier(factor: float) -> optax.GradientTransformation:
    """Multiply the updates of the module "classifier"."""
    return optax.masked(
        optax.scale(factor), partial(_map_names, lambda names: names[0] == "classifier")
    )


def _mask(which: str, params: PyTree) -> PyTree:
    """Which parameters are meant by one of :data:`DECAYS`, as optax's masks."""
    if which == "kernels":
        return _map_names(lambda names: names[-1] == "kernel", params)
    return _all_but_norms(params) if which == "not_batch_norm" else True


def _spread(mask: PyTree, params: PyTree) -> PyTree:
    """A mask with a boolean for each parameter."""
    return jax.tree.map(lambda _: mask, params) if isinstance(mask, bool) else mask


def _all_but_norms(params: PyTree) -> PyTree:
    """False for the parameters of modules with a scale, which only normalisation has."""
    if not isinstance(params, Mapping):
        return True
    if "scale" in params:
        return dict.fromkeys(params, False)
    return {name: _all_but_norms(value) for name, value in params.items()}


def _map_names(function: Callable[[list[str]], Any], tree: PyTree) -> PyTree:
    def visit(path: Any, leaf: Array) -> Any:
        del leaf
        return function([str(getattr(part, "key", part)) for part in path])

    return jax.tree_util.tree_map_with_path(visit, tree)


@section("ema")
class Ema:
    """``config.ema``: the teacher as an exponential moving average of the student.

    Attributes:
        decay: teacher <- decay * teacher + (1 - decay) * student, after every optimizer step.
        schedule: the decay stays "constant" or rises to 1 along a "cosine" (:meth:`decay_at`).
        statistics: BatchNorm statistics of the teacher: "copied" from the student, "averaged" like
            the parameters (EMAN; Cai et al., CVPR 2021), or its "own", kept while it labels in
            train mode (MoCo, SimMatch on ImageNet). :mod:`jaxmatch.models.batch_norm` names the
            modes that these make.
    """

    decay: Share = 0.999
    statistics: str = "copied"
    schedule: str = "constant"

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        for field, known in (("statistics", EMA_STATISTICS), ("schedule", EMA_SCHEDULES)):
            value = getattr(self, field)
            if value not in known:
                raise InputError(f"unknown ema.{field} {value!r}; {suggest(value, known)}")

    def decay_at(self, step: Array | int, steps: int) -> Array | float:
        """The decay of the step that follows ``step`` = k others in a run of ``steps`` = K.

        "cosine" is 1 - (1 - decay) (cos(pi k / K) + 1) / 2; Grill et al., "Bootstrap Your Own
        Latent", NeurIPS 2020, appendix, https://arxiv.org/abs/2006.07733.
        """
        if self.schedule == "constant":
            return self.decay
        return 1 - (1 - self.decay) * cosine(jnp.asarray(step), steps)

    def update(
        self,
        teacher: Mapping[str, PyTree],
        params: PyTree,
        stats: PyTree,
        own: PyTree = None,
        *,
        step: Array | int,
        steps: int,
    ) -> PyTree:
        """The teacher's variables after a step that led to ``params`` and ``stats``.

        ``own`` are the statistics that the teacher's forward of this step led to; ``step`` others
        were taken before it in a run of ``steps``.
        """
        if self.statistics == "own" and own is None:
            raise InputError(
                'ema.statistics="own" needs a method whose teacher labels in train mode; use '
                '"copied" or "averaged".'
            )
        choices = {"copied": lambda: stats, "own": lambda: own}
        decay = self.decay_at(step, steps)

        def average(old: PyTree, new: PyTree) -> PyTree:
            return jax.tree.map(
                lambda a, b: (decay * a + (1 - decay) * b).astype(a.dtype), old, new
            )

        return {
            "params": average(teacher["params"], params),
            "batch_stats": choices.get(
                self.statistics, lambda: average(teacher["batch_stats"], stats)
            )(),
        }
