"""SimCLR: a view finds the other view of its image among all views of the batch.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
https://arxiv.org/abs/2002.05709.
"""

import jax
import jax.numpy as jnp

from jaxmatch.functional.diagnostics import feature_spread
from jaxmatch.functional.losses import nt_xent
from jaxmatch.functional.similarity import NEVER, inner_products, normalize
from jaxmatch.models.heads import Projection
from jaxmatch.settings import Count, Positive, section
from jaxmatch.types import Algorithm, Array, Heads, Inputs, Update


@section("algorithm")
class SimCLR(Algorithm):
    """The loss is the mean NT-Xent of both directions over the global batch; no label is read.

    Attributes:
        temperature: tau of the similarities.
        projection: width of the embeddings.
        norm: the head has a BatchNorm after each layer, as published for ImageNet.
    """

    temperature: Positive = 0.5
    projection: Count = 128
    norm: bool = False

    labeled = ()
    unlabeled = ("contrast", "contrast")
    evaluated = "student"

    @property
    def heads(self) -> Heads:
        """The projection head g, which is not evaluated."""
        return {"projection": Projection(features=self.projection, norm=self.norm)}

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """See :func:`contrastive_loss`."""
        return contrastive_loss(given, self.temperature)


def contrastive_loss(given: Inputs, temperature: float) -> tuple[Array, Update]:
    """mean -log exp(z_i . z_i' / tau) / sum_{k != i} exp(z_i . z_k / tau), z = g(f) / |g(f)|.

    k runs over both views of all images; the mean is over both views as anchors i (eq. 1). g is the
    head "projection", tau the temperature.
    """
    outputs, stats = given.student(given.unlabeled.views)
    first, second = (normalize(output.heads["projection"]) for output in outputs)  # [b d]
    loss = nt_xent(first, second, temperature).mean()
    return loss, Update(
        stats,
        {
            "loss/contrastive": loss,
            "contrastive/accuracy": found(first, second).mean(),
            **feature_spread(first),
        },
    )


def found(first: Array, second: Array) -> Array:
    """Whether a first view is nearer to its second view than to any view of another image.

    Args:
        first, second: [b d] unit rows, one a view.

    Returns:
        [b] bool; False if all embeddings are equal.
    """
    first, second = jax.lax.stop_gradient((first, second))
    itself = jnp.eye(len(first), dtype=bool)

    def nearest_other(views: Array) -> Array:
        return jnp.where(itself, NEVER, inner_products(first, views)).max(1)

    positive = jnp.sum(first * second, -1)
    # Strictly: collapsed embeddings are all equally near.
    return positive > jnp.maximum(nearest_other(first), nearest_other(second))
