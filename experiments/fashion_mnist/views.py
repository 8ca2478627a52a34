"""Which views suit Fashion-MNIST: candidates on seeds 3 to 5 and 5,000 validation images.

jaxmatch sweep --config=experiments/fashion_mnist/views.py --workdir=runs/fashion_views --run
python -m experiments.fashion_mnist.views runs/fashion_views

The seeds of the results, 0 to 2, and the test images have no part in the choice. The garments are
gray on a black ground, upright, and the shoes point to the left.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import study
from experiments.statistics.__main__ import difference
from jaxmatch.config.presets import VIEWS
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import read

SEEDS = (3, 4, 5)
LABELS = 100
VALIDATION = 5000


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Views by ``views=`` in the argument, changed by overrides."""

    meaning: str
    views: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)


PUBLISHED = "published"
CANDIDATES = {
    PUBLISHED: Candidate(meaning="the published views"),
    "no_flips": Candidate(meaning="no flips", overrides={"views.weak.flip": False}),
    "black": Candidate(
        meaning="black beyond the edges and in cutouts",
        overrides={"views.weak.padding": "zero", "views.strong.fill": 0},
    ),
    "no_cutout": Candidate(meaning="no cutout", overrides={"views.strong.cutout": False}),
    "half": Candidate(meaning="ops at half strength", overrides={"views.strong.strength": 0.5}),
    "ordered": Candidate(
        meaning="ops that keep the order of the gray levels",
        overrides={"views.strong.ops": VIEWS["medical"].values["views.strong.ops"]},
    ),
    "medical": Candidate(meaning="`views=medical`", views="medical"),
    "documents": Candidate(meaning="`views=documents`", views="documents"),
}
# Without strong views only those of the weak ones count.
METHODS = {"supervised": (PUBLISHED, "no_flips", "black"), "fixmatch": tuple(CANDIDATES)}


def sweep() -> Iterator[dict[str, Any]]:
    """The first seed of all first."""
    for seed in SEEDS:
        for method, names in METHODS.items():
            for name in names:
                chosen = CANDIDATES[name]
                overrides = dict(chosen.overrides)
                if method == "supervised":  # it takes no settings of strong views
                    overrides.pop("views.strong.fill", None)
                views = f",views={chosen.views}" if chosen.views else ""
                yield {
                    "config": f"{method}:fashion_mnist,labels={LABELS},seed={seed}{views}",
                    "workdir": f"{method}-{name}-s{seed}",
                    "data.validation": VALIDATION,
                    **overrides,
                }


def table(runs: Path) -> str:
    """Validation accuracy in percent of the finished runs as Markdown, and the gain in points."""
    lines = ["| run | views | seeds 3 / 4 / 5 | mean ± sd | above the published ones |"]
    lines.append("|---|---|---|---|---|")
    for method, names in METHODS.items():
        found = {name: accuracies(runs, method, name) for name in names}
        for name in names:
            if values := list(found[name].values()):
                cells = [f"`{method}`", CANDIDATES[name].meaning, study.each(values)]
                cells += [study.spread(values), gain(found[name], found[PUBLISHED])]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def accuracies(runs: Path, method: str, name: str) -> dict[str, float]:
    """The reported network's validation accuracy in percent at the end of the run, by seed."""
    found = {}
    for seed in SEEDS:
        folder = runs / f"{method}-{name}-s{seed}"
        summary = RunFolder(folder).read_summary()
        if summary is not None:
            key = f"validation/{summary['evaluated']}/accuracy"
            found[str(seed)] = 100 * [line[key] for line in read(folder) if key in line][-1]
    return found


def gain(ours: Mapping[str, float], published: Mapping[str, float]) -> str:
    """The mean difference on equal seeds and its 95% interval; none for fewer than two seeds."""
    if ours == published or len(ours.keys() & published.keys()) < 2:
        return ""
    found = difference(ours, published, paired=True)
    return f"{found.mean:+.1f} ({found.low:.1f} to {found.high:.1f})"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", type=Path, help="the sweep's --workdir")
    print(table(parser.parse_args(words).runs))


if __name__ == "__main__":
    main()
