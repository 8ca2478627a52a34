"""The files of one checkpoint: their names, their hashes, and how they are read and verified."""

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxmatch.errors import InputError
from jaxmatch.runtime import hosts, orbax, paths
from jaxmatch.types import Array, PyTree

ARRAYS = "arrays"  # the folder that Orbax writes
TENSORS = "tensors.json"  # {name: dtype and shape}
FORMAT_FILE = "format.json"  # the number FORMAT
MANIFEST = "manifest.json"  # {file: SHA-256} of all the others

# The version of this layout. Checkpoints without a number have format 1.
FORMAT = 1


def read_checkpoint(path: Path, abstract_state: PyTree) -> tuple[PyTree, str | None]:
    """Read and verify a checkpoint: (state, None) if it is intact, else (None, the problem).

    All processes return the same problem. Each process looks at its files before Orbax reads them
    in all processes together: a process that failed alone would leave the others waiting.

    Raises:
        InputError: in every process, if the tensors differ from those of ``abstract_state``.
    """
    direct = orbax_writes_to(path)
    problem = hosts.from_leader(lambda: _damage(path) if direct else None)
    if problem is not None:
        return None, problem
    with contextlib.ExitStack() as opened:
        error: InputError | None = None
        local = path
        try:
            if not direct:
                local = opened.enter_context(paths.on_this_machine(path))
            problem = _unreadable(local) if direct else _damage(local)
            if problem is None:
                _check_tensors(path, local, abstract_state)
        except InputError as raised:
            error = raised
        except Exception as raised:  # any library may raise anything on a damaged file
            problem = reason(raised)
        _raise_everywhere(error)
        if (problem := hosts.first_problem(problem)) is not None:
            return None, problem
        state = None
        try:
            state = _load(local, abstract_state)
        except InputError as raised:
            error = raised
        except Exception as raised:
            problem = reason(raised)
            if jax.process_count() > 1:  # Orbax's own barriers are out of step now
                error = InputError(f"The checkpoint {path} could not be read ({problem}).")
        _raise_everywhere(error)
    return state, problem


def orbax_writes_to(path: Path) -> bool:
    """Whether Orbax itself can write to ``path``: to this machine and to ``gs://``."""
    return paths.scheme(path) in ("", "gs")


def arrays_by_name(tree: PyTree) -> dict[str, Array]:
    """The leaves of a tree by their paths, such as "params/block/kernel".

    Raises:
        ValueError: if two have the same path.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("Two tensors of the state have the same path.")
    return named


def describe(leaf: Array) -> str:
    """Dtype and shape, as :data:`TENSORS` lists them."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error: Exception) -> str:
    """An exception in a few words."""
    code = re.search(r"os_error_code='(\d+)'", str(error))  # in the messages of TensorStore
    if code:
        return os.strerror(int(code[1])).lower()
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(error.filename or '').name}: {error.strerror.lower()}".removeprefix(": ")
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _raise_everywhere(error: InputError | None) -> None:
    """Raise InputError in all processes if one of them has one."""
    problem = hosts.first_problem(None if error is None else str(error))
    if error is not None:
        raise error
    if problem is not None:
        raise InputError(f"the checkpoint cannot be used: {problem}.")


def _damage(path: Path) -> str | None:
    """The first difference between the files and the manifest; None if there is none."""
    try:
        hashes = json.loads(paths.read_whole(path / MANIFEST))
        if not isinstance(hashes, dict):
            return f"{MANIFEST} is no list of hashes"
        present = set(paths.files_in(path))
        of_arrays = {name for name in present if name.startswith(f"{ARRAYS}/")}
        for name in sorted({TENSORS, *of_arrays} - hashes.keys()):
            return f"{name} is not in {MANIFEST}"
        if not any(name.startswith(f"{ARRAYS}/") for name in hashes):
            return f"{MANIFEST} lists no arrays"
        for name, expected in hashes.items():
            # Only names of present files are opened: a forged list may name files elsewhere.
            if name not in present:
                return f"{name} is missing"
            if sha256(path / name) != expected:
                return f"{name} has changed since it was written"
    except Exception as error:  # a file may hold anything
        return reason(error)
    return None


def _unreadable(path: Path) -> str | None:
    """Open every file in processes other than process 0, which has read them all.

    Raises:
        OSError: if a file cannot be read.
    """
    if hosts.leader():
        return None
    for name in json.loads(paths.read_whole(path / MANIFEST)):
        with (path / name).open("rb") as file:
            file.read(1)
    return None


def _check_tensors(path: Path, local: Path, abstract_state: PyTree) -> None:
    """Check the format and the tensors of a checkpoint.

    Args:
        path: of the checkpoint, for messages.
        local: of its files on this machine or in a bucket.
        abstract_state: the expected tensors.

    Raises:
        InputError: if they differ.
    """
    written = json.loads((local / FORMAT_FILE).read_text()) if (local / FORMAT_FILE).exists() else 1
    if written != FORMAT:
        raise InputError(
            f"The checkpoint {path} has format {written}, but this version of jaxmatch reads "
            f"{FORMAT}: use the version that wrote it, or choose another folder."
        )
    found = json.loads((local / TENSORS).read_text())
    expected = {name: describe(leaf) for name, leaf in arrays_by_name(abstract_state).items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise InputError(
                f"The checkpoint {path} is of another configuration, or of another version of "
                f"jaxmatch: {name} is {found.get(name, 'absent')} there but "
                f"{expected.get(name, 'absent')} here; choose another folder, or continue with "
                "what wrote it."
            )


def _load(path: Path, abstract_state: PyTree) -> PyTree:
    """Read the arrays.

    Raises:
        InputError: if an array has another dtype than it was saved with.
    """
    named = arrays_by_name(abstract_state)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here)
        for name, leaf in named.items()
    }
    filled = {name: leaf for name, leaf in abstract.items() if leaf.size}
    with jax.transfer_guard("allow"):
        arrays = orbax.load(str(path / ARRAYS), filled)
        for name, leaf in abstract.items():
            if not leaf.size:
                arrays[name] = jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)
            if arrays[name].dtype != leaf.dtype:
                raise InputError(
                    f"{name} came back as {arrays[name].dtype}, not {leaf.dtype}: set "
                    "jax_enable_x64 for the whole process, because other threads read arrays, too."
                )
    return jax.tree.unflatten(jax.tree.structure(abstract_state), [arrays[name] for name in named])
