"""A StableHLO file gives what ``predict`` gives, with jax alone, for photographs, too."""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import exports
import jax
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image

import jaxmatch
from jaxmatch.cli import main as cli
from jaxmatch.data.images import Fitting, Native
from jaxmatch.data.levels import Levels
from jaxmatch.errors import InputError
from jaxmatch.evaluation.shipping import trained_of
from jaxmatch.report.card_code import CODE, code_for
from jaxmatch.weights.export import export
from jaxmatch.weights.shipped import Shipped

COUNTS = (1, 3, 500)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return exports.random_classifier(tmp_path_factory.mktemp("vit"), "vit")


@pytest.fixture(scope="module")
def file(vit, tmp_path_factory):
    """A file of the network ``vit``; to be read, not changed."""
    path = tmp_path_factory.mktemp("files") / "vit.stablehlo"
    export(path, trained_of(vit))
    return path


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(name, marks=() if name == "wide_resnet" else pytest.mark.slow)
        for name in exports.NETWORKS
    ],
)
def test_a_file_gives_the_probabilities_of_predict_for_any_number_of_images(network, tmp_path):
    classifier = exports.random_classifier(tmp_path, network)
    export(tmp_path / "a.stablehlo", trained_of(classifier))
    exported = jaxmatch.load(tmp_path / "a.stablehlo")
    assert exported.classes == exports.CLASSES
    for count in COUNTS if network == "wide_resnet" else COUNTS[1:2]:
        images = exports.images(count)
        expected, found = classifier.predict(images), exported.predict(images)
        assert expected.probabilities.std() > 1e-3
        np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=1e-6)
        assert found.names == expected.names


@pytest.mark.parametrize(
    "network", ["wide_resnet", pytest.param("resnet18", marks=pytest.mark.slow)]
)
def test_the_program_calls_no_library_on_any_platform(network, tmp_path):
    export(tmp_path / "a.stablehlo", trained_of(exports.random_classifier(tmp_path, network)))
    with zipfile.ZipFile(tmp_path / "a.stablehlo") as parts:
        program = jax_export.deserialize(bytearray(parts.read("program")))
    assert program.platforms == ("cpu", "cuda", "tpu")
    calls = [line for line in program.mlir_module().splitlines() if "custom_call" in line]
    assert all("shape_assertion" in line for line in calls)


def test_the_temperature_divides_the_logits(vit, tmp_path):
    warm = replace(trained_of(vit), temperature=2.0)
    export(tmp_path / "a.stablehlo", warm)
    cold = np.log(vit.predict(exports.images(3)).probabilities)
    expected = np.exp(cold / 2) / np.exp(cold / 2).sum(-1, keepdims=True)
    found = jaxmatch.load(tmp_path / "a.stablehlo").predict(exports.images(3)).probabilities
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_photographs_are_read_as_the_run_reads_them(vit, file, tmp_path, capsys):
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = random.integers(0, 256, (20 + number, 30, 4)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "bad.png").write_bytes(b"no image")
    expected, found = (each.predict(tmp_path / "photos") for each in (vit, jaxmatch.load(file)))
    assert found.paths == expected.paths
    assert found.left_out == expected.left_out
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=1e-6)
    words = ["predict", "--workdir", str(file), str(tmp_path / "photos")]
    cli.main([*words, "-o", str(tmp_path / "p.csv")])
    rows = (tmp_path / "p.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["class", *found.names]
    assert "bad.png" in capsys.readouterr().err


def test_the_facts_survive_the_file(vit):
    trained = replace(
        trained_of(vit),
        fitting=Fitting(size=(8, 8), share=0.875, native=Native(size=(6, 6), pad=1)),
        levels=Levels(background=None, white=4095.0),
    )
    facts = Shipped.of(trained)
    assert Shipped.from_json(json.loads(json.dumps(facts.to_json()))) == replace(
        facts, origin=json.loads(json.dumps(facts.origin))
    )


@pytest.mark.slow
def test_ten_lines_run_it_in_a_process_without_this_library(vit, file, tmp_path):
    assert CODE["stablehlo"].install == "pip install jax flatbuffers"
    lines = code_for("stablehlo", file.name)
    assert sum(bool(line) for line in lines) <= 10
    shown = (ROOT / "jaxmatch" / "weights" / "README.md").read_text()
    code = "\n".join(code_for("stablehlo", "photos.stablehlo"))
    assert f"```python\n{code}\n```" in shown
    found = fresh(file.parent, lines)
    zeros = vit.predict(np.zeros((1, *vit.image_shape), np.uint8))
    assert found.startswith(f"['{zeros.names[0]}'] [{zeros.confidence[0]:.4f}"[:-1])


def fresh(folder, lines):
    """What lines of Python print where only jax, NumPy and the standard library can be imported."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(('jaxmatch', 'flax', 'optax')))"
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([blocked, *lines])],
        cwd=folder,
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_equal_weights_give_equal_files_without_this_machines_folders(vit, file, tmp_path):
    export(tmp_path / "again.stablehlo", trained_of(vit))
    assert (tmp_path / "again.stablehlo").read_bytes() == file.read_bytes()
    with zipfile.ZipFile(file) as parts:
        assert b".py" not in parts.read("program")


def test_a_damaged_file_is_refused(file, tmp_path):
    content = file.read_bytes()
    middle = len(content) // 2
    for damaged in (content[:-100], content[:middle] + b"damaged" + content[middle + 7 :]):
        (tmp_path / "a.stablehlo").write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.stablehlo is damaged .+; export it again"):
            jaxmatch.load(tmp_path / "a.stablehlo")


def test_facts_of_another_version_are_refused(file, tmp_path):
    with zipfile.ZipFile(file) as parts, zipfile.ZipFile(tmp_path / "a.stablehlo", "w") as other:
        other.writestr("program", parts.read("program"))
        facts = json.loads(parts.read("facts.json"))
        other.writestr("facts.json", json.dumps({**facts, "format": 2}))
    with pytest.raises(InputError, match="its facts have the format 2, not 1"):
        jaxmatch.load(tmp_path / "a.stablehlo")


def test_files_of_weights_alone_are_told_apart(vit, tmp_path):
    for name in ("w.npz", "w.safetensors"):
        export(tmp_path / name, trained_of(vit))
        with pytest.raises(InputError, match=r"weights alone.+init_from"):
            jaxmatch.load(tmp_path / name)
    (tmp_path / "empty.stablehlo").touch()
    with pytest.raises(InputError, match="is empty"):
        jaxmatch.load(tmp_path / "empty.stablehlo")


def test_what_a_file_does_not_hold_is_refused(file):
    with pytest.raises(InputError, match="which holds one step; leave out --step"):
        jaxmatch.load(file, 3)
    with pytest.raises(InputError, match="give --dtype to export"):
        jaxmatch.load(file, dtype="float32")
    exported = jaxmatch.load(file)
    with pytest.raises(InputError, match="holds the teacher alone, not 'student'"):
        exported.predict(exports.images(1), "student")
    with pytest.raises(InputError, match="uint8 images of shape"):
        exported.predict(exports.images(1)[:, :4])


def test_a_platform_that_the_file_is_not_for_is_refused(file, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "METAL")
    with pytest.raises(InputError, match="runs on cpu, cuda, tpu, not on METAL"):
        jaxmatch.load(file)


def test_a_run_without_labels_has_no_classifier_to_export(vit, tmp_path):
    trained = trained_of(vit)
    object.__setattr__(trained.algorithm, "labeled", ())
    try:
        with pytest.raises(InputError, match="has no classifier"):
            export(tmp_path / "a.stablehlo", trained)
    finally:
        object.__delattr__(trained.algorithm, "labeled")
    assert not (tmp_path / "a.stablehlo").exists()


def test_what_is_no_file_or_takes_no_option_is_told(tmp_path):
    with pytest.raises(InputError, match=r"There is no file .*gone\.onnx"):
        jaxmatch.load(tmp_path / "gone.onnx")
    with pytest.raises(InputError, match="the path is empty"):
        jaxmatch.load("")
    (tmp_path / "some.stablehlo").write_bytes(b"x")
    with pytest.raises(InputError, match="has its temperature in it"):
        jaxmatch.load(tmp_path / "some.stablehlo", calibrated=False)
