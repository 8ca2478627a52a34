"""Paths on this machine and in ``gs://`` and ``s3://`` buckets, with the same functions for both.

A path on this machine is a ``pathlib.Path``. A path in a bucket has the same methods, through
etils.epath and fsspec (https://github.com/google/etils, https://filesystem-spec.readthedocs.io). A
bucket has no folders, no rename and no append; the functions here work without them.
"""

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from etils import epath
from etils.epath.backend import fsspec_backend

from jaxmatch.errors import DiskError, InputError

EXTRAS = {"gs": "gcs", "s3": "s3"}
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)(.*)", re.DOTALL)
_STREAMS = {"stdout": 1, "stderr": 2}
_STREAM = re.compile(r"/dev/(?P<name>stdout|stderr)|/(?:dev|proc/self)/fd/(?P<number>\d+)")
PERIOD = 60.0  # the least seconds between two copies of a growing file to a bucket


def path(text: str | os.PathLike) -> Path:
    """The path that ``text`` names, on this machine or in a bucket.

    A ``~`` at its beginning is the user's home, which shells do not expand inside a flag.
    ``text`` may also be a ``pathlib.Path`` of a bucket's address, which has lost a slash.

    Raises:
        InputError: if the scheme is unknown, its extra is not installed, or the bucket cannot be
            reached.
    """
    if isinstance(text, epath.Path) and not isinstance(text, Path):
        return cast(Path, text)
    found = _URL.match(os.fspath(text))
    if found is None or (found[2] == "/" and found[1] not in EXTRAS):
        return Path(os.path.expanduser(text))
    scheme, slashes, place = found.groups()
    if scheme not in EXTRAS:
        known = " and ".join(f"{name}://" for name in EXTRAS)
        raise InputError(
            f"{text}: unknown scheme {scheme}://; give a folder, or one under {known}."
        )
    bucket = place.partition("/")[0]
    if not bucket or (slashes == "/" and isinstance(text, str)):
        raise InputError(f"{text} names no bucket; write {scheme}://BUCKET/FOLDER.")
    if not installed(_PACKAGES[scheme]):
        raise InputError(
            f'{text}: buckets of {scheme}:// need pip install "jaxmatch[{EXTRAS[scheme]}]".'
        )
    check_bucket(f"{scheme}://{bucket}")
    return cast(Path, epath.Path(f"{scheme}://{place}"))


def in_bucket(path: Path) -> bool:
    """Whether a path lies in a bucket."""
    return not isinstance(path, Path)


def scheme(path: Path) -> str:
    """The bucket's scheme, "gs" or "s3"; "" on this machine."""
    return str(path).partition("://")[0] if in_bucket(path) else ""


def absolute(path: Path) -> Path:
    """The path from the root, with symbolic links resolved."""
    return path if in_bucket(path) else Path(os.path.realpath(path))


def is_file(path: Path) -> bool:
    """Whether there is a file; not if its name is too long, or in a folder that is closed."""
    try:
        return path.is_file()
    except OSError:  # up to Python 3.13
        return False


def make_folder(path: Path) -> None:
    """Make a folder and its parents; in a bucket do nothing.

    Raises:
        OSError: if it cannot be made.
    """
    if not in_bucket(path):
        path.mkdir(parents=True, exist_ok=True)


def read_whole(path: Path) -> bytes:
    """The content of a file.

    Raises:
        OSError: if it cannot be read, also in a bucket.
    """
    with as_os_errors(path):
        return path.read_bytes()


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file completely or not at all, even if the process is killed meanwhile.

    On this machine it renames a temporary file; in a bucket it uploads once. It writes to a device
    or a pipe directly.

    Raises:
        OSError: if it cannot be written; the old file stays.
    """
    if in_bucket(path):
        with as_os_errors(path):
            path.write_bytes(content)
        return
    if (stream := _stream(path)) is not None:
        with os.fdopen(os.dup(stream), "wb") as file:
            file.write(content)
        return
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = Path(os.path.realpath(path))  # replaces the target of a link, not the link
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_output(path: Path, content: bytes) -> None:
    """As :func:`write_whole`, for a file that the user has named.

    Raises:
        DiskError: if it cannot be written.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> DiskError:
    return DiskError(
        f"{path} could not be written ({reason(error)}): make room, check the folder's "
        "permissions or choose another --output."
    )


@contextlib.contextmanager
def writing_output(path: Path) -> Iterator[BinaryIO]:
    """A file that the user has named, to write little by little within the block.

    It replaces ``path`` at the end of the block; if the block raises, the old file stays. A device
    or a pipe is written to directly.

    Raises:
        DiskError: if it cannot be written.
    """
    local, stream = path, _stream(path)
    if in_bucket(path):
        folder = tempfile.TemporaryDirectory(prefix="jaxmatch-")
        local = Path(folder.name) / path.name
    direct = stream is not None or (local.exists() and not local.is_file())
    local = local if direct else Path(os.path.realpath(local))
    temporary = local if direct else local.with_name(f".{local.name}.{os.getpid()}")
    try:
        opened = temporary.open("wb") if stream is None else os.fdopen(os.dup(stream), "wb")
        with opened as file:
            yield file
        if in_bucket(path):
            write_whole(path, temporary.read_bytes())
        elif not direct:
            temporary.replace(local)
    except OSError as error:
        # A reader has closed the pipe, or another file than this one made the error.
        if isinstance(error, BrokenPipeError) or error.filename not in (None, str(temporary)):
            raise
        raise _cannot_write(path, error) from error
    finally:
        if not direct:
            temporary.unlink(missing_ok=True)


def _stream(path: Path) -> int | None:
    """The number of the open file that a name such as ``/dev/stdout`` means; None for others.

    What is behind it is written on, and neither emptied nor replaced: ``>> file`` adds to a file.
    """
    found = _STREAM.fullmatch(str(path))
    if found is None:
        return None
    return _STREAMS[found["name"]] if found["name"] else int(found["number"])


def check_output(path: Path) -> None:
    """Check, before long work starts, that a file can be written to ``path``.

    Raises:
        InputError: if it cannot.
    """
    if in_bucket(path) or _stream(path) is not None:
        return
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file in it.")
    if path.exists() and not path.is_file():
        return
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} for {path.name}; create it first.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} is not writable; choose another --output.")


def check_replaces(path: Path, beginnings: Sequence[bytes], content: str) -> None:
    """Check that a file which is there is one of the command's own, so that none is lost.

    Args:
        path: to be written to.
        beginnings: how files of the command begin; an empty file may be replaced, too.
        content: what they are, for the message.

    Raises:
        InputError: if the file at ``path`` begins otherwise, or cannot be read.
    """
    if _stream(path) is not None or not path.is_file():
        return
    try:
        with as_os_errors(path), path.open("rb") as file:
            begins = file.read(max(map(len, beginnings)))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)}).") from error
    if begins and not begins.startswith(tuple(beginnings)):
        raise InputError(
            f"{path} exists, is no file of {content}, and would be lost; give another --output."
        )


def files_in(folder: Path) -> list[str]:
    """All files below a folder, without links: sorted paths relative to it."""
    if not in_bucket(folder):
        found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        return sorted(path.relative_to(folder).as_posix() for path in found)
    with as_os_errors(folder):
        prefix = str(folder).partition("://")[2] + "/"
        return sorted(name.removeprefix(prefix) for name in _files(folder).find(str(folder)))


def remove_folder(path: Path) -> None:
    """Remove a folder with its content.

    Raises:
        OSError: if it cannot be removed.
    """
    if not in_bucket(path):
        shutil.rmtree(path)
    elif names := files_in(path):
        with as_os_errors(path):
            _files(path).rm([str(path / name) for name in names])


@contextlib.contextmanager
def on_this_machine(folder: Path) -> Iterator[Path]:
    """A temporary copy of a bucket's folder, for the duration of the block."""
    with tempfile.TemporaryDirectory(prefix="jaxmatch-") as name:
        for file in files_in(folder):
            copy = Path(name) / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(read_whole(folder / file))
        yield Path(name)


def size(path: Path) -> int:
    """Bytes of a file.

    Raises:
        OSError: if it cannot be read.
    """
    if not in_bucket(path):
        return path.stat().st_size
    with as_os_errors(path):
        return _files(path).info(str(path))["size"]


def reason(error: OSError) -> str:
    """An error in a few words."""
    return error.strerror or str(error) or type(error).__name__


class Growing:
    """A file that is appended to while others may read it.

    On this machine every addition is written at once. A bucket has no append: there the file grows
    in a temporary folder of this machine and is copied to the bucket as a whole, by :meth:`flush`
    and by additions, at most once in :data:`PERIOD` seconds.

    Attributes:
        path: of the file.
        local: of the file on this machine.
    """

    def __init__(self, path: Path):
        """Open the file at ``path`` to append to it, or create it.

        Raises:
            OSError: if that fails.
        """
        self.path, self.local = path, path
        self._temporary: tempfile.TemporaryDirectory | None = None
        self._copied, self._new = -PERIOD, False
        if in_bucket(path):
            with as_os_errors(path):
                before = path.read_bytes() if path.exists() else b""
            self._temporary = tempfile.TemporaryDirectory(prefix="jaxmatch-")
            self.local = Path(self._temporary.name) / path.name
            self.local.write_bytes(before)
        else:
            make_folder(path.parent)
        self._file = self.local.open("ab")

    def write(self, content: bytes) -> None:
        """Append to the file.

        Raises:
            OSError: if that fails.
        """
        self._file.write(content)
        self._file.flush()
        self.written()

    def written(self) -> None:
        """Note an addition to :attr:`local`; call it if something else has appended there.

        Raises:
            OSError: if the file is due to be copied, but cannot be.
        """
        self._new = True
        if self._temporary is not None and time.monotonic() - self._copied >= PERIOD:
            self.flush()

    def flush(self) -> None:
        """Copy all additions to :attr:`path`.

        Raises:
            OSError: if that fails.
        """
        if self._temporary is not None and self._new:
            write_whole(self.path, self.local.read_bytes())
            self._copied, self._new = time.monotonic(), False

    def close(self) -> None:
        """Flush and close.

        Raises:
            OSError: if the last additions cannot be copied.
        """
        try:
            with self._file:
                self.flush()
        finally:
            if self._temporary is not None:
                self._temporary.cleanup()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def _files(path: Path) -> Any:
    """The file system of a bucket."""
    return fsspec_backend.fs(str(path))


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


@cache
def check_bucket(bucket: str) -> None:
    """Check, once in this process, that ``bucket`` ("gs://NAME") can be reached.

    Raises:
        InputError: if it cannot.
    """
    files = fsspec_backend.fs(bucket)
    # Other hosts and TensorStore write to the same folders, so cached listings would be outdated.
    files.dircache.use_listings_cache = False
    try:
        with as_os_errors(epath.Path(bucket)):
            files.info(bucket)
    except FileNotFoundError as error:
        raise InputError(
            f"there is no bucket {bucket}, or your credentials do not allow reading it; check both."
        ) from error
    except OSError as error:
        raise InputError(
            f"{bucket} cannot be reached ({reason(error)}); check its name, your credentials and "
            "the network."
        ) from error


@contextlib.contextmanager
def as_os_errors(path: Path | epath.Path) -> Iterator[None]:
    """Turn errors of a bucket's client, which have classes of their own, into OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if isinstance(path, Path):
            raise
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(errno.EIO, text[:200]) from error
