"""S4L-Rotation: beside the labels, the network learns by how much any image was rotated.

Zhai et al., "S4L: Self-Supervised Semi-Supervised Learning", ICCV 2019,
https://arxiv.org/abs/1905.03670.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxmatch.functional.diagnostics import unlabeled_accuracy
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.functional.rotation import QUARTER_TURNS, all_rotations
from jaxmatch.models.heads import Linear
from jaxmatch.settings import NonNegative, section
from jaxmatch.types import Algorithm, Array, Inputs, Update


@section("algorithm")
class S4LRotation(Algorithm):
    """The loss is supervised + rotation_weight * rotation.

    The paper evaluates its network itself. Here it is the teacher that is evaluated, as of the
    other methods at CIFAR scale, whose optimizer this method takes there.

    Attributes:
        rotation_weight: w.
    """

    rotation_weight: NonNegative = 1.0

    labeled = ("weak",)
    unlabeled = ("weak",)

    @property
    def heads(self) -> Mapping[str, Any]:
        """From pooled features to the number of quarter turns; dropped after training."""
        return {"rotation": Linear(features=QUARTER_TURNS)}

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(x_k)) + w / 2 (mean H(k, p_rotation(u_k)) + mean H(k, p_rotation(x_k))).

        x_k and u_k are the weak views turned by k = 0..3 quarters, all in one pass; each mean runs
        over four times the batch. The paper's loss with both kinds of images in the rotation term
        and all copies in the supervised one, as in the authors' code.
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


def rotation_loss(outputs: Any) -> Array:
    """Mean cross-entropy [] of finding k in the outputs of images turned by k = 0..3 quarters."""
    guesses = [output.heads["rotation"] for output in outputs]  # [b 4] each
    losses = [cross_entropy(guess, jnp.full(len(guess), k)) for k, guess in enumerate(guesses)]
    return jnp.stack(losses).mean()
