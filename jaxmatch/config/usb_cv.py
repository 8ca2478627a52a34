"""The preset ``usb_cv``: USB's benchmark on images, which starts from pretrained transformers.

Wang et al., "USB: A Unified Semi-supervised Learning Benchmark for Classification", NeurIPS 2022
(https://arxiv.org/abs/2208.07204). The values are those of ``config/usb_cv`` and
``semilearn/datasets/cv_datasets`` of github.com/microsoft/Semi-supervised-learning @ 1ef4cbe.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxmatch.config.input_scales import CIFAR100, HALF, IMAGENET, STL10
from jaxmatch.errors import InputError
from jaxmatch.models.vit import PRESETS

NAME = "usb_cv"
# TissueMNIST's ops: those that neither change colours nor stretch or cut the levels.
GRAY_OPS = (
    *("brightness", "equalize", "identity", "rotate", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y"),
)
EPOCH = 1024  # steps


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set of the benchmark.

    Attributes:
        network: by timm's name.
        side: of the images, in pixels.
        crop: 1 - crop is the largest move of a crop, as a share of the side.
        rate: learning rate.
        layer_decay: factor of the learning rate from a layer to the one before it.
        labels: the smaller number of labeled images.
        scale: mean and standard deviation of the input.
        values: further settings by dotted key.
        methods: settings that a method has for this data set only.
    """

    network: str
    side: int
    rate: float
    layer_decay: float
    labels: str
    scale: tuple[tuple[float, ...], tuple[float, ...]]
    crop: float = 0.875
    values: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


COOLER = {"simmatch": {"algorithm.temperature": 0.2}}
# By the data set's name, or by the kind of data for those that users bring as files.
TASKS = {
    "tfds:cifar100": Task(
        network="vit_small_patch2_32",
        side=32,
        rate=5e-4,
        layer_decay=0.5,
        labels="200",
        scale=CIFAR100,
    ),
    "tfds:stl10": Task(
        network="vit_base_patch16_96",
        side=96,
        rate=1e-4,
        layer_decay=0.65,
        labels="40",
        scale=STL10,
        methods={
            "comatch": {"algorithm.contrastive_weight": 5.0},
            "flexmatch": {"optim.warmup_steps": 5 * EPOCH},
        },
    ),
    "tfds:eurosat": Task(
        network="vit_small_patch2_32",
        side=32,
        rate=5e-5,
        layer_decay=1.0,
        labels="20",
        scale=HALF,
        values={"views.weak.vertical_flip": True},
        methods=COOLER,
    ),
    "npz": Task(  # TissueMNIST
        network="vit_tiny_patch2_32",
        side=32,
        rate=5e-5,
        layer_decay=0.95,
        labels="80",
        scale=HALF,
        crop=0.95,
        values={
            "views.weak.order": "flip_crop",
            "views.weak.vertical_flip": True,
            "views.strong.ops": GRAY_OPS,
        },
        methods=COOLER,
    ),
    "folder": Task(  # Semi-Aves
        network="vit_small_patch16_224",
        side=224,
        rate=1e-3,
        layer_decay=0.65,
        labels="all",
        scale=IMAGENET,
        values={
            "data.stream": True,
            "data.center_crop": 0.875,
            "views.weak.pad": None,
            "views.weak.area": (0.875**2, 0.875**2),
        },
        methods={
            "simmatch": {
                "algorithm.temperature": 0.2,
                "algorithm.teacher": True,
                "algorithm.bank_momentum": 0.0,  # the teacher's embeddings replace the old ones
            }
        },
    ),
}
TEACHER = {"ema.decay": 0.999}
# USB's wrappers of these networks forget which parameters do not decay.
DECAYED = {"optim.decay": "not_vectors"}
RAMP = {"algorithm.ramp": 0.4}
# The settings of each method that are not its defaults everywhere.
METHODS: dict[str, dict[str, Any]] = {
    "supervised": {},
    "pseudo_label": RAMP,
    "pi_model": RAMP,
    "mean_teacher": {**RAMP, **TEACHER},
    "vat": {**RAMP, "algorithm.vat_xi": 1e-6, "algorithm.unlabeled_weight": 1.0},
    "mixmatch": {**RAMP, "algorithm.alpha": 0.5, "algorithm.unlabeled_weight": 10.0},
    "remixmatch": DECAYED,
    "uda": {},
    "fixmatch": {},
    "dash": {
        "algorithm.rho_initial": 1.0001,
        "algorithm.rho_period_steps": 10 * EPOCH,
        "algorithm.warmup_steps": 0,
    },
    "flexmatch": {"optim.warmup_steps": 0},
    "adamatch": {"algorithm.momentum": 0.999},
    "comatch": {
        **DECAYED,
        **TEACHER,
        "algorithm.contrastive_weight": 1.0,
        "algorithm.queue_batches": 32,
        "algorithm.activation": "relu",
        "algorithm.smoothing_start_step": EPOCH,
    },
    "simmatch": {**DECAYED, **TEACHER, "algorithm.instance_start_step": EPOCH},
    "freematch": {"algorithm.momentum": 0.999, "algorithm.fairness_weight": 0.001},
    "softmatch": {"algorithm.momentum": 0.999},
}


def settings(data: str, method: str) -> dict[str, Any]:
    """The settings of ``method`` on a data set, by dotted key.

    Args:
        data: as ``config.data.name``. Any ``npz:`` file has TissueMNIST's, any ``folder:`` those of
            Semi-Aves.
        method: as ``config.algorithm.name``, one of :data:`METHODS`.

    Raises:
        InputError: if USB has no such data set.
    """
    task = TASKS.get(data, TASKS.get(data.partition(":")[0]))
    if task is None:
        raise InputError(
            f"preset={NAME} has no settings for {data}; it has "
            f"{', '.join(name for name in TASKS if ':' in name)}, npz: (TissueMNIST) and folder: "
            "(Semi-Aves)."
        )
    mean, std = task.scale
    return {
        "steps": 200 * EPOCH,
        "steps_per_call": 64,
        "log_every": EPOCH // 4,
        "eval_every": 2 * EPOCH,
        "save_every": 2 * EPOCH,
        "data.labels": task.labels,
        "data.batch_size": 8,
        "data.ratio": 1,
        "data.include_labeled": not data.startswith("folder:"),
        "data.image_size": task.side,
        "data.mean": mean,
        "data.std": std,
        "init_rules": "usb",
        "views.strong.table": "torchssl",
        "model.name": task.network,
        **{f"model.{key}": value for key, value in PRESETS[task.network].items()},
        "optim.name": "adamw",
        "optim.learning_rate": task.rate,
        "optim.layer_decay": task.layer_decay,
        "optim.schedule": "cosine_7_16",
        "optim.warmup_steps": 5 * EPOCH,
        "optim.weight_decay": 5e-4,
        "optim.decay": "kernels",
        "ema.decay": 0.0,
        "augment": "randaugment",
        "views.weak.order": "crop_flip",
        # math.floor as USB's int(); 32 * (1 - 0.95) gives 1.
        "views.weak.pad": math.floor(task.side * (1 - task.crop)),
        "views.weak.flip": True,
        **task.values,
        **METHODS[method],
        **task.methods.get(method, {}),
    }
