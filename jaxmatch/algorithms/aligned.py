"""Distribution alignment of any method: its predictions on weak views follow a prior on average.

Berthelot et al., "ReMixMatch", ICLR 2020, section 3.1, https://arxiv.org/abs/1911.09785.
"""

from dataclasses import dataclass
from typing import Literal

import jax

from jaxmatch.algorithms._wrapping import Averaging, Memory, shifted, with_memory
from jaxmatch.functional.alignment import align_by_average
from jaxmatch.functional.unequal import class_frequencies, prior_shift
from jaxmatch.types import Array, Inputs, Update


@dataclass(frozen=True, kw_only=True)
class Aligned(Averaging):
    """A method whose predictions q on weak views become normalize(q prior / average).

    Attributes:
        prior: "uniform", or "labels": the class frequencies of the labeled images.
    """

    prior: Literal["uniform", "labels"] = "labels"

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """The method's loss with aligned predictions; this batch enters the average afterwards."""
        average, memory = given.memory
        shift = -prior_shift(average, 1.0)
        if self.prior == "labels":
            frequencies = class_frequencies(given.spec.labels, given.spec.classes)
            shift += prior_shift(frequencies, 1.0)
        inner, seen = shifted(with_memory(given, memory), self.unlabeled, {"weak": shift})
        loss, update = self.method.objective(inner)
        weak = seen.of("weak", self, "unequal.align")[0]
        log_weak = jax.nn.log_softmax(jax.lax.stop_gradient(weak.logits))
        _, average = align_by_average(average, log_weak, self.momentum)
        return loss, update._replace(memory=Memory(average, update.memory))
