"""The reader of programs for GPUs, and what the compiler for H100s makes of a small run."""

import json
import os
import re
import subprocess
import sys

import pytest

from experiments.tpu import hlo, kernels, topology
from experiments.tpu.__main__ import main

TEXT = """HloModule jit_call

%counted (n: s32[256], l: s32[50,1]) -> s32[256] {
  %n = s32[256]{0} parameter(0)
  %l = s32[50,1]{1,0} parameter(1)
  %ones = s32[50]{0} constant({...})
  ROOT %scatter.1 = s32[256]{0} scatter(%n, %l, %ones), update_window_dims={}, to_apply=%add
}

%picked (x: u8[50000,3072], i: s32[448,1]) -> u8[448,3072] {
  %x = u8[50000,3072]{1,0} parameter(0)
  %i = s32[448,1]{1,0} parameter(1)
  ROOT %gather.1 = u8[448,3072]{1,0} gather(%x, %i), slice_sizes={1,3072}
}

%written (r: f32[100,8], v: f32[1,8], at: s32[]) -> f32[100,8] {
  %r = f32[100,8]{1,0} parameter(0)
  %v = f32[1,8]{1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %update.1 = f32[100,8]{1,0} dynamic-update-slice(%r, %v, %at, %at)
}

%turned (p: f32[20,4,1]) -> f32[4,20,1] {
  %p = f32[20,4,1]{2,1,0} parameter(0)
  ROOT %transpose.1 = f32[4,20,1]{2,1,0} transpose(%p), dimensions={1,0,2}
}

%multiplied (a: f32[2,16,8], b: f32[2,8,4]) -> f32[2,16,4] {
  %lhs = f32[2,16,8]{2,1,0} parameter(0)
  %rhs = f32[2,8,4]{2,1,0} parameter(1)
  ROOT %dot.1 = f32[2,16,4]{2,1,0} dot(%lhs, %rhs), lhs_batch_dims={0}
}

%body (s: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %s = (s32[], f32[100,8]{1,0}) parameter(0)
  %row = f32[1,8]{1,0} constant({...})
  %one = s32[] constant(1)
  %changed = f32[100,8]{1,0} fusion(%s, %row, %one), kind=kLoop, calls=%written
  %start = bf16[6]{0} all-reduce-start(%row), channel_id=4
  %done = bf16[6]{0} all-reduce-done(%start)
  ROOT %t = (s32[], f32[100,8]) tuple(%one, %changed)
}

%condition (s: (s32[], f32[100,8])) -> pred[] {
  %bound = s32[] constant(6)
  ROOT %less = pred[] compare(%s, %bound), direction=LT
}

%steps (u: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %u = (s32[], f32[100,8]{1,0}) parameter(0)
  %table = u8[50000,3072]{1,0} constant({...})
  %rows = s32[448,1]{1,0} constant({...})
  %images = u8[448,3072]{1,0} fusion(%table, %rows), kind=kLoop, calls=%picked
  %none = s32[256]{0} constant({...})
  %levels = s32[50,1]{1,0} constant({...})
  %counts = s32[256]{0} fusion(%none, %levels), kind=kInput, calls=%counted
  %tall = f32[20,4,1]{2,1,0} constant({...})
  %wide = f32[4,20,1]{2,1,0} fusion(%tall), kind=kInput, calls=%turned
  %left = f32[2,16,8]{2,1,0} constant({...})
  %right = f32[2,8,4]{2,1,0} constant({...})
  %product = f32[2,16,4]{2,1,0} fusion(%left, %right), calls=%multiplied, kind=__triton
  %pixels = bf16[15,32,32,3]{3,2,1,0} constant({...})
  %k = bf16[16,3,3,3]{3,2,1,0} constant({...})
  %y = (bf16[15,16,16,16]{3,2,1,0}, u8[0]{0}) custom-call(%pixels, %k), CONVOLUTION=Forward
  %g = bf16[15,16,16,16]{3,2,1,0} get-tuple-element(%y), index=0
  %dk = (bf16[16,3,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%pixels, %g), CONVOLUTION=BackwardFilter
  %dx = (bf16[15,32,32,3]{3,2,1,0}, u8[0]{0}) custom-call(%g, %k), CONVOLUTION=BackwardInput
  ROOT %inner = (s32[], f32[100,8]{1,0}) while(%u), condition=%condition, body=%body, TRIPS6
}

%always (u: (s32[], f32[100,8])) -> pred[] {
  %u.1 = (s32[], f32[100,8]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %a = (s32[], f32[100,8]) parameter(0)
  ROOT %outer = (s32[], f32[100,8]) while(%a), condition=%always, body=%steps, TRIPS4
}

FileNames

FileLocations

StackFrames
"""
TEXT = re.sub(r"TRIPS(\d)", r'backend_config={"known_trip_count":{"n":"\1"}}', TEXT)
CALL = r'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv\1"'
TEXT = re.sub(r"CONVOLUTION=(\w+)", CALL, TEXT)


class Compiled:
    """Stands in for a compiled program."""

    def as_text(self):
        return TEXT

    def memory_analysis(self):
        sizes = {"argument": 7, "output": 5, "alias": 4, "temp": 11, "generated_code": 0}
        return type("", (), {f"{name}_size_in_bytes": size for name, size in sizes.items()})


def test_kernels_are_counted_by_step():
    found = kernels.report(Compiled(), steps=4)
    assert found["kernels_by_kind"] == {
        "elementwise": 7,  # the gather, and six rows in the inner loop
        "cuDNN": 3,
        "reductions and scatters": 2,
        "Triton": 1,
    }
    assert found["kernels"] == 13
    assert found["loops"] == [{"turns": 6, "kernels": 1, "times": 1, "part": "other"}]
    assert found["memory"]["held"] == 7 + 5 - 4 + 11
    assert found["host_calls"] == 0
    assert found["collectives"] == [
        {"kind": "all-reduce", "part": "other", "dtype": "bf16", "times": 6, "bytes": 6 * 12}
    ]


def test_what_is_taken_and_changed_counts_and_not_the_whole_array():
    program = hlo.read(TEXT)
    read = {
        name: kernels.accessed(program, program.by_name[name]) for name in ("images", "changed")
    }
    assert read == {"images": 2 * 448 * 3072 + 448 * 4, "changed": 3 * 32 + 4}


def test_operations_and_precision_of_products():
    found = kernels.report(Compiled(), steps=4)
    assert found["products"] == {
        "cuDNN: bf16 x bf16 -> bf16, default": 3,
        "Triton: f32 x f32 -> f32, TF32": 1,
    }
    convolution = 2 * 15 * 16 * 16 * 16 * 27
    assert found["flops_of_products"] == pytest.approx(3 * convolution + 2 * 2 * 16 * 8 * 4)


def test_moves_and_turned_arrays():
    found = kernels.report(Compiled(), steps=4)
    assert found["moves"] == [
        {"kind": "scatter", "elements": 50, "atomic": True, "part": "other", "times": 4},
        {"kind": "gather", "elements": 448, "atomic": False, "part": "other", "times": 4},
    ]
    # Sides of 1 may be anywhere.
    assert found["layout_copies"] == [{"shape": "f32[4,20,1]", "part": "other", "times": 1}]


def test_branches_count_as_often_as_they_are_taken():
    text = TEXT.replace(
        "  %counts = s32[256]{0} fusion(%none, %levels), kind=kInput, calls=%counted",
        "  %counts = s32[256]{0} conditional(%one, %none, %levels), "
        "true_computation=%counted, false_computation=%counted",
    )
    assert kernels.branches(hlo.read(TEXT)) == 0
    assert kernels.branches(hlo.read(text)) == 4


def test_a_topology_that_is_none_is_refused():
    assert topology.is_gpu("h100:8")
    assert not topology.is_gpu("v5e:2x4")
    with pytest.raises(SystemExit, match=r"h100:8\."):
        main(["--config=fixmatch:tfds:cifar10", "--topology=h100:many"])


SMALL = ("model.depth=10", "model.width=1", "data.batch_size=32", "data.ratio=2", "dtype=bfloat16")


@pytest.mark.slow
def test_a_small_run_for_eight_gpus():
    """Under bfloat16 the gradient is exchanged in float32; the 154 MB of images are not copied."""
    pytest.importorskip("jax_cuda12_plugin")
    flags = [f"--config.{value}" for value in (*SMALL, "steps_per_call=4")]
    command = [sys.executable, "-m", "experiments.tpu", "--topology=h100:8", *flags]
    done = subprocess.run(
        [*command, "--config=fixmatch:tfds:cifar10"],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    exchanged = {(each["kind"], each["dtype"]): each["bytes"] for each in found["collectives"]}
    assert set(exchanged) == {("all-reduce", "f32"), ("all-reduce", "s32")}
    assert exchanged["all-reduce", "f32"] > 4 * 77_000  # all parameters
    assert exchanged["all-reduce", "s32"] < 100
    assert found["host_calls"] == found["branches"] == 0
    assert sum(each["times"] for each in found["collectives"]) < 17
    assert found["memory"]["temp"] < 12e6
    assert found["kernels_by_part"]["data order"] < 20
    assert found["kernels_by_part"]["augmentation"] < 60
    assert all("cuDNN: bf16" in name or "TF32" in name for name in found["products"])
