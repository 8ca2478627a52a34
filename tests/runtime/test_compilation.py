"""What a process does before it trains: its programs are kept, and the user's wishes hold."""

import os
import subprocess
import sys

import jax
import pytest

from jaxmatch.runtime.compilation import cache_folder, compiler_options, jit

PROGRAM = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from jaxmatch.runtime.compilation import jit, prepare_process

prepare_process()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
x = jnp.sin(jnp.arange(4096.0)).reshape(4, 8, 8, 16)
kernel = jnp.cos(jnp.arange(2304.0)).reshape(3, 3, 16, 16)

@jit
def slope(kernel):
    def loss(kernel):
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(jnp.tanh(y))
    return jax.grad(loss)(kernel)

print(len(jax.devices()), jax.config.jax_compilation_cache_dir)
print(bytes(slope(kernel)).hex())
"""


def run(folder, **variables):
    """The lines that PROGRAM prints with a user's cache folder ``folder``."""
    ours = ("NPROC", "JAX_COMPILATION_CACHE_DIR")
    plain = {name: value for name, value in os.environ.items() if name not in ours}
    environment = {**plain, "XDG_CACHE_HOME": str(folder), "JAX_NUM_CPU_DEVICES": "-1", **variables}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_programs_are_kept_in_the_users_cache_and_give_the_same_bits(tmp_path):
    first = run(tmp_path)
    assert first[0].split() == ["1", str(next((tmp_path / "jaxmatch" / "programs").iterdir()))]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-cache")}
    assert kept
    assert run(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-cache")} == kept


@pytest.mark.slow
def test_another_place_or_none(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert not list(tmp_path.rglob("*-cache"))
    run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(elsewhere))
    assert list(elsewhere.rglob("*-cache"))
    assert not (tmp_path / "jaxmatch").exists()


def test_machines_that_share_a_home_do_not_share_programs(monkeypatch):
    here = cache_folder()
    monkeypatch.setattr("platform.machine", lambda: "another")
    assert cache_folder() != here
    assert cache_folder().parent == here.parent


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_options_are_the_platforms_unless_the_user_names_them(monkeypatch, platform):
    compiler_options.cache_clear()
    usual = compiler_options(platform)
    assert all(key.startswith(f"xla_{platform}_") for key in usual)
    assert bool(usual) == (platform != "tpu")
    monkeypatch.setenv("XLA_FLAGS", " ".join(f"--{key}=1" for key in usual))
    compiler_options.cache_clear()
    assert compiler_options(platform) == {}
    compiler_options.cache_clear()


def test_an_option_that_the_compiler_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr("jaxmatch.runtime.compilation.CPU_OPTIONS", {"xla_cpu_unheard_of": ""})
    compiler_options.cache_clear()
    assert compiler_options() == {}
    assert jit(lambda x: x + 1)(1) == 2
    monkeypatch.undo()
    compiler_options.cache_clear()
    assert "unheard" not in str(compiler_options())
    assert jax.default_backend() == "cpu"


SHARED = """
import jax, jax.numpy as jnp
from jax import lax
from jaxmatch.runtime.compilation import prepare_process
from jaxmatch.models.contraction import convolve

prepare_process()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
lax.platform_dependent = lambda *given, cuda, **_: cuda(*given)
mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
places = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())

def slope(images, kernel):
    return jax.grad(lambda kernel: convolve(images, kernel, 1, "SAME").sum())(kernel)

images = jax.ShapeDtypeStruct((4, 6, 6, 3), jnp.bfloat16)
kernel = jax.ShapeDtypeStruct((3, 3, 3, 4), jnp.float32)
lowered = jax.jit(slope, in_shardings=places).trace(images, kernel).lower()
assert "CustomSPMDPartitioning" in lowered.as_text()
lowered.compile()
"""


@pytest.mark.slow
def test_programs_are_found_again_whatever_the_addresses_in_them(tmp_path):
    """As for several GPUs."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", SHARED], env=environment, check=True)
    assert len(list(tmp_path.glob("jit_slope-*-cache"))) == 1
