"""Divides the views of a streamed set: the host crops and flips, the device does the rest."""

from dataclasses import replace

from jaxmatch.augment.chain import Chain
from jaxmatch.augment.contrast import Contrast
from jaxmatch.augment.views import Views
from jaxmatch.data.crops import HostCrop
from jaxmatch.data.images import Size
from jaxmatch.errors import InputError
from jaxmatch.types import Transform


def divide(views: Views, size: Size) -> tuple[dict[str, tuple[HostCrop, ...]], Views]:
    """The host's crops of "labeled" and "unlabeled", one a role, and the views that remain.

    ``size`` is (height, width) of the network's input. If a view has no resized crop, such as the
    padded view of small images, all of it stays on the device and the host crops the centre.

    Raises:
        InputError: if a resized crop comes after operations of the device.
    """
    parts = {role: _divide(transform, size) for role, transform in views.transforms.items()}
    crops = {
        kind: tuple(parts[role][0] for role in roles)
        for kind, roles in (("labeled", views.labeled), ("unlabeled", views.unlabeled))
    }
    return crops, replace(views, transforms={role: rest for role, (_, rest) in parts.items()})


def _divide(transform: Transform, size: Size) -> tuple[HostCrop, Transform]:
    if isinstance(transform, Contrast):
        crop = HostCrop(
            size=size if transform.size is None else (transform.size, transform.size),
            area=transform.area,
            method=transform.method,
            flip=transform.flip,
            vertical_flip=transform.vertical_flip,
            rotate90=transform.rotate90,
        )
        return crop, transform.colors()
    if isinstance(transform, Chain):
        first, *others = transform.transforms
        if any(isinstance(other, Contrast) for other in others):
            raise InputError(
                "streamed images are cropped before any other operation; set "
                "views.strong.order=weak_first or data.stream=False."
            )
        crop, rest = _divide(first, size)
        return crop, Chain(transforms=(rest, *others))
    return HostCrop(size=size), transform
