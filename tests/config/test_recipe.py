"""The grammar of configurations: arguments, layers, overrides, names and differences."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import jaxmatch
from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.config.checks import check_numbers
from jaxmatch.config.dotted import flatten
from jaxmatch.config.flags import from_flags, load_module, named_configs
from jaxmatch.config.keys import defaults
from jaxmatch.config.presets import DATASETS
from jaxmatch.config.recipe import make, parse_argument
from jaxmatch.config.saved import (
    IDENTITY,
    as_begun,
    complete,
    differences,
    identifies,
    moved,
    run_name,
    to_json,
)
from jaxmatch.errors import InputError, suggest
from jaxmatch.settings import build_section

ROOT = Path(__file__).parents[2]


def config(argument="fixmatch:mnist5k", *overrides):
    return from_flags(argument, overrides)[0]


def message(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_every_key_of_the_argument():
    found = config("configs/fixmatch.py:tfds:cifar10,labels=250,seed=3,preset=usb,split=a/b.json")
    assert found.data.name == "tfds:cifar10"
    assert found.data.labels == "250"
    assert found.data.split == "a/b.json"
    assert (found.seed, found.preset) == (3, "usb")
    assert config("fixmatch:mnist5k,labels=all").data.labels == "all"


def test_data_sets_with_a_place_keep_it():
    assert parse_argument("npz:/tmp/x.npz,seed=1") == ("npz:/tmp/x.npz", {"seed": "1"})
    assert config("fixmatch:folder:pictures/birds,labels=20").data.name == "folder:pictures/birds"


@pytest.mark.parametrize("name", ["a,b", "a, b,c", "a,x=1", "a,b/", "a=b,c", "with space,"])
@pytest.mark.parametrize("known", ["", ",labels=40", ",seed=1,labels=40", ",split=s,t.txt,seed=1"])
@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_path_may_have_commas(tmp_path, name, known, kind):
    (tmp_path / name).mkdir(parents=True)
    data, chosen = parse_argument(f"{kind}:{tmp_path}/{name}{known}")
    assert data == f"{kind}:{tmp_path}/{name}"
    assert (
        chosen
        == {
            "": {},
            ",labels=40": {"labels": "40"},
            ",seed=1,labels=40": {"labels": "40", "seed": "1"},
            ",split=s,t.txt,seed=1": {"split": "s,t.txt", "seed": "1"},
        }[known]
    )
    again = ",".join([data, *(f"{key}={value}" for key, value in chosen.items())])
    assert parse_argument(again) == (data, chosen)


@pytest.mark.parametrize(
    ("argument", "data"),
    [
        ("folder:/nowhere/a,b", "folder:/nowhere/a,b"),
        ("npz:/nowhere/a,b.npz,labels=40", "npz:/nowhere/a,b.npz"),
        ("folder:s3://bucket/a,b/,seed=1", "folder:s3://bucket/a,b/"),
        ("folder:~/nowhere,at all,size=paper,scale=2", None),
    ],
)
def test_a_path_with_commas_need_not_exist(argument, data):
    if data is None:
        assert config(f"fixmatch:{argument}").data.name == "folder:~/nowhere,at all"
    else:
        assert parse_argument(argument)[0] == data


@pytest.mark.parametrize(
    ("pairs", "parts"),
    [
        ("lables=40", ["'lables=40'", "did you mean 'labels'?"]),
        ("labels", ["'labels'", "did you mean 'labels'?"]),
        ("lables=40,seed=1", ["'lables=40'", "did you mean 'labels'?"]),
        ("seed=1,lables=40", ["'lables=40'", "did you mean 'labels'?"]),
        ("labels=40,", ["cannot read ''"]),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_wrong_key_after_a_path_is_named(tmp_path, pairs, parts, kind):
    text = message(parse_argument, f"{kind}:{tmp_path},{pairs}")
    for part in parts:
        assert part in text


def test_without_an_argument_the_default_data_are_used():
    assert config("fixmatch") == config("fixmatch:mnist5k")


@pytest.mark.parametrize("recipe", ["fixmatch:", "selfmatch:", "byol+finetune:"])
def test_nothing_after_the_colon_is_refused(recipe):
    assert message(config, recipe).startswith(f"{recipe} needs a data set after the colon; known: ")


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("mnist5k,lables=40", ["lables", "did you mean 'labels'?"]),
        ("mnist5k,labels", ["'labels'", "did you mean 'labels'?"]),
        ("mnist5k,labels=", ["did you mean 'labels'?"]),
        ("mnist5k,labels=forty", ["labels=forty", "whole number or all"]),
        ("mnist5k,labels=-4", ["labels=-4", "whole number"]),
        ("mnist5k,seed=1.5", ["seed=1.5", "whole number"]),
        ("mnist5k,seed=all", ["seed=all", "whole number"]),
        ("mnist5k,preset=usbb", ["unknown preset 'usbb'", "did you mean 'usb'?"]),
        (",labels=40", ["data set first", "mnist5k"]),
    ],
)
def test_arguments_that_cannot_be_read(argument, parts):
    text = message(config, f"fixmatch:{argument}")
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("fixmtch:mnist5k", ["unknown config 'fixmtch'", "did you mean 'fixmatch'?"]),
        ("configs/none.py:mnist5k", ["no config file configs/none.py"]),
    ],
)
def test_config_files_that_do_not_exist(name, parts):
    text = message(config, name)
    for part in parts:
        assert part in text


def test_a_config_file_without_get_config(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    assert "get_config" in message(config, f"{tmp_path}/mine.py:mnist5k")


@pytest.mark.parametrize(
    ("text", "argument", "sentence"),
    [
        ("def get_config(): return None", "", "must return a configuration of jaxmatch"),
        ("def get_config(): return {'seed': 0}", "", "must return a configuration of jaxmatch"),
        ("def get_config(): return ConfigDict({'seed': 0})", "", "must return a configuration"),
        ("def get_config(): return None", ":digits", "takes no argument; leave 'digits' out"),
        ("def get_config(argument): return None", "", "needs an argument"),
    ],
)
def test_a_config_file_that_returns_no_configuration(
    tmp_path, monkeypatch, text, argument, sentence
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(f"from ml_collections import ConfigDict\n{text}\n")
    assert sentence in message(config, f"~/mine.py{argument}")


@pytest.mark.parametrize("key", ["wandb", "init_from", "keep_best", "data.added_labels"])
def test_none_is_no_text(key):
    sentence = f"{key}=None: it takes a text; give an empty one for none."
    assert message(config, "fixmatch:digits", f"--config.{key}=None") == sentence
    with pytest.raises(InputError, match="give an empty one"):
        jaxmatch.config("fixmatch:digits", **{key: None})


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("--config.algorithm.treshold=0.9", "algorithm.threshold"),
        ("--config.algorthm.threshold=0.9", "algorithm.threshold"),
        ("--config.optim.learning_rte=0.1", "optim.learning_rate"),
        ("--config.data.batchsize=8", "data.batch_size"),
        ("--config.stepss=8", "steps"),
        ("--config.data=digits", "data."),
    ],
)
def test_unknown_override_keys_name_the_nearest_one(override, nearest):
    text = message(config, "fixmatch:mnist5k", override)
    assert text.startswith("unknown config key")
    assert nearest in text


def test_of_many_known_keys_the_nearest_is_named_and_where_the_list_is():
    text = message(config, "fixmatch:mnist5k", "--config.qqqqqqqq=1")
    assert re.fullmatch(
        r"unknown config key 'qqqqqqqq'; the nearest of \d+ known names is '[\w.]+'; "
        "jaxmatch describe --keys lists them all.",
        text,
    )
    names = [f"name{number}" for number in range(40)]
    assert suggest("qqqq", names) == f"known: {', '.join(sorted(names))}."
    assert suggest("qqqqm", [*names, "mmmm"]) == "the nearest of 41 known names is 'mmmm'."


@pytest.mark.parametrize("key", ["frozen.teacher", "frozen.techer"])
@pytest.mark.parametrize("recipe", ["fixmatch", "selfmatch"])
def test_a_trained_network_for_a_method_without_one_is_refused(recipe, key):
    assert message(config, f"{recipe}:mnist5k", f"--config.{key}=runs/a") == (
        f"{key}: {recipe} learns from no trained network; leave it out, or give "
        "--config=distillation:DATA."
    )
    near = message(config, "distillation:mnist5k", "--config.frozen.techer=runs/a")
    assert near == "unknown config key 'frozen.techer'; did you mean 'frozen.teacher'?"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("steps=many", "steps=many must be a whole number, at least 1."),
        ("steps=1.5", "steps=1.5 must be a whole number, at least 1."),
        ("steps=", "steps= must be a whole number, at least 1."),
        ("steps=None", "steps=None must be a whole number, at least 1."),
        ("seed=x", "seed=x must be a whole number, at least 0 and at most 4294967295."),
        (
            "algorithm.threshold=high",
            "algorithm.threshold=high must be a number, at least 0 and at most 1.",
        ),
        (
            "algorithm.hard_labels=perhaps",
            "algorithm.hard_labels=perhaps must be True or False.",
        ),
        (
            "data.image_size=small",
            "data.image_size='small' must be a whole number, at least 1 and at most 16384.",
        ),
        (
            "data.image_size=3.5",
            "data.image_size=3.5 must be a whole number, at least 1 and at most 16384.",
        ),
        (
            "views.strong.ops=rotate color",
            "views.strong.ops=rotate color must be a tuple, such as ('a', 'b').",
        ),
        ("data.mean=0.5 0.4", "data.mean=0.5 0.4 must be a tuple, such as (0.5,)."),
        ("model.depth", "--config.model.depth has no value; give --config.model.depth=VALUE."),
        ("model.depth=x", "model.depth=x must be a whole number, at least 1 and at most 1000."),
    ],
)
def test_overrides_of_the_wrong_type(override, sentence):
    assert message(config, "fixmatch:mnist5k", f"--config.{override}") == sentence


def test_an_override_of_a_stage_of_the_wrong_type():
    flag = "--config.stages.fixmatch.algorithm.threshold=x"
    assert message(config, "selfmatch:mnist5k", flag) == (
        "stages.fixmatch.algorithm.threshold=x must be a number, at least 0 and at most 1."
    )


NULLABLE = (
    *("data.image_size", "data.white_level", "views.weak.pad", "views.strong.number"),
    *(f"views.{role}.size" for role in ("contrast", "second", "small")),
)


@pytest.mark.parametrize("key", NULLABLE)
@pytest.mark.parametrize(
    "recipe",
    [
        "fixmatch:mnist5k",
        *(
            pytest.param(f"fixmatch:tfds:{rest}", marks=pytest.mark.slow)
            for rest in (
                "imagenet2012",
                "cifar100,preset=usb_cv",
                "cifar10,preset=torchssl,views=medical",
            )
        ),
    ],
)
def test_keys_that_take_none_take_it_after_another_value_too(recipe, key):
    for value in ("None", "8"):
        found = config(recipe, f"--config.{key}={value}")
        assert flatten(found)[key] == (None if value == "None" else 8)
    assert flatten(config(recipe, f"--config.{key}=8", f"--config.{key}=None"))[key] is None
    assert flatten(jaxmatch.config(recipe, **{key: None}))[key] is None
    assert f"{key}=-1 must " in message(config, recipe, f"--config.{key}=-1")


def test_none_reaches_a_stage():
    found = config("selfmatch:mnist5k", "--config.data.image_size=None")
    assert [stage.data.image_size for stage in found.stages.values()] == [None, None]


@pytest.mark.parametrize(
    ("recipe", "override", "sentence"),
    [
        (
            "fixmatch",
            "algorithm.name=flexmatch",
            "algorithm.name=flexmatch: the recipe is the method; give --config=flexmatch:DATA "
            "instead.",
        ),
        (
            "selfmatch",
            "stages.fixmatch.algorithm.name=simmatch",
            "stages.fixmatch.algorithm.name=simmatch: the recipe is the method; give "
            "--config=simmatch:DATA instead.",
        ),
        (
            "fixmatch",
            "algorithm.name=fixmtch",
            "unknown algorithm 'fixmtch'; did you mean 'fixmatch'?",
        ),
    ],
)
def test_another_method_as_an_override_is_refused(recipe, override, sentence):
    assert message(config, f"{recipe}:mnist5k", f"--config.{override}") == sentence


def test_a_config_file_of_ones_own_chooses_its_method(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from jaxmatch.config.recipe import make\n"
        "def get_config(argument):\n"
        "    return make('mine', argument, algorithm={'name': 'flexmatch'})\n"
    )
    recipe = f"{tmp_path}/mine.py:mnist5k"
    found = config(recipe, "--config.algorithm.name=flexmatch", "--config.algorithm.threshold=0.5")
    assert (found.recipe, found.algorithm.name, found.algorithm.threshold) == (
        "mine",
        "flexmatch",
        0.5,
    )
    assert "the recipe is the method" in message(config, recipe, "--config.algorithm.name=fixmatch")


def test_overrides_of_every_type():
    found = config(
        "fixmatch:mnist5k",
        "--config.steps=30",
        "--config.algorithm.threshold=1",
        "--config.algorithm.hard_labels=false",
        "--config.data.mean=(0.1,0.2,0.3)",
        "--config.data.image_size=16",
        "--config.views.weak.pad=2",
        "--config.data.labels=all",
        "--config.optim.name=adamw",
        "--config.data.strict",
    )
    assert found.steps == 30
    assert (found.algorithm.threshold, found.algorithm.hard_labels) == (1.0, False)
    assert tuple(found.data.mean) == (0.1, 0.2, 0.3)
    assert (found.data.image_size, found.views.weak.pad) == (16, 2)
    assert (found.data.labels, found.optim.name, found.data.strict) == ("all", "adamw", True)


def test_defaults_data_set_method_preset_argument_and_override_in_this_order(tmp_path):
    assert config("fixmatch:npz:x.npz,size=paper").model.depth == 28  # defaults
    assert config("fixmatch:mnist5k").model.depth == 10  # the data set's
    assert config("pseudo_label:mnist5k").data.ratio == 1  # the method's, over the default 7
    assert config("fixmatch:tfds:cifar100").model.width == 8
    assert config("fixmatch:tfds:cifar100,preset=usb").model.width == 2
    assert config("fixmatch:mnist5k,labels=100").data.labels == "100"
    overridden = config(
        "fixmatch:tfds:cifar100,preset=usb,seed=1", "--config.model.width=4", "--config.seed=2"
    )
    assert (overridden.model.width, overridden.seed) == (4, 2)


def test_a_preset_stands_over_a_method_and_a_method_over_the_data_set():
    settings = {"data.ratio": 2, "model.width": 1.0}
    for preset, width in (("jaxmatch", 1.0), ("usb", 2.0)):
        found = make(
            "mine",
            f"tfds:cifar100,preset={preset}",
            algorithm={"name": "fixmatch"},
            settings=settings,
            presets={"usb": {"algorithm.threshold": 0.8}},
        )
        assert (found.data.ratio, found.model.width) == (2, width)
        assert found.algorithm.threshold == (0.8 if preset == "usb" else 0.95)


def test_a_preset_that_a_method_lacks_is_refused():
    with pytest.raises(InputError, match="mine has no preset 'google'; it has jaxmatch, usb"):
        make(
            "mine",
            "mnist5k,preset=google",
            algorithm={"name": "fixmatch"},
            presets={"usb": {}},
        )


def test_a_method_cannot_misspell():
    make_mine = lambda **options: make("mine", "mnist5k", **options)  # noqa: E731
    for options, nearest in (
        ({"algorithm": {"name": "fixmtch"}}, "'fixmatch'"),
        ({"algorithm": {"name": "fixmatch", "treshold": 0.5}}, "'algorithm.threshold'"),
        ({"algorithm": {"name": "fixmatch"}, "settings": {"data.ration": 2}}, "'data.ratio'"),
    ):
        with pytest.raises(InputError, match=f"did you mean {nearest}"):
            make_mine(**options)


def test_an_override_that_contradicts_the_preset_is_noted_not_refused():
    overrides = ["--config.model.conv_bias=none", "--config.steps=30"]
    found, notes = from_flags("fixmatch:tfds:cifar10,preset=usb", overrides)
    assert found.model.conv_bias == "none"
    (note,) = notes
    for word in ("model.conv_bias=none", "'usb'", "stem"):
        assert word in note
    agreeing = ["--config.model.conv_bias=stem"]
    assert from_flags("fixmatch:tfds:cifar10,preset=usb", agreeing)[1] == []
    assert from_flags("fixmatch:tfds:cifar10", overrides)[1] == []


def test_a_preset_as_an_override_is_refused_as_it_would_set_nothing():
    assert "preset=NAME" in message(config, "fixmatch:mnist5k", "--config.preset=usb")


def test_unknown_fields_of_a_dataclass():
    assert build_section(FixMatch, {"threshold": 0.5}, "algorithm") == FixMatch(threshold=0.5)
    text = message(build_section, FixMatch, {"treshold": 0.5}, "algorithm")
    assert text == "unknown config key algorithm.treshold; did you mean 'threshold'?"


def test_differences_name_key_and_both_values_but_not_the_devices():
    old, new = (to_json(config("fixmatch:mnist5k", *more)) for more in ([], ["--config.steps=150"]))
    assert differences(old, new) == ["steps: 1500 -> 150"]
    assert differences(old, to_json(config("fixmatch:mnist5k", "--config.devices=2"))) == []
    assert differences(old, to_json(config("fixmatch:mnist5k"))) == []
    supervised = to_json(config("supervised:mnist5k"))
    assert "algorithm.threshold: 0.95 -> None" in differences(old, supervised)


def test_true_and_one_are_different_settings():
    old, new = (
        to_json(config("fixmatch:mnist5k", f"--config.views.strong.cutout={value}"))
        for value in (True, 1.0)
    )
    assert differences(old, new) == ["views.strong.cutout: True -> 1.0"]
    assert differences(old, old) == differences(new, new) == []


def test_what_does_not_identify_a_run():
    others = {key for key in flatten(defaults()) if not identifies(key)}
    assert others == {
        *("preset", "views_preset", "steps_per_call", "log_every", "save_every", "keep"),
        *("devices", "workers", "keep_best", "select", "data.pseudo_labels"),
        *("memory_placement", "remat", "wandb", "data.split", "data.directory", "data.strict"),
    }
    assert all(identifies(f"algorithm.{name}") for name in ("threshold", "whatever"))
    assert all(map(str.strip, IDENTITY.values()))


@pytest.mark.parametrize(
    "override",
    [
        *("save_every=75", "keep=9", "log_every=150", "workers=4", "steps_per_call=5", "devices=2"),
        *("data.directory=/elsewhere", "data.strict=True", "data.split=/other.json", "remat=True"),
        "data.name=npz:/moved/to/cells.npz",
    ],
)
def test_a_run_goes_on_with_another(override):
    argument = "fixmatch:npz:/data/cells.npz,size=paper"
    plain, other = (to_json(config(argument, *more)) for more in ((), (f"--config.{override}",)))
    assert flatten(plain) != flatten(other)
    assert differences(plain, other) == []


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("algorithm.threshold=0.5", "algorithm.threshold: 0.95 -> 0.5"),
        ("seed=1", "seed: 0 -> 1"),
        ("steps=131072", "steps: 1048576 -> 131072"),
        ("eval_every=64", "eval_every: 1024 -> 64"),
        ("microbatches=2", "microbatches: 1 -> 2"),
        ("data.batch_size=4", "data.batch_size: 64 -> 4"),
        ("data.name=folder:/data/cells", "data.name: npz:/data/cells.npz -> folder:/data/cells"),
        ("data.name=mnist5k", "data.name: npz:/data/cells.npz -> mnist5k"),
        ("views.weak.flip=False", "views.weak.flip: True -> False"),
        ("model.width=4", "model.width: 2.0 -> 4.0"),
        ("optim.momentum=0.5", "optim.momentum: 0.9 -> 0.5"),
        ("ema.decay=0.5", "ema.decay: 0.999 -> 0.5"),
        ("init_from=runs/a", "init_from:  -> runs/a"),
    ],
)
def test_a_run_does_not_go_on_with_another(override, difference):
    argument = "fixmatch:npz:/data/cells.npz,size=paper"
    plain, other = (to_json(config(argument, *more)) for more in ((), (f"--config.{override}",)))
    assert differences(plain, other) == [difference]


def test_tfds_sets_are_told_apart_by_name():
    old, new = (to_json(config(f"fixmatch:tfds:{name}")) for name in ("cifar10", "svhn_cropped"))
    assert "data.name: tfds:cifar10 -> tfds:svhn_cropped" in differences(old, new)


def test_init_from_is_compared_as_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative, absolute, stage, other = (
        to_json(config("fixmatch:mnist5k", f"--config.init_from={place}"))
        for place in ("runs/a", tmp_path / "runs" / "a", "stage:1_simclr", "runs/b")
    )
    assert differences(relative, absolute) == []
    assert differences(relative, other)
    assert differences(relative, stage)


def test_the_name_tells_places_apart(tmp_path, monkeypatch):
    def name(place, *overrides):
        return run_name(config(f"fixmatch:folder:{place},labels=4", *overrides))

    one = tmp_path / "one" / "birds"
    monkeypatch.chdir(tmp_path / "..")
    assert name(one) != name(tmp_path / "two" / "birds")
    assert name(one) == name(f"{tmp_path.name}/one/birds")
    split = [f"--config.data.split={tmp_path / file}" for file in ("a.json", "b.json")]
    assert len({name(one), name(one, split[0]), name(one, split[1])}) == 3
    for same in ("save_every=64", "keep=9", "log_every=64", "workers=2", "data.strict=True"):
        assert name(one, f"--config.{same}") == name(one)
    for other in ("seed=1", "eval_every=64", "algorithm.threshold=0.5"):
        assert name(one, f"--config.{other}") != name(one)
    teachers = [
        run_name(config("distillation:mnist5k", f"--config.frozen.teacher={place}"))
        for place in ("runs/a", "runs/b", "stage:1_a")
    ]
    assert len(set(teachers)) == 3


@pytest.mark.parametrize(
    ("override", "simclr", "fixmatch"),
    [
        ("data.validation=50", 0, 50),
        ("keep_best=validation/accuracy", "", "validation/accuracy"),
        ("select=validation/accuracy", "", "validation/accuracy"),
        ("data.image_size=16", 16, 16),
    ],
)
def test_keys_about_labels_reach_the_stages_that_read_them(override, simclr, fixmatch):
    found = config("selfmatch:mnist5k,labels=40", f"--config.{override}").stages
    key = override.partition("=")[0]
    assert [flatten(found[name])[key] for name in ("simclr", "fixmatch")] == [simclr, fixmatch]


def test_the_name_of_stages_follows_each_of_them():
    def name(*overrides):
        return run_name(config("selfmatch:mnist5k,labels=40", *overrides))

    assert name("--config.stages.simclr.save_every=15") == name()
    assert name("--config.stages.simclr.algorithm.temperature=0.3") != name()
    assert name("--config.stages.fixmatch.algorithm.threshold=0.3") != name()


def test_a_configuration_survives_json():
    found = config("fixmatch:tfds:cifar10,preset=usb")
    again = ConfigDict(to_json(found))
    assert flatten(to_json(again)) == flatten(to_json(found))
    assert again.data.image_size is None


@pytest.mark.parametrize(
    ("argument", "start"),
    [
        ("fixmatch:mnist5k,labels=40,seed=7", "fixmatch-mnist5k-40-s7"),
        ("pseudo_label:tfds:cifar10,labels=250", "pseudo_label-cifar10-250-s0"),
        ("supervised:npz:/data/cells.npz,labels=all", "supervised-npz-cells-all-s0"),
        ("fixmatch:folder:my/birds,labels=20", "fixmatch-folder-birds-20-s0"),
    ],
)
def test_the_name_of_the_run_folder(argument, start):
    name = run_name(config(argument))
    assert re.fullmatch(re.escape(start) + "-[0-9a-f]{8}", name)
    assert run_name(config(argument, "--config.devices=2")) == name
    assert run_name(config(argument, "--config.optim.momentum=0.5")) != name


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("fixmatch:mnist5k", "fixmatch-mnist5k-40-s0-c5aefad2"),
        ("moco_v2:mnist5k", "moco_v2-mnist5k-none-s0-94f2026a"),
        ("simmatch:tfds:cifar10", "simmatch-cifar10-40-s0-83f37f83"),
    ],
)
def test_a_new_setting_at_its_default_leaves_the_names_of_older_runs(argument, name):
    """A changed name would train finished runs again; leave out the key in saved.WITHOUT_EFFECT."""
    assert run_name(config(argument)) == name


def test_the_name_does_not_depend_on_the_process():
    code = (
        "from jaxmatch.config.flags import from_flags; from jaxmatch.config.saved import run_name; "
        "print(run_name(from_flags('fixmatch:mnist5k', [])[0]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "5"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert found.stdout.strip() == run_name(config())


def test_bare_names_are_the_files_in_configs():
    for file in (ROOT / "configs").glob("[!_]*.py"):
        assert load_module(file.stem).get_config("mnist5k") == load_module(str(file)).get_config(
            "mnist5k"
        )


FOREIGN = "raise SystemExit('a foreign file was executed')"


def site_packages(folder, **neighbours):
    """An installed package with the configs inside it, and files of others beside it."""
    shutil.copytree(
        ROOT / "jaxmatch", folder / "jaxmatch", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(ROOT / "configs", folder / "jaxmatch" / "configs", dirs_exist_ok=True)
    (folder / "configs").mkdir()
    for name in ("fixmatch", "theirs"):
        (folder / "configs" / f"{name}.py").write_text(FOREIGN)
    for name, text in neighbours.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


@pytest.mark.parametrize(
    "neighbours",
    [
        {},
        *(
            pytest.param({"pyproject": text}, marks=pytest.mark.slow)
            for text in ("[project]\nname = 'other'\n", "x = [", "")
        ),
    ],
)
def test_configs_of_a_neighbour_are_never_executed(tmp_path, neighbours):
    site = site_packages(tmp_path / "site", **neighbours)
    code = """import jaxmatch.config.flags as c
print(c.__file__, c.from_flags('fixmatch:mnist5k', [])[0].steps)
try:
    c.from_flags('theirs:mnist5k', [])
except c.InputError as error:
    print(error)"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    lines = found.stdout.splitlines()
    assert lines[0] == f"{site / 'jaxmatch' / 'config' / 'flags.py'} 1500", found.stderr
    assert "unknown config 'theirs'" in lines[1]


def test_the_packages_own_configs_come_before_those_of_its_checkout(tmp_path):
    site = site_packages(tmp_path, pyproject="[project]\nname = 'jaxmatch'\n")
    names = named_configs(site / "jaxmatch")
    assert names["fixmatch"] == site / "jaxmatch" / "configs" / "fixmatch.py"
    assert names["theirs"] == site / "configs" / "theirs.py"


def test_every_data_set_has_a_configuration():
    for data in DATASETS:
        assert config(f"fixmatch:{data}").data.name == data


@pytest.mark.slow
def test_a_wheel_holds_the_configs_and_finds_them_by_name(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = """import jaxmatch.config.flags as c
print(c.__file__, c.from_flags('fixmatch:mnist5k', [])[0].steps)"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [
        str(tmp_path / "site" / "jaxmatch" / "config" / "flags.py"),
        "1500",
    ]


def test_a_network_brings_its_own_settings():
    flags = ["--config.model.stem=cifar", "--config.model.name=resnet18"]
    config, _ = from_flags("fixmatch:mnist5k", flags)
    assert (config.model.name, config.model.stem, config.model.width) == ("resnet18", "cifar", 64)
    assert "depth" not in config.model
    with pytest.raises(InputError, match=r"model\.depth"):
        from_flags("fixmatch:mnist5k", ["--config.model.name=resnet18", "--config.model.depth=10"])
    with pytest.raises(InputError, match="resnet18"):
        from_flags("fixmatch:mnist5k", ["--config.model.name=resnet81"])


def test_data_sets_and_presets_leave_another_network_alone():
    settings = {"model.name": "resnet50", "model.zero_gamma": True}
    algorithm = {"name": "fixmatch"}
    config = make(
        "x",
        "tfds:stl10,preset=usb",
        algorithm=algorithm,
        settings=settings,
        presets={"usb": {}},
    )
    assert dict(config.model) == {
        "name": "resnet50",
        "width": 64,
        "stem": "imagenet",
        "zero_gamma": True,
        "feature_norm": "",
        "bn_decay": 0.9,
        "bn_eps": 1e-5,
        "bn_groups": 1,
        "head_layers": 0,
        "zero_classifier": False,
    }


@pytest.mark.parametrize("chosen", ["labels=40", "split=x.json"])
def test_a_label_free_method_takes_no_labels(chosen):
    with pytest.raises(InputError, match="reads no labels"):
        from_flags(f"simclr:mnist5k,{chosen}", [])


def test_two_values_of_a_word_are_a_contradiction():
    with pytest.raises(InputError, match="labels=40 and labels=10 are both given; leave one out"):
        from_flags("fixmatch:mnist5k,labels=40,labels=10", [])


def test_the_last_of_two_overrides_counts():
    flags = ["--config.steps=30", "--config.steps=45"]
    assert from_flags("fixmatch:mnist5k", flags)[0].steps == 45


def test_a_validation_set_of_an_older_run_was_balanced():
    new = config("fixmatch:mnist5k", "--config.data.validation=50")
    old = to_json(new)
    del old["data"]["validation_draw"]
    assert complete(old).data.validation_draw == "balanced"
    (changed,) = differences(old, to_json(new))
    assert changed == "data.validation_draw: balanced -> stratified"
    same = config(
        "fixmatch:mnist5k",
        "--config.data.validation=50",
        "--config.data.validation_draw=balanced",
    )
    assert not differences(old, to_json(same))


def test_the_draw_of_no_validation_set_is_no_difference():
    balanced = config("fixmatch:mnist5k", "--config.data.validation_draw=balanced")
    assert not differences(to_json(config("fixmatch:mnist5k")), to_json(balanced))
    assert run_name(balanced) == run_name(config("fixmatch:mnist5k"))
    held_out = config("fixmatch:mnist5k", "--config.data.validation=50")
    plain = to_json(config("fixmatch:mnist5k"))
    assert differences(to_json(held_out), plain) == ["data.validation: 50 -> 0"]


def test_an_older_run_has_its_data_sets_defaults():
    new = to_json(from_flags("fixmatch:mnist5k", [])[0])
    old = json.loads(json.dumps(new))
    del old["views"]["contrast"], old["init_from"], old["optim"]["drops"]
    assert differences(old, new) == []
    assert complete(old).views.contrast.flip == 0
    old["ema"]["decay"] = 0.5
    assert differences(old, new) == ["ema.decay: 0.5 -> 0.99"]


def test_a_run_that_is_older_than_the_background_ignores_transparency():
    new = config("fixmatch:folder:birds,labels=4")
    old = to_json(new)
    del old["data"]["background"]
    assert list(complete(old).data.background) == []
    assert complete(to_json(new)).data.background == [255]
    assert as_begun(new, old).data.background == ()  # a run that goes on keeps its images
    assert differences(old, to_json(new)) == []
    assert not moved(old, to_json(new))
    assert as_begun(new, to_json(new)).data.background == (255,)
    black = config("fixmatch:folder:birds,labels=4", "--config.data.background=0")
    assert differences(old, to_json(black)) == ["data.background: [] -> [0]"]


@pytest.mark.parametrize(
    ("written", "value"), [("0", (0,)), ("(1,2,3)", (1, 2, 3)), ("1,2,3", (1, 2, 3)), ("()", ())]
)
def test_a_background_has_one_level_or_three_or_none(written, value):
    assert (
        config("fixmatch:mnist5k", f"--config.data.background={written}").data.background == value
    )
    check_numbers(config("fixmatch:mnist5k", f"--config.data.background={written}"))


@pytest.mark.parametrize("written", ["256", "(1,2)", "-1", "0.5", "white"])
def test_a_background_that_is_no_color_is_refused(written):
    with pytest.raises(InputError, match=r"data\.background"):
        check_numbers(config("fixmatch:mnist5k", f"--config.data.background={written}"))


def test_from_python_it_is_what_the_command_line_reads(caplog):
    found = jaxmatch.config(
        "fixmatch:mnist5k", labels=40, seed=3, steps=600, **{"algorithm.threshold": 0.9}
    )
    flags = ["--config.steps=600", "--config.algorithm.threshold=0.9"]
    assert found == from_flags("fixmatch:mnist5k,labels=40,seed=3", flags)[0]
    assert not caplog.records
    several = {"views.weak.area": (0.2, 1.0), "optim.nesterov": False, "init_heads": ("a", "b")}
    found = jaxmatch.config("fixmatch:mnist5k", **several)
    assert (found.views.weak.area, found.optim.nesterov) == ((0.2, 1.0), False)
    assert found.init_heads == ("a", "b")


def test_from_python_overrides_are_noted_and_mistakes_refused(caplog):
    jaxmatch.config("fixmatch:tfds:cifar10", preset="usb", **{"model.conv_bias": "none"})
    assert "contradicts preset 'usb'" in caplog.text
    assert "threshold" in message(
        lambda: jaxmatch.config("fixmatch:mnist5k", **{"algorithm.treshold": 0.9})
    )
    assert "names no data set" in message(lambda: jaxmatch.config("fixmatch", labels=40))
    assert "unknown preset" in message(lambda: jaxmatch.config("fixmatch:mnist5k", preset="none"))
    for recipe in (None, 3, {"recipe": "fixmatch"}):
        assert message(jaxmatch.config, recipe) == (
            "recipe must be a text: give NAME:DATA, such as 'fixmatch:mnist5k'."
        )


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, lambda value: tuple(np.array(value))])
def test_from_python_arrays_are_tuples(kind):
    values = {"data.mean": kind([0.5, 0.25, 0.125]), "views.strong.fill": kind([1, 2, 3])}
    found = jaxmatch.config("fixmatch:mnist5k", **values)
    assert found.data.mean == (0.5, 0.25, 0.125)
    assert found.views.strong.fill == (1, 2, 3)
    assert {type(each) for each in (*found.data.mean, *found.views.strong.fill)} == {float, int}


@pytest.mark.parametrize("number", [np.float32, np.int64, jnp.float32, jnp.int32, np.array])
def test_from_python_numbers_of_other_libraries_are_numbers(number):
    found = jaxmatch.config("fixmatch:mnist5k", **{"optim.learning_rate": number(2)})
    assert found.optim.learning_rate == 2
    assert isinstance(found.optim.learning_rate, float)


def test_from_python_the_batch_is_scaled_as_in_the_argument():
    given = jaxmatch.config("fixmatch:mnist5k", scale=2, rule="sqrt")
    assert given == from_flags("fixmatch:mnist5k,scale=2,rule=sqrt", [])[0]
    assert given.data.batch_size == 32


@pytest.mark.parametrize("given", ["fixmatch:mnist5k", {"recipe": "fixmatch"}, None])
def test_train_takes_a_configuration_alone(given, tmp_path):
    text = message(jaxmatch.train, given, tmp_path / "run")
    assert text.startswith("train takes what jaxmatch.config returns: jaxmatch.train(")
    assert not (tmp_path / "run").exists()


def test_the_package_lists_its_public_names():
    assert set(dir(jaxmatch)) == set(jaxmatch.__all__)
    assert {"config", "load", "train"} <= set(dir(jaxmatch))


@pytest.mark.slow
def test_the_function_is_there_whatever_was_imported_before():
    for before in ("", "import jaxmatch.config.flags;", "from jaxmatch import train;"):
        code = f"{before} import jaxmatch; print(jaxmatch.config('uda:mnist5k', labels=40).recipe)"
        found = subprocess.run(
            [sys.executable, "-c", code.strip()],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        assert found.stdout.split() == ["uda"]


def test_the_call_tells_its_arguments():
    assert "labels" in inspect.signature(jaxmatch.config).parameters
