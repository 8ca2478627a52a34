"""Damaged small files of a run folder: one sentence, exit code 2, and nothing is lost."""

import json
import shutil

import pytest
from tiny_runs import (
    STEPS,
    arguments,
    configuration,
    snapshot,
    train_tiny,
    without_extras,
    without_learning,
)

from jaxmatch import load
from jaxmatch.cli import main as cli
from jaxmatch.cli import sweep
from jaxmatch.data import record as records
from jaxmatch.errors import InputError
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import MetricsLog, read
from jaxmatch.report.results import read as read_run
from jaxmatch.training.train import chosen, finished

# In place of a JSON file of the run; None cuts it in half.
ACCURACIES = {"last": 0.5, "mean_20": 0.5, "median_20": 0.5, "best": 0.5}
DAMAGE = {
    "empty": b"",
    "half": None,
    "binary": bytes(range(256)),
    "list": b"[1, 2]",
    "number": b"3",
    "null": b"null",
    "keys": b"{}",
    "deep": b"[" * 100_000,
}
KINDS = [  # JSON of other kinds is found in one way
    pytest.param(kind, marks=pytest.mark.slow if kind not in ("empty", "half", "keys") else ())
    for kind in DAMAGE
]
QUICK = {"method": "pseudo_label", "devices": 1}


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reference") / "run"
    with without_learning():
        train_tiny(data, workdir, **QUICK)
    return workdir


@pytest.fixture
def workdir(reference, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    return tmp_path / "run"


def damage(file, kind):
    content = file.read_bytes()
    new = DAMAGE[kind]
    file.write_bytes(content[: len(content) // 2] if new is None else new)


def refused(capsys, *words):
    """What the command line says in one sentence as it exits with 2."""
    with pytest.raises(SystemExit) as exited:
        cli.main([str(word) for word in words])
    error = capsys.readouterr().err.strip().splitlines()
    assert exited.value.code == 2, error
    assert len(error) == 1
    return error[0]


def chosen_again(data, workdir):
    """The configuration of the run, as the same command finds it."""
    return chosen(configuration(data, **QUICK), workdir)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_config(kind, workdir, data, capsys, tmp_path):
    file = workdir / "config.json"
    damage(file, kind)
    before = snapshot(workdir)
    commands = [
        ("train", *arguments(data, **QUICK), f"--workdir={workdir}"),
        ("evaluate", f"--workdir={workdir}"),
        ("predict", f"--workdir={workdir}", tmp_path, "-o", tmp_path / "p.csv"),
        ("probe", f"--workdir={workdir}"),
        ("export", f"--workdir={workdir}", "-o", tmp_path / "w.npz"),
        ("report", workdir, "-o", tmp_path / "r.html"),
        (
            "train",
            *arguments(data, **QUICK),
            f"--config.init_from={workdir}",
            f"--workdir={tmp_path / 'new'}",
        ),
    ]
    for words in commands:
        error = refused(capsys, *words)
        assert f"{file} is damaged (" in error
        assert "put back a copy of it or choose another folder" in error
    assert snapshot(workdir) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    with pytest.raises(InputError, match="is damaged"):
        RunFolder.at(workdir)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("algorithm", "fixmatch"),
        ("algorithm", {}),
        ("data", []),
        ("model", "wrn"),
        ("order", "ab"),
        ("facts", None),
        ("facts", {"classes": 3}),
    ],
)
def test_a_config_of_other_types(key, value, workdir):
    values = json.loads((workdir / "config.json").read_text()) | {key: value}
    (workdir / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        load(workdir)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param(key, value, marks=() if value in ("x", [{}]) else pytest.mark.slow)
        for key in ("algorithm.threshold", "augment", "data.mean", "dtype", "devices")
        for value in (None, "x", -1, [], {}, [{}])
    ],
    ids=str,
)
def test_a_setting_of_another_type_is_one_sentence(key, value, workdir, data):
    values = json.loads((workdir / "config.json").read_text())
    section, _, name = key.rpartition(".")
    (values[section] if section else values)[name] = value
    (workdir / "config.json").write_text(json.dumps(values))
    if key == "devices":  # of the machine that trained
        assert load(workdir).step == STEPS
    else:
        with pytest.raises(InputError):
            load(workdir)
        with pytest.raises(InputError):
            finished(chosen_again(data, workdir), workdir)


@pytest.mark.parametrize("value", [None, "x", -1, [], {}, [None]], ids=str)
@pytest.mark.parametrize("key", ["name", "directory", "location", "classes", "parts", "listed"])
def test_a_record_of_other_types(key, value, workdir):
    good = {("listed", "None")}  # of arrays
    if (key, str(value)) in good or (isinstance(value, str) and key in ("name", "directory")):
        return
    if (key, value) == ("location", "x"):
        return
    values = json.loads((workdir / "data.json").read_text()) | {key: value}
    (workdir / "data.json").write_text(json.dumps(values))
    if (key, value) in (("classes", []), ("parts", {})):
        assert records.read(workdir) is not None  # it is then another data set's
        return
    with pytest.raises(InputError, match=r"data\.json is damaged"):
        records.read(workdir)


@pytest.mark.parametrize("kind", KINDS)
def test_findings(kind, workdir, data, capsys, tmp_path):
    file = workdir / "findings.json"
    damage(file, kind)
    before = snapshot(workdir)
    error = refused(capsys, "report", workdir, "-o", tmp_path / "r.html")
    assert f"{file} is damaged (" in error
    assert "remove it" in error
    assert snapshot(workdir) == before
    file.unlink()
    assert read_run(workdir).stages[0].findings is None  # as of an older version


@pytest.mark.parametrize("key", ["name", "classes", "counts", "left_out", "notes", "sizes", "size"])
@pytest.mark.parametrize("value", [None, 3, "x"])
def test_findings_of_other_types(key, value, workdir):
    if (key, value) in (("name", "x"), ("classes", "x"), ("notes", "x")):
        return
    values = json.loads((workdir / "findings.json").read_text()) | {key: value}
    (workdir / "findings.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"findings\.json is damaged"):
        read_run(workdir)


@pytest.mark.parametrize("kind", KINDS)
def test_summary(kind, workdir, data, capsys, tmp_path):
    file = workdir / "summary.json"
    damage(file, kind)
    before = snapshot(workdir)
    for words in (
        ("train", *arguments(data, **QUICK), f"--workdir={workdir}"),
        ("report", workdir, "-o", tmp_path / "r.html"),
    ):
        error = refused(capsys, *words)
        assert f"{file} is damaged (" in error
        assert "remove it and repeat the train command" in error
    assert snapshot(workdir) == before


def test_the_advice_for_a_damaged_summary_helps(workdir, reference, data):
    (workdir / "summary.json").unlink()
    summary = train_tiny(data, workdir, **QUICK)
    expected = json.loads((reference / "summary.json").read_text())
    assert {**summary, "seconds": 0} == {**expected, "seconds": 0}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", "20"),
        ("seconds", None),
        ("evaluated", "nobody"),
        ("images_seen", 5),
        ("images_seen", {"labeled": 1}),
        ("teacher", 0.5),
        ("teacher", {}),
        ("teacher", {"last": 0.5, "mean_20": "x", "median_20": 0.5, "best": 0.5}),
        ("teacher", {**ACCURACIES, "metrics": [0.5]}),
        ("teacher", {**ACCURACIES, "metrics": {"balanced_accuracy": "x"}}),
        ("validation", [1]),
        ("validation", {"teacher": {"last": 0.5}}),
        ("best", 5),
        ("best", {"step": 5}),
        ("best", {"step": 5, "key": "a", "value": 0.5, "test": {"teacher": 0.5}}),
        ("probe", [1]),
        ("probe", {"knn": 0.5, "linear": {}}),
    ],
)
def test_a_summary_of_other_types(key, value, workdir, data):
    values = json.loads((workdir / "summary.json").read_text()) | {key: value}
    (workdir / "summary.json").write_text(json.dumps(values))
    for reader in (read_run, lambda folder: finished(chosen_again(data, folder), folder)):
        with pytest.raises(InputError, match=r"summary\.json is damaged"):
            reader(workdir)


def test_a_sweep_tells_of_a_damaged_summary_and_goes_on(workdir, data, monkeypatch):
    monkeypatch.setattr(sweep, "_train", lambda words: 0)
    (workdir / "summary.json").write_bytes(b"\xff")
    points = [
        sweep.Point(words=(), workdir=folder, config=configuration(data, **QUICK))
        for folder in (workdir, workdir.with_name("other"))
    ]
    said = []
    assert sweep.run(points, said.append) == {workdir: "bad input"}
    assert "summary.json is damaged" in said[0]


@pytest.mark.parametrize("kind", KINDS)
def test_split(kind, workdir, data, capsys):
    (workdir / "summary.json").unlink()
    file = workdir / "split.json"
    damage(file, kind)
    before = snapshot(workdir)
    for words in (
        ("train", *arguments(data, **QUICK), f"--workdir={workdir}"),
        ("evaluate", f"--workdir={workdir}"),
        ("probe", f"--workdir={workdir}"),
    ):
        assert str(file) in refused(capsys, *words)
    assert snapshot(workdir) == before


BAD_LINES = [
    b"\xff\xfe\x00 binary\n",
    b"[1, 2]\n",
    b'{"loss/total": 1.0}\n',
    b'{"step": 5, "loss/total": "low"}\n',
    b'{"step": "5"}\n',
    b'{"step": 5, "loss/tot\n',
    b"[" * 100_000 + b"\n",
    b"\n",
]


@pytest.mark.parametrize("bad", BAD_LINES, ids=range(len(BAD_LINES)))
def test_damaged_lines_of_metrics(bad, workdir, caplog):
    file = workdir / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    broken = lines[0] + bad + b"".join(lines[2:])
    file.write_bytes(broken)
    assert [line["step"] for line in read(workdir)] == [5, 15, 20]
    assert "has 1 damaged lines" in caplog.text
    assert file.read_bytes() == broken  # a reader changes nothing
    caplog.clear()
    MetricsLog(workdir, resume_step=STEPS, expected=STEPS).close()
    (copy,) = workdir.glob("metrics.jsonl.damaged-*")
    assert copy.read_bytes() == broken
    assert copy.name in caplog.text
    assert [line["step"] for line in read(workdir)] == [5, 15, 20]


@pytest.mark.parametrize("kept", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_lines_that_a_checkpoint_relies_on_are_missed(kept, workdir, data, caplog):
    (workdir / "summary.json").unlink()
    file = workdir / "metrics.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:kept]))
    train_tiny(data, workdir, **QUICK)
    assert f"lacks lines up to step {STEPS}" in caplog.text
    assert (workdir / "summary.json").exists()


def test_an_unfinished_last_line_is_no_damage(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 5, "x": 1.0}\n{"step": 10, "x"')
    with MetricsLog(tmp_path, resume_step=5, expected=5) as record:
        assert record.lines() == [{"step": 5, "x": 1.0}]
    assert not caplog.records
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events", "metrics.jsonl"]
