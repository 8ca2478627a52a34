"""Weights in files: what comes back, what is refused, what a run takes from one."""

import json
import os
import pickle
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_bitwise, quick_jit
from safetensors.numpy import load_file, save, save_file
from tiny_runs import PERIOD, train_tiny

from experiments.parity.networks_formula import formula_weights
from experiments.weights.from_pth import find_tensors
from jaxmatch import load
from jaxmatch.cli import main as cli
from jaxmatch.errors import DiskError, InputError
from jaxmatch.models.heads import Linear, Projection
from jaxmatch.models.resnet import ResNet
from jaxmatch.models.wide_resnet import WideResNet
from jaxmatch.weights.files import read_weights, write_weights
from jaxmatch.weights.torch_names import from_torch, nameable, to_torch
from jaxmatch.weights.transfer import names_weights, read_encoder

SUFFIXES = (".safetensors", ".npz")
TINY = ResNet(classes=5, blocks=(1, 1, 1, 1), block="basic", width=2)
PROJECTED = TINY.clone(extra_heads={"projection": Projection(4)})


def shapes(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), False))


def filled(model, start=0):
    """Variables of ``model``, each value its own."""
    count = iter(range(start, 10**9, 10**4))
    return jax.tree.map(
        lambda leaf: (next(count) + np.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape),
        shapes(model),
    )


def trunk(variables):
    return {
        kind: {
            name: leaf for name, leaf in tree.items() if name not in ("classifier", "projection")
        }
        for kind, tree in variables.items()
    }


@pytest.fixture
def golden(request):
    return request.config.rootpath / "tests" / "golden"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read(suffix, tmp_path):
    weights = {
        "transposed": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        "double": np.linspace(0, 1, 5),
        "half": np.arange(3, dtype=np.float16),
        "unsigned": np.arange(3, dtype=np.uint16),
        "flags": np.arange(3, dtype=np.uint32) + 2**31,
        "seed": np.array([2**63], np.uint64),
        "count": np.array(7),
        "none": np.zeros((0, 3), np.float32),
    }
    write_weights(tmp_path / f"w{suffix}", weights)
    found = read_weights(tmp_path / f"w{suffix}")
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(found[name], value)
    assert [path.name for path in tmp_path.iterdir()] == [f"w{suffix}"]


def test_the_files_are_those_of_the_libraries(tmp_path):
    weights = {"a": np.arange(6.0).reshape(2, 3).T}
    for suffix in SUFFIXES:
        write_weights(tmp_path / f"w{suffix}", weights)
    np.testing.assert_array_equal(load_file(tmp_path / "w.safetensors")["a"], weights["a"])
    np.testing.assert_array_equal(np.load(tmp_path / "w.npz")["a"], weights["a"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_half_precision_becomes_the_dtype_of_the_model(dtype, tmp_path):
    weights = to_torch(jax.tree.map(lambda leaf: leaf % 100, filled(TINY)))
    weights = {name: value.astype(dtype) for name, value in weights.items()}
    write_weights(tmp_path / "w.safetensors", weights)
    read = read_weights(tmp_path / "w.safetensors")
    assert {value.dtype for value in read.values()} == {np.dtype(dtype)}
    ours = from_torch(read, shapes(TINY))
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype(np.float32)}
    expected = weights["fc.weight"].T.astype(np.float32)
    np.testing.assert_array_equal(ours["params"]["classifier"]["kernel"], expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_exists_is_kept(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_text("precious")
    with pytest.raises(InputError, match="exists; remove it"):
        write_weights(path, {"a": np.zeros(2)})
    assert path.read_text() == "precious"


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(DiskError, match="No space left"):
        write_weights(tmp_path / "w.npz", {"a": np.zeros(2)})
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="there is no folder"):
        write_weights(tmp_path / "no" / "w.npz", {"a": np.zeros(2)})


class Payload:
    """What runs code when it is unpickled: a folder appears."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.pkl", "w.pth.tar", "w.npz", "w.npy"])
def test_a_pickle_is_refused_and_not_executed(name, tmp_path):
    evidence, path = tmp_path / "executed", tmp_path / name
    path.write_bytes(pickle.dumps({"a": Payload(evidence)}))
    with pytest.raises(InputError):
        read_weights(path)
    assert not evidence.exists()
    pickle.loads(path.read_bytes())
    assert evidence.exists()  # so the payload works


@pytest.mark.parametrize("damage", ["npz", "safetensors"])
def test_objects_among_the_arrays_are_refused_and_not_executed(damage, tmp_path):
    evidence, path = tmp_path / "executed", tmp_path / f"w.{damage}"
    np.savez(tmp_path / "bad", a=np.zeros(2), b=np.array([Payload(evidence)], object))
    (tmp_path / "bad.npz").rename(path)
    with pytest.raises(InputError, match="damaged or holds more than numbers"):
        read_weights(path)
    assert not evidence.exists()


def single_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def truncated(path):
    write_weights(path, {"a": np.arange(1000.0), "b": np.arange(1000.0)})
    path.write_bytes(path.read_bytes()[:-500])


def changed_length(path):
    content = save({"a": np.zeros(4, np.float32)})
    path.write_bytes(content.replace(b'"shape":[4]', b'"shape":[9]'))


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("w.npz", None, "there is no weights file"),
        ("w.h5", None, r"must end in \.safetensors or \.npz"),
        ("w.npz", lambda path: path.mkdir(), "cannot be read"),
        ("w.npz", lambda path: path.write_bytes(b""), "damaged"),
        ("w.safetensors", lambda path: path.write_bytes(b"\xff" * 64), "damaged"),
        ("w.npz", truncated, "damaged"),
        ("w.safetensors", truncated, "damaged"),
        ("w.safetensors", changed_length, "damaged"),
        ("w.npz", single_array, "single array"),
        ("w.npz", lambda path: np.savez(path, a=np.array(["x"])), "a is no array of numbers"),
        ("w.safetensors.index.json", lambda path: path.write_text("{}"), "damaged"),
        ("w.safetensors.index.json", None, "there is no weights file"),
    ],
)
def test_what_cannot_be_read_is_said(name, make, expected, tmp_path):
    if make:
        make(tmp_path / name)
    with pytest.raises(InputError, match=expected):
        read_weights(tmp_path / name)


@pytest.fixture
def parts(tmp_path):
    """A network in three shards, and its index."""
    weights = to_torch(filled(TINY))
    names = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    places = {name: names[at % 3] for at, name in enumerate(weights)}
    for each in names:
        write_weights(tmp_path / each, {n: weights[n] for n in weights if places[n] == each})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": places}))
    return index, [tmp_path / each for each in names], weights


def test_shards_are_read_as_one_file(parts):
    index, shards, weights = parts
    for path in (index, *shards):
        assert names_weights(str(path))
        assert_bitwise(read_weights(path), weights)
    assert_bitwise(read_encoder(str(index), trunk(shapes(TINY))), trunk(filled(TINY)))
    index.unlink()
    assert_bitwise(read_weights(shards[1]), weights)


def test_missing_shards_are_named(parts):
    index, shards, _ = parts
    shards[2].unlink()
    named = re.escape(shards[2].name)
    with pytest.raises(InputError, match=f"is the index of 3, and {named} is missing"):
        read_weights(index)
    with pytest.raises(InputError, match=f"is one part of 3, and {named} is missing"):
        read_weights(shards[0])
    with pytest.raises(InputError, match="there is no weights file"):
        read_weights(shards[2])
    shards[1].unlink()
    with pytest.raises(InputError, match="is one part of 3, and the others are missing"):
        read_weights(shards[0])


def test_an_index_names_no_file_of_another_folder(parts, tmp_path):
    index, shards, weights = parts
    (tmp_path / "inner").mkdir()
    inner = tmp_path / "inner" / index.name
    inner.write_text(json.dumps({"weight_map": {"a": f"../{shards[0].name}"}}))
    with pytest.raises(InputError, match="is the index of 1, and model-00001-of-00003"):
        read_weights(inner)
    assert weights


def test_suffixes_may_be_in_capitals(tmp_path):
    for name in ("w.SAFETENSORS", "w.NPZ"):
        assert names_weights(f"{name}#ema.")
        write_weights(tmp_path / name, {"a": np.arange(3.0)})
        np.testing.assert_array_equal(read_weights(tmp_path / name)["a"], np.arange(3.0))
    with pytest.raises(InputError, match="is a pickle by its name"):
        read_weights(tmp_path / "w.PTH")


def test_a_tensor_of_an_unknown_type_is_refused_where_it_is_needed(tmp_path):
    weights = {n: np.ascontiguousarray(value) for n, value in to_torch(filled(TINY)).items()}
    ours = trunk(shapes(TINY))
    save_file({**weights, "aside": np.zeros(2, "c8")}, tmp_path / "aside.safetensors")
    assert_bitwise(read_encoder(str(tmp_path / "aside.safetensors"), ours), trunk(filled(TINY)))
    save_file({**weights, "bn1.weight": np.zeros(2, "c8")}, tmp_path / "inside.safetensors")
    with pytest.raises(InputError, match=r"tensor 'bn1\.weight' is of type C64, which is not read"):
        read_encoder(str(tmp_path / "inside.safetensors"), ours)


USB = WideResNet(classes=10, conv_bias="stem", legacy_transition=True, padding="torch", bn_eps=1e-5)
COMATCH = WideResNet(
    classes=10,
    padding="torch",
    conv_bias="none",
    bn_eps=1e-5,
    bn_eps_final=1e-5,
    extra_heads={"projection": Projection(64, activation="leaky_relu")},
)
SIMMATCH = ResNet(classes=10, extra_heads={"projection": Projection(128)})


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("file", "model", "naming"),
    [
        ("net_wrn_28_2", USB, "usb"),
        ("net_wrn_28_8", USB.clone(classes=100, width=8), "usb"),
        ("net_comatch_wrn_28_2", COMATCH, "comatch"),
        ("net_simmatch_resnet50", SIMMATCH, "simmatch"),
    ],
)
def test_networks_from_files_compute_what_the_references_do(
    file, model, naming, suffix, golden, tmp_path
):
    with np.load(golden / f"{file}.npz") as content:
        recorded = {key: content[key] for key in content.files if key.startswith(("in/", "out/"))}
        salt = json.loads(str(content["meta"]))["salt"]
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), shapes(model))
    weights = {
        name: formula_weights(name, leaf.shape, salt)
        for name, leaf in to_torch(zeros, naming=naming).items()
    }
    write_weights(tmp_path / f"w{suffix}", weights)
    ours = read_encoder(str(tmp_path / f"w{suffix}"), shapes(model))
    images = jnp.asarray(recorded["in/x"].transpose(0, 2, 3, 1), jnp.float32)
    outputs = quick_jit(lambda variables: model.apply(variables, images, False))(ours)
    found = {"logits": outputs.logits, "feat": outputs.features, **outputs.heads}
    if "projection" in found:
        embedding = np.asarray(found["projection"])
        found["proj"] = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    compared = [name for name in found if f"out/eval_{name}" in recorded]
    assert len(compared) == 2
    for name in compared:
        expected = recorded[f"out/eval_{name}"]
        np.testing.assert_allclose(found[name], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_recorded_state_dict_computes_the_same_from_a_file(suffix, golden, tmp_path):
    with np.load(golden / "fullysupervised.npz") as file:
        weights = {k.removeprefix("init/"): file[k] for k in file.files if k.startswith("init/")}
        images, logits = file["batch/0/x_lb"], file["fwd/0/0/logits"]
    write_weights(tmp_path / f"w{suffix}", weights)
    model = USB.clone(classes=5, depth=10, width=0.25)
    ours = read_encoder(str(tmp_path / f"w{suffix}"), shapes(model))
    images = jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32)
    apply = quick_jit(lambda ours: model.apply(ours, images, train=True, mutable=["batch_stats"]))
    np.testing.assert_allclose(apply(ours)[0].logits, logits, rtol=1e-4, atol=1e-5)


@pytest.fixture
def eman(tmp_path):
    """A file of student and teacher as SimMatch saves them, and both encoders."""
    student, teacher = filled(PROJECTED), filled(PROJECTED, start=5)
    weights = {
        f"module.{name}": value
        for prefix, variables in (("main.", student), ("ema.", teacher))
        for name, value in to_torch(variables, prefix=prefix).items()
    }
    weights["module.DA_queue"] = np.zeros((256, 5))
    write_weights(tmp_path / "simmatch.safetensors", weights)
    return str(tmp_path / "simmatch.safetensors"), student, teacher


def test_one_of_several_networks_must_be_chosen(eman):
    path, student, teacher = eman
    ours = trunk(shapes(TINY))
    with pytest.raises(InputError, match=r"several networks, of prefixes \['ema\.', 'main\.'\]"):
        read_encoder(path, ours)
    assert_bitwise(read_encoder(f"{path}#ema.", ours), trunk(teacher))
    assert_bitwise(read_encoder(f"{path}#main.", ours), trunk(student))
    assert_bitwise(read_encoder(f"{path}#main", ours), trunk(student))
    with_head = {kind: dict(tree) for kind, tree in shapes(PROJECTED).items()}
    del with_head["params"]["classifier"]
    found = read_encoder(f"{path}#ema.", with_head)
    assert_bitwise(found["params"]["projection"], teacher["params"]["projection"])
    assert_bitwise(read_encoder(f"{path}#module.ema", ours), trunk(teacher))  # as in the file
    with pytest.raises(InputError, match=r"it holds no tensor whose name begins with 'student\.'"):
        read_encoder(f"{path}#student.", ours)


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "module.main.", "backbone."])
def test_a_single_network_needs_no_prefix(prefix, tmp_path):
    weights = to_torch(filled(TINY), prefix=prefix, naming="torchvision")
    write_weights(tmp_path / "w.npz", {**weights, "queue": np.zeros((3, 2))})
    for chosen in ("", f"#{prefix}", f"#{prefix.removesuffix('.')}"):
        found = read_encoder(f"{tmp_path / 'w.npz'}{chosen}", trunk(shapes(TINY)))
        assert_bitwise(found, trunk(filled(TINY)))


def test_what_names_a_file_of_weights(tmp_path):
    for name in ("w.npz", "w.npz#opt/target/", "w.npz#params/", "w.npz#", "w.safetensors#a.b."):
        assert names_weights(str(tmp_path / name))
    (tmp_path / "a.npz#" / "run").mkdir(parents=True)
    (tmp_path / "b.npz").mkdir()
    for name in ("a.npz#/run", "b.npz", "run", "w.npz#a#b"):
        assert not names_weights(str(tmp_path / name))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"layer4.0.bn2.running_var": None}, r"no tensor 'layer4\.0\.bn2\.running_var'"),
        ({"layer1.0.bn1.running_mean": None}, r"no tensor 'layer1\.0\.bn1\.running_mean'"),
        ({"layer4.1.conv1.weight": np.zeros(1)}, r"'layer4\.1\.conv1\.weight' has no place"),
        ({"conv1.bias": np.zeros(2)}, r"'conv1\.bias' has no place"),
        ({"conv1.weight": np.zeros((4, 3, 7, 7))}, r"'conv1\.weight' has shape \(7, 7, 3, 4\)"),
        ({"fc.weight": None, "fc.bias": None, "head.0.weight": np.zeros(3)}, ""),
    ],
)
def test_an_encoder_must_be_whole_and_heads_need_not(change, expected, tmp_path):
    weights = to_torch(filled(TINY)) | change
    weights = {name: value for name, value in weights.items() if value is not None}
    path = str(tmp_path / "w.npz")
    write_weights(path, weights)
    if not expected:
        assert_bitwise(read_encoder(path, trunk(shapes(TINY))), trunk(filled(TINY)))
        return
    with pytest.raises(InputError, match=expected) as caught:
        read_encoder(path, trunk(shapes(TINY)))
    assert f"init_from={path}" in str(caught.value)


def test_files_are_told_from_runs(tmp_path):
    index = "a/w.safetensors.index.json"
    for name in ("w.npz", "a/w.safetensors", "a#b/w.npz#ema.", "w.pth", "w.npz#", index):
        assert names_weights(name), name
    (tmp_path / "run.npz").mkdir()
    for name in ("", "runs/x", "stage:1_simclr", "w.npz/run", "w.h5", str(tmp_path / "run.npz")):
        assert not names_weights(name), name


def test_heads_without_a_name_are_left_out():
    heads = {"projection": Projection(4, norm=True), "rotation": Linear(4)}
    variables = filled(WideResNet(classes=5, depth=10, width=0.25, extra_heads=heads))
    kept, naming = nameable(variables, heads)
    assert naming == "usb_heads"
    assert variables["params"].keys() - kept["params"].keys() == {"projection"}
    assert "projection" not in kept["batch_stats"]
    assert {"rot_classifier.weight", "backbone.conv1.bias"} <= to_torch(kept, naming=naming).keys()
    kept, naming = nameable(variables, heads, "torchssl")
    assert variables["params"].keys() - kept["params"].keys() == {"projection", "rotation"}
    assert "fc.weight" in to_torch(kept, naming=naming)


def test_two_heads_of_one_name_are_refused():
    variables = filled(TINY.clone(extra_heads={"first": Projection(4), "second": Projection(4)}))
    with pytest.raises(InputError, match=r"both be 'head\.0\.bias'"):
        to_torch(variables)


def test_the_state_dict_of_a_checkpoint_is_found():
    weights = {"a.weight": np.zeros(2), "a.num_batches_tracked": np.zeros(())}
    kept = {"a.weight": weights["a.weight"]}
    assert find_tensors(weights) == (kept, "")
    assert find_tensors({"epoch": 3, "state_dict": weights}) == (kept, "state_dict")
    both = {"model": weights, "ema_model": {"b": np.ones(1)}}
    assert find_tensors(both)[1] == "model"
    assert find_tensors(both, "ema_model")[0].keys() == {"b"}
    nested = {"epoch": 3, "model": {"state_dict": weights}, "ema_model": {"epoch": 3}}
    assert find_tensors(nested) == (kept, "model.state_dict")
    assert find_tensors({"a": {"b": {"c": weights}}}, "a.b.c")[0] == kept
    assert find_tensors({"teacher": weights})[1] == "teacher"
    assert find_tensors(nested, "model") == (kept, "model.state_dict")
    numbers = {"epoch": np.array(3)}
    assert find_tensors({**numbers, "model": weights}) == (kept, "model")
    assert find_tensors({**numbers, "model": {**numbers, "state_dict": weights}})[0] == kept
    assert find_tensors({"queue": np.ones(3), "state_dict": weights})[0] == kept
    assert find_tensors({**numbers, **weights})[0].keys() == {"epoch", "a.weight"}
    wrong = ((nested, "model.other"), (nested, "epoch.model"), (numbers, ""))
    for content, key in (({"epoch": 3}, ""), (both, "other"), ([1], ""), *wrong):
        with pytest.raises(ValueError, match=r"no dict|no tensors"):
            find_tensors(content, key)


SHORT = {"steps": PERIOD, "model__conv_bias": "none"}
FROZEN = {**SHORT, "optim__learning_rate": 0.0, "model__bn_decay": 1.0}


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train_tiny(data, workdir, **SHORT)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "network"), [(".safetensors", "teacher"), (".npz", "student")])
def test_an_exported_network_starts_another_run(suffix, network, run, data, tmp_path, capsys):
    path = tmp_path / f"w{suffix}"
    words = ["export", f"--workdir={run}", "-o", str(path), f"--network={network}"]
    cli.main(words)
    expected = f"wrote {path}: {network} of step {PERIOD}, usb names\n"
    assert capsys.readouterr().out.startswith(expected)
    train_tiny(data, tmp_path / "then", init_from=str(path), **FROZEN)
    before, then = load(run), load(tmp_path / "then")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8, 8, 3)), jnp.float32)
    expected, found, other = (
        each.program.network(jax.device_get(variables), images, train=False)[0].features
        for each, variables in (
            (before, before.variables(network)),
            (then, then.variables()),
            (before, before.variables("student" if network == "teacher" else "teacher")),
        )
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found, other, rtol=1e-5, atol=1e-6)
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "exists; remove it" in capsys.readouterr().err


def test_a_run_from_a_pickle_does_not_begin(data, tmp_path):
    evidence = tmp_path / "executed"
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": Payload(evidence)}))
    with pytest.raises(InputError, match=r"experiments\.weights\.from_pth"):
        train_tiny(data, tmp_path / "run", init_from=str(tmp_path / "w.pth"), **SHORT)
    assert not evidence.exists()
    assert not (tmp_path / "run" / "config.json").exists()
