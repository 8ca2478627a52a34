"""AdaMatch with RandAugment (Berthelot et al., ICLR 2022, https://arxiv.org/abs/2106.04732).

jaxmatch train --config=configs/adamatch.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/adamatch.py:tfds:cifar10,labels=40,seed=1

On MNIST-5k 1,500 steps of 240 images through networks end at a test accuracy of 95.9 ± 0.9 % with
40 and 71.9 ± 18.2 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

The settings are USB's. The preset google has those of the authors' code (google-research/adamatch)
that are settings here: CTAugment, threshold 0.9, ratio 3, 2**17 steps, weight decay 0.001, no
Nesterov. Not reproduced of it: strong views of labeled images, random interpolation of labeled
logits, the last 128 batches in place of the unlabeled moving average, the ramp of the unsupervised
loss and the learning rate's end at a fourth. The averages of a run of 1,500 steps are shorter.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.own import method_settings, published
from jaxmatch.config.recipe import make

SHORT = {"algorithm.momentum": 0.99}
DATASETS: dict[str, dict[str, Any]] = {"mnist5k": SHORT, "digits": SHORT}
GOOGLE = {
    "augment": "ctaugment",
    "algorithm.threshold": 0.9,
    "data.ratio": 3,
    "optim.nesterov": False,
    "optim.weight_decay": 1e-3,
    "ema.statistics": "averaged",
}
# Of published sets of small images.
NETWORK = {"model.width": 2.0, "model.bn_eps": 1e-6, "model.bn_eps_final": 1e-6}


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    data, chosen = parse_argument(argument)
    others = (*DATASETS, "tfds:imagenet2012")
    long = published(data, chosen.get("size", "")) and data not in others
    google = {**GOOGLE, **({"steps": 2**17, **NETWORK} if long else {})}
    return make(
        "adamatch",
        argument,
        algorithm={"name": "adamatch"},
        settings={"data.ratio": 7, **method_settings(DATASETS, (data, chosen), {})},
        presets={"google": google, "usb": {}},
    )
