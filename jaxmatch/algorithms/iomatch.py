"""IOMatch: likely strangers label no strong view as a class, but learn a further class, "none".

Li et al., "IOMatch: Simplifying Open-Set Semi-Supervised Learning with Joint Inliers and Outliers
Utilization", ICCV 2023, https://arxiv.org/abs/2308.13168.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.algorithms._consistency import weighted_cross_entropy
from jaxmatch.functional.alignment import align_by_history, make_history
from jaxmatch.functional.diagnostics import pseudo_label_metrics, stranger_metrics
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.functional.memory import Queue
from jaxmatch.models.heads import OpenSet
from jaxmatch.settings import Count, NonNegative, Share, Threshold, Whole, section
from jaxmatch.types import Algorithm, Array, Heads, Inputs, Outputs, Spec, Target, Update

JUDGED_STRANGE = 0.5  # S from which an image counts as a stranger, eq. 7


@section("algorithm")
class IOMatch(Algorithm):
    """The loss is supervised + binary_weight * binary + unlabeled_weight * unsupervised + open.

    open = open_weight * "open-set loss", from ``open_start`` on.

    Attributes:
        threshold: tau_p; a weak view labels its strong view if its largest probability is at least
            this after alignment, and if it is no likely stranger.
        open_threshold: tau_q; the same for the open-set target, which strangers have, too.
        unlabeled_weight: weight of the unsupervised loss, lambda_ui.
        binary_weight: weight of the multi-binary classifier's loss, lambda_mb.
        open_weight: weight of the open-set classifier's loss, lambda_op.
        open_start: share of all steps without the open-set loss. The authors' code leaves it out in
            the first of 256 epochs.
        alignment_length: number of last batches whose average prediction alignment divides by; 0
            turns alignment off.
        projection: width of the embedding z of both open-set heads.
    """

    threshold: Threshold = 0.95
    open_threshold: Threshold = 0.5
    unlabeled_weight: NonNegative = 1.0
    binary_weight: NonNegative = 1.0
    open_weight: NonNegative = 1.0
    open_start: Share = 1 / 256
    alignment_length: Whole = 128
    projection: Count = 128

    labeled = ("weak",)
    unlabeled = ("weak", "strong")

    @property
    def heads(self) -> Heads:
        """The multi-binary and the open-set classifier."""
        return {"open_set": OpenSet(projection=self.projection)}

    def init(self, key: Array, spec: Spec) -> Queue | tuple[()]:
        """An empty history of average predictions."""
        return make_history(self.alignment_length, spec.classes) if self.alignment_length else ()

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """L_s + lambda_mb L_mb + lambda_ui L_ui + lambda_op L_op (eq. 8).

        With p~ the aligned p(w(u)), o_k(w(u)) how likely u is of class k by its binary classifier,
        q~ = (p~_k o_k, S) and S = sum_k p~_k (1 - o_k):
        L_mb = mean -log o_y - min_{k != y} log(1 - o_k) over labeled images (eq. 2),
        L_ui = mean 1[max p~ >= tau_p] 1[S < 0.5] H(p~, p(s(u))) (eq. 7), and
        L_op = mean 1[max q~ >= tau_q] H(q~, q(s(u))) (eq. 6).
        """
        (x,), (weak, strong) = given.labeled.views, given.unlabeled.views
        (on_x, on_weak, on_strong), stats = given.student((x, Target(weak), strong))
        on_weak = jax.lax.stop_gradient(on_weak)
        label = given.labeled.label
        supervised = cross_entropy(on_x.logits, label).mean()
        binary = hard_negative_loss(read(on_x).binary, label)

        log_weak, history = jax.nn.log_softmax(on_weak.logits), given.memory
        if self.alignment_length:
            log_weak, history = align_by_history(history, log_weak)
        closed = jnp.exp(log_weak)  # p~ [b K]
        target = open_target(closed, read(on_weak).binary)  # q~ [b K+1]
        stranger = target[:, -1] >= JUDGED_STRANGE
        confident = (closed.max(-1) >= self.threshold) & ~stranger
        unsupervised = weighted_cross_entropy(on_strong.logits, closed, confident)
        clear = target.max(-1) >= self.open_threshold
        opened = weighted_cross_entropy(read(on_strong).open, target, clear)
        begun = given.step >= self.open_start * given.spec.steps
        opened = jnp.where(begun, opened, 0.0)

        loss = (
            supervised
            + self.binary_weight * binary
            + self.unlabeled_weight * unsupervised
            + self.open_weight * opened
        )
        return loss, Update(
            stats,
            {
                "loss/supervised": supervised,
                "loss/binary": binary,
                "loss/unsupervised": unsupervised,
                "loss/open": opened,
                **stranger_metrics(stranger, given.unlabeled.label),
                **pseudo_label_metrics(
                    log_weak, confident, given.unlabeled.label, on_strong.logits
                ),
            },
            history,
        )

    def strangeness(self, outputs: Outputs) -> Array:
        """log q_{K+1} - log(1 - q_{K+1}) of the open-set classifier (section 3.4)."""
        logits = read(outputs).open
        return logits[:, -1] - jax.nn.logsumexp(logits[:, :-1], -1)


class OpenSetLogits(NamedTuple):
    """The outputs of :class:`~jaxmatch.models.heads.OpenSet`."""

    binary: Array  # [b K] of "of class k" minus "not of class k"
    open: Array  # [b K+1] of the classes and of none


def read(outputs: Outputs) -> OpenSetLogits:
    """The logits of both open-set classifiers."""
    classes = outputs.logits.shape[-1]
    negative, positive, opened = jnp.split(
        outputs.heads["open_set"], (classes, 2 * classes), axis=-1
    )
    return OpenSetLogits(positive - negative, opened)


def hard_negative_loss(binary: Array, label: Array) -> Array:
    """mean -log o_y - min_{k != y} log(1 - o_k) [], with o = sigmoid(``binary`` [b K])."""
    own = jax.nn.one_hot(label, binary.shape[-1], dtype=bool)
    positive = jnp.where(own, -jax.nn.log_sigmoid(binary), 0.0).sum(-1)
    negative = jnp.where(own, 0.0, -jax.nn.log_sigmoid(-binary)).max(-1)
    return (positive + negative).mean()


def open_target(closed: Array, binary: Array) -> Array:
    """q~ [b K+1] from p~ [b K] and the multi-binary logits [b K] (eq. 5)."""
    inlier = jax.nn.sigmoid(binary)
    outside = (closed * jax.nn.sigmoid(-binary)).sum(-1, keepdims=True)
    return jnp.concatenate([closed * inlier, outside], -1)
