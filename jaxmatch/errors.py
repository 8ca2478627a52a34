"""Errors that are written for the user, each with the exit code of the command line."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

MOST_NAMES = 40  # that an error lists


class JaxmatchError(Exception):
    """Base of all errors that the command line prints as one sentence, without a traceback."""

    exit_code = 1


class InputError(JaxmatchError):
    """Bad configuration, data or arguments; raised before anything compiles."""

    exit_code = 2


class NonFiniteError(JaxmatchError):
    """A loss became NaN or Inf; the last good checkpoint is kept."""

    exit_code = 3


class DiskError(JaxmatchError):
    """A file of the run folder could not be written."""

    exit_code = 4


class Stopped(JaxmatchError):
    """A signal arrived, and the state was saved."""

    cause = "a signal"


class Terminated(Stopped):
    """SIGTERM arrived, and the state was saved."""

    exit_code, cause = 143, "SIGTERM"


class Interrupted(Stopped):
    """Ctrl-C (SIGINT) arrived, and the state was saved."""

    exit_code, cause = 130, "Ctrl-C"


def suggest(name: str, known: Iterable[str], listed_by: str = "") -> str:
    """The clause that follows an unknown name: the nearest known name, or all if they are few.

    ``listed_by`` is the command that lists them where they are many.
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    if len(known) <= MOST_NAMES:
        return f"known: {', '.join(known)}."
    (nearest,) = get_close_matches(name, known, n=1, cutoff=0)
    where = f"; {listed_by} lists them all" if listed_by else ""
    return f"the nearest of {len(known):,} known names is {nearest!r}{where}."


def some(names: Sequence[str], most: int = 5) -> str:
    """The first ``most`` names in a list, as a terminal can show them, and how many more follow."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """The names of each reason, from pairs (reason, name)."""
    found: dict[str, list[str]] = {}
    for reason, name in pairs:
        found.setdefault(reason, []).append(name)
    return {reason: tuple(names) for reason, names in found.items()}


def by_reason(names: Mapping[str, Sequence[str]]) -> str:
    """The first names of each reason: "truncated: a.png, b.png; empty file: c.png"."""
    return "; ".join(f"{reason}: {some(found)}" for reason, found in names.items())


def printable(text: str) -> str:
    """``text`` with escapes for what a terminal cannot show or would obey."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
