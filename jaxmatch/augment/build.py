"""From the settings of ``config.augment`` and ``config.views`` to an augmentation."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxmatch.augment.chain import Chain
from jaxmatch.augment.contrast import Contrast
from jaxmatch.augment.ctaugment import CTAugment
from jaxmatch.augment.ctaugment_views import CTAugmentOps, CTAugmentViews
from jaxmatch.augment.host import divide
from jaxmatch.augment.randaugment import RandAugment
from jaxmatch.augment.views import Views
from jaxmatch.augment.weak import Weak
from jaxmatch.data.crops import HostCrop
from jaxmatch.errors import InputError, suggest
from jaxmatch.settings import build_section
from jaxmatch.types import Algorithm, Augment, Transform

STRONG = ("randaugment", "ctaugment", "contrast")
ORDERS = ("weak_first", "ops_first")
# View roles with a contrastive pipeline each: the usual one, BYOL's other and SwAV's small crops.
CONTRASTS = ("contrast", "second", "small")


def build_augment(
    kind: str,
    views: Mapping[str, Any],
    algorithm: Algorithm,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    streamed_size: Sequence[int] | None = None,
) -> tuple[Augment, Mapping[str, tuple[HostCrop, ...]]]:
    """The augmentation for the view roles of ``algorithm``, and what the host crops before it.

    Args:
        kind: as ``config.augment``.
        views: as ``config.views``.
        algorithm: names the roles.
        mean, std: of the network's input.
        streamed_size: (height, width) of the images that a network sees of a streamed set; the
            host crops nothing else.

    Raises:
        InputError: on an unknown name or setting, or a value that a setting does not take.
    """
    whole = Views(
        transforms=build_transforms(kind, views),
        labeled=algorithm.labeled,
        unlabeled=algorithm.unlabeled,
        mean=mean,
        std=std,
    )
    crops: Mapping[str, tuple[HostCrop, ...]] = {}
    if streamed_size is not None:
        crops, whole = divide(whole, (streamed_size[0], streamed_size[1]))
    if kind != "ctaugment":
        return whole, crops
    return CTAugmentViews(
        views=whole,
        ctaugment=build_ctaugment(views),
        ops_first=views["strong"]["order"] == "ops_first",
    ), crops


def build_ctaugment(views: Mapping[str, Any]) -> CTAugment:
    """CTAugment with the settings of ``config.views.ctaugment``."""
    return build_section(CTAugment, dict(views["ctaugment"]), "views.ctaugment")


def build_transforms(kind: str, views: Mapping[str, Any]) -> dict[str, Transform]:
    """The transform of each view role; arguments and errors as of :func:`build_augment`.

    Under CTAugment the strong one is that of its first policy.
    """
    if kind not in STRONG:
        raise InputError(f"unknown augment {kind!r}; {suggest(kind, STRONG)}")
    values = dict(views["weak"])
    area = values.pop("area")
    weak: Transform = build_section(Weak, values, "views.weak")
    if area:  # ImageNet's: a resized crop of such a share of the image, for the padded one
        weak = Contrast(area=tuple(area), flip=0.5 * values["flip"], jitter=0.0, grayscale=0.0)
    contrasts = {
        role: build_section(Contrast, dict(views[role]), f"views.{role}") for role in CONTRASTS
    }
    values = dict(views["strong"])
    order = values.pop("order")
    if order not in ORDERS:
        raise InputError(f"unknown views.strong.order {order!r}; {suggest(order, ORDERS)}")
    ops: Transform = build_section(RandAugment, values, "views.strong")
    if kind == "ctaugment":
        ops = CTAugmentOps(ctaugment=build_ctaugment(views))
    chain = Chain(transforms=(weak, ops) if order == "weak_first" else (ops, weak))
    strong = contrasts["contrast"] if kind == "contrast" else chain
    return {"weak": weak, "strong": strong, **contrasts}
