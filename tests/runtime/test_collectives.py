"""What the devices send each other in one step, read from the compiled program of each method.

XLA combines reductions that do not wait for each other into one operation with many arrays. So the
gradient's reduction is that of the last layer's parameters, which come first, with what BatchNorm
sums in the backward pass, and the metrics' ride along; operations are counted after that.
"""

import math
from collections import Counter

import pytest

from experiments.scaling.program import collectives, compile_quickly, facts
from jaxmatch.config.flags import from_flags
from jaxmatch.program import Program
from jaxmatch.runtime.mesh import tree_bytes

SIDE, CLASSES, LABELED, RATIO, QUEUE = 16, 10, 8, 2, 64
BINS = 340  # of all of CTAugment's ops
UNLABELED = LABELED * RATIO
TINY = (
    "model.depth=4",
    "model.width=1",
    "model.conv_bias=none",
    "devices=4",
    f"data.batch_size={LABELED}",
)
IMAGES = (SIDE, SIDE, 3)
COMATCH = [
    (UNLABELED, 64),  # rows of the queue: embeddings and probabilities, unlabeled, then labeled
    (UNLABELED, CLASSES),
    (LABELED, 64),
    (LABELED, CLASSES),
    (UNLABELED, 64),  # columns of the graph: contrast views, and their pseudo-labels
    (UNLABELED, CLASSES),
]
MIXMATCH = [  # the pool of MixUp: each view once, and the labels
    (LABELED, *IMAGES),
    (LABELED, *IMAGES),
    (LABELED, *IMAGES),
    (LABELED, CLASSES),
    (LABELED, CLASSES),
]
# Config, further overrides, and what may be gathered in floating point, whole batches each.
METHODS = {
    "fixmatch": ("fixmatch", [f"data.ratio={RATIO}"], []),
    "ctaugment": ("fixmatch", [f"data.ratio={RATIO}", "augment=ctaugment"], []),
    "simmatch": ("simmatch", [f"data.ratio={RATIO}"], [(LABELED, 128)]),  # rows of the bank
    "comatch": ("comatch", [f"data.ratio={RATIO}"], COMATCH),
    "mixmatch": ("mixmatch", [], MIXMATCH),
    "moco_v2": ("moco_v2", [f"algorithm.queue={QUEUE}"], [(LABELED, 128)]),  # rows of the queue
}
FLOATS = ("f32", "bf16", "f16", "f64")
METRICS_BYTES = 4096  # numbers of a step and averages over the classes or channels


def program_of(name, *overrides):
    recipe, more, _ = METHODS[name]
    flags = [f"--config.{override}" for override in (*TINY, *more, *overrides)]
    config, _ = from_flags(f"{recipe}:tfds:cifar10", flags)
    return Program.build(config, facts(side=SIDE, unlabeled=1000))


def check(program, allowed, layers=1):
    """Only sums and the gathers ``allowed``; returns the sums of floating-point arrays."""
    found = collectives(compile_quickly(program).as_text())
    for one in found:
        assert one.kind in ("all-gather", "all-reduce"), one.line

    gathered = Counter()
    for one in found:
        for dtype, shape in one.arrays if one.kind == "all-gather" else ():
            if dtype in FLOATS:
                # The batch is an axis of its own, in front or, transposed, behind.
                gathered[tuple(sorted(shape))] += 1
            else:  # indices and labels
                assert math.prod(shape) <= program.spec.unlabeled_batch, one.line
    assert gathered == Counter(tuple(sorted(shape)) for shape in allowed)

    sums = [
        one
        for one in found
        if one.kind == "all-reduce" and any(dtype in FLOATS for dtype, _ in one.arrays)
    ]
    parameters, statistics = map(tree_bytes, (program.state.params, program.state.stats))
    # BatchNorm sums twice its statistics' size more in the backward pass, and half of it, the
    # gradients of scale and bias, are parameters.
    passes = 3 if allowed is MIXMATCH else 1  # the guesses' views have each their own
    most = parameters + statistics * (1 + passes) + METRICS_BYTES
    if program.config.augment == "ctaugment":
        most += 4 * LABELED * BINS  # how many later probes take each bin
    assert parameters + statistics * passes <= sum(one.bytes for one in sums) <= most
    # Forward and backward for each BatchNorm, the gradient in at most two, the metrics in two.
    assert len(sums) <= 2 * layers + 4
    return sums


def test_fixmatch_only_sums():
    check(program_of("fixmatch"), [])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name != "fixmatch"])
def test_every_method_sends_what_it_may_and_no_more(name):
    check(program_of(name), METHODS[name][2])


@pytest.mark.slow
def test_batch_norm_sums_once_forward_and_once_backward():
    program = program_of("fixmatch", "model.depth=10")
    sums = check(program, [], layers=7)
    gradient = [one for one in sums if ("f32", (3, 3, 64, 64)) in one.arrays]
    assert len(gradient) == 1  # all kernels but the stem's go together
    assert gradient[0].bytes > 0.95 * tree_bytes(program.state.params)
    assert len(sums) - len(gradient) >= 2 * 7 - 1
