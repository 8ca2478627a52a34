"""Reads and writes weights in files that cannot run code: safetensors, and npz without pickle."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save

from jaxmatch.errors import InputError
from jaxmatch.runtime import paths

SUFFIXES = (".safetensors", ".npz")
PICKLES = (".pth", ".pt", ".bin", ".pkl", ".ckpt", ".tar")
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a ``.safetensors`` or ``.npz`` file by name, in the file's dtypes.

    bfloat16 (safetensors only) becomes the NumPy dtype that JAX uses. Nothing in the file is
    executed.

    Raises:
        InputError: if the file is missing, damaged, of another kind, or holds more than numbers.
    """
    path = paths.path(path)
    _check_suffix(path)
    try:
        if path.suffix == ".npz":
            return _read_npz(path)
        content = paths.read_whole(path)
        return {name: _tensor(value) for name, value in safetensors.deserialize(content)}
    except FileNotFoundError as error:
        raise InputError(f"there is no weights file {path}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {paths.reason(error)}.") from error
    except Exception as error:  # the libraries raise errors of many kinds
        raise InputError(
            f"{path} is damaged or holds more than numbers ({error}); get a new copy."
        ) from error


def write_weights(path: str | Path, weights: Mapping[str, np.ndarray], kind: str = "") -> None:
    """Write tensors by name to a new file, completely or not at all.

    Args:
        path: of the file.
        weights: the tensors.
        kind: "safetensors" or "npz"; by default the suffix of the file names it.

    Raises:
        InputError: if the file exists, its folder does not, or it has another suffix.
        DiskError: if it cannot be written.
    """
    path = paths.path(path)
    check_new(path, None if kind else SUFFIXES)
    # safetensors writes an array's memory in its own order, which is wrong for a transposed view.
    ordered = {name: np.asarray(value, order="C") for name, value in weights.items()}
    if (kind or path.suffix[1:]) == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **ordered)  # pyright: ignore[reportArgumentType]
        content = buffer.getvalue()
    else:
        content = save(ordered)
    paths.write_output(path, content)


def check_new(path: Path, suffixes: Iterable[str] | None = SUFFIXES) -> None:
    """Check that a new file with one of ``suffixes`` can be written to ``path``; None admits all.

    Raises:
        InputError: if not.
    """
    if suffixes is not None:
        _check_suffix(path, suffixes)
    if path.exists():
        raise InputError(f"{path} exists; remove it or choose another name.")
    paths.check_output(path)


def _check_suffix(path: Path, suffixes: Iterable[str] = SUFFIXES) -> None:
    if path.suffix in PICKLES:
        raise InputError(
            f"{path} is a pickle by its name, and reading a pickle can run code; convert it to "
            ".safetensors with python -m experiments.weights.from_pth."
        )
    if path.suffix not in suffixes:
        raise InputError(
            f"{path} is no weights file: its name must end in {' or '.join(suffixes)}."
        )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    content = np.load(io.BytesIO(paths.read_whole(path)), allow_pickle=False)
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array")
    found = {name: content[name] for name in content.files}
    for name, value in found.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
            raise ValueError(f"{name} is no array of numbers")
    return found


def _tensor(entry: Mapping) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensors of type {entry['dtype']} are not read")
    return np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
