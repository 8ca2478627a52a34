"""Collects the runs of ``first_classifier.py``: first_classifier.json, and a table in Markdown.

python -m experiments.pretrained.first_classifier_results runs/pretrained
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import study
from experiments.pretrained.first_classifier import KINDS, RATES, SEEDS
from jaxmatch.evaluation.comparison import TITLES
from jaxmatch.record.metrics import read

HERE = Path(__file__).parent
EARLY = 75  # steps that "coverage at first" is the mean of
STEPS_SHOWN = (75, 150, 300)
TESTED = "test/teacher/accuracy"
COLUMNS = ("coverage at first", "coverage", *(f"accuracy at {step}" for step in STEPS_SHOWN))
Results = Mapping[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    results, _ = study.collected(collect, HERE / "first_classifier.json", __doc__, words)
    print(table(results))


def collect(runs: Path) -> dict[str, Any]:
    """The entries of the finished runs by name of the folder, and the baselines of each seed.

    Raises:
        InputError: if there are none.
    """
    found: dict[str, Any] = {}
    baselines: dict[str, dict[str, float]] = {}
    for seed in SEEDS:
        for rate in RATES:
            for kind in KINDS:
                folder = runs / f"{kind}-lr{rate}-s{seed}"  # as the sweep names it
                if not (folder / "summary.json").exists():
                    continue
                found[folder.name] = entry(folder)
                if (file := folder / "baselines.json").exists():  # equal for all runs of a seed
                    measured = json.loads(file.read_text())["baselines"]
                    baselines[str(seed)] = {
                        name: one["test"]["accuracy"] for name, one in measured.items()
                    }
    if not found:
        raise study.no_run(runs)
    return {"runs": found, "baselines": baselines}


def entry(folder: Path) -> dict[str, float]:
    """Coverage of the first steps and of all, and the teacher's test accuracy at some steps."""
    lines = read(folder)
    covered = [line for line in lines if "pseudo/coverage" in line]  # equally many steps apart
    tested = {line["step"]: line["test/teacher/accuracy"] for line in lines if TESTED in line}
    return {
        COLUMNS[0]: statistics.fmean(
            line["pseudo/coverage"] for line in covered if line["step"] <= EARLY
        ),
        COLUMNS[1]: statistics.fmean(line["pseudo/coverage"] for line in covered),
        **{f"accuracy at {step}": tested[step] for step in STEPS_SHOWN},
    }


def table(results: Results) -> str:
    """The results as Markdown, in percent."""
    rows = [
        f"| learning rate | first classifier | seeds | {' | '.join(COLUMNS)} |",
        "|---" * (3 + len(COLUMNS)) + "|",
    ]
    for rate in RATES:
        for kind in KINDS:
            names = {seed: f"{kind}-lr{rate}-s{seed}" for seed in SEEDS}
            known = {s: results["runs"][n] for s, n in names.items() if n in results["runs"]}
            cells = [_mean([run[column] for run in known.values()]) for column in COLUMNS]
            seeds = ", ".join(map(str, known)) or "not run"
            rows.append(f"| {rate:g} | {kind} | {seeds} | {' | '.join(cells)} |")
    for name, title in TITLES.items():
        values = [one[name] for one in results["baselines"].values() if name in one]
        if values:
            seeds = ", ".join(results["baselines"])
            empty = " |" * (len(COLUMNS) - 1)
            rows.append(f"| - | {title} | {seeds} |{empty} {_mean(values)} |")
    return "\n".join(rows)


def _mean(values: Sequence[float]) -> str:
    return study.spread([100 * value for value in values], empty="")


if __name__ == "__main__":
    main()
