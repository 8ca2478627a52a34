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

from jaxmatch.models.onednn import loading as module
from jaxmatch.models.onednn.loading import library

PROGRAM = """
import jax, jax.numpy as jnp
from jaxmatch.models import onednn
from jaxmatch.models.contraction import convolve
images, kernel = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 2))
value = jax.jit(lambda x, k: convolve(x, k, 1, "SAME"))(images, kernel)
print(onednn.library().text)
print(float(value.sum()))
"""
# Many shapes on many threads, computed by a library that keeps three.
MANY = """
import threading
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from jaxmatch.models import onednn
from jaxmatch.models.contraction import convolve
assert onednn.library().present
function = jax.jit(lambda x, k: convolve(x, k, 1, "SAME"))
images = [jnp.asarray(np.random.default_rng(n).normal(size=(2, n, 5, 3)), jnp.float32)
          for n in range(1, 9)]
kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 3, 4)), jnp.float32)
right = [lax.conv_general_dilated(x, kernel, (1, 1), "SAME",
                                  dimension_numbers=("NHWC", "HWIO", "NHWC")) for x in images]
wrong = []
def repeat(first):
    for n in list(range(first, 8)) * 5:
        if not np.allclose(function(images[n], kernel), right[n], atol=1e-4):
            wrong.append(n)
threads = [threading.Thread(target=repeat, args=(n % 4,)) for n in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(wrong)
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


def compiler(folder, text):
    """A compiler that is a shell script."""
    path = folder / f"compiler{len(list(folder.glob('compiler*')))}"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def quick(folder, *flags):
    """The machine's compiler without optimisation: half of the time."""
    return compiler(folder, f'exec {module._compiler()} "$@" -O0 {" ".join(flags)}')


EMPTY = 'for last; do :; done; [ "$1" = --version ] || : > "$last"'


def kept(cache):
    return sorted(cache.rglob("*.so"))


@needs_library
@pytest.mark.slow
def test_ten_processes_compile_once_and_later_ones_never(tmp_path):
    count = f'[ "$1" = --version ] || echo >> {tmp_path}/count'
    wrapper = compiler(tmp_path, f'{count}\nexec {module._compiler()} "$@"')
    with ThreadPoolExecutor(10) as pool:
        texts = set(pool.map(lambda _: start(tmp_path / "cache", CXX=wrapper), range(10)))
    assert len(texts) == 1
    assert texts.pop().startswith("convolutions by oneDNN 3.")
    assert (tmp_path / "count").read_text() == "\n"
    (built,) = kept(tmp_path)
    assert start(tmp_path / "cache", CXX=wrapper) == library().text
    assert kept(tmp_path) == [built]
    assert not list(built.parent.glob("tmp*"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache for the user, and a quick compiler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(quick(tmp_path)))
    monkeypatch.delenv(module.VARIABLE, raising=False)
    return tmp_path / "cache"


def prefix(folder, library_folder="lib"):
    """Another oneDNN, with headers of its own."""
    include, libraries = module._onednn()
    shutil.copytree(include / "oneapi", folder / "include" / "oneapi")
    (folder / library_folder).mkdir(parents=True)
    (folder / library_folder / module.LIBRARY).symlink_to(libraries / module.LIBRARY)
    return folder


@needs_library
@pytest.mark.slow
def test_another_compiler_or_oneDNN_compiles_anew(cache, tmp_path, monkeypatch):
    first = module._built()
    assert kept(cache) == [first]
    assert module._built() == first
    other = prefix(tmp_path / "prefix", f"lib/{platform.machine()}-linux-gnu")
    monkeypatch.setenv(module.VARIABLE, str(other))
    second = module._built()
    monkeypatch.setenv("CXX", str(quick(tmp_path, "-DANOTHER")))
    third = module._built()
    assert kept(cache) == sorted({first, second, third})


@pytest.mark.slow
@needs_library
def test_a_cache_that_cannot_be_written_is_done_without(cache):
    cache.write_text("in the way")
    built = module._built()
    assert built.is_file()
    assert cache not in built.parents


@pytest.mark.slow
@needs_library
def test_a_damaged_library_is_compiled_anew_and_a_foreign_one_refused(cache):
    built = module._built()
    content = built.read_bytes()
    built.write_bytes(content[:1000])
    assert module._built() == built
    assert len(built.read_bytes()) == len(content)
    built.chmod(built.stat().st_mode | stat.S_IWOTH)
    with pytest.raises(module._UnavailableError, match="delete it"):
        module._built()


@pytest.mark.slow
@needs_library
def test_threads_follow_the_affinity_and_the_variable(cache, monkeypatch):
    monkeypatch.undo()  # the library that is there
    folder = os.environ["XDG_CACHE_HOME"]
    threads = len(os.sched_getaffinity(0))
    assert start(folder).endswith(f", {threads} {'threads' if threads > 1 else 'thread'}")
    assert start(folder, OMP_NUM_THREADS=1).endswith(", 1 thread")
    if shutil.which("taskset"):
        core = str(min(os.sched_getaffinity(0)))
        command = ["taskset", "-c", core, sys.executable, "-c", PROGRAM]
        pinned = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ", 1 thread\n" in pinned.stdout


@pytest.mark.slow
@needs_library
def test_what_is_missing_or_fails_is_named(cache, tmp_path, monkeypatch):
    def text(name, value):
        with monkeypatch.context() as patch:
            patch.setenv(name, str(value))
            found = module._load()
        assert not found.present
        return found.text

    absent = f"{module.SLOWER}: no C++ compiler (absent); install g++"
    assert text("CXX", "absent") == absent
    failing = compiler(tmp_path, 'echo "x.cc:1: error: no such thing" >&2; exit 1')
    assert "error: no such thing" in text("CXX", failing)
    assert "wrote nothing" in text("CXX", compiler(tmp_path, "exit 0"))
    assert "file too short" in text("CXX", compiler(tmp_path, EMPTY))
    nowhere = tmp_path / "nowhere"
    missing = f"{module.SLOWER}: there is no {module.HEADER} in {nowhere / 'include'}"
    assert text(module.VARIABLE, nowhere) == missing

    old = prefix(tmp_path / "old")
    version = old / "include" / "oneapi" / "dnnl" / "dnnl_version.h"
    there = version.read_text()
    version.write_text(there.replace("VERSION_MAJOR 3", "VERSION_MAJOR 2"))
    assert "oneDNN 3 is needed" in text(module.VARIABLE, old)
    version.write_text(there.replace("VERSION_MINOR 2", "VERSION_MINOR 3"))
    assert "older than its headers" in text(module.VARIABLE, old)
    settings = version.with_name("dnnl_config.h")
    changed = settings.read_text().replace(
        "#define DNNL_CPU_RUNTIME DNNL_RUNTIME_OMP", "#define DNNL_CPU_RUNTIME DNNL_RUNTIME_TBB"
    )
    settings.write_text(changed)
    version.write_text(there)
    assert "uses OpenMP is needed" in text(module.VARIABLE, old)


@needs_library
@pytest.mark.parametrize("processor", ["AVX2", pytest.param("SSE41", marks=pytest.mark.slow)])
def test_a_processor_without_bfloat16_leaves_that_to_xla(processor, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", processor)
    program = """
import jax, jax.numpy as jnp
from jaxmatch.models import onednn
from jaxmatch.models.contraction import convolve
for dtype in (jnp.bfloat16, jnp.float32):
    images, kernel = jnp.ones((2, 4, 4, 3), dtype), jnp.ones((3, 3, 3, 2), dtype)
    slope = jax.jit(jax.grad(lambda k: convolve(images, k, 1, "SAME").sum()))(kernel)
    print(float(slope.sum()))
print(*onednn.library().dtypes)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1200.0", "1200.0", "float32"]


@pytest.mark.slow
@needs_library
def test_what_onednn_refuses_is_an_exception_with_the_shapes(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # knows no bfloat16
    program = """
import jax, jax.numpy as jnp
from jaxmatch.models import onednn
from jaxmatch.models.contraction import convolve
from jaxmatch.models.onednn import lowering
found = onednn.library()
lowering.library = lambda: onednn.Library(text=found.text, dtypes=("bfloat16",))
images, kernel = jnp.ones((2, 4, 5, 3), jnp.bfloat16), jnp.ones((3, 3, 3, 6), jnp.bfloat16)
try:
    jax.block_until_ready(jax.jit(lambda x, k: convolve(x, k, 1, "SAME"))(images, kernel))
except jax.errors.JaxRuntimeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "oneDNN: " in done.stdout
    assert "images [1 2 4 5 3], kernel [1 3 3 3 6], results [1 2 4 5 6]" in done.stdout


@pytest.mark.parametrize("word", ["off", pytest.param("0", marks=pytest.mark.slow)])
def test_it_can_be_turned_off(word, tmp_path):
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


@needs_library
@pytest.mark.parametrize("many_cores", [1, 1000])  # threads of the library's own begin, or XLA's
@pytest.mark.slow
def test_more_shapes_than_are_kept_on_many_threads(many_cores, tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_NUM_CPU_DEVICES": "1"}
    environment["CXX"] = str(
        quick(tmp_path, "-DJAXMATCH_PLANS=3", f"-DJAXMATCH_MANY_CORES={many_cores}")
    )
    command = [sys.executable, "-c", MANY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
