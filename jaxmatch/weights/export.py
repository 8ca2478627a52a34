"""The table of export formats, and a trained network written in the format of a file's suffix."""

from collections.abc import Callable
from pathlib import Path

from jaxmatch.runtime import paths
from jaxmatch.weights.export_torch import export_torch
from jaxmatch.weights.files import check_new
from jaxmatch.weights.trained import Trained

# By suffix: writes the file, and returns a few words that say what it holds.
EXPORTERS: dict[str, Callable[[Path, Trained], str]] = {
    ".safetensors": export_torch,
    ".npz": export_torch,
}


def export(path: str | Path, trained: Trained) -> str:
    """Write ``trained`` to a new file; return a few words that say what it holds.

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
