"""Values that a setting does not take are refused in one sentence; those it takes stay possible."""

import dataclasses
import math
from typing import Annotated, Literal, get_args, get_origin

import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_runs import arguments, configuration, settled_configuration

from jaxmatch import train
from jaxmatch.algorithms import ALGORITHMS, build_algorithm
from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.augment.contrast import Contrast
from jaxmatch.augment.ctaugment import CTAugment
from jaxmatch.augment.randaugment import RandAugment
from jaxmatch.augment.weak import Weak
from jaxmatch.cli.main import main
from jaxmatch.config.checks import check_settings
from jaxmatch.config.dotted import flatten
from jaxmatch.config.flags import from_flags
from jaxmatch.config.keys import KEYS, defaults
from jaxmatch.config.saved import complete, to_json
from jaxmatch.errors import InputError
from jaxmatch.models.build import MODELS, model_settings
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim
from jaxmatch.settings import Count, Range, Share, build_section, check_value, demand, section

SECTIONS = {
    "optim": Optim,
    "ema": Ema,
    "views.weak": Weak,
    "views.contrast": Contrast,
    "views.ctaugment": CTAugment,
}
KINDS = [
    *(pytest.param(kind, "algorithm", id=name) for name, kind in ALGORITHMS.items()),
    *(pytest.param(kind, name, id=name) for name, kind in SECTIONS.items()),
]


def numeric(kind):
    """Whether a field takes numbers: alone, beside None, or in tuples."""
    if get_origin(kind) is Annotated or get_args(kind):
        return any(numeric(each) for each in get_args(kind))
    return kind in (int, float)


def filled(value, number):
    return (number,) * len(value) if isinstance(value, tuple) else number


@pytest.mark.parametrize(("kind", "where"), KINDS)
def test_every_number_has_a_range(kind, where):
    for field in dataclasses.fields(kind):
        if not numeric(field.type):
            continue
        default = (0.5,) if field.name == "drops" else field.default
        for number in (-1, math.nan, math.inf, -math.inf, "1", True, None):
            if number is None and "None" in str(field.type):
                continue
            wrong = {field.name: filled(default, number)}
            with pytest.raises(InputError, match=rf"{where}\.{field.name}=.* must ") as caught:
                kind(**wrong)
            assert str(caught.value).count(".") <= 8
            with pytest.raises(InputError, match=rf"there\.{field.name}=.* must "):
                build_section(kind, wrong, "there")


@pytest.mark.parametrize(("kind", "where"), [*KINDS, (RandAugment, "views.strong")])
def test_every_text_is_one_of_listed_choices(kind, where):
    for field in dataclasses.fields(kind):
        assert field.type is not str
        if get_origin(field.type) is Literal:
            with pytest.raises(InputError, match=rf"unknown {where}\.{field.name} '\?'; known: "):
                kind(**{field.name: "?"})


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("augment", "contrast, ctaugment, randaugment"),
        ("dtype", "bfloat16, float32"),
        ("forward", "joint, separate, split"),
        ("memory_placement", "auto, replicated, sharded"),
        ("precision", "default, high, highest"),
        ("views.strong.order", "ops_first, weak_first"),
    ],
)
def test_choices_of_no_section_are_checked_before_a_program_is_built(key, known):
    config, _ = from_flags("fixmatch:mnist5k", [f"--config.{key}=x"])
    with pytest.raises(InputError, match=f"unknown {key} 'x'; known: {known}"):
        check_settings(config)


# The others have more numbers, and are seen every night.
FAMILIES = ("wide_resnet",)
THRESHOLDS = (
    "comatch",
    "fixmatch",
    "fixmatch_eman",
    "iomatch",
    "pseudo_label",
    "simmatch",
    "simmatch_v2",
    "uda",
)
RAMPS = (
    "mean_teacher",
    "mixmatch",
    "pi_model",
    "pseudo_label",
    "remixmatch",
    "temporal_ensembling",
    "vat",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow) for name in MODELS],
)
def test_every_number_of_a_network_has_a_range(name):
    for key, default in model_settings(name).items():
        if isinstance(default, bool | str):
            continue
        for wrong in (-1, math.nan, math.inf, "1", True):
            config = settled_configuration("x.npz")
            config.model = ConfigDict({"name": name, **model_settings(name), key: wrong})
            with pytest.raises(InputError, match=rf"model\.{key}=.* must "):
                check_settings(config)


def test_every_setting_of_no_section_has_a_type():
    sections = {"optim", "ema", "frozen", "unequal"}
    keys = {key for key in flatten(defaults()) if key.partition(".")[0] not in sections}
    views = {f"views.{role}." for role in ("weak", "strong", "contrast", "second", "small")}
    own = {key for key in keys if key.startswith((*views, "views.ctaugment."))}
    networks = {key for key in keys if key.startswith("model.") and key != "model.name"}
    assert keys - own - networks <= KEYS.keys()
    assert KEYS.keys() - {"algorithm.name"} <= keys


@pytest.mark.parametrize("key", KEYS)
def test_values_of_another_type_are_refused(key):
    config = settled_configuration("x.npz")
    for wrong in (object(), math.nan, -1, -0.5):
        if key == "data.mean" and wrong is not math.nan:
            continue
        with config.ignore_type():
            *parents, last = key.split(".")
            place = config
            for parent in parents:
                place = place[parent]
            place[last] = (wrong,) if key in ("data.mean", "data.std") else wrong
        with pytest.raises(InputError, match=rf"^{key}=.* must "):
            check_settings(config)


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("algorithm.threshold=95", "algorithm.threshold=95.0 must lie between 0 and 1, or above"),
        ("algorithm.threshold=-0.1", "algorithm.threshold=-0.1 must lie between 0 and 1"),
        ("algorithm.threshold=nan", "algorithm.threshold=nan must be finite"),
        ("algorithm.temperature=0", "algorithm.temperature=0.0 must be above 0."),
        ("algorithm.unlabeled_weight=-1", "algorithm.unlabeled_weight=-1.0 must be at least 0."),
        ("optim.learning_rate=-0.1", "optim.learning_rate=-0.1 must be at least 0."),
        ("optim.learning_rate=inf", "optim.learning_rate=inf must be finite."),
        ("optim.momentum=1", "optim.momentum=1.0 must be at least 0 and below 1."),
        ("optim.warmup_steps=-1", "optim.warmup_steps=-1 must be at least 0."),
        ("optim.drops=(0.5,1.5)", "optim.drops=(0.5, 1.5) must be above 0 and below 1 in each"),
        ("optim.period_steps=0", "optim.period_steps=0 must be at least 1."),
        ("ema.decay=2", "ema.decay=2.0 must be at least 0 and below 1."),
        ("workers=-2", "workers=-2 must be at least 0."),
        ("devices=-1", "devices=-1 must be at least 0."),
        ("keep=0", "keep=0 must be at least 1."),
        ("steps=3000000000", "steps=3000000000 must be at most 2147483647."),
        ("seed=4294967296", "seed=4294967296 must lie between 0 and 4294967295."),
        ("data.validation=-1", "data.validation=-1 must be at least 0."),
        ("data.ratio=-1", "data.ratio=-1 must be at least 0."),
        ("data.center_crop=0", "data.center_crop=0.0 must be above 0 and at most 1."),
        ("data.std=(-1.0,)", "data.std=(-1.0,) must be above 0 in each entry."),
        ("model.bn_eps=0", "model.bn_eps=0.0 must be above 0."),
        ("views.contrast.hue=0.6", "views.contrast.hue=0.6 must lie between 0 and 0.5."),
        ("views.small.flip=2", "views.small.flip=2.0 must lie between 0 and 1."),
        ("views.weak.area=(0.5,)", "views.weak.area=(0.5,) must have 0 or 2 entries."),
        ("views.strong.fill=(1,2)", "views.strong.fill=(1, 2) must have 3 entries."),
        ("ema.decay=1", "ema.decay=1.0 must be at least 0 and below 1."),
        ("optim.layer_decay=0", "optim.layer_decay=0.0 must be above 0 and at most 1."),
        ("optim.learning_rate=1e308", "must lie in the range of float32, 1e-38 to 3e+38."),
        ("data.std=(1e-320,)", "must lie in the range of float32, 1e-38 to 3e+38 in each entry."),
        (f"data.mean=({10**400},)", "must lie in the range of float32"),
        ("model.width=1e30", "must lie between 0.0625 and 1024."),
        ("model.depth=6004", "must lie between 1 and 1000."),
        ("data.batch_size=100000000", "but it takes at most 4194304; lower one of them."),
        ("data.ratio=2147483647", "but it takes at most 4194304; lower one of them."),
        ("data.image_size=100000", "must lie between 1 and 16384."),
    ],
)
def test_nothing_is_written_for_a_value_that_cannot_work(flag, sentence, data, tmp_path, capsys):
    words = [*arguments(data), f"--config.{flag}"]
    with pytest.raises(SystemExit) as end:
        main(["train", *words, "--workdir", str(tmp_path / "run")])
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_sweep_refuses_a_point_by_the_same_checks(data, tmp_path, capsys):
    config, *overrides = arguments(data)
    path = tmp_path / "sweep.py"
    text = f"""def sweep():
    yield {{"config": {config.removeprefix("--config=")!r}, "ema.decay": 2.0}}
"""
    path.write_text(text)
    with pytest.raises(SystemExit) as end:
        main(["sweep", f"--config={path}", *overrides])
    assert end.value.code == 2
    assert "point 1 of the sweep" in (said := capsys.readouterr().err)
    assert "ema.decay=2.0 must be at least 0 and below 1." in said


def test_training_from_python_checks_before_anything_is_written(data, tmp_path):
    config = configuration(data)
    config.algorithm.temperature = -1.0
    with pytest.raises(InputError, match=r"algorithm\.temperature=-1.0 must be above 0"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "key", "effect"),
    [
        *((name, "threshold", "turns it off") for name in THRESHOLDS),
        ("iomatch", "open_threshold", "turns it off"),
        ("flexmatch", "threshold", "lets every image count"),
        *((name, "ramp", "keeps the weight below its value to the end") for name in RAMPS),
    ],
)
def test_thresholds_and_ramps_above_1_are_possible_and_noted(recipe, key, effect):
    _, notes = from_flags(f"{recipe}:mnist5k", [f"--config.algorithm.{key}=1.5"])
    assert notes == [f"algorithm.{key}=1.5 is above 1, which {effect}."]
    config, notes = from_flags(f"{recipe}:mnist5k", [f"--config.algorithm.{key}=40"])
    assert notes == []
    limit = r"must lie between 0 and 1, or above that and at most \d+, which "
    with pytest.raises(InputError, match=limit + effect):
        build_algorithm(config.algorithm)


def test_a_threshold_that_turns_the_unlabeled_loss_off_is_possible_and_noted():
    assert FixMatch(threshold=1.01).threshold == 1.01
    _, notes = from_flags("fixmatch:mnist5k", ["--config.algorithm.threshold=1.5"])
    assert notes == ["algorithm.threshold=1.5 is above 1, which turns it off."]
    _, notes = from_flags(
        "selfmatch:mnist5k,labels=40", ["--config.stages.fixmatch.algorithm.threshold=2"]
    )
    assert notes == ["stages.fixmatch.algorithm.threshold=2.0 is above 1, which turns it off."]
    for value in (1, 95):  # on, and refused where the method is built
        assert from_flags("fixmatch:mnist5k", [f"--config.algorithm.threshold={value}"])[1] == []


def test_saved_configurations_and_numbers_of_numpy_are_taken():
    config = from_flags("freematch:mnist5k", [])[0]
    again = complete(to_json(config))  # lists in place of tuples
    check_settings(again)
    assert build_section(Optim, {"drops": [0.5], "schedule": "steps"}, "optim").drops == (0.5,)
    assert FixMatch(threshold=np.float32(0.5), unlabeled_weight=np.int64(2)).unlabeled_weight == 2
    check_value("steps", np.int32(5), Count)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("x", Count, "must be a whole number, at least 1"),
        (1.5, Count, "must be a whole number, at least 1"),
        ("x", Share, "must be a number, at least 0 and at most 1"),
        (math.nan, Share, "must be finite"),
        (2, Share, "must lie between 0 and 1"),
        (None, Count | None, ""),
        (0, Count | None, "must be at least 1"),
        ((1, 2), KEYS["data.background"].kind, "must have 0, 1 or 3 entries"),
        ((1, 2, 300), KEYS["data.background"].kind, "must lie between 0 and 255 in each entry"),
        ((), tuple[Share] | tuple[Share, Share], "must have 1 or 2 entries"),
        ((0.5, "x"), tuple[Share] | tuple[Share, Share],
         "must be a number, at least 0 and at most 1 in each entry"),
        ("x", tuple[str, ...], "must be a tuple, such as ('a', 'b')"),
    ],
)  # fmt: skip
def test_demands_name_the_type_and_its_range(value, kind, expected):
    assert demand(value, kind) == expected


def test_a_section_checks_its_heirs_too():
    @section("test")
    class Parent:
        share: Share = 0.5

        def __post_init__(self):
            assert self.share != 0.25

    @section("test")
    class Child(Parent):
        odd: Annotated[int, Range(above=0, below=3)] = 1

    with pytest.raises(InputError, match=r"test\.share=2 must lie between 0 and 1"):
        Child(share=2)
    with pytest.raises(InputError, match=r"test\.odd=3 must be above 0 and below 3"):
        Child(odd=3)
    with pytest.raises(AssertionError):
        Child(share=0.25)
