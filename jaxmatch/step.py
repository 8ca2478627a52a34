"""The whole train step, pure: augment, differentiate, optimize, average, learn the augmentation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from jaxmatch.errors import InputError
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import steps_taken
from jaxmatch.optim.trained import Train, new_statistics, trained_part, with_part
from jaxmatch.random import stream
from jaxmatch.types import (
    Algorithm,
    Array,
    Augment,
    Batch,
    Network,
    Outputs,
    PyTree,
    Ratio,
    Spec,
    TrainState,
    Update,
)


@dataclass(frozen=True)
class ByIndex:
    """In the place of a frozen network: its logits on each unlabeled image, looked up.

    They are the same for all views of an image.
    """

    def __call__(self, table: Array, index: Array) -> Outputs:
        """The outputs for the images at ``index`` [b] of a ``table`` [u C] of logits."""
        logits = table.at[index].get(mode="promise_in_bounds")
        return Outputs(logits, jnp.zeros((len(index), 0), logits.dtype), {})


class Initializable(Protocol):
    """The part of :class:`jaxmatch.models.model.Model` that a first state takes."""

    def init(self, key: Array, /, *arguments: Any, **options: Any) -> PyTree:
        """Linen's ``init``: the first variables."""
        ...


FrozenNetwork = Network | ByIndex
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array | Ratio]]]


def init_state(
    key: Array,
    model: Initializable,
    images: Array,
    algorithm: Algorithm,
    augment: Augment,
    optimizer: optax.GradientTransformation,
    spec: Spec,
    train: Train = "all",
) -> TrainState:
    """The state before the first step; call it inside ``jax.jit``, so that it shares no buffers.

    ``images`` [1 h w c] give the shape and dtype of the network's input. ``train`` says which
    parameters train; the optimizer has no state for others.

    Raises:
        InputError: if the network has no parameters of the kind ``train``.
    """
    variables = model.init(stream(key, "model"), images, train=False)
    stats = variables.get("batch_stats", {})  # none in a network without BatchNorm
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=key,
        params=variables["params"],
        stats=stats,
        teacher={"params": variables["params"], "batch_stats": stats},
        optimizer=optimizer.init(trained_part(train, variables["params"], algorithm.heads)),
        memory=algorithm.init(stream(key, "memory"), spec),
        policy=augment.init(),
    )


def make_train_step(
    algorithm: Algorithm,
    network: Network,
    augment: Augment,
    optimizer: optax.GradientTransformation,
    rate: Callable[[Array], Array],
    ema: Ema,
    spec: Spec,
    frozen: Mapping[str, FrozenNetwork] = MappingProxyType({}),
    random: bool = False,
    train: Train = "all",
) -> Step:
    """The pure step (state, raw examples) -> (state, metrics).

    ``rate`` maps the step count of ``optimizer`` to its learning rate. ``frozen`` are the networks
    for the variables in ``examples.frozen``, or :class:`ByIndex` for a table there. ``random`` says
    that the network draws random numbers in train mode. ``train`` says which parameters of student
    and teacher change; it is that of :func:`init_state`.

    Raises:
        InputError: if a frozen network that ``algorithm`` learns from is not among them.
    """
    if missing := [role for role in algorithm.frozen if role not in frozen]:
        raise InputError(
            f"{type(algorithm).__name__} learns from the frozen network {missing[0]!r}, which is "
            "not loaded; name its run in config.frozen, or give it as frozen."
        )

    chosen = partial(trained_part, train, heads=algorithm.heads)
    settled = partial(new_statistics, train, heads=algorithm.heads)

    def step(state: TrainState, examples: Batch) -> tuple[TrainState, dict[str, Array | Ratio]]:
        key = jax.random.fold_in(state.key, state.step)
        batch, record = augment.apply(state.policy, stream(key, "augment"), examples)
        if frozen:
            batch = batch._replace(frozen=outputs_of_frozen(frozen, examples.frozen, batch))
        draws = algorithm.draw(stream(key, "loss"), batch)
        called = with_keys(network, stream(key, "network")) if random else network

        def objective(part: PyTree) -> tuple[Array, Update]:
            params = with_part(train, state.params, part)
            return algorithm.loss(called, params, state, batch, draws, spec)

        part = chosen(state.params)
        (loss, update), gradient = jax.value_and_grad(objective, has_aux=True)(part)
        change, optimizer_state = optimizer.update(gradient, state.optimizer, part)
        params = with_part(train, state.params, optax.apply_updates(part, change))
        params = algorithm.project(params)
        stats = settled(state.stats, update.stats)
        # Averages of equal values would differ by rounding, so the teacher keeps the rest, too.
        teacher = ema.update(
            {**state.teacher, "params": chosen(state.teacher["params"])},
            chosen(params),
            stats,
            update.teacher_stats,
            step=state.step,
            steps=spec.steps,
        )
        teacher = {
            "params": with_part(train, state.teacher["params"], teacher["params"]),
            "batch_stats": settled(state.teacher["batch_stats"], teacher["batch_stats"]),
        }

        def predict(views: Array) -> Array:
            return jax.nn.softmax(network(teacher, views, train=False)[0].logits)

        metrics = {
            "loss/total": loss,
            **update.metrics,
            "optim/gradient_norm": optax.tree.norm(gradient),
            "optim/learning_rate": rate(steps_taken(state.optimizer)),
        }
        return state.replace(
            step=state.step + 1,
            params=params,
            stats=stats,
            teacher=teacher,
            optimizer=optimizer_state,
            memory=update.memory,
            policy=augment.update(state.policy, record, predict),
        ), metrics

    return step


def with_keys(network: Network, root: Array) -> Network:
    """The network, of which each call in train mode has a key of its own.

    The n-th call while a step is traced folds n into ``root``.
    """
    numbers = count()

    def call(
        variables: PyTree,
        views: PyTree,
        train: bool = True,
        key: Array | None = None,
        places: Array | None = None,
    ) -> tuple[PyTree, PyTree]:
        if train and key is None:
            key = jax.random.fold_in(root, next(numbers))
        options = {} if places is None else {"places": places}
        return network(variables, views, train, key, **options)

    return call


def outputs_of_frozen(
    frozen: Mapping[str, FrozenNetwork], variables: Mapping[str, PyTree] | None, batch: Batch
) -> dict[str, tuple[Outputs, ...]]:
    """The outputs of each frozen network on each unlabeled view, in eval mode."""
    assert variables is not None
    assert batch.unlabeled is not None
    views, index = batch.unlabeled.views, batch.unlabeled.index

    def of(role: str, network: FrozenNetwork) -> tuple[Outputs, ...]:
        if isinstance(network, ByIndex):
            return (network(variables[role], index),) * len(views)
        return tuple(network(variables[role], view, train=False)[0] for view in views)

    return {role: of(role, network) for role, network in frozen.items()}
