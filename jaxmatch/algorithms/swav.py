"""SwAV: a view predicts the prototypes that the other views of its image are assigned to.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS
2020, https://arxiv.org/abs/2006.09882.
"""

from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxmatch.errors import InputError
from jaxmatch.functional.diagnostics import feature_spread
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.functional.memory import make_queue, push
from jaxmatch.functional.similarity import inner_products, normalize
from jaxmatch.functional.sinkhorn import sinkhorn
from jaxmatch.models.heads import PrototypeProjection
from jaxmatch.settings import LARGEST, Count, Positive, Range, Share, Whole, section
from jaxmatch.types import Algorithm, Array, Heads, Inputs, PyTree, Spec, Update

LARGE = ("first", "second")  # names in the queue of the views that are assigned to prototypes


@section("algorithm")
class SwAV(Algorithm):
    """The loss is the cross-entropy of swapped predictions among two large and some small views.

    No label is read. Large and small views have a pass each, which are BatchNorm batches of their
    own. Assignments use all prototypes equally, so batch and queue together need at least as many
    embeddings as there are prototypes (published: 4,096 for 3,000). Before the queue takes part,
    the batch is assigned alone.

    Attributes:
        temperature: tau of the predictions.
        epsilon: regularisation of the assignments (:func:`jaxmatch.functional.sinkhorn.sinkhorn`).
        iterations: iterations of the assignments.
        prototypes: number of prototypes.
        projection: width of embeddings and prototypes.
        hidden: width of the hidden layer of the head.
        small_crops: number of small views, which predict but are not assigned.
        queue: number of earlier embeddings that take part in the assignments of each large view,
            at least a batch; 0 for none.
        queue_start: share of the run before the queue takes part; it must also be full.
        freeze: share of the run before the prototypes learn.
    """

    temperature: Positive = 0.1
    epsilon: Positive = 0.05
    iterations: Count = 3
    prototypes: Annotated[int, Range(least=2, most=LARGEST)] = 3000
    projection: Count = 128
    hidden: Count = 2048
    small_crops: Whole = 6
    queue: Whole = 0
    queue_start: Share = 0.0
    freeze: Share = 0.0

    labeled = ()
    evaluated = "student"

    @property
    def unlabeled(self) -> tuple[str, ...]:
        """Two large views, then the small ones."""
        return ("contrast", "contrast") + ("small",) * self.small_crops

    @property
    def heads(self) -> Heads:
        """The head with the unit embeddings and the prototypes C, which is not evaluated."""
        return {"projection": PrototypeProjection(self.hidden, self.projection, self.prototypes)}

    def init(self, key: Array, spec: Spec) -> PyTree:
        """An empty queue of embeddings for each large view; () without a queue.

        Raises:
            InputError: if batch and queue are too small for the prototypes, or the batch is longer
                than the queue.
        """
        batch = spec.unlabeled_batch
        if batch + self.queue < self.prototypes:
            raise InputError(
                f"a batch of {batch} with algorithm.queue={self.queue} cannot use "
                f"algorithm.prototypes={self.prototypes} equally; give at most "
                f"{batch + self.queue} prototypes, or a larger batch or queue."
            )
        if not self.queue:
            return ()
        if batch > self.queue:
            raise InputError(
                f"a batch of {batch} embeddings does not fit into algorithm.queue={self.queue}; "
                "make the queue longer or the batch smaller, or set algorithm.queue=0."
            )
        return make_queue(self.queue, **dict.fromkeys(LARGE, self.projection))

    def project(self, params: PyTree) -> PyTree:
        """Scale the prototypes to length 1."""
        head = params["projection"]
        unit = jax.tree.map(normalize, head["prototypes"])
        return {**params, "projection": {**head, "prototypes": unit}}

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(q_s, softmax(C z_t / tau)) over large views s and other views t (eqs. 1, 2, 6).

        z_t are the embeddings of view t, and q_s the assignment of view s by its scores C z_s.
        """
        images = given.unlabeled.views
        outputs, stats = given.student(images[:2])
        if self.small_crops:
            small, stats = given.student(images[2:], stats)
            outputs += small
        embeddings = [output.heads["projection"] for output in outputs]  # [b d] each

        prototypes = given.params["projection"]["prototypes"]["kernel"]  # [k d]
        frozen = given.step < self.freeze * given.spec.steps
        prototypes = jnp.where(frozen, jax.lax.stop_gradient(prototypes), prototypes)
        scores = [inner_products(each, prototypes) for each in embeddings]  # [b k]

        codes = [
            self.assign(name, score, prototypes, given)
            for name, score in zip(LARGE, scores[:2], strict=True)
        ]
        loss = swapped_prediction(scores, codes, self.temperature).mean()
        new = dict(zip(LARGE, embeddings[:2], strict=True))
        return loss, Update(
            stats,
            {"loss/swapped": loss, **feature_spread(embeddings[0])},
            push(given.memory, new) if self.queue else (),
        )

    def assign(self, view: str, scores: Array, prototypes: Array, given: Inputs) -> Array:
        """The assignments [b k] of a large view by its scores [b k]; no gradient (section 3.1).

        A full queue takes part from its start on: its embeddings of the same view are assigned
        together with the batch, scored by the present prototypes.
        """
        if not self.queue:
            return sinkhorn(scores, self.epsilon, self.iterations)
        past = inner_products(given.memory.rows[view], prototypes)  # [n k]
        due = given.step >= self.queue_start * given.spec.steps
        used = due & (given.memory.filled == self.queue)
        return sinkhorn(scores, self.epsilon, self.iterations, queue=past, valid=used)


def swapped_prediction(
    scores: Sequence[Array], codes: Sequence[Array], temperature: float
) -> Array:
    """SwAV's cost of predicting the assignments of the first views from each other view.

    H(codes_s, softmax(scores_t / temperature)), averaged over all s and t != s (eqs. 1, 2, and 6).

    Args:
        scores: inner products with the prototypes, [b k] a view.
        codes: assignments [b k] of the first views, rows summing to 1 (no gradient is stopped
            here).
        temperature: positive.

    Returns:
        [b] nats, at least float32.
    """
    costs = [
        cross_entropy(score / temperature, code)
        for assigned, code in enumerate(codes)
        for predicting, score in enumerate(scores)
        if predicting != assigned
    ]
    return jnp.stack(costs).mean(0)
