"""How many devices a run takes, and what it says when the batch does not fit them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxmatch.errors import InputError
from jaxmatch.runtime.mesh import (
    check_memory,
    make_mesh,
    memory_limit,
    over_batch,
    replicated,
    shard_batch,
    tree_bytes,
)


def test_takes_all_devices_when_the_batches_divide(caplog):
    mesh = make_mesh(0, 8, 56)
    assert (mesh.size, mesh.axis_names) == (4, ("data",))
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,)
    assert caplog.text == ""


@pytest.mark.parametrize(("batches", "count"), [((8, 6), 2), ((5,), 1), ((9, 12), 3), ((6, 0), 3)])
def test_default_on_a_cpu_falls_back_and_says_so(batches, count, caplog):
    assert make_mesh(0, *batches).size == count
    assert f"{count} of 4" in caplog.text


def test_default_on_a_cpu_leaves_microbatches_their_images(caplog):
    assert make_mesh(0, 8, 8, parts=4).size == 2
    assert "2 of 4" in caplog.text
    assert make_mesh(4, 8, 8, parts=4).size == 4  # which check_batches refuses


def test_a_batch_of_zero_does_not_count():
    assert make_mesh(4, 8, 0).size == 4
    assert make_mesh(3).size == 3


def test_an_explicit_count_must_divide():
    with pytest.raises(InputError, match=r"batch sizes 8, 6 .* 4 devices.* divisor of 2"):
        make_mesh(4, 8, 6)
    assert make_mesh(2, 8, 6).size == 2


def test_an_explicit_count_must_exist():
    with pytest.raises(InputError, match="devices=5, but JAX sees only 4"):
        make_mesh(5, 10)


def test_accelerators_must_divide_even_by_default(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu")] * 4)
    with pytest.raises(InputError, match="do not divide over 4 devices"):
        make_mesh(0, 6)


def test_shardings():
    mesh = make_mesh(4)
    assert replicated(mesh).spec == PartitionSpec()
    assert over_batch(mesh).spec == PartitionSpec("data")
    assert over_batch(mesh, 1).spec == PartitionSpec(None, "data")
    tree = {"a": jnp.arange(8.0), "b": jnp.ones((4, 3))}
    sharded = jax.jit(lambda tree: shard_batch(tree, mesh))(tree)
    for name, leaf in sharded.items():
        assert leaf.sharding.shard_shape(leaf.shape)[0] == leaf.shape[0] // 4
        np.testing.assert_array_equal(leaf, tree[name])
    turned = jax.jit(lambda x: shard_batch(x, mesh, axis=1))(jnp.ones((3, 8)))
    assert turned.sharding.shard_shape(turned.shape) == (3, 2)


def test_arrays_that_no_device_has_room_for_are_refused():
    mesh = make_mesh(4)
    small = {"bank": jax.ShapeDtypeStruct((10, 128), jnp.float32), "key": jax.random.key(0)}
    check_memory(mesh, {"state": small})
    large = {"bank": jax.ShapeDtypeStruct((2**31 - 1, 4096), jnp.float32)}
    with pytest.raises(InputError, match=r"memory 35,184,372,072,448 bytes.*smaller"):
        check_memory(mesh, {"memory": large, "state": {**small, **large}})


def test_bytes_of_a_tree():
    tree = {"a": np.zeros((2, 3), np.float64), "b": jax.ShapeDtypeStruct((5,), jnp.int8)}
    assert tree_bytes({**tree, "key": jax.random.key(0)}) == 48 + 5


def test_devices_that_are_only_described_have_a_known_limit():
    class Described:
        platform, device_kind = "tpu", "TPU v5 lite"

        def memory_stats(self):
            raise jax.errors.JaxRuntimeError("only supported for addressable devices")

    class Present(Described):
        def memory_stats(self):
            return {"bytes_limit": 1234}

    def mesh(*local):
        return SimpleNamespace(devices=np.array([Described()]), local_devices=local, size=1)

    assert memory_limit(mesh(Described())) == int(15.75 * 2**30)
    assert memory_limit(mesh()) == int(15.75 * 2**30)  # all are other processes'
    assert memory_limit(mesh(Present())) == 1234
