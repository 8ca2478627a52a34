"""Settings that others turn off are told of, if somebody gives them."""

import pytest

from jaxmatch.config import idle
from jaxmatch.config.dotted import flatten
from jaxmatch.config.flags import from_flags


def notes(recipe, *overrides):
    found = from_flags(f"{recipe}:mnist5k", [f"--config.{each}" for each in overrides])[1]
    return [note for note in found if "has no effect" in note]


@pytest.mark.parametrize(
    ("recipe", "override", "on", "reason"),
    [
        ("fixmatch", "algorithm.temperature=0.5", "algorithm.hard_labels=False", "True"),
        ("fixmatch", "optim.momentum=0.5", "optim.name=sgd", "adamw"),
        ("fixmatch", "optim.trust_ratio=separate", "optim.name=lars", "sgd"),
        ("fixmatch", "optim.drop_factor=0.5", "optim.schedule=steps", "cosine_7_16"),
        ("fixmatch", "unequal.align_momentum=0.9", "unequal.align=uniform", "none"),
        ("fixmatch", "unequal.abc_threshold=0.5", "unequal.abc=1", "0.0"),
        ("fixmatch", "unequal.debias_momentum=0.9", "unequal.debias=0.4", "0.0"),
    ],
)
def test_an_idle_setting_is_told_of_with_what_turns_it_off(recipe, override, on, reason):
    other = on.partition("=")[0]
    off = ["optim.name=adamw"] if reason == "adamw" else []
    (note,) = notes(recipe, *off, override)
    assert note == f"--config.{override} has no effect: {other} is {reason}."
    assert notes(recipe, override, on) == []
    assert notes(recipe) == []


def test_other_methods_use_their_temperature():
    assert notes("simmatch", "algorithm.temperature=0.2") == []


def test_the_key_has_its_stage():
    key = "stages.fixmatch.algorithm.temperature"
    (note,) = notes("selfmatch", f"{key}=0.5")
    assert note == (
        f"--config.{key}=0.5 has no effect: stages.fixmatch.algorithm.hard_labels is True."
    )


def test_all_settings_in_the_table_exist():
    known = flatten(from_flags("fixmatch:mnist5k", [])[0])
    for key, (other, _) in idle.EFFECTIVE.items():
        assert {key, other} <= known.keys()
