"""The estimate of what a step holds, and the runs that it refuses."""

import jax
import jax.numpy as jnp
import pytest
from tiny_runs import OVERRIDES, train_tiny

from experiments.tpu.program import facts_of
from jaxmatch.config.flags import from_flags
from jaxmatch.errors import InputError
from jaxmatch.program import Program
from jaxmatch.training import footprint
from jaxmatch.training.footprint import array_bytes, estimate, follow

F32 = jnp.dtype(jnp.float32)


def most(function, *shapes, platform="gpu"):
    """Bytes of the arrays that ``function`` of float32 arguments holds at once."""
    arguments = [jax.ShapeDtypeStruct(shape, F32) for shape in shapes]
    return follow(jax.jit(function).trace(*arguments).jaxpr.jaxpr, platform).most()


def tiny(devices=1, **changed):
    """A small FixMatch as a program over CPU devices."""
    flags = [f"--config.{key}={value}" for key, value in (OVERRIDES | changed).items()]
    config, _ = from_flags("pseudo_label:tfds:cifar10", [*flags, f"--config.devices={devices}"])
    return Program.build(config, facts_of(config))


def test_arrays_lie_in_whole_tiles_on_a_tpu():
    assert array_bytes((8, 128), F32, "tpu") == 4096
    # 3 columns fill 128 lanes, or the 1024 rows do and 3 of 4 sublanes are used.
    assert array_bytes((1024, 3), F32, "tpu") == 1024 * 4 * 4
    assert array_bytes((8, 128), jnp.dtype(jnp.bfloat16), "tpu") == 2048
    assert array_bytes((1024, 3), F32, "gpu") == 1024 * 3 * 4
    assert array_bytes((), F32, "gpu") == 4
    assert array_bytes((5,), jax.random.key(0).dtype, "tpu") == 0


def test_an_array_lives_from_its_operation_to_its_last_reader():
    def chain(x):
        for _ in range(5):  # each product needs the one before, and no other
            x = x @ x
        return x

    size = 64 * 64 * 4
    assert most(chain, (64, 64)) == 2 * size

    def all_kept(x):
        products = [x @ (x + number) for number in range(5)]
        total = x
        for one in reversed(products):
            total = total @ one
        return total

    assert most(all_kept, (64, 64)) >= 5 * size


def test_elementwise_operations_make_no_array():
    size = 64 * 64 * 4
    assert most(lambda x: jnp.tanh(x @ x * 2 + 1).sum(), (64, 64)) == pytest.approx(size, abs=100)


def test_gradients_hold_activations_and_remat_does_not():
    def loss(x, w, wrap):
        for _ in range(8):
            x = wrap(lambda x: jnp.tanh(jnp.tanh(x @ w) @ w))(x)
        return x.sum()

    def held(wrap):
        return most(jax.grad(lambda x, w: loss(x, w, wrap)), (512, 8), (8, 8))

    assert held(lambda f: f) >= 16 * 512 * 8 * 4
    assert held(jax.checkpoint) < 0.75 * held(lambda f: f)


def test_a_larger_batch_holds_more_and_more_devices_less():
    one = estimate(tiny(**{"data.batch_size": 64}))
    assert estimate(tiny(**{"data.batch_size": 128}))["arrays"] > 1.8 * one["arrays"]
    two = estimate(tiny(2, **{"data.batch_size": 64}))
    assert two["arrays"] < 0.6 * one["arrays"]
    assert two["state"] == one["state"]
    parts = estimate(tiny(microbatches=2, **{"data.batch_size": 64}))
    assert parts["arrays"] < 0.8 * one["arrays"]


def test_streamed_data_is_a_share_of_a_batch():
    resident = estimate(tiny(**{"data.batch_size": 16}))
    streamed = estimate(tiny(2, **{"data.batch_size": 16, "data.stream": True}))
    assert resident["data"] > 50_000 * 3072
    assert streamed["data"] < 100 * 3072


def test_a_step_that_does_not_fit_is_refused_before_it_is_compiled(data, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(footprint, "on_cpu", lambda mesh: False)  # as on an accelerator
    monkeypatch.setattr(footprint, "memory_limit", lambda mesh: 100_000)
    monkeypatch.setattr("jaxmatch.program.Program.compile", lambda *_, **__: compiled.append(1))
    with pytest.raises(InputError, match=r"has 100,000 bytes, but a step needs about [\d,]+ \(st"):
        train_tiny(data, tmp_path / "run")
    assert not compiled
    assert not (tmp_path / "run" / "config.json").exists()


def test_only_what_surely_does_not_fit_is_refused(monkeypatch):
    program = tiny()
    needed = sum(estimate(program).values())
    monkeypatch.setattr(footprint, "on_cpu", lambda mesh: False)
    monkeypatch.setattr(footprint, "memory_limit", lambda mesh: int(needed / 1.14))
    footprint.check_step(program)
    with pytest.raises(InputError, match=r"held-out images [1-9]"):
        footprint.check_step(program, beside=9 * needed)
    with pytest.raises(InputError, match="microbatches"):
        footprint.check_step(program, seeds=2)
    monkeypatch.setattr(footprint, "memory_limit", lambda mesh: None)
    footprint.check_step(program, beside=9 * needed)


def test_a_program_on_one_device_is_its_own_share():
    program = tiny()
    assert footprint.share(program) is program
    halves = footprint.share(tiny(2))
    assert halves.spec.unlabeled_batch == program.spec.unlabeled_batch // 2
    assert halves.mesh.size == 1


def test_a_device_may_have_fewer_images_than_there_are_microbatches():
    grouped = tiny(4, **{"model.bn_groups": 4, "microbatches": 4, "data.batch_size": 8})
    assert footprint.share(grouped).spec.labeled_batch == 2
    assert footprint.estimate(grouped)["arrays"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "topology", "refused"),
    [
        ("fixmatch:tfds:cifar10", "v5e:1x1", False),
        ("swav:tfds:imagenet2012", "v5e:2x4", True),  # 4,096 images: 77 GB in bfloat16
        ("swav:tfds:imagenet2012", "v5e:8x8", False),
    ],
)
def test_chips_that_are_only_described_have_limits(recipe, topology, refused):
    pytest.importorskip("libtpu")
    from experiments.tpu.topology import devices

    config, _ = from_flags(recipe, ["--config.dtype=bfloat16"])
    program = Program.build(config, facts_of(config), devices(topology))
    if not refused:
        footprint.check_step(program)
        return
    with pytest.raises(InputError, match="a device has 16,911,433,728 bytes"):
        footprint.check_step(program)
