"""MoCo v2: a view finds the teacher's embedding of its other view among those of earlier images.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020,
https://arxiv.org/abs/1911.05722; Chen et al., "Improved Baselines with Momentum Contrastive
Learning", 2020, https://arxiv.org/abs/2003.04297.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmatch.errors import InputError
from jaxmatch.functional.alike import split_alike
from jaxmatch.functional.diagnostics import feature_spread
from jaxmatch.functional.losses import info_nce
from jaxmatch.functional.memory import Queue, filled, make_queue, push
from jaxmatch.functional.similarity import NEVER, inner_products, normalize
from jaxmatch.models.heads import Projection
from jaxmatch.settings import Count, Positive, section
from jaxmatch.types import Algorithm, Array, Batch, Inputs, PyTree, Spec, Update


@section("algorithm")
class MoCoV2(Algorithm):
    """The loss is InfoNCE from the student's queries to the teacher's keys; no label is read.

    The authors move the teacher before it makes the keys, by the weights that the step before
    ended with; here it moves at the end of that step, which is the same. A teacher that normalises
    by the statistics of the batch (``ema.statistics="own"``) marks its keys as those of this batch,
    which alone gives the positive away. The authors permute the teacher's images among devices that
    each normalise alone (MoCo, section 3.3): ``shuffle`` and ``model.bn_groups`` above 1. A teacher
    in eval mode needs neither (EMAN; Cai et al., CVPR 2021, https://arxiv.org/abs/2101.08482).

    Attributes:
        temperature: tau of the similarities.
        queue: length of the queue in keys, at least the batch.
        projection: width of the embeddings.
        shuffle: permute the teacher's images over the global batch, and put its embeddings back.
            Devices exchange these images; it changes nothing unless the teacher trains
            (``ema.statistics="own"``) in ``model.bn_groups`` above 1.
    """

    temperature: Positive = 0.2
    queue: Count = 65536
    projection: Count = 128
    shuffle: bool = False

    labeled = ()
    unlabeled = ("contrast", "contrast")
    evaluated = "student"

    @property
    def heads(self) -> Mapping[str, Any]:
        """g, from pooled features to what is compared; dropped after training."""
        return {"projection": Projection(features=self.projection)}

    def init(self, key: Array, spec: Spec) -> Queue:
        """An empty queue; the authors' starts with random unit vectors instead."""
        if spec.unlabeled_batch > self.queue:
            raise InputError(
                f"a batch of {spec.unlabeled_batch} keys does not fit into algorithm.queue="
                f"{self.queue}; make the queue longer or the batch smaller."
            )
        return make_queue(self.queue, embedding=self.projection)

    def draw(self, key: Array, batch: Batch) -> PyTree:
        """With ``shuffle``, which image is at each place of the teacher's batch: int32 [b]."""
        if not self.shuffle:
            return ()
        return jax.random.permutation(key, len(batch.views[1]))

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """See :meth:`contrast`."""
        loss, _, update = self.contrast(given, given.memory, given.draws)
        return loss, update

    def contrast(self, given: Inputs, queue: Queue, places: PyTree) -> tuple[Array, Array, Update]:
        """mean -log exp(q . k / tau) / (exp(q . k / tau) + sum_n exp(q . k_n / tau)).

        q is the student's embedding of one view, k the teacher's of the other (MoCo eq. 1), and
        k_n are the keys of earlier batches in ``queue``, read before those of this one are written.
        ``places`` is what :meth:`draw` gives.

        Returns:
            The loss, q [b d] unit rows, and what the step updates, with the new queue as memory.
        """
        first, second = given.unlabeled.views
        on_first, stats = given.student(first)
        if self.shuffle:
            # The gather alone would leave every device the whole batch to run the teacher on.
            second = split_alike(second, second[places])[1]
        on_second, teacher_stats = given.teacher(second)
        query = normalize(on_first.heads["projection"])  # [b d]
        key = jax.lax.stop_gradient(normalize(on_second.heads["projection"]))  # [b d]
        if self.shuffle:
            key = key[jnp.argsort(places)]
        past, valid = queue.rows["embedding"], filled(queue)
        loss = info_nce(query, key, past, self.temperature, valid).mean()
        update = Update(
            stats,
            {
                "loss/contrastive": loss,
                "contrastive/accuracy": found(query, key, past, valid).mean(),
                **feature_spread(query),
            },
            push(queue, {"embedding": key}),
            teacher_stats,
        )
        return loss, query, update


def found(query: Array, key: Array, queue: Array, valid: Array) -> Array:
    """Which queries are nearer to their own key than to any valid row of the queue.

    Args:
        query, key: [b d] unit rows.
        queue: [n d] unit rows.
        valid: [n] bool.

    Returns:
        [b] bool; where all embeddings are equal, false.
    """
    others = jnp.where(valid, inner_products(query, queue), NEVER)
    return jnp.sum(query * key, -1) > others.max(1)
