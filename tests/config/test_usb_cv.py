"""The preset ``usb_cv`` against all of USB's own configurations (tests/golden/usb_cv.json)."""

import json
from pathlib import Path

import pytest

from jaxmatch.config import usb_cv
from jaxmatch.config.flags import from_flags
from jaxmatch.config.own import settle
from jaxmatch.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden"
USB = json.loads((GOLDEN / "usb_cv.json").read_text())
DATA = {
    "cifar100": "tfds:cifar100",
    "stl10": "tfds:stl10",
    "eurosat": "tfds:eurosat",
    "tissuemnist": "npz:tissuemnist.npz",
    "semi": "folder:semi_aves",
}
METHODS = {name.replace("_", ""): name for name in usb_cv.METHODS}
# Their names for what a method and ours have in common; a value of theirs -> a key of ours.
KEYS = {
    "net": "model.name",
    "lr": "optim.learning_rate",
    "layer_decay": "optim.layer_decay",
    "num_warmup_iter": "optim.warmup_steps",
    "weight_decay": "optim.weight_decay",
    "num_train_iter": "steps",
    "num_eval_iter": "eval_every",
    "ema_m": "ema.decay",
    "batch_size": "data.batch_size",
    "uratio": "data.ratio",
    "img_size": "data.image_size",
    "ulb_loss_ratio": "algorithm.unlabeled_weight",
    "unsup_warm_up": "algorithm.ramp",
    "p_cutoff": "algorithm.threshold",
    "mixup_alpha": "algorithm.alpha",
    "contrast_loss_ratio": "algorithm.contrastive_weight",
    "contrast_p_cutoff": "algorithm.graph_threshold",
    "queue_batch": "algorithm.queue_batches",
    "smoothing_alpha": "algorithm.smoothing",
    "da_len": "algorithm.alignment_length",
    "proj_size": "algorithm.projection",
    "in_loss_ratio": "algorithm.instance_weight",
    "ema_p": "algorithm.momentum",
    "ent_loss_ratio": "algorithm.fairness_weight",
    "n_sigma": "algorithm.deviations",
    "gamma": "algorithm.gamma",
    "C": "algorithm.rho_initial",
    "rho_min": "algorithm.rho_min",
    "rot_loss_ratio": "algorithm.rotation_weight",
    "kl_loss_ratio": "algorithm.unmixed_weight",
}
# A temperature counts where labels are soft. Dash has no threshold of confidence.
SOFT = ("uda", "dash", "comatch", "simmatch", "mixmatch", "remixmatch")
UNUSED = {"p_cutoff": ("dash",)}


def first_or_odd(name):
    """Whether it is a method's first configuration, or of the method with quirks."""
    return "_cifar100_200_" in name or name.startswith("remixmatch_")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if first_or_odd(name) else pytest.mark.slow) for name in USB],
)
def test_settings_are_those_of_usb(name):
    method, data, *_, labels, _ = name.split("_")
    theirs, recipe = USB[name], METHODS[method]
    config, notes = from_flags(
        f"{recipe}:{DATA[data]},labels={'all' if data == 'semi' else labels},preset=usb_cv", []
    )
    # A vertical flip is half a turn of a mirrored image: USB's quirk, which ours tells.
    assert bool(notes) == (recipe == "remixmatch" and data in ("eurosat", "tissuemnist"))
    keys = {**KEYS, **({"T": "algorithm.temperature"} if recipe in SOFT else {})}
    checked = {
        key: config[ours.partition(".")[0]][ours.partition(".")[2]] if "." in ours else config[ours]
        for key, ours in keys.items()
        if key in theirs and recipe not in UNUSED.get(key, ())
    }
    assert checked == {key: theirs[key] for key in checked}
    assert len(checked) >= 11
    if data != "semi":
        assert config.views.weak.pad == int(theirs["img_size"] * (1 - theirs["crop_ratio"]))
        assert config.data.labels == str(theirs["num_labels"])


def test_all_configurations_are_compared():
    assert len(USB) == 16 * 9
    assert {METHODS[name.split("_")[0]] for name in USB} == usb_cv.METHODS.keys()


def test_quirks_that_the_files_do_not_tell():
    def optim(method):
        return from_flags(f"{method}:tfds:cifar100,preset=usb_cv", [])[0].optim

    decays = {method: optim(method).decay for method in usb_cv.METHODS}
    forgetful = {"simmatch", "comatch", "remixmatch"}
    assert {name for name, decay in decays.items() if decay == "not_vectors"} == forgetful
    assert {decays[name] for name in decays.keys() - forgetful} == {"kernels"}
    aves, _ = from_flags("simmatch:folder:aves,preset=usb_cv", [])
    assert aves.algorithm.teacher
    assert aves.data.stream


def test_a_short_run_on_own_images_still_warms_up():
    config, _ = from_flags("fixmatch:folder:photos,preset=usb_cv", ["--config.steps=400"])
    settled, notes = settle(config, None)
    assert settled.optim.warmup_steps == 40
    assert any("optim.warmup_steps is 40, a tenth of the run" in note for note in notes)
    long, _ = settle(from_flags("fixmatch:folder:photos,preset=usb_cv", [])[0], None)
    assert long.optim.warmup_steps == 5120


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("fixmatch:tfds:cifar10,preset=usb_cv", "no settings for tfds:cifar10; it has tfds:cif"),
        ("fixmatch:npz:a.npz,size=small,preset=usb_cv", "preset=usb_cv has a size; leave size="),
        ("simclr:tfds:cifar100,preset=usb_cv", "simclr has no preset 'usb_cv'; it has jaxmatch,"),
    ],
)
def test_what_the_benchmark_does_not_have(argument, message):
    with pytest.raises(InputError, match=message):
        from_flags(argument, [])


@pytest.mark.parametrize(("name", "data"), DATA.items())
def test_only_semi_aves_has_a_pool_without_the_labeled_images(name, data):
    found = from_flags(f"fixmatch:{data},preset=usb_cv", [])[0]
    assert found.data.include_labeled == (name != "semi")


@pytest.mark.parametrize(
    "argument",
    ["simmatch:folder:/x,preset=usb_cv", "simmatch:tfds:imagenet2012,labels=1281,split=a"],
)
def test_a_teacher_replaces_what_simmatchs_bank_had(argument):
    config, _ = from_flags(argument, [])
    assert (config.algorithm.teacher, config.algorithm.bank_momentum) == (True, 0.0)
