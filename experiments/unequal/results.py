"""Reads the finished runs of the sweep: balanced accuracy, and recall of the rarest classes.

python -m experiments.unequal.results runs/unequal
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from experiments.unequal.sweep import CHANGES

RAREST = 3
TITLES = {
    "plain": "FixMatch",
    "sampling": "+ class-balanced sampling",
    "logits": "+ logit adjustment, tau 1",
    "abc": "+ ABC",
    "debiaspl": "+ DebiasPL, tau 0.4",
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", type=Path)
    folder = parser.parse_args(words).runs
    entries = [entry(path.parent) for path in sorted(folder.glob("*-s*/summary.json"))]
    (folder / "results.json").write_text(json.dumps(entries, indent=1) + "\n")
    print(table(entries))


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
            values = [100 * each[key] for each in found]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.1f}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
