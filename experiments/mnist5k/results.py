"""Collects the finished runs of the sweep beside this file into results.json and prints the table.

python -m experiments.mnist5k.results runs/mnist5k
"""

import argparse
import itertools
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.optimize import linear_sum_assignment

from experiments import study
from experiments.mnist5k.sweep import METHODS
from jaxmatch.evaluation.classifier import load
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import read
from jaxmatch.record.run_data import load_recorded
from jaxmatch.runtime.json_files import write_json

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the sweep's --workdir")
    arguments = parser.parse_args()
    file = HERE / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for summary in sorted(arguments.runs.glob("*/summary.json")):
        method, labels, seed = summary.parent.name.rsplit("-", 2)  # as the sweep names them
        runs = results.setdefault(labels, {}).setdefault(method, {})
        found = json.loads(summary.read_text())
        # Predicting takes a while, so only for runs that are new or were repeated.
        if runs.get(seed.removeprefix("s"), {}).get("seconds") != found["seconds"]:
            runs[seed.removeprefix("s")] = entry(summary.parent)
    write_json(file, results)
    print(table(results))


def entry(folder: Path) -> dict[str, Any]:
    """What is kept of one run."""
    summary = json.loads((folder / "summary.json").read_text())
    lines = read(RunFolder.at(folder).path)
    stages = summary.get("stages", {})
    return {
        "teacher": summary["teacher"]["last"],
        "student": summary["student"]["last"],
        "renamed": renamed(folder),
        "steps_per_second": steps_per_second(lines),
        "seconds": summary["seconds"],
        "images_seen": summary["images_seen"],
        "curve": {
            str(line["step"]): line["test/teacher/accuracy"]
            for line in lines
            if line["step"] % 300 == 0
        },
        "last_line": {
            key: value
            for key, value in lines[-1].items()
            if key.startswith(("loss/", "pseudo/", "unlabeled/"))
        },
        "probe": next((stage["probe"] for stage in stages.values() if "probe" in stage), None),
        "hardware": f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}",
    }


def renamed(folder: Path) -> float:
    """Test accuracy of the teacher after the one-to-one renaming of classes that suits it best.

    Above the plain accuracy where groups of images are held together under each other's names.
    """
    classifier = load(folder)
    source = load_recorded(classifier.config, classifier.folder, needed="held").source
    found = classifier.predict(source.test_images, "teacher").label
    confusion = np.zeros((len(classifier.classes),) * 2)
    np.add.at(confusion, (source.test_labels, found), 1)
    return float(confusion[linear_sum_assignment(-confusion)].sum() / confusion.sum())


def steps_per_second(lines: list[dict]) -> float:
    """Median over the intervals between two lines, evaluation included, compilation not."""
    return statistics.median(
        (after["step"] - before["step"]) / (after["time/seconds"] - before["time/seconds"])
        for before, after in itertools.pairwise(lines)
    )


def table(results: dict) -> str:
    """The results as Markdown, in percent, beside USB's."""
    usb = json.loads((HERE / "usb.json").read_text())
    rows = [
        "| labels | method | ours, seeds | mean ± sd | classes renamed | USB, seeds | mean ± sd |",
        "|---|---|---|---|---|---|---|",
    ]
    for labels, methods in sorted(results.items(), key=lambda item: -int(item[0])):
        for method, seeds in sorted(methods.items(), key=lambda item: _place(item[0])):
            runs = dict(sorted(seeds.items()))
            ours = {seed: 100 * entry["teacher"] for seed, entry in runs.items()}
            named = study.each([100 * entry["renamed"] for entry in runs.values()])
            theirs = usb["accuracy"].get(labels, {}).get(method, {})
            cells = [labels, method, *_cells(ours), named, *_cells(theirs)]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _place(method: str) -> int:
    """The sweep's order; what it does not have comes last."""
    return METHODS.index(method) if method in METHODS else len(METHODS)


def _cells(values: dict[str, float]) -> tuple[str, str]:
    if not values:
        return "not run", ""
    numbers = list(values.values())
    return f"{study.each(numbers)} ({', '.join(values)})", study.spread(numbers)


if __name__ == "__main__":
    main()
