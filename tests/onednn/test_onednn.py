"""The library compiles once, where it can; elsewhere XLA computes, and one line says why."""

import os
import platform
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxmatch.onednn import loading as module
from jaxmatch.onednn.loading import library

PROGRAM = """
import jax, jax.numpy as jnp
from jaxmatch import onednn
from jaxmatch.models.contraction import convolve
images, kernel = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 2))
value = jax.jit(lambda x, k: convolve(x, k, 1, "SAME"))(images, kernel)
print(onednn.library().text)
print(float(value.sum()))
"""
needs_library = pytest.mark.skipif(
    not library().present, reason=f"this machine has no compiler or no oneDNN: {library().text}"
)


def start(cache, **variables):
    """What PROGRAM prints, with a user's cache folder ``cache``."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_NUM_CPU_DEVICES": "1"}
    environment.pop(module.VARIABLE, None)
    environment |= {name: str(value) for name, value in variables.items()}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    text, total = done.stdout.splitlines()
    assert float(total) == 3 * 2 * 2 * (4 * 4 + 8 * 6 + 4 * 9)
    return text


def kept(cache):
    return sorted(cache.rglob("*.so"))


@needs_library
def test_ten_processes_compile_once_and_later_ones_never(tmp_path):
    wrapper = tmp_path / "c++"
    count = f'[ "$1" = --version ] || echo >> {tmp_path}/count'
    wrapper.write_text(f'#!/bin/sh\n{count}\nexec {module._compiler()} "$@"\n')
    wrapper.chmod(0o755)
    with ThreadPoolExecutor(10) as pool:
        texts = set(pool.map(lambda _: start(tmp_path / "cache", CXX=wrapper), range(10)))
    assert len(texts) == 1
    assert texts.pop().startswith("convolutions by oneDNN 3.")
    assert (tmp_path / "count").read_text() == "\n"
    (built,) = kept(tmp_path)
    assert start(tmp_path / "cache", CXX=wrapper) == library().text
    assert kept(tmp_path) == [built]
    assert not list(built.parent.glob("tmp*"))


@needs_library
def test_another_compiler_or_oneDNN_compiles_anew(tmp_path):
    include, libraries = module._onednn()
    other = tmp_path / "prefix"
    (other / "include").mkdir(parents=True)
    (other / "include" / "oneapi").symlink_to(include / "oneapi")
    folder = other / "lib" / f"{platform.machine()}-linux-gnu"
    folder.mkdir(parents=True)
    (folder / module.LIBRARY).symlink_to(libraries / module.LIBRARY)
    start(tmp_path)
    assert start(tmp_path, JAXMATCH_ONEDNN=other) == library().text
    assert len(kept(tmp_path)) == 2


@needs_library
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert start(blocked) == library().text


@needs_library
def test_a_library_that_others_may_write_is_not_loaded(tmp_path):
    start(tmp_path)
    (built,) = kept(tmp_path)
    built.chmod(built.stat().st_mode | stat.S_IWOTH)
    assert "delete it" in start(tmp_path)


@needs_library
@pytest.mark.parametrize("damage", ["empty", "cut"])
def test_a_damaged_library_is_compiled_anew(tmp_path, damage):
    start(tmp_path)
    (built,) = kept(tmp_path)
    content = built.read_bytes()
    built.write_bytes(b"" if damage == "empty" else content[:1000])
    assert start(tmp_path) == library().text
    assert len(built.read_bytes()) == len(content)


@needs_library
def test_threads_follow_the_affinity_and_the_variable(tmp_path):
    threads = len(os.sched_getaffinity(0))
    plural = "threads" if threads > 1 else "thread"
    assert start(tmp_path).endswith(f", {threads} {plural}")
    assert start(tmp_path, OMP_NUM_THREADS=1).endswith(", 1 thread")
    first, *_ = sorted(os.sched_getaffinity(0))
    if shutil.which("taskset"):
        pinned = subprocess.run(
            ["taskset", "-c", str(first), sys.executable, "-c", PROGRAM],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ", 1 thread\n" in pinned.stdout


def compiler(folder, text):
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@needs_library
def test_what_is_missing_or_fails_is_named(tmp_path):
    assert (
        start(tmp_path, CXX="absent") == f"{module.SLOWER}: no C++ compiler (absent); install g++"
    )
    failing = compiler(tmp_path, 'echo "x.cc:1: error: no such thing" >&2; exit 1')
    assert "error: no such thing" in start(tmp_path, CXX=failing)
    lying = compiler(tmp_path, "exit 0")
    assert start(tmp_path, CXX=lying).startswith(module.SLOWER)
    assert not kept(tmp_path)
    old = tmp_path / "old"
    shutil.copytree(module._onednn()[0] / "oneapi", old / "include" / "oneapi")
    (old / "lib").mkdir()
    (old / "lib" / module.LIBRARY).symlink_to(module._onednn()[1] / module.LIBRARY)
    assert start(tmp_path, JAXMATCH_ONEDNN=old).startswith("convolutions by oneDNN")
    version = old / "include" / "oneapi" / "dnnl" / "dnnl_version.h"
    version.write_text(version.read_text().replace("VERSION_MAJOR 3", "VERSION_MAJOR 2"))
    assert "oneDNN 3 is needed" in start(tmp_path, JAXMATCH_ONEDNN=old)
    newer = version.read_text().replace("VERSION_MAJOR 2", "VERSION_MAJOR 3")
    version.write_text(newer.replace("VERSION_MINOR 2", "VERSION_MINOR 3"))
    assert "older than its headers" in start(tmp_path, JAXMATCH_ONEDNN=old)
    missing = start(tmp_path, JAXMATCH_ONEDNN=tmp_path / "nowhere")
    assert (
        missing == f"{module.SLOWER}: there is no {module.HEADER} in {tmp_path / 'nowhere/include'}"
    )


def test_it_can_be_turned_off(tmp_path):
    for word in ("off", "0"):
        text = start(tmp_path, JAXMATCH_ONEDNN=word)
        assert text == "convolutions by XLA (JAXMATCH_ONEDNN is off)"
    assert not kept(tmp_path)


def test_without_the_packages_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("absent-package",))
    monkeypatch.delenv(module.VARIABLE, raising=False)
    with pytest.raises(module._UnavailableError, match=r"pip install .*jaxmatch\[cpu\]"):
        module._onednn()


def test_the_sources_ship_with_the_package():
    names = {path.name for path in Path(module.__file__).parent.iterdir()}
    assert {"contraction.cc", "sums.cc", "threads.h"} <= names
