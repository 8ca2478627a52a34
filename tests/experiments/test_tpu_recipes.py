"""The table of all recipes: which there are, how each fits, what the lines say."""

import json
import sys

import pytest

from experiments.tpu import recipes
from jaxmatch.training.footprint import SURE

MEMORY = {"held": 300_000_000}
LINE = {
    "config": "fixmatch:tfds:cifar10",
    "topology": "v5e:2x4",
    "what": "step",
    "commit": "0",
    "estimate": {"state": 10_000_000, "arrays": 280_000_000},
}


@pytest.mark.slow
def test_every_method_has_a_recipe():
    found = recipes.recipes()
    assert len(found) == len(set(found)) >= 41
    methods = {name.partition(":")[0] for name in found}
    named = {path.stem for path in recipes.CONFIGS.glob("[!_]*.py")}
    assert named - methods == {"selfmatch"}  # it has stages, each of which is there
    assert {"simmatch:tfds:imagenet2012", "mixmatch:tfds:cifar10"} <= set(found)
    assert "mixmatch:tfds:imagenet2012" not in found


@pytest.mark.parametrize(
    ("recipe", "chips", "fitted"),
    [
        ("fixmatch:tfds:cifar10", 64, "fixmatch:tfds:cifar10"),
        ("fixmatch:tfds:cifar10", 256, "fixmatch:tfds:cifar10,scale=4"),
        ("simmatch:tfds:imagenet2012", 256, "simmatch:tfds:imagenet2012,scale=4"),
    ],
)
def test_a_batch_is_scaled_to_divide_over_the_chips(recipe, chips, fitted):
    assert recipes.fitting(recipe, chips) == fitted


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (
            "Traceback\njax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Ran out of memory on HBM, "
            "the total memory required for HLO temporaries (690.00G) exceeds available HBM "
            "(15.75G).\n",
            690 * 2**30,
        ),
        (
            "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran "
            "out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G.",
            round(20.5 * 2**30),
        ),
        ("jaxmatch.errors.InputError: the batch of 7 does not divide", None),
    ],
)
def test_the_compilers_message_is_kept(text, held):
    found = recipes.failure("Traceback (most recent call last):\n" + text)
    assert found["held"] == held
    assert found["error"].startswith(text.removeprefix("Traceback\n")[:40])


def test_the_table_says_what_fits(capsys, monkeypatch):
    lines = [
        {**LINE, "memory": {"held": 1}, "static_ms": 9.0},  # an older one
        {**LINE, "memory": MEMORY, "static_ms": 3.654},
        {**LINE, "topology": "v5e:1x1", "error": "RESOURCE_EXHAUSTED", "held": 20_000_000_000},
        {**LINE, "config": "swav:tfds:imagenet2012,scale=2", "refused": "a device has"},
        {**LINE, "config": "swav:tfds:imagenet2012", "topology": "v5e:1x1"},
        # Less effort counts more than an estimate, and less than a full compilation.
        {**LINE, "memory": {"held": 2}, "static_ms": 9.0, "effort": -1},
        {**LINE, "config": "vat:tfds:cifar10", "memory": MEMORY, "static_ms": 3, "effort": -1},
        {**LINE, "config": "vat:tfds:cifar10"},
    ]
    monkeypatch.setattr(recipes, "lines", lambda: lines)
    recipes.main(["--table"])
    assert capsys.readouterr().out.splitlines() == [
        "| recipe | v5e:1x1, 1 chips | v5e:2x4, 8 chips |",
        "|---|---|---|",
        "| `fixmatch:tfds:cifar10` | **20,000** (290) | 300 (290), 3.65 ms |",
        "| `swav:tfds:imagenet2012` | (290) | refused (290; scale=2) |",
        "| `vat:tfds:cifar10` |  | ~300 (290) |",
    ]


def test_the_readme_has_the_table_of_what_is_recorded():
    readme = recipes.RECORDED.with_name("README.md").read_text()
    assert recipes.table(recipes.lines()) in readme


def test_the_command_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    record = tmp_path / "recipes.jsonl"
    done = {**LINE, "memory": MEMORY, "static_ms": 3.0}
    known = [done, {**LINE, "config": "uda:tfds:cifar10"}]  # the second is estimated alone
    record.write_text("".join(json.dumps(line) + "\n" for line in known))
    monkeypatch.setattr(recipes, "RECORDED", record)
    monkeypatch.setattr(recipes.topology, "devices", lambda where: [])
    taken = []
    monkeypatch.setattr(
        recipes, "compiled", lambda name, *_: taken.append(name) or {**LINE, "config": name}
    )
    recipes.main(["--topology=v5e:2x4", "fixmatch:tfds:cifar10", "uda:tfds:cifar10"])
    assert taken == ["uda:tfds:cifar10"]
    assert len(record.read_text().splitlines()) == 3
    assert json.loads(capsys.readouterr().out)["config"] == "uda:tfds:cifar10"
    recipes.main(["--topology=v5e:2x4", "--estimate", "uda:tfds:cifar10"])
    assert len(taken) == 1
    record.write_text(json.dumps({**done, "effort": -1}) + "\n")
    recipes.main(["--topology=v5e:2x4", "--less-effort", "fixmatch:tfds:cifar10"])
    assert len(taken) == 1
    recipes.main(["--topology=v5e:2x4", "fixmatch:tfds:cifar10"])
    assert taken[1:] == ["fixmatch:tfds:cifar10"]


def test_recorded_estimates_of_large_programs_agree_with_the_compiler():
    """Nothing that fits is refused; above 2 GB no estimate is 20% too low or 30% too high."""
    limit, compared = 15.75 * 2**30, 0
    for line in recipes.lines():
        if "memory" not in line or not line["topology"].startswith("v5e"):
            continue
        guess, held = sum(line["estimate"].values()), line["memory"]["held"]
        assert guess <= SURE * limit, line["config"]
        if held > 2e9 and "effort" not in line:
            compared += 1
            assert 0.8 < guess / held < 1.3, (line["config"], line["topology"])
    assert compared >= 10


@pytest.mark.slow
def test_a_recipe_that_no_chip_has_room_for_is_not_compiled(tmp_path, monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setattr(recipes, "RECORDED", tmp_path / "recipes.jsonl")
    monkeypatch.setattr(sys, "executable", "no-such-program")
    recipes.main(["--topology=v5e:2x4", "byol:tfds:imagenet2012"])
    (line,) = recipes.lines()
    assert "16,911,433,728 bytes" in line["refused"]
