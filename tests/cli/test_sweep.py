"""Sweeps: which points are listed, what is refused, and what running them does."""

import json
import shlex
import shutil
import signal
import time
from pathlib import Path

import jax
import pytest
from tiny_runs import OVERRIDES, SUMMARY, snapshot, start_program, write_data

from jaxmatch.cli import main as cli
from jaxmatch.cli import sweep
from jaxmatch.config.flags import from_flags
from jaxmatch.config.own import Circumstances, settle, with_usual_input
from jaxmatch.config.saved import run_name, to_json
from jaxmatch.errors import InputError
from jaxmatch.record.metrics import read

TWO = 'def sweep():\n    for value in (0.9, 0.95):\n        yield {"algorithm.threshold": value}\n'


@pytest.fixture
def file(tmp_path):
    """Writes a config file with fixmatch's get_config and the given text."""

    def write(text):
        path = tmp_path / "my sweep.py"
        start = "from jaxmatch.config.flags import load_module\n"
        get = "get_config = load_module('fixmatch').get_config\n"
        path.write_text(f"{start}{get}{text}")
        return str(path)

    return write


@pytest.fixture
def call(capfd):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*words):
        code = 0
        try:
            cli.main([str(word) for word in words])
        except SystemExit as error:
            code = error.code
        return code, *capfd.readouterr()

    return call


def test_one_command_a_point_in_order(file, call, tmp_path):
    path = file(TWO)
    words = ["sweep", f"--config={path}:mnist5k,labels=20", "--workdir", tmp_path / "my runs"]
    code, output, _ = call(*words)
    assert code == 0
    lines = [shlex.split(line) for line in output.splitlines()]
    assert len(lines) == 2
    for line, threshold in zip(lines, (0.9, 0.95), strict=True):
        program, command, config, override, workdir = line
        assert (program, command) == ("jaxmatch", "train")
        assert override == f"--config.algorithm.threshold={threshold}"
        parsed, _ = from_flags(config.removeprefix("--config="), [override])
        assert parsed.data.labels == "20"
        assert workdir == f"--workdir={tmp_path / 'my runs' / run_name(parsed)}"
    assert call(*words) == (0, output, "")
    assert not (tmp_path / "my runs").exists()


def test_a_sweep_begins_with_what_each_data_set_holds(tmp_path):
    colours = write_data(tmp_path / "x.npz")
    path = tmp_path / "points.py"
    path.write_text(
        "def sweep():\n"
        f"    for data in ('npz:{colours}', 'digits'):\n"
        "        for name in ('fixmatch', 'supervised'):\n"
        "            yield {'config': f'{name}:{data},labels=20'}\n"
    )
    points = sweep.points(str(path), ["--config.data.validation=30"], seeds=[0, 1], base=tmp_path)
    assert len(points) == 8
    found = sweep.opening(points)
    assert [line for line in found if line.startswith("data: ")] == [
        f"data: npz:{colours}: 20 labeled, 14 unlabeled, 30 validation, 24 test images, 4 classes",
        "data: digits: 20 labeled, 1,392 unlabeled, 30 validation, 355 test images, 10 classes",
    ]
    *_, last = points
    facts = {"name": "from the run", "labeled": 1, "unlabeled": 2, "unknown": 0, "counts": {}}
    facts |= {"validation": 0, "test": 3, "test_drawn": False, "classes": [], "left_out": {}}
    facts |= {"notes": [], "sizes": [], "modes": {}, "size": [8, 8]}
    last.workdir.mkdir(parents=True)
    (last.workdir / "findings.json").write_text(json.dumps(facts))
    assert sweep.opening([last])[0] == (
        "data: from the run: 1 labeled, 2 unlabeled, 3 test images, 0 classes"
    )


def test_seeds_repeat_all_points_the_first_seed_first(file, call):
    words = ["sweep", f"--config={file(TWO)}:mnist5k", "--seeds", 0, 1, "--config.steps=30"]
    code, output, _ = call(*words)
    assert code == 0
    lines = output.splitlines()
    assert ["seed=1" in line for line in lines] == [False, False, True, True]
    assert ["threshold=0.95" in line for line in lines] == [False, True, False, True]
    assert all("--config.steps=30" in line for line in lines)
    without_argument = sweep.points(file(TWO), seeds=[4])
    assert [point.config.seed for point in without_argument] == [4, 4]


def test_a_config_without_a_sweep_is_repeated_by_seeds(call):
    code, output, _ = call("sweep", "--config=supervised:mnist5k,labels=40", "--seeds", 0, 1, 2)
    assert code == 0
    assert [f"labels=40,seed={seed} " in line for seed, line in enumerate(output.splitlines())] == [
        True
    ] * 3


def test_points_name_other_configs(tmp_path):
    path = tmp_path / "points.py"  # of points alone: it has no get_config
    path.write_text(
        "def sweep(argument):\n"
        "    return [{'config': f'{name}:mnist5k,labels={argument}'}\n"
        "            for name in ('fixmatch', 'supervised')]\n"
    )
    found = sweep.points(f"{path}:20", ["--config.steps=45"])
    assert [point.config.algorithm.name for point in found] == ["fixmatch", "supervised"]
    assert {(point.config.data.labels, point.config.steps) for point in found} == {("20", 45)}


def test_the_command_line_wins_over_a_point(file):
    path = file('def sweep():\n    return [{"steps": 30}]\n')
    (point,) = sweep.points(path, ["--config.steps=45"])
    assert point.config.steps == 45
    assert point.words[1:-1] == ("--config.steps=45",)


def test_a_point_names_its_folder(file):
    text = 'def sweep():\n    return [{"seed": seed, "workdir": f"s{seed}"} for seed in (0, 1)]\n'
    assert [point.workdir for point in sweep.points(file(text), base="base")] == [
        Path("base/s0"),
        Path("base/s1"),
    ]


BAD = {
    "unknown key": (
        'def sweep(): return [{}, {"stesp": 3}]',
        "point 2 of the sweep ({'stesp': 3})",
    ),
    "unknown config": ('def sweep(): return [{"config": "fixmtch:mnist5k"}]', "'fixmatch'?"),
    "unknown algorithm": ('def sweep(): return [{"algorithm.name": "mixmtch"}]', "point 1"),
    "period": (
        'def sweep(): return [{"steps": 7, "steps_per_call": 2}]',
        "not a multiple of steps_per_call",
    ),
    "wrong type": ('def sweep(): return [{"steps": "many"}]', "steps=many"),
    "no dict": ("def sweep(): return [3]", "a point is a dict"),
    "twice the same": ('def sweep(): return [{}, {"seed": 0}]', "points 1 and 2 of the sweep"),
    "one folder": (
        'def sweep(): return [{"seed": 1, "workdir": "x"}, {"workdir": "x"}]',
        "runs/x;",
    ),
    "two folders": ('def sweep(): return [{}, {"workdir": "x"}]', "points 1 and 2 of the sweep"),
    "no points": ("def sweep(): return []", "has no points"),
    "no sweep": ("", "defines no sweep()"),
    "an empty folder": ('def sweep(): return [{"workdir": ""}]', "its workdir is ''; give a text"),
    "a folder that is a number": ('def sweep(): return [{"workdir": 1}]', "its workdir is 1;"),
    "a config that is a number": ('def sweep(): return [{"config": 3}]', "its config is 3;"),
    "one folder in two words": (
        'def sweep(): return [{"seed": 1, "workdir": "x"}, {"workdir": "y/../x"}]',
        "points 1 and 2 of the sweep",
    ),
    "nothing returned": ("def sweep(): pass", "its points are to be returned"),
    "a list": ("sweep = [{}]", "is no function; write def sweep(): return [...]"),
    "no argument": ("def sweep(argument): return [{}]", "needs an argument"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_points_are_one_sentence_and_nothing_is_listed(case, file, call):
    text, expected = BAD[case]
    code, output, error = call("sweep", f"--config={file(text)}")
    assert (code, output) == (2, "")
    assert expected in error
    assert error.count("\n") == 1


def test_seeds_do_not_meet_other_seeds(file):
    for text, argument, overrides in (
        (TWO, ":mnist5k,seed=0", []),
        ('def sweep(): return [{"seed": 2}]', "", []),
        (TWO, "", ["--config.seed=1"]),
    ):
        with pytest.raises(InputError, match="--seeds"):
            sweep.points(file(text) + argument, overrides, seeds=[0, 1])
    with pytest.raises(InputError, match="no config file nowhere"):
        sweep.points("nowhere.py")
    for seeds, sentence in (
        ([0, 1, 0], "seed 0 is given twice; give each of --seeds once"),
        ([0, -1], "seed=-1 must lie between 0 and 4294967295"),
    ):
        with pytest.raises(InputError, match=sentence):
            sweep.points("fixmatch:mnist5k", seeds=seeds)


def test_points_may_have_numbers_of_numpy(tmp_path):
    path = tmp_path / "points.py"
    path.write_text(
        "import numpy as np\n"
        "def sweep():\n"
        "    area = tuple(np.array([0.25, 1.0]))\n"
        "    return [{'config': 'fixmatch:mnist5k', 'views.weak.area': area}]\n"
    )
    (point,) = sweep.points(str(path))
    assert point.config.views.weak.area == (0.25, 1.0)
    assert "--config.views.weak.area=(0.25, 1.0)" in point.words


def test_points_equal_but_for_their_seed_are_grouped(file, call):
    found = sweep.points(file(TWO) + ":mnist5k", seeds=[0, 1, 2])
    groups = sweep.grouped(found, 2)
    assert [
        [(point.config.seed, point.config.algorithm.threshold) for point in group]
        for group in groups
    ] == [[(0, 0.9), (1, 0.9)], [(0, 0.95), (1, 0.95)], [(2, 0.9)], [(2, 0.95)]]
    assert [len(group) for group in sweep.grouped(found)] == [1] * 6
    words = ["sweep", f"--config={file(TWO)}:mnist5k", "--seeds", 0, 1, 2, "--vmap-seeds", 8]
    code, output, _ = call(*words)
    assert code == 0
    lines = [shlex.split(line) for line in output.splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert line[:2] == ["jaxmatch", "train"]
        assert line.count("--and") == 2
        assert [word[-6:] for word in line if word.startswith("--config=")] == [
            "seed=0",
            "seed=1",
            "seed=2",
        ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fixmatch:mnist5k", "--vmap-seeds=0"], "--vmap-seeds=0 must be at least 1"),
        (["selfmatch:mnist5k,labels=40", "--vmap-seeds=2"], "runs in stages"),
        (["fixmatch:mnist5k", "--vmap-seeds=2", "--config.wandb=x"], "wandb"),
        (["fixmatch:folder:x", "--vmap-seeds=2", "--config.data.stream=True"], "streamed"),
    ],
)
@pytest.mark.parametrize("here", [[], ["--run"]])
def test_seeds_that_cannot_be_trained_together_are_refused(words, expected, here, call, tmp_path):
    config, *rest = words
    rest += [*here, f"--workdir={tmp_path}"]
    code, output, error = call("sweep", f"--config={config}", "--seeds", 0, 1, *rest)
    assert (code, output) == (2, "")
    assert expected in error
    assert error.count("\n") == 1


def test_one_process_a_group_of_what_is_not_complete(tmp_path, monkeypatch):
    trained, said = [], []
    found = sweep.points("supervised:mnist5k,labels=40", seeds=range(5), base=tmp_path)

    def finish(point):
        point.workdir.mkdir()
        ((_, config),) = sweep.chosen_stages(point).items()
        (point.workdir / "config.json").write_text(config.to_json())
        summary = SUMMARY | {"steps": config.steps}
        (point.workdir / "summary.json").write_text(json.dumps(summary))

    def train(words):
        trained.append([word for word in words if "seed=" in word or word == "--and"])
        if len(trained) == 1:  # one of the two fails
            finish(found[0])
            return 3
        return 0

    monkeypatch.setattr(sweep, "_train", train)
    finish(found[1])
    assert sweep.run(found, said.append, 2) == {found[2].workdir: "NaN or Inf"}
    config = "--config=supervised:mnist5k,labels=40,seed="
    assert trained == [[f"{config}0", "--and", f"{config}2"], [f"{config}3", "--and", f"{config}4"]]
    assert [text.partition("]")[0] for text in said] == ["[2/5", "[1/5", "[3/5", "[4/5", "[5/5"]
    assert "already complete" in said[0]


def tiny_sweep(path, data, points):
    """A sweep file of supervised runs of a second each."""
    tiny = {key: value for key, value in OVERRIDES.items() if not key.startswith("algorithm.")}
    points = [{"config": f"supervised:npz:{data},labels=16", **tiny, **point} for point in points]
    path.write_text(f"def sweep():\n    return {points!r}\n")
    return path


@pytest.fixture
def run_here(call, monkeypatch):
    """Runs a sweep from this process, its points with the tests' devices."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", str(jax.device_count()))
    return lambda *words: call(*words, "--run")


@pytest.mark.slow
def test_running_skips_continues_and_survives_a_failure(data, tmp_path, run_here):
    points = [{"seed": 0}, {"optim.learning_rate": 1e30}, {"seed": 1}]
    path = tiny_sweep(tmp_path / "sweep.py", data, points)
    words = ["sweep", f"--config={path}", f"--workdir={tmp_path / 'runs'}"]
    first, bad, last = [point.workdir for point in sweep.points(str(path), base=tmp_path / "runs")]

    code, output, error = run_here(*words)
    assert code == 1, error
    assert "1 of 3 runs did not finish" in error
    assert f"{bad} (NaN or Inf)" in error
    accuracy = [
        100 * json.loads((folder / "summary.json").read_text())["teacher"]["last"]
        for folder in (first, last)
    ]
    assert f"{sum(accuracy) / 2:.1f} ± " in output
    assert "2 (0, 1)" in output
    whole = read(last)

    # As if it had been interrupted after step 10.
    (last / "summary.json").unlink()
    for step in (15, 20):
        shutil.rmtree(last / "checkpoints" / str(step))
    tiny_sweep(path, data, [points[0], points[2]])
    before = snapshot(first)
    code, again, error = run_here(*words)
    assert code == 0, error
    assert again.split("seconds")[0] == output.split("seconds")[0]
    assert snapshot(first) == before
    assert f"{first}: already complete" in error
    assert "continuing from the checkpoint of step 10" in error
    accuracies = [
        [line["test/teacher/accuracy"] for line in lines] for lines in (whole, read(last))
    ]
    assert accuracies[0] == accuracies[1]


def test_a_folder_of_another_configuration_fails_alone(data, tmp_path):
    path = tiny_sweep(tmp_path / "sweep.py", data, [{"seed": 0}])
    (point,) = sweep.points(str(path), base=tmp_path)
    point.workdir.mkdir()
    at = Circumstances(side=8, one_side=True)
    (point.workdir / "config.json").write_text(
        json.dumps(to_json(with_usual_input(settle(point.config, at)[0])) | {"seed": 5})
    )
    said = []
    assert sweep.run([point], said.append) == {point.workdir: "bad input"}
    assert "another configuration" in said[0]


def test_a_run_in_stages_is_complete_once_all_are(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(sweep, "_train", lambda words: trained.append(words) or 0)
    (point,) = sweep.points("selfmatch:mnist5k,labels=40", seeds=[0], base=tmp_path)
    stages = [point.workdir / name for name in ("1_simclr", "2_fixmatch")]
    for count, folder in enumerate([*stages, point.workdir], 1):
        sweep.run([point])
        assert len(trained) == count
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps(SUMMARY | {"steps": 2**20}))
        if folder != point.workdir:
            config = sweep.chosen_stages(point)[folder]
            (folder / "config.json").write_text(config.to_json())
    said = []
    assert sweep.run([point], said.append) == {}
    assert len(trained) == 3
    assert "already complete" in said[0]


@pytest.mark.slow  # it waits for a process that imports the library
def test_files_of_the_current_folder_are_not_imported(data, tmp_path, monkeypatch):
    for name in ("jax", "ml_collections", "absl", "jaxmatch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a foreign file was executed')")
    path = tiny_sweep(tmp_path / "sweep.py", data, [{}])
    (point,) = sweep.points(str(path), base=tmp_path)
    point.workdir.mkdir()
    (point.workdir / "config.json").write_text('{"seed": 5}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    assert sweep._train(sweep._words([point])) == InputError.exit_code


@pytest.mark.slow
def test_running_several_seeds_in_one_program(data, tmp_path, run_here):
    path = tiny_sweep(tmp_path / "sweep.py", data, [{}])
    words = ["sweep", f"--config={path}", f"--workdir={tmp_path / 'runs'}", "--vmap-seeds=2"]
    code, output, error = run_here(*words, "--seeds", 0, 1, 2)
    assert code == 0, error
    assert "3 (0, 1, 2)" in output
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 3
    code, again, error = run_here(*words, "--seeds", 0, 1, 2)
    assert (code, again) == (0, output)
    assert error.count("already complete") == 3


@pytest.mark.slow
def test_sigterm_reaches_the_run_and_ends_the_sweep(data, tmp_path):
    long = {"steps": 60000, "save_every": 60000}
    path = tiny_sweep(tmp_path / "sweep.py", data, [long, {**long, "seed": 1}])
    first, second = [point.workdir for point in sweep.points(str(path), base=tmp_path / "runs")]
    words = ["sweep", f"--config={path}", f"--workdir={tmp_path / 'runs'}", "--run"]
    process = start_program(words)
    while process.poll() is None and not read(first):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, error = process.communicate()
    assert (process.returncode, output) == (143, ""), error
    assert "the same command continues" in error
    assert "after saving" in error
    assert len(list((first / "checkpoints").iterdir())) == 1
    assert not second.exists()
