"""Checkpoints of a run: written in the background, complete or absent, and verified when read.

Orbax (https://orbax.readthedocs.io) writes the arrays into a folder with another name; a list of
the SHA-256 of every file is added; only then is the folder renamed to its step. So a folder named
by a step was once complete, and the list tells whether it still is: the array files alone would
load a flipped bit as another number.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jaxmatch import distributed
from jaxmatch.errors import DiskError, InputError
from jaxmatch.types import PyTree

_ARRAYS = "arrays"  # what Orbax writes
_TENSORS = "tensors.json"  # {name: dtype and shape}
_FORMAT = "format.json"  # the number of the layout of all of these, FORMAT
_MANIFEST = "manifest.json"  # {file: SHA-256} of all of these
_SAVING = "saving-"
_REMOVING = "removing-"

# Checkpoints without a number are of format 1, too.
FORMAT = 1

_log = logging.getLogger(__name__)


class Checkpoints:
    """The newest ``keep`` checkpoints of a run, in ``directory/<step>/``.

    A context manager; leaving it waits for the last save. With several processes every one of
    them calls every method, on a file system they share.
    """

    def __init__(self, directory: str | Path, keep: int = 3):
        """Name the folder and how many to keep; nothing is written before the first save."""
        if keep < 1:
            raise InputError(f"At least one checkpoint must be kept, not {keep}.")
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._saves = 0

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, in order, damaged ones among them."""
        if not self._directory.is_dir():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())

    def save(self, step: int, state: PyTree) -> None:
        """Copy ``state`` (arrays in any tree) to the host and write it in the background.

        Returns when the arrays may be donated. Waits for the save before, whose failure it raises
        as DiskError. A checkpoint of the same step is replaced, and those of later steps, from
        which the run has fallen back, are removed.
        """
        self.wait()
        # A failed save may still be writing: none may share its folder.
        self._saves += 1
        saving = self._directory / f"{_SAVING}{step}-{self._saves}"
        named = _by_name(state)
        # Orbax takes no arrays without elements, such as the bank of an empty set.
        filled = {name: leaf for name, leaf in named.items() if leaf.size}
        tensors = {name: _describe(leaf) for name, leaf in named.items()}
        error = None
        if distributed.leader():
            try:
                self._sweep()
                saving.mkdir(parents=True)
                (saving / _TENSORS).write_text(json.dumps(tensors, indent=1))
                (saving / _FORMAT).write_text(json.dumps(FORMAT))
            except OSError as problem:
                error = self._disk_error(step, problem)
        distributed.raise_together(error)
        try:
            with jax.transfer_guard("allow"):
                response = ocp.save_async(str(saving / _ARRAYS), filled)
        except OSError as error:
            raise self._disk_error(step, error) from error
        self._saving = self._background.submit(self._commit, step, saving, response)

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[PyTree, int] | None:
        """Return (state, step) of the newest intact checkpoint, or None where there is none.

        ``abstract_state`` has the tree, shapes, dtypes and shardings of the state wanted, as from
        ``jax.eval_shape``; without a sharding an array goes to the first local device. A damaged
        checkpoint is passed over with a warning. InputError where all are damaged, where an
        explicit ``step`` is missing or damaged, and where the tensors differ from those wanted.
        """
        self.wait()
        present = self.steps()
        if step is not None and step not in present:
            raise InputError(
                f"There is no checkpoint of step {step} in {self._directory}; "
                f"present: {', '.join(map(str, present)) or 'none'}."
            )
        wanted = present[::-1] if step is None else [step]
        damaged: list[tuple[Path, str]] = []
        for candidate in wanted:
            path = self._directory / str(candidate)
            try:
                _verify(path)
                state = _load(path, abstract_state)
            except InputError:
                raise
            except Exception as error:  # of whatever library: unreadable is unreadable
                damaged.append((path, _reason(error)))
                continue
            for skipped, reason in damaged:
                _log.warning(
                    "The checkpoint %s is damaged (%s); %s is used instead.", skipped, reason, path
                )
            return state, candidate
        if not damaged:
            return None
        raise InputError(
            "No intact checkpoint: "
            + "; ".join(f"{path} is damaged ({reason})" for path, reason in damaged)
            + ". Choose another step or train anew in another folder."
        )

    def wait(self) -> None:
        """Wait for the save under way; DiskError where it failed."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        error = saving.exception()
        if error is not None and not isinstance(error, DiskError):
            raise error
        distributed.raise_together(error)

    def close(self) -> None:
        """Wait for the save under way, and accept no more."""
        try:
            self.wait()
        finally:
            self._background.shutdown()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; a failed save does not hide an error that is already on its way."""
        try:
            self.close()
        except DiskError as disk_error:
            if error is None:
                raise
            _log.warning("%s", disk_error)

    def _commit(self, step: int, saving: Path, response: ocp.AsyncResponse[None]) -> None:
        """Finish a save: the files, the list of their hashes, the name; then the rotation."""
        try:
            response.result()
            if not distributed.leader():
                return
            hashes = {name: _sha256(saving / name) for name in _files(saving)}
            (saving / _MANIFEST).write_text(json.dumps(hashes, indent=1))
            final = self._directory / str(step)
            if final.exists():
                self._remove(final)
            saving.rename(final)
            steps = self.steps()
            up_to_now = [other for other in steps if other <= step]
            for other in steps:
                if other > step or other in up_to_now[: -self._keep]:
                    self._remove(self._directory / str(other))
        except Exception as error:  # array writers do not limit themselves to OSError
            self._sweep()
            raise self._disk_error(step, error) from error

    def _remove(self, path: Path) -> None:
        # Renamed first: a kill in the middle must not leave half a checkpoint under a step's name.
        doomed = path.with_name(_REMOVING + path.name)
        path.rename(doomed)
        shutil.rmtree(doomed)

    def _sweep(self) -> None:
        """Remove what an interrupted save or removal left behind."""
        for path in self._directory.glob("*-*"):
            if path.name.startswith((_SAVING, _REMOVING)):
                shutil.rmtree(path, ignore_errors=True)

    def _disk_error(self, step: int, error: Exception) -> DiskError:
        return DiskError(
            f"The checkpoint of step {step} could not be written to {self._directory} "
            f"({_reason(error)}): make room or give another folder; earlier ones are intact."
        )


def _by_name(tree: PyTree) -> dict[str, jax.Array]:
    """The leaves of a tree by their path, "params/block/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("Two tensors of the state have the same path.")
    return named


def _describe(leaf: jax.Array) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _verify(path: Path) -> None:
    """Raise, in every process, where a file that was written is missing or has changed."""
    problem: Exception | None = None
    if distributed.leader():
        try:
            hashes = json.loads((path / _MANIFEST).read_text())
            present = set(_files(path))
            for name, expected in hashes.items():
                # A name may lead elsewhere in a folder that somebody else made.
                if name not in present:
                    raise ValueError(f"{name} is missing")
                if _sha256(path / name) != expected:
                    raise ValueError(f"{name} has changed since it was written")
        except Exception as error:  # told to the other processes first
            problem = error
    if distributed.leaders(problem is None):
        return
    raise problem or ValueError("process 0 cannot read it")


def _load(path: Path, abstract_state: PyTree) -> PyTree:
    """Read the state; InputError where its format or its tensors are not those wanted."""
    written = json.loads((path / _FORMAT).read_text()) if (path / _FORMAT).exists() else 1
    if written != FORMAT:
        raise InputError(
            f"The checkpoint {path} has format {written}, but this version of jaxmatch reads "
            f"{FORMAT}: use the version that wrote it, or choose another folder."
        )
    wanted = _by_name(abstract_state)
    found = json.loads((path / _TENSORS).read_text())
    expected = {name: _describe(leaf) for name, leaf in wanted.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise InputError(
                f"The checkpoint {path} is of another configuration, or of another version of "
                f"jaxmatch: {name} is {found.get(name, 'absent')} there but "
                f"{expected.get(name, 'absent')} here; choose another folder, or continue with "
                "what wrote it."
            )
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = {
        name: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here
        )
        for name, leaf in wanted.items()
    }
    filled = {name: leaf for name, leaf in abstract.items() if leaf.size}
    with jax.transfer_guard("allow"):
        arrays = ocp.load(str(path / _ARRAYS), filled)
        for name, leaf in abstract.items():
            if not leaf.size:
                arrays[name] = jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)
            if arrays[name].dtype != leaf.dtype:
                raise InputError(
                    f"{name} came back as {arrays[name].dtype}, not {leaf.dtype}: set "
                    "jax_enable_x64 for the whole process, for arrays are read in other threads."
                )
    return jax.tree.unflatten(jax.tree.structure(abstract_state), [arrays[name] for name in wanted])


def _files(directory: Path) -> Iterator[str]:
    """The files under a folder, relative to it, without links."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path.relative_to(directory).as_posix()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    """An exception in a few words."""
    code = re.search(r"os_error_code='(\d+)'", str(error))  # in the messages of TensorStore
    if code:
        return os.strerror(int(code[1])).lower()
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(error.filename or '').name}: {error.strerror.lower()}".removeprefix(": ")
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
