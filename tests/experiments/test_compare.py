"""The comparison with PyTorch: its turns, its check of the first step and its table, on fakes."""

import argparse
import ast
import json
import sys
from pathlib import Path

import pytest

from experiments.throughput import compare
from experiments.throughput.compare import (
    CHANGE_TOLERANCE,
    LOSS_TOLERANCE,
    ComparisonError,
    Worker,
    disagreements,
    ratio,
    spread,
    table,
    take_turns,
)

FAKE = """
import json, os, sys, time

name, values, journal = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
for line in sys.stdin:
    ((request, options),) = json.loads(line).items()
    with open(journal, "a") as file:
        file.write(f"{name} {request} {options.get('measure', '')}\\n")
    if request == values.get("fails_at"):
        sys.exit("a reason")
    answer = {
        "export": {"settings": {"data": {"batch_size": 2, "ratio": 7}}, "facts": {}},
        "prepare": {
            "first": {"loss": values.get("loss", 1.0), "parameters": values.get("moved", 1.0)},
            "platform": values.get("platform", "cpu"),
            "given": options,
        },
        "run": {"seconds": values.get("seconds", 1.0)},
        "finish": {"peak_bytes": 2**30},
    }[request]
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Stand in for the processes of contestants; returns what they were asked, in order."""
    script, journal = tmp_path / "fake.py", tmp_path / "journal.txt"
    script.write_text(FAKE)
    journal.touch()

    def install(**values):
        def start(name, arguments=None):
            given = json.dumps(values.get(name, {}))
            return Worker(name, [sys.executable, "-S", script, name, given, journal], {})

        monkeypatch.setattr(compare, "start", start)
        return start

    install.asked = lambda: [line.split() for line in journal.read_text().splitlines()]
    return install


def run(capsys, *words):
    """Run the command: (its JSON lines, its table)."""
    compare.main(["--pause=0", "--rounds=2", *words])
    lines, _, rest = capsys.readouterr().out.partition("\n\n")
    return [json.loads(line) for line in lines.splitlines()], rest.splitlines()


def test_prints_a_line_a_contestant_and_their_ratios(fake, capsys):
    fake(ours={"seconds": 0.5}, plain={"seconds": 2.0})
    results, rows = run(capsys, "--contestants", "ours", "plain", "tuned", "--steps=3")
    assert [result["contestant"] for result in results] == ["ours", "plain", "tuned"]
    assert results[0]["batch"] == [2, 14]
    assert results[0]["seconds"]["loop"] == spread([0.5, 0.5])
    assert [result["workers"] > 0 for result in results] == [False, True, True]
    assert [result["given"]["tuned"] for result in results] == [False, False, True]
    assert {result["given"]["steps"] for result in results} == {3}
    assert len({result["given"]["path"] for result in results}) == 1
    cells = [cell.strip() for cell in rows[2].strip("|").split("|")]
    step = ["0.5", "0.25 (0.25..0.25)", "0.50 (0.50..0.50)"]
    assert cells == ["ours", *step, *step, "1.0"]


def test_settings_and_precision_reach_the_exporter(fake, capsys, monkeypatch):
    asked = {}
    ask = Worker.ask

    def spy(self, request, **options):
        asked.setdefault(request, options)
        return ask(self, request, **options)

    monkeypatch.setattr(Worker, "ask", spy)
    fake()
    words = ("--network=mnist5k", "--precision=bfloat16", "--config.model.width=1")
    run(capsys, "--contestants", "ours", "--measures", "step", *words)
    assert asked["export"]["config"] == "fixmatch:mnist5k"
    assert asked["export"]["overrides"] == ["--config.model.width=1", "--config.dtype=bfloat16"]
    assert asked["prepare"]["measures"] == ["step"]


def test_one_works_at_a_time_and_another_begins_each_round(fake, capsys):
    fake()
    run(capsys, "--contestants", "ours", "plain", "tuned")
    turns = [(name, *measure) for name, request, *measure in fake.asked() if request == "run"]
    rounds = [["ours", "plain", "tuned"], ["plain", "tuned", "ours"]]
    assert turns == [
        (name, measure) for names in rounds for measure in ("step", "loop") for name in names
    ]


def test_rounds_pair_the_times_of_a_contestant(fake):
    start = fake(a={"seconds": 1.0}, b={"seconds": 3.0})
    with start("a") as a, start("b") as b:
        seconds = take_turns({"a": a, "b": b}, ["step"], 3, 1, 0.0)
    assert seconds == {"step": {"a": [1.0] * 3, "b": [3.0] * 3}}


@pytest.mark.parametrize(
    "values", [{"loss": 1.0 + 3e-4}, {"moved": 1.9}, {"loss": float("nan")}, {"loss": 0.0}]
)
def test_disagreement_ends_with_exit_code_1_before_anything_is_timed(fake, capsys, values):
    fake(plain=values)
    with pytest.raises(SystemExit, match=r"first step's \w+ differs: ours 1\.0, plain") as error:
        run(capsys, "--contestants", "ours", "plain")
    assert isinstance(error.value.code, str)  # which Python prints, and exits with 1
    assert not [request for _, request, *_ in fake.asked() if request == "run"]


def test_only_the_same_kind_of_pass_must_agree(fake, capsys):
    fake(ours_split={"loss": 2.0}, tuned_split={"loss": 2.0})
    results, _ = run(capsys)
    assert len(results) == 5
    fake(ours_split={"loss": 2.0})
    with pytest.raises(SystemExit, match=r"ours_split 2\.0, tuned_split 1\.0"):
        run(capsys)


def test_different_devices_are_refused(fake, capsys):
    fake(ours={"platform": "gpu"})
    with pytest.raises(SystemExit, match="the devices differ"):
        run(capsys, "--contestants", "ours", "plain")


@pytest.mark.parametrize("request_name", ["prepare", "run", "finish"])
def test_a_process_that_ends_is_named(fake, capsys, request_name):
    fake(plain={"fails_at": request_name})
    with pytest.raises(SystemExit, match=f"plain failed at '{request_name}'"):
        run(capsys, "--contestants", "ours", "plain")


def test_a_process_that_never_began_is_named():
    with Worker("plain", [sys.executable, "-S", "-c", ""], {}) as worker:
        worker.process.wait()
        with pytest.raises(ComparisonError, match="plain failed"):
            worker.ask("prepare")


@pytest.mark.parametrize("words", [["--step=3"], ["--rounds=0"], ["--warm-up=0"], ["--network=x"]])
def test_wrong_flags_are_refused(capsys, words):
    with pytest.raises(SystemExit) as error:
        compare.main(words)
    assert error.value.code == 2
    capsys.readouterr()


@pytest.mark.parametrize("precision", LOSS_TOLERANCE)
def test_tolerances_are_relative_and_belong_to_the_quantity(precision):
    for quantity, limits in (("loss", LOSS_TOLERANCE), ("teacher", CHANGE_TOLERANCE)):
        for scale in (1e-3, 1e3):

            def problems(factor, quantity=quantity, scale=scale, limit=limits[precision]):
                far = {quantity: scale * (1 - factor * limit)}
                return disagreements({"a": {quantity: scale}, "b": far}, precision)

            assert problems(0.9) == []
            assert len(problems(1.1)) == 1


def test_ratios_are_of_the_same_round():
    assert ratio([1.0, 2.0, 4.0], [2.0, 4.0, 4.0]) == "0.50 (0.50..1.00)"
    assert spread([3.0, 1.0, 2.0]) == {
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "rounds": [3.0, 1.0, 2.0],
    }


def test_the_table_leaves_out_bases_that_took_no_part():
    results = [
        {"contestant": name, "peak_bytes": 2**31, "seconds": {"step": spread(times)}}
        for name, times in {"ours": [1.0, 1.5], "tuned": [2.0, 2.0]}.items()
    ]
    assert table(results).splitlines() == [
        "| contestant | step, s | step / tuned | peak memory, GiB |",
        "| --- | --- | --- | --- |",
        "| ours | 1.25 | 0.62 (0.50..0.75) | 2.0 |",
        "| tuned | 2 | 1 | 2.0 |",
    ]
    assert "/" not in table(results[:1])


def test_the_worker_of_pytorch_needs_neither_jax_nor_this_package():
    tree = ast.parse(Path(compare.__file__).with_name("torch_fixmatch.py").read_text())
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(str(node.module).partition(".")[0])
    assert modules - set(sys.stdlib_module_names) == {"torch", "numpy", "PIL"}


def test_contestants_are_started_as_what_they_are(monkeypatch):
    started = []
    monkeypatch.setattr(compare, "Worker", lambda *arguments: started.append(arguments))
    arguments = argparse.Namespace(torch_python="/torch/python", device="cpu")
    for name in ("ours", "tuned", "plain"):
        compare.start(name, arguments)
    (_, ours, environment), (_, tuned, kept), (_, plain, untouched) = started
    assert ours == [sys.executable, "-m", "experiments.throughput.ours"]
    assert environment["JAX_PLATFORMS"] == "cpu"
    assert tuned == plain
    assert tuned[0] == "/torch/python"
    assert Path(tuned[1]).exists()
    assert untouched == {}
    assert kept


@pytest.mark.slow
def test_our_side_runs(capsys):
    small = ("--network=mnist5k", "--device=cpu", "--config.model.width=0.25")
    names = ("ours", "ours_split")
    results, _ = run(capsys, "--steps=1", "--contestants", *names, *small)
    assert [result["contestant"] for result in results] == list(names)
    for result in results:
        assert 0 < result["confident"] < 1
        assert result["first"]["teacher"] == pytest.approx(
            0.01 * result["first"]["parameters"], rel=1e-3
        )
