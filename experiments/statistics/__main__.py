"""Compares the accuracies of two programs, and tells how many seeds a claim needs.

    python -m experiments.statistics compare "runs/mnist5k/fixmatch-10-s*" 62.5,68.5,43.9
    python -m experiments.statistics seeds experiments/mnist5k/results.json

An argument of ``compare`` is a folder of finished runs or a pattern of such folders, a JSON file
with a place in it (``FILE:10/fixmatch``), or the accuracies themselves in percent. ``--paired``
compares runs of equal seeds, which takes out what a seed does to both.
"""

import argparse
import glob
import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from experiments import study
from jaxmatch.errors import InputError

CONFIDENCE = 0.95
POWER = 0.8
CLAIMS = (1.0, 2.0, 5.0)  # points
MOST_RUNS = 100_000
Runs = Mapping[str, float]  # {seed: accuracy in percent}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of one program minus that of another, in points.

    Attributes:
        mean: the difference.
        error: its standard error.
        low, high: its confidence interval.
        p: the two-sided p-value of no difference.
    """

    mean: float
    error: float
    low: float
    high: float
    p: float


def difference(ours: Runs, theirs: Runs, paired: bool = False) -> Difference:
    """Welch's comparison of two groups of runs; of equal seeds, the paired one.

    Welch, "The generalization of Student's problem when several different population variances are
    involved", Biometrika 1947.

    Raises:
        InputError: if there are too few runs, or none differ within a group.
    """
    first, second = list(ours.values()), list(theirs.values())
    if paired:
        seeds = [seed for seed in ours if seed in theirs]
        first, second = [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
    if min(len(first), len(second)) < 2:
        kind = "pairs of equal seeds" if paired else "runs of each"
        raise InputError(f"at least two {kind} are needed, not {min(len(first), len(second))}.")
    if paired:
        gaps = [one - other for one, other in zip(first, second, strict=True)]
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    else:
        error = math.hypot(
            *(statistics.stdev(each) / math.sqrt(len(each)) for each in (first, second))
        )
    if error == 0:
        raise InputError("the runs of each group are equal, so nothing tells what chance does.")
    found = (
        stats.ttest_rel(first, second)
        if paired
        else stats.ttest_ind(first, second, equal_var=False)
    )
    interval = found.confidence_interval(CONFIDENCE)
    return Difference(
        mean=statistics.fmean(first) - statistics.fmean(second),
        error=error,
        low=float(interval.low),
        high=float(interval.high),
        p=float(found.pvalue),
    )


def seeds_needed(deviation: float, claim: float) -> int:
    """Runs of each of two programs, so that a true difference is found with :data:`POWER`.

    The two-sided t test of two equally large groups at 1 - :data:`CONFIDENCE`, by the noncentral t
    distribution (Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, chapter 2).

    Args:
        deviation: the standard deviation of runs of each, in points.
        claim: the true difference, in points.

    Raises:
        InputError: if more than :data:`MOST_RUNS` are needed.
    """

    def power(count: int) -> float:
        freedom = 2 * count - 2
        limit = stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)
        shift = claim / deviation * math.sqrt(count / 2)
        found = stats.nct.sf(limit, freedom, shift) + stats.nct.cdf(-limit, freedom, shift)
        return float(found) if math.isfinite(found) else 1.0

    if deviation <= 0:
        return 2
    low, high = 1, 2
    while power(high) < POWER:
        low, high = high, 2 * high
        if high > MOST_RUNS:
            raise InputError(f"a difference of {claim} points needs more than {MOST_RUNS:,} runs.")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def runs_of(argument: str) -> Runs:
    """The accuracies in percent that an argument of ``compare`` names, by seed.

    Raises:
        InputError: if there are none.
    """
    try:
        return {str(at): float(value) for at, value in enumerate(argument.split(","))}
    except ValueError:
        pass
    path, _, place = argument.partition(":")
    if folders := [Path(name) for name in sorted(glob.glob(argument)) if Path(name).is_dir()]:
        found = _of_folders(folders)
    elif Path(path).is_file():
        found = _at(json.loads(Path(path).read_text()), place, argument)
    else:
        raise InputError(f"{argument} is no folder of runs, no JSON file and no list of numbers.")
    if not found:
        raise InputError(f"{argument} holds no finished run.")
    return found


def _of_folders(folders: Iterable[Path]) -> Runs:
    found: dict[str, float] = {}
    for folder in folders:
        for file in sorted(folder.rglob("summary.json")):
            summary = json.loads(file.read_text())
            seed = str(json.loads((file.parent / "config.json").read_text())["seed"])
            if seed in found:
                raise InputError(
                    f"{file.parent} is a second run of seed {seed}; name the runs of one program "
                    "by a pattern, such as 'runs/fixmatch-10-s*'."
                )
            found[seed] = 100 * summary[summary["evaluated"]]["last"]
    return found


def _at(content: Any, place: str, argument: str) -> Runs:
    for key in filter(None, place.split("/")):
        if not isinstance(content, dict) or key not in content:
            raise InputError(f"{argument}: there is no {key!r}.")
        content = content[key]
    return accuracies(content, argument)


def accuracies(content: Any, argument: str = "") -> Runs:
    """The percentages in a recorded {seed: number or entry}; shares are times 100.

    An entry has ``teacher`` or ``accuracy``, a share.
    """
    found = {}
    for seed, entry in content.items() if isinstance(content, dict) else ():
        if isinstance(entry, dict):
            share = entry.get("teacher", entry.get("accuracy"))
            entry = None if share is None else 100 * share
        if not isinstance(entry, int | float):
            raise InputError(f"{argument}: {seed!r} is no run.")
        found[seed] = float(entry)
    return found


def needed_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: runs of each program for claims of :data:`CLAIMS` points, by labels and method."""
    rows = [
        "| labels | method | runs | sd | "
        + " | ".join(f"{claim:g} points" for claim in CLAIMS)
        + " |",
        "|---" * (4 + len(CLAIMS)) + "|",
    ]
    for labels, methods in results.items():
        for method, seeds in methods.items():
            runs = list(accuracies(seeds, f"{labels}/{method}").values())
            if len(runs) < 2:
                continue
            deviation = statistics.stdev(runs)
            needed = [f"{seeds_needed(deviation, claim):,}" for claim in CLAIMS]
            cells = [labels, method, str(len(runs)), f"{deviation:.1f}", *needed]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def told(name: str, runs: Runs) -> str:
    """A line on one program's runs."""
    return f"{name}: {study.spread(list(runs.values()))} ({len(runs)} runs)"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="the mean difference, with its interval")
    compare.add_argument("ours", help="folders of runs, FILE.json:PLACE, or numbers")
    compare.add_argument("theirs", help="the same of the other program or method")
    compare.add_argument("--paired", action="store_true", help="compare runs of equal seeds")
    needed = commands.add_parser("seeds", help="how many seeds claims need")
    needed.add_argument("results", type=Path, help="recorded {labels: {method: {seed: entry}}}")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "seeds":
            print(needed_table(json.loads(chosen.results.read_text())))
            return
        ours, theirs = runs_of(chosen.ours), runs_of(chosen.theirs)
        found = difference(ours, theirs, chosen.paired)
    except InputError as error:
        print(f"experiments.statistics: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(told(chosen.ours, ours))
    print(told(chosen.theirs, theirs))
    print(
        f"difference: {found.mean:+.1f} ± {found.error:.1f} points (standard error), "
        f"{CONFIDENCE:.0%} interval {found.low:+.1f} to {found.high:+.1f}, p = {found.p:.2g}"
    )


if __name__ == "__main__":
    main()
