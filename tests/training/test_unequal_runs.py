"""Runs with options for unequal classes: what they draw, evaluate, save and refuse."""

import shutil

import jax
import numpy as np
import pytest
from helpers import assert_bitwise
from tiny_runs import (
    configuration,
    settled_configuration,
    state_of,
    train_tiny,
    without_extras,
    write_data,
)

import jaxmatch
from jaxmatch.config.checks import check_settings
from jaxmatch.config.saved import identity, run_name, to_json
from jaxmatch.data.resident import batch, resident
from jaxmatch.errors import InputError
from jaxmatch.program import Program
from jaxmatch.record import run_data

TAIL = ",labels=14,imbalance=4"
OPTIONS = {"unequal__abc": 1.0, "unequal__debias": 0.4, "unequal__logit_adjustment": 1.0}


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


@pytest.mark.slow
def test_a_run_with_every_option_goes_on_and_predicts(tmp_path):
    data = write_data(tmp_path / "data.npz")
    options = {"chosen": TAIL, "steps": 10, "devices": 1, **OPTIONS}
    train_tiny(data, tmp_path / "run", **options)
    whole = state_of(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "10")
    (tmp_path / "run" / "summary.json").unlink()
    train_tiny(data, tmp_path / "run", **options)
    assert_bitwise(state_of(tmp_path / "run"), whole)
    loaded = jaxmatch.load(tmp_path / "run")
    images = run_data.load_new(settled_configuration(data, **options)).source.test_images
    found = loaded.predict(images[:4])
    assert whole.params["ordinary"]["dense"]["kernel"].shape[1] == 4
    assert whole.memory.average.shape == (4,)
    assert found.probabilities.shape == (4, 4)


def test_balanced_labels_are_a_setting(tmp_path):
    data = write_data(tmp_path / "data.npz")
    config = settled_configuration(data, chosen=TAIL, unequal__sampling="balanced")
    assert Program.build(config, run_data.load_new(config).facts()).balanced


@pytest.mark.slow  # data/test_order.py has the order that they follow
def test_batches_of_balanced_labels(tmp_path):
    data = write_data(tmp_path / "data.npz")
    config = settled_configuration(data, chosen=TAIL, unequal__sampling="balanced")
    found = run_data.load_new(config)
    program = Program.build(config, found.facts())
    images = resident(found.source, found.split)
    key = jax.random.key(0)
    unbalanced = jax.jit(lambda *given: batch(*given, 8, 16))
    balanced = jax.jit(lambda *given: batch(*given, 8, 16, program.spec.classes))
    for step in range(3):
        drawn = balanced(images, key, step)
        np.testing.assert_array_equal(np.bincount(drawn.labeled.label), [2, 2, 2, 2])
        plain = unbalanced(images, key, step)
        np.testing.assert_array_equal(plain.unlabeled.index, drawn.unlabeled.index)
    assert program.balanced


def test_the_default_has_the_name_and_identity_of_before(tmp_path):
    config = configuration("mnist5k")
    names = {key.rpartition(".")[2] for key in identity(to_json(config))}
    assert not names & {"balance", "imbalance", "largest", "abc", "debias", "alignment_prior"}
    changed = configuration("mnist5k", unequal__abc=1.0)
    assert run_name(changed) != run_name(config)


def test_options_are_refused_before_anything_is_read():
    config = configuration("mnist5k", unequal__align="labels", unequal__debias=0.4)
    with pytest.raises(InputError, match="align=labels both shift"):
        check_settings(config)
