"""The input's mean and deviation of a run whose configuration leaves them open."""

import numpy as np
import pytest

from jaxmatch.config import input_scales
from jaxmatch.config.flags import from_flags
from jaxmatch.data import splits
from jaxmatch.record.run_data import reading
from jaxmatch.record.settled import standardized
from jaxmatch.weights.transfer import names_weights, source_folder

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)


def scale(*options, images=IMAGES):
    config, _ = from_flags("finetune:folder:photos,labels=all", [f"--config.{o}" for o in options])
    found = standardized(config, images).data
    return tuple(found.mean), tuple(found.std)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("vit_small_patch16_224", input_scales.HALF),
        ("vit_small_patch2_32", input_scales.HALF),
        ("vit_base_patch14_reg4_dinov2", input_scales.IMAGENET),
        ("vit_base_patch32_clip_quickgelu_224", input_scales.CLIP),
    ],
)
def test_published_weights_have_the_scale_of_their_training(network, expected):
    assert scale("init_from=w.safetensors", f"model.name={network}") == expected
    given = scale("init_from=w.safetensors", f"model.name={network}", "data.mean=(0.3,)")
    assert given == ((0.3,), expected[1])


@pytest.mark.parametrize(
    "options",
    [
        ["init_from=w.safetensors"],  # of a network that has no published weights
        ["init_from=runs/first", "model.name=vit_small_patch16_224"],
        ["model.name=vit_small_patch16_224"],
    ],
)
def test_other_networks_have_that_of_the_images(options):
    mean, deviation = scale(*options)
    np.testing.assert_allclose(mean, IMAGES.mean((0, 1, 2)) / 255, atol=6e-5)
    np.testing.assert_allclose(deviation, IMAGES.std((0, 1, 2)) / 255, atol=6e-5)


def test_paths_of_a_configuration_may_begin_with_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "split.json").write_text('{"indices": [0, 4]}')
    assert splits.read("~/split.json").indices.tolist() == [0, 4]
    (tmp_path / "w.npz").mkdir()
    assert not names_weights("~/w.npz")
    assert source_folder("~/run", tmp_path) == tmp_path / "run"
    config, _ = from_flags("fixmatch:tfds:cifar10", ["--config.data.directory=~/tfds"])
    assert reading(config, config.data.directory).directory == str(tmp_path / "tfds")
