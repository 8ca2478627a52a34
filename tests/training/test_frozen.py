"""What a run learns from a frozen network: the right one, unchanged, in its own scale."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_bitwise
from tiny_runs import (
    PERIOD,
    STEPS,
    arguments,
    settled_configuration,
    snapshot,
    state_of,
    train_tiny,
    without_extras,
    without_learning,
    without_seconds,
)

from jaxmatch import load
from jaxmatch.algorithms.simclr import SimCLR
from jaxmatch.cli.main import main
from jaxmatch.data.facts import Facts
from jaxmatch.errors import InputError
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.record.metrics import read
from jaxmatch.report.describe import describe
from jaxmatch.training import frozen as frozen_module
from jaxmatch.training.frozen import digest, load_frozen, rescaled
from jaxmatch.types import Batch, Examples, Outputs

SHORT = {"steps": PERIOD}


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """A supervised run of another network and another input scale than the student's."""
    workdir = tmp_path_factory.mktemp("runs") / "teacher"
    changes = {"model__conv_bias": "stem", "data__mean": (0.3,), "data__std": (0.2,)}
    changes["devices"] = 1
    with without_learning():
        train_tiny(data, workdir, method="supervised", data__ratio=0, **changes)
    return workdir


@pytest.fixture(scope="module")
def reference(data, teacher, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "student"
    distil(data, teacher, workdir)
    return workdir


def options(teacher, **overrides):
    return {"method": "distillation", "frozen__teacher": teacher, "devices": 1, **overrides}


def distil(data, teacher, workdir, **overrides):
    return train_tiny(data, workdir, **options(teacher, **overrides))


def logits_of(run, images):
    """Of the network that ``run`` reports, on levels [n h w 3]."""
    views = (images / 255 - np.asarray(run.program.mean)) / np.asarray(run.program.std)
    views = jnp.asarray(views, jnp.float32)
    return jax.jit(lambda x: run.program.network(run.variables(), x, train=False)[0].logits)(views)


def test_a_frozen_network_that_is_not_loaded_is_absent(data, teacher):
    config = settled_configuration(data, **options(teacher))
    program = Program.build(config, run_data.load_new(config).facts())
    assert program.frozen == {}
    with pytest.raises(InputError, match="learns from the frozen network 'teacher', which is not"):
        _ = program.step
    standing = program.with_stand_ins()
    assert standing.frozen == {"teacher": program.network}
    assert callable(standing.step)


def test_a_run_distils_another_network(data, teacher, reference):
    lines = read(reference)
    assert lines[-1]["step"] == STEPS
    assert lines[-1]["loss/distillation"] < lines[0]["loss/distillation"]
    assert lines[-1]["loss/total"] == pytest.approx(lines[-1]["loss/distillation"])
    summary = json.loads((reference / "summary.json").read_text())
    assert (summary["algorithm"], summary["evaluated"]) == ("distillation", "student")
    assert summary["forward_images"] == STEPS * (8 + 16 + 16)  # those of the frozen network, too
    student, before = load(reference), load(teacher)
    layers = [set(run.state.params["stem"]) for run in (student, before)]
    assert layers == [{"kernel"}, {"kernel", "bias"}]
    recorded = json.loads((reference / "config.json").read_text())["facts"]["frozen"]
    assert recorded == {"teacher": digest(before.variables())}


@pytest.mark.slow
def test_the_frozen_run_is_not_touched(data, teacher, tmp_path):
    before = snapshot(teacher)
    distil(data, teacher, tmp_path / "run", **SHORT)
    assert snapshot(teacher) == before


@pytest.mark.slow  # the reference has another one
def test_the_student_may_be_of_any_architecture(data, teacher, tmp_path):
    config = settled_configuration(data, **options(teacher, model__depth=10, model__width=0.5))
    program = Program.build(config, run_data.load_new(config).facts())
    frozen = load_frozen(config, tmp_path / "run", program)
    program = replace(program, frozen=frozen.networks)

    def one():
        state = program.init()
        images = jnp.zeros((16, 8, 8, 3), jnp.uint8)
        examples = Examples((images,), jnp.zeros(16, jnp.int32), jnp.arange(16))
        return program.step(state, Batch(examples, examples, frozen.variables))

    state, metrics = jax.eval_shape(one)
    assert "group1" in state.params
    assert metrics["loss/distillation"].shape == ()


def test_the_frozen_network_of_a_streamed_set_may_be_of_any_architecture(data, teacher):
    config = settled_configuration(data, **options(teacher, data__stream=True))
    facts = Facts(classes=("a", "b", "c", "d"), image_shape=(8, 8, 3), labels=(0,), unlabeled=64)

    def network(variables, views, train=True):
        features = views.mean((1, 2))
        return Outputs(features @ variables["other"], features, {}), {}

    program = replace(Program.build(config, facts), frozen={"teacher": network})
    variables = {"teacher": {"other": jax.ShapeDtypeStruct((3, 4), jnp.float32)}}
    assert callable(program.compile(program.data._replace(frozen=variables)))


def test_a_step_sees_the_frozen_networks_own_predictions(data, teacher, tmp_path):
    config = settled_configuration(data, **options(teacher))
    program = Program.build(config, run_data.load_new(config).facts())
    frozen = load_frozen(config, tmp_path / "run", program)
    images = np.load(data)["x_test"]
    views = jnp.asarray((images / 255 - 0.5) / 0.5, jnp.float32)
    network, variables = frozen.networks["teacher"], frozen.variables["teacher"]
    logits = jax.jit(lambda x: network(variables, x, train=False)[0].logits)(views)
    np.testing.assert_allclose(logits, logits_of(load(teacher), images), atol=1e-4)


@pytest.mark.slow
def test_an_equal_scale_costs_nothing(data, reference):
    student = load(reference)
    assert rescaled(student, student.program) is student.program.network
    config = settled_configuration(data, data__mean=(0.1, 0.2, 0.3), data__std=(0.4, 0.5, 0.6))
    program = Program.build(config, run_data.load_new(config).facts())
    images = np.load(data)["x_test"]
    views = jnp.asarray(
        (images / 255 - np.array(program.mean)) / np.array(program.std), jnp.float32
    )
    outputs, _ = rescaled(student, program)(student.variables(), views, train=False)
    np.testing.assert_allclose(outputs.logits, logits_of(student, images), atol=1e-4)


@pytest.mark.slow  # as in test_resume.py
def test_an_interrupted_run_continues_bitwise(data, teacher, reference, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    (run / "summary.json").unlink()
    for step in (STEPS, STEPS - PERIOD):
        shutil.rmtree(run / "checkpoints" / str(step))
    distil(data, teacher, run)
    assert_bitwise(state_of(run), state_of(reference))
    assert without_seconds(read(run)) == without_seconds(read(reference))


@pytest.mark.slow
def test_an_interrupted_run_does_not_continue_with_another_network(data, teacher, tmp_path):
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(teacher, source)
    distil(data, source, run, **SHORT)
    (run / "summary.json").unlink()
    shutil.rmtree(source / "checkpoints" / str(STEPS))  # the newest is now an earlier one
    before = snapshot(run)
    with pytest.raises(InputError, match=r"is not the network that .* began with; put that one"):
        distil(data, source, run, **SHORT)
    assert snapshot(run) == before
    distil(data, teacher, run, **SHORT)  # the same network, though at another place
    with pytest.raises(InputError, match=r"is not the network that .* began with; put that one"):
        distil(data, source, run, **SHORT)  # of a complete run, too


def test_the_digest_tells_names_types_and_values_apart():
    base = {"a": np.arange(4.0), "b": np.ones(2)}
    others = [
        {**base, "a": np.arange(4.0) + 1e-12},
        {**base, "a": np.arange(4.0).reshape(2, 2)},
        {**base, "a": np.arange(4.0).astype(np.float32)},
        {"a": base["a"], "c": base["b"]},
    ]
    assert digest(base) == digest(jax.tree.map(np.copy, base))
    assert len({digest(base), *map(digest, others)}) == 5


@pytest.mark.slow
def test_a_finished_run_needs_the_other_no_longer(data, teacher, tmp_path):
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(teacher, source)
    distil(data, source, run, **SHORT)
    shutil.rmtree(source)
    assert load(run).predict(np.load(data)["x_test"]).label.shape == (24,)
    assert distil(data, source, run, **SHORT)["steps"] == PERIOD
    shape = describe(settled_configuration(data, **options("")))
    assert shape["operations_per_step"] > 0


def test_a_run_that_is_not_there_is_refused_before_anything_is_written(data, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.raises(InputError, match="nowhere is no run folder"):
        distil(data, tmp_path / "nowhere", run)
    with pytest.raises(SystemExit) as caught:
        main(["train", *arguments(data, **options("")), f"--workdir={run}"])
    assert caught.value.code == 2
    assert "give its run folder as --config.frozen.teacher=RUN" in capsys.readouterr().err
    assert not (run / "config.json").exists()
    with pytest.raises(InputError, match=r"unknown config key 'frozen.student'"):
        settled_configuration(data, method="distillation", frozen__student="x")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"classes": ("a", "b")}, "tells 2 classes apart, but the data has 4"),
        ({"image_shape": (6, 6, 3)}, r"shape \(6, 6, 3\), but these are \(8, 8, 3\)"),
        ({"algorithm": SimCLR()}, "was trained without labels"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(change, expected, data, teacher, tmp_path, monkeypatch):
    other = load(teacher)
    if "algorithm" in change:
        change = {"program": replace(other.program, **change)}
    monkeypatch.setattr(frozen_module, "load", lambda folder: replace(other, **change))
    with pytest.raises(InputError, match=expected):
        distil(data, teacher, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
