"""A trained network as exporters take it."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxmatch.types import Algorithm, Network, PyTree


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network, and all that a program needs to use it.

    Attributes:
        variables: {"params", "batch_stats"} of the network.
        algorithm: the method that trained it.
        network: maps ``variables`` and normalised images to outputs.
        classes: class names.
        image_shape: (height, width, channels) of its images.
        mean, std: of each channel of images in [0, 1]; they normalise the network's input.
        naming: key of :data:`~jaxmatch.weights.torch_names.NAMINGS`; None chooses one that fits.
        temperature: divides the logits before the softmax.
    """

    variables: Mapping[str, PyTree]
    algorithm: Algorithm
    network: Network
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    naming: str | None = None
    temperature: float = 1.0
