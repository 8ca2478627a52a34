"""Reads the finished runs of the sweep: balanced accuracy, and recall of the rarest classes.

python -m experiments.unequal.results runs/unequal
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiments import study
from experiments.unequal.sweep import CHANGES

HERE = Path(__file__).parent
RAREST = 3
TITLES = {
    "plain": "FixMatch",
    "sampling": "+ class-balanced sampling",
    "logits": "+ logit adjustment, tau 1",
    "abc": "+ ABC",
    "debiaspl": "+ DebiasPL, tau 0.4",
}


def main(words: Sequence[str] | None = None) -> None:
    entries, _ = study.collected(collect, HERE / "results.json", __doc__, words)
    print(table(entries))


def collect(runs: Path) -> list[dict[str, Any]]:
    """The entries of the finished runs."""
    return [entry(path.parent) for path in sorted(runs.glob("*-s*/summary.json"))]


def entry(folder: Path) -> dict[str, Any]:
    """The figures of a finished run, in [0, 1], of the network that the method reports.

    The rarest classes are those with the fewest labeled images.
    """
    summary = json.loads((folder / "summary.json").read_text())
    counts = json.loads((folder / "findings.json").read_text())["counts"]
    metrics = summary[summary["evaluated"]]["metrics"]
    by_labels = sorted(counts, key=lambda name: counts[name]["labeled"])
    name, _, seed = folder.name.rpartition("-s")
    return {
        "change": name,
        "seed": int(seed),
        "steps": summary["steps"],
        "accuracy": metrics["accuracy"],
        "balanced_accuracy": metrics["balanced_accuracy"],
        "rarest": mean(metrics["per_class"][each]["recall"] for each in by_labels[:RAREST]),
        "minutes": summary["seconds"] / 60,
    }


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, in percent, as Markdown."""
    lines = [
        f"| method | seeds | balanced accuracy | recall of the {RAREST} rarest classes |",
        "|---|---|---|---|",
    ]
    for name in CHANGES:
        found = [each for each in entries if each["change"] == name]
        if not found:
            continue
        cells = [TITLES[name], " ".join(str(each["seed"]) for each in found)]
        for key in ("balanced_accuracy", "rarest"):
            cells.append(study.spread([100 * each[key] for each in found]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
