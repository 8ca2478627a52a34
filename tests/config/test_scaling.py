"""k times the batch: the same images, the rule's rate; memories that devices share or copy."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmatch.config.dotted import flatten
from jaxmatch.config.flags import from_flags
from jaxmatch.config.own import Circumstances, settle
from jaxmatch.config.saved import differences, run_name, to_json
from jaxmatch.config.scaling import PERIODS, scale
from jaxmatch.config.stages import stages_of
from jaxmatch.errors import InputError
from jaxmatch.functional.memory import MULTIPLE, make_bank
from jaxmatch.functional.per_example import make_rows
from jaxmatch.runtime.mesh import device_bytes, make_mesh, state_shardings

RECIPES = ("fixmatch:tfds:cifar10", "simmatch_v2:mnist5k", "pcl:tfds:cifar10", "selfmatch:mnist5k")


def config(argument, *overrides):
    return from_flags(argument, [f"--config.{override}" for override in overrides])[0]


@settings(max_examples=15, deadline=None)
@given(
    recipe=st.sampled_from(RECIPES),
    factor=st.sampled_from((0.5, 2, 3, 8, 64)),
    rule=st.sampled_from(("linear", "sqrt", "none")),
)
def test_the_same_images_are_seen_up_to_a_call(recipe, factor, rule):
    before, after = config(recipe), config(f"{recipe},scale={factor},rule={rule}")
    pairs = zip(stages_of(before).values(), stages_of(after).values(), strict=True)
    for old, new in pairs:
        assert new.data.batch_size == old.data.batch_size * factor
        flat_old, flat_new = flatten(old), flatten(new)
        call = old.steps_per_call
        assert new.steps_per_call == call
        for key in (key for key in PERIODS if key in flat_old):
            assert flat_new[key] % call == 0
            assert flat_new[key] >= call
            if flat_old[key] / factor >= call:
                assert abs(flat_new[key] - flat_old[key] / factor) <= call / 2
        images = old.steps * old.data.batch_size
        if old.steps / factor >= call:
            seen = new.steps * new.data.batch_size
            assert abs(seen - images) <= call * new.data.batch_size / 2
        times = {"linear": factor, "sqrt": factor**0.5, "none": 1}[rule]
        assert new.optim.learning_rate == pytest.approx(times * old.optim.learning_rate)
        assert new.ema.decay == pytest.approx(old.ema.decay**factor)
        assert new.data.ratio == old.data.ratio


def test_what_else_is_counted_in_steps_or_batches():
    found = config("simmatch:tfds:cifar10,scale=4")
    assert found.algorithm.instance_start_step == 256
    assert found.algorithm.alignment_length == 8
    assert found.algorithm.bank_momentum == 0.7
    assert config("dash:tfds:cifar10,scale=4").algorithm.rho_period_steps == 9 * 256
    assert config("freematch:tfds:cifar10,scale=4").algorithm.momentum == pytest.approx(0.999**4)
    assert config("temporal_ensembling:tfds:cifar10,scale=4").algorithm.momentum == 0.6
    unequal = config("fixmatch:tfds:cifar10,scale=4").unequal
    assert unequal.align_momentum == unequal.debias_momentum == pytest.approx(0.999**4)
    moco = config("moco_v2:tfds:imagenet2012,scale=4")
    assert (moco.optim.period_steps, moco.model.bn_groups) == (1251, 32)
    assert moco.algorithm.queue == 65536
    assert config("fixmatch:tfds:cifar10,scale=0.5").optim.period_steps == 1


def test_every_change_is_noted_and_overrides_win():
    flags = ["--config.optim.learning_rate=0.1"]
    result, notes = from_flags("fixmatch:tfds:cifar10,labels=40,scale=8", flags)
    assert result.optim.learning_rate == 0.1
    assert result.data.labels == "40"
    plain = flatten(config("fixmatch:tfds:cifar10,labels=40"))
    changed = {key for key, value in flatten(result).items() if value != plain[key]}
    assert {note.split(":")[0] for note in notes} == changed - {"optim.learning_rate"}
    assert "data.batch_size: 64 -> 512" in notes
    _, notes = from_flags("fixmatch:tfds:cifar10,scale=4,rule=sqrt", [])
    assert "optim.learning_rate: 0.03 -> 0.06 (sqrt)" in notes
    assert scale(config("fixmatch"), 1) == from_flags("fixmatch:mnist5k,scale=1", [])[1] == []


@pytest.mark.parametrize("recipe", ["fixmatch", "simmatch", "flexmatch"])
def test_a_short_run_moves_scaled_starts_too(recipe):
    text = f"{recipe}:folder:photos,preset=usb_cv"
    found = []
    for scaled in ("", ",scale=2"):
        chosen, _ = settle(config(text + scaled, "steps=500"), Circumstances(side=64))
        found.append(chosen.optim.warmup_steps)
    assert found[0] == found[1] <= 50
    usual = config(f"{text},scale=2", "optim.warmup_steps=2560", "steps=5000")
    assert settle(usual, Circumstances(side=64))[0].optim.warmup_steps == 2560  # a user's stays


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("mnist5k,scale=8,rule=lineer", "did you mean 'linear'"),
        ("mnist5k,rule=sqrt", "needs scale=K"),
        ("mnist5k,scale=eight", "scale=eight is not a positive number"),
        ("mnist5k,scale=-1", "not a positive number"),
        ("mnist5k,scale=1.3", r"makes data.batch_size 20\.8"),
        ("mnist5k,scal=8", "did you mean 'scale'"),
        ("mnist5k,scale=2,scale=4", "scale=2 and scale=4 are both given; leave one out"),
    ],
)
def test_what_is_refused(argument, message):
    with pytest.raises(InputError, match=message):
        config(f"fixmatch:{argument}")


LARGE = {
    "bank": lambda: make_bank([0] * 128_000, 128),
    "predictions": lambda: make_rows(1_281_167, prediction=jnp.zeros(1000)),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_device_holds_no_more_with_more_devices(name):
    shapes = jax.eval_shape(LARGE[name])
    for placement in ("auto", "replicated", "sharded"):
        sizes = [device_bytes(shapes, make_mesh(count), placement) for count in (1, 2, 4)]
        spread = placement == "sharded" or (placement == "auto" and name == "predictions")
        assert sizes == [sizes[0] // count if spread else sizes[0] for count in (1, 2, 4)]


def test_a_large_bank_is_padded_so_that_devices_divide_it():
    bank = jax.eval_shape(lambda: make_bank([0] * 12_811, 4))
    assert {leaf.shape[0] for leaf in bank} == {13 * MULTIPLE}
    filled = jax.jit(lambda: make_bank([1] * 12_811, 4))()
    assert int(filled.labels.sum()) == 12_811
    assert not filled.filled.any()
    assert make_bank([0] * 5000, 4).filled.shape == (5000,)


def test_placements_that_cannot_be():
    mesh, bank = make_mesh(4), jax.eval_shape(lambda: make_bank([0] * 10, 4))
    with pytest.raises(InputError, match="cannot divide 10 rows over 4 devices"):
        state_shardings(bank, mesh, "sharded")
    with pytest.raises(InputError, match="did you mean 'sharded'"):
        state_shardings(bank, mesh, "shard")


def test_the_placement_is_no_part_of_what_a_run_is():
    one, other = config("simmatch:mnist5k"), config("simmatch:mnist5k", "memory_placement=sharded")
    assert run_name(one) == run_name(other)
    assert differences(to_json(one), to_json(other)) == []
