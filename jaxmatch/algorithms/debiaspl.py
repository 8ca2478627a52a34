"""DebiasPL: pseudo-labels without the classes' average response, and margins that follow it.

Wang et al., "Debiased Learning from Naturally Imbalanced Pseudo-Labels", CVPR 2022,
https://arxiv.org/abs/2201.01490.
"""

from dataclasses import dataclass

import jax

from jaxmatch.algorithms._wrapping import Averaging, Memory, shifted, with_memory
from jaxmatch.functional.unequal import prior_shift
from jaxmatch.types import Array, Inputs, Update


@dataclass(frozen=True, kw_only=True)
class DebiasPL(Averaging):
    """Pseudo-labels come from z - tau log p-hat, and strong views learn them by z + tau log p-hat.

    The second is the adaptive marginal loss: the margin of class j is tau log(1 / p-hat_j). Both
    take p-hat, the average, from before the step; in the authors' code the margin takes the new
    one, which differs by the share 1 - momentum. USB's code averages p over classes too, so that
    its p-hat stays uniform and corrects nothing; here it is the average of each class, as in paper
    and authors' code.

    Attributes:
        tau: strength of both, lambda in the paper.
    """

    tau: float = 0.4

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """The method's loss; then p-hat becomes m p-hat + (1 - m) mean softmax(z(w(u)))."""
        average, memory = given.memory
        margin = prior_shift(average, self.tau)
        shifts = {"weak": -margin, "strong": margin}
        inner, seen = shifted(with_memory(given, memory), self.unlabeled, shifts)
        loss, update = self.method.objective(inner)
        seen.of("strong", self, "unequal.debias")
        weak = jax.lax.stop_gradient(seen.of("weak", self, "unequal.debias")[0].logits)
        found = jax.nn.softmax(weak).mean(0)
        average = (self.momentum * average + (1 - self.momentum) * found).astype(average.dtype)
        # In nats: log C if all classes are predicted equally.
        entropy = jax.scipy.special.entr(average).sum()
        metrics = {**update.metrics, "pseudo/average_entropy": entropy}
        return loss, update._replace(metrics=metrics, memory=Memory(average, update.memory))
