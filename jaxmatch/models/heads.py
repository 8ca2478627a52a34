"""Extra heads on the pooled features, declared by the algorithm that needs them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxmatch.errors import InputError, suggest
from jaxmatch.models.batch_norm import BatchNorm
from jaxmatch.types import Array

# PyTorch's default for dense layers: uniform within 1 / sqrt(inputs).
UNIFORM_FAN_IN = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
ACTIVATIONS = {"relu": nn.relu, "leaky_relu": lambda x: nn.leaky_relu(x, 0.1)}


class Linear(nn.Module):
    """One dense layer, such as ReMixMatch's rotation head."""

    features: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pooled features ``x`` [b d] to [b features]."""
        del train
        return nn.Dense(
            self.features,
            kernel_init=nn.initializers.variance_scaling(1.0, "fan_avg", "normal"),
            param_dtype=self.param_dtype,
            name="dense",
        )(x)


class Projection(nn.Module):
    """Two dense layers, the first as wide as its input: SimMatch's, CoMatch's and MoCo v2's head.

    The output is not normalised. ``activation`` is "relu", or "leaky_relu" of slope 0.1. With
    ``norm`` each layer has a BatchNorm in place of its bias, the last one a scale only: SimCLR's.
    """

    features: int
    activation: str = "relu"
    norm: bool = False
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pooled features ``x`` [b d] to [b features]; InputError on an unknown activation."""
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"unknown activation {self.activation!r}; {suggest(self.activation, ACTIVATIONS)}"
            )
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


class Perceptron(nn.Module):
    """Dense, BatchNorm, ReLU, dense without bias: BYOL's projector and its predictor.

    Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, section 3.3.
    """

    hidden: int
    features: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map ``x`` [b d] to [b features]."""
        dense = partial(
            nn.Dense, use_bias=False, kernel_init=UNIFORM_FAN_IN, param_dtype=self.param_dtype
        )
        x = dense(self.hidden, name="hidden")(x)
        # The authors' layer has a bias, which BatchNorm takes out again: its gradient would be
        # rounding alone, another on each number of devices.
        bias = self.param("hidden_bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        x = x + jax.lax.stop_gradient(bias)
        norm = BatchNorm(decay=0.9, epsilon=1e-5, param_dtype=self.param_dtype, name="norm")
        return dense(self.features, name="output")(nn.relu(norm(x, train)))


class PredictedProjection(nn.Module):
    """BYOL's projection z = g(f) of the features f, and from it the prediction q(z).

    One head, since a head reads features only; a teacher's prediction stays unused.
    """

    hidden: int
    features: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pooled features ``x`` [b d] to projection and prediction, [b 2 features]."""
        mlp = partial(Perceptron, self.hidden, self.features, self.param_dtype)
        projection = mlp(name="projector")(x, train)
        return jnp.stack([projection, mlp(name="predictor")(projection, train)], 1)
