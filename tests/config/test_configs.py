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
    "simmatch",
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
def test_imagenet_has_the_published_network(name):
    config = configuration(name, LARGE, "jaxmatch")
    assert (config.model.name, config.data.image_size) == ("resnet50", 224)
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
    presets = PRESETS_OF.get(name, PRESETS)
    if (name, data) == ("finetune", "tfds:imagenet2012"):  # one for each method before it
        presets = ("jaxmatch", "moco_v2", "simclr", "simclr_v2", "wcl", "byol", "swav", "pcl")
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
