"""Recorded steps, most with a memory or a teacher pass; they fail if the library is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.parity.__main__ import main
from jaxmatch.algorithms import comatch, fixmatch_eman, simmatch, simmatch_v2
from jaxmatch.functional import propagation, similarity
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.optim.ema import Ema

GOLDEN = Path(__file__).parents[1] / "golden"
SOURCES = {
    "off_simmatch_eman": "override: Optim.build",
    "off_simmatchv2": "override: Ema.decay",
    "off_comatch_cifar": "library",
    "off_fixmatch_eman": "library",
    "simmatch": "override: alignment.align, memory.normalize",
    "comatch": "override: alignment.align",
    "flexmatch": "library",
    "freematch": "library",
    "pimodel_ramp": "library",
    "softmatch": "override: softmatch.align",
    "uda": "override: uda.kl_divergence",
}
SLOW = ("simmatch", "comatch", "off_simmatch_eman")


def failures(name, capsys):
    assert main([str(GOLDEN / f"{name}.npz")]) == 1
    return {line.split()[1] for line in capsys.readouterr().out.splitlines() if "FAIL" in line}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        pytest.param(name, source, marks=pytest.mark.slow if name in SLOW else ())
        for name, source in SOURCES.items()
    ],
)
def test_the_library_equals_the_reference(name, source, capsys):
    assert main([str(GOLDEN / f"{name}.npz")]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert all(f" ok   {source}" in line for line in lines[:-1])
    assert lines[-1].endswith("failed 0, unknown 0 quantities")


@pytest.mark.slow
def test_a_wrong_simmatch_fails(monkeypatch, capsys):
    def wrong(log_instance, log_semantic, labels):
        return similarity.unfold(log_instance, 1.0001 * log_semantic, labels)

    monkeypatch.setattr(simmatch, "unfold", wrong)
    failed = failures("off_simmatch_eman", capsys)
    assert {"out/in_loss", "out/total_loss", "final/main/parameters", "state/bank"} <= failed
    assert not failed & {"grad/0", "out/mask", "state/labels", "out/lr"}


@pytest.mark.slow
def test_a_wrong_simmatch_v2_fails(monkeypatch, capsys):
    def wrong(embeddings, prediction, bank, **options):
        options["share"] *= 1.0001
        return propagation.propagate(embeddings, prediction, bank, **options)

    monkeypatch.setattr(simmatch_v2, "propagate", wrong)
    failed = failures("off_simmatchv2", capsys)
    assert {"out/total_loss", "grad/0"} <= failed
    assert "out/lr" not in failed


@pytest.mark.slow
def test_a_wrong_comatch_fails(monkeypatch, capsys):
    def wrong(probabilities, threshold):
        return similarity.pseudo_label_graph(1.0001 * probabilities, threshold)

    monkeypatch.setattr(comatch, "pseudo_label_graph", wrong)
    failed = failures("off_comatch_cifar", capsys)
    assert {"out/contrast_loss", "grad/0", "final/parameters", "state/queue_feats"} <= failed
    assert not failed & {"out/mask", "out/smoothing_on", "out/lr"}


@pytest.mark.slow
def test_a_wrong_fixmatch_eman_fails(monkeypatch, capsys):
    wrong = lambda logits, target: 1.0001 * cross_entropy(logits, target)  # noqa: E731
    monkeypatch.setattr(fixmatch_eman, "cross_entropy", wrong)
    failed = failures("off_fixmatch_eman", capsys)
    assert {"out/sup_loss", "out/unsup_loss", "grad/0", "final/ema/parameters"} <= failed
    assert not failed & {"out/mask", "out/pseudo_label", "out/lr"}


@pytest.mark.slow
def test_a_wrong_teacher_fails(monkeypatch, capsys):
    right = Ema.update

    def frozen_statistics(self, teacher, *rest, **position):
        return {**right(self, teacher, *rest, **position), "batch_stats": teacher["batch_stats"]}

    monkeypatch.setattr(Ema, "update", frozen_statistics)
    failed = failures("off_fixmatch_eman", capsys)
    assert {"final/ema/statistics", "out/logits_u_w"} <= failed


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (
            "off_fixmatch_eman",
            lambda meta: meta["network"].update(backbone="torchvision-style ResNet, GroupNorm"),
            "the network's backbone 'torchvision-style ResNet, GroupNorm' is not known",
        ),
        (
            "off_fixmatch_eman",
            lambda meta: meta.update(optimiser="LARS, weight decay on EVERY student parameter"),
            "the optimiser 'LARS",
        ),
        (
            "off_fixmatch_eman",
            lambda meta: meta["hyperparameters"].update(cos=False),
            "neither a cosine nor the epochs of a schedule by steps is recorded",
        ),
        (
            "off_fixmatch_eman",
            lambda meta: meta["source"].update(repo="github.com/someone/else"),
            "someone/else",
        ),
        ("off_simmatch_eman", lambda meta: meta.update(world_size=2), "several processes"),
        ("off_simmatch_eman", lambda meta: meta.update(steps_per_epoch=[2, 4]), "whole epochs"),
        (
            "off_comatch_cifar",
            lambda meta: meta.update(ema="parameters averaged, buffers averaged"),
            "the EMA 'parameters averaged, buffers averaged' is not known",
        ),
        (
            "off_comatch_cifar",
            lambda meta: meta.update(schedule="lr*0.5"),
            "the schedule 'lr*0.5' is not known",
        ),
        (
            "simmatch",
            lambda meta: meta["hyperparameters"].update(use_epass=True),
            "the mean of several projections is not in the library",
        ),
    ],
)
def test_an_unknown_description_is_said(tmp_path, capsys, name, change, reason):
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"]))
    change(meta)
    arrays["meta"] = np.array(json.dumps(meta))
    np.savez(tmp_path / "changed.npz", **arrays)
    assert main([str(tmp_path / "changed.npz")]) == 2
    assert reason in capsys.readouterr().out


def test_the_family_of_an_official_case_is_found(tmp_path, capsys):
    (tmp_path / "some_name.npz").symlink_to(GOLDEN / "off_fixmatch_eman.npz")
    assert main([str(tmp_path), "--family", "fixmatch"]) == 2
    assert "no case was found" in capsys.readouterr().out
