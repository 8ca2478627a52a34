"""One line of an augmentation comparison: how much agrees, and the limits it is held to."""

from typing import NamedTuple

import numpy as np


class Limits(NamedTuple):
    """A pass line: the least share of equal values and the largest difference allowed."""

    equal: float
    largest: float

    def __str__(self) -> str:
        """The pass line in words."""
        largest = "any" if np.isinf(self.largest) else f"{self.largest:g}"
        return f">= {self.equal:.2%} equal, <= {largest}"


EXACT = Limits(1.0, 0.0)
BLEND = Limits(0.9997, 1.0)
AUTOCONTRAST = Limits(0.97, 1.0)
FIXED_POINT_WARP = Limits(0.999, np.inf)
HUE = Limits(0.998, 5.0)
PIL_RESIZE = Limits(0.999, 1.0)
TENSOR = Limits(0.0, 1e-6)
WHOLE_VIEW = Limits(0.99, np.inf)


class Row(NamedTuple):
    """One array of a reference file, held against what the library computes."""

    case: str  # the file's name
    quantity: str
    passed: bool
    equal: float  # share of equal values
    largest: float  # largest difference: levels 0..255, or the file's own unit for floats
    limits: Limits
    source: str = "library"  # or "reference only": the library has no such thing


def compare(
    case: str,
    quantity: str,
    ours: np.ndarray,
    theirs: np.ndarray,
    limits: Limits,
    source: str = "library",
) -> Row:
    """Hold ``ours`` against ``theirs`` (same shape, any numeric dtype); NaN never passes."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"{case} {quantity}: shape {ours.shape} is not {theirs.shape}")
    difference = np.abs(ours - theirs)
    equal, largest = float(np.mean(difference == 0)), float(difference.max())
    passed = equal >= limits.equal and largest <= limits.largest
    return Row(case, quantity, passed, equal, largest, limits, source)
