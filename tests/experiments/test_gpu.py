"""The command for a GPU: what it runs, keeps, skips and repeats, on stand-ins for its parts."""

import json
import time
from importlib import metadata, util

import pytest

from experiments.gpu import __main__ as gpu
from experiments.gpu import augmentation, profile, wheels
from experiments.gpu.parts import PARTS, Part
from jaxmatch.augment.pixels import source as pixels

STAND_IN = """
import json, pathlib, subprocess, sys, time

name, *words = sys.argv[1:]
with open("journal.txt", "a") as journal:
    print(name, *words, file=journal)
print(json.dumps({"number": 1}), flush=True)
print("| a table |", flush=True)
if "fail" in words and not pathlib.Path("repaired").exists():
    sys.exit("a reason")
if "hang" in words:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path("child.txt").write_text(str(child.pid))
    print('{"cut": ', end="", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """The command over parts whose words are "fail", "hang" or none; returns (code, printed)."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    out = tmp_path / "out"

    def install(**words):
        for name in list(PARTS):
            monkeypatch.delitem(PARTS, name)
        for name, word in words.items():
            part = Part(
                module="stand_in",
                words=(name, *word.split(), "{folder}"),
                small=(name, "small"),
                seconds=2 if "hang" in word else 20,
                tells=f"what {name} tells",
            )
            monkeypatch.setitem(PARTS, name, part)

    def run(*words):
        code = 0
        try:
            gpu.main([f"--out={out}", *words])
        except SystemExit as error:
            code = error.code
        return code, capsys.readouterr().out

    run.install = install
    run.saved = lambda name: json.loads((out / f"{name}.json").read_text())
    run.asked = lambda: [
        line.split()[0] for line in (tmp_path / "journal.txt").read_text().splitlines()
    ]
    run.folder = tmp_path
    return run


def test_each_part_is_saved_with_what_it_needs_to_be_repeated(command):
    command.install(one="", two="")
    code, printed = command("--commit=abc")
    assert code == 0
    assert "## one: done" in printed
    assert "| a table |" in printed
    saved = command.saved("one")
    folder = command.folder / "out" / "one"
    assert saved["command"] == f"python -m stand_in one {folder}"
    assert saved["results"] == [{"number": 1}]
    assert saved["text"] == "| a table |"
    assert (saved["commit"], saved["seeds"], saved["outcome"]) == ("abc", [0], "done")
    assert saved["versions"]["jax"] == metadata.version("jax")
    assert saved["hardware"]["cores"] > 0
    assert command.asked() == ["one", "two"]


def test_done_parts_are_skipped_and_failed_ones_come_last(command):
    command.install(one="", two="fail")
    assert command("--parts=one,two")[0] == 1
    assert "a reason" in command.saved("two")["errors"]
    assert command.saved("two")["results"] == [{"number": 1}]
    command.install(one="", two="fail", three="")
    (command.folder / "repaired").touch()
    assert command()[0] == 0
    assert command.asked() == ["one", "two", "three", "two"]
    assert command.saved("two")["errors"] == ""
    command("--again", "--parts=one")
    assert command.asked()[4:] == ["one"]


@pytest.mark.slow
def test_a_part_out_of_time_ends_with_all_its_processes(command):
    command.install(one="hang", two="")
    assert command()[0] == 1
    saved = command.saved("one")
    assert saved["outcome"] == "time limit"
    assert saved["results"] == [{"number": 1}]
    assert saved["text"] == '| a table |\n{"cut":'
    child = int((command.folder / "child.txt").read_text())
    stopped = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < stopped:
        time.sleep(0.05)
    assert not is_alive(child)
    assert command.saved("two")["outcome"] == "done"


def is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_does_not_fit_into_the_time_left_does_not_begin(command):
    command.install(one="", two="hang")
    PARTS["two"] = Part(**{**vars(PARTS["two"]), "words": ("two",)})
    code, _ = command("--minutes=0.1")  # the first may take 20 s, the second 2 s
    assert code == 1
    assert command.asked() == ["two"]


def test_unknown_parts_are_refused(command):
    command.install(one="")
    assert command("--parts=one,tow")[0] == 2


def test_a_part_stopped_from_outside_leaves_the_others(command, monkeypatch):
    command.install(one="", two="")
    run = gpu.run

    def stopped(name, *rest):
        if name == "two":
            raise KeyboardInterrupt
        return run(name, *rest)

    monkeypatch.setattr(gpu, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        command()
    assert command.saved("one")["outcome"] == "done"
    assert not (command.folder / "out" / "two.json").exists()


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_parts_run_modules_that_exist(part):
    assert util.find_spec(part.module)
    assert 0 < part.seconds < 9.5 * 60  # for leases of ten minutes


def test_wheels_and_the_machine_have_all_that_a_run_imports():
    from packaging.requirements import Requirement

    carried = {*map(wheels.name_of, wheels.collected()), *wheels.SOURCES}
    needed, left = set(), [("jaxmatch", ""), ("mlxtend", "")]
    while left:
        package, extra = left.pop()
        for text in metadata.requires(package) or ():
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                name = wheels.name_of(one.name)
                extras = [(name, extra) for extra in ("", *sorted(one.extras))]
                left += [pair for pair in extras if pair not in needed]
                needed |= set(extras)
    needed = {name for name, _ in needed}
    assert needed <= carried | set(wheels.PRESENT)
    assert not carried & set(wheels.PRESENT)
    assert {"jax", "jaxlib", "numpy"} <= set(wheels.PRESENT)


@pytest.mark.slow
def test_views_are_forced_into_each_form():
    platform, found = pixels.by_platform, {}
    for form in augmentation.FORMS:
        with augmentation.chosen(form):
            found[form] = pixels.by_platform(lambda x: x + 1, lambda x: x + 2, 0)
    assert found == {"platform": 2, "products": 1, "gathers": 2}  # of a CPU gathers
    assert pixels.by_platform is platform


def test_kernels_are_those_of_the_streams_of_a_gpu():
    event = type("Event", (), {"stats": (), "duration_ns": 2.0, "name": "kernel"})
    operation = type("Event", (), {"stats": (("hlo_op", "x"),), "duration_ns": 3.0, "name": "x"})

    def plane(name, line, *events):
        line = type("Line", (), {"name": line, "events": events})
        return type("Plane", (), {"name": name, "lines": [line]})

    host = plane("/host:CPU", "tf_XLA", event(), operation())
    device = plane("/device:GPU:0", "Stream #7(Kernel)", event())
    scopes = plane("/device:GPU:0", "Source code", event())
    on_gpu = type("Profile", (), {"planes": [host, device, scopes]})
    on_cpu = type("Profile", (), {"planes": [host]})
    assert list(profile.kernels_of(on_gpu)) == [("kernel", 2.0)]
    assert list(profile.kernels_of(on_cpu)) == [("x", 3.0)]


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_small_sizes_run_from_end_to_end(tmp_path, name):
    if PARTS[name].module == "experiments.throughput.compare":
        pytest.importorskip("torch")
    gpu.main([f"--out={tmp_path}", "--small", f"--parts={name}"])
    saved = json.loads((tmp_path / f"{name}.json").read_text())
    assert saved["outcome"] == "done"
    assert saved["results"]
