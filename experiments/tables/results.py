"""Our side of the tables: what the run folders of a table hold."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.tables.sweep import Table, folder, point
from jaxmatch.config.flags import from_flags
from jaxmatch.config.saved import differences, to_json
from jaxmatch.config.stages import stage_folders
from jaxmatch.report.results import Run, read


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The runs of one method at one number of labels."""

    finished: tuple[Run, ...]
    unfinished: int
    changed: tuple[str, ...]  # "key: run's value -> recipe's", of any of the runs

    def error(self, kind: str) -> str:
        """100 - 100 * accuracy, mean ± sample deviation over the seeds (how many).

        ``kind`` is one of :data:`jaxmatch.report.results.ACCURACIES`, of the network that the
        method reports. A star: some run does not have the recipe's settings.
        """
        values = [run.accuracy(kind, run.evaluated) for run in self.finished]
        errors = [100 - 100 * value for value in values if value is not None]
        if not errors:
            return "not finished" if self.unfinished else "not run"
        deviation = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
        star = "*" if self.changed else ""
        return f"{statistics.fmean(errors):.2f}{deviation} ({len(errors)}){star}"


def cell(
    base: Path, table: Table, method: str, labels: str, preset: str, seeds: Sequence[str] = ()
) -> Cell:
    """What is there of a cell in the table's folder ``base``; of ``seeds`` only, if there are any.

    Raises:
        InputError: if one of its folders is no run folder.
    """
    finished, unfinished, changed = [], 0, []
    for seed, path in _folders(base, folder(method, labels, preset)):
        if seeds and seed not in seeds:
            continue
        if not (path / "summary.json").exists():
            unfinished += 1
            continue
        finished.append(read(path))
        recipe = point(table, method, labels, seed, preset)
        changed += [text for text in _changed(path, recipe) if text not in changed]
    return Cell(finished=tuple(finished), unfinished=unfinished, changed=tuple(changed))


def _folders(base: Path, start: str) -> Iterator[tuple[str, Path]]:
    found = ((path.name.removeprefix(start), path) for path in base.glob(f"{start}*"))
    yield from sorted((seed, path) for seed, path in found if seed.isdecimal() and path.is_dir())


def _changed(path: Path, recipe: dict) -> list[str]:
    """What of a run is not as its recipe, which newer code may have changed, now has it."""
    flags = [
        f"--config.{key}={value}"
        for key, value in recipe.items()
        if key not in ("config", "workdir")
    ]
    config, _ = from_flags(recipe["config"], flags)
    stages = stage_folders(config) if "order" in config else {"": config}
    found = []
    for name, stage in stages.items():
        values = json.loads((path / name / "config.json").read_text())
        values.pop("facts", None)
        prefix = f"{name} " if name else ""
        found += [f"{prefix}{text}" for text in differences(values, to_json(stage))]
    return found
