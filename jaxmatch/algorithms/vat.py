"""VAT: predictions stay the same along the direction in input space that changes them most.

Miyato et al., "Virtual Adversarial Training: A Regularization Method for Supervised and
Semi-Supervised Learning", TPAMI 2018, https://arxiv.org/abs/1704.03976; with entropy minimisation
of Grandvalet & Bengio, "Semi-Supervised Learning by Entropy Minimization", NeurIPS 2004.
"""

import jax
import jax.numpy as jnp

from jaxmatch.functional.adversarial import virtual_adversarial_direction
from jaxmatch.functional.diagnostics import unlabeled_accuracy
from jaxmatch.functional.losses import cross_entropy, entropy, kl_divergence
from jaxmatch.optim.schedules import linear_ramp
from jaxmatch.settings import NonNegative, Ramp, section
from jaxmatch.types import Algorithm, Array, Batch, Inputs, Update


@section("algorithm")
class VAT(Algorithm):
    """supervised + unlabeled_weight * ramp * unsupervised + entropy_weight * entropy.

    Attributes:
        epsilon: norm of the adversarial change of an image, in units of the network's input.
        unlabeled_weight: weight of the divergence after the ramp.
        entropy_weight: weight beta of the entropy of predictions, without ramp. 0.06 is VAT+EntMin,
            which the tables of FixMatch and its successors call VAT; 0 is VAT alone.
        ramp: share of all steps in which ``unlabeled_weight`` rises linearly from 0.
        vat_xi: step of the finite difference in
            :func:`jaxmatch.functional.adversarial.virtual_adversarial_direction`. 0 takes the exact
            derivative; other code has 1e-6.
    """

    epsilon: NonNegative = 6.0
    unlabeled_weight: NonNegative = 0.3
    entropy_weight: NonNegative = 0.06
    ramp: Ramp = 0.4
    vat_xi: NonNegative = 0.0

    labeled = ("weak",)
    unlabeled = ("weak",)

    def draw(self, key: Array, batch: Batch) -> Array:
        """The start of the search for each direction: normal noise [b h w c]."""
        u = batch.views[1]
        return jax.random.normal(key, u.shape, jnp.result_type(u, jnp.float32))

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(x)) + weight ramp mean KL(p(u) || p(u + r)) + beta mean H(p(u)).

        r is epsilon times the virtual adversarial direction (paper, section 3). Neither r nor the
        target p(u) takes gradient. Each pass is a BatchNorm batch of its own. Only the labeled one
        updates the running statistics, as in the code of FixMatch, TorchSSL and USB.
        """
        (x,), (u,) = given.labeled.views, given.unlabeled.views

        def logits_of(images: Array) -> Array:
            (outputs,) = given.constant_student((images,))
            return outputs.logits

        (on_x,), stats = given.student((x,))
        (on_u,), _ = given.student((u,))
        target = jax.lax.stop_gradient(on_u.logits)  # [b C]
        direction = virtual_adversarial_direction(logits_of, u, target, given.draws, self.vat_xi)
        (on_moved,), _ = given.student((u + self.epsilon * direction,))

        supervised = cross_entropy(on_x.logits, given.labeled.label).mean()
        unsupervised = kl_divergence(target, on_moved.logits).mean()
        entropies = entropy(on_u.logits).mean()
        ramp = linear_ramp(given.step, given.spec.steps, self.ramp)
        loss = (
            supervised
            + self.unlabeled_weight * ramp * unsupervised
            + self.entropy_weight * entropies
        )
        return loss, Update(
            stats,
            {
                "loss/supervised": supervised,
                "loss/unsupervised": unsupervised,
                "loss/entropy": entropies,
                "optim/ramp": ramp,
                **unlabeled_accuracy(target, given.unlabeled.label),
            },
        )
