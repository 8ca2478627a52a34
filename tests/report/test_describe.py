"""Describing a configuration: counts that match a real state, without compiling anything."""

import copy
import io

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny_runs import configuration

from jaxmatch.config.flags import from_flags
from jaxmatch.errors import InputError
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.record.settled import settled, standardized
from jaxmatch.report.describe import describe, page


def test_counts_match_a_real_state(data):
    config = configuration(data)
    found = describe(config)
    config = standardized(settled(config)[0], np.load(data)["x_train"])
    state = jax.jit(Program.build(config, run_data.load_new(config).facts()).init)()
    leaves = jax.tree.leaves(state.params)
    assert found["parameters"] == sum(leaf.size for leaf in leaves)
    assert sorted(map(tuple, found["shapes"].values())) == sorted(leaf.shape for leaf in leaves)
    assert found["shapes"]["stem/kernel"] == [3, 3, 3, 16]
    size = lambda tree: sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    for name in ("params", "stats", "teacher", "optimizer", "memory", "policy"):
        assert found["bytes"][name] == size(getattr(state, name)), name
    assert found["bytes"]["images"] == (16 + 64) * (8 * 8 * 3 + 4)
    assert found["batch"] == {"labeled": 8, "unlabeled": 16}
    assert found["devices"] == 4


def test_arithmetic_grows_with_the_batch_and_nothing_is_compiled(data):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    one, two = (
        describe(configuration(data, method="pseudo_label", data__batch_size=size))
        for size in (8, 16)
    )
    convolution = 2 * (3 * 3 * 3) * 16 * 8 * 8  # of one image, forward
    assert one["operations_per_step"] > 2 * 24 * convolution
    assert two["operations_per_step"] == pytest.approx(2 * one["operations_per_step"], rel=0.2)
    assert compiled == []


@pytest.fixture(scope="module")
def supervised(data):
    return describe(configuration(data, method="supervised"))


@pytest.fixture
def found(supervised):
    """A description, to be changed."""
    return copy.deepcopy(supervised)


def text_of(content, width=80):
    """The page as plain text."""
    file = io.StringIO()
    Console(file=file, width=width, highlight=False, markup=False).print(content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("classes", "rows"), [pytest.param(2, 2, marks=pytest.mark.slow), (20, 20), (1000, 13)]
)
def test_a_page_of_many_classes_is_short(found, classes, rows):
    counts = dict.fromkeys(("labeled", "unlabeled", "validation", "test"), 3)
    names = [f"class [{number}]" for number in range(classes)]
    names[1] += " of a name that is so long that it must be wrapped to fit into eighty columns"
    found["data"] |= {"classes": names, "counts": dict.fromkeys(names, counts)}
    text = text_of(page(found, "supervised:npz:x.npz"))
    assert max(map(len, text.splitlines())) <= 80
    assert sum(line.startswith("  class [") for line in text.splitlines()) == rows
    assert (f"... {classes - rows:,} more" in text) == (classes > rows)
    assert f"class [{classes - 1}]" in text


def test_a_page_tells_of_left_out_files_and_notes(found):
    found["data"] |= {"left_out": {"hidden": 2, "no image": 31}, "notes": ["First.", "Second."]}
    found["data"] |= {"test_drawn": True, "sizes": [{"height": 4, "width": 6, "count": 88}]}
    found["data"]["modes"] = {"gray": 88}
    lines = [" ".join(line.split()) for line in text_of(page(found, "x")).splitlines()]
    for line in ("left out 2 hidden, 31 no image", "note First.", "note Second."):
        assert line in lines
    text = " ".join(lines)
    assert "24 test images (drawn from the training images)" in text
    assert "6x4, gray; used at 8x8" in text


def test_each_stage_has_a_page(found):
    text = text_of(page({"1_simclr": found, "2_fixmatch": found}, "stages"))
    places = [text.index(f"stages: {name}") for name in ("1_simclr", "2_fixmatch")]
    assert places == sorted(places)
    assert text.count("What will run") == 2


def test_a_run_of_some_minutes_has_no_steps_yet(data):
    config, _ = from_flags(
        f"supervised:npz:{data},labels=16", ["--config.minutes=3", "--config.model.depth=4"]
    )
    found = describe(config)
    assert (found["run"]["minutes"], found["run"]["steps"]) == (3.0, None)
    text = text_of(page(found, "a"))
    assert "as many as take 3 minutes, which the run measures as it begins" in " ".join(
        text.split()
    )
    assert "1,200" not in text


def test_what_a_run_begins_from_is_looked_at(data, tmp_path):
    config = configuration(data, init_from=str(tmp_path / "none"))
    with pytest.raises(InputError, match="none"):
        describe(config)
    with pytest.raises(InputError, match="none"):
        describe(configuration(data, method="distillation", frozen__teacher=tmp_path / "none"))
    found = describe(configuration(data))
    assert found["run"]["begins_from"] == []


@pytest.mark.parametrize("key", ["directory", "extra"])
def test_settings_of_other_sources_are_refused(data, key):
    options = {"data__directory": "/nowhere"} if key == "directory" else {"data__extra": True}
    with pytest.raises(InputError, match=rf"data\.{key}=.* has no effect on npz:.*; leave it out"):
        describe(configuration(data, **options))


def test_bad_input_is_refused(data):
    with pytest.raises(InputError, match="steps=0"):
        describe(configuration(data, steps=0))
