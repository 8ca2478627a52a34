"""The vocabulary of replaying a trajectory: what in a reference is what in the library."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from experiments.parity.rows import Case
from jaxmatch.types import Array, PyTree, TrainState

# The networks are tiny: XLA's optimization would take most of the time.
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}


class Call(NamedTuple):
    """One call of a function inside a loss."""

    arguments: tuple[Any, ...]
    result: Any


class Argument(NamedTuple):
    """What the loss hands to a function that its module imports.

    Of several calls the arguments are joined along the batch.
    """

    function: str
    call: int | slice  # 0 for the first call inside one loss
    position: int
    then: Callable[[Array], Array] = jnp.asarray  # applied before the comparison

    def find(self, calls: Sequence[Call]) -> Array:
        """The value; raises IndexError if there is none."""
        chosen = calls[self.call] if isinstance(self.call, slice) else [calls[self.call]]
        return self.then(jnp.concatenate([call.arguments[self.position] for call in chosen]))


class Result(NamedTuple):
    """A part of the tuple that such a function returns."""

    function: str
    call: int
    position: int
    then: Callable[[Array], Array] = jnp.asarray

    def find(self, calls: Sequence[Call]) -> Array:
        """The value; raises IndexError if there is none."""
        return self.then(calls[self.call].result[self.position])


class Override(NamedTuple):
    """A function or method of the library that a quirk of a reference replaces."""

    owner: Any  # its module or class
    name: str
    function: Callable

    def __str__(self) -> str:
        """Such as "memory.write"."""
        return f"{self.owner.__name__.rsplit('.')[-1]}.{self.name}"


Quantities = Mapping[str, str | Argument | Result]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How to replay one algorithm of the references.

    All take a case, and some more.

    Attributes:
        build: the library's algorithm.
        views: keys of the recorded unlabeled views, in the order of the algorithm's roles.
        quantities: where to find ``out/<step>/<name>`` other than the common ones: a metric of the
            step, or an argument or result of a function inside the loss.
        settings: what the case records of a step by ``out/<step>/<name>`` that is a setting.
        draws: the recorded randomness of a step's loss, as the algorithm's ``draw`` gives it.
        memory: the algorithm's memory before the first step; by default its own start.
        states: a memory by the names of ``state/<step>/<name>``.
        overrides: what of the library the reference's quirks replace; each line of the case names
            them.
        begin: what a reference does before the recorded steps. It takes the case, the comparison,
            the setup, the shapes and names of the network's tensors, and the state before the first
            step, and returns that state after it.
    """

    build: Callable[[Case], Any]
    views: Callable[[Case], tuple[str, ...]] = lambda case: ()
    quantities: Callable[[Case], Quantities] = lambda case: {}
    settings: Callable[[Case, int], Mapping[str, Any]] = lambda case, step: {}
    draws: Callable[[Case, int], PyTree] = lambda case, step: ()
    memory: Callable[[Case], PyTree] | None = None
    states: Callable[[Case, PyTree], Mapping[str, Array]] = lambda case, memory: {}
    overrides: Callable[[Case], Sequence[Override]] = lambda case: ()
    begin: Callable[..., TrainState] | None = None


COMMON_QUANTITIES: Quantities = {
    "sup_loss": "loss/supervised",
    "unsup_loss": "loss/unsupervised",
    "in_loss": "loss/instance",
    "contrast_loss": "loss/contrastive",
    "total_loss": "loss/total",
    "lr": "optim/learning_rate",
    "ramp": "optim/ramp",
    "util_ratio": "pseudo/coverage",
}


def first_later_epoch(meta: Mapping[str, Any], start: int = 0) -> int:
    """The first step of an epoch after epoch 0, where ``start`` is the first recorded step."""
    return start + sum(epoch == 0 for epoch in meta["epoch_of_step"])
