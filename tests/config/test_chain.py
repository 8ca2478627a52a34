"""Configs joined by a plus sign: stages, each with what it reads of the argument."""

import pytest

from jaxmatch.config.flags import from_flags
from jaxmatch.config.saved import run_name
from jaxmatch.errors import InputError


def stages(text, *overrides):
    return from_flags(text, list(overrides))[0].stages


def test_each_stage_starts_from_the_one_before():
    config, notes = from_flags("simclr+supervised+fixmatch:mnist5k,labels=10,seed=3", [])
    assert notes == []
    assert config.order == ("simclr", "supervised", "fixmatch")
    assert [config.stages[name].init_from for name in config.order] == [
        "",
        "stage:1_simclr",
        "stage:2_supervised",
    ]
    assert [config.stages[name].data.labels for name in config.order] == ["none", "10", "10"]
    assert {config.stages[name].seed for name in config.order} == {3}
    assert run_name(config).startswith("simclr+supervised+fixmatch-mnist5k-10-s3-")


def test_overrides_reach_one_stage():
    found = stages("moco_v2+comatch:mnist5k", "--config.stages.moco_v2.steps=30")
    assert found.moco_v2.steps == 30
    assert found.comatch.steps == 1500


def test_a_preset_is_for_the_stages_that_have_it():
    found = stages("simclr+simmatch_v2:mnist5k,preset=torchssl")
    assert found.simclr.preset == "torchssl"
    assert found.simmatch_v2.preset == "jaxmatch"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("simmatch_v2+comatch:mnist5k,preset=torchssl", "comatch has no preset 'torchssl'"),
        ("selfmatch+fixmatch:mnist5k", "selfmatch consists of stages itself"),
        ("fixmatch+fixmatch:mnist5k", "names fixmatch twice"),
        ("simclr+fixmach:mnist5k", "did you mean 'fixmatch'"),
        ("simclr+fixmatch:mnist5k,labels=x", "labels=x is not a whole number"),
    ],
)
def test_what_cannot_be_joined(text, expected):
    with pytest.raises(InputError, match=expected):
        from_flags(text, [])


@pytest.mark.parametrize("order", ["()", "('fixmatch',)", "('a','b')", "(1,)"])
def test_the_order_of_stages_is_no_setting(order):
    with pytest.raises(InputError, match=r"order: the stages are those of the recipe; .*A\+B"):
        from_flags("selfmatch:mnist5k", [f"--config.order={order}"])


def test_fine_tuning_follows_the_number_of_labels_and_the_preset():
    imagenet = "finetune:tfds:imagenet2012,labels="
    swav, _ = from_flags(imagenet + "12811,preset=swav", [])
    assert swav.steps == 1001  # 20 passes in batches of 256
    assert swav.optim.learning_rate == 0.02
    assert swav.optim.classifier_rate * swav.optim.learning_rate == pytest.approx(5)
    tenth, _ = from_flags(imagenet + "128116,preset=swav", [])
    assert tenth.optim.classifier_rate * tenth.optim.learning_rate == pytest.approx(0.2)
    middle, _ = from_flags(imagenet + "12811,preset=simclr_v2", [])
    assert (middle.model.head_layers, middle.model.zero_classifier) == (1, True)
    with pytest.raises(InputError, match="unknown preset 'swav'"):
        from_flags("finetune:mnist5k,preset=swav", [])
