"""ONNX Runtime gives what ``predict`` gives; tests for where the extra ``onnx`` is installed."""

import json
import logging

import exports
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmatch
from jaxmatch.errors import InputError
from jaxmatch.evaluation.shipping import trained_of
from jaxmatch.evaluation.unknown import measure
from jaxmatch.record.unknown import VALIDATION
from jaxmatch.report.card_code import code_for
from jaxmatch.weights import export_onnx
from jaxmatch.weights.export import export

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return exports.random_classifier(tmp_path_factory.mktemp("vit"), "vit")


@pytest.mark.parametrize("network", exports.NETWORKS)
def test_onnx_runtime_gives_the_probabilities_of_predict(network, tmp_path, caplog):
    classifier = exports.random_classifier(tmp_path, network)
    with caplog.at_level(logging.WARNING):
        export(tmp_path / "a.onnx", trained_of(classifier))
    assert not caplog.records
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(exports.CLASSES)
    exported = jaxmatch.load(tmp_path / "a.onnx")
    for count in (1, 3, 500):
        images = exports.images(count)
        expected = classifier.predict(images).probabilities
        (found,) = session.run(["probabilities"], {"images": images})
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(exported.predict(images).probabilities, found)


def test_a_file_tells_how_strange_images_look(tmp_path, monkeypatch, capsys):
    classifier = exports.random_classifier(tmp_path, "wide_resnet")
    images = exports.images(160)
    known = measure(
        exports.images(40, seed=1), VALIDATION, 3, lambda images, _: classifier.scored(images)
    )
    object.__setattr__(classifier, "known_images", known)
    export(tmp_path / "a.onnx", trained_of(classifier, unknown=True))
    expected = classifier.predict(images, unknown=True)
    found = jaxmatch.load(tmp_path / "a.onnx").predict(images, unknown=True)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.unknown, expected.unknown, rtol=0, atol=1.001 / 41)
    assert np.mean(found.unknown == expected.unknown) > 0.9
    monkeypatch.chdir(tmp_path)
    exec("\n".join(code_for("onnx", "a.onnx", unknown=True)), {})
    zeros = classifier.predict(np.zeros((1, *classifier.image_shape), np.uint8), unknown=True)
    assert capsys.readouterr().out.rstrip().endswith(f"] {zeros.unknown}")


def test_the_network_computes_as_before_after_a_conversion(vit, tmp_path):
    before = vit.predict(exports.images(3)).probabilities
    export(tmp_path / "a.onnx", trained_of(vit))
    again = exports.random_classifier(tmp_path, "vit").predict(exports.images(3)).probabilities
    np.testing.assert_array_equal(again, before)
    # By position, which the converter's own function refuses.
    np.testing.assert_array_equal(jnp.cumsum(jnp.ones((2, 2), int), 1), [[1, 2], [1, 2]])


def test_replaced_functions_are_restored_whatever_the_converter_does(monkeypatch):
    def convert():
        for module, name in ((jnp, "cumsum"), (jax.nn, "relu")):
            monkeypatch.setattr(module, name, None)
        raise ZeroDivisionError

    before = jnp.cumsum, jax.nn.relu
    with pytest.raises(ZeroDivisionError), export_onnx._restored():
        convert()
    assert (jnp.cumsum, jax.nn.relu) == before


def test_the_lines_of_the_card_run_it(vit, tmp_path, monkeypatch, capsys):
    export(tmp_path / "a.onnx", trained_of(vit))
    monkeypatch.chdir(tmp_path)
    exec("\n".join(code_for("onnx", "a.onnx")), {})
    zeros = vit.predict(np.zeros((1, *vit.image_shape), np.uint8))
    assert capsys.readouterr().out.startswith(
        f"['{zeros.names[0]}'] [{zeros.confidence[0]:.3f}"[:-1]
    )


def test_a_model_that_differs_from_the_network_is_not_written(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match=r"probabilities that differ.+export it as \.stablehlo"):
        export(tmp_path / "a.onnx", trained_of(vit))
    assert not (tmp_path / "a.onnx").exists()


def test_other_models_and_damaged_files_are_refused(vit, tmp_path):
    export(tmp_path / "a.onnx", trained_of(vit))
    (tmp_path / "b.onnx").write_bytes((tmp_path / "a.onnx").read_bytes()[:-5000])
    (tmp_path / "c.onnx").write_text("hello")
    for name in ("b.onnx", "c.onnx"):
        with pytest.raises(InputError, match="is no classifier, or damaged"):
            jaxmatch.load(tmp_path / name)
