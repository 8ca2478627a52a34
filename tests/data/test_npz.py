"""What an npz file may hold: any common form is read, noted, or refused with the line to fix it."""

import numpy as np
import pytest

from jaxmatch.data import sources
from jaxmatch.data.source import Reading
from jaxmatch.errors import InputError

random = np.random.RandomState(0)
X = random.randint(0, 256, (8, 6, 5, 3)).astype(np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2, 0, -1])
TEST = {"x_test": X[:3], "y_test": np.array([2, 1, 0])}
FULL = {"x_train": X, "y_train": Y, **TEST}


def save(root, **arrays):
    file = root / "data.npz"
    np.savez(file, **arrays)
    return file


def load(root, label_free=False, **arrays):
    return sources.load(f"npz:{save(root, **arrays)}", Reading(label_free=label_free))


def notes(source):
    return " ".join(source.survey.notes)


def renamed(template, parts=("train", "val", "test"), kinds=("images", "labels")):
    """FULL with a validation set, under other names."""
    content = {"train": (X, Y), "val": (X[3:6], Y[3:6]), "test": (TEST["x_test"], TEST["y_test"])}
    return {
        template.format(part=name, kind=kind): array
        for (name, part) in zip(parts, content, strict=True)
        for kind, array in zip(kinds, content[part], strict=True)
    }


@pytest.mark.parametrize(
    ("arrays", "note"),
    [
        (renamed("{kind}_{part}", kinds=("x", "y")), ""),
        (renamed("{part}_{kind}"), "Read under another name: train_images as x_train"),
        (
            renamed("{kind}_{part}", ("Train", "validation", "Test"), ("X", "Y")),
            "X_Train as x_train",
        ),
        (
            renamed("{part}_{kind}", ("training", "valid", "testing"), ("x", "y")),
            "valid_x as x_val",
        ),
    ],
)
def test_arrays_under_their_usual_names(tmp_path, arrays, note):
    source = load(tmp_path, **arrays)
    np.testing.assert_array_equal(source.images, X)
    np.testing.assert_array_equal(source.labels, Y)
    np.testing.assert_array_equal(source.validation_images, X[3:6])
    np.testing.assert_array_equal(source.validation_labels, [0, 1, 2])
    np.testing.assert_array_equal(source.test_labels, [2, 1, 0])
    assert note in notes(source)
    assert bool(note) == bool(source.survey.notes)
    expected = {f"{kind}_{part}" for kind in "xy" for part in ("train", "validation", "test")}
    assert source.parts.keys() == expected


def test_labels_in_a_column_as_in_medmnist(tmp_path):
    arrays = renamed("{part}_{kind}")
    columns = {key: value[:, None] if "labels" in key else value for key, value in arrays.items()}
    plain, column = load(tmp_path, **arrays), load(tmp_path, **columns)
    np.testing.assert_array_equal(plain.labels, column.labels)
    np.testing.assert_array_equal(plain.test_labels, column.test_labels)


@pytest.mark.parametrize(
    ("arrays", "images", "labels"),
    [
        ({"x_train": X}, 8, [-1] * 8),
        ({"x_unlabeled": X}, 8, [-1] * 8),
        ({"unlabeled_images": X}, 8, [-1] * 8),
        ({"x_train": X, "x_test": X[:3]}, 8, [-1] * 8),
        ({"x_train": X[:2], "y_train": Y[:2], "x_unlabeled": X[2:]}, 8, [0, 1, *[-1] * 6]),
        ({"x_train": X, "y_train": np.full(8, -1), **TEST}, 8, [-1] * 8),
        ({"x_train": X, "y_train": np.full(8, 255, np.uint8), **TEST}, 8, [-1] * 8),
        ({"x_unlabeled": X, **TEST}, 8, [-1] * 8),
        ({"x_train": X, "y_test": Y}, 8, [-1] * 8),
    ],
)
def test_a_label_free_method_uses_what_is_there(tmp_path, arrays, images, labels):
    source = load(tmp_path, label_free=True, **arrays)
    assert len(source.images) == images
    np.testing.assert_array_equal(source.labels, labels)
    assert len(source.test_images) == len(source.test_labels) == 0
    assert ("x_test" in arrays) == ("Not used:" in notes(source))
    assert source.images.shape == (8, 6, 5, 3)


@pytest.mark.parametrize("missing", ["x_train", "y_train", "x_test", "y_test"])
def test_a_method_that_reads_labels_names_what_is_missing(tmp_path, missing):
    arrays = {key: value for key, value in FULL.items() if key != missing}
    with pytest.raises(InputError, match=f"no array '{missing}', which .* it has "):
        load(tmp_path, **arrays, others=Y)
    with pytest.raises(InputError, match="to train on; it has y_train, x_test, y_test"):
        load(tmp_path, label_free=True, y_train=Y, **TEST)
    with pytest.raises(InputError, match="no images to train on"):
        load(tmp_path, label_free=True, x_train=X[:0], x_unlabeled=X[:0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int16, np.int64])
@pytest.mark.parametrize("test", [True, False])
def test_a_cast_of_minus_one_is_no_label(tmp_path, dtype, test):
    cast = np.array(Y).astype(np.uint8 if dtype in (np.int16, np.int64) else dtype).astype(dtype)
    held_out = TEST if test else {}
    source = load(tmp_path, label_free=not test, x_train=X, y_train=cast, **held_out)
    signed = np.issubdtype(dtype, np.signedinteger)
    if signed and not test:
        assert source.classes == ("0", "1", "2", "255")
    else:
        np.testing.assert_array_equal(source.labels, Y)
        assert source.classes == ("0", "1", "2")
        assert "in 1 row of y_train, which is what -1 becomes in an unsigned type" in notes(source)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ([0, 255, 0, 255, 0, 255, 0, 255], [0, 255, 0]),
        ([0, 1, 255, 0, 1, 255, 0, 1], [0, 1, 255]),
        ([0, 254, 255, 0, 254, 255, 0, 1], [0, 1, 254]),
        ([0, 255, 0, 255, 0, 255, 0, 255], [0, 0, 0]),
    ],
)
def test_a_class_255_stays_one(tmp_path, train, test):
    labels = np.array(train, np.uint8), np.array(test, np.uint8)
    source = load(tmp_path, x_train=X, y_train=labels[0], x_test=X[:3], y_test=labels[1])
    assert "255" in source.classes
    assert (source.labels >= 0).all()


def test_texts_are_classes(tmp_path):
    labels = np.array(["dog", "cat", "", "dog", "nan", "cat", "cat", " dog"])
    for array in (labels, labels.astype("S")):
        source = load(tmp_path, x_train=X, y_train=array, x_test=X[:2], y_test=labels[:2])
        assert source.classes == ("cat", "dog")
        np.testing.assert_array_equal(source.labels, [1, 0, -1, 1, -1, 0, 0, 1])
        np.testing.assert_array_equal(source.test_labels, [1, 0])
        assert "Read as no label: 'nan' in 1 row of y_train" in notes(source)


def test_texts_that_are_the_same_number_are_refused(tmp_path):
    labels = np.array([*"12121212"])
    for other in ("01", "1.0"):
        train = np.where(np.arange(8) == 0, other, labels)
        with pytest.raises(InputError, match=f"{other}.*which are the same number; write one"):
            load(tmp_path, x_train=X, y_train=train, x_test=X[:2], y_test=labels[:2])
        with pytest.raises(InputError, match=f"{other}.*which are the same number; write one"):
            load(tmp_path, x_train=X, y_train=labels, x_test=X[:2], y_test=train[:2])


def test_texts_that_look_wrong_are_noted(tmp_path):
    labels = np.array(["Cat", "cat", "dog", "unknown", "caf\u00e9", "cafe\u0301", "dog", ""])
    test = np.array(["DOG", "cat", "caf\u00e9"])
    source = load(tmp_path, x_train=X, y_train=labels, x_test=X[:3], y_test=test)
    assert source.classes == ("Cat", "caf\u00e9", "cat", "dog", "unknown")
    np.testing.assert_array_equal(source.labels, [0, 2, 3, 4, 1, 1, 3, -1])
    np.testing.assert_array_equal(source.test_labels, [3, 2, 1])
    assert "The classes Cat and cat differ only in case." in notes(source)
    assert "The held-out class DOG is the training class dog." in notes(source)
    assert "unknown is a class here; write an empty text if its images have no" in notes(source)


@pytest.mark.parametrize("part", ["test", "val"])
@pytest.mark.parametrize("label_free", [False, True])
def test_held_out_images_without_a_label_are_left_out_with_a_note(tmp_path, part, label_free):
    ones = np.eye(3, dtype=int)[np.abs(Y)] * (Y >= 0)[:, None]
    for labels, train in (
        (Y, Y),
        (np.where(Y >= 0, np.array([*"01201201"]), ""), np.array([*"01201201"])),
        (ones, ones),
    ):
        arrays = {"x_train": X, "y_train": train, "x_test": X[:3], "y_test": train[:3]}
        held_out = {f"x_{part}": X, f"y_{part}": labels}
        source = load(tmp_path, label_free=label_free, **arrays | held_out)
        test = part == "test"
        images = source.test_images if test else source.validation_images
        np.testing.assert_array_equal(images, X[:7])
        found = source.test_labels if test else source.validation_labels
        np.testing.assert_array_equal(found, Y[:7])
        name = "test" if test else "validation"
        note = f"Not used, without a label: 1 {name} image; write what you know into y_{part}."
        assert note in notes(source)


def test_a_held_out_set_without_any_label(tmp_path):
    none = np.full(3, -1)
    source = load(tmp_path, label_free=True, **FULL | {"y_test": none})
    assert len(source.test_images) == len(source.test_labels) == 0
    assert "Not used, without a label: 3 test images" in notes(source)
    source = load(tmp_path, **FULL, x_val=X[:3], y_val=none)
    assert len(source.validation_images) == len(source.validation_labels) == 0
    with pytest.raises(InputError, match="y_test has no label; write those that you know"):
        load(tmp_path, **FULL | {"y_test": none})


def test_rows_without_a_1_are_unlabeled_with_a_note(tmp_path):
    ones = np.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]]
    ones[[2, 7]] = 0
    source = load(tmp_path, x_train=X, y_train=ones, **TEST)
    np.testing.assert_array_equal(source.labels, [0, 1, -1, 0, 1, 2, 0, -1])
    assert "Read as no label: 2 rows of y_train without a 1." in notes(source)
    for other in (np.zeros((8, 3)), np.where(np.arange(8)[:, None] == 1, 1, ones)):
        with pytest.raises(InputError, match="an image can have one class only"):
            load(tmp_path, x_train=X, y_train=other, **TEST)


def test_single_ones_are_classes_with_a_note(tmp_path):
    ones = np.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]]
    source = load(tmp_path, x_train=X, y_train=ones, **TEST)
    np.testing.assert_array_equal(source.labels, [0, 1, 2, 0, 1, 2, 0, 1])
    assert "The rows of y_train have a single 1 each" in notes(source)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Y.astype(float), r"not float64; save y_train = numpy.nan_to_num\(y_train, nan=-1\)"),
        (Y[:7], r"one whole number for each image.*shape \[7\] for 8"),
        (np.ones((8, 3), int), "an image can have one class only"),
        (np.full((8, 2), "cat"), "an image can have one class only"),
        (np.array([*"abcdefg", "None"]), "has the label 'None': write an empty text"),
        (np.array([1, None, 2, 3, 4, 5, 6, 7]), "y_train is not a plain array.*astype"),
        (np.full(8, 1j), "not complex128"),
    ],
)
def test_labels_that_are_refused(tmp_path, labels, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, x_train=X, y_train=labels, **TEST)


FLOAT = X.astype(np.float64)
CONVERSIONS = {
    "float in 0..1": FLOAT / 255,
    "float32 in -1..1": (FLOAT / 127.5 - 1).astype(np.float32),
    "float levels": FLOAT,
    "standardised": (FLOAT - 100) / 50,
    "int64 levels": X.astype(np.int64),
    "16 bits": X.astype(np.uint16) * 257,
    "12 bits": X.astype(np.uint16) * 16,
    "bool": X > 127,
    "channels first": X.transpose(0, 3, 1, 2),
    "gray, channels first": X[..., :1].transpose(0, 3, 1, 2),
    "RGBA": np.concatenate([X, np.full_like(X[..., :1], 255)], axis=3),
    "gray with alpha": np.concatenate([X[..., :1], np.full_like(X[..., :1], 255)], axis=3),
    "flat CIFAR": X[:, :5].transpose(0, 3, 1, 2).reshape(8, -1),
    "flat MNIST": X[:, :5, :, 0].reshape(8, -1),
}


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_images_in_another_form_are_refused_with_the_line_that_converts_them(tmp_path, kind):
    with pytest.raises(InputError) as caught:
        load(tmp_path, **FULL | {"x_train": CONVERSIONS[kind]})
    text = str(caught.value)
    assert "x_train must " in text
    line = text[text.index("save ") + len("save ") :].split(", without")[0].removesuffix(".")
    values = {"x_train": CONVERSIONS[kind]}
    exec(line, values)
    found = values["x_train"]
    assert found.dtype == np.uint8
    assert found.shape[3] in (1, 3) if found.ndim == 4 else found.ndim == 3
    expected = X[:, :5] if "flat" in kind else X
    if found.shape[3] == 1:
        expected = expected[..., :1]
    expected = {"bool": np.where(X > 127, 255, 0)}.get(kind, expected)
    if kind == "standardised":
        expected = (FLOAT - FLOAT.min()) * (255 / (FLOAT.max() - FLOAT.min()))
    np.testing.assert_allclose(found.astype(float), expected, atol=1)
    test = {"x_test": found[:3], "y_test": TEST["y_test"]}
    load(tmp_path, x_train=found, y_train=Y, **test)


@pytest.mark.parametrize(
    ("images", "unlabeled"),
    [
        ((FLOAT - 100) / 50, X),
        (X.astype(np.uint16) * 16, X.astype(np.int64) * 4),
        (X.astype(np.uint16), X.astype(np.int32)),
        (FLOAT, FLOAT),
        (X > 127, X > 99),
    ],
)
def test_all_images_of_a_type_have_one_conversion(tmp_path, images, unlabeled):
    """The levels of x_test are half of those of x_train."""
    half = images if images.dtype == bool else (images / 2).astype(images.dtype)
    values = {"train_images": images, "x_test": half[:3], "x_unlabeled": unlabeled}
    given = {"y_train": Y, "y_test": TEST["y_test"]}
    with pytest.raises(InputError, match="train_images and x_test ") as caught:
        load(tmp_path, **given, **values)
    line = str(caught.value).partition("save ")[2].removesuffix(".")
    found = dict(values)
    exec(line, found)
    changes = {
        part.partition(" = ")[2].replace(part.partition(" = ")[0], "x") for part in line.split("; ")
    }
    assert len(changes) == 1
    assert all(found[name].dtype == np.uint8 for name in values)
    load(tmp_path, **given, **{name: found[name] for name in values})


def test_floating_point_may_be_above_1_by_rounding(tmp_path):
    images = (FLOAT / 255).astype(np.float32)
    images[0, 0, 0] = (-1e-7, 0.5, 1.0000001)
    with pytest.raises(InputError, match=r"save x_train = \(x_train \* 255\)\.round\(\)"):
        load(tmp_path, **FULL | {"x_train": images})


def test_images_without_finite_values_are_refused(tmp_path):
    broken = FLOAT / 255
    broken[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="float64 with values that are not finite"):
        load(tmp_path, **FULL | {"x_train": broken})
    with pytest.raises(InputError, match=r"x_train and x_test .* values that are not finite"):
        load(tmp_path, **FULL | {"x_train": FLOAT, "x_test": broken[:3]})


def test_texts_and_numbers_are_different_classes(tmp_path):
    texts = np.array([*"aabbaabb"])
    with pytest.raises(InputError, match="class a occurs in y_test but not in y_train"):
        load(tmp_path, x_train=X, y_train=Y, x_test=X, y_test=texts)
    with pytest.raises(InputError, match="class 0 occurs in y_test but not in y_train"):
        load(tmp_path, x_train=X, y_train=texts, x_test=X, y_test=np.abs(Y))


def test_two_arrays_of_one_set_are_refused(tmp_path):
    with pytest.raises(InputError, match="two arrays x_train and train_images; keep one"):
        load(tmp_path, **FULL, train_images=X)


def test_what_is_not_read_is_noted(tmp_path):
    source = load(tmp_path, **FULL, ids=Y, y_unlabeled=Y)
    assert "Arrays that are not read: ids, y_unlabeled." in notes(source)
    assert source.survey.sizes == {(6, 5): 11}
    assert source.survey.modes == {"RGB": 11}
    gray = load(
        tmp_path, **{key: value[..., 0] if key[0] == "x" else value for key, value in FULL.items()}
    )
    assert gray.survey.modes == {"gray": 11}
    assert "The test set has no images of 2" in notes(
        load(tmp_path, x_train=X, y_train=Y, x_test=X[:2], y_test=Y[:2])
    )


@pytest.mark.parametrize("name", ["a,b.npz", "labels,x=3.npz", "with space.npz", "d.npz/"])
def test_any_path(tmp_path, name):
    np.savez(tmp_path / name.rstrip("/"), **FULL)
    assert len(sources.load(f"npz:{tmp_path}/{name}", Reading()).images) == 8
