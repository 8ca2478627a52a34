"""ABC: a second classifier on the same features learns from as many images of each class.

Lee, Shin & Kim, "ABC: Auxiliary Balanced Classifier for Class-imbalanced Semi-supervised Learning",
NeurIPS 2021, https://arxiv.org/abs/2110.10368.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.algorithms._wrapping import Kind, Wrapped, watched
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.functional.unequal import class_frequencies, kept_share
from jaxmatch.models.heads import SecondClassifier
from jaxmatch.random import stream
from jaxmatch.types import ORDINARY, Array, Batch, Heads, Inputs, Outputs, PyTree, Update


class Draws(NamedTuple):
    """Uniform numbers below which an image counts, and the draws of the method."""

    labeled: Array  # [B] in [0, 1)
    unlabeled: Array  # [b] in [0, 1)
    method: PyTree


@dataclass(frozen=True, kw_only=True)
class ABC(Wrapped):
    """The loss is that of the method + weight * (classification + consistency).

    The network's classifier is the balanced one, so that evaluations, predictions and exports have
    it. The method has the head "ordinary" in its place. Gradients of both reach the features.

    As in the authors' code the targets are soft; USB takes the argmax, and the first of several
    strong views where the authors sum over both.

    Attributes:
        weight: of the two balanced losses.
        threshold: tau; an unlabeled image counts if the balanced classifier's largest probability
            on its weak view is at least this.
    """

    weight: float = 1.0
    threshold: float = 0.95

    @property
    def heads(self) -> Heads:
        """Those of the method, and its classifier."""
        return {**self.method.heads, ORDINARY: SecondClassifier()}

    def draw(self, key: Array, batch: Batch) -> Draws:
        """Uniform numbers for the Bernoulli masks."""
        labeled, unlabeled = (0 if each is None else len(each.views[0]) for each in batch[:2])
        key_of_masks = stream(key, "masks")
        return Draws(
            jax.random.uniform(stream(key_of_masks, "labeled"), (labeled,)),
            jax.random.uniform(stream(key_of_masks, "unlabeled"), (unlabeled,)),
            self.method.draw(key, batch),
        )

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """L + w (mean M(x) H(y, p(w(x))) + mean M(u) 1[max q >= tau] H(q, p(s(u)))), q = p(w(u)).

        p is the balanced classifier. M(x) is Bernoulli(N_min / N_y). M(u) is that of the predicted
        class, Bernoulli(1 - t (1 - N_min / N_c)), where t grows from 0 to 1 over the run, so that
        all images count at first (section 3.3). The last mean is summed over strong views.
        """

        def ordinary(kind: Kind | None, outputs: Outputs) -> Outputs:
            return outputs._replace(logits=outputs.heads[ORDINARY])

        draws: Draws = given.draws
        inner, seen = watched(given._replace(draws=draws.method), self.unlabeled, ordinary)
        loss, update = self.method.objective(inner)
        labeled, weak, strong = (
            [outputs.logits for outputs in seen.of(kind, self, "unequal.abc")]
            for kind in ("labeled", "weak", "strong")
        )
        spec = given.spec
        kept = kept_share(class_frequencies(spec.labels, spec.classes))  # [C]
        counts = draws.labeled < kept[given.labeled.label]
        errors = cross_entropy(labeled[0], given.labeled.label)
        classification = jnp.where(counts, errors, 0.0).mean()

        target = jax.nn.softmax(jax.lax.stop_gradient(weak[0]))  # [b C]
        confident = target.max(-1) >= self.threshold
        # A quotient of int32 would be float32 under x64.
        kept_now = 1 - jnp.asarray(given.step, float) / spec.steps * (1 - kept)
        mask = confident & (draws.unlabeled < kept_now[target.argmax(-1)])
        views = [jnp.where(mask, cross_entropy(on, target), 0.0).mean() for on in strong]
        consistency = jnp.sum(jnp.stack(views))
        metrics = {
            **update.metrics,
            "loss/balanced_supervised": classification,
            "loss/balanced_unsupervised": consistency,
            "pseudo/balanced_coverage": mask.mean(),
        }
        loss += self.weight * (classification + consistency)
        return loss, update._replace(metrics=metrics)
