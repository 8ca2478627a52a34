"""The study of strangers: its points, and what is made of finished runs."""

import json

import numpy as np
import pytest
from helpers import toy_images
from sklearn.metrics import roc_auc_score
from tiny_runs import train_tiny, write_data

import jaxmatch
from experiments.strangers import results
from experiments.strangers.sweep import CHOSEN, KNOWN, SEEDS, WAYS
from jaxmatch.cli import sweep

KNOWN_OF_TOY = ("1", "3")


@pytest.mark.parametrize("data", KNOWN)
def test_points_differ_in_method_strangers_and_seed_alone(data, tmp_path):
    argument = "" if data == "fashion_mnist" else f":{data}"
    found = sweep.points(f"{results.HERE / 'sweep.py'}{argument}", base=tmp_path)
    assert [point.workdir.name for point in found] == [
        f"{data}-{way}-s{seed}" for seed in SEEDS for way in WAYS
    ]
    for point in found:
        config = point.config
        assert tuple(config.data.known_classes) == KNOWN[data]
        assert config.data.labels == CHOSEN[data].split(",")[0].removeprefix("labels=")
        assert config.data.strangers == ("without" not in point.workdir.name)
        assert config.recipe == WAYS[point.workdir.name.split("-", 1)[1].rsplit("-", 1)[0]][0]
    assert len({point.config.data.validation for point in found}) == 1


def test_the_page_has_the_recorded_table():
    recorded = json.loads((results.HERE / "results.json").read_text())
    assert {way: [*seeds] for way, seeds in recorded["fashion_mnist"].items()} == {
        way: [str(seed) for seed in SEEDS] for way in WAYS
    }
    assert results.table(recorded) in (results.HERE / "README.md").read_text()


@pytest.mark.slow
def test_figures_are_those_of_the_test_images(tmp_path, monkeypatch):
    data = write_data(tmp_path / "data.npz")
    train_tiny(
        data, tmp_path / "toy-iomatch-s0", method="iomatch", chosen=",labels=8",
        data__known_classes="('1','3')", data__validation=8, algorithm__projection=8,
    )  # fmt: skip
    monkeypatch.setattr(results, "KNOWN", {"toy": KNOWN_OF_TOY})
    found = results.collect(tmp_path)
    entry = found["toy"]["iomatch"]["0"]
    classifier = jaxmatch.load(tmp_path / "toy-iomatch-s0")
    images, labels = toy_images(24, 1)
    strange = ~np.isin(labels, [1, 3])
    logits, heads = classifier.scored(images).values
    unknown = classifier.predict(images, unknown=True).unknown
    energy = -np.log(np.exp(logits.astype(float)).sum(1))
    assert entry["auroc_energy"] == pytest.approx(roc_auc_score(strange, energy), abs=1e-6)
    assert entry["auroc_heads"] == pytest.approx(roc_auc_score(strange, heads), abs=1e-6)
    assert entry["strangers_above"] == np.mean(unknown[strange] >= np.float32(0.95))
    lines = (tmp_path / "toy-iomatch-s0" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert entry["strangers_passed"] == last["pseudo/strangers_passed"]
    summary = json.loads((tmp_path / "toy-iomatch-s0" / "summary.json").read_text())
    assert entry["accuracy"] == summary["teacher"]["last"]
    assert "| toy | iomatch | 0 |" in results.table(found)
    assert results.table(found).count("\n") == 2
