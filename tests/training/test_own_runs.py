"""Runs on own images: settings chosen from them, minutes, first reports, longer runs."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from tiny_runs import train_tiny, without_extras, without_learning, write_data

from jaxmatch import load, train
from jaxmatch.cli.main import main
from jaxmatch.config.flags import from_flags
from jaxmatch.errors import InputError
from jaxmatch.record.metrics import read
from jaxmatch.training import pace

QUICK = ("model.depth=4", "model.width=1", "data.batch_size=4", "data.ratio=2", "devices=1")


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of coloured photographs of two sizes: 12 a class, 30 without a label."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.RandomState(0)
    for name, colour in (("cats", 200), ("dogs", 60)):
        for number in range(12):
            put(root / "train" / name / f"{number}.png", colour, random)
        for number in range(5):
            put(root / "test" / name / f"{number}.png", colour, random)
    for number in range(30):
        put(root / "unlabeled" / f"{number}.png", 200 if number % 2 else 60, random)
    return root


def put(path, colour, random):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.clip(random.normal(colour, 20, (20 + random.randint(2), 24, 3)), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def flags(*overrides):
    return [f"--config.{each}" for each in (*QUICK, *overrides)]


def config(photos, *overrides, recipe="pseudo_label", chosen="labels=8"):
    return from_flags(f"{recipe}:folder:{photos},{chosen}", flags(*overrides))[0]


def test_a_folder_trains_with_settings_chosen_from_its_images(photos, tmp_path, caplog):
    asked = config(photos, "steps=3", recipe="supervised")
    summary = train(asked, tmp_path / "run")
    assert summary["steps"] == 3
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["size"], saved["data"]["image_size"]) == ("small", 16)  # a multiple of 8, to 20
    images = load(tmp_path / "run").config
    assert images.data.mean == pytest.approx((0.5,) * 3, abs=0.1)
    assert all(0.05 < value < 0.4 for value in images.data.std)
    text = caplog.text
    assert "size=small, chosen for a CPU" in text
    assert re.search(r"compiled the step in \d+ s; it needs [\d.]+ GB of memory", text)
    # the same command again: nothing is chosen anew
    assert train(asked, tmp_path / "run") == summary


@pytest.mark.slow
def test_the_first_report_follows_the_first_step_whatever_the_periods(photos, tmp_path):
    long = ("steps=4", "steps_per_call=4", "log_every=4", "eval_every=4", "save_every=4")
    train(config(photos, *long), tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "step 1/4, " in log
    assert [line["step"] for line in read(tmp_path / "run")] == [4]


@pytest.mark.slow
def test_minutes_choose_the_steps_and_a_second_call_keeps_them(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(pace.Run, "measure", lambda run, call, times: 5.0)
    asked = config(photos, "minutes=10.0")
    monkeypatch.setattr(pace, "EVALUATIONS", 20)
    summary = train(asked, tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert 20 <= saved["steps"] <= 10 * 60 / 5
    assert saved["steps"] % 20 == 0
    assert summary["teacher"]["evaluations"] == 20
    assert train(asked, tmp_path / "run") == summary
    with pytest.raises(InputError, match=r"minutes: 10\.0 -> 2"):
        train(config(photos, "minutes=2.0"), tmp_path / "run")


def test_too_few_minutes_are_refused_with_the_times(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(pace.Run, "measure", lambda run, call, times: 9.0)
    with (
        without_learning(),
        pytest.raises(InputError, match=r"a step takes 9 s, .*give more minutes"),
    ):
        train(config(photos, "minutes=1"), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_evaluations_take_a_part_and_the_last_one_all(photos, tmp_path):
    few = ("steps=2", "eval_every=1", "data.eval_images=3")
    train(config(photos, *few), tmp_path / "run")
    first, last = read(tmp_path / "run")
    assert (first["test/images"], "test/images" in last) == (3, False)
    part, whole = (line["test/student/accuracy"] for line in (first, last))
    assert part * 3 == pytest.approx(round(part * 3))
    assert whole * 10 == pytest.approx(round(whole * 10))


PCL = {
    "method": "pcl",
    "chosen": "",
    "algorithm__queue": 40,
    "algorithm__clusters": "(5,9)",
    "algorithm__refresh_steps": 5,
    "algorithm__start_step": 1,
    "optim__warmup_steps": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("method", [{}, PCL], ids=["fixmatch", "pcl"])
def test_a_run_at_a_constant_rate_goes_on_for_more_steps(method, tmp_path):
    data = write_data(tmp_path / "colours.npz")
    constant = {"optim__schedule": "constant", **method}
    train_tiny(data, tmp_path / "long", steps=20, **constant)
    train_tiny(data, tmp_path / "short", steps=10, **constant)
    longer = train_tiny(data, tmp_path / "short", steps=20, **constant)
    assert longer["steps"] == 20
    one, other = (
        [{k: v for k, v in line.items() if "time/" not in k} for line in read(tmp_path / name)]
        for name in ("long", "short")
    )
    assert one == other


@pytest.mark.slow
def test_a_run_along_a_cosine_cannot_go_on_and_keeps_its_files(tmp_path):
    data = write_data(tmp_path / "colours.npz")
    quick = {"method": "supervised", "devices": 1}
    train_tiny(data, tmp_path / "run", steps=10, **quick)
    before = (tmp_path / "run" / "summary.json").read_bytes()
    with pytest.raises(InputError, match=r"cannot be extended because optim\.schedule"):
        train_tiny(data, tmp_path / "run", steps=20, **quick)
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


def test_steps_on_the_command_line_need_nothing_else(photos, tmp_path, capsys):
    words = [f"--config=supervised:folder:{photos},labels=8", *flags("steps=3")]
    main(["train", *words, f"--workdir={tmp_path / 'run'}"])
    assert str(tmp_path / "run") in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_older_than_a_setting_goes_on_as_it_began(photos, tmp_path):
    """A run that began before data.background ignores transparency to its end."""
    asked = config(photos, "steps=2")
    train(asked, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    values = json.loads(file.read_text())
    del values["data"]["background"]
    file.write_text(json.dumps(values))
    (tmp_path / "run" / "summary.json").unlink()
    train(asked, tmp_path / "run")
    assert json.loads(file.read_text())["data"]["background"] == []
