"""What every algorithm must do; a new one adds a row to CASES."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    LABELED_BATCH,
    SPEC,
    UNLABELED_BATCH,
    TinyNetwork,
    assert_bitwise,
    assert_close,
    build,
    color_network,
    initial_state,
    on_host,
    quick_jit,
    toy_data,
    toy_state,
    toy_views,
    views_of,
)

from jaxmatch.algorithms import ALGORITHMS
from jaxmatch.algorithms.adamatch import AdaMatch
from jaxmatch.algorithms.aligned import Aligned
from jaxmatch.algorithms.balanced_classifier import ABC
from jaxmatch.algorithms.byol import BYOL
from jaxmatch.algorithms.comatch import CoMatch
from jaxmatch.algorithms.dash import Dash
from jaxmatch.algorithms.debiaspl import DebiasPL
from jaxmatch.algorithms.distillation import Distillation
from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.algorithms.fixmatch_eman import FixMatchEMAN
from jaxmatch.algorithms.flexmatch import FlexMatch
from jaxmatch.algorithms.freematch import FreeMatch
from jaxmatch.algorithms.iomatch import IOMatch
from jaxmatch.algorithms.logit_adjustment import LogitAdjusted
from jaxmatch.algorithms.mean_teacher import MeanTeacher
from jaxmatch.algorithms.mixmatch import MixMatch
from jaxmatch.algorithms.moco_v2 import MoCoV2
from jaxmatch.algorithms.pcl import PCL
from jaxmatch.algorithms.pi_model import PiModel
from jaxmatch.algorithms.pseudo_label import PseudoLabel
from jaxmatch.algorithms.remixmatch import ReMixMatch
from jaxmatch.algorithms.s4l_rotation import S4LRotation
from jaxmatch.algorithms.simclr import SimCLR
from jaxmatch.algorithms.simclr_v2 import SimCLRv2
from jaxmatch.algorithms.simmatch import SimMatch
from jaxmatch.algorithms.simmatch_v2 import SimMatchV2
from jaxmatch.algorithms.softmatch import SoftMatch
from jaxmatch.algorithms.supervised import Supervised
from jaxmatch.algorithms.swav import SwAV
from jaxmatch.algorithms.temporal_ensembling import TemporalEnsembling
from jaxmatch.algorithms.uda import UDA
from jaxmatch.algorithms.vat import VAT
from jaxmatch.algorithms.wcl import WCL
from jaxmatch.models.network import make_network
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim
from jaxmatch.optim.trained import trained_part
from jaxmatch.runtime.dispatch import means
from jaxmatch.step import make_train_step
from jaxmatch.types import Batch

CASES = {
    "supervised": Supervised(),
    "pi_model": PiModel(ramp=0.1),
    "temporal_ensembling": TemporalEnsembling(ramp=0.1),
    "mean_teacher": MeanTeacher(ramp=0.1),
    "pseudo_label": PseudoLabel(threshold=0.5, ramp=0.1),
    "vat": VAT(epsilon=1.0, ramp=0.1),
    "vat_differences": VAT(epsilon=1.0, ramp=0.1, vat_xi=0.5),
    "s4l_rotation": S4LRotation(),
    "uda": UDA(threshold=0.5),
    "uda_annealed": UDA(threshold=0.5, signal="log"),
    "mixmatch": MixMatch(alpha=0.2, unlabeled_weight=2.0, ramp=0.1),
    "remixmatch": ReMixMatch(alpha=0.2, momentum=0.9, ramp=0.1),
    "fixmatch": FixMatch(threshold=0.5),
    "fixmatch_soft": FixMatch(threshold=0.5, hard_labels=False, temperature=0.5),
    "dash": Dash(warmup_steps=3, measure_steps=2, rho_period_steps=2, rho_min=0.5),
    "dash_selected": Dash(warmup_steps=3, rho_period_steps=2, rho_min=0.5, dash_norm="selected"),
    "flexmatch": FlexMatch(threshold=0.5),
    "freematch": FreeMatch(momentum=0.9),
    "softmatch": SoftMatch(momentum=0.9),
    "adamatch": AdaMatch(momentum=0.9),
    "fixmatch_eman": FixMatchEMAN(threshold=0.5),
    "iomatch": IOMatch(threshold=0.5, open_start=0.0, projection=8),
    "simmatch": SimMatch(threshold=0.5, instance_start_step=2, projection=8),
    "simmatch_teacher": SimMatch(
        threshold=0.5, instance_start_step=2, projection=8, teacher=True, bank_momentum=0.0
    ),
    "simmatch_v2": SimMatchV2(
        threshold=0.5,
        unlabeled_weight=1.0,
        edge_edge_weight=1.0,
        node_edge_weight=1.0,
        neighbors=6,
        queue_batches=2,
        projection=8,
    ),
    "comatch": CoMatch(threshold=0.5, graph_threshold=0.5, smoothing_start_step=2),
    "comatch_teacher": CoMatch(
        threshold=0.5, graph_threshold=0.5, smoothing_start_step=2, queue=80, teacher=True
    ),
    "simclr": SimCLR(projection=8),
    "simclr_v2": SimCLRv2(temperature=0.2, projection=8),
    "moco_v2": MoCoV2(queue=48, projection=8),
    "byol": BYOL(projection=8, hidden=16),
    "pcl": PCL(queue=48, projection=8, clusters=(30, 40), negatives=20),
    "wcl": WCL(projection=8, hidden=16),
    "swav": SwAV(prototypes=12, projection=8, hidden=16, small_crops=2, queue=48, freeze=0.02),
    "distillation": Distillation(),
    "logit_adjusted": LogitAdjusted(method=FixMatch(threshold=0.5), on_unlabeled=True),
    "aligned": Aligned(method=FixMatch(threshold=0.5), momentum=0.9),
    "debiaspl": DebiasPL(method=FixMatch(threshold=0.5), momentum=0.9),
    "abc": ABC(method=FixMatch(threshold=0.5), threshold=0.5),
    "abc_flexmatch": ABC(method=DebiasPL(method=FlexMatch(threshold=0.5)), threshold=0.5),
}
OPTIONS = {LogitAdjusted, Aligned, DebiasPL, ABC}
# Of methods that are tested anyway.
VARIANTS = {
    "simclr_v2",
    "vat_differences",
    "uda_annealed",
    "dash_selected",
    "comatch_teacher",
    "simmatch_teacher",
    "fixmatch_soft",
    "logit_adjusted",
    "aligned",
    "abc_flexmatch",
}

MIXING = (MixMatch, ReMixMatch)


def test_no_algorithm_is_left_out():
    assert {type(case) for case in CASES.values()} - OPTIONS == set(ALGORITHMS.values())


PARAMETERS = [
    pytest.param(name, marks=pytest.mark.slow if name in VARIANTS else ()) for name in CASES
]


def only(*names):
    """A test of these methods, and of all with ``-m slow``, since it takes seconds a method."""
    cases = [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in CASES]
    return pytest.mark.parametrize("algorithm", cases, indirect=True, scope="module")


# One of each kind of loss and of exchange between devices: for tests of many steps, for those of
# one program, and for those that trace. The methods' own files have the rest.
of_each_kind = only("fixmatch")
of_many = only("mixmatch", "fixmatch")
of_each_part = only("supervised", "fixmatch", "remixmatch")
# Those whose loss looks at the teacher, and one that does not.
of_each_teacher = only("fixmatch", "mean_teacher", "moco_v2")
# Those that compare images of a batch or have a memory, and the plain ones.
of_each_batch = only("fixmatch", "comatch")


@pytest.fixture(scope="module", params=PARAMETERS)
def algorithm(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def built(algorithm):
    return build(algorithm)


def run(built, data, calls):
    """The state and the metrics of each call."""
    state, data, metrics = built.init(), built.place(data), []
    for _ in range(calls):
        state, meter = built.call(state, data)
        metrics.append(means(jax.device_get(meter.sums)))
    return on_host(state), metrics


@pytest.mark.slow
def test_device_count_in_float32(algorithm):
    # At the rate of 0.1 roundings of these two grow beyond the bound in five steps.
    rate = 1e-3 if isinstance(algorithm, (SimCLRv2, WCL)) else 0.1
    data = toy_data(algorithm)
    one, four = (run(build(algorithm, count, learning_rate=rate), data, 1) for count in (1, 4))
    assert_close(four, one, 1e-4)


@of_each_kind
def test_device_count_in_float64(algorithm):
    with jax.enable_x64(True):
        data = toy_data(algorithm)
        (one, _), (four, _) = (
            run(build(algorithm, devices, dtype=jnp.float64), data, 1) for devices in (1, 4)
        )
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(one.params)}
    assert kinds == {"float64"}
    assert one.step == 5
    assert_close(four, one, 1e-10)


@of_each_kind
def test_loss_falls_and_teacher_learns(algorithm, built):
    state, metrics = run(built, toy_data(algorithm), 12)
    term = "loss/supervised" if "loss/supervised" in metrics[0] else "loss/total"
    # Two views of one image among others never cost nothing.
    share = 0.5 if algorithm.labeled else 0.85
    # While a queue fills the loss rises to that of chance.
    start = np.log(1 + algorithm.queue) if type(algorithm) is MoCoV2 else metrics[0][term]
    assert metrics[-1][term] < share * start

    # From the student's own first guess a fourth of the images would be right.
    test = toy_data(algorithm, seed=5).labeled
    if test is not None:
        network = make_network(TinyNetwork(heads=algorithm.heads))
        inputs = jnp.asarray(test.views[0] / 127.5 - 1, jnp.float32)
        outputs, _ = network(state.teacher, inputs, train=False)
        assert np.mean(outputs.logits.argmax(-1) == test.label) > 0.8


@of_many
def test_metrics_are_finite_and_named(algorithm, built):
    _, (metrics,) = run(built, toy_data(algorithm), 1)
    assert all(np.isfinite(value) for value in metrics.values())
    parts = {"loss", "pseudo", "unlabeled", "contrastive", "prototype", "features", "optim"}
    assert {name.split("/")[0] for name in metrics} <= parts
    assert metrics["loss/total"] > 0
    assert metrics["optim/gradient_norm"] > 0


@of_many
@pytest.mark.parametrize("change", ["other", "unknown"])
def test_unlabeled_labels_only_reach_metrics(algorithm, built, change):
    data = toy_data(algorithm)
    if data.unlabeled is None:
        pytest.skip("reads no unlabeled images")
    label = data.unlabeled.label
    # A network that gives all images one class is right on a quarter of them, or on all or none.
    wrong = np.full_like(label, 0 if change == "other" else -1)
    other = data._replace(unlabeled=data.unlabeled._replace(label=wrong))
    (state, metrics), (other_state, other_metrics) = (run(built, each, 2) for each in (data, other))
    assert_bitwise(state, other_state)
    losses, other_losses = (
        [call["loss/total"] for call in each] for each in (metrics, other_metrics)
    )
    assert losses == other_losses
    if algorithm.labeled:
        key = "unlabeled/weak_accuracy"
        assert [call[key] for call in metrics] != [call.get(key) for call in other_metrics]


@of_many
def test_one_compilation_and_no_transfer(algorithm, built, caplog):
    data = built.place(toy_data(algorithm))
    state, _ = built.call(built.init(), data)
    traces = len(built.traces)
    with jax.transfer_guard("disallow"), jax.log_compiles():
        for _ in range(3):
            old = state
            state, meter = built.call(state, data)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
        assert "XLA compilation" not in caplog.text
    with jax.log_compiles():
        jax.jit(lambda step: step + 1)(state.step)
    assert "XLA compilation" in caplog.text
    assert len(built.traces) == traces
    assert int(state.step) == 20
    assert int(meter.bad_step) == -1


@of_each_part
@pytest.mark.parametrize("train", ["head", "norms"])
def test_a_part_of_the_parameters_trains(algorithm, train):
    optim = Optim(name="adamw", weight_decay=0.1)
    optimizer, rate = optim.build(SPEC.steps), optim.rate(SPEC.steps)
    views = views_of(algorithm)
    frozen = dict.fromkeys(algorithm.frozen, color_network)
    network = make_network(TinyNetwork(heads=algorithm.heads))
    step = make_train_step(
        algorithm, network, views, optimizer, rate, Ema(), SPEC, frozen, train=train
    )
    state = initial_state(algorithm)
    part = trained_part(train, state.params, algorithm.heads)
    state = state.replace(optimizer=optimizer.init(part))
    data = toy_data(algorithm)
    labeled, unlabeled = (
        examples and jax.tree.map(lambda leaf, size=size: leaf[:size], examples)
        for examples, size in zip(data[:2], (LABELED_BATCH, UNLABELED_BATCH), strict=True)
    )
    batch = Batch(labeled, unlabeled, data.frozen)
    traced, shape = jax.make_jaxpr(step, return_shape=True)(state, batch)
    assert jax.tree.structure(shape[0]) == jax.tree.structure(state)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    passed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, _), given, result in zip(
            leaves, traced.jaxpr.invars, traced.jaxpr.outvars, strict=False
        )
        if given is result
    }
    fixed = {"conv/kernel"} | ({"norm/scale", "norm/bias"} if train == "head" else set())
    expected = {f"{tree}/{name}" for tree in ("params", "teacher/params") for name in fixed}
    assert {name for name in passed if "params" in name} == expected


@of_many
def test_devices_do_not_exchange_images(algorithm, built):
    text = built.call.lower(built.init(), built.place(toy_data(algorithm))).compile().as_text()
    assert "all-reduce" in text
    assert "all-to-all" not in text
    assert "collective-permute" not in text
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
    images = [shape for shape in gathered if shape.count(",") >= 3]
    # Partners of MixUp may be on any device: each view of the pool is gathered, but only once.
    pool = (algorithm.labeled, algorithm.unlabeled) if isinstance(algorithm, MIXING) else ()
    assert len(images) == sum(map(len, pool))


@of_each_teacher
def test_no_gradient_reaches_the_teacher(algorithm):
    state, batch = toy_state(algorithm), toy_views(algorithm)
    network = make_network(TinyNetwork(heads=algorithm.heads))
    draws = algorithm.draw(jax.random.key(1), batch)

    def loss(params, teacher):
        changed = state.replace(teacher=teacher)
        if isinstance(algorithm, MoCoV2):  # with an empty queue there is nothing to learn
            update = algorithm.loss(network, params, changed, batch, draws, SPEC)[1]
            changed = changed.replace(memory=update.memory)
        return algorithm.loss(network, params, changed, batch, draws, SPEC)[0]

    student, teacher = quick_jit(jax.grad(loss, (0, 1)))(state.params, state.teacher)
    assert np.any(student["conv"]["kernel"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(teacher))


@of_each_batch
def test_order_within_the_batch_does_not_matter(algorithm):
    with jax.enable_x64(True):
        batch = toy_views(algorithm)
        draws = algorithm.draw(jax.random.key(1), batch)
        if jax.tree.leaves(draws):
            pytest.skip("the draws belong to positions in the batch")
        state = toy_state(algorithm, jnp.float64, step=50)
        network = make_network(TinyNetwork(heads=algorithm.heads, param_dtype=jnp.float64))
        shuffled = jax.tree.map(
            lambda leaf: leaf[np.random.default_rng(0).permutation(len(leaf))], batch
        )
        loss = quick_jit(
            lambda batch: algorithm.loss(network, state.params, state, batch, draws, SPEC)[0]
        )
        losses = [loss(batch), loss(shuffled)]
    assert batch.labeled is None or not np.array_equal(
        batch.labeled.label, shuffled.labeled.label[:LABELED_BATCH]
    )
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-12)
