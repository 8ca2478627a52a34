"""Runs trained by one program: equal to separate ones, and none harms another."""

import json
import logging
import os
import shutil
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close
from tiny_runs import (
    PERIOD,
    arguments,
    configuration,
    snapshot,
    start_program,
    state_of,
    train_tiny,
    without_extras,
)

from jaxmatch import load
from jaxmatch.cli import main as cli
from jaxmatch.config.flags import from_flags
from jaxmatch.errors import InputError, JaxmatchError, NonFiniteError, Terminated
from jaxmatch.record.metrics import read
from jaxmatch.training import run, together
from jaxmatch.training.shared import differing

# The labels alone compile in half the time.
SHORT = {"steps": 3 * PERIOD, "devices": 2, "method": "supervised"}


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


def train_seeds(data, folder, seeds, **options):
    """Train the seeds together, each in the folder of its number."""
    options = SHORT | options
    runs = [(configuration(data, seed=seed, **options), folder / str(seed)) for seed in seeds]
    return together.train(runs)


@pytest.fixture(scope="module")
def three(data, tmp_path_factory):
    """Seeds 0 to 2, of which one device takes two; to be read, not changed."""
    folder = tmp_path_factory.mktemp("three")
    train_seeds(data, folder, (0, 1, 2))
    return folder


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """Some of the same, each by itself."""
    folder = tmp_path_factory.mktemp("alone")
    for seed in (0, 2):
        train_tiny(data, folder / str(seed), seed=seed, **SHORT)
    return folder


def assert_same_run(found, expected, steps=(PERIOD, SHORT["steps"]), tolerance=1e-4):
    """Folders of runs whose states and metrics agree to the tolerance."""
    for step in steps:
        assert_close(state_of(found, step), state_of(expected, step), tolerance)
    for one, other in zip(read(found), read(expected), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if name.startswith(("loss/", "optim/", "step")):
                assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name


def names(folder):
    """All files of a run folder but those whose names tell the time or depend on sizes."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("events/") and "/arrays/" not in name}


def test_runs_together_equal_separate_ones(three, alone):
    for seed in ("0", "2"):
        assert_same_run(three / seed, alone / seed)
        assert names(three / seed) == names(alone / seed)
        for file in ("config.json", "split.json"):
            assert (three / seed / file).read_text() == (alone / seed / file).read_text()
        summaries = [
            json.loads((folder / seed / "summary.json").read_text()) for folder in (three, alone)
        ]
        assert summaries[0].keys() == summaries[1].keys()
        assert summaries[0]["forward_images"] == summaries[1]["forward_images"]
    different = [state_of(three / seed).params for seed in ("0", "1")]
    with pytest.raises(AssertionError):
        assert_close(*different, 1e-2)


def mixed_split(folder, seed):
    """A split file whose labels are in another order for each seed."""
    indices = np.random.default_rng(seed).permutation(16).tolist()
    path = folder / f"split{seed}.json"
    path.write_text(json.dumps({"indices": indices}))
    return path


@pytest.fixture
def as_on_accelerators(monkeypatch):
    """The program that accelerators get: vmap over a device's seeds, scan over steps."""
    monkeypatch.setattr(together, "on_cpu", lambda mesh: False)


@pytest.mark.slow
def test_vmap_of_seeds_with_labels_of_their_own(data, tmp_path, as_on_accelerators):
    options = {"method": "simmatch", "algorithm__instance_start_step": 2, "steps": PERIOD}
    options |= {"chosen": "", "devices": 1, "algorithm__alignment_length": 8}
    for name, seed in (("0", 0), ("1", 1), ("alone", 1)):
        (tmp_path / name).mkdir()
        indices = np.random.default_rng(seed).permutation(16).tolist()
        (tmp_path / name / "split.json").write_text(json.dumps({"indices": indices}))
    train_seeds(data, tmp_path, (0, 1), **options)
    train_tiny(data, tmp_path / "alone", seed=1, **options)
    assert_same_run(tmp_path / "1", tmp_path / "alone", steps=(PERIOD,))
    banks = [state_of(tmp_path / seed).memory[0].labels for seed in ("0", "1")]
    assert (banks[0] != banks[1]).any()


@pytest.mark.slow
def test_methods_that_look_at_all_images_between_calls(data, tmp_path, as_on_accelerators):
    options = {"method": "pcl", "chosen": "", "devices": 1, "algorithm__queue": 40}
    options |= {"algorithm__clusters": "(5,9)", "algorithm__refresh_steps": PERIOD}
    train_seeds(data, tmp_path, (0, 1), algorithm__start_step=0, **options)
    train_tiny(
        data, tmp_path / "alone", **SHORT | options | {"seed": 1, "algorithm__start_step": 0}
    )
    assert_same_run(tmp_path / "1", tmp_path / "alone", steps=(PERIOD,))


@pytest.mark.slow
def test_runs_that_read_another_run(data, alone, tmp_path, as_on_accelerators):
    """An encoder to start from and a network that labels images, the same ones for all seeds."""
    options = {"devices": 1, "steps": PERIOD}
    for name, more in (
        ("started", {"method": "supervised", "init_from": alone / "0"}),
        ("taught", {"method": "distillation", "frozen__teacher": alone / "0"}),
    ):
        folder = tmp_path / name
        train_seeds(data, folder, (0, 1), **options | more)
        train_tiny(data, folder / "alone", seed=1, **options | more)
        assert_same_run(folder / "1", folder / "alone", steps=(PERIOD,))


@pytest.mark.slow
def test_ordinary_training_continues_and_is_continued(data, three, tmp_path):
    def cut(seed):
        for step in (2 * PERIOD, 3 * PERIOD):
            shutil.rmtree(tmp_path / seed / "checkpoints" / str(step))
        (tmp_path / seed / "summary.json").unlink()

    for seed in ("0", "1"):
        shutil.copytree(three / seed, tmp_path / seed)
    cut("0")
    train_tiny(data, tmp_path / "0", seed=0, **SHORT)
    assert f"checkpoint of step {PERIOD}" in (tmp_path / "0" / "log.txt").read_text()
    assert_same_run(tmp_path / "0", three / "0")

    # Seed 0 from its first checkpoint, seed 1 complete, seed 2 from the start, so alone at its end.
    cut("0")
    summaries = train_seeds(data, tmp_path, (0, 1, 2))
    for seed in ("0", "2"):
        assert_same_run(tmp_path / seed, three / seed)
    assert summaries == [
        json.loads((tmp_path / str(seed) / "summary.json").read_text()) for seed in range(3)
    ]
    before = snapshot(tmp_path)
    assert train_seeds(data, tmp_path, (0, 1, 2)) == summaries
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_a_run_that_diverges_ends_alone(data, three, tmp_path, caplog, monkeypatch):
    refreshed = run.Run.refreshed

    def broken(self, state):
        if self.folder.name == "0" and self.step == PERIOD:
            return state.replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params))
        return refreshed(self, state)

    monkeypatch.setattr(run.Run, "refreshed", broken)
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(NonFiniteError) as caught:
        train_seeds(data, tmp_path, (0, 1))
    assert f"{tmp_path / '0'}: a parameter became NaN or Inf" in str(caught.value)
    assert str(tmp_path / "1") not in str(caught.value)
    assert "The other runs go on." in caplog.text
    assert not (tmp_path / "0" / "summary.json").exists()
    assert_same_run(tmp_path / "1", three / "1")
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize(
    "when",
    [
        "evaluate",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("begin", "with_probes")),
    ],
)
@pytest.mark.slow
def test_an_unexpected_error_of_one_run_ends_it_alone(
    data, three, tmp_path, caplog, monkeypatch, when
):
    """While it trains, before its first step, and after its last."""
    method, calls = getattr(run.Run, when), []

    def broken(self, *arguments):
        if self.folder.name == "0":
            calls.append(None)
            if when != "evaluate" or len(calls) == 2:
                raise ZeroDivisionError("of a library")
        return method(self, *arguments)

    monkeypatch.setattr(run.Run, when, broken)
    with pytest.raises(JaxmatchError) as caught:
        train_seeds(data, tmp_path, (0, 1))
    assert type(caught.value) is JaxmatchError
    assert caught.value.exit_code == 1
    assert str(caught.value) == f"{tmp_path / '0'}: ZeroDivisionError('of a library')"
    assert "an unexpected error. The other runs go on." in caplog.text
    assert "Traceback" in caplog.text
    assert "ZeroDivisionError: of a library" in caplog.text
    assert_same_run(tmp_path / "1", three / "1")
    assert (tmp_path / "1" / "summary.json").exists()
    monkeypatch.setattr(run.Run, when, method)  # and the same command goes on with the other
    train_seeds(data, tmp_path, (0, 1))
    assert_same_run(tmp_path / "0", three / "0")


def test_which_error_tells_those_of_all_runs(tmp_path):
    bad, left, odd = NonFiniteError("NaN"), Terminated("saved"), KeyError("x")
    for errors, kind in (
        ([bad], NonFiniteError),
        ([bad, odd], JaxmatchError),
        ([odd, bad, left], Terminated),
    ):
        runs = dict(enumerate(errors))
        with pytest.raises(kind) as caught:
            together._raise(runs, {number: tmp_path / str(number) for number in runs})
        assert type(caught.value) is kind
        for number in runs:
            assert str(tmp_path / str(number)) in str(caught.value)


@pytest.mark.slow
def test_sigterm_saves_all(data, tmp_path, monkeypatch):
    evaluate = run.Run.evaluate

    def signal_and_evaluate(self, *given):
        if self.folder.name == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *given)

    monkeypatch.setattr(run.Run, "evaluate", signal_and_evaluate)
    with pytest.raises(Terminated) as caught:
        train_seeds(data, tmp_path, (0, 1), save_every=SHORT["steps"])
    assert str(caught.value).count("after saving") == 2
    assert [load(tmp_path / seed).step for seed in ("0", "1")] == [2 * PERIOD] * 2


def test_equal_arrays_are_held_once(data, tmp_path, monkeypatch):
    groups = []
    init = together.Group.__init__

    def remember(self, runs):
        groups.extend(runs)
        init(self, runs)
        raise InputError("enough")

    monkeypatch.setattr(together.Group, "__init__", remember)
    with pytest.raises(InputError, match="enough"):
        train_seeds(data, tmp_path, (0, 1, 2), method="pseudo_label")
    assert list(tmp_path.iterdir()) == []
    first, *others = groups
    for other in others:
        assert other.source is first.source
        assert other.data.unlabeled_images.rows is first.data.unlabeled_images.rows
        assert other.held_out.sets["test"][0].rows is first.held_out.sets["test"][0].rows
        assert other.data.labeled_images.rows is not first.data.labeled_images.rows
    differs = differing([run.data for run in groups])
    assert differs.labeled_images.rows
    assert not differs.labeled_labels  # a balanced split lists the classes in order
    assert not differs.unlabeled_images.rows
    assert differs.unlabeled_labels  # those of labeled images are hidden


@pytest.mark.parametrize(
    ("seeds", "devices", "batch", "expected"),
    [
        (8, 4, 8, 4),
        (2, 4, 8, 2),  # no device without a seed
        (3, 4, 8, 4),
        (5, 4, 8, 4),
        (6, 4, 8, 4),
        (3, 4, 9, 3),
        (8, 4, 7, 1),  # all devices evaluate each run
    ],
)
def test_seeds_are_laid_over_devices(seeds, devices, batch, expected, data):
    config = configuration(data, devices=devices, data__batch_size=batch)
    assert together.seed_devices(config, seeds) == expected


def test_what_cannot_be_trained_together_is_refused(data, tmp_path):
    plain = configuration(data)
    stages = ["selfmatch:mnist5k,labels=40"]
    refused = {
        "equal but for their seed": configuration(data, algorithm__threshold=0.5),
        "streamed": configuration(data, data__stream=True),
        "wandb": configuration(data, wandb="project"),
        "stages": from_flags(*stages, [])[0],
        "the same folder": configuration(data, seed=1),
        "different numbers of images": configuration(data, seed=1),
    }
    for expected, other in refused.items():
        folders = [tmp_path / "0", tmp_path / "1"]
        if expected == "the same folder":
            folders[1] = folders[0]
        if expected == "different numbers of images":
            folders[1].mkdir()
            (folders[1] / "split.json").write_text(json.dumps({"indices": [0, 1, 2, 3]}))
        with pytest.raises(InputError, match=expected) as caught:
            together.train(list(zip([plain, other], folders, strict=True)))
        assert str(caught.value).count(". ") == 0
    assert [path.name for path in tmp_path.rglob("*")] == ["1", "split.json"]
    with jax.default_prng_impl("rbg"), pytest.raises(InputError, match="threefry2x32"):
        together.check([plain])


def test_runs_that_scale_their_images_differently_are_refused(tmp_path):
    def of(mean):
        program = SimpleNamespace(state={}, mean=mean, std=(0.25,))
        return SimpleNamespace(folder=tmp_path, data={}, program=program)

    together.check_shapes([of((0.5,)), of((0.5,))])
    with pytest.raises(InputError, match=r"--config\.data\.mean='\(0\.5,\)'"):
        together.check_shapes([of((0.5,)), of((0.4,))])


def test_the_command_line_joins_runs(data, tmp_path, capfd, monkeypatch):
    given = []
    monkeypatch.setattr(together, "train", lambda runs: given.extend(runs) or [{"steps": 3}] * 2)
    runs = [[*arguments(data, seed=seed), f"--workdir={tmp_path / str(seed)}"] for seed in (0, 1)]
    cli.main(["train", "--json", *runs[0], "--and", *runs[1]])
    assert capfd.readouterr().out == '{"steps": 3}\n' * 2
    assert [(config.seed, folder.name) for config, folder in given] == [(0, "0"), (1, "1")]
    for bad, expected in (
        (["report", "x", "--and", "y"], "--and joins runs of jaxmatch train"),
        (["train", *runs[0], "--multihost", "--and", *runs[1]], "several processes"),
        (["train", *runs[0], "--and", *runs[1], "nonsense"], "unknown argument 'nonsense'"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(bad)
        assert caught.value.code == 2
        assert expected in capfd.readouterr().err


@pytest.mark.slow
def test_sigterm_reaches_a_program_of_several_runs(data, tmp_path):
    words = [arguments(data, seed=seed, steps=60000, save_every=60000) for seed in (0, 1)]
    first, second = ([*run, f"--workdir={tmp_path / str(seed)}"] for seed, run in enumerate(words))
    process = start_program(["train", *first, "--and", *second])
    while process.poll() is None and not read(tmp_path / "1"):
        pass
    process.send_signal(signal.SIGTERM)
    output, error = process.communicate()
    assert (process.returncode, output) == (143, ""), error
    assert error.count("after saving") == 2
    assert all(load(tmp_path / seed).step > 0 for seed in ("0", "1"))


def test_the_last_run_stops_where_the_same_command_continues(data, tmp_path, monkeypatch):
    """Also on a CPU, where a run by itself may stop at any step."""
    collect, after = run.Run.collect, run.Run.after

    def diverging(self, meter):
        if self.folder.name == "0" and self.step > PERIOD:
            raise self.diverged("loss/total", self.step)
        return collect(self, meter)

    def signalling(self, *given):
        if self.folder.name == "1" and self.step == PERIOD:
            os.kill(os.getpid(), signal.SIGTERM)
        return after(self, *given)

    monkeypatch.setattr(run.Run, "collect", diverging)
    monkeypatch.setattr(run.Run, "after", signalling)
    for step in (3 * PERIOD, 4 * PERIOD):  # the failed run is not complete, so two run again
        with pytest.raises(JaxmatchError) as caught:
            train_seeds(data, tmp_path, (0, 1), steps=4 * PERIOD)
        assert "loss/total became NaN" in str(caught.value)
        assert load(tmp_path / "1").step == step
