"""S4L-Rotation: the network also predicts by how many quarters an image was turned.

Zhai et al., "S4L: Self-Supervised Semi-Supervised Learning", ICCV 2019,
https://arxiv.org/abs/1905.03670.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from jaxmatch.functional.diagnostics import unlabeled_accuracy
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.functional.rotation import QUARTER_TURNS, all_rotations
from jaxmatch.models.heads import Linear
from jaxmatch.settings import NonNegative, section
from jaxmatch.types import Algorithm, Array, Heads, Inputs, Outputs, Update


@section("algorithm")
class S4LRotation(Algorithm):
    """The loss is supervised + rotation_weight * rotation.

    The paper evaluates the student. Here the teacher is evaluated, since at CIFAR scale this method
    takes the optimizer of the others.

    Attributes:
        rotation_weight: weight of the rotation loss, w.
    """

    rotation_weight: NonNegative = 1.0

    labeled = ("weak",)
    unlabeled = ("weak",)

    @property
    def heads(self) -> Heads:
        """The head that predicts the number of quarter turns; it is not evaluated."""
        return {"rotation": Linear(features=QUARTER_TURNS)}

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(x_k)) + w / 2 (mean H(k, p_rotation(u_k)) + mean H(k, p_rotation(x_k))).

        x_k and u_k are the weak views turned by k = 0..3 quarters, all in one pass; each mean runs
        over four times the batch. As in the authors' code the rotation loss covers both kinds of
        images, and the supervised loss all four copies.
        """
        (x,), (u,) = given.labeled.views, given.unlabeled.views
        (on_x, on_u), stats = given.student((all_rotations(x), all_rotations(u)))

        label = given.labeled.label
        supervised = jnp.stack([cross_entropy(on.logits, label) for on in on_x]).mean()
        rotation = (rotation_loss(on_u) + rotation_loss(on_x)) / 2
        loss = supervised + self.rotation_weight * rotation
        return loss, Update(
            stats,
            {
                "loss/supervised": supervised,
                "loss/rotation": rotation,
                **unlabeled_accuracy(on_u[0].logits, given.unlabeled.label),
            },
        )


def rotation_loss(outputs: Sequence[Outputs]) -> Array:
    """Mean cross-entropy [] of predicting k from images turned by k = 0..3 quarters."""
    guesses = [output.heads["rotation"] for output in outputs]  # [b 4] each
    losses = [cross_entropy(guess, jnp.full(len(guess), k)) for k, guess in enumerate(guesses)]
    return jnp.stack(losses).mean()
