"""The data that a run finds: a validation set of its own, and labels beside a split."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_runs import configuration

from jaxmatch.data import record as records
from jaxmatch.data import splits
from jaxmatch.errors import InputError
from jaxmatch.record import run_data
from jaxmatch.record.settled import settled

OPTIONS = {"data__image_size": 8}


def fill(root, each=6, parts=("train", "val")):
    for part in parts:
        for number, name in enumerate(("ant", "bee", "cat", "dog")):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for image in range(each):
                pixels = np.full((8, 8, 3), 60 * number + image, np.uint8)
                pixels[0, 0] = image, number, len(part)
                Image.fromarray(pixels).save(root / part / name / f"{image}.png")
    return root


def settings(data, **options):
    return settled(configuration(data, **options))[0]


def write(data, folder):
    """What a run keeps of its data."""
    folder.mkdir()
    records.write(folder, data.record)
    splits.write(folder / "split.json", data.split)
    return folder


def table(root, column=True):
    """The same pictures, with their sets in a table."""
    rows = ["path,label,split"]
    for path in sorted(root.rglob("*.png")):
        part, label, _ = path.relative_to(root).parts
        rows.append(f"{path.relative_to(root)},{label},{part}")
    (root / "labels.csv").write_text("\n".join(rows))


@pytest.mark.parametrize("form", ["folders", "table"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_validation_set_of_the_folder_is_that_of_the_run(tmp_path, form, stream):
    root = fill(tmp_path / "photos")
    if form == "table":
        table(root)
    options = {**OPTIONS, "data__stream": stream}
    config = settings(f"folder:{root}", **options)
    data = run_data.load_new(config)
    assert data.validation_images.shape == (24, 8, 8, 3)
    np.testing.assert_array_equal(np.bincount(data.validation_labels), [6] * 4)
    names = [data.source.names[row] for row in data.validation_rows]
    assert all(name.startswith("val/") for name in names)
    assert len(names) == 24
    folder = write(data, tmp_path / "run")
    fill(root, each=8)  # more of each
    if form == "table":
        table(root)
    again = run_data.load_recorded(config, folder)
    for one, other in (
        (data.validation_images, again.validation_images),
        (data.validation_labels, again.validation_labels),
        (data.source.images, again.source.images),
        (data.source.test_images, again.source.test_images),
    ):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert again.validation_rows == data.validation_rows
    for needed in ("held", "known"):
        held = run_data.load_recorded(config, folder, needed=needed)
        np.testing.assert_array_equal(held.validation_labels, data.validation_labels)
        np.testing.assert_array_equal(
            np.asarray(held.validation_images), np.asarray(data.validation_images)
        )
    Image.new("RGB", (8, 8)).save(root / names[0])
    with pytest.raises(InputError, match=f"{names[0]}, a validation image of the run, has changed"):
        run_data.load_recorded(config, folder, needed="held")


def test_another_validation_set_beside_that_of_the_folder_is_refused(tmp_path):
    root = fill(tmp_path / "photos")
    config = settings(f"folder:{root}", data__validation=4, **OPTIONS)
    with pytest.raises(
        InputError, match=r"data\.validation=4 .* validation set of 24 images; leave"
    ):
        run_data.load_new(config)


def test_validation_images_are_in_no_other_set(tmp_path):
    root = fill(tmp_path / "photos", parts=("train", "val", "test"))
    data = run_data.load_new(settings(f"folder:{root}", **OPTIONS))
    assert [len(data.source.images), len(data.source.test_images)] == [24, 24]
    assert data.copies() == []
    (root / "train" / "ant" / "copy.png").write_bytes((root / "val" / "ant" / "0.png").read_bytes())
    data = run_data.load_new(settings(f"folder:{root}", **OPTIONS))
    assert any("validation image has an exact copy" in text for text in data.copies())


def test_a_label_free_run_leaves_the_validation_set_alone(tmp_path):
    root = fill(tmp_path / "photos")
    config = settings(f"folder:{root}", method="simclr", chosen="", **OPTIONS)
    data = run_data.load_new(config)
    assert data.validation_images is None
    assert not any(data.source.names[row].startswith("val") for row in data.source.rows)
    again = run_data.load_recorded(config, write(data, tmp_path / "run"))
    np.testing.assert_array_equal(again.source.rows, data.source.rows)
    assert again.validation_images is None


def arrays(file, **more):
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (24, 8, 8, 3)).astype(np.uint8)
    labels = np.arange(24) % 4
    content = {
        "x_train": images[:16],
        "y_train": labels[:16],
        "x_test": images[16:20],
        "y_test": labels[16:20],
    }
    np.savez(file, **content, **more)
    return {"x_val": images[20:], "y_val": labels[20:]}


def test_a_validation_set_of_arrays_is_that_of_the_run(tmp_path):
    file = tmp_path / "x.npz"
    held = arrays(file)
    config = settings(file)
    old = write(run_data.load_new(config), tmp_path / "old")
    arrays(file, **held)
    data = run_data.load_new(config)
    np.testing.assert_array_equal(data.validation_images, held["x_val"])
    assert data.validation_rows == ()
    new = write(data, tmp_path / "new")
    again = run_data.load_recorded(config, new)
    np.testing.assert_array_equal(again.validation_images, held["x_val"])
    assert run_data.load_recorded(config, old).validation_images is None
    arrays(file, **held | {"y_val": held["y_val"][::-1]})
    with pytest.raises(InputError, match=r"y_validation of .* is not what the run was"):
        run_data.load_recorded(config, new)
    assert run_data.load_recorded(config, old).validation_images is None


@pytest.mark.parametrize("form", ["json", "txt"])
@pytest.mark.parametrize("data", ["folder", "mnist5k"])
def test_labels_beside_a_split_of_another_size_are_a_contradiction(tmp_path, form, data):
    file = tmp_path / f"split.{form}"
    if data == "folder":
        root = fill(tmp_path / "photos", parts=("train", "test"))
        chosen = [
            f"train/{name}/{n}.png" for name in ("ant", "bee", "cat", "dog") for n in range(3)
        ]
        source, rows = (
            f"folder:{root}",
            [24 + 6 * label + n for label in range(4) for n in range(3)],
        )
    else:
        source, rows, chosen = "mnist5k", list(range(12)), [str(number) for number in range(12)]
    file.write_text("\n".join(chosen) if form == "txt" else json.dumps({"indices": rows}))
    with pytest.raises(
        InputError, match=rf"labels=40 contradicts .*split\.{form}, which names 12 im"
    ):
        settings(source, chosen=f",labels=40,split={file}", **OPTIONS)
    config = settings(source, chosen=f",labels=12,split={file}", **OPTIONS)
    if data == "folder":
        assert len(run_data.load_new(config).split.indices) == 12
        config.data.labels = "20"
        with pytest.raises(InputError, match=r"labels=20 contradicts .* names 12 images"):
            run_data.load_new(config)
        config.data.labels = "all"
        assert len(run_data.load_new(config).split.indices) == 12
