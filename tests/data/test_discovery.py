"""The rule that says which files under a folder are images."""

import os
import unicodedata
from pathlib import Path

import pytest
from buckets import in_memory
from PIL import Image

from jaxmatch.data import discovery
from jaxmatch.data.discovery import find_images, search
from jaxmatch.errors import InputError
from jaxmatch.runtime import paths


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(path, "PNG")
    return path


def left_out(tree):
    return {name: reason for reason, names in tree.left_out.items() for name in names}


def test_images_are_known_by_any_extension_of_pillow_in_any_case(tmp_path):
    names = ["a.JPG", "b.jpeg", "c.Png", "d.tiff", "e.webp", "f.bmp", "g.gif", "h.jfif", "i.mpo"]
    for name in (*names, "plain"):
        picture(tmp_path / name)
    assert search(tmp_path).images == tuple(sorted([*names, "plain"]))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("notes.txt", "no image (.txt)"),
        ("notes.TXT", "no image (.txt)"),
        ("paper.pdf", "no image (.pdf)"),
        ("film.mpeg", "no image (.mpeg)"),
        ("table.h5", "no image (.h5)"),
        ("photo.HEIC", "no decoder for HEIC"),
        ("photo.nef", "no decoder for camera raw files"),
        ("drawing.svg", "no decoder for SVG"),
        ("a.png.bak", "no image (.bak)"),
        ("README", "no image (no extension)"),
        (".DS_Store", "hidden"),
        ("._a.png", "hidden"),
        (".hidden.png", "hidden"),
        ("Thumbs.db", "of the system or a program"),
        ("desktop.ini", "of the system or a program"),
        ("Desktop.ini", "of the system or a program"),
        ("augment.png", "of a report of jaxmatch"),
    ],
)
def test_other_files_are_left_out_with_a_reason(tmp_path, name, reason):
    picture(tmp_path / "cat" / "0.png")
    (tmp_path / "cat" / name).write_bytes(b"something")
    tree = search(tmp_path)
    assert tree.images == ("cat/0.png",)
    assert left_out(tree) == {f"cat/{name}": reason}
    found = find_images([tmp_path])
    assert found.files == (tmp_path / "cat" / "0.png",)
    assert left_out(found) == {str(tmp_path / "cat" / name): reason}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".ipynb_checkpoints", "hidden"),
        (".git", "hidden"),
        ("__MACOSX", "of the system or a program"),
        ("@eaDir", "of the system or a program"),
        ("$RECYCLE.BIN", "of the system or a program"),
        ("wandb", "of the system or a program"),
        ("System Volume Information", "of the system or a program"),
    ],
)
@pytest.mark.parametrize("inside", ["", "cat/"])
def test_folders_are_left_out_as_a_whole(tmp_path, name, reason, inside):
    picture(tmp_path / "cat" / "0.png")
    picture(tmp_path / inside / name / "deep" / "1.png")
    tree = search(tmp_path)
    assert tree.images == ("cat/0.png",)
    assert left_out(tree) == {f"{inside}{name}/": reason}
    assert left_out(find_images([tmp_path])) == {f"{tmp_path}/{inside}{name}/": reason}


def test_a_given_file_or_folder_is_searched_whatever_its_name(tmp_path):
    hidden = picture(tmp_path / ".cache" / "0.png")
    odd = picture(tmp_path / ".cache" / "photo.bak")
    assert find_images([tmp_path / ".cache"]).files == (hidden,)
    assert find_images([odd, tmp_path / ".cache"]).files == (hidden, odd)
    assert left_out(find_images([odd, tmp_path / ".cache"])) == {}
    with pytest.raises(InputError, match=r"no file or folder .*none\.png"):
        find_images([tmp_path / "none.png"])


RUNS = {
    "a finished run": ["config.json", "metrics.jsonl", "curves.png", "checkpoints/10/x.png"],
    "a run that has begun": ["config.json", "split.json"],
    "a run with a log only": ["log.txt"],
    "a run in stages": ["config.json", "1_simclr/config.json", "1_simclr/curves.png"],
}


@pytest.mark.parametrize("kind", RUNS)
def test_run_folders_are_left_out(tmp_path, kind):
    picture(tmp_path / "cat" / "0.png")
    for name in RUNS[kind]:
        picture(tmp_path / "runs" / "first" / name)
    tree = search(tmp_path)
    assert tree.images == ("cat/0.png",)
    assert left_out(tree) == {"runs/first/": "of a run of jaxmatch"}


def test_a_class_folder_with_a_file_of_that_name_is_no_run(tmp_path):
    for name in ("config.json", "0.png", "1_a/0.png"):
        picture(tmp_path / "cat" / name)
    for name in ("log.txt", "0.png"):
        picture(tmp_path / "dog" / name)
    assert search(tmp_path).images == ("cat/0.png", "cat/1_a/0.png", "dog/0.png")


def test_pictures_of_reports_are_left_out(tmp_path):
    for name in ("r.html", "r_comparison.png", "r_losses.png", "s_losses.png", "r_cat.png"):
        picture(tmp_path / name)
    tree = search(tmp_path)
    assert tree.images == ("r_cat.png", "s_losses.png")
    assert tree.left_out[discovery.REPORT] == ("r_comparison.png", "r_losses.png")


def test_links_are_followed_once(tmp_path):
    store = tmp_path / "store"
    picture(store / "cats" / "0.png")
    picture(store / "cats" / "more" / "1.png")
    data = tmp_path / "data"
    picture(data / "dog" / "2.png")
    (data / "cat").symlink_to(store / "cats")
    (data / "cat" / "around").symlink_to(data)
    (data / "dog" / "self").symlink_to(".")
    (data / "dog" / "above").symlink_to("..")
    (data / "dog" / "3.png").symlink_to("2.png")
    (data / "dog" / "none.png").symlink_to("nowhere")
    (data / "dog" / "loop.png").symlink_to("loop.png")
    (store / "cats" / "more" / "again").symlink_to("..")
    tree = search(data)
    assert tree.images == ("cat/0.png", "cat/more/1.png", "dog/2.png", "dog/3.png")
    assert tree.linked == {"cat/0.png", "cat/more/1.png", "dog/3.png"}
    assert left_out(tree) == {
        "cat/around/": discovery.CIRCLE,
        "cat/more/again/": discovery.CIRCLE,
        "dog/above/": discovery.CIRCLE,
        "dog/loop.png": discovery.BROKEN_LINK,
        "dog/none.png": discovery.BROKEN_LINK,
        "dog/self/": discovery.CIRCLE,
    }
    found = find_images([data])
    assert [str(path.relative_to(data)) for path in found.files] == [
        *("cat/0.png", "cat/more/1.png", "dog/2.png")
    ]
    assert found.left_out[discovery.SAME_FILE] == (str(data / "dog" / "3.png"),)


@pytest.mark.slow
def test_folders_that_link_to_each_other_are_searched_in_a_moment(tmp_path):
    names = [str(number) for number in range(12)]
    for name in names:
        picture(tmp_path / name / "0.png")
        for other in names:
            (tmp_path / name / f"to{other}").symlink_to(tmp_path / other)
    assert set(search(tmp_path).images) >= {f"{name}/0.png" for name in names}
    assert len(find_images([tmp_path]).files) == 12


def test_the_order_is_that_of_the_names(tmp_path):
    names = ["B/0.png", "a/0.png", "a-b/0.png", "a/é.png", "a/10.png", "a/9.png"]
    for name in names:
        picture(tmp_path / name)
    assert search(tmp_path).images == tuple(sorted(names))
    given = [tmp_path / "a", tmp_path / "B" / "0.png", tmp_path / "a-b", tmp_path / "a" / "9.png"]
    assert find_images(given).files == find_images(reversed(given)).files
    assert [str(path) for path in find_images(given).files] == sorted(
        str(tmp_path / name) for name in names
    )


def test_names_in_any_encoding_and_normal_form_are_found(tmp_path):
    odd = os.fsdecode(b"caf\xe9.png")
    both = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    for name in (odd, *both):
        picture(tmp_path / "cat" / name)
    assert set(search(tmp_path).images) == {f"cat/{name}" for name in (odd, *both)}


def test_a_folder_without_permission_is_left_out(tmp_path, monkeypatch):
    picture(tmp_path / "cat" / "0.png")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert left_out(search(tmp_path)) == {"closed/": discovery.CLOSED}
    with pytest.raises(InputError, match=r"Cannot open the folder .*closed: Permission denied"):
        search(tmp_path / "closed")


def test_a_bucket_follows_the_same_rule():
    with in_memory() as files:
        for name in ("cat/0.png", "cat/.x.png", "__MACOSX/1.png", "runs/a/config.json", "a.txt"):
            files.pipe(f"bucket/data/{name}", b"x")
        files.pipe("bucket/data/runs/a/metrics.jsonl", b"x")
        tree = search(paths.path("s3://bucket/data"))
        assert tree.images == ("cat/0.png",)
        assert left_out(tree) == {
            "__MACOSX/": "of the system or a program",
            "a.txt": "no image (.txt)",
            "cat/.x.png": "hidden",
            "runs/a/": "of a run of jaxmatch",
        }
        found = find_images(["s3://bucket/data"])
        assert [str(path) for path in found.files] == ["s3://bucket/data/cat/0.png"]


def test_names_are_the_paths_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pics/a.png", "pics/sub/b.png", "c.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        picture(Path(name))

    def names(*given):
        return find_images(given).names

    assert names("./pics/a.png") == ("./pics/a.png",)
    assert names("pics//a.png", "pics/sub/../a.png") == ("pics//a.png",)
    assert names("./pics", "c.png") == ("./pics/a.png", "./pics/sub/b.png", "c.png")
    assert names("pics/") == names("pics") == ("pics/a.png", "pics/sub/b.png")
    assert names(".") == ("./c.png", "./pics/a.png", "./pics/sub/b.png")
    assert names(tmp_path / "c.png") == (str(tmp_path / "c.png"),)
    assert find_images(["./pics", "c.png"]).files[0] == Path("pics/a.png")
