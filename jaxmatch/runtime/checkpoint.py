"""Checkpoints of a run: written in the background, complete or absent, and verified when read.

Orbax (https://orbax.readthedocs.io) writes the arrays; a list of the SHA-256 of every file is
added last. On this machine and on network file systems all of it happens in a folder with another
name, which is then renamed to its step; in a bucket, which has no rename, a step's folder without
its list is no checkpoint. So a step was once complete, and the list tells whether it still is: the
array files alone would load a flipped bit as another number.

Orbax writes to ``gs://`` itself, by TensorStore, and not to ``s3://``: there a process alone has
the arrays written to, and read from, a temporary folder of its machine.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jaxmatch.errors import DiskError, InputError
from jaxmatch.runtime import hosts, paths
from jaxmatch.runtime.paths import in_bucket, write_whole
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
        self._directory = paths.path(directory)
        if not in_bucket(self._directory):
            self._directory = self._directory.absolute()  # Orbax takes no other
        self._keep = keep
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._saves = 0

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, in order, damaged ones among them.

        What process 0 sees, in every process.
        """
        return hosts.from_leader(self._steps)

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
        if in_bucket(self._directory):
            saving = self._directory / str(step)
        named = _by_name(state)
        # Orbax takes no arrays without elements, such as the bank of an empty set.
        filled = {name: leaf for name, leaf in named.items() if leaf.size}
        tensors = {name: _describe(leaf) for name, leaf in named.items()}
        error = None
        if hosts.leader():
            try:
                with paths.as_os_errors(saving):
                    self._sweep()
                    if in_bucket(saving) and (saving / _MANIFEST).exists():
                        self._remove(saving)
                    paths.make_folder(saving)
                    write_whole(saving / _TENSORS, json.dumps(tensors, indent=1).encode())
                    write_whole(saving / _FORMAT, json.dumps(FORMAT).encode())
            except OSError as problem:
                error = self._disk_error(step, problem)
        hosts.raise_together(error)
        try:
            if _orbax_writes_to(saving):
                staged, arrays = None, saving / _ARRAYS
            else:
                staged = tempfile.TemporaryDirectory(prefix="jaxmatch-")
                arrays = Path(staged.name) / _ARRAYS
            with paths.as_os_errors(saving), jax.transfer_guard("allow"):
                response = ocp.save_async(str(arrays), filled)
        except OSError as error:
            raise self._disk_error(step, error) from error
        self._saving = self._background.submit(self._commit, step, saving, response, staged)

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[PyTree, int] | None:
        """Return (state, step) of the newest intact checkpoint, or None where there is none.

        Process 0 chooses; a checkpoint that any process cannot read all of them pass over.

        Args:
            abstract_state: the tree, shapes, dtypes and shardings of the state, as from
                ``jax.eval_shape``; without a sharding an array goes to the first local device.
            step: the only one to try. Otherwise a damaged one is passed over with a warning.

        Raises:
            InputError: in every process, where all are damaged, where ``step`` is missing or
                damaged, and where the tensors differ from those of ``abstract_state``.
        """
        self.wait()
        present = self.steps()
        if step is not None and step not in present:
            raise InputError(
                f"There is no checkpoint of step {step} in {self._directory}; "
                f"present: {', '.join(map(str, present)) or 'none'}."
            )
        damaged: list[tuple[Path, str]] = []
        for candidate in present[::-1] if step is None else [step]:
            path = self._directory / str(candidate)
            state, reason = _read(path, abstract_state)
            if reason is not None:
                damaged.append((path, reason))
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
        hosts.raise_together(error)

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

    def _commit(
        self,
        step: int,
        saving: Path,
        response: ocp.AsyncResponse[None],
        staged: tempfile.TemporaryDirectory | None,
    ) -> None:
        """Finish a save: the files, the list of their hashes, the name; then the rotation."""
        try:
            with contextlib.nullcontext() if staged is None else staged:
                response.result()
                if not hosts.leader():
                    return
                if staged is not None:
                    for name in paths.files_in(Path(staged.name)):
                        write_whole(saving / name, (Path(staged.name) / name).read_bytes())
            hashes = {name: _sha256(saving / name) for name in paths.files_in(saving)}
            write_whole(saving / _MANIFEST, json.dumps(hashes, indent=1).encode())
            if not in_bucket(saving):
                final = self._directory / str(step)
                if final.exists():
                    self._remove(final)
                saving.rename(final)
            steps = self._steps()
            up_to_now = [other for other in steps if other <= step]
            for other in steps:
                if other > step or other in up_to_now[: -self._keep]:
                    self._remove(self._directory / str(other))
        except Exception as error:  # array writers do not limit themselves to OSError
            with contextlib.suppress(OSError):
                self._sweep()
            raise self._disk_error(step, error) from error

    def _steps(self) -> list[int]:
        if in_bucket(self._directory):
            names = [name.split("/") for name in paths.files_in(self._directory)]
            found = [first for first, *rest in names if rest == [_MANIFEST]]
        elif self._directory.is_dir():
            found = [path.name for path in self._directory.iterdir()]
        else:
            found = []
        return sorted(int(name) for name in found if name.isdigit())

    def _remove(self, path: Path) -> None:
        # A kill in the middle must not leave half a checkpoint: what makes it one goes first.
        if in_bucket(path):
            (path / _MANIFEST).unlink()
            paths.remove_folder(path)
            return
        doomed = path.with_name(_REMOVING + path.name)
        path.rename(doomed)
        paths.remove_folder(doomed)

    def _sweep(self) -> None:
        """Remove what an interrupted save or removal left behind."""
        if in_bucket(self._directory):
            complete = {str(step) for step in self._steps()}
            names = {name.partition("/")[0] for name in paths.files_in(self._directory)}
            for name in filter(str.isdigit, names - complete):
                paths.remove_folder(self._directory / name)
            return
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


def check_place(folder: Path) -> None:
    """InputError where a run that trains here cannot save to ``folder``."""
    if not _orbax_writes_to(folder) and jax.process_count() > 1:
        raise InputError(
            f"several processes cannot save to {folder}, for Orbax does not write to s3://; give "
            "a --workdir in a gs:// bucket or on a file system that all hosts share."
        )


def _orbax_writes_to(path: Path) -> bool:
    return paths.scheme(path) in ("", "gs")


def _read(path: Path, abstract_state: PyTree) -> tuple[PyTree, str | None]:
    """(state, None) of an intact checkpoint, else what is wrong with it, the same in all processes.

    Every process looks at its files before Orbax reads them together: one that failed alone would
    leave the others waiting.
    """
    direct = _orbax_writes_to(path)
    reason = hosts.from_leader(lambda: _damage(path) if direct else None)
    if reason is not None:
        return None, reason
    with contextlib.ExitStack() as opened:
        error: InputError | None = None
        local = path
        try:
            if not direct:
                local = opened.enter_context(paths.on_this_machine(path))
            reason = _unreadable(local) if direct else _damage(local)
            if reason is None:
                _check_tensors(path, local, abstract_state)
        except InputError as problem:
            error = problem
        except Exception as problem:  # of whatever library: unreadable is unreadable
            reason = _reason(problem)
        _raise_everywhere(error)
        if (reason := hosts.first_problem(reason)) is not None:
            return None, reason
        state = None
        try:
            state = _load(local, abstract_state)
        except InputError as problem:
            error = problem
        except Exception as problem:
            reason = _reason(problem)
            if jax.process_count() > 1:  # Orbax's own barriers are out of step now
                error = InputError(f"The checkpoint {path} could not be read ({reason}).")
        _raise_everywhere(error)
    return state, reason


def _raise_everywhere(error: InputError | None) -> None:
    problem = hosts.first_problem(None if error is None else str(error))
    if error is not None:
        raise error
    if problem is not None:
        raise InputError(f"the checkpoint cannot be used: {problem}.")


def _damage(path: Path) -> str | None:
    """What file that was written is missing or has changed."""
    try:
        hashes = json.loads(paths.read_whole(path / _MANIFEST))
        if not isinstance(hashes, dict):
            return f"{_MANIFEST} is no list of hashes"
        present = set(paths.files_in(path))
        of_arrays = {name for name in present if name.startswith(f"{_ARRAYS}/")}
        for name in sorted({_TENSORS, *of_arrays} - hashes.keys()):
            return f"{name} is not in {_MANIFEST}"
        if not any(name.startswith(f"{_ARRAYS}/") for name in hashes):
            return f"{_MANIFEST} lists no arrays"
        for name, expected in hashes.items():
            # A name may lead elsewhere in a folder that somebody else made.
            if name not in present:
                return f"{name} is missing"
            if _sha256(path / name) != expected:
                return f"{name} has changed since it was written"
    except Exception as error:  # a file may hold anything
        return _reason(error)
    return None


def _unreadable(path: Path) -> str | None:
    """What file this process, if not process 0, cannot read."""
    if hosts.leader():
        return None
    for name in json.loads(paths.read_whole(path / _MANIFEST)):
        with (path / name).open("rb") as file:
            file.read(1)
    return None


def _check_tensors(path: Path, local: Path, abstract_state: PyTree) -> None:
    """InputError where the format or the tensors of a checkpoint are not those wanted."""
    written = json.loads((local / _FORMAT).read_text()) if (local / _FORMAT).exists() else 1
    if written != FORMAT:
        raise InputError(
            f"The checkpoint {path} has format {written}, but this version of jaxmatch reads "
            f"{FORMAT}: use the version that wrote it, or choose another folder."
        )
    found = json.loads((local / _TENSORS).read_text())
    expected = {name: _describe(leaf) for name, leaf in _by_name(abstract_state).items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise InputError(
                f"The checkpoint {path} is of another configuration, or of another version of "
                f"jaxmatch: {name} is {found.get(name, 'absent')} there but "
                f"{expected.get(name, 'absent')} here; choose another folder, or continue with "
                "what wrote it."
            )


def _load(path: Path, abstract_state: PyTree) -> PyTree:
    """Read the state."""
    wanted = _by_name(abstract_state)
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
