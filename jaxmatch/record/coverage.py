"""Coverage that stays at 0: no unlabeled image passes the threshold, so a run does not use them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

KEY = "pseudo/coverage"
SHARE = 0.1  # of the steps of a run during which coverage is 0
FITTED = "classifier fitted to the labeled features"
LINES = 3  # the least number of lines of metrics that say so


class Unused(NamedTuple):
    """The steps since the last pseudo-label."""

    since: int  # the step of the last line with a pseudo-label; 0 if there was none
    step: int  # the step of the newest line


def has_threshold(config: ConfigDict) -> bool:
    """Whether the method of a run compares predictions with a threshold that can be passed."""
    return config.algorithm.get("threshold", 2) <= 1


def spans(lines: Iterable[Mapping[str, Any]], steps: int) -> Iterator[Unused | None]:
    """For each line with a coverage, the span without a pseudo-label that ends there; or None.

    The span counts once it is a tenth of the run and three lines long.

    Args:
        lines: of ``metrics.jsonl``, or of its newest part.
        steps: of the run.
    """
    since = zeros = 0
    for line in lines:
        if KEY not in line:
            continue
        if line[KEY] > 0:
            since, zeros = line["step"], 0
        else:
            zeros += 1
        long = zeros >= LINES and line["step"] - since >= SHARE * steps
        yield Unused(since, line["step"]) if long else None


def at_end(lines: Iterable[Mapping[str, Any]], steps: int) -> Unused | None:
    """The span without a pseudo-label at the end of the lines, if it is long enough."""
    found = [*spans(lines, steps)]
    return found[-1] if found else None


class Watch:
    """Follows the coverage of a run, and tells once that it stays at 0, also if it is resumed."""

    def __init__(self, config: ConfigDict, lines: Iterable[Mapping[str, Any]]):
        """Begin after the ``lines`` of ``metrics.jsonl``."""
        self._config = config
        self._lines = [line for line in lines if KEY in line]
        told = any(spans(self._lines, config.steps))
        self._silent = told or not has_threshold(config)

    def advice(self, step: int, values: Mapping[str, float]) -> str | None:
        """What to tell the user after the metrics ``values`` of ``step``, if anything."""
        if self._silent or KEY not in values:
            return None
        self._lines.append({"step": step, KEY: values[KEY]})
        found = at_end(self._lines, self._config.steps)
        self._silent = found is not None
        return None if found is None else advice(self._config, found)


def advice(config: ConfigDict, found: Unused) -> str:
    """What to tell the user of a run of ``config`` about the span ``found``."""
    threshold = config.algorithm["threshold"]
    remedies = [f"lower algorithm.threshold={threshold:g}"]
    if not config.init_from:
        remedies.append("begin from a pretrained network by init_from")
    elif config.classifier_init != "logistic":
        remedies.insert(0, f"begin with a {FITTED} by classifier_init=logistic")
    else:
        remedies.insert(0, "make the first classifier surer by a smaller classifier_temperature")
    return (
        f"step {found.step}: since step {found.since} no unlabeled image has passed the threshold, "
        f"so the run does not use them (coverage 0): {', or '.join(remedies)}"
    )
