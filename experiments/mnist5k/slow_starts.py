"""Settings for short runs: the candidates, on seeds 3 to 5 and 500 validation images.

jaxmatch sweep --config=experiments/mnist5k/slow_starts.py --workdir=runs/slow_starts --run
python -m experiments.mnist5k.slow_starts runs/slow_starts

The seeds of the results, 0 to 2, and the test images have no part in the choice.
``slow_starts.py:simmatch_v2`` has the candidates of one method.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiments import study
from jaxmatch.errors import InputError, suggest
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import read

SEEDS = (3, 4, 5)
STEPS = (600, 1500)  # whose accuracy the table shows
SHARED = {"data.validation": 500, "eval_every": 150}
SLOW = {"model.bn_decay": 0.99, "ema.schedule": "constant"}
AVERAGES: dict[str, dict[str, Any]] = {
    "before": SLOW,
    "statistics": {**SLOW, "model.bn_decay": 0.9},
    "weights": {**SLOW, "ema.schedule": "warmup"},
    "both": {"model.bn_decay": 0.9, "ema.schedule": "warmup"},
}


def split(simclr: int) -> dict[str, Any]:
    """SelfMatch with so many of the 1,500 steps for SimCLR, a tenth of them its warm-up."""
    return {
        "stages.simclr.steps": simclr,
        "stages.simclr.eval_every": simclr,
        "stages.simclr.optim.warmup_steps": simclr // 10,
        "stages.fixmatch.steps": 1500 - simclr,
    }


# The changed settings of each candidate by method.
CANDIDATES: dict[str, dict[str, dict[str, Any]]] = {
    "fixmatch_eman": AVERAGES,
    "mixmatch": {"before": {"algorithm.ramp": 1 / 64}, "ramp": {"algorithm.ramp": 0.4}},
    "simmatch_v2": AVERAGES,
    "selfmatch": {"750": split(750), "450": split(450), "300": split(300)},
}


def sweep(chosen: str = "") -> Iterator[dict[str, Any]]:
    """The candidates of one method, or of all."""
    if chosen and chosen not in CANDIDATES:
        raise InputError(f"no candidates for {chosen!r}; {suggest(chosen, CANDIDATES)}")
    for method in [chosen] if chosen else CANDIDATES:
        for name, changes in CANDIDATES[method].items():
            for seed in SEEDS:
                yield {
                    "config": f"{method}:mnist5k,labels=40,seed={seed}",
                    "workdir": f"{method}-{name}-s{seed}",
                    **SHARED,
                    **changes,
                }


def table(runs: Path) -> str:
    """The teacher's validation accuracy in percent as Markdown, of finished runs."""
    lines = ["| run | candidate | step | seeds 3 / 4 / 5 | mean |", "|---|---|---|---|---|"]
    for method, candidates in CANDIDATES.items():
        for name in candidates:
            curves = [curve(runs / f"{method}-{name}-s{seed}") for seed in SEEDS]
            for step in STEPS:
                values = [each[step] for each in curves if step in each]
                if values:
                    cells = [f"`{method}`", name, str(step), study.each(values)]
                    lines.append(f"| {' | '.join(cells)} | {mean(values):.1f} |")
    return "\n".join(lines)


def curve(run: Path) -> dict[int, float]:
    """The validation accuracy in percent by step; a second stage goes on counting steps."""
    found: dict[int, float] = {}
    begun = 0
    for folder in sorted(run.glob("[0-9]_*")) or [run]:
        summary = RunFolder(folder).read_summary()
        if summary is None:
            return {}
        key = "validation/teacher/accuracy"  # what the table of results has of every method
        found |= {begun + line["step"]: 100 * line[key] for line in read(folder) if key in line}
        begun += summary["steps"]
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", type=Path, help="the sweep's --workdir")
    print(table(parser.parse_args(words).runs))


if __name__ == "__main__":
    main()
