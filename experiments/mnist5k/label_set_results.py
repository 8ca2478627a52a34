"""Collects the finished runs of ``label_set.py`` into ``label_set.json``, like ``torch_runs.json``.

python -m experiments.mnist5k.label_set_results runs/label_set_1

A run of another number of steps than 1,500 has it in its key, as an override in ``torch_runs.py``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from experiments.mnist5k.label_set import USUAL_STEPS
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import read
from jaxmatch.runtime.json_files import write_json

RECORDED = Path(__file__).with_name("label_set.json")
EVERY = 300  # steps between two accuracies, as in torch_runs.py


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", type=Path, help="the sweep's --workdir")
    parser.add_argument("-o", "--output", type=Path, default=RECORDED, help="runs are added to it")
    chosen = parser.parse_args(words)
    folder = chosen.runs
    recorded = json.loads(chosen.output.read_text()) if chosen.output.exists() else {}
    for file in sorted(folder.glob("*/summary.json")):
        method, seed = file.parent.name.rsplit("-", 1)
        steps = json.loads(file.read_text())["steps"]
        key = f"{method},labels=10,seed=1{'' if steps == USUAL_STEPS else f',steps={steps}'}"
        recorded.setdefault(key, {})[seed] = entry(file.parent)
    ordered = {
        name: {seed: runs[seed] for seed in sorted(runs, key=int)}
        for name, runs in sorted(recorded.items())
    }
    write_json(chosen.output, ordered)
    print({name: len(runs) for name, runs in ordered.items()})


def entry(folder: Path) -> dict[str, object]:
    """The last accuracy of the network that the run reports, and its curve."""
    summary = RunFolder(folder).read_summary()
    assert summary is not None
    network = summary["evaluated"]
    lines = {line["step"]: line.get(f"test/{network}/accuracy") for line in read(folder)}
    curve = {str(step): value for step, value in lines.items() if step % EVERY == 0}
    return {"accuracy": summary[network]["last"], "curve": curve}


if __name__ == "__main__":
    main()
