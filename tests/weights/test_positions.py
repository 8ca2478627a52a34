"""Resized position embeddings are those of the references."""

import json

import numpy as np
import pytest

from jaxmatch.errors import InputError
from jaxmatch.weights.positions import RULES, cubic, grids, linear, resize_positions, square


@pytest.fixture(scope="module")
def recorded(pytestconfig):
    with np.load(pytestconfig.rootpath / "tests" / "golden" / "fn_pos_embed_resize.npz") as file:
        return {key: file[key] for key in file.files}


def test_positions_are_those_of_usb_and_timm(recorded):
    compared = 0
    for tag, sizes in json.loads(str(recorded["meta"]))["tags"].items():
        given = recorded[f"in/{tag}/posemb"]
        old, new = tuple(sizes["old"]), tuple(sizes["new"])
        double = sizes["dtype"] == "float64"
        for key, rule, tolerance in (
            ("usb", "usb", 1e-12 if double else 1e-6),
            ("timm", "timm", 1e-6),
            ("timm_in_float64", "timm", 1e-12),
        ):
            if (name := f"out/{tag}/{key}") not in recorded:
                continue
            prefix = sizes["num_prefix_tokens"]
            found = resize_positions(given, new, prefix=prefix, rule=rule, old=old)
            assert found.dtype == given.dtype
            np.testing.assert_allclose(found, recorded[name], rtol=0, atol=tolerance, err_msg=name)
            if old[0] == old[1]:
                guessed = resize_positions(given, new, prefix=prefix, rule=rule)
                np.testing.assert_array_equal(guessed, found)
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("old", "new"), [(4, 7), (9, 4), (1, 3), (5, 5), (14, 16)])
def test_a_constant_stays(rule, old, new):
    matrix = RULES[rule](old, new)
    assert matrix.shape == (new, old)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-14)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-14)  # no side is preferred


@pytest.mark.parametrize("rule", ["usb", "bilinear"])
def test_without_antialias_a_third_of_the_pixels_is_picked(rule):
    # The center of every third pixel is that of an old one.
    np.testing.assert_allclose(RULES[rule](9, 3), np.eye(9)[1::3], atol=1e-14)


def test_values_by_hand():
    np.testing.assert_allclose(linear(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    # At a distance of 0.5: (a + 2)/8 - (a + 3)/4 + 1 of the near ones and a/8 of the far ones.
    near, far = 1.25 / 8 - 2.25 / 4 + 1, -0.75 / 8
    np.testing.assert_allclose(cubic(4, 2)[0], [near + far, near, far, 0])


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (
            11,
            {"prefix": 1},
            "none of 1 tokens and a square grid of patches; images of 2 x 5 or 5 x 2",
        ),
        (11, {"prefix": 1, "old": (3, 3)}, "none of 1 tokens and a 3 x 3 grid"),
        (1, {"prefix": 1}, "square grid"),
        (7, {"prefix": 1, "old": (2, 3), "rule": "usb"}, "square grids only"),
    ],
)
def test_what_cannot_be_resized_is_refused(rows, options, expected):
    with pytest.raises(InputError, match=f"{expected}.*[^.]$"):  # the caller ends the sentence
        resize_positions(np.zeros((1, rows, 2)), (4, 4), **{"rule": "timm", **options})


def test_grids_begin_with_those_closest_to_a_square():
    assert grids(12) == [(3, 4), (4, 3), (2, 6), (6, 2)]
    assert grids(9) == [(3, 3)]
    assert grids(7) == [(1, 7), (7, 1)]
    assert grids(1) == [(1, 1)]
    assert grids(0) == grids(-3) == []


def test_squares():
    assert [square(count) for count in (-1, 0, 1, 3, 4, 196)] == [
        None,
        None,
        (1, 1),
        None,
        (2, 2),
        (14, 14),
    ]
