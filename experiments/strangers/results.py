"""Measures the finished runs of the sweep beside this file: results.json and a table.

python -m experiments.strangers.results runs/strangers
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from experiments import study
from experiments.strangers.sweep import KNOWN, SEEDS, WAYS
from jaxmatch.data import sources
from jaxmatch.data.lazy import Images
from jaxmatch.evaluation.classifier import Classifier, load
from jaxmatch.evaluation.unknown import scores
from jaxmatch.record.metrics import read
from jaxmatch.record.run_data import reading
from jaxmatch.record.unknown import SHARE

HERE = Path(__file__).parent
LAST = 0.2  # share of the steps that pseudo-labels are averaged over
SCORES = ("energy", "max_logit", "heads")
# {column: key of a run's entry}
COLUMNS = {
    "test accuracy": "accuracy",
    "AUROC, energy": "auroc_energy",
    "AUROC, maximum logit": "auroc_max_logit",
    "AUROC, own heads": "auroc_heads",
    "knowns above 0.95": "knowns_above",
    "strangers above 0.95": "strangers_above",
    "pseudo-labeled": "coverage",
    "strangers pseudo-labeled": "strangers_passed",
}
Entry = Mapping[str, float | None]
Results = Mapping[str, Mapping[str, Mapping[str, Entry]]]  # {data: {way: {seed: entry}}}


def main(words: Sequence[str] | None = None) -> None:
    results, _ = study.collected(collect, HERE / "results.json", __doc__, words)
    print(table(results))


def collect(runs: Path) -> Results:
    """The entries of the finished runs."""
    results: dict[str, dict[str, dict[str, Entry]]] = {}
    for data in KNOWN:
        for way in WAYS:
            for seed in SEEDS:
                folder = runs / f"{data}-{way}-s{seed}"  # as the sweep names it
                if (folder / "summary.json").exists():
                    found = results.setdefault(data, {}).setdefault(way, {})
                    found[str(seed)] = entry(folder)
    return results


def entry(folder: Path) -> Entry:
    """What is kept of one run, in shares; None where the method has no such figure.

    The area under the ROC curve tells test images of other classes from those of known ones.
    """
    summary = json.loads((folder / "summary.json").read_text())
    classifier = load(folder, summary["steps"])
    knowns, strangers = held_out(classifier)
    logits, heads = classifier.scored(np.concatenate([knowns, strangers])).values
    found = scores(logits, heads)
    strange = np.repeat([0, 1], [len(knowns), len(strangers)])
    late = [line for line in read(folder) if line["step"] > (1 - LAST) * summary["steps"]]
    return {
        "accuracy": summary[summary["evaluated"]]["last"],
        **{
            f"auroc_{name}": float(roc_auc_score(strange, found[name])) if name in found else None
            for name in SCORES
        },
        "knowns_above": above(classifier, knowns),
        "strangers_above": above(classifier, strangers),
        "coverage": mean(late, "pseudo/coverage"),
        "strangers_passed": mean(late, "pseudo/strangers_passed"),
        "judged_strangers": mean(late, "pseudo/judged_strangers"),
        "knowns_left_out": mean(late, "pseudo/knowns_left_out"),
        "seconds": summary["seconds"],
    }


def held_out(classifier: Classifier) -> tuple[Images, Images]:
    """The test images of the known classes, and those of all others."""
    config = classifier.config
    given = config.copy_and_resolve_references()
    given.data.known_classes = ()
    whole = sources.load(config.data.name, reading(given, config.data.directory))
    known = [whole.classes.index(name) for name in config.data.known_classes]
    inside = np.isin(whole.test_labels, known)
    return whole.test_images[inside], whole.test_images[~inside]


def above(classifier: Classifier, images: Images) -> float:
    """The share of images that are stranger than :data:`SHARE` of the validation set."""
    unknown = classifier.predict(images, unknown=True).unknown
    assert unknown is not None
    return float(np.mean(unknown >= np.float32(SHARE)))


def mean(lines: list[dict[str, Any]], key: str) -> float | None:
    """The mean of a metric over lines, which are equally many steps apart; None without any."""
    values = [line[key] for line in lines if key in line]
    return statistics.fmean(values) if values else None


def table(results: Results) -> str:
    """The results as Markdown, in percent."""
    rows = [f"| data | run | seeds | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 3) + "|"]
    for data, ways in results.items():
        for way, seeds in ways.items():
            cells = [_cell([each[key] for each in seeds.values()]) for key in COLUMNS.values()]
            rows.append(f"| {data} | {way} | {', '.join(seeds)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(values: list[float | None]) -> str:
    return study.spread([100 * value for value in values if value is not None], empty="")


if __name__ == "__main__":
    main()
