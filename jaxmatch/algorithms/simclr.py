"""SimCLR: two views of one image are told apart from all other images of the batch.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
https://arxiv.org/abs/2002.05709.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxmatch.losses import nt_xent
from jaxmatch.models.heads import Projection
from jaxmatch.monitor import feature_spread
from jaxmatch.similarity import NEVER, inner_products, normalize
from jaxmatch.types import (
    Array,
    Batch,
    Network,
    PyTree,
    Spec,
    TrainState,
    Update,
    no_draws,
    no_memory,
)


@dataclass(frozen=True, kw_only=True)
class SimCLR:
    """The loss is the mean NT-Xent of both directions over the global batch; no label is read.

    Attributes:
        temperature: tau of the similarities.
        projection: width of the embeddings.
    """

    temperature: float = 0.5
    projection: int = 128

    labeled = ()
    unlabeled = ("contrast", "contrast")
    evaluated = "student"
    init = no_memory
    draw = no_draws

    @property
    def heads(self) -> Mapping[str, Any]:
        """g, from pooled features to what is compared; dropped after training."""
        return {"projection": Projection(features=self.projection)}

    def loss(
        self,
        network: Network,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        draws: PyTree,
        spec: Spec,
    ) -> tuple[Array, Update]:
        """mean -log exp(z_i . z_i' / tau) / sum_{k != i} exp(z_i . z_k / tau), z = g(f) / |g(f)|.

        k runs over both views of all images, and the mean over both views as anchors i (eq. 1).
        """
        del draws, spec
        outputs, stats = network(state.student(params), batch.unlabeled.views)
        first, second = (normalize(output.heads["projection"]) for output in outputs)  # [b d]
        loss = nt_xent(first, second, self.temperature).mean()
        return loss, Update(
            stats,
            {
                "loss/contrastive": loss,
                **contrastive_metrics(first, second),
                **feature_spread(first),
            },
        )


def contrastive_metrics(first: Array, second: Array) -> dict[str, Array]:
    """How far the views of an image are found again, and whether the embeddings collapse.

    ``contrastive/accuracy`` is the share of first views that are nearer to their second view than
    to any view of another image; ``contrastive/spread`` the mean standard deviation of a
    coordinate times sqrt(d), 0 where all embeddings are equal and 1 where they fill the sphere.

    Args:
        first, second: [b d] unit rows, one a view.
    """
    first, second = jax.lax.stop_gradient((first, second))
    itself = jnp.eye(len(first), dtype=bool)

    def nearest_other(views: Array) -> Array:
        return jnp.where(itself, NEVER, inner_products(first, views)).max(1)

    positive = jnp.sum(first * second, -1)
    # Strictly nearer: collapsed embeddings are all equally near.
    found = positive > jnp.maximum(nearest_other(first), nearest_other(second))
    spread = jnp.std(first, axis=0).mean() * first.shape[1] ** 0.5
    return {"contrastive/accuracy": found.mean(), "contrastive/spread": spread}
