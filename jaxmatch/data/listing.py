"""Finds the images of a folder, their sets and classes; reads no image.

Storage order is the order of the sorted relative paths, so it does not depend on the file system.
A file that has several names, by links or spellings, is one image. Whatever is left out, and
whatever a user may not expect, is reported (:class:`jaxmatch.data.source.Survey`).
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxmatch.data import layout, table
from jaxmatch.data.discovery import SAME_FILE, LeftOut, Tree, identity, search
from jaxmatch.data.places import Place
from jaxmatch.data.source import Names
from jaxmatch.data.table import UNLABELED
from jaxmatch.errors import InputError, counted
from jaxmatch.runtime import paths


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of a folder by name.

    Attributes:
        given: the folder as the user names it.
        root: its path.
        classes_of: the class of each image, by its path relative to ``root``; "" = unlabeled.
        test: the images of the test set.
        validation: the images of the validation set.
        aliases: further names of images, each with the image's name in ``classes_of``.
        table: the name of the table of labels; "" if there is none.
        left_out: names of files and folders that are not used, by the reason.
        notes: sentences about what a user may not expect.
    """

    given: str
    root: Path
    classes_of: Mapping[str, str]
    test: frozenset[str] = frozenset()
    validation: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)
    table: str = ""
    left_out: LeftOut = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The images in storage order."""
        return tuple(sorted(self.classes_of))

    @property
    def aliased(self) -> dict[str, int]:
        """The row of each further name."""
        rows = {name: row for row, name in enumerate(self.names)}
        return {alias: rows[name] for alias, name in self.aliases.items()}

    @property
    def naming(self) -> Names:
        """The names of all images outside of the given test and validation sets."""
        held_out = self.test | self.validation
        rows = {name: row for row, name in enumerate(self.names) if name not in held_out}
        aliases = {alias: rows[name] for alias, name in self.aliases.items() if name in rows}
        return Names(source=f"folder:{self.given}", rows=aliases | rows, roots=(self.root,))


def find(directory: str) -> Listing:
    """Find the images of a folder (:mod:`jaxmatch.data.layout` says where they may lie).

    If a file has several names, the first of these counts: a name in the test set, in the
    validation set, a name with a class, a file that is no link, the first name in alphabetical
    order.

    Raises:
        InputError: if there are no images, the layout can be read in two ways, or an image has two
            classes.
    """
    root = paths.path(directory)
    if not root.is_dir():
        if root.exists():
            raise InputError(f"{directory} is a file; unpack it, or read arrays by npz:FILE.")
        raise InputError(f"There is no folder {directory}.")
    tree = search(root)
    plan = layout.plan(root, tree)
    classes_of = {name: place.label for name, place in plan.places.items()}
    sets = {
        part: frozenset(name for name, place in plan.places.items() if place.part == part)
        for part in ("test", "validation")
    }
    if not classes_of:
        raise InputError(
            f"There are no images in {directory}{_instead(plan.left_out)}; put them into "
            "folders <class>/ or train/<class>/."
        )
    aliases = _aliases(root, plan.places, tree)
    notes = list(plan.notes)
    for part, inside in sets.items():
        leaked = {name for alias, name in aliases.items() if name in inside and alias not in inside}
        if leaked:
            notes.append(
                f"Used as {part} images only, although found elsewhere too: "
                f"{counted(len(leaked), 'image')}."
            )
    left_out = dict(plan.left_out)
    if aliases:
        left_out[SAME_FILE] = tuple(sorted(aliases))
    return Listing(
        given=directory,
        root=root,
        classes_of={name: label for name, label in classes_of.items() if name not in aliases},
        test=sets["test"] - aliases.keys(),
        validation=sets["validation"] - aliases.keys(),
        aliases=aliases,
        table=plan.table,
        left_out=left_out,
        notes=tuple(notes),
    )


def current_labels(
    root: Path, names: Iterable[str], *before: Path
) -> Callable[[str], str | None] | None:
    """A function from a name to the label in the folder's table; None if there is no table.

    Args:
        root: the folder.
        names: the images that the table may mean.
        before: earlier places of the folder, for absolute paths in the table.
    """
    folders = {os.path.dirname(name) for name in names if not os.path.isabs(name)}
    common = os.path.commonpath(folders) if folders else ""
    around = common.split("/") if common else []  # the folders around all images
    # The outermost table counts, and none in the folder of a set, as when the run began.
    for depth in range(len(around) + 1):
        inside = "/".join(around[:depth])
        if depth and table.part_of(around[depth - 1]):
            return None
        if file := table.find(root / inside if inside else root):
            break
    else:
        return None
    roots = [place / inside if inside else place for place in (root, *before)]
    short = {name: name.removeprefix(f"{inside}/") for name in names}
    rows, _ = table.resolve(
        table.read(file), roots, short.values(), lambda: search(roots[0]).images
    )
    labels = {name: rows[each].label for name, each in short.items() if each in rows}
    return labels.get


def _aliases(root: Path, places: Mapping[str, Place], tree: Tree) -> dict[str, str]:
    """The further names of files that have several, each with the name that counts."""
    searched = set(tree.images)

    def rank(name: str) -> tuple[bool, bool, bool, bool, str]:
        part, label = places[name].part, places[name].label
        path = root / name
        linked = name in tree.linked if name in searched else _is_link(path)
        return part != "test", part != "validation", not label, linked, name

    same: dict[object, list[str]] = {}
    for name in places:
        same.setdefault(identity(root / name), []).append(name)
    aliases: dict[str, str] = {}
    for group in same.values():
        if len(group) == 1:  # without the ranks, which cost a call for each file
            continue
        first, *others = sorted(group, key=rank)
        for other in others:
            if places[other].label not in (places[first].label, UNLABELED):
                raise InputError(
                    f"{root / first} and {root / other} are one image, but of the classes "
                    f"{places[first].label!r} and {places[other].label!r}; remove one of them."
                )
        aliases |= dict.fromkeys(others, first)
    return aliases


def _is_link(path: Path) -> bool:
    return not paths.in_bucket(path) and path.is_symlink()


def _instead(left_out: LeftOut) -> str:
    """What a folder without images holds, in parentheses."""
    found = Counter({reason: len(names) for reason, names in left_out.items()})
    text = ", ".join(f"{count} {reason}" for reason, count in found.most_common(3))
    return f" ({text})" if text else ""
