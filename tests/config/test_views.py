"""Named augmentations: what they set, what wins over them, and what they keep out."""

import json

import pytest

import jaxmatch
from jaxmatch.augment.build import build_transforms
from jaxmatch.augment.contrast import Contrast
from jaxmatch.augment.randaugment import RandAugment
from jaxmatch.augment.weak import Weak
from jaxmatch.config.checks import check_settings
from jaxmatch.config.flags import from_flags
from jaxmatch.config.own import Circumstances, settle, with_usual_input
from jaxmatch.config.presets import VIEWS
from jaxmatch.config.saved import complete, to_json
from jaxmatch.config.stages import stages_of
from jaxmatch.errors import InputError

# What may take away the difference between two classes of gray images.
ERASING = {"color", "posterize", "solarize", "solarize_add", "invert", "equalize"}
UPRIGHT = {"photographs": (True, False), "documents": (False, False), "medical": (True, False)}
RECIPES = [
    "fixmatch:folder:pictures,labels=40",
    "fixmatch:mnist5k,preset=google",
    "comatch:mnist5k,preset=usb",
    "remixmatch:mnist5k",
    "supervised:mnist5k",
    "byol:folder:pictures",
    "swav:mnist5k",
    "simclr+fixmatch:folder:pictures,labels=40",
    "selfmatch:mnist5k,labels=40",
]


def transforms(argument, *overrides):
    config, _ = from_flags(argument, overrides)
    return build_transforms(config.augment, config.views)


# Each recipe with one of them, and each of them with one recipe.
@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        pytest.param(
            recipe,
            name,
            marks=() if recipe == RECIPES[0] or name == "medical" else pytest.mark.slow,
        )
        for recipe in RECIPES
        for name in VIEWS
    ],
)
def test_every_recipe_takes_them(recipe, name):
    config, notes = from_flags(f"{recipe},views={name}", [])
    assert sum(note.startswith(f"views={name}: ") for note in notes) == 1
    for stage in stages_of(config).values():
        check_settings(with_usual_input(settle(stage, Circumstances(side=64))[0]))
        assert stage.views_preset == name
        found = build_transforms(stage.augment, stage.views)
        weak, ops = found["strong"].transforms
        if stage.recipe == "fixmatch":
            assert isinstance(ops, RandAugment)
        assert weak == found["weak"]
        saved = complete(json.loads(json.dumps(to_json(stage))))
        assert build_transforms(saved.augment, saved.views) == found


@pytest.mark.parametrize("name", ["documents", "medical", "industrial"])
def test_nothing_erases_what_tells_the_classes_apart(name):
    found = transforms(f"fixmatch:folder:pictures,views={name}")
    policy = found["strong"].transforms[1].policy()
    assert not ERASING & set(policy.choices)
    assert not policy.cuts
    assert policy.strength <= 0.5
    assert policy.padding in ("edge", "reflect")
    for role in ("contrast", "second"):
        view = found[role]
        assert isinstance(view, Contrast)
        assert (view.hue, view.saturation, view.grayscale, view.solarize, view.blur) == (0,) * 5
        assert view.area[0] >= 0.35


@pytest.mark.parametrize("name", VIEWS)
def test_flips_are_those_that_keep_the_meaning(name):
    across, down = UPRIGHT.get(name, (True, True))
    found = transforms(f"fixmatch:mnist5k,views={name}")
    weak = found["weak"]
    assert isinstance(weak, Weak)
    assert (weak.flip, weak.vertical_flip, weak.rotate90) == (across, down, False)
    for role in ("contrast", "second", "small"):
        view = found[role]
        assert (view.flip, view.vertical_flip) == (0.5 * across, 0.5 * down)


def test_photographs_are_the_published_views_on_any_data():
    usual = transforms("fixmatch:folder:pictures")
    assert transforms("fixmatch:folder:pictures,views=photographs") == usual
    assert transforms("fixmatch:mnist5k,views=photographs") == usual  # which flips no digit itself


def test_overrides_win_over_them_and_they_over_a_preset():
    text = "fixmatch:mnist5k,preset=google,views=industrial"
    config, notes = from_flags(text, ["--config.views.strong.strength=0.8"])
    assert (config.preset, config.views_preset) == ("google", "industrial")
    assert config.augment == "randaugment"
    assert (config.views.strong.table, config.views.strong.strength) == ("torchssl", 0.8)
    told = [note for note in notes if "preset 'google'" in note]
    assert sorted(note.partition(":")[0] for note in told) == ["augment", "views.strong.table"]
    # The rest of the preset stays.
    assert transforms("fixmatch:mnist5k,preset=usb,views=medical")["weak"].order == "crop_flip"


def test_from_python():
    config = jaxmatch.config("fixmatch:mnist5k", views="documents", labels=40)
    assert config == from_flags("fixmatch:mnist5k,labels=40,views=documents", [])[0]
    assert config.views.strong.padding == "edge"


@pytest.mark.parametrize(
    ("argument", "overrides", "message"),
    [
        ("fixmatch:mnist5k,views=industry", [], "unknown views 'industry'; did you mean 'industri"),
        ("simclr:mnist5k,views=x", [], "documents, industrial, medical, photographs"),
        ("fixmatch:mnist5k,view=medical", [], "did you mean 'views'?"),
        (
            "fixmatch:mnist5k",
            ["--config.views_preset=medical"],
            "views belongs in the argument: --config=NAME:DATA,views=NAME.",
        ),
        (
            "simclr+fixmatch:mnist5k",
            ["--config.stages.fixmatch.views_preset=medical"],
            "views belongs in the argument",
        ),
    ],
)
def test_wrong_names_are_one_sentence(argument, overrides, message):
    with pytest.raises(InputError) as caught:
        from_flags(argument, overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "setting", ["ops=('rotate',)", "number=1", "strength=0.5", "cutout=False", "fill=0"]
)
def test_settings_that_ctaugment_does_not_read_are_refused(setting):
    override = f"--config.views.strong.{setting}"
    config, notes = from_flags("fixmatch:mnist5k,preset=google", [override])
    assert notes == []  # the error says it
    with pytest.raises(
        InputError, match=r"has no effect on augment=ctaugment.*randaugment"
    ) as caught:
        check_settings(config)
    assert ("set views.ctaugment.cutout, or" in str(caught.value)) == ("cutout" in setting)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("cutout=False", False),
        ("cutout=True", True),
        ("cutout=0.25", 0.25),
        ("fill=127", 127),
        ("fill=(1,2,3)", (1, 2, 3)),
        ("number=1", 1),
        ("ops=('rotate','color')", ("rotate", "color")),
        ("padding=edge", "edge"),
    ],
)
def test_the_command_line_and_the_saved_configuration_give_the_value(flag, value):
    config, _ = from_flags("fixmatch:mnist5k", [f"--config.views.strong.{flag}"])
    key = flag.partition("=")[0]
    assert config.views.strong[key] == value
    assert type(config.views.strong[key]) is type(value)
    saved = complete(json.loads(json.dumps(to_json(config))))
    assert build_transforms(saved.augment, saved.views) == build_transforms(
        config.augment, config.views
    )


def test_a_run_from_before_these_settings_has_their_defaults():
    usual, _ = from_flags("fixmatch:mnist5k", [])
    old = to_json(usual)
    del old["views_preset"]
    for section, keys in {
        "strong": ("ops", "number", "strength", "cutout", "fill", "padding"),
        "weak": ("padding", "vertical_flip", "rotate90"),
        "contrast": ("vertical_flip", "rotate90"),
    }.items():
        for key in keys:
            del old["views"][section][key]
    assert to_json(complete(old)) == to_json(usual)


def test_cropped_weak_views_have_the_flips_too():
    found = transforms(
        "fixmatch:mnist5k,views=industrial",
        "--config.views.weak.area=(0.2,1.0)",
        "--config.views.weak.rotate90=True",
    )["weak"]
    assert isinstance(found, Contrast)
    assert (found.flip, found.vertical_flip, found.rotate90) == (0.5, 0.5, True)
    assert not found.colors().transforms


@pytest.mark.parametrize(
    ("argument", "flag", "words"),
    [
        ("supervised:mnist5k", "strong.number=1", "supervised draws no strong views"),
        ("fixmatch:mnist5k", "contrast.blur=0.5", "fixmatch draws no contrast views"),
        ("simclr:mnist5k", "second.blur=0.5", "simclr draws no second views"),
        ("simclr:mnist5k", "weak.flip=True", "simclr draws no weak views"),
        (
            "fixmatch:mnist5k,preset=google",
            "strong.table=eman",
            "augment=ctaugment reads views.ctaugment and views.weak",
        ),
        (
            "simclr+fixmatch:mnist5k",
            "contrast.blur=0.5",
            "--config.stages.fixmatch.views.contrast.blur=0.5 has no effect",
        ),
    ],
)
def test_an_override_of_views_that_are_not_drawn_is_noted(argument, flag, words):
    stage = "stages.fixmatch." if "+" in argument else ""
    _, notes = from_flags(argument, [f"--config.{stage}views.{flag}"])
    assert sum("has no effect" in note for note in notes) == 1
    assert any(words in note for note in notes)


@pytest.mark.parametrize(
    ("argument", "turns_off", "flag", "words"),
    [
        ("fixmatch", "weak.area=(0.2,1.0)", "weak.pad=2", "a crop is resized, not padded"),
        ("fixmatch", "weak.area=(0.2,1.0)", "weak.padding=edge", "a crop is resized, not padded"),
        ("fixmatch", "weak.area=(0.2,1.0)", "weak.order=crop_flip", "a crop is resized, not"),
        ("fixmatch", "weak.pad=0", "weak.padding=edge", "views.weak.pad is 0"),
        ("fixmatch", "strong.padding=edge", "strong.fill=0", None),
        ("simmatch", "strong.cutout=False", "strong.fill=0", None),
        ("simclr", "contrast.jitter=0", "contrast.hue=0.2", "views.contrast.jitter is 0"),
        ("byol", "second.blur=0", "second.sigma=(1.0, 2.0)", "views.second.blur is 0"),
        ("swav", "small.jitter=0", "small.contrast=1.0", "views.small.jitter is 0"),
        ("swav", "contrast.jitter=0", "small.contrast=1.0", None),
    ],
)
def test_an_override_that_another_setting_turns_off_is_noted(argument, turns_off, flag, words):
    overrides = [f"--config.views.{each}" for each in (turns_off, flag)]
    _, notes = from_flags(f"{argument}:mnist5k", overrides)
    assert len(notes) == bool(words)
    assert not words or notes[0].startswith(f"{overrides[1]} has no effect: ")
    assert not words or words in notes[0]


@pytest.mark.parametrize(
    ("argument", "noted"), [("supervised", True), ("byol", True), ("uda", False)]
)
@pytest.mark.parametrize("augment", ["contrast", "randaugment"])
def test_a_kind_of_strong_views_where_none_is_drawn_is_noted(argument, noted, augment):
    _, notes = from_flags(f"{argument}:mnist5k", [f"--config.augment={augment}"])
    sentence = f"--config.augment={augment} has no effect: {argument} draws no strong views."
    assert notes == ([sentence] if noted else [])


def test_a_fill_that_nothing_uncovers_is_noted():
    flags = ["--config.views.strong.fill=0"]
    _, notes = from_flags("fixmatch:mnist5k,views=medical", flags)
    assert "views.strong.padding=edge fills, and nothing is cut out." in notes[-1]


def test_the_order_of_ops_that_contrast_views_lack_is_noted():
    flags = ["--config.augment=contrast", "--config.views.strong.order=ops_first"]
    _, notes = from_flags("fixmatch:mnist5k", flags)
    assert notes == [
        f"{flags[1]} has no effect: augment=contrast reads views.contrast and views.weak."
    ]


@pytest.mark.parametrize(
    ("argument", "flag"),
    [
        ("fixmatch:mnist5k", "strong.number=1"),
        ("fixmatch:mnist5k", "weak.flip=True"),
        ("fixmatch:mnist5k,preset=google", "strong.order=ops_first"),
        ("fixmatch:mnist5k,preset=google", "ctaugment.depth=1"),
        ("simclr:mnist5k", "contrast.blur=0.5"),
        ("swav:mnist5k", "small.blur=0.5"),
        ("byol:mnist5k", "second.blur=0.5"),
    ],
)
def test_an_override_of_views_that_are_drawn_is_not_noted(argument, flag):
    assert from_flags(argument, [f"--config.views.{flag}"])[1] == []


@pytest.mark.parametrize(
    ("argument", "noted"),
    [
        ("s4l_rotation:mnist5k,views=industrial", True),
        ("remixmatch:mnist5k,views=industrial", True),
        ("remixmatch:mnist5k,views=medical", False),
        ("fixmatch:mnist5k,views=industrial", False),
    ],
)
def test_rotations_cannot_be_told_from_turned_views(argument, noted):
    _, notes = from_flags(argument, [])
    assert any("learns to tell rotations" in note for note in notes) == noted
