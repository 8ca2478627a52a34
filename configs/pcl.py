"""PCL v2, without any label (Li et al., ICLR 2021, https://arxiv.org/abs/2005.04966).

jaxmatch train --config=configs/pcl.py:mnist5k,seed=0
jaxmatch train --config=configs/pcl.py:tfds:cifar10,seed=0

On MNIST-5k 1,560 steps of 256 images through networks end at 82.9 % by k-NN and 94.4 % by a linear
probe, both with all labels, and fine-tuning on 40 labels at 76.4 %, seed 0
(experiments/mnist5k_pretraining).

The result is an encoder: `jaxmatch probe --workdir=RUN` tells what it is worth, and
`--config.init_from=RUN` starts another method from it.

On ImageNet: the settings of the authors' code for 200 epochs. It is MoCo v2 with a queue of 16,384
and 25,000, 50,000 and 100,000 clusters, found anew about once an epoch from epoch 20 on; the
temperature is 0.2 in the code and 0.1 in the paper.

The paper trains on no other data set. There everything is as in configs/moco_v2.py, and beside it
clusters of about 50, 25 and 13 images on average, as on ImageNet, are found about once a pass from
a tenth of the run on.
"""

from ml_collections import ConfigDict

from jaxmatch.config.flags import load_module
from jaxmatch.config.own import method_settings
from jaxmatch.config.recipe import make, parse_argument

CIFAR = {
    "algorithm.clusters": (1_000, 2_000, 4_000),
    "algorithm.refresh_steps": 192,
    "algorithm.start_step": 19_584,
}
DIGITS = {
    "algorithm.clusters": (50, 100, 200),
    "algorithm.refresh_steps": 30,
    "algorithm.start_step": 150,
}
SETTINGS = {
    "mnist5k": DIGITS,
    "digits": DIGITS,
    "tfds:svhn_cropped": {
        **CIFAR,
        "algorithm.refresh_steps": 256,
        "algorithm.start_step": 28_672,
    },
    "tfds:stl10": {
        **CIFAR,
        "algorithm.clusters": (2_000, 4_000, 8_000),
        "algorithm.refresh_steps": 384,
        "algorithm.start_step": 41_088,
    },
    "tfds:imagenet2012": {
        "algorithm.clusters": (25_000, 50_000, 100_000),
        "algorithm.refresh_steps": 4_992,
        "algorithm.start_step": 99_840,
    },
}


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,seed=S][,preset=P]``."""
    parsed = parse_argument(argument)
    moco = load_module("moco_v2")
    return make(
        "pcl",
        argument,
        algorithm={"name": "pcl"},
        settings=method_settings(moco.SETTINGS, parsed, moco.CIFAR)
        | method_settings(SETTINGS, parsed, CIFAR),
        # For the network and scale of the method that starts from this encoder.
        presets={"google": {}, "torchssl": {}, "usb": {}},
    )
