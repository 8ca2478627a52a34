"""The model card beside an export: facts of the run, metrics, questions; never overwritten."""

import hashlib
import json
import shlex
import shutil
from dataclasses import replace

import pytest
from tiny_runs import train_tiny, without_extras, without_learning, write_data

from jaxmatch.cli import main as cli
from jaxmatch.config.flags import from_flags
from jaxmatch.errors import InputError
from jaxmatch.evaluation import examples
from jaxmatch.evaluation.classifier import load
from jaxmatch.evaluation.shipping import hash_of_weights, trained_of
from jaxmatch.record.folder import RunFolder
from jaxmatch.report.card import QUESTIONS, card_of, make_card, write_card
from jaxmatch.report.card_evaluation import read_evaluation


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps; to be read, not changed, except for ``calibration.json``."""
    folder = tmp_path_factory.mktemp("runs")
    periods = dict.fromkeys(("steps", "steps_per_call", "log_every", "eval_every", "save_every"), 2)
    quick = {"method": "supervised", "devices": 1, **periods}
    with without_learning():
        train_tiny(write_data(folder / "data.npz"), folder / "run", **quick)
    return folder / "run"


@pytest.fixture(scope="module")
def classifier(run):
    return load(run)


@pytest.fixture
def selected(run, classifier, tmp_path):
    """The checkpoint as the best one of a longer run, with temperatures, in a folder of its own."""
    folder = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    summary = json.loads((folder / "summary.json").read_text())
    test = {"teacher": {"accuracy": 0.375, **dict.fromkeys(SCORES, 9.5)}}
    best = {"step": 2, "key": "validation/teacher/accuracy", "value": 0.5, "test": test}
    (folder / "summary.json").write_text(json.dumps({**summary, "steps": 4, "best": best}))
    (folder / "calibration.json").write_text(json.dumps(CALIBRATION))
    return replace(classifier, folder=folder, calibration=CALIBRATION)


SCORES = ("negative_log_likelihood", "expected_calibration_error")
NAMES = [name.replace("_", " ") for name in SCORES]


def fitted(temperature, before, after):
    pairs = {"before": dict.fromkeys(SCORES, before), "after": dict.fromkeys(SCORES, after)}
    return {"temperature": temperature, **pairs}


CALIBRATION = {
    "step": 2,
    "images": 24,
    "teacher": fitted(1.5, 0.4, 0.1),
    "student": fitted(2.5, 0.5, 0.2),
}


def figures(text):
    """The test figures of a card."""
    return text.partition("## Metrics\n")[2].partition("\nCalibration: ")[0]


def metrics_of(classifier):
    card = make_card(classifier.folder / "x.npz", trained_of(classifier), classifier, "npz")
    return figures("\n".join(["## Metrics", *card.sections["Metrics"]]))


def test_a_card_of_the_best_checkpoint_has_no_figures_of_another_temperature(selected):
    text = metrics_of(selected)
    assert "the teacher of step 2, the best one." in text
    assert "| accuracy | 0.375 |" in text
    assert not any(f"| {name} |" in text for name in NAMES)
    assert "`jaxmatch export --evaluation FILE` put all figures into the card." in text
    plain = metrics_of(replace(selected, calibration=None))
    assert all(f"| {name} | 9.5 |" in plain for name in NAMES)
    assert "--evaluation" not in plain


def test_a_card_has_no_figures_of_a_part_of_the_test_images(selected):
    file = selected.folder / "summary.json"
    summary = json.loads(file.read_text())
    summary["best"]["test_images"] = 8
    file.write_text(json.dumps(summary))
    text = metrics_of(selected)
    assert "metrics of a part of the test images alone at this step" in text
    assert "`jaxmatch evaluate` measures them (`--step 2`)" in text
    assert "| accuracy |" not in text


def test_a_card_of_the_best_checkpoint_has_the_figures_of_the_gallery(selected):
    row = {"precision": 0.5, "recall": 0.0, "f1": 0.0, "support": 0}
    found = {
        **{"format": examples.FORMAT, "step": 2, "network": "teacher", "temperature": 1.5},
        **{kind: [] for kind in ("mistakes", "uncertain", "wrong_pseudo_labels")},
        **{"by_class": {}, "intervals": {}, "test": [24, 24]},
        "metrics": {"accuracy": 0.375, **dict.fromkeys(SCORES, 0.25), "per_class": {"0": row}},
    }
    file = selected.folder / "examples.json"
    file.write_text(json.dumps(found))
    text = metrics_of(selected)
    assert all(f"| {name} | 0.25 |" in text for name in NAMES)
    assert "| 0 | 0.5 | - | - | 0 |" in text  # no image: no recall
    for changed in ({"temperature": 2.0}, {"step": 1}, {"test": [12, 24]}):
        file.write_text(json.dumps({**found, **changed}))
        assert not any(f"| {name} |" in metrics_of(selected) for name in NAMES), changed


def test_an_evaluation_of_something_else_is_refused(classifier, tmp_path):
    trained, file = trained_of(classifier), tmp_path / "e.json"
    shares = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 6}
    own = {"accuracy": 0.5, "per_class": dict.fromkeys(trained.classes, shares)}
    whole = {"step": 2, "weights": {"teacher": hash_of_weights(classifier, "teacher")}}
    whole["teacher"] = own

    def refused(values, **more):
        file.write_text(json.dumps(values))
        with pytest.raises(InputError) as error:
            read_evaluation(file, replace(trained, **more))
        return str(error.value)

    file.write_text(json.dumps(whole))
    assert read_evaluation(file, trained) == whole
    older = {key: value for key, value in whole.items() if key != "weights"}
    file.write_text(json.dumps(older))
    assert read_evaluation(file, trained) == older
    assert "is of another run" in refused({**whole, "weights": {"teacher": "0"}})
    other = {**own, "per_class": {"a": shares}}
    assert "is of another run" in refused({**older, "teacher": other})
    assert "is of temperature 1, but 1.5 is exported" in refused(whole, temperature=1.5)
    warm = {**whole, "calibration": CALIBRATION}
    assert "is of temperature 1.5, but 1 is exported" in refused(warm)
    file.write_text(json.dumps(warm))
    assert read_evaluation(file, replace(trained, temperature=1.5)) == warm
    for broken in (
        {},
        {"teacher": [1]},
        {"teacher": {**own, "per_class": {name: {} for name in trained.classes}}},
        {"teacher": {**own, "per_class": [1]}},
        {"teacher": {**own, "intervals": [1]}},
        {"teacher": {**own, "intervals": {"accuracy": [0.5]}}},
        {"teacher": {**own, "intervals": {"per_class": {"0": [1]}}}},
        {"teacher": {**own, "accuracy": "high"}},
        {"calibration": {}},
        {"bootstrap": [1]},
        {"weights": [1]},
    ):
        values = {**whole, **broken} if broken else {}
        assert "is not what jaxmatch evaluate --json prints" in refused(values), broken


def test_no_file_is_exported_without_its_card(run, tmp_path, monkeypatch):
    from jaxmatch.report import card

    def broken(*_):
        raise InputError("the run is damaged.")

    monkeypatch.setattr(card, "_metrics", broken)
    with pytest.raises(SystemExit, match="2"):
        export(run, tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


def test_names_of_weights_are_for_weights_alone(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        export(run, tmp_path / "a.stablehlo", "--naming=timm")
    assert "--naming needs a file of weights; stablehlo holds a program." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def export(run, path, *words):
    cli.main(["export", f"--workdir={run}", "-o", str(path), *words])
    return card_of(path).read_text()


def test_a_card_has_the_facts_of_run_and_file(run, tmp_path, capsys):
    text = export(run, tmp_path / "a.npz")
    assert card_of(tmp_path / "a.npz") == tmp_path / "a.npz.card.md"
    assert f"wrote {tmp_path / 'a.npz.card.md'}" in capsys.readouterr().out
    content = (tmp_path / "a.npz").read_bytes()
    assert f"| SHA-256 of the file | `{hashlib.sha256(content).hexdigest()}` |" in text
    assert "| weights | the teacher of step 2 of 2 |" in text
    assert "| 0 | 4 | 12 | 0 | 6 |" in text  # labeled, unlabeled, validation, test
    assert "npz:data.npz" in text
    assert str(run.parent) not in text  # a folder of this machine
    found = json.loads((run / "summary.json").read_text())["teacher"]
    low, high = found["intervals"]["accuracy"]
    assert low <= found["metrics"]["accuracy"] <= high
    assert f"| accuracy | {found['last']:.4g} | [{low:.4g}, {high:.4g}] |" in text
    assert "Intervals are 95% bootstrap intervals over the images." in text
    assert "no temperature is fitted" in text
    for section, questions in QUESTIONS.items():
        assert f"\n## {section}\n" in text
        assert all(f"- To fill in: {question}" in text for question in questions)


def test_a_card_of_weights_has_a_command_that_takes_them(run, tmp_path):
    text = export(run, tmp_path / "a.safetensors")
    (line,) = [line for line in text.splitlines() if line.startswith("jaxmatch train")]
    _, _, config, *words = shlex.split(line.replace("DATA,labels=N", "mnist5k,labels=40"))
    assert f"--config.init_from={tmp_path.name}" not in line
    found, _ = from_flags(config.partition("=")[2], words)
    own = RunFolder(run).read_config()
    for key in ("depth", "width", "conv_bias", "first_stride"):
        assert found.model[key] == own["model"][key]
    assert list(found.data.mean) == list(own["data"]["mean"])
    assert "| its settings | `name=wide_resnet` " in text


def test_hashes_of_weights_and_settings_do_not_depend_on_the_format(run, tmp_path):
    cards = [export(run, tmp_path / name) for name in ("a.npz", "a.safetensors")]
    student = export(run, tmp_path / "s.npz", "--network=student")

    def hashes(text, what):
        return [row for row in text.splitlines() if f"SHA-256 of the {what}" in row]

    for what, same in (("weights", False), ("settings", True), ("data", True)):
        assert hashes(cards[0], what) == hashes(cards[1], what) != []
        assert (hashes(student, what) == hashes(cards[0], what)) is same
    assert hashes(cards[0], "file") != hashes(cards[1], "file")


def test_a_card_takes_the_metrics_and_intervals_of_an_evaluation(run, classifier, tmp_path, capsys):
    capsys.readouterr()
    cli.main(["evaluate", f"--workdir={run}", "--json"])
    found = json.loads(capsys.readouterr().out)
    weights = trained_of(classifier).origin["hashes"]["weights"]
    assert found["weights"]["teacher"] == weights != found["weights"]["student"]
    found["bootstrap"] = {"confidence": 0.9}
    found["teacher"]["accuracy"] = 0.625
    found["teacher"]["intervals"] = {
        "accuracy": [0.5, 0.75],
        "per_class": {"0": {"recall": [0.25, 1.0], "f1": None}},
    }
    (tmp_path / "e.json").write_text(json.dumps(found))
    text = export(run, tmp_path / "a.npz", f"--evaluation={tmp_path / 'e.json'}")
    assert "Intervals are 90% bootstrap intervals" in text
    assert "| accuracy | 0.625 | [0.5, 0.75] |" in text
    row = found["teacher"]["per_class"]["0"]
    assert f"| 0 | {row['precision']:.4g} | {row['recall']:.4g} [0.25, 1] |" in text
    (tmp_path / "e.json").write_text(json.dumps({**found, "step": 1}))
    with pytest.raises(SystemExit, match="2"):
        export(run, tmp_path / "b.npz", f"--evaluation={tmp_path / 'e.json'}")
    assert "is of step 1, but step 2 is exported" in capsys.readouterr().err
    assert not (tmp_path / "b.npz").exists()


def test_a_card_tells_the_calibration_of_its_step(run, tmp_path):
    file = run / "calibration.json"
    try:
        file.write_text(json.dumps(CALIBRATION))
        text = export(run, tmp_path / "a.npz")
        plain = export(run, tmp_path / "b.npz", "--uncalibrated")
    finally:
        file.unlink()
    assert "| negative log likelihood | " in figures(text)
    assert "the fitted temperature, 1.5, is left out of this file." in plain
    assert "| before | after |" not in plain
    assert not any(f"| {name} |" in figures(plain) for name in NAMES)
    assert "| accuracy | " in figures(plain)
    assert "jaxmatch export --evaluation FILE" in figures(plain)
    assert "temperature 1.5, fitted on 24 validation images" in text
    assert "| expected calibration error | 0.4 | 0.1 |" in text


def test_a_card_is_never_overwritten(run, tmp_path, capsys):
    card_of(tmp_path / "a.npz").write_text("filled in")
    with pytest.raises(SystemExit, match="2"):
        export(run, tmp_path / "a.npz")
    assert "a.npz.card.md exists; remove it" in capsys.readouterr().err
    assert not (tmp_path / "a.npz").exists()
    assert card_of(tmp_path / "a.npz").read_text() == "filled in"


def test_names_do_not_break_the_tables(run, tmp_path):
    trained = trained_of(load(run))
    object.__setattr__(trained, "classes", ("a|b", "<i>", "c\n", "d"))
    (tmp_path / "x").write_bytes(b"")
    card = make_card(tmp_path / "x", trained, load(run), "npz")
    text = write_card(tmp_path / "x", card, "npz", "words").read_text()
    assert "| classes | 4: a\\|b, \\<i\\>, c\\\\n, d |" in text
