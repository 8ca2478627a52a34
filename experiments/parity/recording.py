"""Thin wrappers around model, loss and optimizer that keep what a train step does not report."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import optax

from experiments.parity.algorithms import Argument
from experiments.parity.rows import UnknownCaseError
from jaxmatch.models.wide_resnet import WideResNet
from jaxmatch.types import Array, Batch, PyTree, Update

PASSES = "passes"


@dataclass(frozen=True)
class RecordingModel:
    """The model, counting the passes that update its statistics and keeping each pass' logits.

    The count travels inside the statistics, so it is right whichever of them the loss drops.
    """

    model: WideResNet
    logits: list[Array]

    def apply(self, variables: PyTree, images: Array, **options: Any) -> tuple[Any, PyTree]:
        """Linen's ``apply``."""
        stats = dict(variables["batch_stats"])
        passes = stats.pop(PASSES)
        outputs, updated = self.model.apply(
            {"params": variables["params"], "batch_stats": stats}, images, **options
        )
        self.logits.append(outputs.logits)
        if "batch_stats" not in updated:
            return outputs, updated
        return outputs, {"batch_stats": {**updated["batch_stats"], PASSES: passes + 1}}


@dataclass(frozen=True)
class RecordingAlgorithm:
    """The algorithm, adding to its metrics the logits of each pass and the wanted arguments."""

    algorithm: Any
    logits: list[Array]
    wanted: Mapping[str, Argument]

    def __getattr__(self, name: str) -> Any:
        """All but the loss is the algorithm's own."""
        return getattr(self.algorithm, name)

    def loss(self, *arguments: Any) -> tuple[Array, Update]:
        """The algorithm's own loss."""
        module = inspect.getmodule(type(self.algorithm).loss)
        self.logits.clear()
        with ExitStack() as stack:
            spies = {
                name: stack.enter_context(
                    mock.patch.object(module, name, wraps=getattr(module, name))
                )
                for name in {argument.function for argument in self.wanted.values()}
            }
            loss, update = self.algorithm.loss(*arguments)
        seen = {f"fwd/{k}/logits": value for k, value in enumerate(self.logits)}
        for quantity, (function, call, position, then) in self.wanted.items():
            calls = spies[function].call_args_list
            if len(calls) <= call or len(calls[call].args) <= position:
                raise UnknownCaseError(f"the loss does not hand {function} its {quantity}")
            seen[quantity] = then(calls[call].args[position])
        return loss, update._replace(metrics={**update.metrics, **seen})


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
