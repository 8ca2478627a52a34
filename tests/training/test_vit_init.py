"""Runs of Vision Transformers that start from a file or from another run, and their export."""

import json
import logging
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers import assert_bitwise
from safetensors.numpy import load_file
from tiny_runs import OVERRIDES, PERIOD, without_extras

from jaxmatch import load, train
from jaxmatch.cli import main as cli
from jaxmatch.config.flags import from_flags
from jaxmatch.data.facts import Facts
from jaxmatch.errors import InputError
from jaxmatch.evaluation import encoder
from jaxmatch.models.vit import ViT
from jaxmatch.program import Program
from jaxmatch.record.folder import RunFolder
from jaxmatch.training import stages, together
from jaxmatch.weights.files import write_weights
from jaxmatch.weights.positions import resize_positions
from jaxmatch.weights.vit_names import timm_shapes, to_timm

CLASSES = 4  # of the tiny data
MODEL = {"name": "vit", "patch": 4, "width": 16, "depth": 2, "heads": 2}
# Neither rate nor decay of a step changes what the run starts from.
FROZEN = {
    **{key: value for key, value in OVERRIDES.items() if not key.startswith("model.")},
    **{f"model.{key}": value for key, value in MODEL.items()},
    "steps": PERIOD,
    "optim.learning_rate": 0.0,
    "devices": 1,
}


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


def configuration(data, **overrides):
    settings = FROZEN | {key.replace("__", "."): value for key, value in overrides.items()}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return from_flags(f"pseudo_label:npz:{data},labels=16", flags)[0]


@pytest.fixture(scope="module")
def tensors():
    """A network of 4 classes under timm's names, for images of 16 pixels."""
    options = {key: value for key, value in MODEL.items() if key != "name"}
    model = ViT(classes=CLASSES, **options)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), images)["params"]
    random = np.random.default_rng(0)
    return {
        name: random.normal(size=shape, scale=0.3).astype(np.float32)
        for name, shape in timm_shapes(shapes).items()
    }


@pytest.fixture(scope="module")
def weights(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("started") / "w.safetensors"
    write_weights(path, tensors)
    return path


@pytest.fixture(scope="module")
def started(data, weights):
    """A run on images of 8 pixels from a file, and the log."""
    folder = weights.parent
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("jaxmatch.training.run")
    logger.addHandler(handler)
    try:
        train(configuration(data, init_from=folder / "w.safetensors"), folder / "run")
    finally:
        logger.removeHandler(handler)
    return folder / "run", lines


def resized(tensors, side, rule="timm"):
    grid = (side // 4, side // 4)
    return tensors | {
        "pos_embed": resize_positions(tensors["pos_embed"], grid, prefix=1, rule=rule)
    }


@pytest.mark.slow  # weights/test_transfer.py and test_vit_files.py read files without a run
def test_a_run_starts_from_a_file_and_says_how(started, tensors):
    run, lines = started
    state = load(run).state
    for params in (state.params, state.teacher["params"]):
        found, expected = to_timm(jax.device_get(params)), resized(tensors, 8)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)
    text = "\n".join(lines)
    assert "w.safetensors: loaded 32 tensors" in text
    assert "the classifier is the file's, of 4 classes." in text
    assert "resized the position embedding from 4 x 4 to 2 x 2 patches by timm's rule." in text
    log = (run / "log.txt").read_text()
    told = [line for line in lines if line.startswith("init_from=")]
    assert len(told) == len(set(told)) > 2  # each once
    assert all(line in log for line in told)


@pytest.mark.slow
def test_a_run_without_batch_norm_is_read_again(data, started):
    run, _ = started
    state = load(run).state
    assert state.stats == state.teacher["batch_stats"] == {}
    summary = json.loads((run / "summary.json").read_text())
    with np.load(data) as file:
        found, labels = load(run).predict(file["x_test"]), file["y_test"]
    assert found.probabilities.shape == (24, 4)
    assert (found.label == labels).mean() == pytest.approx(summary["teacher"]["last"])


@pytest.mark.slow
def test_a_run_is_exported_under_timms_names(started, tensors, tmp_path, capsys):
    run, _ = started
    path = tmp_path / "w.safetensors"
    cli.main(["export", f"--workdir={run}", "-o", str(path)])
    assert f"teacher of step {PERIOD}, timm names\n" in capsys.readouterr().out
    found, expected = load_file(path), resized(tensors, 8)
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in expected.items()
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)
    other = tmp_path / "other.safetensors"
    with pytest.raises(SystemExit):
        cli.main(["export", f"--workdir={run}", "-o", str(other), "--naming=torchvision"])
    assert "no names in torchvision" in capsys.readouterr().err
    assert not other.exists()


@pytest.mark.slow
def test_usbs_rules_are_a_setting(data, started, tensors, tmp_path):
    source = started[0].parent / "w.safetensors"
    settings = {"init_from": source, "init_rules": "usb"}
    train(configuration(data, **settings), tmp_path / "run")
    found = to_timm(jax.device_get(load(tmp_path / "run").state.params))
    expected = resized(tensors, 8, "usb")
    np.testing.assert_allclose(found["pos_embed"], expected["pos_embed"], rtol=1e-6)
    assert not np.allclose(found["pos_embed"], resized(tensors, 8)["pos_embed"], rtol=1e-2)
    assert not np.allclose(found["head.weight"], tensors["head.weight"], rtol=1e-2)


@pytest.mark.slow
def test_a_run_starts_from_another_ones_network_and_resizes_its_positions(data, started, tmp_path):
    run, _ = started
    settings = {"init_from": run, "data__image_size": 12}
    train(configuration(data, **settings), tmp_path / "run")
    theirs, ours = (
        to_timm(jax.device_get(load(folder).state.params)) for folder in (run, tmp_path / "run")
    )
    expected = resize_positions(theirs["pos_embed"], (3, 3), prefix=1, rule="timm")
    np.testing.assert_allclose(ours["pos_embed"], expected, rtol=1e-5, atol=1e-7)
    name = "blocks.1.attn.qkv.weight"
    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)
    assert not np.allclose(ours["head.weight"], theirs["head.weight"], rtol=1e-2)


def test_a_later_stage_may_have_images_of_another_size():
    flags = [f"--config.{key}={value}" for key, value in FROZEN.items()]
    flags += ["--config.stages.supervised.data.image_size=12"]
    config = from_flags("fixmatch+supervised:mnist5k,labels=40", flags)[0]
    sides = (16, 12)
    facts = [
        Facts(classes=tuple("abcd"), image_shape=(side, side, 3), labels=(0, 1), unlabeled=8)
        for side in sides
    ]
    stages.check(config, facts)
    config.stages.supervised.model.depth = 1
    with pytest.raises(InputError, match="block2"):
        stages.check(config, facts)


@pytest.mark.slow
def test_features_depend_on_what_lora_learned(started):
    run = load(started[0])
    config = run.config.copy_and_resolve_references()
    config.model.lora_rank = 2
    program = Program.build(config, RunFolder(started[0]).read_facts())
    state = jax.jit(program.init)()
    learned = state.replace(
        teacher=jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf + 1 if path[-1].key == "lora_b" else leaf, state.teacher
        )
    )
    found = [
        encoder.of_run(replace(run, config=config, program=program, state=each)).digest
        for each in (state, learned)
    ]
    assert found[0] != found[1]


@pytest.mark.slow
def test_runs_together_start_from_one_file(data, started, tmp_path, monkeypatch):
    monkeypatch.setattr(together, "on_cpu", lambda mesh: False)
    source = started[0].parent / "w.safetensors"
    runs = [(configuration(data, init_from=source, seed=s), tmp_path / str(s)) for s in (0, 1)]
    together.train(runs)
    first, second = (jax.device_get(load(tmp_path / str(s)).state.params) for s in (0, 1))
    assert_bitwise(first, second)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model__depth": 3}, "'blocks.2.* set --config.model.depth=2"),
        pytest.param({"model__patch": 2}, "set --config.model.patch=4", marks=pytest.mark.slow),
        ({"model__head_layers": 1}, "no kept_head; leave out init_heads and model.head_layers"),
    ],
)
def test_a_file_of_another_network_is_refused_before_anything_is_written(
    settings, expected, data, weights, tmp_path
):
    with pytest.raises(InputError, match=expected):
        train(configuration(data, init_from=weights, **settings), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
