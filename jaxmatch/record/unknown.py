"""The content of ``unknown.json``: how strange known images look to the networks of some steps.

The object is that of the newest of these steps; ``other_steps`` has the same of earlier ones by
their number. It has ``step``, ``images`` (their number), ``part`` (which these are: "validation",
or "labeled" for images that the run has trained on), ``score`` (the one that counts unless another
is asked for), ``share`` and, for ``teacher`` and ``student``, each score by name: ``scores`` of the
images, sorted, larger for stranger ones, and ``threshold``, above which an image is stranger than
that share of known images; null where there are too few.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

NETWORKS = ("teacher", "student")
VALIDATION, LABELED = "validation", "labeled"
SHARE = 0.95
OTHERS = "other_steps"


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownImages:
    """How strange n images of known classes look to the networks of a run at one step.

    Attributes:
        step: of the networks.
        part: which images they are, :data:`VALIDATION` or :data:`LABELED`.
        score: the name of the score that counts unless another is asked for.
        scores: by network and name of the score, [n] float32, sorted; larger is stranger.
    """

    step: int
    part: str
    score: str
    scores: Mapping[str, Mapping[str, np.ndarray]]

    @property
    def images(self) -> int:
        """The number n of images."""
        return len(self.scores[NETWORKS[0]][self.score])

    def unknown(self, values: np.ndarray, network: str, score: str) -> np.ndarray:
        """The share of known images that look less strange than images of ``values``, in [0, 1).

        It is 1 - p with the conformal p-value p = (1 + #{known images at least as strange}) /
        (n + 1), as of Bates et al., "Testing for Outliers with Conformal p-values", Annals of
        Statistics 2023, https://arxiv.org/abs/2104.08279. A new known image, exchangeable with
        these, has a share of at least t with probability at most 1 - t.

        Args:
            values: scores [m].
            network: "teacher" or "student".
            score: the name of the score.

        Returns:
            [m] float32.
        """
        known = self.scores[network][score]
        less = np.searchsorted(known, np.asarray(values, np.float32), side="left")
        return (less / (len(known) + 1)).astype(np.float32)

    def threshold(self, network: str, score: str) -> float | None:
        """The score above which :meth:`unknown` is at least :data:`SHARE`; None if none is."""
        known = self.scores[network][score]
        # The quotient of a whole number may be rounded to above it.
        needed = math.ceil(round(SHARE * (len(known) + 1), 9))
        return _number(known[needed - 1]) if suffice(len(known)) else None

    def to_json(self) -> dict[str, Any]:
        """What the file has of a step."""
        return {
            "step": self.step,
            "images": self.images,
            "part": self.part,
            "score": self.score,
            "share": SHARE,
            **{
                network: {
                    name: {
                        "threshold": self.threshold(network, name),
                        "scores": [_number(value) for value in values],
                    }
                    for name, values in self.scores[network].items()
                }
                for network in NETWORKS
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read the values of :meth:`to_json`.

        Raises:
            ValueError: if something is missing; it says what.
        """
        step, part, score = (content.get(key) for key in ("step", "part", "score"))
        if type(step) is not int:
            raise ValueError("the step is missing")
        if part not in (VALIDATION, LABELED):
            raise ValueError("its part is neither validation nor labeled")
        try:
            scores = {
                network: {
                    name: np.array(entry["scores"], np.float32)
                    for name, entry in content[network].items()
                }
                for network in NETWORKS
            }
            listed = [each for names in scores.values() for each in names.values()]
            whole = len({len(each) for each in listed}) == 1 and min(map(len, listed)) > 0
            whole = whole and all(np.all(np.diff(each) >= 0) for each in listed)
            whole = whole and all(score in names for names in scores.values())
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError("its scores are incomplete") from error
        if not whole:
            raise ValueError("its scores are incomplete")
        return cls(step=step, part=part, score=str(score), scores=scores)


def to_json(found: Mapping[int, KnownImages]) -> dict[str, Any]:
    """The content of the file for the known images ``found`` of at least one step."""
    *earlier, newest = sorted(found)
    others = {str(step): found[step].to_json() for step in earlier}
    return {**found[newest].to_json(), **({OTHERS: others} if others else {})}


def from_json(content: Mapping[str, Any]) -> dict[int, KnownImages]:
    """The known images by their step.

    Raises:
        ValueError: if something is missing; it says what.
    """
    others = content.get(OTHERS, {})
    if not isinstance(others, dict) or not all(isinstance(each, dict) for each in others.values()):
        raise ValueError(f"{OTHERS} is no object of objects")
    found = [KnownImages.from_json(each) for each in (*others.values(), content)]
    return {each.step: each for each in found}


def suffice(images: int) -> bool:
    """Whether so many known images can tell that another one is stranger than :data:`SHARE`."""
    return images / (images + 1) >= SHARE


def _number(value: np.floating) -> float:
    """A float32 as the shortest number that is read as it."""
    return float(str(value))
