"""UDA: the sharpened prediction of a weak view is the target of a strong view, if it is confident.

Xie et al., "Unsupervised Data Augmentation for Consistency Training", NeurIPS 2020,
https://arxiv.org/abs/1904.12848.
"""

import jax
import jax.numpy as jnp

from jaxmatch.algorithms._consistency import weak_strong
from jaxmatch.functional.diagnostics import pseudo_label_metrics
from jaxmatch.functional.losses import cross_entropy, kl_divergence
from jaxmatch.optim.schedules import Signal, training_signal
from jaxmatch.settings import NonNegative, Positive, Threshold, section
from jaxmatch.types import Algorithm, Array, Inputs, Update


@section("algorithm")
class UDA(Algorithm):
    """The loss is supervised + unlabeled_weight * unsupervised.

    Attributes:
        threshold: tau; a weak view is a target if its largest probability is at least this, before
            sharpening.
        temperature: T of the target softmax(z / T); 1 does not sharpen it.
        unlabeled_weight: weight of the unsupervised loss, lambda.
        signal: schedule of training signal annealing
            (:func:`jaxmatch.optim.schedules.training_signal`). The supervised loss leaves out the
            labeled examples whose true class is more probable than the signal.
    """

    threshold: Threshold = 0.8
    temperature: Positive = 0.4
    unlabeled_weight: NonNegative = 1.0
    signal: Signal = "none"

    labeled = ("weak",)
    unlabeled = ("weak", "strong")

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """L_x + lambda mean 1[max p(w(u)) >= tau] KL(q || p(s(u))), q = softmax(z(w(u)) / T).

        The mean runs over the whole batch. L_x is the mean of H(y, p(w(x))) over the labeled
        examples with p_y at most the training signal.
        """
        on = weak_strong(given)
        signal = training_signal(self.signal, given.step, given.spec.steps, given.spec.classes)
        supervised = annealed_cross_entropy(on.labeled, given.labeled.label, signal)
        confident = jax.nn.softmax(on.weak).max(-1) >= self.threshold  # [b]
        divergences = kl_divergence(on.weak / self.temperature, on.strong)
        unsupervised = jnp.where(confident, divergences, 0.0).mean()
        loss = supervised + self.unlabeled_weight * unsupervised
        return loss, Update(
            on.stats,
            {
                "loss/supervised": supervised,
                "loss/unsupervised": unsupervised,
                "optim/training_signal": signal,
                **pseudo_label_metrics(on.weak, confident, given.unlabeled.label, on.strong),
            },
        )


def annealed_cross_entropy(logits: Array, label: Array, signal: Array) -> Array:
    """Mean cross-entropy over the examples with p_y <= signal; 0 if there is none.

    Args:
        logits: [b C], at least float32.
        label: [b] integer classes.
        signal: [] largest probability of the true class with which an example counts.

    Returns:
        [] nats.
    """
    truth = jnp.take_along_axis(jax.nn.softmax(logits), label[:, None], axis=-1)[:, 0]
    kept = truth <= signal
    errors = jnp.where(kept, cross_entropy(logits, label), 0.0)
    return errors.sum() / jnp.maximum(1, kept.sum())
