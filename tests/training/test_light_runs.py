"""Runs that train a part of a network: LoRA from a trained encoder, its export, what is refused."""

import json
import re
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers import assert_bitwise, assert_close
from tiny_runs import OVERRIDES, PERIOD, without_extras, without_learning

from jaxmatch import load, train
from jaxmatch.cli.main import main
from jaxmatch.config.flags import from_flags
from jaxmatch.config.saved import complete, differences, to_json
from jaxmatch.errors import InputError
from jaxmatch.evaluation import encoder
from jaxmatch.evaluation.trunk import read_trunk
from jaxmatch.models.lora import merged, without_factors
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.record.settled import settled, standardized
from jaxmatch.report.describe import describe

SETTINGS = {
    **{key: OVERRIDES[key] for key in OVERRIDES if not key.startswith(("model.", "algorithm."))},
    **{"model.name": "vit", "model.width": 16, "model.depth": 1, "model.heads": 2},
    **{"model.patch": 4, "steps": PERIOD, "devices": 1, "optim.learning_rate": 0.3},
}
LORA = {"optim.train": "lora", "model.lora_rank": 2, "model.lora_alpha": 4.0}
FACTORS, CLASSIFIER = 2 * (16 + 48) + 2 * (16 + 16), 16 * 4 + 4


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


def tiny(data, **changed):
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changed.items()}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return from_flags(f"supervised:npz:{data},labels=16", flags)[0]


def light(data, source, **changed):
    return tiny(data, init_from=str(source), **LORA, **changed)


@pytest.fixture(scope="module")
def source(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "source"
    with without_learning():
        train(tiny(data), folder)
    return folder


@pytest.fixture(scope="module")
def adapted(data, source, tmp_path_factory):
    """A run that trains LoRA from the encoder of ``source``; to be read, not changed."""
    folder = tmp_path_factory.mktemp("runs") / "lora"
    train(light(data, source), folder)
    return folder


def read(config, folder):
    """The program of a new run, and what it takes over."""
    program, loaded = told(config, folder)
    return program, loaded.variables["params"]


def told(config, folder):
    """The program of a new run, and what is said about its first weights."""
    config = settled(config)[0]
    data = run_data.load_new(config)
    config = standardized(config, data.source.images)
    program = Program.build(config, data.facts())
    return program, read_trunk(config, folder, program)


def trunk_of(params):
    return {name: value for name, value in params.items() if name != "classifier"}


def test_the_encoder_stays_that_of_the_source(source, adapted):
    state, before = load(adapted).state, trunk_of(load(source).variables()["params"])
    for params in (state.params, state.teacher["params"]):
        assert_bitwise(without_factors(trunk_of(params)), before)
        assert np.any(params["block1"]["attention"]["qkv"]["lora_b"])
        assert np.any(params["block1"]["attention"]["proj"]["lora_b"])
    held = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim)
    assert held == FACTORS + CLASSIFIER  # one momentum


def test_another_scale_of_the_input_is_told(source, data, tmp_path):
    assert told(tiny(data, init_from=str(source)), tmp_path)[1].report == ()
    plain = {"data__mean": "(0.0,)", "data__std": "(1.0,)"}
    _, found = told(tiny(data, init_from=str(source), **plain), tmp_path)
    (sentence,) = found.report
    assert sentence.startswith(f"init_from={source}: its images had the mean 0.")
    assert "those of this run have the mean 0 and the deviation 1: unless" in sentence


def test_an_export_is_a_network_without_lora(adapted, data, tmp_path, capsys):
    file = tmp_path / "weights.npz"
    main(["export", f"--workdir={adapted}", "--output", str(file)])
    capsys.readouterr()
    run = load(adapted)
    program, found = read(tiny(data, init_from=str(file)), tmp_path)
    expected = merged(run.program.model, run.variables())
    assert_close(found, expected["params"], 1e-6)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    outputs = [
        jax.jit(lambda v, network=each: network(v, images, train=False)[0].logits)(variables)
        for each, variables in (
            (run.program.network, run.variables()),
            (program.network, {**expected, "batch_stats": {}}),
        )
    ]
    assert_close(outputs[1], outputs[0], 1e-5)


def test_a_run_that_starts_from_lora_has_it_in_its_kernels(adapted, data, tmp_path):
    run = load(adapted)
    expected = trunk_of(merged(run.program.model, run.variables())["params"])
    for options in ({}, LORA):
        _, found = read(tiny(data, init_from=str(adapted), **options), tmp_path)
        assert_bitwise(found, expected)
    before = trunk_of(without_factors(run.variables()["params"]))
    assert not np.array_equal(
        before["block1"]["attention"]["qkv"]["kernel"],
        expected["block1"]["attention"]["qkv"]["kernel"],
    )


@pytest.mark.slow
def test_features_are_of_the_merged_network(adapted, source, data):
    run, before = load(adapted), load(source)
    found = encoder.of_run(run)
    again = settled(tiny(data, init_from=str(adapted), **LORA))[0]
    new = run_data.load_new(again)
    started = encoder.of_init(standardized(again, new.source.images), new.facts(), adapted)
    assert found.digest == started.digest != encoder.of_run(before).digest
    state = run.state.replace(teacher=jax.tree.map(lambda leaf: leaf, run.state.teacher))
    factors = state.teacher["params"]["block1"]["attention"]["qkv"]
    factors["lora_b"] = 2 * factors["lora_b"]
    assert encoder.of_run(replace(run, state=state)).digest != found.digest


@pytest.mark.slow
def test_a_run_continues_bitwise(data, source, adapted, tmp_path):
    train(light(data, source, steps=2 * PERIOD), tmp_path / "whole")
    train(light(data, source, steps=2 * PERIOD), tmp_path / "halved")
    (tmp_path / "halved" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "halved" / "checkpoints" / str(2 * PERIOD))
    train(light(data, source, steps=2 * PERIOD), tmp_path / "halved")
    states = [load(tmp_path / name).state for name in ("whole", "halved")]
    assert_bitwise(*(each.replace(key=jax.random.key_data(each.key)) for each in states))


def test_a_run_of_before_is_one_that_trains_all(source):
    saved = json.loads((source / "config.json").read_text())
    old = json.loads(json.dumps(saved))
    assert old["optim"].pop("train") == "all"
    for key in ("lora_rank", "lora_alpha", "lora_rank_stabilized"):
        old["model"].pop(key)
    found = complete(old)
    assert (found.optim.train, found.model.lora_rank) == ("all", 0)
    assert differences(old, to_json(complete(saved))) == []


@pytest.mark.parametrize(
    ("train", "count"),
    [
        ("lora", FACTORS + CLASSIFIER),
        pytest.param("head", CLASSIFIER, marks=pytest.mark.slow),
        pytest.param("norms", 3 * 2 * 16 + CLASSIFIER, marks=pytest.mark.slow),
    ],
)
def test_describe_counts_what_trains(data, train, count):
    found = describe(tiny(data, **{**LORA, "optim.train": train}))
    assert found["trained_parameters"] == count
    assert found["bytes"]["optimizer"] == 4 * count + 4  # momentum and the number of steps
    free = describe(tiny(data, model__lora_rank=2))
    assert free["trained_parameters"] == free["parameters"] == found["parameters"]
    assert found["operations_per_step"] < free["operations_per_step"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit", "needs a rank; set --config.model.lora_rank=8"),
        ("wide_resnet", "wide_resnet has no attention that it could adapt"),
        ("resnet18", "resnet18 has no attention that it could adapt"),
    ],
)
def test_lora_of_a_network_without_it_is_refused(data, name, message):
    settings = {key: value for key, value in SETTINGS.items() if not key.startswith("model.")}
    settings |= {"model.name": name, "optim.train": "lora"}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    with pytest.raises(InputError, match=re.escape(message)):
        describe(from_flags(f"supervised:npz:{data},labels=16", flags)[0])
