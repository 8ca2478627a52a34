"""Compiles the C++ of this folder at first use with the machine's compiler, and loads it.

The extra ``cpu`` installs oneDNN; a compiler of C++17 must be there. The user's cache keeps the
compiled library under a key of all that it depends on: sources, compiler, oneDNN, jaxlib, the kind
of processor. Nothing here ever stops a program: without the library XLA computes, and
:attr:`Library.text` gives the reason.

``JAXMATCH_ONEDNN=off`` turns the library off; ``JAXMATCH_ONEDNN=DIR`` takes the oneDNN in
``DIR/include`` and ``DIR/lib`` in place of the installed one. oneDNN starts one OpenMP thread for
each core that the process may use, or ``OMP_NUM_THREADS``.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxmatch.runtime.compilation import cache_folder

VARIABLE = "JAXMATCH_ONEDNN"
OFF = ("0", "off", "false", "no")
PACKAGES = ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")
HEADER, LIBRARY = "oneapi/dnnl/dnnl.hpp", "libdnnl.so.3"
FUNCTIONS = ("jaxmatch_contract", "jaxmatch_convolve", "jaxmatch_sums")
COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-DNDEBUG")
SECONDS = 300  # time limit of the compiler, which takes about 5
SLOWER = "convolutions by XLA, about 1.7 times slower"

_lock = threading.Lock()
_library: "Library | None" = None


@dataclass(frozen=True, kw_only=True)
class Library:
    """The library that computes convolutions on a CPU.

    Attributes:
        text: one line that says what computes convolutions, and if it is XLA, why.
        dtypes: dtypes in which the library computes; none if it is absent.
    """

    text: str
    dtypes: tuple[str, ...] = ()

    @property
    def present(self) -> bool:
        """Whether the library is there."""
        return bool(self.dtypes)


class _UnavailableError(Exception):
    """There is no library; the text gives the reason in a few words."""


def library() -> Library:
    """The library of this process; the first call compiles and loads it. It never raises."""
    global _library
    with _lock:
        if _library is None:
            _library = _load()
        return _library


def _load() -> Library:
    if os.environ.get(VARIABLE, "").lower() in OFF:
        return Library(text=f"convolutions by XLA ({VARIABLE} is off)")
    try:
        loaded = _open(_built())
        loaded.jaxmatch_onednn.restype = ctypes.c_char_p
        loaded.jaxmatch_has_bfloat16.restype = ctypes.c_bool
        version = loaded.jaxmatch_onednn().decode()
        if version.startswith("error: "):
            raise _UnavailableError(version.removeprefix("error: "))
        for name in FUNCTIONS:
            capsule = jax.ffi.pycapsule(getattr(loaded, name))
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    except _UnavailableError as error:
        return Library(text=f"{SLOWER}: {error}")
    except Exception as error:  # XLA computes without the library
        return Library(text=f"{SLOWER}: {type(error).__name__}: {error}")
    dtypes = ("float32", "bfloat16") if loaded.jaxmatch_has_bfloat16() else ("float32",)
    return Library(text=f"convolutions by {version}", dtypes=dtypes)


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise _UnavailableError(str(error)) from error


def _built() -> Path:
    """The path of the compiled library, from the cache or newly compiled."""
    if sys.platform != "linux":
        raise _UnavailableError(f"oneDNN is not used on {sys.platform}")
    include, libraries = _onednn()
    compiler = _compiler()
    command = [
        *(compiler, *FLAGS),
        *map(str, sorted(_sources().glob("*.cc"))),
        *("-isystem", jax.ffi.include_dir(), "-isystem", str(include)),
        *(f"-L{libraries}", f"-l:{LIBRARY}", f"-Wl,-rpath,{libraries}"),
    ]
    headers = [
        include / Path(HEADER).with_name(name) for name in ("dnnl_version.h", "dnnl_config.h")
    ]
    key = _key(command, headers, libraries / LIBRARY)
    folder = cache_folder().parent.parent / "onednn" / cache_folder().name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(folder)
    except OSError:  # without a cache the process compiles its own
        return _compile(command, Path(tempfile.mkdtemp(prefix="jaxmatch-")) / f"{key}.so")
    path = folder / f"{key}.so"
    with _locked(folder / f"{key}.lock"):  # ten processes that start at once compile once
        if not _whole(path):
            _compile(command, path)
    owner = path.stat()
    if owner.st_uid not in (os.getuid(), 0) or owner.st_mode & stat.S_IWOTH:
        raise _UnavailableError(f"{path} may have been written by others; delete it")
    return path


def _onednn() -> tuple[Path, Path]:
    """The folders of oneDNN's headers and of its library."""
    if given := os.environ.get(VARIABLE):
        prefix = Path(given).resolve()
        places = ("lib", "lib64", f"lib/{platform.machine()}-linux-gnu")  # the last one Debian's
        libraries = next(
            (prefix / place for place in places if (prefix / place / LIBRARY).is_file()),
            prefix / "lib",
        )
        found = prefix / "include", libraries
    else:
        try:
            found = tuple(
                next(
                    Path(str(file.locate())).resolve().parents[len(Path(name).parts) - 1]
                    for package in PACKAGES
                    for file in importlib.metadata.files(package) or ()
                    if file.as_posix().endswith(name)
                )
                for name in (HEADER, LIBRARY)
            )
        except (importlib.metadata.PackageNotFoundError, StopIteration):
            raise _UnavailableError(
                'oneDNN is not installed; pip install "jaxmatch[cpu]"'
            ) from None
    for folder, name in zip(found, (HEADER, LIBRARY), strict=True):
        if not (folder / name).is_file():
            raise _UnavailableError(f"there is no {name} in {folder}")
    include, libraries = found
    return include, libraries


def _compiler() -> str:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    for name in names:
        if path := shutil.which(name):
            return path
    raise _UnavailableError(f"no C++ compiler ({', '.join(names)}); install g++")


def _sources() -> Path:
    return Path(__file__).parent


def _key(command: list[str], headers: list[Path], library: Path) -> str:
    """The key in the cache of the library that ``command`` compiles."""
    files = [*sorted(_sources().glob("*.cc")), *sorted(_sources().glob("*.h")), *headers]
    text = [
        *command,
        _run([command[0], "--version"]),
        importlib.metadata.version("jaxlib"),
        str(library.stat().st_mtime_ns),
        *(file.read_text() for file in files if file.is_file()),
    ]
    return hashlib.sha256("\0".join(text).encode()).hexdigest()[:16]


def _compile(command: list[str], path: Path) -> Path:
    """Compile to ``path`` and write its hash beside it, so that a truncated file is noticed."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        _run([*command, "-o", str(fresh)])
        if not fresh.is_file():
            raise _UnavailableError(f"{command[0]} wrote nothing")
        fresh.chmod(0o700)
        digest = Path(folder) / "digest"
        digest.write_text(_digest(fresh))
        fresh.replace(path)
        digest.replace(_digest_file(path))
    return path


def _whole(path: Path) -> bool:
    try:
        return _digest(path) == _digest_file(path).read_text()
    except OSError:
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _UnavailableError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise _UnavailableError(f"{command[0]} failed: {lines[0].strip()}")
    return done.stdout


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, if the file system has locks."""
    import fcntl

    with path.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
