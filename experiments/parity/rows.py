"""A reference file with a ledger of what was read of it, and the lines a replay prints."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

TOLERANCE = 1e-8
ADAMW_TOLERANCE = 1e-7
VAT_TOLERANCE = 1e-6
VIT_TOLERANCE, VIT_ADAMW_TOLERANCE = 1e-12, 1e-9
SMALLEST_SCALE = 1e-6


class UnknownCaseError(Exception):
    """A case, or a part of it, that the library cannot replay; the text says why."""


class Row(NamedTuple):
    """One quantity of a case, over all its steps or tensors, held against the library's."""

    case: str
    quantity: str
    error: float  # the largest max|ours - theirs| / max(max|theirs|, 1e-6) of its arrays
    tolerance: float
    worst: str  # the step or tensor of that error
    source: str  # "library" or "override: <method>"

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


class Unknown(NamedTuple):
    """A case, or a quantity of one, that was not replayed."""

    case: str
    quantity: str
    reason: str


class Case:
    """The arrays of one reference file; remembers which were read."""

    def __init__(self, path: Path):
        """Read the file whole; raises UnknownCaseError if it is not such a file."""
        self.name = path.stem
        try:
            with path.open("rb") as stream, np.load(stream) as file:
                self._arrays = {key: file[key] for key in file.files}
            self.meta: dict[str, Any] = json.loads(str(self._arrays["meta"]))
        except KeyError as error:
            raise UnknownCaseError("no meta, and not a known augmentation file") from error
        except (OSError, ValueError, BadZipFile) as error:
            raise UnknownCaseError(f"not a readable reference file: {error}") from error
        self._unread = set(self._arrays) - {"meta"}

    def __contains__(self, key: str) -> bool:
        """Whether the file has ``key``."""
        return key in self._arrays

    def __getitem__(self, key: str) -> np.ndarray:
        """The array of ``key``, which counts as read from now on."""
        if key not in self._arrays:
            raise UnknownCaseError(f"the file has no {key!r}")
        self._unread.discard(key)
        return self._arrays[key]

    def names(self, prefix: str) -> list[str]:
        """What follows ``prefix`` in the keys that start with it; reads nothing."""
        return [key.removeprefix(prefix) for key in self._arrays if key.startswith(prefix)]

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose keys start with ``prefix``, by the rest of their names."""
        return {name: self[prefix + name] for name in self.names(prefix)}

    def unread(self) -> list[str]:
        """The keys never read but ``in/``, with step numbers as ``*``, each pattern once.

        An input of a function that matters shows in the function's outputs.
        """
        unread = {key for key in self._unread if not key.startswith("in/")}
        return sorted({re.sub(r"/\d+(?=/|$)", "/*", key, count=1) for key in unread})


class Comparison:
    """Collects the rows of one case, one for each quantity."""

    def __init__(self, case: Case, tolerance: float, source: str = "library"):
        """Start with no rows; ``source`` is that of all rows that name no other."""
        self._case, self._tolerance, self._source = case, tolerance, source
        self._rows: dict[str, Row] = {}

    def add(
        self,
        quantity: str,
        where: str,
        ours: Any,
        theirs: Any,
        source: str | None = None,
        at_least: float = 0.0,
    ) -> None:
        """Hold one array against the reference's; the row keeps the worst of its quantity.

        ``at_least`` is a tolerance for what the reference itself has to a lower precision.
        """
        error = relative_error(np.asarray(ours), np.asarray(theirs))
        source, tolerance = source or self._source, max(self._tolerance, at_least)
        row = Row(self._case.name, quantity, error, tolerance, where, source)
        old = self._rows.get(quantity)
        if old is None or row.error > old.error:
            self._rows[quantity] = row

    def add_each(
        self, quantity: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], **options: Any
    ) -> None:
        """Hold arrays by name against the reference's of the same names."""
        for name, value in theirs.items():
            self.add(quantity, name, ours.get(name, np.nan), value, **options)

    def rows(self) -> list[Row | Unknown]:
        """All rows so far, then what nobody read of the case."""
        reason = "the replay knows no such quantity"
        unread = [Unknown(self._case.name, key, reason) for key in self._case.unread()]
        return [*self._rows.values(), *unread]


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max|ours - theirs| / max(max|theirs|, 1e-6); infinite if shapes differ or values are NaN."""
    if ours.shape != theirs.shape:
        return float("inf")
    if ours.size == 0:
        return 0.0
    wide = theirs.astype(np.float64)
    difference = np.abs(ours.astype(np.float64) - wide).max()
    error = float(difference / np.maximum(np.abs(wide).max(), SMALLEST_SCALE))
    return error if np.isfinite(error) else float("inf")


def default_tolerance(meta: Mapping[str, Any]) -> float:
    """The tolerance of a case: AdamW amplifies the rounding of gradients that are zero.

    VAT divides by the norm of a gradient that is as small as its step, so rounding grows there.
    Vision Transformers have no convolution's bias before a BatchNorm, so theirs are narrower.
    """
    if meta.get("algorithm") == "vat":
        return VAT_TOLERANCE
    optimiser = meta.get("optimiser", {})  # a text where the authors' own code was recorded
    adamw = isinstance(optimiser, Mapping) and optimiser.get("name") == "AdamW"
    source = meta.get("source")
    packages = {source.get("package")} if isinstance(source, Mapping) else set()
    if "timm" in meta or packages & {"timm", "peft"}:
        return VIT_ADAMW_TOLERANCE if meta.get("kind") == "train_trajectory" else VIT_TOLERANCE
    return ADAMW_TOLERANCE if adamw else TOLERANCE
