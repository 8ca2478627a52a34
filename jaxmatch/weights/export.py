"""The table of export formats, and a trained network written in one of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxmatch.errors import InputError, suggest
from jaxmatch.runtime import paths
from jaxmatch.weights.export_onnx import export_onnx
from jaxmatch.weights.export_stablehlo import export_stablehlo
from jaxmatch.weights.export_torch import export_torch
from jaxmatch.weights.files import check_new
from jaxmatch.weights.trained import Trained


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        write: writes a file, and returns a few words that say what it holds.
        package: that writing needs, if it is one that not every user has.
        extra: of this library, which installs the package.
    """

    write: Callable[[Path, Trained], str]
    package: str = ""
    extra: str = ""


# By name; the suffix of a file is a dot and the name.
FORMATS: dict[str, Format] = {
    "stablehlo": Format(export_stablehlo),
    "onnx": Format(export_onnx, package="jax2onnx", extra="onnx"),
    "safetensors": Format(export_torch),
    "npz": Format(export_torch),
}


# Those whose files compute; the others hold weights.
PROGRAMS = ("stablehlo", "onnx")


def export(path: str | Path, trained: Trained, kind: str = "") -> str:
    """Write ``trained`` to a new file; return a few words that say what it holds.

    Args:
        path: of the file.
        trained: the network.
        kind: a key of :data:`FORMATS`; by default the suffix of the file names it.

    Raises:
        InputError: if the file exists, its folder does not, there is no such format, a package is
            missing, or the format cannot hold this network.
        DiskError: if the file cannot be written.
    """
    path = paths.path(path)
    return FORMATS[check_export(path, kind)].write(path, trained)


def check_export(path: str | Path, kind: str = "") -> str:
    """Check that a new file can be written to ``path``; return its format.

    Raises:
        InputError: as :func:`export`, except for the network.
    """
    path = paths.path(path)
    if kind and kind not in FORMATS:
        raise InputError(f"unknown format {kind!r}; {suggest(kind, FORMATS)}")
    # A run takes weights from a file by its suffix; a program is known by its content.
    named = [kind] if kind else list(FORMATS)
    check_new(path, None if kind in PROGRAMS else [f".{name}" for name in named])
    chosen = kind or path.suffix[1:].lower()
    missing = FORMATS[chosen].package
    if missing and not paths.installed(missing):
        raise InputError(
            f"{chosen} needs the package {missing}: pip install "
            f'"jaxmatch[{FORMATS[chosen].extra}]".'
        )
    return chosen
