"""From a configuration to the program of a run, and every setting that is refused on the way."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_runs import settled_configuration as configuration
from tiny_runs import write_data

from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.augment.ctaugment import CTAugment
from jaxmatch.augment.ctaugment_views import CTAugmentOps
from jaxmatch.augment.randaugment import RandAugment
from jaxmatch.augment.weak import Weak
from jaxmatch.config import checks
from jaxmatch.config.flags import from_flags
from jaxmatch.config.saved import to_json
from jaxmatch.data import splits
from jaxmatch.data.facts import Facts
from jaxmatch.data.resident import resident
from jaxmatch.errors import InputError
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.record.settled import settled

FACTS = {
    "classes": ["a", "b", "c", "d"],
    "image_shape": [8, 8, 3],
    "labels": [0, 1, 2, 3] * 4,
    "unlabeled": 64,
}


def program(**options):
    facts = FACTS | options.pop("facts", {})
    return Program.build(configuration("x.npz", **options), Facts.from_json(facts))


def test_programs_follow_the_configuration():
    found = program(
        algorithm__threshold=0.7,
        data__batch_size=4,
        data__ratio=3,
        dtype="bfloat16",
        remat=True,
        views__weak__flip=False,
        views__strong__table="google",
        views__strong__order="ops_first",
        ema__decay=0.5,
        optim__momentum=0.1,
    )
    assert found.algorithm == FixMatch(threshold=0.7)
    assert (found.spec.labeled_batch, found.spec.unlabeled_batch) == (4, 12)
    assert (found.spec.classes, found.spec.steps, found.spec.unlabeled) == (4, 20, 64)
    assert found.spec.labels == (0, 1, 2, 3) * 4
    weak, strong = found.augment.transforms["weak"], found.augment.transforms["strong"]
    assert weak == Weak(flip=False)
    assert strong.transforms == (RandAugment(table="google"), weak)
    assert (found.model.dtype, found.model.depth, found.model.classes) == (jnp.bfloat16, 4, 4)
    assert found.model.remat
    assert (found.ema.decay, found.optim.momentum) == (0.5, 0.1)
    assert found.image_shape == (8, 8, 3)


def test_ctaugment_takes_the_place_of_the_strong_ops():
    found = program(
        augment="ctaugment", views__ctaugment__depth=3, views__strong__order="ops_first"
    )
    assert found.augment.ctaugment == CTAugment(depth=3)
    assert found.augment.ops_first
    shown = found.augment.views.transforms["strong"].transforms  # for show-augment
    assert [type(transform) for transform in shown] == [CTAugmentOps, Weak]


def test_programs_of_a_saved_configuration_are_the_same():
    config = configuration("x.npz")
    again = ConfigDict(json.loads(json.dumps(to_json(config))))
    left, right = (Program.build(each, Facts.from_json(FACTS)) for each in (config, again))
    for name in ("algorithm", "model", "augment", "optim", "ema", "spec", "mean", "std"):
        assert getattr(left, name) == getattr(right, name)


def test_supervised_has_no_unlabeled_batch():
    found = program(method="supervised", data__ratio=0)
    assert (found.spec.labeled_batch, found.spec.unlabeled_batch) == (8, 0)


def test_the_default_number_of_devices_divides_the_batch(caplog):
    assert program(data__batch_size=8).mesh.size == 4
    assert program(data__batch_size=6, data__ratio=1).mesh.size == 3
    assert "3 of 4 CPU devices" in caplog.text
    assert program(data__batch_size=8, devices=2).mesh.size == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"steps": -5}, "steps=-5 must be at least 1"),
        ({"steps_per_call": 0}, "steps_per_call=0"),
        ({"steps": 21}, "steps=21 is not a multiple of steps_per_call=5"),
        ({"log_every": 7}, "log_every=7 is not a multiple"),
        ({"eval_every": 7}, "eval_every=7 is not a multiple"),
        ({"save_every": 7}, "save_every=7 is not a multiple"),
        (
            {"method": "pcl", "chosen": ",size=paper", "algorithm__refresh_steps": 7},
            "algorithm.refresh_steps=7 is not a multiple of steps_per_call=5",
        ),
        ({"keep": 0}, "keep=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed="),
        ({"devices": 3}, "batch sizes 8, 16 do not divide over 3 devices"),
        ({"devices": 5}, "devices=5, but JAX sees only 4"),
        ({"devices": -1}, "devices=-1"),
        ({"data__batch_size": 0}, "data.batch_size"),
        ({"data__ratio": 0}, "data.ratio"),
        ({"data__image_size": 0}, "data.image_size=0"),
        ({"data__mean": "(0.5,0.5)"}, "data.mean=(0.5, 0.5)"),
        ({"data__mean": "dark"}, "data.mean"),
        ({"data__std": "(0.0,)"}, "data.std=(0.0,) must be above 0 in each entry"),
        ({"algorithm__name": "fixmtch"}, "unknown algorithm 'fixmtch'; did you mean 'fixmatch'?"),
        (
            {"algorithm__name": "supervised"},
            "algorithm.name=supervised: the recipe is the method; give --config=supervised:DATA",
        ),
        ({"augment": "randaugmnt"}, "did you mean 'randaugment'?"),
        (
            {"augment": "ctaugment", "views__ctaugment__cta_translate": "fractions"},
            "did you mean 'fraction'?",
        ),
        (
            {"method": "simclr", "chosen": "", "augment": "ctaugment"},
            "CTAugment learns from labeled images",
        ),
        ({"forward": "jont"}, "did you mean 'joint'?"),
        ({"precision": "hihg"}, "did you mean 'high'?"),
        ({"microbatches": 0}, "microbatches=0 must be at least 1"),
        ({"microbatches": 4, "devices": 4}, "8, 16 do not divide into 4 devices x microbatches=4"),
        (
            {"microbatches": 8, "model__bn_groups": 4},
            "microbatches=8 does not divide model.bn_groups=4",
        ),
        ({"dtype": "float31"}, "did you mean 'float32'?"),
        ({"model__name": "wide_rsnet"}, "did you mean 'wide_resnet'?"),
        ({"model__padding": "torchy"}, "did you mean 'torch'?"),
        ({"model__conv_bias": "stm"}, "did you mean 'stem'?"),
        ({"model__depth": 12}, "model.depth=12"),
        ({"model__width": 0}, "model.width=0"),
        ({"model__groups": 0}, "model.groups=0"),
        ({"model__first_stride": 0}, "model.first_stride=0"),
        ({"views__weak__order": "crop_flp"}, "did you mean 'crop_flip'?"),
        ({"views__weak__pad": -1}, "views.weak.pad=-1 must be at least 0"),
        ({"views__strong__table": "googl"}, "did you mean 'google'?"),
        ({"views__strong__order": "ops"}, "did you mean 'ops_first'?"),
        ({"optim__name": "sdg"}, "did you mean 'sgd'?"),
        ({"optim__decay": "kernel"}, "did you mean 'kernels'?"),
        ({"ema__statistics": "copid"}, "did you mean 'copied'?"),
        ({"facts": {"unlabeled": 0}}, "no unlabeled images"),
        ({"facts": {"unlabeled": 2**24 + 1}}, "16,777,217 images are more than the 16,777,216"),
        ({"facts": {"labels": []}}, "no image is labeled"),
    ],
)
def test_settings_that_cannot_work(options, expected):
    with pytest.raises(InputError) as caught:
        program(**options)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_for_no_accelerator_count_is_refused(monkeypatch):
    """Only CPU devices, which are threads, may be left out silently."""

    class Accelerator:
        platform = "gpu"

    monkeypatch.setattr(jax, "devices", lambda: [Accelerator()] * 3)
    with pytest.raises(InputError, match="do not divide over 3 devices"):
        program(data__batch_size=8)


def test_the_split_is_drawn_by_seed_and_a_given_one_is_kept(data):
    load = lambda **options: run_data.load_new(configuration(data, **options))  # noqa: E731
    drawn = load()
    assert np.array_equal(drawn.split.indices, load().split.indices)
    other = load(seed=1)
    assert not np.array_equal(drawn.split.indices, other.split.indices)
    kept = run_data.load_new(configuration(data), other.split)
    assert kept.split is other.split
    assert drawn.facts().labels == (0,) * 4 + (1,) * 4 + (2,) * 4 + (3,) * 4


def test_all_labels_leave_room_for_a_validation_set_which_a_resume_finds_again(data):
    config = configuration(data, chosen=",labels=all", data__validation=10)
    found = run_data.load_new(config)
    assert len(found.split.indices) == len(found.source.images) == 54
    assert len(found.validation_images) == len(found.validation_labels) == 10
    again = run_data.load_new(config, found.split)
    np.testing.assert_array_equal(found.validation_images, again.validation_images)
    np.testing.assert_array_equal(found.source.rows, again.source.rows)


def test_the_pool_without_the_labeled_images(data):
    found = run_data.load_new(configuration(data, data__include_labeled=False))
    assert found.facts().unlabeled == 64 - 16
    assert len(resident(found.source, found.split, False).unlabeled_images) == 64 - 16
    config = configuration(data, chosen=",labels=all", data__include_labeled=False)
    facts = run_data.load_new(config).facts()
    with pytest.raises(InputError, match="no unlabeled images are left"):
        Program.build(config, facts)


def empty_test(tmp_path):
    images = np.zeros((0, 8, 8, 3), np.uint8)
    return write_data(tmp_path / "x.npz", x_test=images, y_test=np.zeros(0, int))


def unknown_class(tmp_path):
    return write_data(tmp_path / "x.npz", y_test=np.arange(24) % 5)


def one_class(tmp_path):
    return write_data(tmp_path / "x.npz", y_train=np.zeros(64, int), y_test=np.zeros(24, int))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (empty_test, "no test images"),
        (unknown_class, "class 4 occurs in y_test but not in y_train"),
        (one_class, "fewer than two classes"),
    ],
)
def test_data_that_cannot_work(make, expected, tmp_path):
    with pytest.raises(InputError, match=expected):
        run_data.load_new(configuration(make(tmp_path)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"chosen": ",labels=80"}, "asks for 20 images of each class"),
        ({"chosen": ",labels=18"}, "cannot be shared equally"),
        ({"chosen": ",labels=2"}, "less than one for each"),
        ({"chosen": ",labels=16", "data__validation": 49}, "validation=49"),
        ({"chosen": ",labels=16", "data__validation": -1}, "validation=-1"),
        ({"chosen": ",split=nowhere.json"}, "nowhere.json"),
        ({"data__labels": "ten"}, "data.labels=ten"),
    ],
)
def test_label_splits_that_cannot_work(options, expected, data):
    with pytest.raises(InputError, match=expected):
        run_data.load_new(configuration(data, **options))


def test_a_split_of_other_data_is_refused(data):
    with pytest.raises(InputError, match="drawn from npz:other"):
        run_data.load_new(
            configuration(data), splits.Split(indices=np.arange(4), source="npz:other")
        )


def test_unknown_data_sets_name_the_nearest():
    config, _ = from_flags("fixmatch:mnist5", [])
    with pytest.raises(InputError, match="did you mean 'mnist5k'"):
        settled(config)


def test_wandb_that_is_not_installed_is_refused_before_anything_starts(monkeypatch, data):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"jaxmatch\[wandb\]"):
        checks.check_numbers(configuration(data, wandb="project"))
