"""Which views suit Fashion-MNIST: candidates on seeds 3 to 5 and 5,000 validation images.

jaxmatch sweep --config=experiments/fashion_mnist/views.py --workdir=runs/fashion_views --run
python -m experiments.fashion_mnist.views runs/fashion_views

The seeds of the results, 0 to 2, and the test images have no part in the choice. The garments are
gray on a black ground, upright, and the shoes point to the left.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import study
from experiments.statistics.__main__ import difference
from jaxmatch.config.presets import VIEWS
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import read

HERE = Path(__file__).parent
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
        meaning="black beyond the edges (and in cutouts)",
        overrides={"views.weak.padding": "zero", "views.strong.fill": 0},
    ),
    "no_cutout": Candidate(meaning="no cutout", overrides={"views.strong.cutout": False}),
    "half": Candidate(meaning="ops at half strength", overrides={"views.strong.strength": 0.5}),
    "ordered": Candidate(
        meaning="no autocontrast, color, equalize, posterize, solarize",
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


def collect(runs: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Validation accuracies in percent by method, candidate and seed, of the finished runs."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for method, names in METHODS.items():
        for name in names:
            if known := accuracies(runs, method, name):
                found.setdefault(method, {})[name] = known
    return found


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


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The accuracies as Markdown, and the gain in points over the published views."""
    lines = ["| run | views | seeds 3 / 4 / 5 | mean ± sd | above the published ones |"]
    lines.append("|---|---|---|---|---|")
    for method, found in results.items():
        for name, known in found.items():
            values = list(known.values())
            cells = [f"`{method}`", CANDIDATES[name].meaning, study.each(values)]
            cells += [study.spread(values), gain(known, found.get(PUBLISHED, {}))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gain(ours: Mapping[str, float], published: Mapping[str, float]) -> str:
    """The mean difference on equal seeds and its 95% interval; none for fewer than two seeds."""
    if ours == published or len(ours.keys() & published.keys()) < 2:
        return ""
    found = difference(ours, published, paired=True)
    return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


def main(words: Sequence[str] | None = None) -> None:
    results, _ = study.collected(collect, HERE / "views.json", __doc__, words)
    print(table(results))


if __name__ == "__main__":
    main()
