"""CoMatch with RandAugment (Li, Xiong & Hoi, ICCV 2021, https://arxiv.org/abs/2011.11183).

jaxmatch train --config=configs/comatch.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/comatch.py:tfds:cifar10,labels=40,seed=1

On MNIST-5k 1,500 steps of 352 images through networks end at a test accuracy of 96.7 ± 0.2 % with
40 and 66.5 ± 15.2 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

At CIFAR scale as in the official code: half of the usual steps, unlabeled images without the
labeled ones, dense biases that decay, and a contrast view of crop and colour without blur. The
strong view has the RandAugment table simmatch, the nearest to the official one, whose ops all have
their greatest strength. STL-10 has the authors' ResNet-18, whose stem they do not tell: ImageNet's.
preset=usb has USB's steps, pool, table, network, decay, activation and start of smoothing; not its
second RandAugment view in place of the contrast view, nor its average of three projections.

On ImageNet (`comatch:tfds:imagenet2012,labels=12811,split=1percent.txt`) the settings of the
authors' code for 1% and, with labels=128116, for 10%: 400 epochs over the unlabeled images, two
strong views of crop and colour without blur, and a teacher that normalises each eighth of a batch
by itself; `--config.algorithm.shuffle=True` shuffles the batch first, as they do. The decay is
0.996 from the start, theirs 0.99 in the first epoch; the graph spans the whole batch, theirs that
of each of eight devices; rows of the queue that are not written take no part, theirs are random.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.own import method_settings, published
from jaxmatch.config.presets import TENTH, imagenet
from jaxmatch.config.recipe import make

CIFAR = {"steps": 512 * 1024, "data.include_labeled": False, "optim.decay": "not_batch_norm"}
# RandAugment of published sets of small images: two ops at half the chance, a cutout of 16 pixels.
TABLE = {"views.strong.table": "simmatch"}
# USB smooths from its second epoch on: 1024 steps, 15 on MNIST-5k.
USB_SHORT = {"algorithm.activation": "relu", "algorithm.smoothing_start_step": 15}
USB: dict[str, dict[str, Any]] = {"mnist5k": USB_SHORT, "digits": USB_SHORT}
USB_CIFAR = {
    "steps": 2**20,
    "data.include_labeled": True,
    "views.strong.table": "torchssl",
    "model.name": "wide_resnet",
    "optim.decay": "kernels",
    "algorithm.activation": "relu",
    "algorithm.smoothing_start_step": 1024,
}
DATASETS: dict[str, dict[str, Any]] = {
    "mnist5k": {},
    "digits": {},
    "tfds:stl10": {**CIFAR, "model.name": "resnet18", "algorithm.contrastive_weight": 5.0},
}


def large(labels: str) -> dict[str, Any]:
    """The settings on ImageNet."""
    epochs = 400
    values = imagenet(epochs, 640, labels, partial=True)
    epoch = values["steps"] // epochs
    tenth = not labels.isdecimal() or int(labels) > TENTH // 2
    return {
        **values,
        "augment": "contrast",
        "data.batch_size": 160,
        "data.ratio": 4,
        "views.weak.area": (0.2, 1.0),
        "model.bn_groups": 8,
        "algorithm.threshold": 0.5 if tenth else 0.6,
        "algorithm.graph_threshold": 0.2 if tenth else 0.3,
        "algorithm.unlabeled_weight": 10.0,
        "algorithm.contrastive_weight": 2.0 if tenth else 10.0,
        "algorithm.contrastive_ramp_steps": epoch,
        "algorithm.temperature": 0.1,
        "algorithm.smoothing_start_step": epoch,
        "algorithm.alignment_length": 128,
        "algorithm.projection": 128,
        "algorithm.activation": "relu",
        "algorithm.teacher": True,
        "optim.learning_rate": 0.1,
        "optim.schedule": "cosine",
        "optim.period_steps": epoch,
        "ema.decay": 0.996,
        "ema.statistics": "own",
    }


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    data, chosen = parse_argument(argument)
    settings = {"data.ratio": 7, "views.contrast.area": (0.2, 1.0)}
    usb: dict[str, Any] = {}
    if data == "tfds:imagenet2012":
        settings |= large(chosen.get("labels", ""))
    else:
        settings |= method_settings(DATASETS, (data, chosen), CIFAR)
        usb = method_settings(USB, (data, chosen), USB_CIFAR)
        if published(data, chosen.get("size", "")) and data not in USB:
            settings |= TABLE
    return make(
        "comatch",
        argument,
        algorithm={"name": "comatch"},
        settings=settings,
        presets={"usb": usb},
    )
