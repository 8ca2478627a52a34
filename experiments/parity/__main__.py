"""The parity command: replays reference files and prints one line for each case and quantity.

Exit codes: 0 all within tolerance, 1 a tolerance exceeded, 2 something could not be replayed.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from experiments.parity import augment, functions, networks, official, usb
from experiments.parity.augment_rows import Row as AugmentRow
from experiments.parity.rows import (
    Case,
    Comparison,
    Row,
    Unknown,
    UnknownCaseError,
    default_tolerance,
)

KINDS: dict[str, Callable[[Case, float], Comparison]] = {
    "train_trajectory": usb.replay,
    "official_train_trajectory": official.replay,
    "network": networks.replay,
    "function": functions.replay,
}
FAMILIES = {"network": "networks", "function": "functions"}
INPUTS = "inputs.npz"


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay all cases under the given paths; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.parity", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATHS", help="files or folders")
    parser.add_argument("--tolerance", type=float, help="for all but augmentation files")
    parser.add_argument(
        "--family", help="only this algorithm, or networks, functions, augment, or a name's start"
    )
    options = parser.parse_args(arguments)
    cases = replayed = failed = unknown = 0
    for path in find(options.paths):
        rows = list(replay(path, options.tolerance, options.family))
        cases += bool(rows)
        for row in rows:
            print(line(row), flush=True)
            replayed += not isinstance(row, Unknown)
            failed += not isinstance(row, Unknown) and not row.passed
            unknown += isinstance(row, Unknown)
    if not cases:
        print("no case was found under these paths that is of this family")
        return 2
    print(f"{cases} cases: replayed {replayed}, failed {failed}, unknown {unknown} quantities")
    return 2 if unknown else 1 if failed else 0


def find(paths: Sequence[Path]) -> list[Path]:
    """The case files among and under ``paths``, in order; a missing path is kept, to be named."""
    found: list[Path] = []
    for path in paths:
        found += sorted(path.rglob("*.npz")) if path.is_dir() else [path]
    return [path for path in dict.fromkeys(found) if path.name != INPUTS]


def replay(
    path: Path, tolerance: float | None = None, family: str | None = None
) -> Iterator[Row | AugmentRow | Unknown]:
    """All lines of one file; none if it is not of the family.

    Trajectories, networks and functions run in float64; augmentation as in a run, in float32.
    """
    if path.name in augment.REPLAYS:
        if family in (None, "augment", path.stem):
            yield from guarded(path.stem, lambda: augment.replay(path))
        return
    with jax.enable_x64(True):
        try:
            case = Case(path)
        except UnknownCaseError as error:
            # Files without a description are augmentation files, of which this one is not known.
            if family in (None, "augment") or path.stem.startswith(family):
                yield Unknown(path.stem, "*", str(error))
            return
        if is_of_family(case, family):
            yield from guarded(path.stem, lambda: replay_case(case, tolerance))


def replay_case(case: Case, tolerance: float | None) -> list[Row | Unknown]:
    """All lines of a trajectory, network or function."""
    kind = case.meta.get("kind")
    if kind not in KINDS:
        raise UnknownCaseError(f"there is no replay for cases of kind {kind!r}")
    limit = default_tolerance(case.meta) if tolerance is None else tolerance
    return KINDS[kind](case, limit).rows()


def guarded(name: str, rows: Callable[[], Sequence]) -> Sequence[Row | AugmentRow | Unknown]:
    """The rows, or one that says why there are none: the other files are replayed all the same."""
    try:
        return rows()
    except UnknownCaseError as error:
        return [Unknown(name, "*", str(error))]
    except Exception as error:
        return [Unknown(name, "*", f"{type(error).__name__}: {error}".splitlines()[0])]


def is_of_family(case: Case, family: str | None) -> bool:
    """Whether the case's algorithm or kind is ``family``, or its name begins with it."""
    kind = FAMILIES.get(str(case.meta.get("kind")))
    known = (case.meta.get("algorithm"), official.family(case.meta), kind)
    return family is None or family in known or case.name.startswith(family)


def line(row: Row | AugmentRow | Unknown) -> str:
    """One line: case, quantity, error, tolerance, verdict, and whose code was held to it."""
    start = f"{row.case:34} {row.quantity:38}"
    if isinstance(row, Unknown):
        return f"{start} unknown: {row.reason}"
    verdict = "ok  " if row.passed else "FAIL"
    if isinstance(row, AugmentRow):
        measured = f"equal {row.equal:8.4%}, largest {row.largest:g} ({row.limits})"
        return f"{start} {measured:58} {verdict} {row.source}"
    measured = f"error {row.error:.2e} tolerance {row.tolerance:.0e}"
    worst = f" (at {row.worst})" if row.worst else ""
    return f"{start} {measured} {verdict} {row.source}{worst}"


if __name__ == "__main__":
    sys.exit(main())
