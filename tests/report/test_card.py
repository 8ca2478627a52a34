"""The model card beside an export: facts of the run, metrics, questions; never overwritten."""

import hashlib
import json

import pytest
from tiny_runs import train_tiny, write_data

from jaxmatch.cli import main as cli
from jaxmatch.evaluation.classifier import load
from jaxmatch.report.card import QUESTIONS, card_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps; to be read, not changed, except for ``calibration.json``."""
    folder = tmp_path_factory.mktemp("runs")
    periods = dict.fromkeys(("steps", "steps_per_call", "log_every", "eval_every", "save_every"), 2)
    train_tiny(write_data(folder / "data.npz"), folder / "run", **periods)
    return folder / "run"


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
    metrics = json.loads((run / "summary.json").read_text())["teacher"]["metrics"]
    assert f"| accuracy | {metrics['accuracy']:.4g} |" in text
    assert "no temperature is fitted" in text
    for section, questions in QUESTIONS.items():
        assert f"\n## {section}\n" in text
        assert all(f"- To fill in: {question}" in text for question in questions)


def test_hashes_of_weights_and_settings_do_not_depend_on_the_format(run, tmp_path):
    cards = [export(run, tmp_path / name) for name in ("a.npz", "a.safetensors")]
    student = export(run, tmp_path / "s.npz", "--network=student")

    def hashes(text, what):
        return [row for row in text.splitlines() if f"SHA-256 of the {what}" in row]

    for what, same in (("weights", False), ("settings", True), ("data", True)):
        assert hashes(cards[0], what) == hashes(cards[1], what) != []
        assert (hashes(student, what) == hashes(cards[0], what)) is same
    assert hashes(cards[0], "file") != hashes(cards[1], "file")


def test_a_card_takes_the_metrics_and_intervals_of_an_evaluation(run, tmp_path, capsys):
    capsys.readouterr()
    cli.main(["evaluate", f"--workdir={run}", "--json"])
    found = json.loads(capsys.readouterr().out)
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
    def of(temperature, before, after):
        scores = ("negative_log_likelihood", "expected_calibration_error")
        pairs = {"before": dict.fromkeys(scores, before), "after": dict.fromkeys(scores, after)}
        return {"temperature": temperature, **pairs}

    networks = {"teacher": of(1.5, 0.4, 0.1), "student": of(2.5, 0.5, 0.2)}
    file = run / "calibration.json"
    try:
        file.write_text(json.dumps({"step": 2, "images": 24, **networks}))
        text = export(run, tmp_path / "a.npz")
    finally:
        file.unlink()
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
    from jaxmatch.evaluation.shipping import trained_of
    from jaxmatch.report import card

    trained = trained_of(load(run))
    object.__setattr__(trained, "classes", ("a|b", "<i>", "c\n", "d"))
    (tmp_path / "x").write_bytes(b"")
    text = card.write_card(tmp_path / "x", trained, load(run), "npz", "words").read_text()
    assert "| classes | 4: a\\|b, \\<i\\>, c\\\\n, d |" in text
