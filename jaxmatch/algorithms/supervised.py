"""Supervised baseline: cross-entropy on the labeled images alone, weakly augmented."""

from jaxmatch.functional.losses import cross_entropy
from jaxmatch.settings import section
from jaxmatch.types import Algorithm, Array, Inputs, Update


@section("algorithm")
class Supervised(Algorithm):
    """No options: the optimizer, schedule and EMA of the other methods, without their data."""

    labeled = ("weak",)
    unlabeled = ()

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """Mean cross-entropy H(y, p(w(x))) over the labeled batch."""
        (x,) = given.labeled.views
        (on_x,), stats = given.student((x,))
        supervised = cross_entropy(on_x.logits, given.labeled.label).mean()
        return supervised, Update(stats, {"loss/supervised": supervised})
