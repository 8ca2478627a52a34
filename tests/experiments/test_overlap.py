"""What lies beside exchanges: read from a scheduled program, and of a small run on eight chips."""

import json
import os
import subprocess
import sys

import pytest

from experiments.tpu import hlo
from experiments.tpu.overlap import exchanges, waits

# A sum that all wait for; one between whose start and done 300 cycles of work lie, 100 of them in a
# loop; one that a fusion starts, a second goes on with beside 70 cycles, and a third ends.
TEXT = """HloModule jit_call, is_scheduled=true

FileNames

FileLocations

StackFrames

%begin (p: f32[256]) -> f32[256] {
  %p = f32[256]{0} parameter(0)
  ROOT %all-reduce.7 = f32[256]{0} all-reduce(%p), channel_id=7
}

%async_collective_fusion.1 (q: f32[256]) -> f32[256] {
  %q = f32[256]{0} parameter(0)
  ROOT %all-reduce.8 = f32[256]{0} all-reduce(%q), channel_id=7
}

%end (r: f32[256]) -> f32[256] {
  %r = f32[256]{0} parameter(0)
  ROOT %all-reduce.9 = f32[256]{0} all-reduce(%r), channel_id=7
}

%body (s: (s32[], f32[256])) -> (s32[], f32[256]) {
  %s = (s32[], f32[256]{0}) parameter(0)
  ROOT %inner = (s32[], f32[256]) fusion(%s), WORK 25
}

%condition (s: (s32[], f32[256])) -> pred[] {
  %s.1 = (s32[], f32[256]{0}) parameter(0)
  %bound = s32[] constant(4)
  ROOT %less = pred[] compare(%s.1, %bound), direction=LT
}

ENTRY %main (a: f32[256]) -> f32[256] {
  %a = f32[256]{0} parameter(0)
  %first = f32[256]{0} fusion(%a), WORK 1000
  %waited = f32[2,8]{1,0} all-reduce(%first), channel_id=1
  %all-reduce-start.2 = f32[256]{0} all-reduce-start(%first), channel_id=2
  %second = f32[256]{0} fusion(%waited), WORK 200
  %while.1 = (s32[], f32[256]) while(%second), condition=%condition, body=%body
  %all-reduce-done.2 = f32[256]{0} all-reduce-done(%all-reduce-start.2)
  %three = f32[256]{0} fusion(%all-reduce-done.2), kind=kCustom, calls=%begin
  %four = f32[256]{0} fusion(%three), kind=kLoop, calls=%async_collective_fusion.1, WORK 70
  ROOT %five = f32[256]{0} fusion(%four), kind=kCustom, calls=%end
}
"""
for number in (1000, 200, 70, 25):
    TEXT = TEXT.replace(f"WORK {number}", f'backend_config={{"estimated_cycles":"{number}"}}')


def test_the_work_between_start_and_done():
    waited, pair, fused = exchanges(hlo.read(TEXT))
    assert [one.bytes for one in (waited, pair, fused)] == [64, 1024, 1024]
    assert [one.begins for one in (waited, pair, fused)] == [1000, 1000, 1300]
    assert [one.beside for one in (waited, pair, fused)] == [0, 300, 70]
    assert [one.instructions for one in (waited, pair, fused)] == [0, 2, 1]
    assert waited.start == waited.done


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ((0, 0, 0), 0),
        ((40, 0, 0), 40),
        ((0, 300, 70), 0),
        ((0, 310, 70), 10),
        ((40, 300, 100), 70),  # the links are free again at once: 40 + 30
    ],
)
def test_only_what_nothing_hides_is_waited_for(needs, expected):
    program = hlo.read(TEXT)
    assert waits(program, exchanges(program), 1.0, needs) == expected


def test_links_carry_one_exchange_after_another():
    text = TEXT.replace("all-reduce-start(%first)", "all-gather-start(%first)").replace(
        "%waited = f32[2,8]{1,0} all-reduce(%first), channel_id=1",
        "%all-reduce-start.1 = f32[256]{0} all-reduce-start(%first), channel_id=1",
    )
    text = text.replace(
        "  %all-reduce-done.2",
        "  %gone = f32[256]{0} all-reduce-done(%all-reduce-start.1)\n  %all-reduce-done.2",
    )
    program = hlo.read(text)
    found = exchanges(program)
    assert [one.kind for one in found] == ["all-reduce", "all-gather", "all-reduce"]
    assert [one.beside for one in found] == [300, 300, 70]
    assert waits(program, found, 1.0, (200, 200, 0)) == 100


@pytest.mark.slow
def test_a_small_run_on_eight_chips():
    """The command, its exchanges and what they take; the sum of the gradient is one of them."""
    pytest.importorskip("libtpu")
    small = ("model.depth=10", "model.width=1", "steps_per_call=4")
    flags = [f"--config.{value}" for value in (*small, "data.batch_size=32", "data.ratio=2")]
    command = [sys.executable, "-m", "experiments.tpu.overlap", "--topology=v5e:2x4", *flags]
    done = subprocess.run(
        [*command, "--config=fixmatch:tfds:cifar10"],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["exchanges"] == len(found["list"])
    assert 0 < found["wait_ms"] <= found["exchange_ms"]
    gradient = max(found["list"], key=lambda one: one["bytes"])
    assert gradient["times"] == 1
    assert 0 < gradient["begins"] < 1
