"""Every key of a configuration is documented, and listed by ``describe --keys``."""

import copy
import json

import pytest
from ml_collections import ConfigDict

from jaxmatch.algorithms import ALGORITHMS
from jaxmatch.cli.main import main
from jaxmatch.config.dotted import flatten
from jaxmatch.config.flags import from_flags
from jaxmatch.config.keys import attribute_meanings, documented, kind_text
from jaxmatch.config.recipe import make
from jaxmatch.models.build import MODELS
from jaxmatch.settings import Count, Momentum, Share


@pytest.mark.parametrize(
    "recipe",
    [
        *("fixmatch:mnist5k", "pcl:mnist5k", "simclr:tfds:imagenet2012"),
        "distillation:mnist5k,labels=40",
    ],
)
def test_every_key_of_a_configuration_is_listed_with_its_value(recipe):
    config, _ = from_flags(recipe, ["--config.seed=3"])
    rows = {row.key: row for row in documented(config)}
    assert {key: row.value for key, row in rows.items()} == flatten(config)
    assert rows["seed"].value == 3


def test_every_key_of_every_method_and_network_has_a_type_and_a_meaning():
    rows = list(documented())
    assert len(rows) > 200
    for row in rows:
        assert len(row.meaning.split()) > 1, row.key
        assert (
            row.meaning[0] != row.meaning[0].lower()
            or not row.meaning[0].isalpha()
            or (":" in row.meaning)
        ), row
        assert "Annotated" not in row.kind, row
        assert "class" not in row.kind, row
        assert "`" not in row.meaning, row
        assert row.value is None or isinstance(row.value, int | float | str | tuple), row
    networks = [name for name, entry in MODELS.items() if not entry.usual]
    for names in (ALGORITHMS, networks):
        listed = {row.meaning.partition(":")[0] for row in rows}
        assert set(names) - listed <= {"supervised"}  # which has no settings


def test_types_in_words():
    assert kind_text(Count) == "whole number, at least 1"
    assert kind_text(Share) == "number, at least 0 and at most 1"
    assert kind_text(tuple[Momentum, ...]) == "(number, at least 0 and below 1, ...)"
    assert kind_text(int | None) == "whole number or None"


def test_meanings_are_those_of_the_docstring_and_of_its_bases():
    class Base:
        """A base.

        Attributes:
            left, right: the sides,
                in pixels.
            kept: stays.
        """

    class Own(Base):
        """One of it.

        Attributes:
            right: another
                meaning, see :func:`there`.

        Something else: not an attribute.
        """

    assert attribute_meanings(Own) == {
        "left": "The sides, in pixels.",
        "right": "Another meaning, see there.",
        "kept": "Stays.",
    }


def run(capsys, *words):
    main(["describe", *words])
    return capsys.readouterr().out


def test_the_command_lists_the_keys_of_a_prefix(capsys):
    out = run(capsys, "--keys", "optim.learning")
    assert out.startswith("optim.learning_rate=0.03  (number, at least 0)\n    ")
    assert out.count("\n") == 2
    own = run(capsys, "--keys", "algorithm.threshold", "--config=fixmatch:mnist5k",
              "--config.algorithm.threshold=0.9")  # fmt: skip
    assert own.startswith("algorithm.threshold=0.9  (")
    assert "flexmatch: " in run(capsys, "--keys", "algorithm.threshold")


def test_the_command_lists_the_keys_of_stages_as_overrides_are_written(capsys):
    out = run(capsys, "--keys", "algorithm.name", "--config=selfmatch:mnist5k")
    assert "stages.simclr.algorithm.name='simclr'" in out
    assert "stages.fixmatch.algorithm.name='fixmatch'" in out
    own = run(capsys, "--keys", "stages.simclr.algorithm.t", "--config=selfmatch:mnist5k")
    assert own.startswith("stages.simclr.algorithm.temperature=0.5  (")
    assert own.count("\n") == 2
    config, _ = from_flags("selfmatch:mnist5k", [])
    listed = json.loads(run(capsys, "--keys", "--json", "--config=selfmatch:mnist5k"))
    assert {row["key"] for row in listed} <= flatten(config).keys()


def test_the_command_lists_the_trained_networks_of_a_method(capsys):
    assert "frozen.teacher=''  (text)\n    distillation: " in run(capsys, "--keys", "frozen")
    words = ("--config=distillation:mnist5k,labels=40", "--config.frozen.teacher=runs/a")
    assert run(capsys, "--keys", "frozen", *words).startswith("frozen.teacher='runs/a'  (text)\n")


def test_the_command_lists_keys_as_json(capsys):
    (row,) = json.loads(run(capsys, "--keys", "optim.learning_rate", "--json"))
    assert row == {
        "key": "optim.learning_rate",
        "type": "number, at least 0",
        "value": 0.03,
        "meaning": "The rate after the warm-up.",
    }
    (row,) = json.loads(run(capsys, "--keys", "seed", "--json", "--config=uda:mnist5k,seed=4"))
    assert (row["type"], row["value"]) == ("whole number, at least 0 and at most 4294967295", 4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--keys", "optm"], "no config key begins with 'optm'; did you mean 'optim'?"),
        ([], "describe needs --config=NAME:DATA, or --keys to list the keys."),
        (["--keys", "--config.steps=5"], "--keys without --config lists the defaults"),
        (["--keys", "steps", "--minutes=5"], "add --config=NAME:DATA, or leave out --minutes"),
        (["--keys", "zzzz"], "; jaxmatch describe --keys lists them all."),
    ],
)
def test_bad_input_is_one_sentence(capsys, words, sentence):
    with pytest.raises(SystemExit) as ended:
        main(["describe", *words])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("copied", [copy.deepcopy, ConfigDict.copy_and_resolve_references])
def test_a_copy_of_a_recipe_knows_what_contradicts_its_preset(copied):
    recipe = make(
        "fixmatch", "mnist5k,preset=usb", algorithm={"name": "fixmatch"}, presets={"usb": {}}
    )
    for each in (recipe, copied(recipe)):
        assert each.contradictions({"model.padding": "same", "seed": 1}) == {
            "model.padding": "torch"
        }


def test_the_defaults_are_a_configuration():
    values = {row.key: row.value for row in documented()}
    assert values["steps"] == 2**20
    assert isinstance(from_flags("fixmatch:mnist5k", [])[0], ConfigDict)
