"""MoCo v2: a view finds the teacher's embedding of its other view among those of earlier images.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020,
https://arxiv.org/abs/1911.05722; Chen et al., "Improved Baselines with Momentum Contrastive
Learning", 2020, https://arxiv.org/abs/2003.04297.
"""

import jax
import jax.numpy as jnp

from jaxmatch.errors import InputError
from jaxmatch.functional.diagnostics import feature_spread
from jaxmatch.functional.losses import info_nce
from jaxmatch.functional.memory import Queue, filled, make_queue, push
from jaxmatch.functional.similarity import NEVER, inner_products, normalize
from jaxmatch.models.heads import Projection
from jaxmatch.settings import Count, Positive, section
from jaxmatch.types import Algorithm, Array, Batch, Heads, Inputs, PyTree, Spec, Update


@section("algorithm")
class MoCoV2(Algorithm):
    """The loss is InfoNCE from the student's queries to the teacher's keys; no label is read.

    The authors update the teacher at the start of a step; here it is updated at the end of the step
    before, which is the same. If the teacher normalises by batch statistics
    (``ema.statistics="own"``), these mark the keys of this batch, and the network can find the
    positive by them. So the authors permute the images of the teacher among devices that normalise
    separately (MoCo, section 3.3): ``shuffle`` with ``model.bn_groups`` above 1. A teacher in eval
    mode needs neither (EMAN; Cai et al., CVPR 2021, https://arxiv.org/abs/2101.08482).

    Attributes:
        temperature: tau of the similarities.
        queue: length of the queue in keys, at least the batch.
        projection: width of the embeddings.
        shuffle: permute the images of the teacher over the global batch, and its embeddings back.
            Devices exchange these images. It has an effect only with ``ema.statistics="own"`` and
            ``model.bn_groups`` above 1.
    """

    temperature: Positive = 0.2
    queue: Count = 65536
    projection: Count = 128
    shuffle: bool = False

    labeled = ()
    unlabeled = ("contrast", "contrast")
    evaluated = "student"

    @property
    def heads(self) -> Heads:
        """The projection head g, which is not evaluated."""
        return {"projection": Projection(features=self.projection)}

    def init(self, key: Array, spec: Spec) -> Queue:
        """An empty queue; the authors' starts with random unit vectors instead.

        Raises:
            InputError: if a batch does not fit into it.
        """
        if spec.unlabeled_batch > self.queue:
            raise InputError(
                f"a batch of {spec.unlabeled_batch} keys does not fit into algorithm.queue="
                f"{self.queue}; make the queue longer or the batch smaller."
            )
        return make_queue(self.queue, embedding=self.projection)

    def draw(self, key: Array, batch: Batch) -> PyTree:
        """With ``shuffle``, the image [b] int32 at each place of the teacher's batch."""
        return jax.random.permutation(key, len(batch.views[1])) if self.shuffle else ()

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
        on_second, teacher_stats = given.teacher(second, places=places if self.shuffle else None)
        query = normalize(on_first.heads["projection"])  # [b d]
        key = jax.lax.stop_gradient(normalize(on_second.heads["projection"]))  # [b d]
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
    """Whether a query is nearer to its own key than to any valid row of the queue.

    Args:
        query, key: [b d] unit rows.
        queue: [n d] unit rows.
        valid: [n] bool.

    Returns:
        [b] bool; False if all embeddings are equal.
    """
    others = jnp.where(valid, inner_products(query, queue), NEVER)
    return jnp.sum(query * key, -1) > others.max(1)
