"""Options of any method: an algorithm that changes what another one sees of the network.

An option knows a view by its place in the batch. So it sees the network's outputs on labeled, weak
and strong views wherever the method asks for them, and the method's file does not know of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.errors import InputError
from jaxmatch.types import (
    Algorithm,
    Array,
    Batch,
    Embed,
    Heads,
    Inputs,
    Outputs,
    PyTree,
    Spec,
    Target,
    TrainState,
)

Kind = str  # "labeled", "weak" or "strong"


@dataclass(frozen=True, kw_only=True)
class Wrapped(Algorithm):
    """A method with an option; by itself it is the method.

    Attributes:
        method: the method.
    """

    method: Algorithm

    @property
    def labeled(self) -> tuple[str, ...]:
        """Those of the method."""
        return self.method.labeled

    @property
    def unlabeled(self) -> tuple[str, ...]:
        """Those of the method."""
        return self.method.unlabeled

    @property
    def heads(self) -> Heads:
        """Those of the method."""
        return self.method.heads

    @property
    def evaluated(self) -> str:
        """That of the method."""
        return self.method.evaluated

    @property
    def frozen(self) -> tuple[str, ...]:
        """Those of the method."""
        return self.method.frozen

    @property
    def refresh_steps(self) -> int:
        """Those of the method."""
        return self.method.refresh_steps

    @property
    def start_step(self) -> int:
        """That of the method."""
        return self.method.start_step

    def init(self, key: Array, spec: Spec) -> PyTree:
        """The memory of the method."""
        return self.method.init(key, spec)

    def draw(self, key: Array, batch: Batch) -> PyTree:
        """The draws of the method."""
        return self.method.draw(key, batch)

    def strangeness(self, outputs: Outputs) -> Array | None:
        """That of the method."""
        return self.method.strangeness(outputs)

    def project(self, params: PyTree) -> PyTree:
        """As the method."""
        return self.method.project(params)

    def refresh(self, state: TrainState, embed: Embed) -> PyTree:
        """As the method."""
        return self.method.refresh(state, embed)


class Memory(NamedTuple):
    """The memory of an option that averages predictions, and that of the method."""

    average: Array  # [C] moving average of the predictions on weak views
    method: PyTree


@dataclass(frozen=True, kw_only=True)
class Averaging(Wrapped):
    """A method with an option that remembers the average prediction on weak views.

    Attributes:
        momentum: m, the share of the old average that stays at each step.
    """

    momentum: float = 0.999

    def init(self, key: Array, spec: Spec) -> Memory:
        """A uniform average."""
        average = jnp.full(spec.classes, 1 / spec.classes, float)
        return Memory(average, self.method.init(key, spec))

    def refresh(self, state: TrainState, embed: Embed) -> Memory:
        """As the method."""
        memory = self.method.refresh(state.replace(memory=state.memory.method), embed)
        return state.memory._replace(method=memory)


@dataclass(frozen=True)
class Seen:
    """The outputs of the network on the views of the batch, as the method asked for them."""

    outputs: dict[Kind, list[Outputs]] = field(default_factory=dict)

    def of(self, kind: Kind, method: Algorithm, option: str) -> list[Outputs]:
        """The outputs on views of a kind, at least one.

        Raises:
            InputError: if ``method`` passed no such view through the network.
        """
        if kind not in self.outputs:
            raise InputError(
                f"{option} needs the network's outputs on {kind} views, but "
                f"{type(innermost(method)).__name__} asks for none; set {option} to its default."
            )
        return self.outputs[kind]


def innermost(method: Algorithm) -> Algorithm:
    """The method without its options."""
    while isinstance(method, Wrapped):
        method = method.method
    return method


def watched(
    given: Inputs,
    roles: Sequence[str],
    change: Callable[[Kind | None, Outputs], Outputs],
) -> tuple[Inputs, Seen]:
    """Inputs whose network's outputs are changed, and where the unchanged ones will be.

    A view counts as labeled or strong only if the student that is differentiated sees it, and as
    weak whichever network does.

    Args:
        given: the inputs.
        roles: of the unlabeled views.
        change: from the kind of a view, None for images that are no view of the batch or belong
            to no kind, and the outputs on it, to outputs.
    """
    views, seen, network = _views(given.batch, roles), Seen(), given.network

    def call(
        variables: PyTree,
        images: PyTree,
        train: bool = True,
        key: Array | None = None,
        places: Array | None = None,
    ) -> tuple[PyTree, PyTree]:
        # A network may take neither.
        options = {} if key is None else {"key": key}
        options |= {} if places is None else {"places": places}
        outputs, stats = network(variables, images, train=train, **options)
        student = variables["params"] is given.params
        leaves = jax.tree.leaves(images, is_leaf=lambda leaf: isinstance(leaf, Target))
        found, tree = jax.tree.flatten(outputs, is_leaf=lambda leaf: isinstance(leaf, Outputs))
        new = []
        for leaf, output in zip(leaves, found, strict=True):
            view = leaf.view if isinstance(leaf, Target) else leaf
            kind = next((kind for one, kind in views if one is view), None)
            if kind is not None and (student or kind == "weak"):
                seen.outputs.setdefault(kind, []).append(output)
            else:
                kind = None
            new.append(change(kind, output))
        return jax.tree.unflatten(tree, new), stats

    return given._replace(network=call), seen


def shifted(
    given: Inputs, roles: Sequence[str], shifts: Mapping[Kind, Array]
) -> tuple[Inputs, Seen]:
    """:func:`watched` where a shift [C] is added to the logits on the views of some kinds."""

    def change(kind: Kind | None, outputs: Outputs) -> Outputs:
        if kind is None or kind not in shifts:
            return outputs
        shift = jax.lax.stop_gradient(shifts[kind]).astype(outputs.logits.dtype)
        return outputs._replace(logits=outputs.logits + shift)

    return watched(given, roles, change)


def with_memory(given: Inputs, memory: PyTree) -> Inputs:
    """The inputs of a method whose memory is ``memory``."""
    return given._replace(state=given.state.replace(memory=memory))


def _views(batch: Batch, roles: Sequence[str]) -> list[tuple[Array, Kind]]:
    """Each view that is labeled, weak or strong, with its kind."""
    views: list[tuple[Array, Kind]] = []
    if batch.labeled is not None:
        views += [(view, "labeled") for view in batch.labeled.views]
    if batch.unlabeled is not None:
        for role, view in zip(roles, batch.unlabeled.views, strict=True):
            if role == "weak" or role == "strong":
                views.append((view, role))
    return views
