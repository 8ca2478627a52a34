"""CoMatch with RandAugment (Li, Xiong & Hoi, ICCV 2021, https://arxiv.org/abs/2011.11183).

jaxmatch train --config=configs/comatch.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/comatch.py:tfds:cifar10,labels=40,seed=1

At CIFAR scale as in the official code: half of the usual steps, unlabeled images without the
labeled ones, dense biases that decay, and a contrast view of crop and colour without blur. STL-10
has the authors' ResNet-18, whose stem they do not tell: ImageNet's.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxmatch.config import make, parse_argument

CIFAR = {"steps": 512 * 1024, "data.include_labeled": False, "optim.decay": "not_batch_norm"}
DATASETS: dict[str, dict[str, Any]] = {
    "mnist5k": {},
    "digits": {},
    "tfds:stl10": {**CIFAR, "model.name": "resnet18", "algorithm.contrastive_weight": 5.0},
}


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    data, _ = parse_argument(argument)
    settings = {
        "data.ratio": 7,
        "views.contrast.area": (0.2, 1.0),
        **DATASETS.get(data, CIFAR),
    }
    return make(
        "comatch",
        argument,
        algorithm={"name": "comatch"},
        settings=settings,
        presets={"usb": {}},
    )
