"""Logit adjustment: in training, frequent classes get a head start that evaluations leave out.

Menon et al., "Long-tail learning via logit adjustment", ICLR 2021,
https://arxiv.org/abs/2007.07314; with tau = 1 the balanced softmax of Ren et al., NeurIPS 2020,
https://arxiv.org/abs/2007.10740.
"""

from dataclasses import dataclass

from jaxmatch.algorithms._wrapping import Kind, Wrapped, shifted
from jaxmatch.functional.unequal import class_frequencies, prior_shift
from jaxmatch.types import Array, Inputs, Update


@dataclass(frozen=True, kw_only=True)
class LogitAdjusted(Wrapped):
    """A method whose cross-entropies take the logits z + tau log pi.

    pi are the frequencies of the labels. Whatever else the method computes from the logits on these
    views sees the adjusted ones, too. Pseudo-labels and evaluations take z.

    Attributes:
        tau: strength; 1 is the balanced softmax.
        on_unlabeled: strong views are adjusted, too: their classes are as frequent as the labels.
    """

    tau: float = 1.0
    on_unlabeled: bool = False

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """The method's loss with H(y, softmax(z + tau log pi)) in place of H(y, softmax(z))."""
        frequencies = class_frequencies(given.spec.labels, given.spec.classes)
        shift = prior_shift(frequencies, self.tau)
        kinds: tuple[Kind, ...] = ("labeled", "strong") if self.on_unlabeled else ("labeled",)
        inner, seen = shifted(given, self.unlabeled, dict.fromkeys(kinds, shift))
        loss, update = self.method.objective(inner)
        for kind in kinds:
            seen.of(kind, self, "unequal.logit_adjustment")
        return loss, update
