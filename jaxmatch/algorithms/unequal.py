"""Options of any method for classes of unequal frequency: ``config.unequal``."""

from typing import Literal

from jaxmatch.algorithms._wrapping import innermost
from jaxmatch.algorithms.adamatch import AdaMatch
from jaxmatch.algorithms.aligned import Aligned
from jaxmatch.algorithms.balanced_classifier import ABC
from jaxmatch.algorithms.comatch import CoMatch
from jaxmatch.algorithms.debiaspl import DebiasPL
from jaxmatch.algorithms.iomatch import IOMatch
from jaxmatch.algorithms.logit_adjustment import LogitAdjusted
from jaxmatch.algorithms.mixmatch import MixMatch
from jaxmatch.algorithms.remixmatch import ReMixMatch
from jaxmatch.algorithms.s4l_rotation import S4LRotation
from jaxmatch.algorithms.simmatch import SimMatch
from jaxmatch.algorithms.simmatch_v2 import SimMatchV2
from jaxmatch.algorithms.softmatch import SoftMatch
from jaxmatch.errors import InputError
from jaxmatch.settings import Momentum, NonNegative, Share, section
from jaxmatch.types import Algorithm

__all__ = ["Unequal", "innermost", "with_options"]

# They align their predictions by themselves; of these AdaMatch and ReMixMatch to the labels.
ALIGNING = (AdaMatch, CoMatch, ReMixMatch, SimMatch, SimMatchV2, SoftMatch)
# The network does not see their labeled images as they are.
CHANGING = (MixMatch, ReMixMatch, S4LRotation)


@section("unequal")
class Unequal:
    """What a method does about classes of unequal frequency.

    Attributes:
        sampling: order of the labeled images: "uniform", each as often as the others; "balanced",
            each class as often as the others.
        logit_adjustment: tau; tau times the log frequency of the labels is added to logits on
            labeled images in training; 1 is the balanced softmax, 0 is off.
        adjust_unlabeled: logit_adjustment on strong views, too.
        align: align predictions on weak views to a "uniform" prior or to that of the "labels";
            "none" leaves them. SimMatch, SimMatchV2 and CoMatch have algorithm.alignment_prior,
            SoftMatch has algorithm.prior.
        align_momentum: the share of the old average prediction that stays at each step.
        abc: weight of the losses of ABC's auxiliary balanced classifier, which is then the one that
            is evaluated; the paper has 1, and 0 is off.
        abc_threshold: confidence from which an unlabeled image counts in them.
        debias: tau of DebiasPL, for pseudo-labels and margins; the authors have 0.4, and 0 is off.
        debias_momentum: the share of DebiasPL's average prediction that stays at each step.
    """

    sampling: Literal["uniform", "balanced"] = "uniform"
    logit_adjustment: NonNegative = 0.0
    adjust_unlabeled: bool = False
    align: Literal["none", "uniform", "labels"] = "none"
    align_momentum: Momentum = 0.999
    abc: NonNegative = 0.0
    abc_threshold: Share = 0.95
    debias: NonNegative = 0.0
    debias_momentum: Momentum = 0.999

    def __post_init__(self) -> None:
        """Refuse options that correct the same thing twice."""
        on_batch = {"logit_adjustment": self.logit_adjustment, "abc": self.abc}
        for name, value in on_batch.items():
            if self.sampling == "balanced" and value:
                raise InputError(
                    f"unequal.sampling=balanced draws classes equally, and "
                    f"unequal.{name}={value:g} corrects for unequal ones; give only one of them."
                )
        if self.adjust_unlabeled and not self.logit_adjustment:
            raise InputError(
                "unequal.adjust_unlabeled needs unequal.logit_adjustment; set it to 1."
            )
        if self.debias and (self.align != "none" or self.adjust_unlabeled):
            other = "adjust_unlabeled=True" if self.adjust_unlabeled else f"align={self.align}"
            raise InputError(
                f"unequal.debias={self.debias:g} and unequal.{other} both shift the same logits; "
                "give only one of them."
            )


def with_options(algorithm: Algorithm, unequal: Unequal, name: str) -> Algorithm:
    """The method with the options that are on.

    Pseudo-labels are corrected first, then the method's losses; ABC is outermost.

    Args:
        algorithm: the method.
        unequal: the options.
        name: of the method, for messages.

    Raises:
        InputError: if an option is not defined for the method.
    """
    _check(algorithm, unequal, name)
    if unequal.align != "none":
        algorithm = Aligned(method=algorithm, prior=unequal.align, momentum=unequal.align_momentum)
    if unequal.debias:
        algorithm = DebiasPL(method=algorithm, tau=unequal.debias, momentum=unequal.debias_momentum)
    if unequal.logit_adjustment:
        algorithm = LogitAdjusted(
            method=algorithm,
            tau=unequal.logit_adjustment,
            on_unlabeled=unequal.adjust_unlabeled,
        )
    if unequal.abc:
        algorithm = ABC(
            method=algorithm,
            weight=unequal.abc,
            threshold=unequal.abc_threshold,
        )
    return algorithm


def _check(algorithm: Algorithm, unequal: Unequal, name: str) -> None:
    """Refuse options that are not defined for a method."""
    of_labels = {
        "sampling": unequal.sampling != "uniform",
        "logit_adjustment": unequal.logit_adjustment > 0,
        "abc": unequal.abc > 0,
    }
    of_pseudo_labels = {
        "adjust_unlabeled": unequal.adjust_unlabeled,
        "align": unequal.align != "none",
        "abc": unequal.abc > 0,
        "debias": unequal.debias > 0,
    }
    for key, on in (of_labels | of_pseudo_labels).items():
        if not on:
            continue
        if not algorithm.labeled:
            raise InputError(f"{name} reads no labels; leave unequal.{key} at its default.")
        if key in of_pseudo_labels and not {"weak", "strong"} <= {*algorithm.unlabeled}:
            raise InputError(
                f"unequal.{key} needs a method whose weak views label strong ones, such as "
                f"fixmatch, which {name} does not do; leave it at its default."
            )
        if key != "sampling" and isinstance(algorithm, CHANGING):
            raise InputError(
                f"{name} changes its labeled images before the network sees them, so unequal.{key} "
                "is not defined for it; unequal.sampling=balanced is."
            )
        if key == "align" and isinstance(algorithm, IOMatch) and algorithm.alignment_length:
            raise InputError(
                f"{name} aligns its predictions to equal classes by itself; set "
                "algorithm.alignment_length=0 beside unequal.align."
            )
        if key == "align" and isinstance(algorithm, ALIGNING):
            raise InputError(
                f"{name} aligns its predictions by itself; set algorithm.alignment_prior "
                "(SoftMatch: algorithm.prior) where it has one, and leave unequal.align at its "
                "default."
            )
