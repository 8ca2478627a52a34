"""The words for a run that goes on from another give its settings again."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict
from tiny_runs import write_data

from jaxmatch.cli.continuing import APART, following, going_on, words
from jaxmatch.config.flags import from_flags
from jaxmatch.config.saved import identity, to_json
from jaxmatch.record.settled import settled


def read(given):
    config, *overrides = given
    return settled(from_flags(config.removeprefix("--config="), overrides)[0])[0]


def names(config):
    """The settings that identify a run, but those that a run which goes on has anew."""
    found = identity(to_json(config))
    return {key: value for key, value in found.items() if key not in (*APART[5:], "recipe")}


LORA = ["--config.optim.train=lora", "--config.model.lora_rank=4"]
CASES = [
    ["fixmatch:mnist5k,labels=40,seed=3"],
    ["fixmatch:mnist5k", "--config.algorithm.threshold=0.9", "--config.steps=600"],
    ["simmatch:mnist5k,labels=40", "--config.data.split=a,b.json", "--config.data.validation=20"],
    ["fixmatch:NPZ,labels=16", "--config.model.width=1", "--config.optim.nesterov=False"],
    ["fixmatch:NPZ,labels=16,size=base,views=industrial", "--config.data.image_size=16"],
    ["fixmatch:NPZ,labels=16", "--config.views.weak.area=(0.5, 1.0)", "--config.steps=100"],
    ["supervised:NPZ,labels=all", "--config.model.name=resnet18", "--config.model.bn_decay=0.9"],
    ["fixmatch:NPZ,labels=16", "--config.minutes=5"],
    ["fixmatch:mnist5k,labels=40,preset=usb", "--config.data.mean=(0.1, 0.2, 0.3)"],
    ["fixmatch:NPZ,labels=16", "--config.data.mean=(0.1,)", "--config.data.std=(0.2,)"],
    ["fixmatch:NPZ,labels=16", "--config.data.white_level=4095", "--config.data.center_crop=0.9"],
    ["fixmatch:NPZ,labels=16", "--config.views.strong.number=3", "--config.views.weak.pad=2"],
    [
        "fixmatch:NPZ,labels=16",
        "--config.views.strong.cutout=False",
        "--config.views.strong.fill=9",
    ],
    ["simclr:NPZ", "--config.views.contrast.size=24"],
    ["fixmatch:NPZ,labels=16,preset=usb_cv"],
    ["supervised:NPZ,labels=16", "--config.model.name=vit", *LORA],
]
CHOSEN = "--config.select=validation/balanced_accuracy"


@pytest.mark.parametrize("given", CASES, ids=range(len(CASES)))
def test_words_give_the_settings_again(given, data):
    given = [given[0].replace("NPZ", f"npz:{data}"), *given[1:]]
    config = read(given)
    again = words(to_json(config))
    assert again is not None
    assert names(read(again)) == names(config)
    assert len(again) <= len(given)


def test_words_choose_the_checkpoint_as_the_run(data):
    given = [f"fixmatch:npz:{data},labels=16", "--config.data.validation=8", CHOSEN]
    assert CHOSEN in words(to_json(read(given)))


def test_a_run_goes_on_from_another_folder(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data.parent)
    values = to_json(read([f"fixmatch:npz:{data.name},labels=16"]))
    values["data"]["added_labels"] = "next.csv"
    here = going_on(values, Path("run"), Path("n2.csv"), location=str(data))
    assert here[0].startswith(f"--config=fixmatch:npz:{data.name},")
    assert "--config.data.added_labels=next.csv,n2.csv" in here
    monkeypatch.chdir(tmp_path)
    there = going_on(values, Path("run"), Path("n2.csv"), location=str(data))
    assert there[0].startswith(f"--config=fixmatch:npz:{data},")
    assert f"--config.data.added_labels={data.parent / 'next.csv'},n2.csv" in there


def test_words_leave_out_where_the_run_began(data):
    given = [f"fixmatch:npz:{data},labels=16", "--config.init_from=x.npz"]
    given += ["--config.classifier_init=means", "--config.data.added_labels=a.csv"]
    assert words(to_json(read(given))) == [
        f"--config=fixmatch:npz:{data},labels=16,seed=0,size=small"
    ]


def test_words_of_a_run_of_an_own_config_file_are_not_known(data):
    values = to_json(read([f"fixmatch:npz:{data},labels=16"]))
    assert words(values | {"recipe": "mine"}) is None
    found = going_on(values | {"recipe": "mine"}, Path("run"), Path("next.csv"))
    assert found[0] == "--config=AS_OF_THIS_RUN"


def test_a_run_goes_on_with_all_tables_and_with_the_data_where_it_is_now(data, tmp_path):
    values = to_json(read([f"fixmatch:npz:{data},labels=16"]))
    values["data"]["added_labels"] = "next.csv"
    moved = write_data(tmp_path / "moved.npz")
    found = going_on(values, Path("runs/a-2"), Path("next-2.csv"), str(moved))
    config = from_flags(found[0].removeprefix("--config="), found[1:-1])[0]
    assert isinstance(config, ConfigDict)
    assert config.data.name == f"npz:{moved}"
    assert config.data.added_labels == "next.csv,next-2.csv"
    assert (config.init_from, config.classifier_init) == ("runs/a-2", "logistic")
    assert found[-1] == "--workdir=runs/a-2-2"


def test_what_follows_has_the_next_number(tmp_path):
    for name in ("a", "a-2", "a-3", "next.csv", "next-2.csv"):
        (tmp_path / name).touch()
    names = {"a": "a-2", "a-2": "a-3", "a-4": "a-5", "next.csv": "next-2.csv", "b": "b-2"}
    names |= {"next-2.csv": "next-3.csv", "b-2": "b-2-2", "elpv-40": "elpv-40-2", "7": "7-2"}
    found = {name: following(tmp_path / name).name for name in names}
    assert found == names
