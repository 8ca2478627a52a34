"""The cost model's arithmetic: what must hold whatever the chips and the measured figures are."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from experiments.scaling.measure import MEASURED
from experiments.scaling.plan import (
    CHIPS,
    COMPILED_FOR,
    COUNTS,
    GROUP,
    MEMORY,
    SCALING,
    Figure,
    Work,
    cell,
    figure,
    figures,
    latency,
    predict,
    recorded,
    slower,
    transfer,
    work_of,
)
from experiments.tpu import recipes

COMPILED = json.loads(MEASURED.read_text())["compiled"]
LINES = recorded()
RECIPES = sorted({row["recipe"] for row in COMPILED})
EMAN, SIMMATCH = "fixmatch_eman:tfds:imagenet2012", "simmatch:tfds:imagenet2012"
EACH_CHIP = pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
SMALL = Work(
    labeled=64,
    unlabeled=320,
    reduced=1e8,
    gathered=1e4,
    exchanges=50,
    streamed=False,
)


def whole_step(recipe, factor, chip, count):
    """A step from the compiler's figures."""
    work = work_of(COMPILED, recipe, factor, count)
    known = figures(LINES, recipe, work.groups, work.shared)
    each = figure(known, (work.labeled + work.unlabeled) // count)
    return predict(work, chip, count, each.seconds * slower(chip))


def test_times_are_of_full_compilations():
    assert any(line.get("effort") for line in recipes.lines())
    assert not any(line.get("effort") for line in LINES)
    assert figures(LINES, "fixmatch:tfds:cifar10")[64].seconds < 0.005  # 0.015 with less effort


@EACH_CHIP
def test_one_chip_only_computes(chip):
    step = predict(SMALL, chip, 1, 0.02)
    assert step.gradient == step.latency == step.input == 0
    assert step.seconds == step.compute == 0.02
    assert step.efficiency == 1
    assert step.bound == "compute"


@EACH_CHIP
@pytest.mark.parametrize("recipe", RECIPES)
def test_efficiency_falls_with_the_chips_that_share_a_batch(chip, recipe):
    for factor in (1, 16):
        counts = [count for count in COUNTS if count <= 64 * factor]
        steps = [whole_step(recipe, factor, chip, count) for count in counts]
        shares = [step.compute / step.chips for step in steps]  # whatever the hosts can decode
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
    one, two = (predict(replace(work, unlabeled=count), chip, 8, 0.02) for count in (320, 704))
    assert two.input_rate == pytest.approx(2 * one.input_rate)
    half = predict(work, chip, 8, 0.04)
    assert one.input_rate == pytest.approx(2 * half.input_rate, rel=0.01)
    images = one.input_rate * one.chips * 8 / chip.chips_a_host
    assert images == pytest.approx(64 + 320)
    assert predict(work, chip, 8, 1e-9).bound == "input"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_batch_that_grows_with_the_chips_keeps_their_arithmetic(recipe):
    grows = SCALING[f"a published batch for each {GROUP} chips"]
    chip = CHIPS["TPU v4"]
    steps = [whole_step(recipe, grows(count), chip, count) for count in COUNTS]
    assert [step.compute for step in steps] == pytest.approx([steps[0].compute] * len(COUNTS))
    shares = [step.efficiency for step in steps]
    assert shares == sorted(shares, reverse=True)


def test_groups_that_chips_share_are_exchanged():
    def exchanges(recipe, factor, chips):
        return work_of(COMPILED, recipe, factor, chips).exchanges

    assert exchanges(SIMMATCH, 1, 8) == exchanges(SIMMATCH, 2, 16) < 20
    assert exchanges(SIMMATCH, 1, 16) > 100
    assert exchanges(EMAN, 1, 8) == exchanges(EMAN, 1, 16) > 90


def line(**changes):
    """What :mod:`experiments.tpu` records of a step, as far as the plan reads it."""
    usual = {"config": EMAN, "overrides": [], "topology": "v5e:2x4", "what": "step"}
    return {
        **usual,
        "batch": [64, 320],
        "static_ms": 40.0,
        "memory": {"held": 2e9},
        **changes,
    }


def test_the_last_line_of_a_recipe_for_so_many_images_a_chip_counts():
    lines = [
        line(static_ms=90.0),
        line(),
        line(what="augment", static_ms=4.0),
        line(topology="v5p:2x2x2", static_ms=20.0),
        line(config=SIMMATCH, static_ms=50.0),
        line(overrides=["--config.model.depth=10"], static_ms=1.0),
        line(topology="v5e:1x1", error="it does not fit", memory=None, static_ms=None),
        # Eight times the batch on 64 chips would be as many images; four times is half of them.
        line(config=f"{EMAN},scale=4", topology="v5e:8x8", batch=[256, 1280], static_ms=22.0),
    ]
    assert figures(lines, EMAN) == {48: Figure(0.04, 2e9), 24: Figure(0.022, 2e9)}


def test_between_and_beyond_figures_is_the_line_through_two():
    known = {8: Figure(0.01, 1e9), 16: Figure(0.02, 1.5e9), 64: Figure(0.1, 3e9)}
    assert figure(known, 16) == (0.02, 1.5e9, True)
    assert figure(known, 12) == (pytest.approx(0.015), pytest.approx(1.25e9), False)
    assert figure(known, 40) == (pytest.approx(0.06), pytest.approx(2.25e9), False)
    assert figure(known, 112) == (pytest.approx(0.18), pytest.approx(4.5e9), False)
    assert figure(known, 4) == (pytest.approx(0.005), pytest.approx(0.5e9), False)
    assert figure({8: known[8]}, 16) == (pytest.approx(0.02), pytest.approx(2e9), False)
    with pytest.raises(ValueError, match="record a step"):
        figure({}, 16)


def test_a_cell_says_where_its_figures_come_from():
    works = Figure(0.02, 2e9)
    assert slower(CHIPS[COMPILED_FOR]) == 1
    assert "(s, 2.0 GB)" in cell(SMALL, COMPILED_FOR, 8, works)
    assert "(i, 2.0 GB)" in cell(SMALL, COMPILED_FOR, 8, works._replace(static=False))
    assert "does not fit" in cell(SMALL, COMPILED_FOR, 8, Figure(0.02, MEMORY + 1e6))
    for name in set(CHIPS) - {COMPILED_FOR}:
        assert cell(SMALL, name, 8, works).endswith("(a)")
        assert 0.1 < slower(CHIPS[name]) < 1


def test_what_chips_that_share_groups_take_is_no_measure_for_others():
    lines = [line(config=SIMMATCH), line(config=SIMMATCH, topology="v5e:8x8", static_ms=20.0)]
    assert set(figures(lines, SIMMATCH, 8, shared=True)) == {48, 6}
    assert set(figures(lines, SIMMATCH, 8, shared=False)) == {48}
    grown = line(config=f"{SIMMATCH},scale=8", topology="v5e:8x8", batch=[512, 2560])
    assert set(figures([grown], SIMMATCH, 8)) == {48}
