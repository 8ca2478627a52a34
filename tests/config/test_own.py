"""Settings that a configuration leaves open: sizes for own images, periods, late starts."""

import itertools
import math
from pathlib import Path

import pytest

import jaxmatch
from jaxmatch import config as configured
from jaxmatch.config.checks import check_settings
from jaxmatch.config.flags import from_flags, named_configs
from jaxmatch.config.own import (
    OPEN,
    PERIODS,
    SIZES,
    Circumstances,
    needs_images,
    settle,
    with_usual_input,
)
from jaxmatch.config.saved import differences, filled, run_name, to_json
from jaxmatch.config.stages import stages_of
from jaxmatch.errors import InputError

OWN = "fixmatch:folder:/photos,labels=40"
PHOTOS = Circumstances(side=300)


def settled(config, *overrides, at=PHOTOS):
    found, _ = from_flags(config, [f"--config.{each}" for each in overrides])
    return settle(found, at)


def all_open(config):
    from jaxmatch.config.dotted import flatten

    return [key for key, value in flatten(config).items() if key in OPEN and value is None]


@pytest.mark.parametrize("size", ["auto", *SIZES])
@pytest.mark.parametrize("side", [8, 28, 64, 300])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_every_size_gives_a_configuration_that_can_be_trained(size, side, platform):
    at = Circumstances(side=side, platform=platform)
    found, _ = settled(f"{OWN},size={size}", at=at)
    assert all_open(found) == ["data.mean", "data.std"]  # these follow from the images' values
    check_settings(with_usual_input(found))
    assert found.data.image_size <= side
    assert found.steps // found.eval_every == 20
    assert found.size == (size if size != "auto" else "small" if platform == "cpu" else "base")


@pytest.mark.parametrize("recipe", ["supervised", "simmatch", "comatch", "simclr", "pcl", "dash"])
def test_methods_that_set_batches_and_starts_fit_own_images(recipe):
    found, _ = settled(f"{recipe}:npz:/cells.npz")
    check_settings(with_usual_input(found))
    starts = {key: value for key, value in found.algorithm.items() if key.endswith("start_step")}
    assert all(value <= found.steps // 10 for value in starts.values()), starts


@pytest.mark.parametrize("recipe", sorted(named_configs(Path(jaxmatch.__file__).parent)))
def test_an_accelerator_has_the_method_settings_of_its_size(recipe):
    at = Circumstances(side=300, platform="gpu")
    auto, base = (
        [settle(part, at)[0].to_dict() for part in stages_of(configured(words)).values()]
        for words in (f"{recipe}:folder:/x", f"{recipe}:folder:/x,size=base")
    )
    assert auto == base


@pytest.mark.parametrize("recipe", sorted(named_configs(Path(jaxmatch.__file__).parent)))
def test_the_command_of_a_run_on_an_accelerator_continues_it(recipe):
    asked, at = configured(f"{recipe}:folder:/x"), Circumstances(side=300, platform="gpu")
    for part in stages_of(asked).values():
        begun, _ = settle(part, at)
        begun.data.mean, begun.data.std = (0.4, 0.4, 0.4), (0.2, 0.2, 0.2)
        again, _ = settle(filled(part, to_json(begun)), None)
        assert to_json(again) == to_json(begun)


def test_short_runs_of_mixmatch_on_own_images_have_a_third_of_its_weight():
    found = {
        data: configured(f"mixmatch:{data}").algorithm.unlabeled_weight
        for data in ("folder:/x", "folder:/x,size=base", "mnist5k", "tfds:svhn_cropped")
    }
    assert list(found.values()) == [25, 75, 75, 250]
    assert configured("mixmatch:folder:/x,preset=usb").algorithm.unlabeled_weight == 100


def test_a_setting_that_is_given_stays_on_an_accelerator():
    at = Circumstances(side=300, platform="gpu")
    config = configured("moco_v2:folder:/x,size=auto", **{"algorithm.queue": 1024})
    config.optim.learning_rate = 0.2
    found, _ = settle(config, at)
    assert (found.algorithm.queue, found.optim.learning_rate) == (1024, 0.2)
    assert found.data.batch_size == 256


@pytest.mark.parametrize("default", ["", '="folder:/x"', '="folder:/x,size=auto"'])
def test_a_config_file_of_ones_own_has_the_settings_of_the_size(tmp_path, default):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxmatch.config.flags import load_module\n"
        f"def get_config(argument{default}):\n"
        "    return load_module('simclr').get_config(argument)\n"
    )
    config, _ = from_flags(f"{file}" if default else f"{file}:folder:/x", [])
    for platform, batch in (("cpu", 128), ("gpu", 512)):
        found, _ = settle(config, Circumstances(side=300, platform=platform))
        assert found.data.batch_size == batch


def test_a_config_file_may_read_its_argument_in_another_way(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxmatch.config.flags import load_module\n"
        "def get_config(argument):\n"
        "    return load_module('simclr').get_config('folder:/x,seed=%d' % int(argument))\n"
    )
    config, _ = from_flags(f"{file}:3", [])
    found, _ = settle(config, Circumstances(side=300, platform="gpu"))
    assert (found.seed, found.size) == (3, "base")


@pytest.mark.parametrize("data", ["mnist5k", "digits", "tfds:cifar10", "tfds:imagenet2012"])
def test_published_data_keeps_its_papers_settings(data):
    found, _ = from_flags(f"fixmatch:{data}", [])
    assert not needs_images(found)
    assert not all_open(found)
    same, notes = settle(found, None)
    assert to_json(same) == to_json(found)
    assert not notes


def test_published_data_takes_no_size():
    with pytest.raises(InputError, match="mnist5k has the settings of its papers"):
        from_flags("fixmatch:mnist5k,size=small", [])


def test_paper_is_cifar_for_own_images():
    own, _ = from_flags("simclr:npz:/x.npz,size=paper", [])
    cifar, _ = from_flags("simclr:tfds:cifar10", [])
    for key in ("steps", "eval_every", "steps_per_call", "optim", "model", "ema", "views"):
        assert to_json(own)[key] == to_json(cifar)[key], key


def test_an_unknown_size_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="unknown size 'smal'; did you mean 'small'"):
        from_flags("fixmatch:folder:/x,size=smal", [])


def test_a_size_belongs_in_the_argument():
    with pytest.raises(InputError, match="size belongs in the argument"):
        from_flags("fixmatch:folder:/x", ["--config.size=base"])


@pytest.mark.parametrize("key", ["stages.simclr.size", "stages.fixmatch.size"])
def test_a_size_of_a_stage_belongs_in_the_argument(key):
    with pytest.raises(InputError, match="size belongs in the argument"):
        from_flags("selfmatch:folder:/x", [f"--config.{key}=base"])


def test_the_size_of_a_view_is_another_setting():
    found, _ = from_flags("swav:folder:/x", ["--config.views.small.size=16"])
    assert found.views.small.size == 16


def test_images_keep_their_own_size_if_they_are_small_squares():
    at = Circumstances(side=28, one_side=True)
    assert settled(OWN, at=at)[0].data.image_size == 28
    assert settled(OWN, at=Circumstances(side=28))[0].data.image_size == 24
    assert settled(OWN, at=Circumstances(side=300, one_side=True))[0].data.image_size == 64


@pytest.mark.parametrize(
    ("name", "at", "side"),
    [
        ("vit_small_patch14_dinov2", PHOTOS, 56),
        ("vit_base_patch32_clip_224", PHOTOS, 64),
        ("vit_small_patch14_dinov2", Circumstances(side=28, one_side=True), 28),
        ("vit_tiny_patch2_32", Circumstances(side=30, one_side=True), 30),
        ("vit_small_patch14_dinov2", Circumstances(side=40, one_side=True), 28),
        ("vit_small_patch16_224", Circumstances(side=12, one_side=True), 16),
    ],
)
def test_patches_divide_the_side_of_own_images(name, at, side):
    found, (note, *_) = settled(OWN, f"model.name={name}", at=at)
    check_settings(with_usual_input(found))
    assert found.data.image_size == side
    assert f"{name} {found.model.depth}-{found.model.width}, images of {side} pixels" in note
    assert found.model.depth == 12


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("steps=77", "steps", 77),
        ("model.depth=16", "model.depth", 16),
        ("data.batch_size=8", "data.batch_size", 8),
        ("ema.decay=0.5", "ema.decay", 0.5),
        ("data.image_size=48", "data.image_size", 48),
        ("data.mean=(0.1,)", "data.mean", (0.1,)),
        ("eval_every=7", "eval_every", 7),
    ],
)
def test_a_given_setting_is_kept(override, key, value):
    found, _ = settled(OWN, override)
    for part in key.split("."):
        found = found[part]
    assert found == value


@pytest.mark.parametrize("data", ["mnist5k", "tfds:cifar10", "folder:/photos"])
@pytest.mark.parametrize("steps", [1, 7, 19, 20, 100, 499, 500, 1000, 12_345])
def test_steps_alone_are_enough(data, steps):
    found, _ = settled(f"fixmatch:{data},labels=40", f"steps={steps}")
    check_settings(with_usual_input(found))
    assert found.steps == steps
    assert steps % found.steps_per_call == 0
    for key in PERIODS:
        assert found[key] % found.steps_per_call == 0
        assert found[key] >= 1


@pytest.mark.parametrize("chosen", itertools.combinations((*PERIODS, "steps"), 2))
def test_given_periods_are_kept_and_the_others_fit_them(chosen):
    numbers = {"steps": 120, "log_every": 6, "eval_every": 15, "save_every": 40}
    found, _ = settled("fixmatch:mnist5k", *(f"{key}={numbers[key]}" for key in chosen))
    for key in chosen:
        assert found[key] == numbers[key]
    if "steps" in chosen:
        check_settings(found)


def test_periods_that_fit_given_steps_stay():
    found, _ = from_flags("fixmatch:tfds:cifar10", ["--config.steps=131072"])
    assert (found.steps_per_call, found.eval_every, found.save_every) == (64, 1024, 8192)


def test_steps_and_minutes_are_a_contradiction():
    with pytest.raises(InputError, match="steps and minutes are both given"):
        from_flags("fixmatch:mnist5k", ["--config.steps=500", "--config.minutes=3"])


@pytest.mark.parametrize("data", ["mnist5k", "folder:/photos"])
def test_minutes_leave_the_steps_to_the_speed(data):
    found, _ = from_flags(f"fixmatch:{data}", ["--config.minutes=3"])
    assert found.steps is None
    found.steps = 480
    same, _ = settle(found, PHOTOS)
    assert (same.steps, same.eval_every, same.steps_per_call) == (480, 24, 24)


def test_a_start_that_a_short_run_never_reaches_is_noted_for_published_data():
    found, notes = settled("simmatch:tfds:cifar10", "steps=512")
    assert found.algorithm.instance_start_step == 1024
    assert [note for note in notes if "algorithm.instance_start_step=1024" in note]


def test_a_late_start_is_a_share_of_a_run_on_own_images():
    found, notes = settled("simmatch:folder:/x,size=base", "steps=500")
    assert found.algorithm.instance_start_step == 50
    assert [note for note in notes if "a tenth of the run, instead of 1024" in note]


@pytest.mark.parametrize("start", [0, 51, 499, 500, 1024])
def test_a_start_that_is_given_stays(start):
    given = f"algorithm.instance_start_step={start}"
    found, notes = settled("simmatch:folder:/x,size=base", "steps=500", given)
    assert found.algorithm.instance_start_step == start
    assert [note for note in notes if "instance_start_step" in note and "lies at" not in note] == []
    assert any("instance_start_step" in note for note in notes) == (start >= 500)
    config, _ = from_flags("simmatch:folder:/x,size=base", ["--config.steps=500"])
    config.algorithm.instance_start_step = 51
    assert settle(config, PHOTOS)[0].algorithm.instance_start_step == 51


def test_a_start_of_one_stage_that_is_given_stays():
    words = ["--config.steps=500", "--config.stages.simclr.optim.warmup_steps=60"]
    config, _ = from_flags("simclr+simmatch:folder:/x,size=base", words)
    first, second = (settle(stage, PHOTOS)[0] for stage in stages_of(config).values())
    assert first.optim.warmup_steps == 60
    assert second.algorithm.instance_start_step == 50


def test_a_period_that_cannot_be_shorter_is_not_noted():
    own = ("steps=20", "steps_per_call=5", "algorithm.refresh_steps=5", "algorithm.start_step=1")
    found, notes = settled("pcl:folder:/x,size=small", *own)
    assert (found.steps_per_call, found.algorithm.refresh_steps) == (5, 5)
    assert not [note for note in notes if "refresh_steps" in note]


def test_stages_share_the_time_and_the_keys_that_all_have():
    config, _ = from_flags("selfmatch:folder:/x", ["--config.data.image_size=48"])
    one, _ = settled(OWN, "data.image_size=48")
    at = Circumstances(side=300, stages=2)
    stages = [settle(stage, at)[0] for stage in stages_of(config).values()]
    assert [stage.data.image_size for stage in stages] == [48, 48]
    assert [stage.steps for stage in stages] == [one.steps // 2 // 20 * 20] * 2


def test_all_stages_have_the_settings_of_the_network_that_they_share():
    found, _ = from_flags(
        "selfmatch:mnist5k",
        ["--config.model.patch=7", "--config.model.name=vit_tiny_patch2_32"],
    )
    for part in stages_of(found).values():
        assert (part.model.name, part.model.patch, part.model.depth) == (
            "vit_tiny_patch2_32",
            7,
            12,
        )


def test_an_augmentation_goes_to_the_stages_with_strong_views():
    config, _ = from_flags("selfmatch:mnist5k,labels=40", ["--config.augment=ctaugment"])
    first, second = stages_of(config).values()
    assert (first.augment, second.augment) == ("randaugment", "ctaugment")


def test_an_override_of_one_stage_wins_over_that_of_all():
    flags = ["--config.steps=60", "--config.stages.simclr.steps=40"]
    config, _ = from_flags("selfmatch:folder:/x", flags)
    assert (config.stages.simclr.steps, config.stages.fixmatch.steps) == (40, 60)


def test_an_override_that_no_stage_has_is_refused():
    with pytest.raises(InputError, match=r"unknown config key 'data\.imagesize'"):
        from_flags("selfmatch:folder:/x", ["--config.data.imagesize=48"])


def test_a_run_that_has_begun_keeps_what_was_chosen():
    asked, _ = from_flags(OWN, [])
    begun, _ = settle(asked, PHOTOS)
    begun.data.mean, begun.data.std = (0.4, 0.4, 0.4), (0.2, 0.2, 0.2)
    again = filled(asked, to_json(begun))
    assert to_json(again) == to_json(begun)
    assert not needs_images(again)


def test_another_size_is_another_run():
    small, _ = from_flags(f"{OWN},size=small", [])
    large, _ = from_flags(f"{OWN},size=large", [])
    assert run_name(small) != run_name(large)
    begun, _ = settle(small, PHOTOS)
    assert any(text.startswith("size: ") for text in differences(to_json(begun), to_json(large)))


def test_from_python_in_the_same_words():
    found = configured("fixmatch:folder:/x", labels=40, size="base", steps=640)
    assert (found.size, found.steps, found.data.labels) == ("base", 640, "40")
    assert math.isclose(settle(found, PHOTOS)[0].model.bn_decay, 0.999)


@pytest.mark.parametrize(
    ("recipe", "images"),
    [
        ("fixmatch", "16 labeled and 112 unlabeled images a step"),
        ("supervised", ", 16 labeled images a step"),
        ("simclr", ", 128 unlabeled images a step"),
    ],
)
def test_the_line_names_the_images_that_a_method_reads(recipe, images):
    assert images in settled(f"{recipe}:folder:/x")[1][0]


def test_a_run_in_the_current_folder_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    assert "-folder-photos-all-" in run_name(from_flags("fixmatch:folder:.", [])[0])
