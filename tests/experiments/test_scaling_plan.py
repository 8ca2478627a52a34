"""The cost model's arithmetic: what must hold whatever the chips and the measured figures are."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from experiments.scaling.measure import MEASURED
from experiments.scaling.plan import (
    CHIPS,
    COUNTS,
    GROUP,
    SCALING,
    Work,
    latency,
    predict,
    transfer,
    work_of,
)

COMPILED = json.loads(MEASURED.read_text())["compiled"]
RECIPES = sorted({row["recipe"] for row in COMPILED})
EMAN, SIMMATCH = "fixmatch_eman:tfds:imagenet2012", "simmatch:tfds:imagenet2012"
EACH_CHIP = pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
SMALL = Work(
    operations=1e12,
    labeled=64,
    unlabeled=320,
    reduced=1e8,
    gathered=1e4,
    exchanges=50,
    utilisation=0.25,
    streamed=False,
)


@EACH_CHIP
def test_one_chip_only_computes(chip):
    step = predict(SMALL, chip, 1)
    assert step.gradient == step.latency == step.input == 0
    assert step.seconds == step.compute == 1e12 / (chip.operations * 0.25)
    assert step.efficiency == 1
    assert step.bound == "compute"


@EACH_CHIP
@pytest.mark.parametrize("recipe", RECIPES)
def test_efficiency_falls_with_the_chips_that_share_a_batch(chip, recipe):
    for factor in (1, 16):
        shares = [
            predict(work_of(COMPILED, recipe, factor, count), chip, count).efficiency
            for count in COUNTS
        ]
        assert min(shares) > 0
        assert max(shares) <= 1
        assert all(after <= before for before, after in pairwise(shares))
        assert shares[-1] < shares[0]


@EACH_CHIP
def test_more_bytes_more_chips_and_more_hops_take_longer(chip):
    powers = (1, 2, *COUNTS)
    assert latency(chip, 1) == transfer(chip, 1, 1e8) == 0
    for before, after in pairwise(powers):
        assert latency(chip, before) <= latency(chip, after)
        assert transfer(chip, before, 1e8) < transfer(chip, after, 1e8)
    assert transfer(chip, 8, 2e8) == pytest.approx(2 * transfer(chip, 8, 1e8))
    # A ring of n carries 2 (n - 1) / n of the bytes: from two chips to eight, 7/4 of them.
    assert transfer(chip, 8, 1e8) == pytest.approx(7 / 4 * transfer(chip, 2, 1e8))


@EACH_CHIP
def test_hosts_decode_in_proportion_to_images_a_second(chip):
    work = replace(SMALL, streamed=True, reduced=0.0, gathered=0.0, exchanges=0)
    one, two = (predict(replace(work, unlabeled=count), chip, 8) for count in (320, 704))
    assert two.input_rate == pytest.approx(2 * one.input_rate)
    slower = predict(replace(work, operations=2 * work.operations), chip, 8)
    assert one.input_rate == pytest.approx(2 * slower.input_rate, rel=0.01)
    images = one.input_rate * one.chips * 8 / chip.chips_a_host
    assert images == pytest.approx(64 + 320)
    assert predict(replace(work, operations=1.0), chip, 8).bound == "input"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_batch_that_grows_with_the_chips_keeps_their_arithmetic(recipe):
    grows = SCALING[f"a published batch for each {GROUP} chips"]
    chip = CHIPS["TPU v4"]
    steps = [
        predict(work_of(COMPILED, recipe, grows(count), count), chip, count) for count in COUNTS
    ]
    assert [step.compute for step in steps] == pytest.approx([steps[0].compute] * len(COUNTS))
    shares = [step.efficiency for step in steps]
    assert shares == sorted(shares, reverse=True)


def test_groups_that_chips_share_are_exchanged():
    def exchanges(recipe, factor, chips):
        return work_of(COMPILED, recipe, factor, chips).exchanges

    assert exchanges(SIMMATCH, 1, 8) == exchanges(SIMMATCH, 2, 16) < 20
    assert exchanges(SIMMATCH, 1, 16) > 100
    assert exchanges(EMAN, 1, 8) == exchanges(EMAN, 1, 16) > 90
