"""Whatever a run folder, a checkpoint or a data file holds, reading it runs none of its code."""

import builtins
import json
import os
import pickle
import shutil
import subprocess

import numpy as np
import pytest
from tiny_runs import configuration, snapshot, train_tiny, without_extras, without_learning

from jaxmatch import load
from jaxmatch.config.saved import run_name
from jaxmatch.config.stages import stage_folders
from jaxmatch.data import sources, splits
from jaxmatch.data.source import Reading
from jaxmatch.errors import InputError
from jaxmatch.evaluation.probe import probe
from jaxmatch.report.results import read
from jaxmatch.training.train import finished


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    with without_learning():
        train_tiny(data, workdir, steps=10, method="supervised", devices=1)
    return workdir


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_reading_a_run_unpickles_nothing_and_starts_nothing(run, monkeypatch):
    def forbidden(*words, **options):
        raise AssertionError(f"executed with {words}")

    load(run)  # imports and compiles what it needs
    for place, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (os, "system"),
        (subprocess, "Popen"),
        (builtins, "eval"),
    ):
        monkeypatch.setattr(place, name, forbidden)
    classifier = load(run)
    classifier.predict(np.zeros((2, 8, 8, 3), np.uint8))
    read(run)
    assert "knn" in probe(run, linear=False)


@pytest.mark.parametrize("arrays", [{"x_train"}, {"x_train", "y_train", "x_test", "y_test"}])
def test_data_with_a_pickle_inside_is_refused(arrays, tmp_path):
    target, file = tmp_path / "executed", tmp_path / "data.npz"
    np.savez(file, **dict.fromkeys(arrays, np.array([Payload(target)], object)))
    with pytest.raises(InputError, match=r"data\.npz"):
        sources.load(f"npz:{file}", Reading())
    assert not target.exists()


def test_a_split_file_with_a_pickle_inside_is_refused(tmp_path):
    target, file = tmp_path / "executed", tmp_path / "split.json"
    file.write_bytes(pickle.dumps(Payload(target)))
    with pytest.raises(InputError, match="split"):
        splits.read(file)
    assert not target.exists()


def test_the_configuration_of_a_run_is_never_executed(run, tmp_path):
    target = tmp_path / "executed"
    evil = tmp_path / "evil.py"
    evil.write_text(f"import os; os.mkdir({str(target)!r})")
    values = json.loads((run / "config.json").read_text())
    values["recipe"] = values["preset"] = values["data"]["directory"] = str(evil)
    values["init_from"] = str(evil)
    (run / "config.json").write_text(json.dumps(values))
    load(run)
    read(run)
    assert not target.exists()


@pytest.mark.parametrize("where", ["parent", "absolute", "link"])
def test_a_checkpoint_that_names_files_elsewhere_is_refused(where, run, tmp_path):
    outside = tmp_path / "secret"
    outside.write_text("secret")
    newest = sorted((run / "checkpoints").iterdir(), key=lambda path: int(path.name))[-1]
    for path in (run / "checkpoints").iterdir():
        if path != newest:
            shutil.rmtree(path)
    manifest = json.loads((newest / "manifest.json").read_text())
    name = {"parent": "../../../secret", "absolute": str(outside), "link": "linked"}[where]
    if where == "link":
        (newest / "linked").symlink_to(outside)
    (newest / "manifest.json").write_text(json.dumps({**manifest, name: "0" * 64}))
    with pytest.raises(InputError, match="is missing"):
        load(run)
    assert outside.read_text() == "secret"


def test_a_checkpoint_of_a_newer_format_is_refused(run):
    for path in (run / "checkpoints").iterdir():
        (path / "format.json").write_text("2")
        manifest = json.loads((path / "manifest.json").read_text())
        del manifest["format.json"]
        (path / "manifest.json").write_text(json.dumps(manifest))
    before = snapshot(run)
    with pytest.raises(InputError, match="has format 2, but this version of jaxmatch reads"):
        load(run)
    assert snapshot(run) == before


def test_a_checkpoint_without_a_format_is_of_the_first(run):
    for path in (run / "checkpoints").iterdir():
        (path / "format.json").unlink()
        manifest = json.loads((path / "manifest.json").read_text())
        del manifest["format.json"]
        (path / "manifest.json").write_text(json.dumps(manifest))
    assert load(run).step == 10


def test_no_value_of_a_configuration_leads_out_of_the_runs(data):
    config = configuration(data)
    config.data.labels = "../../../tmp/elsewhere"
    config.recipe = "/etc/passwd"
    config.data.name = "npz:../../\0evil"
    name = run_name(config)
    assert "/" not in name
    assert "\0" not in name
    assert name not in ("", ".", "..")


def test_no_stage_leads_out_of_its_run(data):
    stage = configuration(data)
    with pytest.raises(InputError, match="a stage cannot be called"):
        stage_folders({"order": ("../../elsewhere",), "stages": {"../../elsewhere": stage}})


def test_a_folder_with_a_damaged_configuration_is_refused(run, data):
    (run / "config.json").write_bytes(b"\x80\x04\x95")
    with pytest.raises(InputError, match="is damaged"):
        finished(configuration(data, steps=10, method="supervised", devices=1), run)
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        load(run)
