"""Thin wrappers around model, loss and optimizer that keep what a train step does not report."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax

from experiments.parity.entries import Argument, Call, Override, Result
from experiments.parity.rows import UnknownCaseError
from jaxmatch.functional.similarity import normalize
from jaxmatch.types import Array, Batch, Outputs, PyTree, Update

PASSES = "passes"


@dataclass(frozen=True)
class RecordingModel:
    """The model, counting the passes that update its statistics and keeping each pass' outputs.

    The count travels inside the statistics, so it is right whichever of them the loss drops.
    """

    model: Any
    passes: list[Outputs]

    @property
    def bn_groups(self) -> int:
        """The model's."""
        return self.model.bn_groups

    @property
    def random(self) -> bool:
        """The model's."""
        return self.model.random

    def draw(self, key: Array, count: int) -> Array:
        """The model's."""
        return self.model.draw(key, count)

    def apply(self, variables: PyTree, images: Array, **options: Any) -> tuple[Any, PyTree]:
        """Linen's ``apply``."""
        stats = dict(variables["batch_stats"])
        passes = stats.pop(PASSES)
        outputs, updated = self.model.apply(
            {"params": variables["params"], "batch_stats": stats}, images, **options
        )
        self.passes.append(outputs)
        if "batch_stats" not in updated:
            return outputs, updated
        return outputs, {"batch_stats": {**updated["batch_stats"], PASSES: passes + 1}}


@dataclass(frozen=True)
class RecordingAlgorithm:
    """The algorithm under overrides, whose metrics also hold what the loss says inside.

    Those are the outputs of each pass and the wanted arguments and results.
    """

    algorithm: Any
    passes: list[Outputs]
    wanted: Mapping[str, Argument | Result]
    overrides: Sequence[Override] = ()
    draws: PyTree = ()

    def draw(self, key: Array, batch: Batch) -> PyTree:
        """The recorded randomness."""
        del key, batch
        return self.draws

    def __getattr__(self, name: str) -> Any:
        """All but the loss and its randomness is the algorithm's own."""
        return getattr(self.algorithm, name)

    def loss(self, *arguments: Any) -> tuple[Array, Update]:
        """The algorithm's own loss."""
        module = inspect.getmodule(type(self.algorithm).objective)
        self.passes.clear()
        with ExitStack() as stack:
            for override in self.overrides:
                stack.enter_context(mock.patch.object(*override))
            names = {wanted.function for wanted in self.wanted.values()}
            calls = {name: stack.enter_context(recorded_calls(module, name)) for name in names}
            loss, update = self.algorithm.loss(*arguments)
        seen = {}
        for k, outputs in enumerate(self.passes):
            seen[f"fwd/{k}/logits"] = outputs.logits
            if "projection" in outputs.heads:
                seen[f"fwd/{k}/embedding"] = normalize(outputs.heads["projection"])
        for quantity, wanted in self.wanted.items():
            try:
                seen[quantity] = wanted.find(calls[wanted.function])
            except IndexError:
                reason = f"the loss does not hand {wanted.function} its {quantity}"
                raise UnknownCaseError(reason) from None
        return loss, update._replace(metrics={**update.metrics, **seen})


@contextmanager
def recorded_calls(module: Any, name: str) -> Iterator[list[Call]]:
    """Let the module's function ``name`` keep its calls."""
    function, calls = getattr(module, name), []

    def recording(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        calls.append(Call(arguments, result))
        return result

    with mock.patch.object(module, name, recording):
        yield calls


class RecordedViews:
    """Stands for the augmentation: the examples already are the views."""

    def init(self) -> PyTree:
        """No state."""
        return ()

    def apply(self, policy: PyTree, key: Array, examples: Batch) -> tuple[Batch, PyTree]:
        """Pass the recorded views on."""
        del policy, key
        return examples, ()

    def update(self, policy: PyTree, record: PyTree, predict: Callable) -> PyTree:
        """Learn nothing."""
        del record, predict
        return policy


def keep_gradient(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, with the last gradient before its own state."""

    def init(params: PyTree) -> PyTree:
        state: Any = optimizer.init(params)
        return (params, *state)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        inner: Any
        change, inner = optimizer.update(updates, state[1:], params)
        return change, (updates, *inner)

    return optax.GradientTransformation(init, update)


def skip_unreached(
    optimizer: optax.GradientTransformation, unreached: PyTree
) -> optax.GradientTransformation:
    """The optimizer, but parameters that the loss does not reach keep value and moments.

    PyTorch's optimizers skip parameters without a gradient; here their gradient is 0, and the
    optimizer would decay them. ``unreached`` is 1 for the parameters that may be so.
    """
    structure = jax.tree.structure(unreached)

    def is_moments(node: PyTree) -> bool:
        return jax.tree.structure(node) == structure

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        still = jax.tree.map(lambda flag, g: (flag != 0) & jnp.all(g == 0), unreached, updates)

        def keep(old: PyTree, new: PyTree) -> PyTree:
            return jax.tree.map(jnp.where, still, old, new) if is_moments(old) else new

        change, new_state = optimizer.update(updates, state, params)
        change = jax.tree.map(lambda kept, leaf: jnp.where(kept, 0.0, leaf), still, change)
        return change, jax.tree.map(keep, state, new_state, is_leaf=is_moments)

    return optax.GradientTransformation(optimizer.init, update)
