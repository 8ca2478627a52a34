"""The reader of compiled programs, and what the TPU compiler makes of two small runs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.tpu import hlo
from experiments.tpu.report import collectives, part, summary

TEXT = """HloModule jit_call

FileNames
1 "/somewhere/jaxmatch/augment/pixels/source.py"
2 "/somewhere/jaxmatch/runtime/dispatch.py"

FunctionNames
1 "take"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7}
2 {file_name_id=2 function_name_id=1 line=8}

StackFrames
1 {file_location_id=2}
2 {file_location_id=1 parent_frame_id=1}

%picked (x: u8[50,3072], i: s32[448,1]) -> u8[448,3072] {
  %x = u8[50,3072]{1,0:T(8,128)(4,1)} parameter(0)
  %i = s32[448,1]{1,0:T(8,128)} parameter(1)
  ROOT %gather.1 = u8[448,3072]{1,0:T(8,128)(4,1)} gather(%x, %i), slice_sizes={1,3072}
}

%body (s: (s32[], f32[3,5])) -> (s32[], f32[3,5]) {
  %s = (s32[]{:T(128)}, f32[3,5]{1,0:T(8,128)}) parameter(0)
  %one = f32[3,5]{1,0:T(8,128)} fusion(%s), calls=%picked, metadata={stack_frame_id=2}CYCLES
  %all-reduce.1 = f32[3,5]{1,0:T(8,128)} all-reduce(%one), channel_id=4
  ROOT %t = (s32[], f32[3,5]) tuple(%s, %all-reduce.1)
}

%condition (s: (s32[], f32[3,5])) -> pred[] {
  %bound = s32[] constant(6)
  ROOT %less = pred[] compare(%s, %bound), direction=LT
}

ENTRY %main (a: (s32[], f32[3,5])) -> (s32[], f32[3,5]) {
  %a = (s32[], f32[3,5]) parameter(0)
  ROOT %while.1 = (s32[], f32[3,5]) while(%a), condition=%condition, body=%body
}
""".replace("CYCLES", ', backend_config={"estimated_cycles":"20"}')


def test_shapes_are_padded_to_whole_tiles():
    (shape,) = hlo.shapes("f32[10,3]{1,0:T(8,128)}")
    assert (shape.bytes, shape.padded, shape.in_main_memory) == (120, 16 * 128 * 4, True)
    # The minor axis is the first one here: 10 of 128 lanes.
    (turned,) = hlo.shapes("bf16[10,3]{0,1:T(8,128)S(1)}")
    assert (turned.padded, turned.in_main_memory) == (8 * 128 * 2, False)


def test_what_a_loop_runs_is_counted_as_often_as_it_runs():
    program = hlo.read(TEXT)
    found = {one.name: times for one, times in program.scheduled()}
    assert found == {"a": 1, "s": 6, "one": 6, "all-reduce.1": 6, "t": 6}
    one = program.by_name["one"]
    assert one.cycles == 20
    assert part(program, one) == "augmentation"
    assert program.moved(one) == (448, 448 * 24)
    assert collectives(program, steps=6) == [
        {"kind": "all-reduce", "part": "other", "dtype": "f32", "times": 1, "bytes": 60}
    ]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("jit(call)/while/body/jvp(ViT)/block1/attention/qkv/dot_general", "attention"),
        ("jit(call)/transpose(jvp(ViT))/block1/attention/proj/reduce_sum", "attention backward"),
        ("jit(call)/while/body/ViT/block12/mlp/fc2/dot_general", "network"),
        ("jit(call)/transpose(jvp(WideResNet))/conv1/add", "network backward"),
        ("jit(call)/while/body/closed_call/reduce_sum", "other"),
    ],
)
def test_modules_of_the_path_tell_the_network_where_no_file_does(path, expected):
    program = hlo.read(TEXT)
    one = replace(program.by_name["t"], rest=f'), metadata={{op_name="{path}"}}')
    assert part(program, one) == expected


RESULTS = Path(hlo.__file__).with_name("results.jsonl")


@pytest.mark.parametrize("topology", ["v5e:8x8", "h100:8"])
def test_the_summary_of_what_was_recorded(topology):
    found = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    (*_, line) = (each for each in found if each["topology"] == topology and "step" in each["what"])
    short = summary(line)
    assert short["temp_bytes"] == line["memory"]["temp"]
    assert short["static_ms"] == line.get("static_ms_by_part", {})
    assert (sum(short["static_ms"].values()) > 0) == topology.startswith("v5e")
    assert any("augment" in part for part in short["static_ms"]) == topology.startswith("v5e")
    reductions = [one for one in line["collectives"] if one["kind"] == "all-reduce"]
    assert short["collectives"]["all-reduce"] == {
        "count": sum(one["times"] for one in reductions),
        "bytes": sum(one["bytes"] for one in reductions),
    }
    assert short["flops"] > 1e9
    gathers = [each["elements"] for each in line["moves"] if each.get("kind") != "sort"]
    assert short["largest_gather"] == max(gathers)
    assert short["host_callbacks"] == 0


SMALL = ("model.depth=10", "model.width=1", "data.batch_size=32", "data.ratio=2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kinds", "temp"),
    [
        ("fixmatch", {"all-reduce"}, 18e6),
        ("simmatch", {"all-reduce", "all-gather"}, 18e6),
    ],
)
def test_small_runs_for_eight_chips(name, kinds, temp, tmp_path):
    """What they may move, exchange and keep; the images alone are 154 MB, of which no copy is made.

    Each has a process of its own, whose environment the compiler reads.
    """
    pytest.importorskip("libtpu")
    flags = [f"--config.{value}" for value in (*SMALL, "steps_per_call=4")]
    command = [sys.executable, "-m", "experiments.tpu", "--topology=v5e:2x4", *flags]
    done = subprocess.run(
        [*command, f"--config={name}:tfds:cifar10", f"--json={tmp_path / 'figures.json'}"],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "figures.json").read_text()) == summary(found)
    assert found["steps_per_program"] == 4
    assert max(move["elements"] for move in found["moves"]) < 10_000
    assert {each["kind"] for each in found["collectives"]} == kinds
    assert found["memory"]["temp"] < temp
    assert found["host_calls"] == 0


MEMORIES = """
import jax, jax.numpy as jnp
from experiments.tpu import hlo, topology
devices = topology.devices("v5e:2x2")
from jax.sharding import Mesh
from jaxmatch.functional.memory import make_queue, push
from jaxmatch.runtime.mesh import over_batch, replicated
from jaxmatch.functional.similarity import aggregate, unfold

mesh = Mesh(devices, ("data",))
split, everywhere = over_batch(mesh), replicated(mesh)
b, classes, n, rows = 16, 1000, 12_800, 30_000
shape = lambda *sides: jax.ShapeDtypeStruct(sides, jnp.float32)

def step(queue, log_q, log_p, labels):
    votes = aggregate(jnp.exp(unfold(log_q, log_p, labels)), labels, classes)
    voted = votes @ queue.rows["row"].T
    return push(queue, {"row": votes}), votes, voted.sum(1)

call = jax.jit(
    step,
    in_shardings=(everywhere, split, split, everywhere),
    out_shardings=(everywhere, split, split),
    donate_argnums=0,
)
queue = jax.eval_shape(lambda: make_queue(rows, row=classes))
labels = jax.ShapeDtypeStruct((n,), jnp.int32)
compiled = call.trace(queue, shape(b, n), shape(b, classes), labels).lower().compile()
program = hlo.read(compiled.as_text())
moves = [program.moved(one)[0] for one, _ in program.scheduled()]
print(max(moves), compiled.memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.slow
def test_memories_are_neither_moved_row_by_row_nor_copied():
    """A ring of 120 MB and labels of 12,800 rows; a gather of them would take 51 MB a factor."""
    pytest.importorskip("libtpu")
    done = subprocess.run(
        [sys.executable, "-c", MEMORIES],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    moved, temp = map(int, done.stdout.split()[-2:])
    assert moved < 100
    assert temp < 5e6
