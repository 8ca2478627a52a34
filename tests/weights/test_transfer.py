"""What a run takes over from another run's encoder, and what it refuses."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers import assert_bitwise, quick_jit
from tiny_runs import (
    PERIOD,
    arguments,
    configuration,
    state_of,
    train_tiny,
    without_extras,
    without_learning,
)

from jaxmatch import load
from jaxmatch.algorithms.simclr import SimCLR
from jaxmatch.cli.main import main
from jaxmatch.errors import InputError
from jaxmatch.report.describe import describe
from jaxmatch.weights.transfer import check_encoder, encoder

SHORT = {"steps": PERIOD, "devices": 1, "model__conv_bias": "none"}
FROZEN = {**SHORT, "optim__learning_rate": 0.0, "model__bn_decay": 1.0}


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


@pytest.fixture(scope="module")
def source(data, tmp_path_factory):
    """A FixMatch run of another seed, whose teacher is what it reports."""
    workdir = tmp_path_factory.mktemp("runs") / "source"
    with without_learning():
        train_tiny(data, workdir, chosen=",labels=16,seed=7", **SHORT)
    return workdir


def test_an_encoder_is_what_is_neither_classifier_nor_head():
    tree = {"stem": 1, "group1": 2, "classifier": 3, "projection": 4}
    found = encoder({"params": tree, "batch_stats": {"norm": 5}}, SimCLR())
    assert found == {"params": {"stem": 1, "group1": 2}, "batch_stats": {"norm": 5}}


def test_encoders_of_other_shapes_are_refused_by_their_first_tensors():
    ours = {"params": {"a": np.zeros(3), "b": np.zeros(2), "d": np.zeros(1)}}
    theirs = {"params": {"a": np.zeros(3), "b": np.zeros(4), "c": np.zeros(1)}}
    check_encoder(ours, ours, "x")
    with pytest.raises(InputError) as caught:
        check_encoder(theirs, ours, "runs/x")
    text = str(caught.value)
    assert "init_from=runs/x" in text
    assert "params/b is (4,) there and (2,) here" in text
    assert "params/c is (1,) there and missing here" in text
    assert "params/d is missing there and (1,) here" in text


@pytest.fixture(scope="module")
def follower(data, source, tmp_path_factory):
    """A run that started from the source and learned nothing."""
    workdir = tmp_path_factory.mktemp("runs") / "follower"
    with without_learning():
        train_tiny(data, workdir, init_from=str(source), **FROZEN)
    return workdir


def test_the_run_starts_from_the_reported_network_of_the_source(source, follower):
    run, before = load(follower), load(source)
    trunk = encoder(jax.device_get(before.variables()), before.program.algorithm)
    # At a rate of zero no step changes anything.
    for variables in (run.state.student(), run.state.teacher):
        found = encoder(jax.device_get(variables), run.program.algorithm)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, trunk)
    fresh = quick_jit(lambda: run.program.init().params)()  # of a run without a source
    assert_bitwise(run.state.params["classifier"], fresh["classifier"])
    ours, theirs = (np.asarray(each["stem"]["kernel"]) for each in (run.state.params, fresh))
    assert not np.array_equal(ours, theirs)


@pytest.mark.slow
def test_a_label_free_run_can_start_from_any_run_and_any_run_from_it(data, source, tmp_path):
    options = {"method": "simclr", "chosen": "", "data__ratio": 1, **SHORT}
    train_tiny(data, tmp_path / "free", init_from=str(source), **options)
    train_tiny(data, tmp_path / "then", init_from=str(tmp_path / "free"), **SHORT)
    assert (tmp_path / "then" / "summary.json").exists()


@pytest.mark.slow
def test_a_resumed_run_does_not_need_the_source_again(data, source, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(source, copied)
    options = {**SHORT, "steps": 2 * PERIOD, "init_from": str(copied)}
    train_tiny(data, tmp_path / "run", **options)
    whole = state_of(tmp_path / "run")
    shutil.rmtree(copied)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(2 * PERIOD))
    (tmp_path / "run" / "summary.json").unlink()
    train_tiny(data, tmp_path / "run", **options)
    assert_bitwise(state_of(tmp_path / "run"), whole)


def test_settings_without_a_shape_that_differ_are_told(data, source):
    def begins(**options):
        config = configuration(data, init_from=source, **SHORT, **options)
        return " ".join(describe(config)["run"]["begins_from"])

    assert "computes otherwise" not in begins(model__bn_decay=0.5)
    told = begins(model__bn_eps=1e-5, model__first_stride=2)
    assert "its network computes otherwise: model.bn_eps=" in told
    assert "model.first_stride=1 there and 2 here" in told


@pytest.fixture(scope="module")
def contrastive(data, tmp_path_factory):
    """A SimCLR v2 run, whose head has layers to keep."""
    workdir = tmp_path_factory.mktemp("runs") / "contrastive"
    with without_learning():
        train_tiny(data, workdir, method="simclr_v2", chosen="", data__ratio=1, **SHORT)
    return workdir


@pytest.mark.slow
def test_heads_come_along_where_both_runs_have_them(data, contrastive, tmp_path):
    options = {"method": "simclr_v2", "chosen": "", "data__ratio": 1, **FROZEN}
    run = tmp_path / "run"
    train_tiny(data, run, init_from=str(contrastive), init_heads=("projection",), **options)
    theirs = jax.device_get(load(contrastive).state.params["projection"])
    ours = jax.device_get(load(run).state.params["projection"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


@pytest.mark.slow
def test_fine_tuning_keeps_the_first_layers_of_the_head(data, contrastive, tmp_path):
    options = {"model__head_layers": 2, "model__zero_classifier": True, **FROZEN}
    options |= {"method": "supervised", "data__ratio": 0, "init_from": str(contrastive)}
    train_tiny(data, tmp_path / "run", **options)
    theirs = jax.device_get(load(contrastive).state.params["projection"])
    ours = load(tmp_path / "run").state
    kept = jax.device_get(ours.params["kept_head"])
    assert set(kept) == {"hidden1", "hidden1_norm", "hidden2", "hidden2_norm"}
    for name, layer in kept.items():
        assert_bitwise(layer, theirs[name])
    assert not np.any(ours.params["classifier"]["kernel"])


def refused(data, workdir, source, expected, **options):
    with pytest.raises(InputError, match=expected):
        train_tiny(data, workdir, init_from=str(source), **SHORT, **options)
    assert not workdir.exists() or not any(workdir.glob("*.json"))


def test_heads_that_the_run_does_not_have_are_refused(data, source, tmp_path):
    expected = "init_heads names 'prediction', but algorithm fixmatch has"
    refused(data, tmp_path / "run", source, expected, init_heads=("prediction",))


@pytest.mark.slow
def test_layers_that_the_source_does_not_have_are_refused(data, contrastive, tmp_path):
    expected = "has no layer 'hidden3' in its projection head"
    refused(data, tmp_path / "run", contrastive, expected, model__head_layers=3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model__bn_decay": 0.9, "model__conv_bias": "all"}, "stem/bias is missing there"),
        # The command line meets such a one below.
        pytest.param(
            {"model__depth": 10, "model__width": 0.25},
            "has another encoder",
            marks=pytest.mark.slow,
        ),
        ({"init_from": "nowhere"}, "nowhere is no run folder"),
    ],
)
def test_what_cannot_be_taken_over_is_refused_before_anything_is_written(
    options, expected, data, source, tmp_path
):
    options = {"init_from": str(source), **SHORT, **options}
    with pytest.raises(InputError, match=expected):
        train_tiny(data, tmp_path / "run", **options)
    assert not (tmp_path / "run" / "config.json").exists()


def test_another_source_is_another_run(data, source, follower):
    first = configuration(data, init_from=str(source))
    assert json.loads(first.to_json_best_effort())["init_from"] == str(source)
    for other in ("", str(follower)):
        with pytest.raises(InputError, match="init_from"):
            train_tiny(data, follower, init_from=other, **FROZEN)


def test_the_command_line_says_which_tensors_differ(data, source, tmp_path, capsys):
    words = arguments(data, method="supervised", devices=1, init_from=source, model__depth=10)
    with pytest.raises(SystemExit) as caught:
        main(["train", *words, f"--workdir={tmp_path / 'run'}"])
    assert caught.value.code == 2
    assert "group1/block1" in capsys.readouterr().err
