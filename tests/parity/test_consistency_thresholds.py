"""Recorded steps of methods whose thresholds follow the training; a wrong library fails them."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SPEC

from experiments.parity import consistency_thresholds, functions, functions_thresholds
from experiments.parity.__main__ import main
from experiments.parity.rows import TOLERANCE, Case, Unknown, UnknownCaseError
from jaxmatch.algorithms import adamatch, flexmatch
from jaxmatch.functional import thresholds

GOLDEN = Path(__file__).parents[1] / "golden"
SOURCES = {
    "fn_flexmatch_threshold": {"library", "override: learning_effect"},
    "fn_freematch_threshold": {"library", "override: update_self_adaptive"},
    "fn_freematch_entropy_loss": {"library", "reference only"},
    "fn_softmatch_weight": {"library", "reference only"},
}


def rows(name):
    with jax.enable_x64(True):
        return functions.replay(Case(GOLDEN / f"{name}.npz"), TOLERANCE).rows()


def failed(name):
    return {row.quantity for row in rows(name) if not row.passed}


@pytest.mark.parametrize("name", SOURCES)
def test_the_functions_equal_the_reference(name):
    found = rows(name)
    assert not any(isinstance(row, Unknown) for row in found)
    assert {row.source for row in found} == SOURCES[name]
    assert [row for row in found if not row.passed] == []


def test_variants_of_functions_are_told_by_what_they_record(tmp_path, capsys):
    with np.load(GOLDEN / "fn_softmatch_weight.npz") as file:
        arrays = {key.replace("per_class", "each_class"): file[key] for key in file.files}
    np.savez(tmp_path / "fn_softmatch_weight.npz", **arrays)
    with np.load(GOLDEN / "fn_flexmatch_threshold.npz") as file:
        arrays = {key.replace("/warmup/", "/warmup_0/"): file[key] for key in file.files}
    np.savez(tmp_path / "fn_flexmatch_threshold.npz", **arrays)
    with np.load(GOLDEN / "fn_uda_tsa.npz") as file:
        arrays = dict(file)
    total = int(arrays["in/total"])
    arrays["in/step"] = np.append(arrays["in/step"], 2 * total)
    late = {"linear": 2.0, "exp": np.exp(5.0), "log": 1 - np.exp(-10.0), "none": 1.0}
    for key in [key for key in arrays if key.startswith("out/")]:
        name, classes = key.removeprefix("out/").split("/c")
        value = late[name] * (1 - 1 / int(classes)) + 1 / int(classes)
        arrays[key] = np.append(arrays[key], value)
    np.savez(tmp_path / "fn_uda_tsa.npz", **arrays)
    assert main([str(tmp_path)]) == 0, capsys.readouterr().out
    text = capsys.readouterr().out
    assert "out/tsa (after the run)" in text
    assert "(each_class)" in text


def test_adamatch_equals_the_reference(capsys):
    assert main([str(GOLDEN / "adamatch.npz")]) == 0, capsys.readouterr().out
    *lines, last = capsys.readouterr().out.splitlines()
    assert all(" ok   override: adamatch.align (" in line for line in lines)
    assert last.endswith("failed 0, unknown 0 quantities")


def test_flexmatch_keeps_the_effects_while_one_class_holds_all_examples():
    remember = consistency_thresholds.keep_effects_of_a_filled_memory(3).function
    memory = flexmatch.FlexMatch().init(jax.random.key(0), replace(SPEC, unlabeled=3))

    def after(memory, *labels):
        return remember(memory, jnp.arange(3), jnp.array(labels), jnp.ones(3, bool))

    spread = after(memory, 0, 1, 2)
    filled = after(after(spread, 0, 0, 0), 0, 0, 0)
    np.testing.assert_array_equal(filled.selected.rows["label"][:3], 0)
    np.testing.assert_array_equal(spread.counts[:3], 1)
    np.testing.assert_array_equal(filled.counts, spread.counts)
    np.testing.assert_array_equal(after(filled, 0, 0, 2).counts[:3], [2, 0, 1])


@pytest.mark.slow
def test_a_wrong_adamatch_fails(monkeypatch, capsys):
    right = adamatch.update_marginal

    def wrong(marginal, probabilities, momentum):
        return right(marginal, probabilities, 1.0001 * momentum)

    monkeypatch.setattr(adamatch, "update_marginal", wrong)
    assert main([str(GOLDEN / "adamatch.npz")]) == 1
    text = capsys.readouterr().out
    found = {line.split()[1] for line in text.splitlines() if "FAIL" in line}
    assert {"out/probs_aligned", "state/da_p_target", "state/da_p_model"} <= found
    assert not found & {"grad/0", "out/sup_loss", "out/lr"}


def test_a_wrong_memory_of_labels_fails(monkeypatch):
    def late(memory, index, label, confident):
        return flexmatch.remember(memory, index, jnp.roll(label, 1), confident)

    monkeypatch.setattr(functions_thresholds, "flexmatch", _With(flexmatch, remember=late))
    assert {"out/selected_label", "out/classwise_acc"} <= failed("fn_flexmatch_threshold")


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        ("learning_effect", "fn_flexmatch_threshold", {"out/classwise_acc"}),
        ("self_adaptive_thresholds", "fn_freematch_threshold", {"out/mask"}),
        ("self_adaptive_fairness", "fn_freematch_entropy_loss", {"out/loss", "grad/logits_s"}),
        ("truncated_gaussian_weight", "fn_softmatch_weight", {"out/mask"}),
    ],
)
def test_wrong_functions_fail(monkeypatch, function, name, expected):
    right = getattr(thresholds, function)
    monkeypatch.setattr(thresholds, function, lambda *arguments: 1.3 * right(*arguments))
    assert expected <= failed(name)


def changed(tmp_path, name, change):
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"]))
    change(arrays, meta)
    arrays["meta"] = np.array(json.dumps(meta))
    np.savez(tmp_path / "changed.npz", **arrays)
    return Case(tmp_path / "changed.npz")


def test_what_the_library_does_not_have_is_unknown(tmp_path):
    def per_class(arrays, meta):
        del arrays
        meta["hyperparameters"]["per_class"] = True

    with pytest.raises(UnknownCaseError, match="a Gaussian for each class"):
        consistency_thresholds.SOFTMATCH.build(changed(tmp_path, "adamatch", per_class))

    def contradiction(arrays, meta):
        arrays["init_state/selected_label"] = np.array([0, 1, -1, -1])
        arrays["init_state/classwise_acc"] = np.full(5, 0.3)
        meta["hyperparameters"]["thresh_warmup"] = True

    with pytest.raises(UnknownCaseError, match="does not belong to selected_label"):
        consistency_thresholds.FLEXMATCH.memory(changed(tmp_path, "adamatch", contradiction))


class _With:
    """A module with some of its functions replaced."""

    def __init__(self, module, **functions):
        self._module = module
        self.__dict__.update(functions)

    def __getattr__(self, name):
        return getattr(self._module, name)
