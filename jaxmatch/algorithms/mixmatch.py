"""MixMatch: sharpened predictions label the unlabeled images, then MixUp mixes all images.

Berthelot et al., "MixMatch: A Holistic Approach to Semi-Supervised Learning", NeurIPS 2019,
https://arxiv.org/abs/1905.02249.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jaxmatch.functional.alignment import sharpen
from jaxmatch.functional.diagnostics import unlabeled_accuracy
from jaxmatch.functional.losses import cross_entropy, squared_difference
from jaxmatch.functional.mixup import Mixing, draw_mixing, interleave, mix
from jaxmatch.optim.schedules import linear_ramp
from jaxmatch.settings import NonNegative, Positive, Ramp, section
from jaxmatch.types import Algorithm, Array, Batch, Inputs, PyTree, Update

BatchNorms = Literal["joint", "interleave"]


@section("algorithm")
class MixMatch(Algorithm):
    """The loss is supervised + unlabeled_weight * ramp * unsupervised.

    Attributes:
        alpha: parameter of the Beta distribution of MixUp's weights.
        temperature: T; guesses are sharpened to q^(1/T).
        unlabeled_weight: weight of the unsupervised loss after the ramp, lambda_u; the paper has 75
            on CIFAR-10, 150 on CIFAR-100, 250 on SVHN.
        ramp: share of all steps in which that weight rises linearly from 0.
        batch_norm: BatchNorm batches of the mixed images, "joint" or "interleave"
            (:func:`mixed_logits`).
    """

    alpha: Positive = 0.75
    temperature: Positive = 0.5
    unlabeled_weight: NonNegative = 75.0
    ramp: Ramp = 1 / 64
    batch_norm: BatchNorms = "joint"

    labeled = ("weak",)
    unlabeled = ("weak", "weak")

    def draw(self, key: Array, batch: Batch) -> Mixing:
        """Weights and partners in the pool of labeled images and both views of unlabeled ones."""
        return draw_mixing(key, [len(view) for view in batch.views], self.alpha)

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y', p(x')) + lambda_u ramp mean (p(u') - q')^2 over images, both views, classes.

        x', y', u', q' are mixed. q is the sharpened mean of p(u) over both views (eq. 2 to 7).
        """
        target = self.guess(given)  # [b C]
        label = jax.nn.one_hot(given.labeled.label, given.spec.classes, dtype=target.dtype)
        mixed_label, *mixed_targets = mix([label, target, target], given.draws)
        (on_x, *on_u), stats = self.forward(given)

        supervised = cross_entropy(on_x, mixed_label).mean()
        errors = [squared_difference(*pair) for pair in zip(on_u, mixed_targets, strict=True)]
        unsupervised = jnp.mean(jnp.stack(errors))
        ramp = linear_ramp(given.step, given.spec.steps, self.ramp)
        loss = supervised + self.unlabeled_weight * ramp * unsupervised
        return loss, Update(
            stats,
            {
                "loss/supervised": supervised,
                "loss/unsupervised": unsupervised,
                "optim/ramp": ramp,
                **unlabeled_accuracy(target, given.unlabeled.label),
            },
        )

    def guess(self, given: Inputs) -> Array:
        """q [b C], without gradient.

        Each view is normalised by its own batch statistics and updates no running ones.
        """
        first, second = (
            jax.nn.log_softmax(given.constant_student((view,))[0].logits)
            for view in given.unlabeled.views
        )
        # Sharpening needs the logarithm of the mean only up to a constant.
        return jnp.exp(sharpen(jnp.logaddexp(first, second), self.temperature))

    def forward(self, given: Inputs) -> tuple[list[Array], PyTree]:
        """Logits of the mixed labeled images and of both mixed views, and the new statistics."""
        return mixed_logits(given, mix(given.batch.views, given.draws), self.batch_norm)


def mixed_logits(
    given: Inputs, views: Sequence[Array], batch_norm: BatchNorms
) -> tuple[list[Array], PyTree]:
    """The student's logits [b C] of each mixed view, and the new BatchNorm statistics.

    Args:
        given: whose student is meant.
        views: mixed labeled images [b h w c], then unlabeled ones, each a multiple of b.
        batch_norm: "joint" is one pass over all images. "interleave" is passes of b images, each
            with a share of the labeled ones; only the first updates the running statistics, as in
            MixMatch's code (in ReMixMatch's only the last). Mixed and interleaved images are alike
            in all passes, so both choices have the same statistics up to noise.
    """
    if batch_norm == "joint":
        outputs, stats = given.student(tuple(views))
        return [output.logits for output in outputs], stats
    size = len(views[0])
    counts = [len(view) // size for view in views]
    # Each chunk takes every count-th row: contiguous rows would move between devices.
    chunks = interleave(
        [
            view.reshape(size, count, *view.shape[1:])[:, number]
            for view, count in zip(views, counts, strict=True)
            for number in range(count)
        ]
    )
    passes = [given.student((chunk,)) for chunk in chunks]
    logits = interleave([on_chunk.logits for (on_chunk,), _ in passes])
    ends = [sum(counts[: position + 1]) for position in range(len(counts))]
    joined = [
        jnp.stack(logits[end - count : end], axis=1).reshape(size * count, -1)
        for end, count in zip(ends, counts, strict=True)
    ]
    return joined, passes[0][1]
