"""MNIST-5k under the fixed protocol of the README beside this file: our runs next to USB's.

    python -m experiments.mnist5k.run --methods supervised pseudo_label fixmatch --seeds 0 1 2

Finished runs are not repeated. Writes results.json here and prints the table.
"""

import argparse
import itertools
import json
import platform
import statistics
from pathlib import Path

import jax

from jaxmatch import train
from jaxmatch.config import from_flags
from jaxmatch.metrics import read, write_json
from jaxmatch.parallel import use_all_cores

HERE = Path(__file__).parent
METHODS = ("supervised", "pseudo_label", "fixmatch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--labels", type=int, default=40)
    parser.add_argument("--runs", type=Path, default=Path("runs/mnist5k"))
    arguments = parser.parse_args()
    use_all_cores()
    file = HERE / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for seed in arguments.seeds:
        for method in arguments.methods:
            config, _ = from_flags(f"{method}:mnist5k,labels={arguments.labels},seed={seed}", [])
            folder = arguments.runs / f"{method}-{arguments.labels}-s{seed}"
            summary = train(config, folder)
            entry = {
                "teacher": summary["teacher"]["last"],
                "student": summary["student"]["last"],
                "steps_per_second": steps_per_second(read(folder)),
                "seconds": summary["seconds"],
                "curve": {
                    str(line["step"]): line["test/teacher/accuracy"]
                    for line in read(folder)
                    if line["step"] % 300 == 0
                },
                "hardware": f"{len(jax.devices())} x {jax.devices()[0].device_kind}, "
                f"{platform.machine()}, jax {jax.__version__}",
            }
            results.setdefault(str(arguments.labels), {}).setdefault(method, {})[str(seed)] = entry
            write_json(file, results)
    print(table(results))


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
        "| labels | method | ours, seeds | mean ± sd | USB, seeds | mean ± sd | steps/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for labels, methods in results.items():
        for method, seeds in methods.items():
            ours = {seed: 100 * entry["teacher"] for seed, entry in sorted(seeds.items())}
            theirs = usb["accuracy"].get(labels, {}).get(method, {})
            rate = statistics.median(entry["steps_per_second"] for entry in seeds.values())
            cells = [labels, method, *_cells(ours), *_cells(theirs), f"{rate:.1f}"]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _cells(values: dict[str, float]) -> tuple[str, str]:
    if not values:
        return "not run", ""
    numbers = list(values.values())
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    seeds = " / ".join(f"{number:.1f}" for number in numbers)
    return f"{seeds} ({', '.join(values)})", f"{statistics.fmean(numbers):.1f} ± {deviation:.1f}"


if __name__ == "__main__":
    main()
