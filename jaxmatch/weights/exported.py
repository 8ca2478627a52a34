"""Reads a classifier from a file that :mod:`jaxmatch.weights.export` has written."""

from pathlib import Path

from jaxmatch.errors import InputError
from jaxmatch.runtime import paths
from jaxmatch.weights.export_onnx import read_onnx
from jaxmatch.weights.export_stablehlo import read_stablehlo
from jaxmatch.weights.shipped import Answer, Shipped

ZIP = b"PK"
SAFETENSORS = b"{"  # after the length of the header in eight bytes


def read_exported(path: str | Path) -> tuple[Shipped, Answer]:
    """The facts and the function of a file; its content tells the format, not its name.

    Raises:
        InputError: if the file is missing, damaged or of another kind, or a package is missing.
    """
    path = paths.path(path)
    try:
        content = paths.read_whole(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {paths.reason(error)}.") from error
    if content[8:9] == SAFETENSORS:
        raise InputError(
            f"{path} holds weights alone; start a run from it by --config.init_from, or export a "
            "classifier as .stablehlo or .onnx."
        )
    if not content:
        raise InputError(f"{path} is empty; export it again.")
    return (read_stablehlo if content.startswith(ZIP) else read_onnx)(path, content)
