"""ReMixMatch: aligned predictions on weak views label strong views, then MixUp mixes all.

Berthelot et al., "ReMixMatch: Semi-Supervised Learning with Distribution Alignment and Augmentation
Anchoring", ICLR 2020, https://arxiv.org/abs/1911.09785.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmatch.algorithms.mixmatch import BatchNorms, mixed_logits
from jaxmatch.functional.alignment import Marginal, align, make_marginal, sharpen, update_marginal
from jaxmatch.functional.diagnostics import unlabeled_accuracy
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.functional.mixup import Mixing, draw_mixing, mix
from jaxmatch.functional.rotation import QUARTER_TURNS, rotate
from jaxmatch.models.heads import Linear
from jaxmatch.optim.schedules import linear_ramp
from jaxmatch.random import stream
from jaxmatch.settings import Count, Momentum, NonNegative, Positive, Ramp, section
from jaxmatch.types import Algorithm, Array, Batch, Heads, Inputs, PyTree, Spec, Update

# Added to both averages of the alignment, as in the authors' code.
EPSILON = 1e-6


class Memory(NamedTuple):
    """The averages that align the guesses."""

    predicted: Marginal  # moving average of the guesses before alignment
    labeled: Array  # [C] class frequencies of the labeled examples; constant


class Draws(NamedTuple):
    """The randomness of one step."""

    mixing: Mixing  # of the pool of labeled images, weak and all strong views
    turns: Array  # [b] int32, quarter turns of the first strong view


class Forward(NamedTuple):
    """Outputs of the passes with gradient."""

    mixed: list[Array]  # logits [b C] of the mixed labeled images, weak view and strong views
    strong: Array  # [b C] logits of the first strong view, unmixed
    rotation: Array | None  # [b 4] logits of its quarter turns
    stats: PyTree


@section("algorithm")
class ReMixMatch(Algorithm):
    """The loss is supervised + ramp * unlabeled + rotation_weight * rotation.

    unlabeled = unlabeled_weight * unsupervised + unmixed_weight * unmixed.

    Attributes:
        strong_views: number K of strong views of an unlabeled image; the authors have 8, TorchSSL
            and USB have 2.
        labeled_view: role of the labeled images: "weak", or "strong" as in the authors' code.
        alpha: parameter of the Beta distribution of MixUp's weights.
        temperature: T; aligned guesses are sharpened to q^(1/T).
        momentum: the share of the old average guess that stays at each step.
        unlabeled_weight: weight of the unsupervised loss after the ramp, lambda_U.
        unmixed_weight: weight after the ramp of the first strong view before mixing, lambda_U1.
        rotation_weight: weight of predicting the quarter turns of that view, lambda_r; 0 leaves
            the head out.
        ramp: share of all steps in which the first two weights rise linearly from 0.
        batch_norm: BatchNorm batches of the mixed images, "joint" or "interleave"
            (:func:`jaxmatch.algorithms.mixmatch.mixed_logits`).
    """

    strong_views: Count = 2
    labeled_view: Literal["weak", "strong"] = "weak"
    alpha: Positive = 0.75
    temperature: Positive = 0.5
    momentum: Momentum = 0.999
    unlabeled_weight: NonNegative = 1.5
    unmixed_weight: NonNegative = 0.5
    rotation_weight: NonNegative = 0.5
    ramp: Ramp = 1 / 64
    batch_norm: BatchNorms = "joint"

    @property
    def labeled(self) -> tuple[str, ...]:
        """One view."""
        return (self.labeled_view,)

    @property
    def unlabeled(self) -> tuple[str, ...]:
        """The weak view that gives the target, and K strong views that learn it."""
        return ("weak", *["strong"] * self.strong_views)

    @property
    def heads(self) -> Heads:
        """The head that predicts quarter turns."""
        return {"rotation": Linear(features=QUARTER_TURNS)} if self.rotation_weight else {}

    def init(self, key: Array, spec: Spec) -> Memory:
        """No guesses yet, and the frequencies of the labels; uniform if no label is known."""
        labels = spec.labels or range(spec.classes)
        frequencies = np.bincount(labels, minlength=spec.classes) / len(labels)
        return Memory(make_marginal(spec.classes), jnp.asarray(frequencies, float))

    def draw(self, key: Array, batch: Batch) -> Draws:
        """Weights, partners, and uniform quarter turns."""
        sizes = [len(view) for view in batch.views]
        mixing = draw_mixing(stream(key, "mixing"), sizes, self.alpha)
        shape = (sizes[1],)
        turns = jax.random.randint(stream(key, "rotation"), shape, 0, QUARTER_TURNS, jnp.int32)
        return Draws(mixing, turns)

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """The paper's algorithm 1, with one target q for the weak and strong views of an image.

        mean H(y', p(x')) + ramp (lambda_U mean H(q', p(u')) + lambda_U1 mean H(q, p(s_1)))
        + lambda_r mean H(r, p_rotation(turned by r s_1)). x', y', u', q' are mixed and u' runs over
        the weak and all strong views; q is p(w(u)), aligned by averages of this step too.
        """
        log_guess = self.guess(given)
        predicted = update_marginal(given.memory.predicted, jnp.exp(log_guess), self.momentum)
        prior = given.memory.labeled
        log_aligned = align(log_guess, predicted.average + EPSILON, prior + EPSILON)
        target = jnp.exp(sharpen(log_aligned, self.temperature))  # [b C]

        label = jax.nn.one_hot(given.labeled.label, given.spec.classes, dtype=target.dtype)
        mixed_label, *mixed_targets = mix(
            [label, *[target] * len(self.unlabeled)], given.draws.mixing
        )
        on = self.forward(given)
        on_x, *on_u = on.mixed
        supervised = cross_entropy(on_x, mixed_label).mean()
        errors = [cross_entropy(*pair) for pair in zip(on_u, mixed_targets, strict=True)]
        unsupervised = jnp.mean(jnp.stack(errors))
        unmixed = cross_entropy(on.strong, target).mean()
        ramp = linear_ramp(given.step, given.spec.steps, self.ramp)
        unlabeled = self.unlabeled_weight * unsupervised + self.unmixed_weight * unmixed
        loss = supervised + ramp * unlabeled
        metrics = {
            "loss/supervised": supervised,
            "loss/unsupervised": unsupervised,
            "loss/unmixed": unmixed,
            "optim/ramp": ramp,
            **unlabeled_accuracy(log_guess, given.unlabeled.label, on.strong),
        }
        if on.rotation is not None:
            rotation = cross_entropy(on.rotation, given.draws.turns).mean()
            metrics["loss/rotation"] = rotation
            loss += self.rotation_weight * rotation
        return loss, Update(on.stats, metrics, Memory(predicted, prior))

    def guess(self, given: Inputs) -> Array:
        """log p(w(u)) [b C], in a pass of its own without gradient that updates no statistics."""
        (on_weak,) = given.constant_student(given.unlabeled.views[:1])
        return jax.nn.log_softmax(on_weak.logits)

    def forward(self, given: Inputs) -> Forward:
        """All passes with gradient; those of unmixed images update no running statistics."""
        mixed = mix(given.batch.views, given.draws.mixing)
        on_mixed, stats = mixed_logits(given, mixed, self.batch_norm)
        first = given.unlabeled.views[1]
        (on_first,), _ = given.student((first,))
        if not self.rotation_weight:
            return Forward(on_mixed, on_first.logits, None, stats)
        (on_turned,), _ = given.student((rotate(first, given.draws.turns),))
        return Forward(on_mixed, on_first.logits, on_turned.heads["rotation"], stats)
