"""Supervised baseline: cross-entropy on weak views of the labeled images."""

from jaxmatch.functional.losses import cross_entropy
from jaxmatch.settings import section
from jaxmatch.types import Algorithm, Array, Inputs, Update


@section("algorithm")
class Supervised(Algorithm):
    """The baseline of the other methods, without unlabeled images."""

    labeled = ("weak",)
    unlabeled = ()

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """Mean cross-entropy H(y, p(w(x))) over the labeled batch."""
        (x,) = given.labeled.views
        (on_x,), stats = given.student((x,))
        supervised = cross_entropy(on_x.logits, given.labeled.label).mean()
        return supervised, Update(stats, {"loss/supervised": supervised})
