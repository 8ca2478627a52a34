"""Checkpoints of a run: written in the background, complete or absent, verified when read.

Orbax (https://orbax.readthedocs.io) writes the arrays. A manifest with the SHA-256 of every file is
written last. In a file system this happens in a folder with another name, which is then renamed to
the step's number. A bucket has no rename; there a folder without a manifest is no checkpoint. So
every checkpoint was once complete, and the manifest shows whether it still is: without it a flipped
bit would load as another number.

Orbax writes to ``gs://`` by TensorStore. It does not write to ``s3://``: there it writes to, and
reads from, a temporary folder of this machine, which works for a single process only.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax

from jaxmatch.errors import DiskError, InputError
from jaxmatch.runtime import checkpoint_files as files
from jaxmatch.runtime import hosts, orbax, paths
from jaxmatch.runtime.json_files import disk_error, read_object
from jaxmatch.runtime.paths import in_bucket, write_whole
from jaxmatch.types import PyTree

# Unfinished folders have these prefixes before their step.
_SAVING, _REMOVING = "saving-", "removing-"
BEST, NEWEST = "best", "newest"  # stand for the steps of these checkpoints
MARK = "best.json"  # in the folder of the checkpoints, names the best one

_log = logging.getLogger(__name__)


class Best(NamedTuple):
    """The best checkpoint of a run, which is kept beside the newest ones."""

    step: int
    key: str  # of the metric that chose it, as in metrics.jsonl
    value: float  # of that metric


class Checkpoints:
    """The newest ``keep`` checkpoints of a run, and the best one, in ``directory/<step>/``.

    It is a context manager; its end waits for the last save. If a run has several processes, all
    of them call every method and share the file system.
    """

    def __init__(self, directory: str | Path, keep: int = 3):
        """Store the settings; nothing is written before the first save.

        Raises:
            InputError: if ``keep`` is less than 1.
        """
        if keep < 1:
            raise InputError(f"keep={keep} must be at least 1.")
        self._directory = paths.path(directory)
        if not in_bucket(self._directory):
            self._directory = self._directory.absolute()  # Orbax needs an absolute path
        self._keep = keep
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._saves = 0

    def steps(self) -> list[int]:
        """The steps of all checkpoints, also of damaged ones, in order; as process 0 sees them."""
        return hosts.from_leader(self._steps)

    def best(self) -> Best | None:
        """The best checkpoint, as process 0 sees it; None if none is marked, or it is gone."""
        found = hosts.from_leader(self._marked)
        return None if found is None else Best(*found)

    def mark(self, best: Best | None) -> None:
        """Mark a checkpoint as the best one, which is never removed for newer ones; None for none.

        Raises:
            DiskError: if the mark cannot be written.
        """
        self.wait()
        error = None
        if hosts.leader():
            try:
                with paths.as_os_errors(self._directory):
                    self._mark(best)
            except OSError as problem:
                error = self._disk_error(best.step if best else 0, problem)
        hosts.raise_together(error)

    def save(self, step: int, state: PyTree, best: Best | None = None) -> None:
        """Copy ``state`` (arrays in any tree) to the host and write it in the background.

        When the call returns, the arrays may be donated. A checkpoint of the same step is replaced.
        Checkpoints of later steps are removed, because the run has fallen back behind them.

        Args:
            step: the number of steps taken.
            state: to save.
            best: marks this checkpoint as the best one, once it is complete.

        Raises:
            DiskError: if this save, or the one before, failed.
        """
        self.wait()
        # A failed save may still be writing to its folder, so every save has a new one.
        self._saves += 1
        saving = self._directory / f"{_SAVING}{step}-{self._saves}"
        if in_bucket(self._directory):
            saving = self._directory / str(step)
        named = files.arrays_by_name(state)
        # Orbax does not save arrays without elements, such as the bank of an empty set.
        filled = {name: leaf for name, leaf in named.items() if leaf.size}
        tensors = {name: files.describe(leaf) for name, leaf in named.items()}
        error = None
        if hosts.leader():
            try:
                with paths.as_os_errors(saving):
                    self._sweep()
                    if in_bucket(saving) and (saving / files.MANIFEST).exists():
                        self._remove(saving)
                    paths.make_folder(saving)
                    write_whole(saving / files.TENSORS, json.dumps(tensors, indent=1).encode())
                    write_whole(saving / files.FORMAT_FILE, json.dumps(files.FORMAT).encode())
            except OSError as problem:
                error = self._disk_error(step, problem)
        hosts.raise_together(error)
        try:
            if files.orbax_writes_to(saving):
                staged, arrays = None, saving / files.ARRAYS
            else:
                staged = tempfile.TemporaryDirectory(prefix="jaxmatch-")
                arrays = Path(staged.name) / files.ARRAYS
            with paths.as_os_errors(saving), jax.transfer_guard("allow"):
                response = orbax.save_async(str(arrays), filled)
        except OSError as error:
            raise self._disk_error(step, error) from error
        self._saving = self._background.submit(self._commit, step, saving, response, staged, best)

    def restore(
        self, abstract_state: PyTree, step: int | str | None = None
    ) -> tuple[PyTree, int] | None:
        """Restore the newest intact checkpoint: (state, step), or None if there is no checkpoint.

        All processes restore the same checkpoint: one that any process cannot read counts as
        damaged. Damaged ones are skipped with a warning.

        Args:
            abstract_state: the tree, shapes, dtypes and shardings of the state, as from
                ``jax.eval_shape``; without a sharding an array goes to the first local device.
            step: restore this checkpoint, and no other; "best" for the best one.

        Raises:
            InputError: in every process, if all checkpoints are damaged, if that of ``step`` is
                missing or damaged, or if the tensors differ from those of ``abstract_state``.
        """
        self.wait()
        present = self.steps()
        if step == BEST:
            best = self.best()
            if best is None:
                raise InputError(
                    f"{self._directory} has no best checkpoint: only a run with keep_best or "
                    "select, such as validation/accuracy, has one after an evaluation; give the "
                    "number of a step, "
                    f"present: {', '.join(map(str, present)) or 'none'}."
                )
            step = best.step
        if step is not None and step not in present:
            raise InputError(
                f"There is no checkpoint of step {step} in {self._directory}; "
                f"present: {', '.join(map(str, present)) or 'none'}."
            )
        damaged: list[tuple[Path, str]] = []
        for candidate in present[::-1] if step is None else [int(step)]:
            path = self._directory / str(candidate)
            state, problem = files.read_checkpoint(path, abstract_state)
            if problem is not None:
                damaged.append((path, problem))
                continue
            for skipped, problem in damaged:
                _log.warning(
                    "The checkpoint %s is damaged (%s); %s is used instead.", skipped, problem, path
                )
            return state, candidate
        if not damaged:
            return None
        raise InputError(
            "No intact checkpoint: "
            + "; ".join(f"{path} is damaged ({problem})" for path, problem in damaged)
            + ". Choose another step or train anew in another folder."
        )

    def wait(self) -> None:
        """Wait until the last save is finished.

        Raises:
            DiskError: if it failed.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        error = saving.exception()
        if error is not None and not isinstance(error, DiskError):
            raise error
        hosts.raise_together(error)

    def close(self) -> None:
        """Wait until the last save is finished; no other may follow."""
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
        """Close; a failed save does not hide an earlier error."""
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
        response: orbax.v1.AsyncResponse[None],
        staged: tempfile.TemporaryDirectory | None,
        best: Best | None,
    ) -> None:
        """Finish a save: files, manifest, name, mark; then remove old checkpoints."""
        try:
            with contextlib.nullcontext() if staged is None else staged:
                response.result()
                if not hosts.leader():
                    return
                if staged is not None:
                    for name in paths.files_in(Path(staged.name)):
                        write_whole(saving / name, (Path(staged.name) / name).read_bytes())
            hashes = {name: files.sha256(saving / name) for name in paths.files_in(saving)}
            write_whole(saving / files.MANIFEST, json.dumps(hashes, indent=1).encode())
            if not in_bucket(saving):
                final = self._directory / str(step)
                doomed = final.with_name(_REMOVING + final.name)
                replaced = final.exists()
                if replaced:  # a kill must not find neither of the two
                    final.rename(doomed)
                saving.rename(final)
                if replaced:
                    paths.remove_folder(doomed)
            if best is not None:
                self._mark(best)
            marked, steps = self._marked(), self._steps()
            up_to_now = [other for other in steps if other <= step]
            old = set(up_to_now[: -self._keep]) - ({marked[0]} if marked else set())
            for other in steps:
                if other > step or other in old:
                    self._remove(self._directory / str(other))
        except Exception as error:  # writers of arrays raise more than OSError
            with contextlib.suppress(OSError):
                self._sweep()
            raise self._disk_error(step, error) from error

    def _steps(self) -> list[int]:
        if in_bucket(self._directory):
            names = [name.split("/") for name in paths.files_in(self._directory)]
            found = [first for first, *rest in names if rest == [files.MANIFEST]]
        elif self._directory.is_dir():
            found = [path.name for path in self._directory.iterdir()]
        else:
            found = []
        return sorted(int(name) for name in found if name.isdigit())

    def _marked(self) -> tuple[int, str, float] | None:
        """The values of the :class:`Best` that is marked and present."""
        found: dict[str, Any] = {}
        with contextlib.suppress(InputError):  # a damaged mark marks nothing
            found = read_object(self._directory / MARK) or {}
        step, key, value = (found.get(name) for name in Best._fields)
        if type(step) is not int or not isinstance(key, str) or not isinstance(value, int | float):
            return None
        return (step, key, value) if step in self._steps() else None

    def _mark(self, best: Best | None) -> None:
        path = self._directory / MARK
        if best is not None:
            write_whole(path, json.dumps(best._asdict()).encode())
        elif path.exists():
            path.unlink()

    def _remove(self, path: Path) -> None:
        # A kill in between must not leave half a checkpoint, so its manifest or name goes first.
        if in_bucket(path):
            (path / files.MANIFEST).unlink()
            paths.remove_folder(path)
            return
        doomed = path.with_name(_REMOVING + path.name)
        path.rename(doomed)
        paths.remove_folder(doomed)

    def _sweep(self) -> None:
        """Remove the remains of interrupted saves and removals."""
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
            f"({files.reason(error)}): make room or give another folder; earlier ones are intact."
        )


def check_place(folder: Path) -> None:
    """Check that the processes of this run can save to ``folder``.

    Raises:
        InputError: if several processes cannot save to such a place.
        DiskError: if a file is in the way, or the folder may not be written.
    """
    if not in_bucket(folder):
        above = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        code = errno.EACCES if above.is_dir() else errno.ENOTDIR
        if code == errno.ENOTDIR or not os.access(above, os.W_OK):
            raise disk_error(folder, OSError(code, os.strerror(code)))
    if not files.orbax_writes_to(folder) and jax.process_count() > 1:
        raise InputError(
            f"several processes cannot save to {folder}, because Orbax does not write to s3://; "
            "give a --workdir in a gs:// bucket or on a file system that all hosts share."
        )
