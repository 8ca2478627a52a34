"""Reads and writes weights in files that cannot run code: safetensors, and npz without pickle.

Large networks come as several safetensors files, the shards, and an index of them in JSON
(https://huggingface.co/docs/safetensors). Index and shards are read as one file.
"""

import contextlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save

from jaxmatch.errors import InputError
from jaxmatch.runtime import paths

SUFFIXES = (".safetensors", ".npz")
INDEX = ".safetensors.index.json"
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
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_SHARD = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors)", re.IGNORECASE
)


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a ``.safetensors`` or ``.npz`` file by name, in the file's dtypes.

    bfloat16 (safetensors only) becomes the NumPy dtype that JAX uses. A tensor of a type that is
    not read, such as float8, stands for itself without its numbers; :func:`check_read` refuses it.
    Nothing in the file is executed.

    Args:
        path: of the file, of an index or of one shard, whose other shards lie beside it.

    Raises:
        InputError: if the file is missing, damaged, of another kind, or holds more than numbers.
    """
    path = paths.path(path)
    if path.name.lower().endswith(INDEX):
        return _read_parts(path, _indexed(path), "the index of")
    _check_suffix(path)
    shard = _SHARD.fullmatch(path.name)
    if shard and 1 <= int(shard["number"]) <= int(shard["count"]):
        return _read_parts(path, _siblings(shard), "one part of")
    return _read_file(path)


def check_read(weights: Mapping[str, np.ndarray]) -> None:
    """Check that the numbers of all ``weights`` are there.

    Raises:
        InputError: if a tensor is of a type that is not read.
    """
    for name, value in weights.items():
        if value.dtype.names:
            raise InputError(
                f"tensor {name!r} is of type {value.dtype.names[0]}, which is not read"
            )


def check_no_integers(name: str, value: np.ndarray) -> None:
    """Check that a weight is not of integers; masks of weights are bool.

    Raises:
        InputError: if it is, as in a quantized file.
    """
    if jnp.issubdtype(value.dtype, jnp.integer):
        raise InputError(
            f"tensor {name!r} is of type {value.dtype}; quantized weights are not read, so give "
            "the file of before"
        )


def _read_parts(path: Path, names: Sequence[str], role: str) -> dict[str, np.ndarray]:
    """The tensors of the files ``names`` in the folder of ``path``, whose ``role`` errors name."""
    if not path.exists():
        return _read_file(path)
    missing = [name for name in names if not (path.parent / name).exists()]
    if missing:
        alone = path.name in names and len(missing) == len(names) - 1
        lacks = "the others are" if alone else f"{missing[0]} is"
        raise InputError(
            f"{path} is {role} {len(names)}, and {lacks} missing; put all parts into its folder."
        )
    weights: dict[str, np.ndarray] = {}
    for name in names:
        weights |= _read_file(path.parent / name)
    return weights


def _siblings(shard: re.Match[str]) -> list[str]:
    """The names of all shards, by that of one."""
    count = shard["count"]
    return [
        f"{shard['stem']}-{number:05}-of-{count}{shard['suffix']}"
        for number in range(1, int(count) + 1)
    ]


def _indexed(path: Path) -> list[str]:
    """The names of the files in an index."""
    with _reading(path):
        names = json.loads(paths.read_whole(path))["weight_map"].values()
        # Without folders, so that an index reads nothing outside of its own.
        return sorted({re.split(r"[/\\]", name)[-1] for name in names})


def _read_file(path: Path) -> dict[str, np.ndarray]:
    with _reading(path):
        if path.suffix.lower() == ".npz":
            return _read_npz(path)
        content = paths.read_whole(path)
        return {name: _tensor(value) for name, value in safetensors.deserialize(content)}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what goes wrong in the block into an :class:`InputError` about the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"there is no weights file {path}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {paths.reason(error)}.") from error
    except Exception as error:  # the libraries raise errors of many kinds
        raise InputError(
            f"{path} is damaged or holds more than numbers ({error}); get a new copy."
        ) from error


def write_weights(path: str | Path, weights: Mapping[str, np.ndarray]) -> None:
    """Write tensors by name to a new file, completely or not at all.

    Args:
        path: of the file; its suffix names the format.
        weights: the tensors.

    Raises:
        InputError: if the file exists, its folder does not, or it has another suffix.
        DiskError: if it cannot be written.
    """
    path = paths.path(path)
    check_new(path)
    # safetensors writes an array's memory in its own order, which is wrong for a transposed view.
    ordered = {name: np.asarray(value, order="C") for name, value in weights.items()}
    if path.suffix.lower() == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, **ordered)  # pyright: ignore[reportArgumentType]
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
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise InputError(
            f"{path} is a pickle by its name, and reading a pickle can run code; convert it to "
            ".safetensors with python -m experiments.weights.from_pth."
        )
    if suffix not in suffixes:
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
        # The name of its one field says the type; it has no memory.
        return np.broadcast_to(np.zeros((), [(entry["dtype"], "V1")]), entry["shape"])
    return np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
