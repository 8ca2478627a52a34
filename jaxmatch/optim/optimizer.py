"""The optimizers as optax chains: SGD, AdamW and LARS."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxmatch.errors import InputError
from jaxmatch.optim.schedules import Schedule, learning_rate
from jaxmatch.optim.trained import FACTORS, Train
from jaxmatch.settings import (
    Count,
    Momentum,
    NonNegative,
    Part,
    Positive,
    Range,
    Share,
    Whole,
    section,
)
from jaxmatch.types import CLASSIFIER, ORDINARY, Array, PyTree

# Kernels of convolutions and dense layers; these without the classifier's; all of two or more
# dimensions; all but the parameters of norms; all.
Parameters = Literal["kernels", "hidden_kernels", "not_vectors", "not_batch_norm", "all"]
CLASSIFIERS = (CLASSIFIER, ORDINARY)


@section("optim")
class Optim:
    """The settings ``config.optim``.

    Attributes:
        name: "sgd" has Nesterov momentum, and weight decay as L2 inside the momentum. "adamw" has
            decoupled decay. "lars" is sgd that first multiplies the gradient g + weight_decay w of
            each array w by a trust ratio: You, Gitman & Ginsburg, "Large Batch Training of
            Convolutional Networks", 2017, https://arxiv.org/abs/1708.03888.
        learning_rate: the rate after the warm-up.
        schedule: how the learning rate changes: "constant"; "cosine_7_16", FixMatch's cosine, which
            ends above 0; "cosine", which ends at 0; "steps", lower at each of ``drops``.
        warmup_steps: number of steps of linear warm-up.
        period_steps: after the warm-up the rate changes once in this number of steps (the authors
            of SimMatch and CoMatch change it once an epoch on ImageNet).
        drops: shares of the run after which the "steps" schedule lowers the rate.
        drop_factor: the "steps" schedule multiplies the rate by this at each drop.
        momentum: the momentum of sgd and lars.
        nesterov: whether the momentum of sgd and lars is Nesterov's.
        weight_decay: the factor of the weight decay.
        train: which parameters train: "all"; "head", the classifier and the method's heads;
            "norms", these and scale and bias of every norm; "lora", these and the factors of LoRA
            (``model.lora_rank``). The others keep their first values, and cost no memory of the
            optimizer. Under "head" the rest of the network computes as in evaluations, also in
            training: BatchNorm keeps its running statistics, and no drop path drops.
        decay: which parameters decay: "kernels" of convolutions and dense layers, with LoRA's
            factors; "hidden_kernels", these without the classifier's (SimCLR's fine-tuning);
            "not_vectors", kernels and the tokens and the position embedding of a Vision
            Transformer (USB under SimMatch, CoMatch and ReMixMatch); "not_batch_norm", all but
            those of norms; or "all".
        classifier_rate: the learning rate of the classifier is multiplied by this (fine-tuning).
        layer_decay: the learning rate of a layer is multiplied by this once for each layer
            between it and the classifier; 1 turns it off.
        clip_norm: largest global norm of the gradient, before decay; 0 turns it off.
        rate_inside_momentum: the momentum of sgd and lars sums up steps, each with the rate of its
            time (SimCLR); otherwise the present rate multiplies the whole sum (BYOL, SwAV,
            PyTorch).
        trust_ratio: the trust ratio of lars, with eta = ``trust_coefficient`` and
            d = ``weight_decay``, or 0 where w does not decay. "joint" is eta |w| / |g + d w|
            (SimCLR, BYOL, WCL). "separate" is eta |w| / (|g| + d |w| + 1e-8) (SwAV's LARC).
            "clipped" is "separate" divided by the rate, at most 1 (LARC with clipping; solo-learn,
            eta 0.02).
        trust_coefficient: eta of the trust ratio of lars.
        adapted: which parameters have a trust ratio, named as for ``decay``; that of others is 1.
    """

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    learning_rate: NonNegative = 0.03
    schedule: Schedule = "cosine_7_16"
    warmup_steps: Whole = 0
    period_steps: Count = 1
    drops: tuple[Annotated[float, Range(above=0, below=1)], ...] = ()
    drop_factor: Share = 0.1
    momentum: Momentum = 0.9
    nesterov: bool = True
    weight_decay: NonNegative = 5e-4
    train: Train = "all"
    decay: Parameters = "kernels"
    classifier_rate: NonNegative = 1.0
    layer_decay: Part = 1.0
    clip_norm: NonNegative = 0.0
    rate_inside_momentum: bool = False
    trust_ratio: Literal["joint", "separate", "clipped"] = "joint"
    trust_coefficient: Positive = 1e-3
    adapted: Parameters = "kernels"

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
        """The gradient transformation for a run.

        Args:
            steps: of the whole run.
            layers: names of the modules of each layer, as in ``Model.layers``.

        Raises:
            InputError: if there is a layer decay, but the network does not list its layers.
        """
        if self.layer_decay != 1 and not layers:
            raise InputError(
                f"optim.layer_decay={self.layer_decay:g} needs a network that lists its layers; "
                "set optim.layer_decay=1."
            )
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
        """The transformations before momentum and rate."""
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
    """The number of steps that an optimizer of :meth:`Optim.build` has taken, as it counts them."""
    return next(part for part in state if isinstance(part, optax.ScaleByScheduleState)).count


def scale_by_separate_norms(
    coefficient: float,
    weight_decay: float,
    decayed: Callable[[PyTree], PyTree],
    adapted: Callable[[PyTree], PyTree],
    rate: Callable[[Array], Array] | None = None,
) -> optax.GradientTransformation:
    """Weight decay and LARS's trust ratio in LARC's form: r (g + d w) for each array w.

    r = coefficient |w| / (|g| + d |w| + 1e-8), d = ``weight_decay`` where w decays, else 0. If all
    of w or all of g is zero, the result is g, so a parameter that the loss does not reach stays.
    NVIDIA Apex, https://github.com/NVIDIA/apex, ``LARC``.

    Args:
        coefficient: positive.
        weight_decay: d.
        decayed: maps parameters to a tree of booleans, or to one boolean for all.
        adapted: likewise; r is 1 for the other parameters.
        rate: the learning rate as a function of the steps taken. If given, r is divided by it and
            clipped to 1, so rate times r is the smaller of the rate and the unclipped r.
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

    def update(updates: PyTree, _: PyTree = None) -> PyTree:
        factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda leaf: leaf * factor, updates)

    return optax.stateless(update)


def scale_layers(decay: float, layers: Sequence[Sequence[str]]) -> optax.GradientTransformation:
    """Multiply the updates of ``layers[i]`` by decay^(last - i); unlisted modules count as last.

    A module's name is its path, such as "stem" or "group1/block2".
    """
    last = len(layers) - 1
    depth = {name: index for index, names in enumerate(layers) for name in names}

    def scale(names: list[str]) -> float:
        paths = ("/".join(names[: end + 1]) for end in range(len(names)))
        return decay ** (last - next((depth[path] for path in paths if path in depth), last))

    def update(updates: PyTree, _: PyTree = None) -> PyTree:
        return jax.tree.map(jnp.multiply, updates, _map_names(scale, updates))

    return optax.stateless(update)


def scale_classifier(factor: float) -> optax.GradientTransformation:
    """Multiply the updates of the classifier; with ABC those of the method's own one, too."""
    return optax.masked(
        optax.scale(factor), partial(_map_names, lambda names: names[0] in CLASSIFIERS)
    )


def _mask(which: Parameters, params: PyTree) -> PyTree:
    """The mask of optax that chooses ``which`` parameters."""
    if which in ("kernels", "hidden_kernels"):
        left_out = CLASSIFIERS if which == "hidden_kernels" else ()
        return _map_names(
            lambda names: names[-1] in ("kernel", *FACTORS) and names[0] not in left_out, params
        )
    if which == "not_vectors":
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    return _all_but_norms(params) if which == "not_batch_norm" else True


def _spread(mask: PyTree, params: PyTree) -> PyTree:
    """A mask with a boolean for each parameter."""
    return jax.tree.map(lambda _: mask, params) if isinstance(mask, bool) else mask


def _all_but_norms(params: PyTree) -> PyTree:
    """False for the parameters of modules that have a scale, which only norms have."""
    if not isinstance(params, Mapping):
        return True
    if "scale" in params:
        return dict.fromkeys(params, False)
    return {name: _all_but_norms(value) for name, value in params.items()}


def _map_names(function: Callable[[list[str]], Any], tree: PyTree) -> PyTree:
    """``function`` of the names on the path to each leaf."""

    def visit(path: Any, _: Array) -> Any:
        return function([str(getattr(part, "key", part)) for part in path])

    return jax.tree_util.tree_map_with_path(visit, tree)
