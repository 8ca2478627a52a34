"""The views of CTAugment: strong views from the learned policy, and probes that teach it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax.numpy as jnp

from jaxmatch.augment.chain import Chain
from jaxmatch.augment.ctaugment import CTAugment, Draws, Policy
from jaxmatch.augment.views import Views
from jaxmatch.errors import InputError
from jaxmatch.models.inputs import normalize
from jaxmatch.random import stream
from jaxmatch.types import Array, Batch, Transform


@dataclass(frozen=True, kw_only=True)
class CTAugmentOps:
    """A :class:`~jaxmatch.types.Transform` of RGB images by one state of the policy.

    Attributes:
        ctaugment: the settings.
        policy: the weights of the bins; None is the first policy, which draws uniformly.
    """

    ctaugment: CTAugment = field(default_factory=CTAugment)
    policy: Policy | None = None

    def draw(self, key: Array, shape: tuple[int, ...]) -> Draws:
        """Choose ops, levels and places for images of ``shape`` [b h w 3].

        Raises:
            InputError: if they have not three channels.
        """
        if shape[-1] != 3:
            raise InputError(f"CTAugment needs images of 3 channels, not {shape[-1]}.")
        policy = self.ctaugment.init() if self.policy is None else self.policy
        return self.ctaugment.draw(policy, key, shape)

    def apply(self, images: Array, draws: Draws) -> Array:
        """Levels 0..255 [b h w 3] of any dtype in (rounded), float32 levels out."""
        return self.ctaugment.apply(images, draws)


class Record(NamedTuple):
    """The probes of a step: labeled images under a uniform policy."""

    views: Array  # [b h w 3] network input
    draws: Draws
    label: Array  # [b] int32


@dataclass(frozen=True, kw_only=True)
class CTAugmentViews:
    """An :class:`~jaxmatch.types.Augment` whose strong views follow a policy that it learns.

    Attributes:
        views: all roles with their transforms. The transform of "strong" is not used; that of
            "weak" comes before the ops. Repeated strong roles draw independently.
        ctaugment: the settings.
        ops_first: apply the ops and the cutout before the weak view, not after it.
    """

    views: Views
    ctaugment: CTAugment = field(default_factory=CTAugment)
    ops_first: bool = False

    def __post_init__(self) -> None:
        """Check that the algorithm reads labeled images."""
        if not self.views.labeled:
            raise InputError(
                "CTAugment learns from labeled images, but this algorithm reads none: choose "
                "another config.augment."
            )

    def init(self) -> Policy:
        """The policy with equal weights."""
        return self.ctaugment.init()

    def apply(self, policy: Policy, key: Array, examples: Batch) -> tuple[Batch, Record]:
        """Draw every view independently, and a probe of each labeled image.

        A probe is another weak view, then ops at uniform levels, without the last cutout.
        """
        ops = CTAugmentOps(ctaugment=self.ctaugment, policy=policy)
        transforms = {**self.views.transforms, "strong": self._strong(ops)}
        batch, _ = replace(self.views, transforms=transforms).apply((), key, examples)

        labeled = examples.labeled
        assert labeled is not None  # a method without labels is refused
        images = labeled.views[0]
        weak = self.views.transforms["weak"]
        uniform = CTAugmentOps(ctaugment=replace(self.ctaugment, cutout=False))
        drawn = weak.draw(stream(key, "probe weak"), images.shape)
        draws = uniform.draw(stream(key, "probe"), images.shape)
        levels = uniform.apply(weak.apply(images, drawn), draws)
        views = normalize(levels, self.views.mean, self.views.std)
        return batch, Record(views, draws, labeled.label)

    def update(self, policy: Policy, record: Record, predict: Callable[[Array], Array]) -> Policy:
        """Move the weights of the probes' bins towards the true class's probability."""
        truth = jnp.take_along_axis(predict(record.views), record.label[:, None], 1)[:, 0]
        return self.ctaugment.update(policy, record.draws, truth)

    def _strong(self, ops: Transform) -> Chain:
        weak = self.views.transforms["weak"]
        return Chain(transforms=(ops, weak) if self.ops_first else (weak, ops))
