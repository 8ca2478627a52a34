"""The facts that a program needs about its data; they are known even if the data is away."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts of a run's data; ``config.json`` keeps them.

    Attributes:
        classes: the names of the classes.
        image_shape: (height, width, channels) of the raw images.
        labels: the true label of each labeled example, in split order.
        unlabeled: how many unlabeled examples there are.
        frozen: a digest of the variables of each frozen network, by role.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    labels: tuple[int, ...]
    unlabeled: int
    frozen: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read the values of :meth:`to_json`.

        Raises:
            ValueError: naming the fact that is missing.
        """
        kinds: dict[str, type | tuple[type, ...]] = {
            "classes": (list, tuple),
            "image_shape": (list, tuple),
            "labels": (list, tuple),
            "unlabeled": int,
        }
        for name, kind in kinds.items():
            if not isinstance(values.get(name), kind):
                raise ValueError(f"facts.{name} is missing")
        frozen = values.get("frozen", {})
        if not isinstance(frozen, Mapping):
            raise ValueError("facts.frozen is not a mapping of roles to networks")
        height, width, channels = values["image_shape"]
        return cls(
            classes=tuple(values["classes"]),
            image_shape=(height, width, channels),
            labels=tuple(values["labels"]),
            unlabeled=values["unlabeled"],
            frozen=frozen,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the key "frozen" exists only if there are frozen networks."""
        return {
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "labels": list(self.labels),
            "unlabeled": self.unlabeled,
            **({"frozen": dict(self.frozen)} if self.frozen else {}),
        }
