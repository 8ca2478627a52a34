"""The one rule that says which files under a folder are images; training and ``predict`` use it.

A file is an image if its name ends like that of an image format which Pillow reads, in any case, or
if it has no extension and begins like an image. Hidden files and folders, those of the system and
of programs, run folders of jaxmatch and pictures of its reports are left out. Links are followed,
but never in a circle. The order is that of the names as text, whatever the file system.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from jaxmatch.errors import InputError
from jaxmatch.runtime import paths

# Formats of Pillow that hold no photograph, or that it only writes or reads with other programs.
NO_IMAGES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF")
# Pictures that Pillow does not decode, unless another package has taught it to.
UNDECODED = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys((".svg", ".svgz"), "SVG"),
    **dict.fromkeys(
        (
            *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".kdc", ".mrw", ".nef"),
            *(".nrw", ".orf", ".pef", ".raf", ".rw2", ".sr2", ".srw", ".x3f"),
        ),
        "camera raw files",
    ),
    ".avif": "AVIF",
    ".dcm": "DICOM",
    ".exr": "OpenEXR",
    ".hdr": "Radiance HDR",
    ".jxl": "JPEG XL",
}
SYSTEM_FILES = ("desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db")
SYSTEM_FOLDERS = (
    "#recycle",
    "$recycle.bin",
    "@eadir",
    "__macosx",
    "__pycache__",
    "lost+found",
    "system volume information",
    "wandb",
)
ENVIRONMENT = "pyvenv.cfg"  # in the folder of a Python environment
# What a run folder holds (jaxmatch.record.folder); a run has its settings and one of the others.
RUN_SETTINGS = "config.json"
RUN_STATE = ("checkpoints", "data.json", "metrics.jsonl", "split.json", "summary.json")
RUN_LOG = "log.txt"
RUN_OTHERS = ("baselines.json", "curves.png", "events", "findings.json")
STAGE = re.compile(r"\d+_\w+")  # the folder of a stage, inside that of the run
REPORT_PICTURES = ("comparison", "ctaugment", "losses")  # STEM_NAME.png beside STEM.html
SHEET = "augment.png"  # of show-augment

HIDDEN = "hidden"
SYSTEM = "of the system or a program"
RUN = "of a run of jaxmatch"
REPORT = "of a report of jaxmatch"
BROKEN_LINK = "linking to nothing"
CIRCLE = "linking to a folder that is searched anyway"
NOT_REGULAR = "neither file nor folder"
CLOSED = "not permitted to be opened"
SAME_FILE = "with another name that is used"

LeftOut = Mapping[str, tuple[str, ...]]  # names by reason; the name of a folder ends with a slash


@dataclass(frozen=True, kw_only=True)
class Tree:
    """What a folder holds, by names relative to it with slashes.

    Attributes:
        images: the image files, sorted.
        linked: those of them that are links, or lie in a linked folder.
        folders: all folders that were searched, sorted, without the folder itself.
        left_out: the names of everything else, by the reason.
    """

    images: tuple[str, ...]
    linked: frozenset[str] = frozenset()
    folders: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Image files, with their paths as the user gave them.

    Attributes:
        names: the paths of the images as given, sorted; those in a folder begin with its path.
        files: the images, in the order of the names; each file occurs once.
        left_out: the paths of everything else, by the reason.
    """

    names: tuple[str, ...]
    files: tuple[Path, ...]
    left_out: LeftOut = field(default_factory=dict)


@dataclass(frozen=True)
class _Entry:
    """A file or folder in a folder; ``kind`` is "file", "folder", or why it is neither."""

    name: str
    kind: str
    linked: bool = False


def find_images(given: Iterable[str | os.PathLike]) -> Found:
    """Find the images that ``given`` files and folders name; a file is an image if it is given.

    Raises:
        InputError: if one of them does not exist.
    """
    explicit: list[tuple[str, Path]] = []
    ranked: list[tuple[bool, str, Path]] = []
    left_out: dict[str, list[str]] = {}
    for path in given:
        if not os.fspath(path):
            raise InputError("a path is empty; give files or folders of images.")
        place = paths.path(path)
        text = _text(path, place)
        if not place.is_dir():
            if not place.exists():
                raise InputError(f"There is no file or folder {text}.")
            explicit.append((text, place))
            continue
        tree = search(place)
        root = text if text.endswith("/") else f"{text}/"
        ranked += [(name in tree.linked, root + name, place / name) for name in tree.images]
        for reason, names in tree.left_out.items():
            left_out.setdefault(reason, []).extend(root + name for name in names)
    chosen: dict[object, tuple[str, Path]] = {}
    for text, place in (*sorted(explicit), *((text, place) for _, text, place in sorted(ranked))):
        _, first = chosen.setdefault(identity(place), (text, place))
        if str(first) != str(place):
            left_out.setdefault(SAME_FILE, []).append(text)
    files = dict(sorted(chosen.values()))
    kept = set(files)
    return Found(
        names=tuple(files),
        files=tuple(files.values()),
        left_out={
            reason: names
            for reason, found in left_out.items()
            if (names := tuple(sorted(set(found) - kept)))
        },
    )


def _text(given: str | os.PathLike, place: Path) -> str:
    """A path as it was given, but without a ``~``."""
    text = os.fspath(given)
    return str(place) if text.startswith("~") or paths.in_bucket(place) else text


def search(root: Path) -> Tree:
    """Find the images in a folder and in all folders below it.

    Raises:
        InputError: if the folder itself cannot be opened.
    """
    listed = _bucket_entries(root) if paths.in_bucket(root) else _local_entries
    try:
        listed(root)
    except OSError as error:
        raise InputError(f"Cannot open the folder {root}: {paths.reason(error)}.") from error
    images: list[str] = []
    linked: set[str] = set()
    folders: list[str] = []
    left_out: dict[str, list[str]] = {}
    for name, result, by_link in _walk(root, "", listed, _around(root), linked=False):
        if result == "image":
            images.append(name)
            linked.update([name] if by_link else [])
        elif result == "folder":
            folders.append(name)
        else:
            left_out.setdefault(result, []).append(name)
    return Tree(
        images=tuple(sorted(images)),
        linked=frozenset(linked),
        folders=tuple(sorted(folders)),
        left_out={reason: tuple(sorted(left_out[reason])) for reason in sorted(left_out)},
    )


def identity(path: Path) -> object:
    """A value that is equal for all names of one file."""
    if paths.in_bucket(path):
        return str(path)
    found = path.stat()
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(path)


def extensions() -> frozenset[str]:
    """The extensions of image files in lower case, with their dot."""
    known = Image.registered_extensions()
    return frozenset(end for end, kind in known.items() if kind not in NO_IMAGES)


def _walk(
    root: Path,
    inside: str,
    listed: Callable[[Path], Sequence[_Entry]],
    seen: set[object],
    linked: bool,
) -> Iterator[tuple[str, str, bool]]:
    """(Name, "image", "folder" or why it is left out, whether a link leads there) of each entry.

    Args:
        root: the folder that names are relative to.
        inside: the name of the folder to search, "" or ending with a slash.
        listed: gives the entries of a folder.
        seen: the folders that a link must not lead to: those around this one and, in a linked
            folder, also those that were searched before. The latter are added.
        linked: whether a link leads to the folder.
    """
    folder = root / inside if inside else root
    try:
        entries = listed(folder)
    except OSError:
        yield inside, CLOSED, linked
        return
    if inside and (reason := _reason_by_content(folder, entries)):
        yield inside, reason, linked
        return
    if inside:
        yield inside.removesuffix("/"), "folder", linked
    pages = {Path(entry.name).stem for entry in entries if entry.name.lower().endswith(".html")}
    known = extensions()
    for entry in entries:
        name, by_link = inside + entry.name, linked or entry.linked
        if entry.kind != "folder":
            yield name, _sort_file(folder, entry, pages, known), by_link
            continue
        reason = _reason_for_folder(entry.name)
        here = None if reason else identity(folder / entry.name)
        if not reason and entry.linked and here in seen:
            reason = CIRCLE
        if reason:
            yield f"{name}/", reason, by_link
            continue
        if linked:
            seen.add(here)
        yield from _walk(root, f"{name}/", listed, seen if linked else seen | {here}, by_link)


def _sort_file(folder: Path, entry: _Entry, pages: set[str], known: frozenset[str]) -> str:
    """ "image", or why a file is left out."""
    name = entry.name
    if name.startswith("."):
        return HIDDEN
    if name.lower() in SYSTEM_FILES:
        return SYSTEM
    if entry.kind != "file":
        return entry.kind
    stem, extension = os.path.splitext(name)
    page, _, plot = stem.rpartition("_")
    if name == SHEET or (extension == ".png" and plot in REPORT_PICTURES and page in pages):
        return REPORT
    if extension.lower() in known or (not extension and _begins_like_image(folder / name)):
        return "image"
    if extension.lower() in UNDECODED:
        return no_decoder(UNDECODED[extension.lower()])
    return f"no image ({extension.lower() or 'no extension'})"


def no_decoder(name: str) -> str:
    """The reason for a file of the format ``name``, which Pillow does not decode."""
    return f"no decoder for {name}"


def _reason_for_folder(name: str) -> str:
    """Why a folder with this name is left out; "" if it is not."""
    if name.startswith("."):
        return HIDDEN
    return SYSTEM if name.lower() in SYSTEM_FOLDERS else ""


def _reason_by_content(folder: Path, entries: Sequence[_Entry]) -> str:
    """Why a folder that holds these entries is left out; "" if it is not.

    A run may be in stages, or have only a log yet. Python's environments hold pictures, too.
    """
    names = {entry.name for entry in entries}
    if ENVIRONMENT in names:
        return SYSTEM
    if RUN_SETTINGS not in names:
        return RUN if RUN_LOG in names and names <= {RUN_LOG, *RUN_STATE, *RUN_OTHERS} else ""
    stages = [name for name in names if STAGE.fullmatch(name)]
    staged = any((folder / name / RUN_SETTINGS).is_file() for name in stages)
    return RUN if staged or names & {RUN_LOG, *RUN_STATE} else ""


def _begins_like_image(path: Path) -> bool:
    """Whether Pillow knows the format of a file."""
    if paths.in_bucket(path):
        return False
    try:
        with Image.open(path) as opened:
            return opened.format not in NO_IMAGES
    # Pillow raises more errors on damaged files than it documents.
    except Exception:
        return False


def _around(folder: Path) -> set[object]:
    """The identities of a folder and of all folders that it lies in."""
    if paths.in_bucket(folder):
        return set()
    real = Path(os.path.realpath(folder))
    return {identity(each) for each in (real, *real.parents)}


def _local_entries(folder: Path) -> list[_Entry]:
    """The entries of a folder on this machine, sorted."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            linked = entry.is_symlink()
            try:
                kind = "folder" if entry.is_dir() else "file" if entry.is_file() else NOT_REGULAR
            except OSError:  # a link to itself
                kind = NOT_REGULAR
            if linked and kind == NOT_REGULAR:
                kind = BROKEN_LINK
            found.append(_Entry(entry.name, kind, linked))
    return sorted(found, key=lambda entry: entry.name)


def _bucket_entries(root: Path) -> Callable[[Path], list[_Entry]]:
    """A function that gives the entries of each folder below a bucket's folder, sorted."""
    folders: dict[str, dict[str, str]] = {str(root): {}}
    for name in paths.files_in(root):
        *above, last = name.split("/")
        here = str(root)
        for part in above:
            folders[here][part] = "folder"
            here = f"{here}/{part}"
            folders.setdefault(here, {})
        if last:
            folders[here][last] = "file"
    return lambda folder: [
        _Entry(name, kind) for name, kind in sorted(folders[str(folder).rstrip("/")].items())
    ]
