"""Builds the augmentation from ``config.augment`` and ``config.views``."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

from jaxmatch.augment.chain import Chain
from jaxmatch.augment.contrast import Contrast
from jaxmatch.augment.ctaugment import CTAugment
from jaxmatch.augment.ctaugment_views import CTAugmentOps, CTAugmentViews
from jaxmatch.augment.host import divide
from jaxmatch.augment.randaugment import RandAugment
from jaxmatch.augment.views import Views
from jaxmatch.augment.weak import Weak
from jaxmatch.data.crops import HostCrop
from jaxmatch.errors import InputError
from jaxmatch.settings import Count, Share, build_section, check_value
from jaxmatch.types import Algorithm, Augment, Transform

Strong = Literal["randaugment", "ctaugment", "contrast"]
Order = Literal["weak_first", "ops_first"]
# Roles of contrastive views: the usual one, BYOL's second one and SwAV's small crops.
CONTRASTS = ("contrast", "second", "small")
Crops = tuple[tuple[Count, Share, Share], ...]  # side, least and largest area


def build_augment(
    kind: str,
    views: Mapping[str, Any],
    algorithm: Algorithm,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    streamed_size: Sequence[int] | None = None,
) -> tuple[Augment, Mapping[str, tuple[HostCrop, ...]]]:
    """The augmentation for the view roles of ``algorithm``, and the crops of the host before it.

    Args:
        kind: ``config.augment``.
        views: ``config.views``.
        algorithm: names the roles.
        mean, std: mean and standard deviation that normalize the network's input.
        streamed_size: (height, width) of the network's input for a streamed set; None for other
            sets, which the host does not crop.

    Raises:
        InputError: if a name or setting is unknown, or a setting does not accept its value.
    """
    unlabeled, transforms = multi_crop(kind, views, algorithm)
    whole = Views(
        transforms=transforms,
        labeled=algorithm.labeled,
        unlabeled=unlabeled,
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
    """The transform of each view role; arguments and errors are those of :func:`build_augment`.

    With CTAugment the strong transform draws from the first policy.
    """
    check_value("augment", kind, Strong)
    values = dict(views["weak"])
    area = values.pop("area")
    weak: Transform = build_section(Weak, values, "views.weak")
    if area:  # ImageNet: a resized crop of this share of the image replaces the padded crop
        weak = Contrast(
            area=tuple(area),
            flip=0.5 * values["flip"],
            vertical_flip=0.5 * values["vertical_flip"],
            rotate90=values["rotate90"],
            jitter=0.0,
            grayscale=0.0,
        )
    contrasts = {
        role: build_section(Contrast, dict(views[role]), f"views.{role}") for role in CONTRASTS
    }
    values = dict(views["strong"])
    order = values.pop("order")
    check_value("views.strong.order", order, Order)
    ops = build_section(RandAugment, values, "views.strong")
    if kind == "ctaugment":
        _check_unused(ops)
        ops = CTAugmentOps(ctaugment=build_ctaugment(views))
    chain = Chain(transforms=(weak, ops) if order == "weak_first" else (ops, weak))
    strong = contrasts["contrast"] if kind == "contrast" else chain
    return {"weak": weak, "strong": strong, **contrasts}


def multi_crop(
    kind: str, views: Mapping[str, Any], algorithm: Algorithm
) -> tuple[tuple[str, ...], dict[str, Transform]]:
    """The roles of the unlabeled views, and :func:`build_transforms`, with ``views.crops``.

    An entry of ``views.crops`` has side, least and largest area of a strong view after the first
    one, which gets a role of its own, "strong_2" and so on. Further strong views are like the
    first.

    Raises:
        InputError: if strong views are not contrastive views, if there are more crops than strong
            views after the first, and as :func:`build_augment`.
    """
    transforms = build_transforms(kind, views)
    crops = views["crops"]
    check_value("views.crops", crops, Crops)
    if not crops or "strong" not in algorithm.unlabeled:
        return algorithm.unlabeled, transforms
    strong, drawn = transforms["strong"], algorithm.unlabeled.count("strong")
    if not isinstance(strong, Contrast):
        raise InputError(
            f"views.crops={crops} has no effect on augment={kind}; set augment=contrast, or "
            "views.crops=()."
        )
    if len(crops) >= drawn:
        raise InputError(
            f"views.crops is for the strong views after the first one. It has entries for "
            f"{len(crops)}, but the method draws {drawn - 1} of them; leave entries out, or set "
            f"algorithm.strong_views={len(crops) + 1} if the method has it."
        )
    names = [f"strong_{number}" for number in range(2, len(crops) + 2)]
    transforms |= {
        name: replace(strong, size=side, area=tuple(area))
        for name, (side, *area) in zip(names, crops, strict=True)
    }
    waiting = iter(["strong", *names])
    roles = tuple(next(waiting, role) if role == "strong" else role for role in algorithm.unlabeled)
    return roles, transforms


def _check_unused(strong: RandAugment) -> None:
    """Refuse settings of RandAugment that the user chose, but CTAugment does not read.

    The table is none of them, since a preset sets it for every method.
    """
    for field in fields(RandAugment):
        value = getattr(strong, field.name)
        if field.name != "table" and value != field.default:
            own = "set views.ctaugment.cutout, or " if field.name == "cutout" else ""
            raise InputError(
                f"views.strong.{field.name}={value} has no effect on augment=ctaugment, which "
                f"draws all of its ops; {own}set augment=randaugment, or leave out what sets it."
            )
