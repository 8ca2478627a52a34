"""Collects the finished runs of the sweep beside this file into results.json and prints the table.

python -m experiments.mnist5k_pretraining.results runs/mnist5k_pretraining
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import jax

from experiments import study
from experiments.mnist5k_pretraining.sweep import METHODS
from jaxmatch.evaluation.classifier import load
from jaxmatch.evaluation.forward import make_features
from jaxmatch.evaluation.probe import measure, probe_sets
from jaxmatch.record.metrics import read
from jaxmatch.record.run_data import load_recorded
from jaxmatch.runtime.json_files import write_json

HERE = Path(__file__).parent
COLUMNS = {
    "knn": "k-NN",
    "linear": "linear probe",
    "finetune40": "fine-tuned, 40 labels",
    "finetune10": "fine-tuned, 10 labels",
    "fixmatch10": "FixMatch from it, 10 labels",
}
# Without pre-training, from the main experiment.
SCRATCH = {"finetune40": ("40", "supervised"), "finetune10": ("10", "supervised")}
SCRATCH["fixmatch10"] = ("10", "fixmatch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the sweep's --workdir")
    arguments = parser.parse_args()
    file = HERE / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for summary in sorted(arguments.runs.glob("*/summary.json")):
        method, *kind, seed = summary.parent.name.split("-")  # as the sweep names them
        runs = results.setdefault(method, {}).setdefault(seed.removeprefix("s"), {})
        found = json.loads(summary.read_text())
        if kind:
            runs[kind[0]] = found[found["evaluated"]]["last"]
        elif "knn" not in runs:
            runs |= pretrained(summary.parent, found)
            untrained = results.setdefault("untrained", {})
            if seed.removeprefix("s") not in untrained:  # the same for all methods but its heads
                untrained[seed.removeprefix("s")] = probe_of_start(summary.parent)
    write_json(file, results)
    print(table(results))


def pretrained(folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run without labels."""
    lines = read(folder)
    return {
        **summary["probe"],
        "collapsed": summary["collapsed"],
        "spread": lines[-1].get("features/spread"),
        "curve": {str(line["step"]): line["probe/knn"] for line in lines if "probe/knn" in line},
        "seconds": summary["seconds"],
        "forward_images": summary["forward_images"],
        "images_seen": summary["images_seen"],
        "hardware": f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}",
    }


def probe_of_start(folder: Path) -> dict[str, float]:
    """k-NN and linear probe of the run's network as it was before the first step."""
    run = load(folder)
    sets = probe_sets(load_recorded(run.config, folder, needed="known").source)
    state = jax.jit(run.program.init)()
    compute = make_features(run.program, spread=True)
    return dict(measure(compute, state.student(), sets, run.program.mesh))


def table(results: dict) -> str:
    """The results as Markdown, in percent: each cell the mean over seeds, with their deviation."""
    main_results = json.loads((HERE.parent / "mnist5k" / "results.json").read_text())
    rows = [
        f"| pre-training | {' | '.join(COLUMNS.values())} | features/spread |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    scratch = {
        column: [run["teacher"] for run in main_results[labels][method].values()]
        for column, (labels, method) in SCRATCH.items()
    }
    for method in ("untrained", *METHODS):
        runs = [results.get(method, {})[seed] for seed in sorted(results.get(method, {}))]
        cells = []
        for column in COLUMNS:
            values = [run[column] for run in runs if column in run]
            if method == "untrained" and column in scratch:
                values = scratch[column]
            cells.append(_cell(values))
        spread = [f"{run['spread']:.2f}" for run in runs if run.get("spread") is not None]
        rows.append(f"| {method} | {' | '.join(cells)} | {' / '.join(spread)} |")
    return "\n".join(rows)


def _cell(values: list[float]) -> str:
    numbers = [100 * value for value in values]
    seeds = f" ({study.each(numbers)})" if len(numbers) > 1 else ""
    return f"{study.spread(numbers)}{seeds}"


if __name__ == "__main__":
    main()
