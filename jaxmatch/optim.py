"""The optimizer of the FixMatch family as an optax chain, and the EMA teacher."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmatch.errors import InputError, suggest
from jaxmatch.schedules import learning_rate
from jaxmatch.types import Array, PyTree

OPTIMIZERS = ("sgd", "adamw")
DECAYS = ("kernels", "not_batch_norm", "all")
EMA_STATISTICS = ("copied", "averaged", "own")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """``config.optim``.

    Attributes:
        name: "sgd" (Nesterov momentum, weight decay as L2 inside the momentum) or "adamw"
            (decoupled decay).
        schedule: see :func:`jaxmatch.schedules.learning_rate`.
        period_steps: after warm-up the rate changes only every so many steps (official SimMatch
            and CoMatch step it once an epoch on ImageNet).
        drops: shares of the run after which the "steps" schedule divides the rate by 10.
        decay: which parameters decay: "kernels" of convolutions and dense layers,
            "not_batch_norm" (biases too) or "all".
        layer_decay: the learning rate of a layer is multiplied by this once for each layer
            between it and the classifier; 1 turns it off.
        clip_norm: largest global norm of the gradient, before decay; 0 turns it off.
    """

    name: str = "sgd"
    learning_rate: float = 0.03
    schedule: str = "cosine_7_16"
    warmup_steps: int = 0
    period_steps: int = 1
    drops: tuple[float, ...] = ()
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay: str = "kernels"
    layer_decay: float = 1.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        for value, known in ((self.name, OPTIMIZERS), (self.decay, DECAYS)):
            if value not in known:
                raise InputError(f"unknown optim setting {value!r}; {suggest(value, known)}")

    def rate(self, steps: int) -> Callable[[Array], Array]:
        """The base learning rate as a function of the optimizer's step count."""
        return learning_rate(
            self.schedule,
            self.learning_rate,
            steps,
            self.warmup_steps,
            period=self.period_steps,
            drops=self.drops,
        )

    def build(
        self, steps: int, layers: Sequence[Sequence[str]] = ()
    ) -> optax.GradientTransformation:
        """The transformation for a run of ``steps``; ``layers`` as ``WideResNet.layers``."""
        rate = self.rate(steps)
        decay = optax.add_decayed_weights(self.weight_decay, mask=self._decays)
        if self.name == "sgd":
            inner = (decay, optax.trace(self.momentum, self.nesterov))
        else:
            inner = (optax.scale_by_adam(), decay)
        return optax.chain(
            clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            *inner,
            optax.identity() if self.layer_decay == 1 else scale_layers(self.layer_decay, layers),
            optax.scale_by_learning_rate(rate),
        )

    def _decays(self, params: PyTree) -> PyTree:
        if self.decay == "kernels":
            return _map_names(lambda names: names[-1] == "kernel", params)
        return _all_but_norms(params) if self.decay == "not_batch_norm" else True


def steps_taken(state: PyTree) -> Array:
    """The number of steps an optimizer built by :meth:`Optim.build` has taken; sets its rate."""
    return state[-1].count


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Scale gradients by min(1, limit / (norm + 1e-6)), as PyTorch's ``clip_grad_norm_``."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda leaf: leaf * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_layers(decay: float, layers: Sequence[Sequence[str]]) -> optax.GradientTransformation:
    """Multiply the updates of ``layers[i]`` by decay^(last - i); unlisted modules count as last.

    A module is named by its path, such as "stem" or "group1/block2".
    """
    last = len(layers) - 1
    depth = {name: index for index, names in enumerate(layers) for name in names}

    def scale(names: list[str]) -> float:
        paths = ("/".join(names[: end + 1]) for end in range(len(names)))
        return decay ** (last - next((depth[path] for path in paths if path in depth), last))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        return jax.tree.map(jnp.multiply, updates, _map_names(scale, updates)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _all_but_norms(params: PyTree) -> PyTree:
    """False for the parameters of modules with a scale, which only normalisation has."""
    if not isinstance(params, Mapping):
        return True
    if "scale" in params:
        return dict.fromkeys(params, False)
    return {name: _all_but_norms(value) for name, value in params.items()}


def _map_names(function: Callable[[list[str]], Any], tree: PyTree) -> PyTree:
    def visit(path: Any, leaf: Array) -> Any:
        del leaf
        return function([str(getattr(part, "key", part)) for part in path])

    return jax.tree_util.tree_map_with_path(visit, tree)


@dataclass(frozen=True, kw_only=True)
class Ema:
    """``config.ema``: the teacher as an exponential moving average of the student.

    Attributes:
        decay: teacher <- decay * teacher + (1 - decay) * student, after every optimizer step.
        statistics: BatchNorm statistics of the teacher: "copied" from the student, "averaged" like
            the parameters (EMAN; Cai et al., CVPR 2021), or its "own", kept while it labels in
            train mode (MoCo, SimMatch on ImageNet).
    """

    decay: float = 0.999
    statistics: str = "copied"

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        if self.statistics not in EMA_STATISTICS:
            raise InputError(
                f"unknown ema.statistics {self.statistics!r}; "
                f"{suggest(self.statistics, EMA_STATISTICS)}"
            )

    def update(
        self, teacher: Mapping[str, PyTree], params: PyTree, stats: PyTree, own: PyTree = None
    ) -> PyTree:
        """The teacher's variables after a step that led to ``params`` and ``stats``.

        ``own`` are the statistics that the teacher's forward of this step led to.
        """
        if self.statistics == "own" and own is None:
            raise InputError(
                'ema.statistics="own" needs a method whose teacher labels in train mode; use '
                '"copied" or "averaged".'
            )
        choices = {"copied": lambda: stats, "own": lambda: own}
        average = self._average
        return {
            "params": average(teacher["params"], params),
            "batch_stats": choices.get(
                self.statistics, lambda: average(teacher["batch_stats"], stats)
            )(),
        }

    def _average(self, old: PyTree, new: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: self.decay * a + (1 - self.decay) * b, old, new)
