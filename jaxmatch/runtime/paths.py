"""Text to path: folders of this machine, and ``gs://`` and ``s3://`` buckets, one place for both.

A path of this machine is pathlib's. One in a bucket has the same methods, by etils.epath and fsspec
(https://github.com/google/etils, https://filesystem-spec.readthedocs.io). A bucket has no folders,
no rename and no append: what needs one of these goes through the functions here.
"""

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from etils import epath
from etils.epath.backend import fsspec_backend

from jaxmatch.errors import DiskError, InputError

EXTRAS = {"gs": "gcs", "s3": "s3"}
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)(.*)", re.DOTALL)
PERIOD = 60.0  # seconds between two copies of a growing file to a bucket


def path(text: str | os.PathLike) -> Path:
    """The path that ``text`` names, on this machine or in a bucket.

    A pathlib.Path that was made of a bucket's address, and so lost a slash, is understood.

    Raises:
        InputError: if the scheme is unknown, its extra is not installed, or the bucket cannot be
            reached.
    """
    if isinstance(text, epath.Path) and not isinstance(text, Path):
        return cast(Path, text)
    found = _URL.match(os.fspath(text))
    if found is None or (found[2] == "/" and found[1] not in EXTRAS):
        return Path(text)
    scheme, slashes, place = found.groups()
    if scheme not in EXTRAS:
        known = " and ".join(f"{name}://" for name in EXTRAS)
        raise InputError(f"{text}: {scheme}:// is not known; give a folder, or one under {known}.")
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
    """Whether a path is one of a bucket."""
    return not isinstance(path, Path)


def scheme(path: Path) -> str:
    """ "gs" or "s3"; "" on this machine."""
    return str(path).partition("://")[0] if in_bucket(path) else ""


def absolute(path: Path) -> Path:
    """The same place for every working directory, without links."""
    return path if in_bucket(path) else Path(os.path.realpath(path))


def make_folder(path: Path) -> None:
    """Make a folder and those above it; a bucket has none. Raises OSError."""
    if not in_bucket(path):
        path.mkdir(parents=True, exist_ok=True)


def read_whole(path: Path) -> bytes:
    """The content of a file. Raises OSError, in a bucket too."""
    with as_os_errors(path):
        return path.read_bytes()


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file at once, so that no reader and no kill ever meets half of it.

    On this machine that is a rename, in a bucket one upload. A device or a pipe is written to.

    Raises:
        OSError: if it cannot be written; the file is as it was.
    """
    if in_bucket(path):
        with as_os_errors(path):
            path.write_bytes(content)
        return
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = Path(os.path.realpath(path))  # a link stays one
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_output(path: Path, content: bytes) -> None:
    """As :func:`write_whole`, for a file that the user has named. Raises DiskError."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise DiskError(
            f"{path} could not be written ({reason(error)}): make room, check the folder's "
            "permissions or choose another --output."
        ) from error


def check_output(path: Path) -> None:
    """Before long work: InputError unless a file can be written to ``path`` in the end."""
    if in_bucket(path):
        return
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file in it.")
    if path.exists() and not path.is_file():
        return
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} to write {path.name} to.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} may not be written to; choose another --output.")


def files_in(folder: Path) -> list[str]:
    """The files of a folder and the folders in it, relative to it and sorted; no links."""
    if not in_bucket(folder):
        found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        return sorted(path.relative_to(folder).as_posix() for path in found)
    with as_os_errors(folder):
        prefix = str(folder).partition("://")[2] + "/"
        return sorted(name.removeprefix(prefix) for name in _files(folder).find(str(folder)))


def remove_folder(path: Path) -> None:
    """Remove a folder with all that is in it; none is there afterwards, or OSError."""
    if not in_bucket(path):
        shutil.rmtree(path)
    elif names := files_in(path):
        with as_os_errors(path):
            _files(path).rm([str(path / name) for name in names])


@contextlib.contextmanager
def on_this_machine(folder: Path) -> Iterator[Path]:
    """A copy of a bucket's folder for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="jaxmatch-") as name:
        for file in files_in(folder):
            copy = Path(name) / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(read_whole(folder / file))
        yield Path(name)


def size(path: Path) -> int:
    """Bytes of a file. Raises OSError."""
    if not in_bucket(path):
        return path.stat().st_size
    with as_os_errors(path):
        return _files(path).info(str(path))["size"]


def reason(error: OSError) -> str:
    """What went wrong, in a few words."""
    return error.strerror or str(error) or type(error).__name__


class Growing:
    """A file that grows while others read it; nothing of it is ever lost to :meth:`flush`.

    On this machine every addition is written at once. In a bucket, where nothing can be appended,
    the file grows in a temporary folder of this machine and is copied there as a whole: at an
    addition at most once in :data:`PERIOD` seconds, and whenever :meth:`flush` is called.
    """

    def __init__(self, path: Path):
        """Go on with the file at ``path``, or begin it. Raises OSError."""
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
        """Add to the file. Raises OSError."""
        self._file.write(content)
        self._file.flush()
        self.written()

    def written(self) -> None:
        """Say that something else has added to :attr:`local`. Raises OSError."""
        self._new = True
        if self._temporary is not None and time.monotonic() - self._copied >= PERIOD:
            self.flush()

    def flush(self) -> None:
        """Have all that was added in its place. Raises OSError."""
        if self._temporary is not None and self._new:
            write_whole(self.path, self.local.read_bytes())
            self._copied, self._new = time.monotonic(), False

    def close(self) -> None:
        """Flush and close. Raises OSError."""
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
    """InputError unless ``bucket`` ("gs://NAME") can be reached; asked once."""
    files = fsspec_backend.fs(bucket)
    # Other hosts, and TensorStore, write to the same folders behind its back.
    files.dircache.use_listings_cache = False
    try:
        with as_os_errors(epath.Path(bucket)):
            files.info(bucket)
    except FileNotFoundError as error:
        raise InputError(
            f"there is no bucket {bucket}, or nobody may read it with your credentials."
        ) from error
    except OSError as error:
        raise InputError(
            f"{bucket} cannot be reached ({reason(error)}); check its name, your credentials and "
            "the network."
        ) from error


@contextlib.contextmanager
def as_os_errors(path: Path | epath.Path) -> Iterator[None]:
    """Errors of the clients of a bucket, which have classes of their own, as OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if isinstance(path, Path):
            raise
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(errno.EIO, text[:200]) from error
