"""Extra heads on the pooled features, declared by the algorithm that needs them."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxmatch.functional.similarity import normalize
from jaxmatch.models.batch_norm import BatchNorm
from jaxmatch.types import Array

# PyTorch's default for dense layers: uniform within 1 / sqrt(inputs).
UNIFORM_FAN_IN = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
Activation = Literal["relu", "leaky_relu"]
ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.1),
}


class Linear(nn.Module):
    """One dense layer, such as ReMixMatch's rotation head."""

    features: int
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pooled features ``x`` [b d] to [b features]."""
        return nn.Dense(
            self.features,
            kernel_init=nn.initializers.variance_scaling(1.0, "fan_avg", "normal"),
            param_dtype=self.param_dtype,
            name="dense",
        )(x)


class SecondClassifier(nn.Module):
    """A classifier of the pooled features that starts as the network's own one would.

    Attributes:
        classes: C, which the network fills in (:func:`filled_in`).
        kernel_init: initial values of the kernel, which the network fills in, too.
    """

    classes: int = 1
    kernel_init: nn.initializers.Initializer = UNIFORM_FAN_IN
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pooled features ``x`` [b d] to logits [b C]."""
        return nn.Dense(
            self.classes, kernel_init=self.kernel_init, param_dtype=self.param_dtype, name="dense"
        )(x)


class Projection(nn.Module):
    """Two dense layers, the first as wide as its input: SimMatch's, CoMatch's and MoCo v2's head.

    The output is not normalised.

    Attributes:
        features: width of the output.
        activation: "relu", or "leaky_relu" of slope 0.1.
        norm: put a BatchNorm after each layer in place of its bias, the last one with a scale only:
            SimCLR's head.
    """

    features: int
    activation: Activation = "relu"
    norm: bool = False
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pooled features ``x`` [b d] to [b features]."""
        dense = partial(
            nn.Dense,
            use_bias=not self.norm,
            kernel_init=UNIFORM_FAN_IN,
            param_dtype=self.param_dtype,
        )
        norm = partial(BatchNorm, decay=0.9, epsilon=1e-5, param_dtype=self.param_dtype)
        x = dense(x.shape[-1], name="hidden")(x)
        if self.norm:
            x = norm(name="hidden_norm")(x, train)
        x = dense(self.features, name="output")(ACTIVATIONS[self.activation](x))
        if self.norm:
            x = norm(use_bias=False, name="output_norm")(x, train)
        return x


class DeepProjection(nn.Module):
    """Dense layers with BatchNorm and ReLU between them: SimCLR v2's and WCL's heads.

    Chen et al., "Big Self-Supervised Models are Strong Semi-Supervised Learners", NeurIPS 2020,
    section 2.1. The output is not normalised.

    Attributes:
        layers: number of dense layers, at least 1.
        features: width of the last one.
        hidden: width of the others; None takes that of the input.
        last_norm: put a BatchNorm with a scale only after the last layer, in place of its bias.
        bias: keep the biases of the layers that a BatchNorm follows, as some authors do. The
            BatchNorm removes them again, so they stay zero.
    """

    layers: int
    features: int
    hidden: int | None = None
    last_norm: bool = False
    bias: bool = False
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pooled features ``x`` [b d] to [b features]."""
        dense = partial(nn.Dense, kernel_init=UNIFORM_FAN_IN, param_dtype=self.param_dtype)
        norm = partial(BatchNorm, decay=0.9, epsilon=1e-5, param_dtype=self.param_dtype)
        hidden = x.shape[-1] if self.hidden is None else self.hidden
        for layer in range(1, self.layers):
            x = dense(hidden, use_bias=False, name=f"hidden{layer}")(x)
            if self.bias:
                x = x + _idle_bias(self, f"hidden{layer}_bias", hidden, self.param_dtype)
            x = nn.relu(norm(name=f"hidden{layer}_norm")(x, train))
        x = dense(self.features, use_bias=not self.last_norm, name="output")(x)
        if self.last_norm:
            x = norm(use_bias=False, name="output_norm")(x, train)
        return x


class Perceptron(nn.Module):
    """Dense, BatchNorm, ReLU, dense without bias: BYOL's projector and its predictor.

    Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, section 3.3.
    """

    hidden: int
    features: int
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map ``x`` [b d] to [b features]."""
        dense = partial(
            nn.Dense, use_bias=False, kernel_init=UNIFORM_FAN_IN, param_dtype=self.param_dtype
        )
        x = dense(self.hidden, name="hidden")(x)
        x = x + _idle_bias(self, "hidden_bias", self.hidden, self.param_dtype)
        norm = BatchNorm(decay=0.9, epsilon=1e-5, param_dtype=self.param_dtype, name="norm")
        return dense(self.features, name="output")(nn.relu(norm(x, train)))


class PredictedProjection(nn.Module):
    """BYOL's projection z = g(f) of the features f, and its prediction q(z).

    They are one head, since a head reads features only. The teacher's prediction is not used.
    """

    hidden: int
    features: int
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pooled features ``x`` [b d] to projection and prediction, [b 2 features]."""
        mlp = partial(Perceptron, self.hidden, self.features, self.param_dtype)
        projection = mlp(name="projector")(x, train)
        return jnp.stack([projection, mlp(name="predictor")(projection, train)], 1)


class OpenSet(nn.Module):
    """IOMatch's multi-binary classifier chi and open-set classifier psi, on a projection z = g(f).

    They are one head, since a head reads features only. Li et al., "IOMatch", ICCV 2023, section
    3.1; layers and first values are those of the authors' code (github.com/nukezil/IOMatch).

    Attributes:
        projection: width of z.
        classes: K, which the network fills in (:func:`filled_in`).
    """

    projection: int
    classes: int = 1
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pooled features ``x`` [b d] to logits [b 3K+1].

        They are K of "not of class k", K of "of class k", then K + 1 of the classes and of none.
        """
        dense = partial(nn.Dense, param_dtype=self.param_dtype)
        z = nn.relu(dense(x.shape[-1], kernel_init=UNIFORM_FAN_IN, name="hidden")(x))
        z = dense(self.projection, kernel_init=UNIFORM_FAN_IN, name="output")(z)
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
        binary = dense(2 * self.classes, kernel_init=init, use_bias=False, name="binary")(z)
        opened = dense(self.classes + 1, kernel_init=init, name="open")(z)
        return jnp.concatenate([binary, opened], -1)


def filled_in(head: nn.Module, **network: Any) -> nn.Module:
    """The head with those values of the network, such as ``classes``, that it has fields for."""
    own = {name: value for name, value in network.items() if name in head.__dataclass_fields__}
    return head.clone(**own)


class PrototypeProjection(nn.Module):
    """SwAV's unit embeddings, and the prototypes that the loss compares them with.

    The prototypes are the parameter ``prototypes/kernel`` [prototypes features]; it starts with
    unit rows.
    Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
    NeurIPS 2020, section 3.1.
    """

    hidden: int
    features: int
    prototypes: int
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pooled features ``x`` [b d] to unit rows [b features]."""
        Prototypes(self.prototypes, self.features, self.param_dtype, name="prototypes")()
        mlp = DeepProjection(
            2, self.features, self.hidden, bias=True, param_dtype=self.param_dtype, name="projector"
        )
        return normalize(mlp(x, train))


class Prototypes(nn.Module):
    """Unit rows, drawn uniformly from the sphere; the name "kernel" gives them weight decay."""

    count: int
    features: int
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self) -> Array:
        """The rows [count features]."""

        def unit_rows(key: Array, *shape_and_dtype: Any) -> Array:
            return normalize(jax.random.normal(key, *shape_and_dtype))

        return self.param("kernel", unit_rows, (self.count, self.features), self.param_dtype)


def _idle_bias(head: nn.Module, name: str, width: int, dtype: DTypeLike) -> Array:
    """The bias of a layer that a BatchNorm follows, as some authors have it."""
    # BatchNorm removes it again. Its gradient would be a rounding error that depends on the number
    # of devices.
    bias = head.param(name, nn.initializers.zeros, (width,), dtype)
    return jax.lax.stop_gradient(bias)


KEPT = "kept_head"  # name of the layers that fine-tuning keeps between features and classifier


def hidden_layers(count: int) -> list[str]:
    """The names of the modules in the first ``count`` layers of a :class:`DeepProjection`."""
    return [
        name for layer in range(1, count + 1) for name in (f"hidden{layer}", f"hidden{layer}_norm")
    ]


class KeptHead(nn.Module):
    """The first layers of a :class:`DeepProjection` as wide as its input, without the others.

    SimCLR v2 fine-tunes from the middle of its head: Chen et al., NeurIPS 2020, section 2.
    """

    layers: int
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pooled features ``x`` [b d] to [b d]."""
        dense = partial(
            nn.Dense, use_bias=False, kernel_init=UNIFORM_FAN_IN, param_dtype=self.param_dtype
        )
        norm = partial(BatchNorm, decay=0.9, epsilon=1e-5, param_dtype=self.param_dtype)
        names = hidden_layers(self.layers)
        for layer, layer_norm in zip(names[::2], names[1::2], strict=True):
            x = nn.relu(norm(name=layer_norm)(dense(x.shape[-1], name=layer)(x), train))
        return x
