"""Writing a trained network to a file for other programs, in the format of the file's suffix."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxmatch.runtime import paths
from jaxmatch.types import Algorithm, Network, PyTree
from jaxmatch.weights.files import check_new, write_weights
from jaxmatch.weights.torch_names import nameable, to_torch
from jaxmatch.weights.transfer import encoder


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network, as exporters take it.

    Attributes:
        variables: {"params", "batch_stats"} of the network.
        algorithm: the method that trained it.
        network: maps ``variables`` and normalised images to outputs.
        classes: class names.
        image_shape: (height, width, channels) of its images.
        mean, std: normalise the channels of images that are scaled to [0, 1].
        naming: key of :data:`~jaxmatch.weights.torch_names.NAMINGS`; None chooses one that fits.
    """

    variables: Mapping[str, PyTree]
    algorithm: Algorithm
    network: Network
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    naming: str | None = None


# Writes the file and says in a few words what it holds.
Exporter = Callable[[Path, Trained], str]


def export_torch(path: Path, trained: Trained) -> str:
    """Write the tensors that a PyTorch code base has names for, in its layout.

    The classifier of a method without labels is left out, since nothing trained it.
    """
    variables, heads = trained.variables, tuple(trained.algorithm.heads)
    if not trained.algorithm.labeled:
        variables = encoder(variables, trained.algorithm, heads)
    kept, naming = nameable(variables, heads, trained.naming)
    write_weights(path, to_torch(jax.device_get(kept), naming=naming))
    left_out = [head for head in heads if head not in kept["params"]]
    without = f", without the head {' and '.join(left_out)}" if left_out else ""
    return f"{naming} names{without}"


EXPORTERS: dict[str, Exporter] = {
    ".safetensors": export_torch,
    ".npz": export_torch,
}


def export(path: str | Path, trained: Trained) -> str:
    """Write ``trained`` to a new file and say in a few words what it holds.

    Raises:
        InputError: if the file exists, its folder does not, no exporter has its suffix, or the
            format cannot hold this network.
        DiskError: if the file cannot be written.
    """
    path = paths.path(path)
    check_export(path)
    return EXPORTERS[path.suffix](path, trained)


def check_export(path: str | Path) -> None:
    """Check that a new file can be written to ``path`` in a known format.

    Raises:
        InputError: if not.
    """
    check_new(paths.path(path), EXPORTERS)
