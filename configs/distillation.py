"""Distillation, SimCLR v2's third step (Chen et al., NeurIPS 2020, https://arxiv.org/abs/2006.10029).

jaxmatch train --config=configs/distillation.py:mnist5k,labels=40 --config.frozen.teacher=RUN
jaxmatch train --config=configs/distillation.py:tfds:cifar10,labels=40 --config.frozen.teacher=RUN

RUN is any run with a classifier on the same classes and images, such as a fine-tuned one; its
network may be another than the student's, which `--config.model` chooses. In its place,
`--config.data.pseudo_labels=FILE` takes the labels of several runs (`jaxmatch pseudo-label`).

On ImageNet: the published settings, half as many epochs as SimCLR v2 trains for with its LARS,
batches of 4,096 unlabeled images, crops and flips alone, and temperature 0.1 with 1 % of the labels
and 1 with 10 %. Labels have no weight; the few labeled images of a step only tell the loss on them.
The notebook's factor, the square of its temperature of 1, is left out.

The paper has no other data set. At CIFAR scale: 500 passes over the data, again half of SimCLR's,
by FixMatch's views, batches and SGD along a full cosine at the published weight decay; data sets
that are not listed take CIFAR's steps. There and on MNIST-5k the temperature is 1, as in the
authors' notebook.
"""

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.flags import load_module
from jaxmatch.config.own import method_settings
from jaxmatch.config.recipe import make

TENTH = 128_116  # labels of ImageNet; from half of them on the temperature is that for 10 %
COMMON = {"optim.schedule": "cosine", "optim.weight_decay": 1e-4}
CIFAR = {**COMMON, "steps": 56_320}  # 505 passes over 50,000 images
SETTINGS = {
    "mnist5k": COMMON,
    "digits": COMMON,
    "tfds:svhn_cropped": {**COMMON, "steps": 81_920},  # 501 passes over 73,257 images
    "tfds:stl10": {**COMMON, "steps": 117_760},  # 502 passes over 105,000 images
}
IMAGENET = {
    "steps": 124_928,  # 400 epochs of 312 steps
    "data.labels": str(TENTH),
    "data.batch_size": 64,
    "data.ratio": 64,
    "views.weak.area": (0.08, 1.0),
    "optim.learning_rate": 6.4,  # 0.1 sqrt(4096)
    "optim.warmup_steps": 6_246,
}
# What ImageNet's distillation shares with its pre-training.
SHARED = ("model.", "optim.", "data.image_size", "data.mean", "data.std")


def imagenet(labels: str) -> dict[str, object]:
    """The published settings for a number of labels."""
    count = int(labels) if labels.isdecimal() else TENTH
    pretraining = load_module("simclr").SETTINGS["tfds:imagenet2012"]
    shared = {key: value for key, value in pretraining.items() if key.startswith(SHARED)}
    return {**shared, **IMAGENET, "algorithm.temperature": 1.0 if count > TENTH // 2 else 0.1}


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    data, chosen = parse_argument(argument)
    large = data == "tfds:imagenet2012"
    settings = (
        imagenet(chosen.get("labels", ""))
        if large
        else method_settings(SETTINGS, (data, chosen), CIFAR)
    )
    return make(
        "distillation",
        argument,
        algorithm={"name": "distillation"},
        settings=settings,
        presets={"google": {}, "torchssl": {}, "usb": {}},
    )
