"""How USB's VAT maps onto the library's."""

from collections.abc import Sequence

import jax.numpy as jnp

from experiments.parity.entries import Argument, Call, Override, Quantities, Replay
from experiments.parity.rows import Case, UnknownCaseError
from jaxmatch.algorithms.vat import VAT
from jaxmatch.functional import adversarial
from jaxmatch.functional.adversarial import unit
from jaxmatch.functional.losses import entropy, kl_divergence
from jaxmatch.types import Array

# A constant of USB's function, which its description of a run does not hold.
XI = 1e-6
# USB adds it to the norm of an example's gradient of the batch's mean; ours is that of the sum.
NORM_EPSILON = 1e-16


class Probe(Argument):
    """The logits that the search for a direction sees, which are inside a derivative there."""

    def find(self, calls: Sequence[Call]) -> Array:
        """The same pass once more, with what the search was given."""
        logits_of, images, _, noise, xi = calls[0].arguments
        return logits_of(images + xi * unit(noise))


def _vat(case: Case) -> VAT:
    given = case.meta["hyperparameters"]
    if given.get("vat_embed"):
        raise UnknownCaseError("adversarial changes of embeddings are not in the library")
    return VAT(
        epsilon=given["vat_eps"],
        unlabeled_weight=given["ulb_loss_ratio"],
        entropy_weight=given["ent_loss_ratio"],
        ramp=given["unsup_warm_up"],
        vat_xi=given.get("vat_xi", XI),
    )


def _quantities(case: Case) -> Quantities:
    del case
    return {
        "loss_entmin": "loss/entropy",
        "fwd/2/logits": Probe("virtual_adversarial_direction", 0, 0),
    }


def _draws(case: Case, step: int) -> Array:
    noise = case[f"draw/{step}/vat_d"].transpose(0, 2, 3, 1)
    return jnp.asarray(noise, case.meta["dtype"])


def mean_divergence(q_logit: Array, p_logit: Array) -> Array:
    """USB's divergence of VAT: KL(q || p), averaged over the batch."""
    return kl_divergence(q_logit, p_logit).mean()


def mean_entropy(logits: Array) -> Array:
    """USB's entropy of VAT, averaged over the batch."""
    return entropy(logits).mean()


def unit_with_epsilon() -> Override:
    """USB's norms are never 0, which shows where a gradient is small."""

    def of(x: Array) -> Array:
        flat = x.reshape(len(x), -1)
        norm = jnp.sqrt(jnp.square(flat).sum(-1, keepdims=True))
        return (flat / (norm + len(x) * NORM_EPSILON)).reshape(x.shape)

    return Override(adversarial, "unit", of)


VAT_REPLAY = Replay(
    build=_vat,
    views=lambda case: ("x_ulb_w",),
    quantities=_quantities,
    draws=_draws,
    overrides=lambda case: [unit_with_epsilon()],
)
