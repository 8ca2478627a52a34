"""Temperatures from the end of a run to its predictions: all commands agree."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers import toy_images
from PIL import Image
from scipy.special import softmax
from sklearn import metrics as theirs
from tiny_runs import STEPS, arguments, train_tiny, without_extras, without_learning, write_data

import jaxmatch
from jaxmatch.cli.main import main
from jaxmatch.evaluation import temperature
from jaxmatch.evaluation.classifier import NETWORKS
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import read
from jaxmatch.record.run_data import load_recorded
from jaxmatch.weights import export
from jaxmatch.weights.export_torch import export_torch

OPTIONS = {
    "method": "supervised",
    "devices": 1,
    "data__validation": 24,
    "select": "validation/expected_calibration_error",  # a young teacher is least confident
    "optim__learning_rate": 0.5,  # so that the networks err, and some steps are worse than others
}


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Classes that are hard to tell apart, in training and test alike."""
    random = np.random.default_rng(0)

    def noisy(count, seed):
        images, labels = toy_images(count, seed)
        levels = images * 0.4 + 0.6 * random.integers(0, 256, images.shape)
        return levels.astype(np.uint8), labels

    x_train, y_train = noisy(64, 0)
    x_test, y_test = noisy(24, 1)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return write_data(tmp_path_factory.mktemp("hard") / "x.npz", **arrays)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    return folder, train_tiny(data, folder, **OPTIONS)


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def call(capsys):
    def call(*words):
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


def test_the_end_of_a_run_fits_and_keeps_the_temperatures(run, finished):
    summary = finished[1]
    found = json.loads((run / "calibration.json").read_text())
    assert (found["step"], found["images"]) == (STEPS, 24)
    plain = jaxmatch.load(run, "newest", calibrated=False)
    data = load_recorded(plain.config, run)
    calibrated = jaxmatch.load(run, "newest")
    for network in NETWORKS:
        logits = plain.logits(data.validation_images, network)
        expected = temperature.fit(logits.values, data.validation_labels)
        assert found[network]["temperature"] == pytest.approx(expected, rel=1e-3)
        assert calibrated.temperature(network) == found[network]["temperature"]
        assert plain.temperature(network) == 1.0
        after = found[network]["after"]
        metrics = summary["validation"][network]["metrics"]
        assert metrics | after == metrics
        before = read(run)[-1]  # what the run recorded while it trained is not calibrated
        key = f"validation/{network}/negative_log_likelihood"
        assert found[network]["before"]["negative_log_likelihood"] == before[key]
        assert after["negative_log_likelihood"] <= before[key]
    assert any(found[network]["temperature"] != 1 for network in NETWORKS)
    assert "probabilities are calibrated: temperature" in (run / "log.txt").read_text()
    assert "24 validation images means little" in (run / "log.txt").read_text()


def test_the_selected_checkpoint_has_its_own_and_is_the_default(run, finished, call, caplog):
    best = finished[1]["best"]
    assert best["selected"] is True
    assert RunFolder(run).read_known_images().keys() == {best["step"]}
    assert best["step"] < STEPS
    assert RunFolder(run).read_calibrations().keys() == {best["step"], STEPS}
    own = RunFolder(run).read_calibrations()[best["step"]]
    code, output, _ = call("evaluate", "--json", "--workdir", run)
    found = json.loads(output)
    assert (code, found["step"], found["calibration"]) == (0, best["step"], own)
    assert f"the checkpoint of step {best['step']}, which select=validation/exp" in caplog.text
    for network in NETWORKS:
        validation = found["validation"][network]
        after = own[network]["after"]["negative_log_likelihood"]
        assert validation["negative_log_likelihood"] == pytest.approx(after, rel=1e-4)
    _, output, _ = call("evaluate", "--json", "--workdir", run, "--uncalibrated")
    value = json.loads(output)["validation"]["teacher"]["expected_calibration_error"]
    assert value == pytest.approx(best["value"], rel=1e-3)
    assert "calibration" not in json.loads(output)
    code, output, _ = call("evaluate", "--workdir", run, "--step", "newest")
    assert output.startswith(f"Checkpoint of step {STEPS}\nnetwork ")
    assert "probabilities are calibrated: temperature" in output


def test_evaluate_is_the_summary_and_accuracies_are_those_without(run, finished, call):
    step = ("--step", "newest")
    _, output, _ = call("evaluate", "--json", "--workdir", run, *step)
    found = json.loads(output)
    _, output, _ = call("evaluate", "--json", "--workdir", run, *step, "--uncalibrated")
    plain = json.loads(output)
    for network in NETWORKS:
        recorded = finished[1][network]["metrics"]
        assert found[network].keys() == recorded.keys()
        for name, value in recorded.items():
            if isinstance(value, float):
                assert found[network][name] == pytest.approx(value, rel=1e-3), name
        for name in ("accuracy", "macro_f1", "per_class", "confusion"):
            assert found[network][name] == plain[network][name]
            assert recorded[name] == plain[network][name]
    reliability = [each["teacher"]["reliability"] for each in (found, plain)]
    assert reliability[0] != reliability[1]


@pytest.mark.parametrize("uncalibrated", [False, True])
def test_the_probabilities_of_predict_are_those_of_evaluate(
    run, data, call, tmp_path, uncalibrated
):
    words = ["--workdir", run, "--step", "newest", *["--uncalibrated"] * uncalibrated]
    arrays = np.load(data)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(arrays["x_test"]):
        Image.fromarray(image).save(tmp_path / "images" / f"{number:03}.png")
    output = tmp_path / "found.csv"
    code, _, error = call("predict", *words, "--probabilities", "-o", output, tmp_path / "images")
    assert code == 0, error
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    shares = np.array([[float(row[f"p:{name}"]) for name in "0123"] for row in rows])
    _, printed, _ = call("evaluate", "--json", *words)
    evaluated = json.loads(printed)
    found, labels = evaluated[evaluated["evaluated"]], arrays["y_test"]
    assert found["confusion"] == theirs.confusion_matrix(labels, shares.argmax(1)).tolist()
    cost = theirs.log_loss(labels, shares / shares.sum(1, keepdims=True))
    assert found["negative_log_likelihood"] == pytest.approx(cost, rel=1e-6)
    classifier = jaxmatch.load(run, "newest", calibrated=not uncalibrated)
    logits = classifier.logits(arrays["x_test"]).values.astype(np.float64)
    expected = softmax(logits / classifier.temperature(), -1)
    np.testing.assert_allclose(shares, expected, rtol=1e-5)


def test_an_export_knows_the_temperature(run, call, tmp_path, monkeypatch):
    seen = []

    def spy(path, trained):
        seen.append(trained.temperature)
        return export_torch(path, trained)

    monkeypatch.setitem(export.FORMATS, "npz", export.Format(spy))
    for name, *words in (("a", "--network=student"), ("b", "--network=student", "--uncalibrated")):
        code, _, error = call("export", "--workdir", run, "-o", tmp_path / f"{name}.npz", *words)
        assert code == 0, error
    assert seen == [jaxmatch.load(run).temperature("student"), 1.0]


def test_calibrate_does_it_for_a_run_that_exists(run, finished, call):
    before = RunFolder(run).read_calibrations()
    summary = json.loads((run / "summary.json").read_text())
    (run / "calibration.json").unlink()
    assert jaxmatch.load(run, "newest").temperature() == 1.0
    for network in NETWORKS:
        summary[network]["metrics"]["negative_log_likelihood"] = 123.0
        summary["validation"][network]["metrics"]["negative_log_likelihood"] = 123.0
    summary["teacher"]["intervals"]["negative_log_likelihood"] = [122.0, 124.0]
    (run / "summary.json").write_text(json.dumps(summary))
    best = finished[1]["best"]["step"]
    code, output, _ = call("calibrate", "--workdir", run)
    assert code == 0
    assert output.startswith(f"teacher of step {best}: probabilities are calibrated: temperature")
    assert json.loads((run / "summary.json").read_text()) == summary  # of another step
    code, output, _ = call("calibrate", "--workdir", run, "--step", "newest", "--json")
    assert json.loads(output)["step"] == STEPS
    after = RunFolder(run).read_calibrations()
    assert after.keys() == before.keys() == {best, STEPS}
    for step, entry in before.items():
        for network in NETWORKS:
            expected = pytest.approx(entry[network]["temperature"], rel=1e-3)
            assert after[step][network]["temperature"] == expected
    repeated = json.loads((run / "summary.json").read_text())
    for network in NETWORKS:
        for part, old in (
            (repeated, finished[1]),
            (repeated["validation"], finished[1]["validation"]),
        ):
            value = part[network]["metrics"]["negative_log_likelihood"]
            expected = old[network]["metrics"]["negative_log_likelihood"]
            assert value == pytest.approx(expected, rel=1e-3)
    value, expected = (
        part["teacher"]["intervals"]["negative_log_likelihood"] for part in (repeated, finished[1])
    )
    assert value == pytest.approx(expected, rel=1e-3)
    assert "intervals" not in repeated["student"]


@pytest.mark.slow
def test_a_run_that_goes_on_forgets_later_temperatures(run, data, call):
    words = ["train", "--workdir", run, *arguments(data, **OPTIONS)]
    for name in ("calibration.json", "summary.json"):
        shutil.copy(run / name, run / f"first-{name}")
    (run / "summary.json").unlink()
    for step in ("15", "20"):
        shutil.rmtree(run / "checkpoints" / step)
    assert call(*words)[0] == 0
    first = json.loads((run / "first-calibration.json").read_text())
    assert json.loads((run / "calibration.json").read_text()) == first


def test_without_a_validation_set_there_is_no_temperature(data, call, tmp_path):
    run = tmp_path / "plain"
    with without_learning():
        train_tiny(data, run, method="supervised", steps=5, devices=1)
    assert not (run / "calibration.json").exists()
    code, output, error = call("calibrate", "--workdir", run)
    assert (code, output) == (2, "")
    assert "has no validation set" in error
    assert "--config.data.validation=N" in error
    code, output, _ = call("evaluate", "--workdir", run)
    assert "calibrated" not in output
