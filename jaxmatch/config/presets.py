"""The settings of each data set and of each preset, by dotted key."""

from typing import Any, NamedTuple

from jaxmatch.augment.build import CONTRASTS
from jaxmatch.config.input_scales import CIFAR10, CIFAR100, IMAGENET, STL10, SVHN

PRESETS = ("jaxmatch", "google", "torchssl", "usb")

IMAGENET_IMAGES = 1_281_167
TENTH = 128_116  # labels of the 10% list; that of 1% has 12,811
IMAGENET_CALL = 50  # steps between two looks at the metrics

USB_NETWORK = {
    "model.legacy_transition": True,
    "model.padding": "torch",
    "model.conv_bias": "stem",
    "model.bn_eps": 1e-5,
}
MNIST5K = {
    **USB_NETWORK,
    "steps": 1500,
    "steps_per_call": 15,
    "log_every": 75,
    "eval_every": 75,
    "save_every": 150,
    "data.labels": "40",
    "data.batch_size": 16,
    "data.mean": (0.1307,),
    "data.std": (0.3081,),
    "model.depth": 10,
    "model.first_stride": 2,
    "model.bn_decay": 0.99,
    "views.weak.flip": False,
    "views.contrast.flip": 0.0,
    "views.second.flip": 0.0,
    "views.small.flip": 0.0,
    "ema.decay": 0.99,
}
DATASETS: dict[str, dict[str, Any]] = {
    "mnist5k": MNIST5K,
    "digits": {**MNIST5K, "data.mean": (0.5,), "data.std": (0.5,)},
    "tfds:cifar10": {"data.labels": "40"},
    "tfds:cifar100": {"data.labels": "400", "model.width": 8.0, "optim.weight_decay": 1e-3},
    "tfds:svhn_cropped": {
        "data.labels": "40",
        "views.weak.flip": False,
        "views.contrast.flip": 0.0,
        "views.second.flip": 0.0,
        "views.small.flip": 0.0,
    },
    "tfds:stl10": {"data.labels": "40", "model.groups": 4, "model.first_stride": 2},
    "tfds:imagenet2012": {
        "data.stream": True,
        "data.image_size": 224,
        "data.center_crop": 0.875,  # of 256 pixels the central 224
        "data.mean": IMAGENET[0],
        "data.std": IMAGENET[1],
        "model.name": "resnet50",
        "views.weak.area": (0.08, 1.0),
        "optim.weight_decay": 3e-4,
    },
}
TORCHSSL_SCALE = {
    "tfds:cifar10": CIFAR10,
    "tfds:cifar100": CIFAR100,
    "tfds:svhn_cropped": SVHN,
    "tfds:stl10": STL10,
}
USB_SCALE = {**TORCHSSL_SCALE, "tfds:cifar10": IMAGENET}
# TorchSSL's runs of FixMatch and FlexMatch on ImageNet. Its images are squeezed to 256 pixels, of
# which a crop has 224: here a crop of the same area.
TORCHSSL_IMAGENET: dict[str, Any] = {
    "steps": 2_000_000,
    "steps_per_call": IMAGENET_CALL,
    "log_every": 2 * IMAGENET_CALL,
    "eval_every": 10_000,
    "save_every": 10_000,
    "data.labels": "100000",
    "data.batch_size": 32,
    "data.ratio": 7,
    "data.include_labeled": True,
    "data.center_crop": 1.0,
    "data.mean": IMAGENET[0],
    "data.std": IMAGENET[1],
    "views.weak.area": (0.875**2, 0.875**2),
    "views.strong.table": "torchssl",
    "algorithm.threshold": 0.95,
    "algorithm.unlabeled_weight": 1.0,
    "optim.learning_rate": 0.03,
    "optim.schedule": "cosine_7_16",
    "optim.drops": (),
    "optim.warmup_steps": 0,
    "optim.weight_decay": 3e-4,
    "optim.decay": "kernels",
    "ema.statistics": "copied",
}


def imagenet(
    epochs: float, unlabeled_batch: int, labels: str = "", *, partial: bool = False
) -> dict[str, Any]:
    """A run of ``epochs`` over ImageNet's unlabeled images on a ResNet-50, evaluated at each.

    Args:
        epochs: passes over the training images without the labeled ones.
        unlabeled_batch: images of a step.
        labels: their number in the ``--config`` argument; by default 10% of the images.
        partial: the steps of a pass count its last batch, which is not full.
    """
    labeled = int(labels) if labels.isdecimal() else TENTH
    epoch = (IMAGENET_IMAGES - labeled + partial * (unlabeled_batch - 1)) // unlabeled_batch
    period = max(1, epoch // IMAGENET_CALL) * IMAGENET_CALL
    return {
        "steps": max(1, round(epochs * epoch / IMAGENET_CALL)) * IMAGENET_CALL,
        "steps_per_call": IMAGENET_CALL,
        "log_every": 2 * IMAGENET_CALL,
        "eval_every": period,
        "save_every": period,
        "data.labels": str(TENTH),
        "data.include_labeled": False,
        "data.mean": IMAGENET[0],
        "data.std": IMAGENET[1],
        "model.name": "resnet50",
        "optim.decay": "all",
        "optim.weight_decay": 1e-4,
    }


def bank_on_imagenet(epochs: int, labels: str) -> dict[str, Any]:
    """What SimMatch and SimMatchV2 share on ImageNet: MoCo v2's views, a teacher of own statistics.

    Arguments are those of :func:`imagenet`.
    """
    values = imagenet(epochs, 320, labels)
    epoch = values["steps"] // epochs
    return {
        **values,
        "augment": "contrast",
        "data.batch_size": 64,
        "data.ratio": 5,
        "views.weak.area": (0.2, 1.0),
        "views.contrast.area": (0.2, 1.0),
        "views.contrast.blur": 0.5,
        "model.bn_groups": 8,
        "optim.schedule": "cosine",
        "optim.period_steps": epoch,
        "optim.warmup_steps": 5 * epoch,
        "ema.statistics": "own",
    }


def preset_values(preset: str, data: str) -> dict[str, Any]:
    """The settings of a preset for a data set, for every method (configs/README.md)."""
    values: dict[str, Any] = {}
    if preset == "google":
        if data != "tfds:imagenet2012":
            values["views.strong.table"] = "google"
        if data == "tfds:cifar100":
            values["optim.weight_decay"] = 5e-4
        if data == "tfds:stl10":
            values["model.first_stride"] = 1
    if preset in ("torchssl", "usb"):
        scale = TORCHSSL_SCALE if preset == "torchssl" else USB_SCALE
        values |= USB_NETWORK
        if data in scale:
            values["data.mean"], values["data.std"] = scale[data]
        if data == "tfds:svhn_cropped":
            values |= {"data.extra": True, "views.weak.flip": True, **_contrasts(flip=0.5)}
    if preset == "torchssl":
        values |= {"model.conv_bias": "all", "model.bn_eps": 1e-3}
        values |= {"views.weak.pad": 4}
        if data != "tfds:imagenet2012":  # streamed images are cropped before all other operations
            values["views.strong.order"] = "ops_first"
    if preset == "usb":
        values["views.weak.order"] = "crop_flip"
        if data == "tfds:cifar100":
            values["model.width"] = 2.0
    return values


class Views(NamedTuple):
    """A named augmentation."""

    meaning: str
    values: dict[str, Any]


def _flips(*, flip: bool, vertical: bool = False) -> dict[str, Any]:
    """Flips of the weak views, and so of the strong ones, and of all views of contrastive learning.

    Quarter turns are off.
    """
    return {
        "views.weak.flip": flip,
        "views.weak.vertical_flip": vertical,
        "views.weak.rotate90": False,
        **_contrasts(flip=0.5 * flip, vertical_flip=0.5 * vertical, rotate90=False),
    }


def _contrasts(roles: tuple[str, ...] = CONTRASTS, **values: Any) -> dict[str, Any]:
    return {f"views.{role}.{key}": value for role in roles for key, value in values.items()}


def _gentle(padding: str, least_area: float, *more_ops: str) -> dict[str, Any]:
    """Views without what may erase a class: half the published strength, no cutout, small crops.

    The ops keep the order of the grey levels, and no colour changes.
    """
    return {
        "augment": "randaugment",
        "views.weak.padding": padding,
        "views.strong.table": "torchssl",
        "views.strong.ops": (
            *("brightness", "contrast", "identity", "rotate", "sharpness"),
            *("shear_x", "shear_y", "translate_x", "translate_y"),
            *more_ops,
        ),
        "views.strong.number": 2,
        "views.strong.strength": 0.5,
        "views.strong.cutout": False,
        "views.strong.padding": padding,
        **_contrasts(("contrast", "second"), area=(least_area, 1.0)),
        **_contrasts(brightness=0.2, contrast=0.2, saturation=0.0, hue=0.0),
        **_contrasts(grayscale=0.0, blur=0.0, solarize=0.0),
    }


VIEWS = {
    "photographs": Views(
        "things the right way up, in colour or not: the published ops and cutout; flips left and "
        "right.",
        {
            "augment": "randaugment",
            "views.weak.padding": "reflect",
            "views.strong.table": "torchssl",
            "views.strong.ops": (),
            "views.strong.number": None,
            "views.strong.strength": 1.0,
            "views.strong.cutout": None,
            "views.strong.fill": None,
            "views.strong.padding": "fill",
            **_flips(flip=True),
        },
    ),
    "documents": Views(
        "letters and digits on a plain ground: no flips and no cutout; turns and moves of half the "
        "published size, with the ground continued at the edges.",
        {**_gentle("edge", 0.35, "autocontrast"), **_flips(flip=False)},
    ),
    "medical": Views(
        "upright gray images: ops of half the published strength that keep the order of the grey "
        "levels; no cutout; flips left and right.",
        {**_gentle("edge", 0.5), **_flips(flip=True)},
    ),
    "industrial": Views(
        "gray images of surfaces and parts: ops of half the published strength that keep the order "
        "of the grey levels; no cutout; flips both ways.",
        {**_gentle("reflect", 0.5), **_flips(flip=True, vertical=True)},
    ),
}
