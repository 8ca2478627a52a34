"""The base of all networks: their common settings, and the classifier and heads at their end."""

from collections.abc import Sequence
from typing import Annotated, Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxmatch.models.heads import KEPT, KeptHead, filled_in
from jaxmatch.settings import Range
from jaxmatch.types import CLASSIFIER, Array, Heads, Outputs

# Fields that do not come from ``config.model``: the program fills them in.
NOT_SETTINGS = (
    "parent",
    "name",
    "classes",
    "extra_heads",
    "dtype",
    "param_dtype",
    "remat",
    "frozen_trunk",
)


class Model(nn.Module):
    """A network that maps images [b h w c] to :class:`~jaxmatch.types.Outputs`.

    A subclass adds its settings as fields with defaults, and ends its ``__call__`` with
    :meth:`read_out`. Its ``__post_init__`` refuses values that its fields' types admit.

    Attributes:
        classes: number of classes C; 0 leaves out the classifier.
        head_layers: number of layers of a projection head that fine-tuning keeps between features
            and classifier.
        zero_classifier: start the classifier's kernel at zero, and that of a method's second one.
        extra_heads: the method's heads on the pooled features, by name.
        remat: keep only the inputs of the blocks for the gradient and compute the rest again.
        dtype: compute dtype of the layers; None follows inputs and parameters.
        param_dtype: dtype of the parameters.
        frozen_trunk: compute features and kept head as in evaluations, also in train mode; for a
            network of which only the classifier and the extra heads train.
        bn_groups: number of parts of a batch that BatchNorm treats as separate batches in training.
    """

    classes: int
    head_layers: Annotated[int, Range(least=0, most=64)] = 0
    zero_classifier: bool = False
    extra_heads: Heads = nn.FrozenDict()
    remat: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    frozen_trunk: bool = False

    bn_groups = 1  # a network with BatchNorm makes it a setting
    convolves = True  # whether its time goes into convolutions
    random = False  # whether a pass in train mode takes draws, which ``draw`` makes

    @property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Paths of the modules from input to output, a layer each, for layer-wise rates.

        Modules that are not listed count as the last layer.
        """
        return ()

    @nn.nowrap
    def draw(self, key: Array, count: int) -> Array:
        """The randomness of a pass in train mode over ``count`` images, [count ...].

        A network that is ``random`` takes it as ``draws`` of its ``__call__``.
        """
        raise NotImplementedError

    def __call__(self, x: Array, train: bool) -> Outputs:
        """Map images ``x`` [b h w c] to logits [b C], features [b d] and the heads' outputs."""
        raise NotImplementedError

    @nn.nowrap
    def read_out(
        self, features: Array, train: bool, kernel_init: nn.initializers.Initializer
    ) -> Outputs:
        """The outputs for pooled ``features`` [b d]; call it inside the compact ``__call__``.

        Args:
            features: [b d], at least float32.
            train: whether the heads' BatchNorm normalises by the batch.
            kernel_init: initial values of the classifier's kernel.
        """
        options: dict[str, Any] = {"param_dtype": self.param_dtype, "parent": self}
        kept = features
        if self.head_layers:
            kept = KeptHead(self.head_layers, name=KEPT, **options)(
                features, train and not self.frozen_trunk
            )
        logits = jnp.zeros((features.shape[0], 0), features.dtype)
        init = nn.initializers.zeros if self.zero_classifier else kernel_init
        if self.classes:
            classifier = nn.Dense(self.classes, kernel_init=init, name=CLASSIFIER, **options)
            logits = classifier(kept)
        heads = {
            name: filled_in(head, classes=self.classes, kernel_init=init).clone(
                name=name, **options
            )(features, train)
            for name, head in self.extra_heads.items()
        }
        return Outputs(logits, features, heads)


def block_paths(counts: Sequence[int]) -> tuple[tuple[str], ...]:
    """The path of each block of a residual network whose groups have so many blocks, in order."""
    return tuple(
        (f"group{group}/block{block + 1}",)
        for group, count in enumerate(counts, start=1)
        for block in range(count)
    )
