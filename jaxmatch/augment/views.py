"""Turns raw images into the views that an algorithm asks for, normalized for the network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax

from jaxmatch.errors import InputError, suggest
from jaxmatch.models.inputs import normalize
from jaxmatch.random import stream
from jaxmatch.types import Array, Batch, Examples, PyTree, Transform


@dataclass(frozen=True, kw_only=True)
class Views:
    """The :class:`~jaxmatch.types.Augment` whose transforms never change.

    Attributes:
        transforms: the transform of each view role.
        labeled, unlabeled: the roles that the algorithm declares.
        mean, std: network input = (levels / 255 - mean) / std; one value for each channel, or one
            for all.
    """

    transforms: Mapping[str, Transform]
    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        """Check that each role has a transform."""
        for role in self.labeled + self.unlabeled:
            if role not in self.transforms:
                raise InputError(
                    f"the algorithm asks for view {role!r}, which config.views does not define; "
                    f"{suggest(role, self.transforms)}"
                )

    def init(self) -> PyTree:
        """No state."""
        return ()

    def apply(self, policy: PyTree, key: Array, examples: Batch) -> tuple[Batch, PyTree]:
        """Draw every view independently."""
        return Batch(
            self._views(stream(key, "labeled"), examples.labeled, self.labeled),
            self._views(stream(key, "unlabeled"), examples.unlabeled, self.unlabeled),
        ), ()

    def update(self, policy: PyTree, record: PyTree, predict: Callable[[Array], Array]) -> PyTree:
        """Nothing to learn."""
        return policy

    def _views(
        self, key: Array, examples: Examples | None, roles: Sequence[str]
    ) -> Examples | None:
        if examples is None:
            return None
        # Of a streamed set the host gives one view for each role.
        given = examples.views if len(examples.views) > 1 else examples.views * len(roles)
        views = []
        for position, (role, images) in enumerate(zip(roles, given, strict=True)):
            transform = self.transforms[role]
            role_key = jax.random.fold_in(key, position)
            levels = transform.apply(images, transform.draw(role_key, images.shape))
            views.append(normalize(levels, self.mean, self.std))
        return examples._replace(views=tuple(views))
