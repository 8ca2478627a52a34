"""The command line: what it prints and writes, and the exit code of every kind of failure."""

import contextlib
import csv
import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_bitwise, toy_images
from PIL import Image
from tiny_runs import (
    LABELS,
    OVERRIDES,
    STEPS,
    arguments,
    snapshot,
    start_program,
    state_of,
    without_learning,
)

from jaxmatch.cli import main as cli
from jaxmatch.cli.main import parser
from jaxmatch.config import recipe
from jaxmatch.evaluation import baselines, classifier, features, probe
from jaxmatch.record import run_data
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import read
from jaxmatch.report import page
from jaxmatch.runtime.compilation import compiler_options
from jaxmatch.training import train as loop

PICTURES = ("comparison", "losses")
# One device and no strong views, so that a program compiles quickly.
QUICK = {"method": "pseudo_label", "devices": 1}
VALIDATED = {
    "method": "supervised",
    "devices": 1,
    "steps": 10,
    "data__validation": 12,
    "keep_best": "validation/accuracy",
}


@pytest.fixture
def call(capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*words):
        code = 0
        try:
            cli.main([str(word) for word in words])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A finished run: (workdir, stdout, stderr)."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    output, error = io.StringIO(), io.StringIO()
    with (
        without_learning(),
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(error),
    ):
        patch.setattr(logging.root, "handlers", [])  # of pytest, so that the log goes to stderr
        cli.main(["train", f"--workdir={workdir}", *arguments(data, **QUICK)])
    return workdir, output.getvalue(), error.getvalue()


@pytest.fixture(scope="module")
def run(trained):
    return trained[:2]


@pytest.fixture(scope="module")
def validated(data, tmp_path_factory):
    """A short run with a validation set: (workdir, stdout)."""
    folder = tmp_path_factory.mktemp("validated") / "a run"
    output = io.StringIO()
    with without_learning(), contextlib.redirect_stdout(output):
        cli.main(["train", f"--workdir={folder}", "--json", *arguments(data, **VALIDATED)])
    return folder, output.getvalue()


def test_train_prints_its_summary_as_one_line_of_json_on_request(validated):
    workdir, output = validated
    (line,) = output.splitlines()
    assert json.loads(line) == json.loads((workdir / "summary.json").read_text())


def test_train_ends_with_its_accuracy_and_what_to_do_next(run):
    workdir, output = run
    summary = json.loads((workdir / "summary.json").read_text())
    lines = output.splitlines()
    following = lines.index("next:")
    first, accuracy, *_ = lines[:following]
    commands = lines[following + 1 :]
    assert first.startswith("pseudo_label, 20 steps in ")
    assert first.endswith(str(workdir))
    last, metrics = summary["teacher"]["last"], summary["teacher"]["metrics"]
    balanced = metrics["balanced_accuracy"]
    assert accuracy == f"test accuracy of the teacher: {last:.1%} (balanced {balanced:.1%})"
    assert commands == [
        f"  jaxmatch evaluate --workdir {workdir}",
        f"  jaxmatch predict --workdir {workdir} FOLDER -o predictions.csv",
        f"  jaxmatch suggest --workdir {workdir}",
        f"  jaxmatch report {workdir} -o report.html",
    ]
    for command in commands:
        parser().parse_args(shlex.split(command)[1:])


def test_the_end_compares_with_baselines_that_are_known(run, data, call, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    scores = {"accuracy": 1.0, "balanced_accuracy": 0.0}
    found = {
        "split": RunFolder(run[0]).read_split().hash,
        "baselines": {"svc": {"title": "SVC on pixels", "test": scores}},
    }
    RunFolder(tmp_path / "run").write_baselines(found)
    code, output, _ = call("train", "--workdir", tmp_path / "run", *arguments(data, **QUICK))
    assert code == 0
    assert "best baseline: SVC on pixels, 100.0%" in output.splitlines()
    assert "pseudo_label does not beat SVC on pixels: test accuracy " in output
    assert "what may help: views= that suit the images" in output
    assert "jaxmatch baseline" not in output


def test_the_end_tells_of_validation_and_the_best_checkpoint(validated, data, call):
    workdir, _ = validated
    words = arguments(data, **VALIDATED)
    code, output, _ = call("train", f"--workdir={workdir}", *words)  # complete
    assert code == 0
    summary = json.loads((workdir / "summary.json").read_text())
    assert f"validation accuracy of the {summary['evaluated']}: " in output
    assert f"at step {summary['best']['step']}, with test accuracy" in output
    assert f"--workdir '{workdir}'" in output  # a name with a space, quoted


def test_train_begins_with_what_was_found(trained, validated):
    for workdir, counts, step, *errors in (
        (trained[0], "48 unlabeled, 24 test", "step 5/20", trained[2]),
        (validated[0], "36 unlabeled, 12 validation, 24 test", "step 5/10"),
    ):
        expected = [
            f"16 labeled, {counts} images, 4 classes",
            "classes: 0 (4 labeled, ",
            "images: 8x8, RGB; used at 8x8",
        ]
        for text in (*errors, (workdir / "log.txt").read_text()):
            places = [text.index(line) for line in expected]
            assert places == sorted(places)
            assert places[-1] < text.index(step)
    found = json.loads((validated[0] / "findings.json").read_text())
    assert found["counts"]["3"].keys() == {"labeled", "unlabeled", "validation", "test"}


def test_the_same_command_on_a_complete_run_does_nothing(run, data, call, caplog, monkeypatch):
    workdir, first = run
    before = snapshot(workdir)
    monkeypatch.setattr(run_data, "load", None)
    code, output, _ = call("train", "--workdir", workdir, *arguments(data, **QUICK))
    assert (code, output) == (0, first)
    assert "already complete" in caplog.text
    assert snapshot(workdir) == before


def test_both_spellings_of_an_override_are_the_same(run, data, call):
    words = arguments(data, **QUICK)
    spaced = [part for word in words[1:] for part in word.split("=", 1)]
    config, value = words[0].split("=", 1)
    code, output, _ = call("train", config, value, *spaced, "--workdir", run[0])
    assert (code, output) == (0, run[1])  # the same run, which is complete


def test_a_note_tells_of_an_override_that_contradicts_the_preset(data, call, monkeypatch):
    monkeypatch.setattr(
        loop, "train", lambda config, workdir, place: {"bias": config.model.conv_bias}
    )
    chosen = f",labels={LABELS},preset=usb"
    words = arguments(data, chosen=chosen, model__conv_bias="none")
    code, output, error = call("train", "--json", *words)
    assert (code, json.loads(output)) == (0, {"bias": "none"})
    assert "note: --config.model.conv_bias=none contradicts preset 'usb'" in error


def test_evaluate_repeats_the_evaluation_of_the_run(run, call):
    workdir = run[0]
    for step, words in ((STEPS, ()), (10, ("--step", 10))):
        code, output, _ = call("evaluate", "--json", "--workdir", workdir, *words)
        (line,) = [line for line in read(workdir) if line["step"] == step]
        assert code == 0
        found = json.loads(output)
        assert found.keys() == {"step", "evaluated", "weights", "teacher", "student"}
        assert (found["step"], found["evaluated"]) == (step, "teacher")
        for network in ("teacher", "student"):
            metrics = found[network]
            for name in ("accuracy", "balanced_accuracy"):
                assert metrics[name] == line[f"test/{network}/{name}"]
            assert list(metrics["per_class"]) == ["0", "1", "2", "3"]
            assert np.sum(metrics["confusion"]) == 24
            assert not {"top_5", "roc_auc"} & metrics.keys()
        if step == STEPS:
            summary = json.loads((workdir / "summary.json").read_text())
            for network in ("teacher", "student"):
                recorded = summary[network]["metrics"]
                assert recorded.keys() == found[network].keys()
                for name, value in recorded.items():
                    if isinstance(value, float):  # the run had other devices
                        assert value == pytest.approx(found[network][name], rel=1e-4)
                    else:
                        assert value == found[network][name]
    code, output, error = call("evaluate", "--workdir", workdir, "--step", 11)
    assert (code, output) == (2, "")
    assert "no checkpoint of step 11" in error


def test_evaluate_prints_a_table(validated, call, monkeypatch):
    workdir = validated[0]
    monkeypatch.setenv("COLUMNS", "80")
    code, output, _ = call("evaluate", "--workdir", workdir, "--step", "best")
    assert code == 0
    summary = json.loads((workdir / "summary.json").read_text())
    lines = output.splitlines()
    assert lines[0].strip() == f"Checkpoint of step {summary['best']['step']}"
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in output
    rows = {tuple(line.split()[:-4]): line.split()[-4:] for line in lines[2:6]}
    evaluated = summary["evaluated"]
    for network in ("teacher", "student"):
        name = (network, "(reported)") if network == evaluated else (network,)
        assert rows[*name, "test"][0] == "24"
        assert rows[*name, "validation"][0] == "12"
        accuracy = summary["best"]["test"][network]["accuracy"]
        assert rows[*name, "test"][1] == f"{accuracy:.1%}"
    code, output, _ = call("evaluate", "--json", "--workdir", workdir, "--step", "best")
    value = json.loads(output)["validation"][evaluated]["accuracy"]
    assert value == summary["best"]["value"]


@pytest.mark.slow  # evaluation/test_bootstrap.py
def test_evaluate_adds_intervals(validated, call, monkeypatch):
    words = ["evaluate", "--workdir", validated[0], "--step", "newest"]
    _, output, _ = call(*words, "--json")
    plain = json.loads(output)
    found, again = (json.loads(call(*words, "--json", "--bootstrap", 50)[1]) for _ in range(2))
    assert found == again
    assert found.pop("bootstrap") == {"resamples": 50, "confidence": 0.95, "seed": 0}
    for metrics in (found, found["validation"]):
        for network in ("teacher", "student"):
            intervals = metrics[network].pop("intervals")
            for name in ("accuracy", "macro_f1", "negative_log_likelihood"):
                low, high = intervals[name]
                assert low <= metrics[network][name] <= high
            assert intervals["per_class"].keys() == metrics[network]["per_class"].keys()
    assert found == plain
    narrow = json.loads(call(*words, "--json", "--bootstrap", 50, "--confidence", 0.5)[1])
    ends = [each["student"]["intervals"]["accuracy"] for each in (again, narrow)]
    assert ends[0][0] <= ends[1][0] <= ends[1][1] <= ends[0][1]
    monkeypatch.setenv("COLUMNS", "80")
    code, output, _ = call(*words, "--bootstrap")
    assert code == 0
    assert "95% intervals, over 1,000 resampled sets of images" in output
    accuracy = plain[plain["evaluated"]]["accuracy"]
    assert re.search(rf"accuracy +.*{accuracy:.1%} \(\d+\.\d to \d+\.\d\)", output)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--bootstrap", "0"], "at least one resampled set"),
        (["--bootstrap", "--confidence", "95"], "confidence=95 is no share"),
        (["--confidence", "0.9"], "it needs --bootstrap"),
    ],
)
def test_other_intervals_are_refused_before_anything_is_loaded(call, words, problem):
    code, output, error = call("evaluate", "--workdir", "nowhere", *words)
    assert (code, output) == (2, "")
    assert problem in error


@pytest.fixture
def pictures(tmp_path):
    """A folder of image files of several sizes and kinds, one of them broken."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    images, _ = toy_images(4, 5)
    Image.fromarray(images[0]).save(folder / "a.png")
    Image.fromarray(images[1]).resize((40, 30)).save(folder / "b.jpg")
    Image.fromarray(images[2]).convert("L").save(folder / "deep" / "c.png")
    (folder / "broken.png").write_bytes(b"\x89PNG but not an image")
    (folder / "notes.txt").write_text("no image at all")
    Image.fromarray(images[3]).save(tmp_path / "single.png")
    return folder


def test_predict_writes_class_and_confidence_of_files_and_folders(run, call, pictures, tmp_path):
    output = tmp_path / "predictions.csv"
    single = tmp_path / "single.png"
    code, printed, error = call("predict", "--workdir", run[0], single, pictures, "-o", output)
    assert (code, printed) == (0, "")
    with output.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "class", "confidence"]
    expected = [pictures / "a.png", pictures / "b.jpg", pictures / "deep" / "c.png", single]
    assert [row[0] for row in rows] == [str(path) for path in expected]
    for _, name, confidence in rows:
        assert name in "0123"
        assert 0.25 <= float(confidence) <= 1
    assert error.splitlines() == [
        f"jaxmatch: left out 1 (no image (.txt)): {pictures / 'notes.txt'}",
        f"jaxmatch: left out 1 (not an image): {pictures / 'broken.png'}",
    ]


def test_predict_has_a_column_for_each_class_in_either_format(run, call, pictures, tmp_path):
    tables = []
    for name in ("p.csv", "p.JSONL"):
        left_out = tmp_path / f"left_{name}"
        words = ("predict", "--workdir", run[0], pictures, "-o", tmp_path / name)
        code, _, error = call(*words, "--probabilities", "--left-out", left_out)
        assert code == 0, error
        tables.append([table(tmp_path / name), table(left_out)])
    assert tables[0] == tables[1]
    rows, missing = tables[0]
    assert list(rows[0]) == ["path", "class", "confidence", "p:0", "p:1", "p:2", "p:3"]
    found = classifier.load(run[0]).predict(pictures)
    assert [row["path"] for row in rows] == list(found.paths)
    assert [row["class"] for row in rows] == list(found.names)
    shares = [[row[f"p:{name}"] for name in "0123"] for row in rows]
    np.testing.assert_array_equal(np.float32(shares), found.probabilities)
    np.testing.assert_array_equal(np.float32([row["confidence"] for row in rows]), found.confidence)
    assert missing == [
        {"path": str(pictures / "broken.png"), "reason": "not an image"},
        {"path": str(pictures / "notes.txt"), "reason": "no image (.txt)"},
    ]


def table(path):
    """The rows of a table, with numbers as numbers."""
    if path.suffix.lower() == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    texts = ("path", "class", "reason")
    return [
        {key: value if key in texts else float(value) for key, value in row.items()} for row in rows
    ]


def test_predict_refuses_outputs_that_contradict_each_other(run, call, pictures, tmp_path):
    words = ("predict", "--workdir", run[0], pictures, "-o")
    code, _, error = call(*words, tmp_path / "p.json")
    assert code == 2
    assert "or as .jsonl with a JSON object a line" in error
    photograph = tmp_path / "first.JPG"
    photograph.write_bytes(b"a photograph")
    code, _, error = call(*words, photograph)
    assert code == 2
    assert "has the name of an image" in error
    assert photograph.read_bytes() == b"a photograph"
    code, _, error = call(*words, tmp_path / "p.csv", "--data", tmp_path)
    assert code == 2
    assert "add --unknown, or leave out --data" in error
    code, _, error = call(*words, tmp_path / "p.csv", "--left-out", tmp_path / "." / "p.csv")
    assert code == 2
    assert "is named twice" in error
    assert call(*words, tmp_path / "p.csv", "--left-out", tmp_path / "none" / "x.csv")[0] == 2


NAMES = [b"caf\xc3\xa9.png", b"latin\xe9.png", b'a "quoted", name\n.png', b"\xff\xfe.png"]


@pytest.mark.parametrize(
    ("name", "locale"),
    [
        ("p.csv", "C"),
        *(pytest.param(*each, marks=pytest.mark.slow)
          for each in (("p.csv", "POSIX"), ("p.csv", "C.UTF-8"), ("p.jsonl", "C.UTF-8"),
                       ("p.jsonl", "C"), ("p.jsonl", "POSIX"))),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_predict_keeps_the_bytes_of_names_in_any_locale(run, tmp_path, locale, name):
    folder = os.fsencode(tmp_path / "f")
    os.mkdir(folder)
    for each in NAMES:
        Image.fromarray(toy_images(1, 0)[0][0]).save(tmp_path / "one.png")
        shutil.copy(tmp_path / "one.png", os.path.join(folder, each))
        with open(os.path.join(folder, b"no" + each), "wb"):
            pass
    words = ["predict", f"--workdir={run[0]}", tmp_path / "f", "-o", tmp_path / name]
    process = start_program(
        [*words, "--left-out", tmp_path / f"left_{name}"],
        LC_ALL=locale,
        LANG="",
        PYTHONCOERCECLOCALE="0",
        PYTHONUTF8="0",
    )
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    expected = sorted(os.path.join(folder, each) for each in NAMES)
    assert sorted(paths_in(tmp_path / name)) == expected
    expected = sorted(os.path.join(folder, b"no" + each) for each in NAMES)
    assert sorted(paths_in(tmp_path / f"left_{name}")) == expected
    assert len([line for line in error.splitlines() if "left out 4 (empty file)" in line]) == 1


def paths_in(path):
    """The bytes of the paths of a table."""
    if path.suffix == ".jsonl":
        found = [json.loads(line)["path"] for line in path.read_text("utf-8").splitlines()]
    else:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        found = [row["path"] for row in csv.DictReader(io.StringIO(text, newline=""))]
    return [each.encode("utf-8", "surrogateescape") for each in found]


def test_predict_refuses_what_it_cannot_do(run, call, pictures, tmp_path):
    output = tmp_path / "predictions.csv"
    cases = {
        "no readable images": (run[0], pictures / "broken.png"),
        "no file or folder": (run[0], tmp_path / "nowhere.png"),
        "no run folder": (tmp_path, pictures),
    }
    for expected, (workdir, path) in cases.items():
        code, _, error = call("predict", "--workdir", workdir, path, "-o", output)
        assert code == 2
        assert expected in error
        assert not output.exists()
    code, _, error = call(
        "predict", "--workdir", run[0], pictures / "a.png", "-o", tmp_path / "none" / "x.csv"
    )
    assert code == 2
    assert "there is no folder" in error
    assert "x.csv" in error


@pytest.fixture
def full_disk(monkeypatch):
    """Writing ends in the middle, as on a disk that fills up."""
    whole = Path.write_bytes

    def half(self, content):
        whole(self, content[: len(content) // 2])
        raise OSError(28, "No space left on device", str(self))

    class Full(io.BufferedWriter):
        def write(self, content):
            super().write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

    opened = Path.open

    def to_write(self, mode="r", *arguments, **options):
        file = opened(self, mode, *arguments, **options)
        return Full(file.detach()) if mode == "wb" else file

    monkeypatch.setattr(Path, "write_bytes", half)
    monkeypatch.setattr(Path, "open", to_write)


@pytest.mark.slow
def test_output_files_are_whole_or_as_they_were(run, call, data, pictures, tmp_path, full_disk):
    commands = {
        "p.csv": ("predict", "--workdir", run[0], pictures / "a.png"),
        "r.html": ("report", run[0]),
        "w.npz": ("export", "--workdir", run[0], "--naming=torchssl"),
        "s.png": ("show-augment", *arguments(data, method="supervised")),
    }
    before = {path.name for path in tmp_path.iterdir()}
    for name, words in commands.items():
        code, _, error = call(*words, "-o", tmp_path / name)
        assert code == 4, error
        assert "could not be written (No space left on device)" in error
    assert {path.name for path in tmp_path.iterdir()} == before
    (tmp_path / "p.csv").write_text("path,class,confidence\nmine")
    assert call(*commands["p.csv"], "-o", tmp_path / "p.csv")[0] == 4
    assert (tmp_path / "p.csv").read_text() == "path,class,confidence\nmine"


def test_outputs_are_refused_before_the_work(run, call, data, pictures, tmp_path, monkeypatch):
    def work(*arguments, **options):
        raise AssertionError("it began to work")

    monkeypatch.setattr("jaxmatch.evaluation.classifier.load", work)
    monkeypatch.setattr("jaxmatch.record.run_data.load_new", work)
    monkeypatch.setattr("jaxmatch.report.results.read", work)
    commands = {
        "p.csv": ("predict", "--workdir", run[0], pictures / "a.png"),
        "w.npz": ("export", "--workdir", run[0]),
        "s.png": ("show-augment", *arguments(data)),
    }
    for name, words in commands.items():
        code, _, error = call(*words, "-o", tmp_path / "none" / name)
        assert code == 2
        assert f"there is no folder {tmp_path / 'none'} for {name}" in error
        (tmp_path / name).mkdir()
        assert call(*words, "-o", tmp_path / name)[0] == 2
    code, _, error = call("show-augment", *arguments(data), "-o", tmp_path / "sheet.jpq")
    assert code == 2
    assert "does not end like a picture file" in error


def test_predict_writes_to_a_pipe(run, call, pictures):
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, newline="") as pipe:
        words = ("--workdir", run[0], pictures / "a.png", "-o", f"/dev/fd/{write_end}")
        code, _, error = call("predict", *words)
        os.close(write_end)
        assert code == 0, error
        assert pipe.read().startswith("path,class,confidence\n")


def one_class_folder(tmp_path):
    (tmp_path / "one" / "cat").mkdir(parents=True)
    for number in range(10):
        Image.fromarray(toy_images(1, number)[0][0]).save(tmp_path / f"one/cat/{number}.png")
    return f"folder:{tmp_path}/one"


def class_only_in_test(tmp_path):
    for path in ("train/cat", "train/dog", "test/cat", "test/cow"):
        (tmp_path / "pets" / path).mkdir(parents=True)
        for number in range(4):
            image = Image.fromarray(toy_images(1, number)[0][0])
            image.save(tmp_path / "pets" / path / f"{number}.png")
    return f"folder:{tmp_path}/pets"


def empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    return f"folder:{tmp_path}/empty"


BAD = {
    "unknown key": (None, {"algorithm__treshold": 0.9}, "did you mean 'algorithm.threshold'?"),
    "unknown config": (None, {"method": "fixmtch"}, "did you mean 'fixmatch'?"),
    "unknown algorithm": (None, {"algorithm__name": "fixmtch"}, "did you mean 'fixmatch'?"),
    "unknown data": ("mnist5", {}, "did you mean 'mnist5k'?"),
    "unknown tfds data": ("tfds:cifar11", {}, "cifar10"),
    "unknown file": ("npz:nowhere.npz", {}, "nowhere.npz"),
    "unknown folder": ("folder:nowhere", {}, "nowhere"),
    "unknown split file": (None, {"chosen": ",split=nowhere.json"}, "nowhere.json"),
    "unknown preset": (None, {"chosen": ",preset=ubs"}, "did you mean 'usb'?"),
    "more labels than a class has": (None, {"chosen": ",labels=400"}, "100 images of each class"),
    "labels not divisible": (None, {"chosen": ",labels=10"}, "equally"),
    "batch not divisible": (None, {"devices": 3}, "do not divide over 3 devices"),
    "zero steps": (None, {"steps": 0}, "steps=0"),
    "period inside a call": (None, {"save_every": 3}, "save_every=3"),
    "one class": (one_class_folder, {"chosen": ",labels=2"}, "fewer than two classes"),
    "class in test only": (class_only_in_test, {"chosen": ",labels=4"}, "'cow'"),
    "empty folder": (empty_folder, {}, "no images"),
    "pad too large": (None, {"views__weak__pad": 9}, "pad of 9"),
    "wrong type": (None, {"steps": "many"}, "steps=many"),
}


@pytest.fixture(scope="module")
def compilations():
    """Grows with every compilation of this process."""
    compiler_options()  # asks the compiler once a process, by compiling a constant
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    return compiled


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    case, data, call, tmp_path, compilations, monkeypatch
):
    source, options, expected = BAD[case]
    source = source(tmp_path) if callable(source) else source or data
    monkeypatch.chdir(tmp_path)
    before, compiled = snapshot(tmp_path), len(compilations)
    code, output, error = call("train", "--workdir", "run", *arguments(source, **options))
    assert (code, output) == (2, ""), error
    assert expected in error
    assert error.startswith("jaxmatch: ")
    assert error.count("\n") == 1
    assert snapshot(tmp_path) == before
    assert len(compilations) == compiled


def test_stray_words_are_refused(call, data, tmp_path):
    words = arguments(data)
    for command, stray in (
        (["train", *words, "stray"], "'stray'"),
        (["train", *words, "--stepps=4"], "'--stepps=4'"),
        (["evaluate", "--workdir", tmp_path, "--setp=4"], "'--setp=4'"),
        (["describe", "extra", words[0]], "'extra'"),
    ):
        code, _, error = call(*command)
        assert code == 2
        assert f"unknown argument {stray}" in error


def test_unknown_commands_and_missing_arguments_exit_with_2(call):
    for words in (["trian"], [], ["train"], ["predict", "--workdir", "x"]):
        assert call(*words)[0] == 2


def test_help_names_every_command(call):
    code, output, _ = call("--help")
    assert code == 0
    for name in (
        *("train", "evaluate", "predict", "probe", "baseline", "report", "sweep"),
        *("demo", "describe", "show-augment"),
    ):
        assert name in output


def test_another_configuration_in_the_folder_exits_with_2(run, data, call):
    before = snapshot(run[0])
    words = arguments(data, **QUICK, algorithm__threshold=0.9)
    code, output, error = call("train", "--workdir", run[0], *words)
    assert (code, output) == (2, "")
    assert "algorithm.threshold: 0.4 -> 0.9" in error
    assert snapshot(run[0]) == before


@pytest.mark.slow
def test_a_diverging_run_exits_with_3(data, call, tmp_path):
    options = {"method": "supervised", "devices": 1, "optim__learning_rate": 1e30}
    words = ["train", "--workdir", tmp_path / "run", *arguments(data, **options)]
    for _ in range(2):  # the same command meets the same end
        code, output, error = call(*words)
        assert (code, output) == (3, "")
        assert "became NaN or Inf at step" in error
        assert "loss/supervised" in error
        assert "no checkpoint is saved" in error
    assert "became NaN or Inf at step" in (tmp_path / "run" / "log.txt").read_text()
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_folder_that_cannot_be_written_exits_with_4(data, call, tmp_path):
    (tmp_path / "file").write_text("")
    code, output, error = call(
        "train", "--workdir", tmp_path / "file" / "run", *arguments(data, **QUICK)
    )
    assert (code, output) == (4, "")
    assert "run could not be written (Not a directory)" in error
    assert "compiled" not in error


@pytest.mark.parametrize(
    "option", ["--process=0", "--processes=2", "--coordinator=a:1", "--multihost"]
)
def test_several_processes_train_one_run_at_a_time(data, call, tmp_path, option):
    one, two = (["--workdir", tmp_path / name, *arguments(data)] for name in "ab")
    code, output, error = call("train", *one, "--and", *two, option)
    assert (code, output) == (2, "")
    assert "several processes train one run at a time; leave out --and" in error


@pytest.mark.parametrize("option", ["--workdir=", "--workdir"])
def test_an_empty_path_is_refused(data, call, option):
    words = [option] if option.endswith("=") else [option, ""]
    code, output, error = call("train", *words, *arguments(data))
    assert (code, output) == (2, "")
    assert "names a file or folder is empty; give its path" in error


# The same in one process is a test of training/test_resume.py.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "cause"),
    [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")],
)
def test_a_signal_saves_and_the_same_command_continues(number, code, cause, data, tmp_path, call):
    workdir = tmp_path / "run"
    long = {"method": "supervised", "steps": 6000, "save_every": 6000}
    words = ["train", f"--workdir={workdir}", *arguments(data, **long)]
    for _ in range(2):
        lines = len(read(workdir))
        process = start_program(words)
        while process.poll() is None and len(read(workdir)) <= lines:
            time.sleep(0.01)
        process.send_signal(number)
        output, error = process.communicate()
        assert process.returncode == code, error
        assert output == ""
        assert f"stopped by {cause} at step" in error
        step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
        assert f"at step {step} after saving" in error
    found, output, _ = call("evaluate", "--json", f"--workdir={workdir}")
    assert (found, json.loads(output)["step"]) == (0, step)


@pytest.mark.slow
def test_a_second_interrupt_leaves_at_once(data, tmp_path):
    workdir = tmp_path / "run"
    words = ["train", f"--workdir={workdir}", *arguments(data, steps=6000, save_every=6000)]
    slow_save = (
        "import time; from jaxmatch.runtime import checkpoint; "
        "checkpoint.Checkpoints.save = lambda *a: (print('saving', flush=True), time.sleep(99))"
    )
    process = start_program(words, before=slow_save)
    while process.poll() is None and not read(workdir):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "saving\n"
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert time.monotonic() - started < 10
    assert process.returncode == -signal.SIGINT  # 130 to a shell
    assert "Ctrl-C again leaves at once" in error


@pytest.mark.slow
def test_a_run_in_another_process_is_the_same_run(data, call, tmp_path):
    words = arguments(data, **QUICK)
    process = start_program(["train", f"--workdir={tmp_path / 'other'}", *words])
    output, error = process.communicate()
    assert process.returncode == 0, error
    assert output.startswith("pseudo_label, 20 steps in ")
    code, _, _ = call("train", "--workdir", tmp_path / "run", *words)
    assert code == 0
    assert_bitwise(state_of(tmp_path / "run"), state_of(tmp_path / "other"))


def test_describe_prints_json(data, call):
    code, output, _ = call("describe", "--json", *arguments(data, **QUICK))
    assert code == 0
    found = json.loads(output)
    assert found["batch"] == {"labeled": 8, "unlabeled": 16}
    assert found["data"]["classes"] == ["0", "1", "2", "3"]
    assert (found["data"]["labeled"], found["data"]["unlabeled"]) == (LABELS, 64 - LABELS)
    assert sum(found["shapes"]["classifier/kernel"]) > 0


@pytest.mark.parametrize(
    "width", [None, *(pytest.param(width, marks=pytest.mark.slow) for width in (80, 132))]
)
def test_describe_prints_a_page(data, call, monkeypatch, width):
    monkeypatch.setenv("NO_COLOR", "1")
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
    code, output, _ = call("describe", *arguments(data, data__validation=8))
    assert code == 0
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= (width or 80)
    text = " ".join(output.split())
    for words in (
        "16 labeled, 40 unlabeled, 8 validation, 24 test images, 4 classes",
        "used at 8x8",
        "class labeled unlabeled validation test",
        "FixMatch: a confident prediction on a weak view is the label of a strong view",
        "8 labeled and 16 unlabeled images",
        "20, 5 a call; log every 5, evaluate every 5, save every 5",
        "parameters",
        "operations a step",
    ):
        assert words in text


def test_describe_refuses_what_train_refuses(data, call):
    for options, problem in (
        ({"keep_best": "test/accuracy"}, "would choose the checkpoint by the test set"),
        ({"keep_best": "validation/accuracy"}, "needs a validation set"),
    ):
        code, output, error = call("describe", *arguments(data, **options))
        assert (code, output) == (2, "")
        assert problem in error


@pytest.mark.parametrize(
    ("words", "knn", "linear"),
    [((), True, True), (("--knn",), True, False), (("--linear",), False, True)],
)
def test_probe_prints_json(call, monkeypatch, words, knn, linear):
    def found(workdir, step, *, knn, linear, place, all_labels):
        every = {"all": all_labels}
        return {
            "workdir": str(workdir),
            "step": step,
            "knn": knn,
            "linear": linear,
            "at": place,
        } | every

    monkeypatch.setattr(probe, "probe", found)
    code, output, _ = call("probe", "--workdir", "run", "--step", 5, "--data=there", *words)
    assert code == 0
    assert json.loads(output) == {
        "workdir": "run", "step": 5, "knn": knn, "linear": linear, "at": "there", "all": False
    }  # fmt: skip


def test_probe_takes_a_number_of_images(call, monkeypatch):
    monkeypatch.setattr(probe, "probe", lambda workdir, step, **options: options)
    code, output, _ = call("probe", "--workdir", "run", "--knn", "--images", 500)
    assert code == 0
    assert json.loads(output) == {
        "knn": True, "linear": False, "images": 500, "place": "", "all_labels": False
    }  # fmt: skip


@pytest.mark.parametrize(("words", "note"), [((), True), (("--all-labels",), False)])
def test_probe_says_if_the_run_saw_no_labels(call, monkeypatch, words, note):
    found = {"labels": 4000, "all_labels": True, "knn": 0.9}
    monkeypatch.setattr(probe, "probe", lambda workdir, step, **options: found)
    code, output, error = call("probe", "--workdir", "run", *words)
    assert (code, json.loads(output)) == (0, found)
    assert ("saw no labels, so the probes learned from all 4,000 known labels" in error) == note


@pytest.fixture
def measured(monkeypatch):
    """What `baseline` prints, and the configuration or run that it was asked for."""
    scores = {"accuracy": 0.754, "balanced_accuracy": 0.7}
    svc = {"title": "SVC on pixels", "settings": "C=10", "test": scores, "validation": None}
    found = {
        "data": "digits", "labels": 40, "seed": 1, "unlabeled": 1402, "test": 355, "validation": 0,
        "pixels": [32, 32, 1], "notes": ["A note."],
        "baselines": {"svc": svc},
    }  # fmt: skip
    asked = []
    monkeypatch.setattr(
        baselines,
        "of_config",
        lambda config, cache: asked.append((config.data.labels, cache)) or found,
    )
    monkeypatch.setattr(baselines, "of_run", lambda *words: asked.append(words) or found)
    return found, asked


def test_baseline_prints_a_table_or_json(call, measured, tmp_path):
    found, asked = measured
    words = ["baseline", "--config=fixmatch:digits,seed=1", "--config.data.labels=40"]
    code, output, _ = call(*words)
    assert code == 0
    for text in ("digits, 40 labels, seed 1", "75.4%", "70.0%", "1,402 unlabeled", "A note."):
        assert text in output
    assert "validation" not in output
    code, output, _ = call(*words, "--json", "-o", tmp_path / "b.json")
    assert (code, json.loads(output)) == (0, found)
    assert json.loads((tmp_path / "b.json").read_text()) == found
    words = ["--workdir", tmp_path, "--data=there", "--features", tmp_path / "cache"]
    code, output, _ = call("baseline", *words, "--json")
    assert (code, json.loads(output)) == (0, found)
    assert asked == [("40", None), ("40", None), (tmp_path, "there", tmp_path / "cache")]
    found["network"] = {"name": "runs/encoder", "width": 1024}
    assert "Features: 1,024, of runs/encoder." in call("baseline", "--workdir", tmp_path)[1]


def test_features_says_whether_it_computed_them(call, monkeypatch, tmp_path):
    about = {
        "folder": "runs/features/digits-01234567", "network": "runs/encoder", "data": "digits",
        "count": 1797, "unreadable": 0, "width": 64, "weights": "0" * 64,
    }  # fmt: skip
    asked = []
    monkeypatch.setattr(
        features, "of_config", lambda config, cache: asked.append(cache) or (about, False)
    )
    monkeypatch.setattr(features, "of_run", lambda *words: asked.append(words) or (about, True))
    code, output, _ = call("features", "--config=fixmatch:digits", "--cache", tmp_path)
    assert (code, output) == (
        0,
        "wrote runs/features/digits-01234567: 1,797 images of digits, 64 features each, of "
        "runs/encoder\n",
    )
    about["unreadable"] = 2
    code, output, _ = call("features", "--workdir", tmp_path, "--step=5", "--data=there")
    assert output.startswith("reused runs/features/digits-01234567: ")
    assert output.endswith("2 images are not readable.\n")
    code, output, _ = call("features", "--workdir", tmp_path, "--json")
    assert json.loads(output) == about
    assert asked == [tmp_path, (tmp_path, 5, "there", None), (tmp_path, None, "", None)]
    for words, text in (
        ((), "features needs either --config=NAME:DATA,labels=N or --workdir=RUN"),
        (("--config=fixmatch:digits", "--step=5"), "--step chooses a checkpoint of a run"),
        (("--config=fixmatch:digits", "--data=there"), "it needs --workdir=RUN"),
        (("--workdir=run", "--config.seed=1"), "leave out --config.key=value"),
    ):
        code, _, error = call("features", *words)
        assert code == 2
        assert text in error


def test_baseline_says_if_a_finished_run_does_not_win(call, measured, run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    summary = json.loads((run[0] / "summary.json").read_text())
    for accuracy, expected in ((0.7, True), (0.8, False)):
        metrics = {"accuracy": accuracy, "balanced_accuracy": 0.8}
        summary["teacher"] |= {"last": accuracy, "metrics": metrics}
        (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
        code, output, _ = call("baseline", "--workdir", tmp_path / "run")
        assert code == 0
        assert ("pseudo_label does not beat SVC on pixels" in output) == expected


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "needs either --config=NAME:DATA,labels=N or --workdir=RUN"),
        (("--config=fixmatch:digits", "--workdir=run"), "needs either"),
        (("--config=fixmatch:digits", "--data=there"), "it needs --workdir=RUN"),
        (("--workdir=run", "--config.seed=1"), "leave out --config.key=value"),
        (("--config=fixmatch:digits", "-o", "/nowhere/b.json"), "/nowhere"),
        (("--config=simclr:digits",), "simclr reads no labels"),
    ],
)
def test_baseline_refuses_what_it_cannot_do(call, words, text):
    code, output, error = call("baseline", *words)
    assert (code, output) == (2, "")
    assert text in error
    assert error.count("\n") == 1


def test_report_measures_missing_baselines_when_asked(call, monkeypatch):
    asked = []
    monkeypatch.setattr(baselines, "add_missing", lambda *given: asked.append(given))
    monkeypatch.setattr(page, "report", lambda runs, output, **options: [])
    assert call("report", "a", "b")[0] == 0
    assert asked == []
    assert call("report", "a", "b", "--baselines", "--data", "moved")[0] == 0
    assert asked == [([Path("a"), Path("b")], "moved")]


def test_evaluate_of_a_label_free_run_names_probe(call, monkeypatch):
    label_free = classifier.Classifier(
        **dict.fromkeys(("config", "classes", "image_shape", "step", "state")),
        folder=Path("run"),
        program=SimpleNamespace(algorithm=SimpleNamespace(labeled=())),
    )
    monkeypatch.setattr(classifier, "load", lambda workdir, step, calibrated: label_free)
    code, output, error = call("evaluate", "--workdir", "run")
    assert (code, output) == (2, "")
    assert "run was trained without labels and has no classifier; use jaxmatch probe" in error


def test_report_compares_runs(run, call, tmp_path):
    output = tmp_path / "deep" / "comparison.html"
    code, printed, _ = call("report", run[0], "-o", output)
    assert code == 0
    for path in (output, *(output.with_name(f"comparison_{name}.png") for name in PICTURES)):
        assert f"wrote {path}" in printed
        assert path.stat().st_size > 1000
    accuracy = json.loads((run[0] / "summary.json").read_text())["teacher"]["last"]
    assert f"<td>{100 * accuracy:.1f}</td>" in output.read_text()
    code, printed, error = call("report", run[0], tmp_path, "-o", output)
    assert (code, printed) == (2, "")
    assert f"{tmp_path} is no run folder" in error


@pytest.mark.slow
def test_demo_trains_both_methods_and_prints_one_table(call, tmp_path, monkeypatch):
    tiny = {key: value for key, value in OVERRIDES.items() if not key.startswith("algorithm.")}
    tiny |= {"steps": 5, "data.labels": "40", "data.image_size": 8, "model.width": 1.0}
    monkeypatch.setitem(recipe.DATASETS, "mnist5k", tiny)
    code, output, _ = call("demo", "--workdir", tmp_path / "demo")
    assert code == 0
    for word in ("MNIST-5k", "supervised", "fixmatch", "SVC on pixels", "label spreading", "%"):
        assert word in output
    for name in ("supervised", "fixmatch"):
        summary = json.loads((tmp_path / "demo" / name / "summary.json").read_text())
        assert f"{summary['teacher']['last']:.1%}" in output
        kept = json.loads((tmp_path / "demo" / name / "baselines.json").read_text())
        assert f"{kept['baselines']['svc']['test']['accuracy']:.1%}" in output
        assert f"{name} does not beat" in output  # after five steps
    assert call("demo", "--workdir", tmp_path / "demo")[:2] == (0, output)  # complete: at once


def test_demo_refuses_a_seed_that_nothing_takes(call, tmp_path):
    code, output, error = call("demo", "--seed=-1", "--workdir", tmp_path / "demo")
    assert (code, output) == (2, "")
    assert error == "jaxmatch: seed=-1 must lie between 0 and 4294967295.\n"


def test_pseudo_label_looks_for_all_runs_before_the_first_predicts(
    call, run, tmp_path, monkeypatch
):
    def work(*arguments, **options):
        raise AssertionError("it began to work")

    monkeypatch.setattr("jaxmatch.evaluation.pseudo_label.make", work)
    words = ("pseudo-label", run[0], tmp_path / "none", "-o", tmp_path / "q.csv")
    code, output, error = call(*words)
    assert (code, output) == (2, "")
    assert f"{tmp_path / 'none'} is no run folder: it has no config.json." in error


@pytest.mark.slow  # report/test_sheet.py
def test_show_augment_writes_a_sheet_and_says_which_ops_are_used(data, call, tmp_path):
    output = tmp_path / "sheet.png"
    config, *overrides = arguments(data)
    code, printed, error = call("show-augment", f"{config},views=medical", *overrides, "-o", output)
    assert code == 0
    assert str(output) in printed
    assert "views=medical" in error
    used, left_out = (
        printed.partition(f"{start}: ")[2].partition(".")[0].split(", ")
        for start in ("Ops used", "Ops not used")
    )
    assert {"rotate", "brightness"} <= set(used)
    assert {"color", "invert", "solarize"} <= set(left_out)
    with Image.open(output) as image:
        assert min(image.size) > 100


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    cli.main(["sweep", "--config=fixmatch:mnist5k", "--seeds", "0"])
    sys.stdout.close()


def test_a_device_without_room_is_one_sentence(call, monkeypatch):
    def allocate(arguments):
        jnp.zeros(2**45)

    monkeypatch.setattr(cli.COMMANDS["describe"], "run", allocate)
    code, _, error = call("describe", "--config=fixmatch:mnist5k")
    assert code == 1
    assert error.startswith("jaxmatch: ")
    assert "checkpoint" in error
    assert len(error.splitlines()) == 1


def test_a_path_that_cannot_be_is_bad_input(run, call):
    code, _, error = call("predict", f"--workdir={run[0]}", "-o=-.csv", "d" * 300)
    assert code == 2
    assert "File name too long" in error


def test_names_that_the_terminal_cannot_show_end_no_command(run, monkeypatch, tmp_path):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    page = tmp_path / "caf\u00e9.html"
    cli.main(["report", str(run[0]), f"--output={page}", "--no-gallery"])
    sys.stdout.flush()
    assert rb"caf\xe9.html" in written.getvalue()


def test_baseline_keeps_files_of_others(run, call, tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\n")
    code, _, error = call("baseline", f"--workdir={run[0]}", f"-o={tmp_path / 'labels.csv'}")
    assert code == 2
    assert "would be lost" in error
    assert (tmp_path / "labels.csv").read_text() == "path,label\n"
