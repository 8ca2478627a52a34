"""Every config file with every preset and data set gives a run whose step can be traced."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit

from jaxmatch.algorithms import build_algorithm
from jaxmatch.config import usb_cv
from jaxmatch.config.flags import from_flags
from jaxmatch.config.presets import DATASETS, PRESETS
from jaxmatch.config.stages import stages_of
from jaxmatch.data.facts import Facts
from jaxmatch.data.resident import Resident, Table
from jaxmatch.errors import InputError
from jaxmatch.optim.optimizer import Optim
from jaxmatch.program import Program
from jaxmatch.types import Ratio

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
LARGE = "tfds:imagenet2012"
CLASSES = {"tfds:cifar100": 100, LARGE: 1000}
SIDES = {"tfds:stl10": 96, LARGE: 224}
SMALL = {"depth": 10, "width": 1}
LABEL_FREE = {"byol", "moco_v2", "pcl", "simclr", "simclr_v2", "swav", "wcl"}
ON_IMAGENET = LABEL_FREE | {
    "comatch",
    "distillation",
    "finetune",
    "fixmatch",
    "fixmatch_eman",
    "s4l_rotation",
    "simmatch",
    "simmatch_v2",
}
# Of methods that not every code base has.
PRESETS_OF = {
    "adamatch": ("jaxmatch", "google", "usb"),
    "comatch": ("jaxmatch", "usb"),
    "dash": ("jaxmatch", "usb"),
    "fixmatch_eman": ("jaxmatch",),
    "flexmatch": ("jaxmatch", "torchssl", "usb"),
    "freematch": ("jaxmatch", "torchssl", "usb"),
    "iomatch": ("jaxmatch",),
    "s4l_rotation": ("jaxmatch",),
    "simmatch": ("jaxmatch", "usb"),
    "simmatch_v2": ("jaxmatch",),
    "softmatch": ("jaxmatch", "torchssl", "usb"),
    "temporal_ensembling": ("jaxmatch",),
}

ONLY_ON_IMAGENET = {
    ("byol", LARGE): ("eman",),
    ("moco_v2", LARGE): ("eman",),
    # One for each method before it.
    ("finetune", LARGE): ("moco_v2", "simclr", "simclr_v2", "wcl", "byol", "swav", "pcl"),
}

# One of each kind of views, memory and stages; with -m slow all.
KINDS = {"fixmatch", "simmatch", "distillation", "moco_v2", "selfmatch"}


def kinds(names):
    return [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in names]


def configuration(name, data, preset, overrides=()):
    labels = "" if name in LABEL_FREE else ",labels=400"
    return from_flags(f"{name}:{data}{labels},preset={preset}", overrides)[0]


def trace(name, data, preset, overrides=(), small=False):
    """Trace init, data selection and one step of each stage; nothing is compiled."""
    for config in stages_of(configuration(name, data, preset, overrides)).values():
        if small and config.model.name == "wide_resnet":
            config.model.update(SMALL)
        trace_one(config, data)


def facts_of(data):
    side, classes = SIDES.get(data, 32), CLASSES.get(data, 10)
    return Facts(
        classes=tuple(str(number) for number in range(classes)),
        image_shape=(side, side, 3),
        labels=tuple(index % classes for index in range(400)),
        unlabeled=120_000,  # as many as PCL has clusters on ImageNet
    )


def trace_one(config, data):
    program = Program.build(config, facts_of(data)).with_stand_ins()
    state = program.state
    after, metrics = jax.eval_shape(
        lambda state, data: program.step(state, program.examples(data, state)), state, program.data
    )
    assert jax.tree.structure(after) == jax.tree.structure(state)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), after, state)
    assert all(jax.tree.leaves(same))
    supervised = {"loss/supervised"} if program.algorithm.labeled else set()
    assert {"loss/total", "optim/learning_rate", *supervised} <= metrics.keys()
    for value in metrics.values():
        for leaf in value if isinstance(value, Ratio) else (value,):
            assert leaf.shape == ()
    for leaf in jax.tree.leaves((state.params, state.stats, state.teacher)):
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize("name", kinds(CONFIGS))
def test_a_preset_exists_only_where_its_code_base_has_the_method(name):
    for preset in PRESETS:
        if preset in PRESETS_OF.get(name, PRESETS):
            assert configuration(name, "mnist5k", preset).preset == preset
        else:
            with pytest.raises(InputError, match=f"{name} has no preset '{preset}'; it has"):
                configuration(name, "mnist5k", preset)


@pytest.mark.parametrize(
    "data",
    [
        # The others have other sizes and numbers of images.
        pytest.param(data, marks=() if data == "tfds:stl10" else pytest.mark.slow)
        for data in DATASETS
        if data != LARGE
    ],
)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds_for_every_data_set_and_preset(name, data):
    facts = facts_of(data)
    for preset in PRESETS_OF.get(name, PRESETS):
        for config in stages_of(configuration(name, data, preset)).values():
            program = Program.build(config, facts)
            assert program.optimizer is not None
            assert program.algorithm == build_algorithm(config.algorithm)
            for period in ("steps_per_call", "log_every"):
                assert config.steps % config[period] == 0


@pytest.mark.parametrize("data", ["mnist5k", pytest.param("tfds:stl10", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", kinds(CONFIGS))
def test_the_step_of_every_config_can_be_traced(name, data):
    trace(name, data, "jaxmatch", small=True)


@pytest.mark.parametrize("name", sorted(ON_IMAGENET))
def test_a_run_on_imagenet_builds(name):
    config = configuration(name, LARGE, "jaxmatch")
    assert Program.build(config, facts_of(LARGE)).spec.classes == 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ON_IMAGENET))
def test_the_step_on_imagenet_can_be_traced(name):
    trace(name, LARGE, "jaxmatch")


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(preset, marks=() if preset in ("torchssl", "usb") else pytest.mark.slow)
        for preset in PRESETS
    ],
)
def test_the_step_of_every_preset_can_be_traced(preset):
    trace("fixmatch", "tfds:cifar10", preset, small=True)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "simmatch" else pytest.mark.slow)
        for name in sorted(usb_cv.METHODS)
    ],
)
def test_the_step_of_the_benchmark_of_transformers_can_be_traced(name):
    small = [f"--config.model.{key}" for key in ("depth=2", "width=16", "heads=2", "patch=8")]
    trace(name, "tfds:cifar100", usb_cv.NAME, small)


@pytest.mark.parametrize(
    "overrides",
    [
        ["--config.dtype=bfloat16"],
        ["--config.forward=split", "--config.optim.name=adamw", "--config.optim.layer_decay=0.9"],
        ["--config.forward=separate", "--config.optim.clip_norm=1"],
        ["--config.optim.schedule=constant", "--config.views.strong.table=google"],
        ["--config.ema.statistics=averaged", "--config.optim.decay=not_batch_norm"],
        ["--config.algorithm.hard_labels=False", "--config.algorithm.temperature=0.5"],
    ],
)
def test_the_step_with_options_can_be_traced(overrides):
    trace("fixmatch", "mnist5k", "jaxmatch", [*overrides, "--config.model.depth=4"])


@pytest.mark.slow
@pytest.mark.parametrize("data", DATASETS)
@pytest.mark.parametrize("name", CONFIGS)
def test_one_step_of_every_config_runs(name, data):
    for config in stages_of(configuration(name, data, "jaxmatch")).values():
        if config.model.name == "wide_resnet":
            config.model.update(depth=4, width=1 / 16)
        config.data.batch_size, config.devices = 8, 1
        config.data.ratio = min(config.data.ratio, 8)
        if config.algorithm.name == "swav":  # no more than the images of a batch
            config.algorithm.prototypes = 8
        run_one(config, data)


def run_one(config, data):
    """One real step on random images of the data set's shape."""
    facts, random = facts_of(data), np.random.default_rng(0)
    program = Program.build(config, facts).with_stand_ins()

    def images(count):
        return Table.of(random.integers(0, 256, (count, *facts.image_shape), np.uint8))

    data = Resident(
        labeled_images=images(400),
        labeled_labels=np.asarray(facts.labels, np.int32),
        unlabeled_images=images(1000),
        unlabeled_labels=np.full(1000, -1, np.int32),
    )
    state = quick_jit(program.init)()
    data = data._replace(frozen=dict.fromkeys(program.frozen, state.student()) or None)
    one = quick_jit(lambda state, data: program.step(state, program.examples(data, state)))
    after, metrics = one(state, data)
    assert after.step == 1
    assert np.isfinite(metrics["loss/total"])


@pytest.mark.slow
@pytest.mark.parametrize("data", DATASETS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_full_network_of_every_config_can_be_traced(name, data):
    presets = (*PRESETS_OF.get(name, PRESETS), *ONLY_ON_IMAGENET.get((name, data), ()))
    for preset in presets:
        trace(name, data, preset)


@pytest.mark.parametrize("preset", ["moco_v2", "simclr", "simclr_v2", "wcl", "byol", "swav", "pcl"])
def test_a_recipe_of_finetuning_has_nothing_of_another(preset):
    optim = configuration("finetune", "tfds:imagenet2012", preset).optim
    assert bool(optim.drops) == (optim.schedule == "steps")
    assert (optim.decay == "all") == (optim.weight_decay > 0) == (preset == "moco_v2")
    assert (optim.classifier_rate > 1) == (preset in ("moco_v2", "swav", "pcl"))
    assert Optim(**optim).build(1000)


@pytest.mark.parametrize(
    ("name", "cutout"), [("fixmatch", True), ("adamatch", True), ("remixmatch", False)]
)
def test_google_has_ctaugment_which_ends_with_a_cutout_but_in_remixmatch(name, cutout):
    config = configuration(name, "tfds:cifar10", "google")
    assert config.augment == "ctaugment"
    assert config.views.ctaugment.cutout == cutout
    assert configuration(name, "tfds:cifar10", "jaxmatch").views.ctaugment.cutout


@pytest.mark.parametrize(
    "data", ["tfds:cifar10", "tfds:cifar100", "tfds:svhn_cropped", "tfds:stl10"]
)
def test_comatch_of_usb_differs_from_the_authors(data):
    def found(preset):
        config = configuration("comatch", data, preset)
        return (
            *(config.steps, config.data.include_labeled, config.views.strong.table),
            *(config.optim.decay, config.algorithm.activation, config.model.name),
            config.algorithm.smoothing_start_step,
        )

    network = "resnet18" if data == "tfds:stl10" else "wide_resnet"
    authors = (2**19, False, "simmatch", "not_batch_norm", "leaky_relu", network, 6)
    assert found("jaxmatch") == authors
    assert found("usb") == (2**20, True, "torchssl", "kernels", "relu", "wide_resnet", 1024)


def test_comatch_of_usb_smooths_from_the_second_epoch_on_mnist5k():
    assert configuration("comatch", "mnist5k", "usb").algorithm.smoothing_start_step == 15


def on_imagenet(name, labels=12_811, preset="jaxmatch"):
    return from_flags(f"{name}:{LARGE},labels={labels},preset={preset}", [])[0]


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"selfmatch"}))
def test_imagenet_has_the_published_network_at_its_size(name):
    config = configuration(name, LARGE, "jaxmatch")
    assert config.model.name == ("resnet50_v2" if name == "s4l_rotation" else "resnet50")
    assert config.data.image_size == 224
    assert config.augment == "contrast" or config.views.weak.area


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("simmatch_v2", 12_811, (300 * 3963, 3963, 5 * 3963, 1e-4, "all")),
        ("simmatch_v2", 128_116, (300 * 3603, 3603, 5 * 3603, 1e-4, "all")),
        ("comatch", 12_811, (400 * 1982, 1982, 0, 1e-4, "all")),
        ("comatch", 128_116, (400 * 1802, 1802, 0, 1e-4, "all")),
        ("s4l_rotation", 12_811, (1000 * 50, 1, 5 * 50, 1e-2, "kernels")),
        ("s4l_rotation", 128_116, (200 * 500, 1, 5 * 500, 1e-3, "kernels")),
        ("fixmatch", 128_116, (375_350, 1, 6255, 6e-4, "not_batch_norm")),
    ],
)
def test_the_optimizers_of_imagenet(name, labels, expected):
    config = on_imagenet(name, labels)
    optim = config.optim
    found = (optim.period_steps, optim.warmup_steps, optim.weight_decay, optim.decay)
    assert (config.steps, *found) == expected


def test_simmatch_v2_on_imagenet_has_the_authors_weights():
    for labels, edges in ((12_811, 10), (128_116, 5)):
        config = on_imagenet("simmatch_v2", labels)
        found = config.algorithm
        assert (found.threshold, found.unlabeled_weight, found.queue_batches) == (0.7, 10, 256)
        assert (found.edge_edge_weight, found.node_edge_weight) == (edges, edges)
        assert (config.model.feature_norm, config.model.bn_groups) == ("layer", 8)
        view = config.views.contrast
        assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.4, 0.4, 0.2, 0.1)
        assert (view.blur, view.solarize, found.strong_views) == (0.5, 0.1, 5)
        assert (config.ema.statistics, config.data.include_labeled) == ("own", False)


@pytest.mark.parametrize("name", ["simclr_v2", "wcl"])
def test_the_zero_classifier_of_fine_tuning_takes_no_part_in_lars(name):
    optim = Optim(**on_imagenet("finetune", preset=name).optim).build(10)
    params = {part: {"kernel": jnp.full((2, 2), 0.01)} for part in ("block", "classifier")}
    slope = jax.tree.map(jnp.ones_like, params)
    change, _ = optim.update(slope, optim.init(params), params)
    np.testing.assert_allclose(change["classifier"]["kernel"], -0.16, rtol=1e-6)
    np.testing.assert_allclose(change["block"]["kernel"], -0.16 * 1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "epoch", "rate", "decay"), [("moco_v2", 5_004, 0.03, 1e-4), ("byol", 2_502, 1.8, 1e-6)]
)
def test_eman_before_fixmatch_eman(name, epoch, rate, decay):
    """The authors' command lines: 200 epochs, ten of them warm-up, and a teacher in eval mode."""
    chain = f"{name}+fixmatch_eman:{LARGE},labels=12811,split=1.txt,preset=eman"
    before, after = stages_of(from_flags(chain, [])[0]).values()
    assert (before.preset, after.recipe) == ("eman", "fixmatch_eman")
    optim = before.optim
    assert before.steps == pytest.approx(200 * epoch, abs=1_024)
    assert (optim.period_steps, optim.warmup_steps) == (epoch, 10 * epoch)
    assert (optim.learning_rate, optim.weight_decay) == (rate, decay)
    assert (before.ema.statistics, before.model.bn_groups) == ("averaged", 8)
    assert (before.views.contrast.area, before.views.contrast.method) == ((0.2, 1.0), "bilinear")
    assert not before.algorithm.get("shuffle", False)
    if name == "byol":
        assert (before.ema.decay, before.ema.schedule) == (0.98, "cosine")
        assert (optim.name, optim.trust_ratio, optim.rate_inside_momentum) == (
            *("lars", "separate", True),
        )
    with pytest.raises(InputError, match="unknown preset 'eman'"):
        from_flags(f"{name}:tfds:cifar10,preset=eman", [])


def test_s4l_takes_a_usual_encoder_with_a_usual_network():
    chain = f"moco_v2+s4l_rotation:{LARGE},labels=12811,split=1.txt"
    flag = "--config.stages.s4l_rotation.model.name=resnet50"
    before, after = stages_of(from_flags(chain, [flag])[0]).values()
    assert (before.model.name, before.model.bn_groups) == ("resnet50", 8)
    assert after.model.name == "resnet50"


@pytest.mark.parametrize("name", ["fixmatch", "flexmatch"])
def test_torchssl_on_imagenet(name):
    config = from_flags(f"{name}:{LARGE},preset=torchssl", [])[0]
    assert (config.steps, config.data.batch_size, config.data.ratio) == (2_000_000, 32, 7)
    assert (config.data.labels, config.algorithm.threshold) == ("100000", 0.95)
    assert (config.optim.learning_rate, config.optim.weight_decay) == (0.03, 3e-4)
    assert (config.optim.schedule, config.views.strong.table) == ("cosine_7_16", "torchssl")


def test_google_on_imagenet_and_cifar100():
    config = configuration("fixmatch", LARGE, "google")
    assert (config.augment, config.views.strong.table) == ("randaugment", "eman")
    for name, decay in (("fixmatch", 5e-4), ("simclr", 1e-4), ("adamatch", 1e-3)):
        assert configuration(name, "tfds:cifar100", "google").optim.weight_decay == decay
    adamatch = configuration("adamatch", "tfds:cifar100", "google")
    assert (adamatch.model.width, adamatch.model.bn_eps_final) == (2, 1e-6)
    assert adamatch.ema.statistics == "averaged"


@pytest.mark.parametrize("preset", ["torchssl", "usb"])
def test_the_extra_images_of_svhn_and_its_flips(preset):
    for name, extra in (("fixmatch", True), ("simclr", False)):
        config = configuration(name, "tfds:svhn_cropped", preset)
        assert config.data.extra == extra
        assert (config.views.weak.flip, config.views.contrast.flip) == (True, 0.5)


@pytest.mark.parametrize(
    ("data", "labels", "steps"),
    [("tfds:cifar10", "all", 156_672), ("tfds:cifar10", "4000", 13_312), (LARGE, "all", 250_228)],
)
def test_the_steps_of_fine_tuning_follow_the_labels(data, labels, steps):
    assert from_flags(f"finetune:{data},labels={labels}", [])[0].steps == steps


def test_stages_of_different_input_are_noted():
    assert from_flags(f"selfmatch:{LARGE},labels=12811", [])[1] == []
    _, (mean, std) = from_flags(f"simclr+simmatch:{LARGE},labels=12811", [])
    assert mean.startswith("stages.simmatch.data.mean is (0.485, 0.456, 0.406), but its encoder")
    assert std.endswith("comes from stage 'simclr' with (1.0,); give both the same.")
    same = ["--config.stages.simmatch.data.mean=(0.0,)", "--config.stages.simmatch.data.std=(1.0,)"]
    assert from_flags(f"simclr+simmatch:{LARGE},labels=12811", same)[1] == []


def test_usbs_vision_transformers_have_usbs_comatch():
    config = configuration("comatch", "tfds:cifar100", usb_cv.NAME)
    assert (config.views.strong.table, config.algorithm.activation) == ("torchssl", "relu")


@pytest.mark.parametrize("name", ["fixmatch", "uda", "distillation"])
def test_torchssl_crops_before_the_ops_where_images_are_streamed(name):
    config = configuration(name, "tfds:imagenet2012", "torchssl")
    assert config.data.stream
    assert config.views.strong.order == "weak_first"
    config = configuration(name, "tfds:cifar10", "torchssl")
    assert config.views.strong.order == "ops_first"


@pytest.mark.parametrize(
    ("data", "preset", "parameters"),
    [
        ("mnist5k", "usb", 303_722),
        ("tfds:cifar10", "jaxmatch", 1_469_642),
    ],
)
def test_parameter_counts(data, preset, parameters):
    config, _ = from_flags(f"supervised:{data},preset={preset}", [])
    facts = Facts(classes=("x",) * 10, image_shape=(32, 32, 3), labels=(0,), unlabeled=9)
    state = Program.build(config, facts).state
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == parameters


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_tells_its_paper_and_command(name):
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    assert text is not None
    assert f"jaxmatch train --config=configs/{name}.py:" in text
    for word in text.split():
        if word.startswith("--config=configs/"):
            from_flags(word.removeprefix("--config="), [])
