import numpy as np
import pytest
from PIL import Image

from jaxmatch.data.crops import HostCrop
from jaxmatch.data.images import fit


def random(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def noise(height=40, width=60):
    levels = np.random.RandomState(0).randint(0, 256, (height, width, 3))
    return Image.fromarray(levels.astype(np.uint8))


def test_boxes_have_the_area_and_the_shape_asked_for():
    crop, source = HostCrop(size=(32, 32), area=(0.2, 0.5)), random()
    boxes = np.array([crop.box(300, 200, source) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert min(left.min(), top.min()) == 0
    assert right.max() <= 300
    assert bottom.max() <= 200
    area = (right - left) * (bottom - top) / (300 * 200)
    aspect = (right - left) / (bottom - top)
    assert area.min() > 0.19
    assert area.max() < 0.51
    assert aspect.min() > 0.74
    assert aspect.max() < 1.35
    assert np.mean(area) == pytest.approx(0.35, abs=0.01)
    assert np.mean(np.log(aspect)) == pytest.approx(0, abs=0.02)
    # The place is uniform over what is left of each side.
    assert np.mean(left / (300 - (right - left))) == pytest.approx(0.5, abs=0.03)


def test_a_box_that_never_fits_is_the_centre():
    crop = HostCrop(size=(8, 8), area=(1.0, 1.0))
    assert crop.box(100, 10, random()) == (43, 0, 56, 10)
    assert crop.box(10, 100, random()) == (0, 43, 10, 56)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_the_crop_is_cut_before_it_is_resized(method):
    image = noise()
    crop = HostCrop(size=(16, 24), area=(0.3, 0.3), method=method)
    view = crop.apply(image, random())
    part = image.crop(crop.box(image.width, image.height, random()))
    np.testing.assert_array_equal(view, part.resize((24, 16), Image.Resampling[method.upper()]))


def test_flips_mirror_their_share():
    image, plain = noise(), HostCrop(size=(8, 8), area=(0.5, 1.0))
    flipping = HostCrop(size=(8, 8), area=(0.5, 1.0), flip=0.3)
    mirrored = 0
    for seed in range(400):
        view, other = flipping.apply(image, random(seed)), plain.apply(image, random(seed))
        mirrored += np.array_equal(view, other[:, ::-1])
        assert np.array_equal(view, other) or np.array_equal(view, other[:, ::-1])
    assert 85 < mirrored < 155  # 120 expected, standard deviation 9


@pytest.mark.parametrize(("size", "turns"), [((8, 8), (0, 1, 2, 3)), ((8, 12), (0, 2))])
def test_vertical_flips_and_turns_have_their_share(size, turns):
    image, plain = noise(), HostCrop(size=size, area=(0.5, 1.0))
    turning = HostCrop(size=size, area=(0.5, 1.0), vertical_flip=0.3, rotate90=True)
    found = {(vertical, turn): 0 for vertical in (False, True) for turn in turns}
    for seed in range(400):
        view, other = turning.apply(image, random(seed)), plain.apply(image, random(seed))
        for vertical, turn in found:
            expected = np.rot90(other[::-1] if vertical else other, turn)
            found[vertical, turn] += np.array_equal(view, expected)
    assert sum(found.values()) == 400
    mirrored = sum(count for (vertical, _), count in found.items() if vertical)
    assert 85 < mirrored < 155  # 120 expected, standard deviation 9
    for turn in turns:
        assert found[False, turn] + found[True, turn] == pytest.approx(400 / len(turns), abs=45)


def test_without_an_area_the_centre_is_cut():
    image = noise()
    view = HostCrop(size=(16, 16)).apply(image, random())
    np.testing.assert_array_equal(view, fit(image, (16, 16)))
