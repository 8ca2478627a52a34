"""Supervised baseline: cross-entropy on the labeled images alone, weakly augmented."""

from jaxmatch.functional.losses import cross_entropy
from jaxmatch.settings import section
from jaxmatch.types import (
    NO_HEADS,
    Array,
    Batch,
    Network,
    PyTree,
    Spec,
    TrainState,
    Update,
    no_draws,
    no_memory,
)


@section("algorithm")
class Supervised:
    """No options: the optimizer, schedule and EMA of the other methods, without their data."""

    labeled = ("weak",)
    unlabeled = ()
    heads = NO_HEADS
    evaluated = "teacher"
    init = no_memory
    draw = no_draws

    def loss(
        self,
        network: Network,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        draws: PyTree,
        spec: Spec,
    ) -> tuple[Array, Update]:
        """Mean cross-entropy H(y, p(w(x))) over the labeled batch."""
        del draws, spec
        (x,) = batch.labeled.views
        (on_x,), stats = network(state.student(params), (x,))
        supervised = cross_entropy(on_x.logits, batch.labeled.label).mean()
        return supervised, Update(stats, {"loss/supervised": supervised})
