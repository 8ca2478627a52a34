"""A trained network as exporters take it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxmatch.data.images import Fitting
from jaxmatch.data.levels import DEFAULT, Levels
from jaxmatch.types import Algorithm, Array, Network, Outputs, PyTree


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """How strange n images of known classes look, to tell how strange another image is.

    Attributes:
        score: its name.
        measure: how strange images look, [b], from the network's outputs; larger is stranger.
        scores: of the known images, [n] float32, sorted.
        part: which these are, for people.
    """

    score: str
    measure: Callable[[Outputs], Array]
    scores: np.ndarray
    part: str


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
        fitting: how a picture becomes an image; None scales and crops it to the size of the images.
        levels: how the levels of a picture become 0..255.
        known: to compare images with; None if a file is not to tell how strange they are.
        origin: further facts for people, a JSON object: where the network comes from.
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
    fitting: Fitting | None = None
    levels: Levels = DEFAULT
    known: Known | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
