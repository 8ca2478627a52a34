"""What the scripts that collect a study's runs share: their command line, and a table's cell."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jaxmatch.errors import InputError, JaxmatchError
from jaxmatch.runtime.json_files import write_json


def collected(
    collect: Callable[[Path], Any],
    file: Path,
    description: str | None,
    words: Sequence[str] | None = None,
) -> tuple[Any, Path]:
    """Runs the command line ``RUNS [-o FOLDER]`` of a study.

    Args:
        collect: gives what is kept of the finished runs in a folder.
        file: the JSON file for it; ``-o`` replaces its folder.
        description: the script's docstring, for ``--help``.
        words: the command line; None for that of the process.

    Returns:
        What ``collect`` found, and the folder it was written to.

    Raises:
        SystemExit: for bad arguments, or if no run has finished or the file cannot be written;
            one line says why.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("runs", type=Path, help="the sweep's --workdir")
    parser.add_argument("-o", "--output", type=Path, default=file.parent, help="where files go")
    chosen = parser.parse_args(words)
    try:
        results = collect(chosen.runs)
        if not results:
            raise no_run(chosen.runs)
        write_json(chosen.output / file.name, results)
    except JaxmatchError as error:
        print(f"experiments.{file.parent.name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    return results, chosen.output


def no_run(runs: Path) -> InputError:
    """The error for a folder without a finished run."""
    return InputError(f"{runs} holds no finished run; run the sweep with this --workdir first.")


def spread(values: Sequence[float], empty: str = "not run") -> str:
    """Mean ± sample standard deviation of figures in percent or points, as a cell of a table."""
    if not values:
        return empty
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{deviation}"


def each(values: Sequence[float]) -> str:
    """The figures themselves, as a cell of a table."""
    return " / ".join(f"{value:.1f}" for value in values)
