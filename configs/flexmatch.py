"""FlexMatch with RandAugment (Zhang et al., NeurIPS 2021, https://arxiv.org/abs/2110.08263).

jaxmatch train --config=configs/flexmatch.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/flexmatch.py:tfds:cifar10,labels=40,seed=1

On MNIST-5k 1,500 steps of 240 images through networks end at a test accuracy of 96.9 ± 0.2 % with
40 and 89.5 ± 12.2 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

The settings are those of the authors' code (TorchSSL), which USB shares: threshold 0.95 with
threshold warm-up for every data set. On ImageNet preset=torchssl has their batches of 32, optimizer
and two million steps; without it they are those of the other methods.
"""

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.presets import TORCHSSL_IMAGENET
from jaxmatch.config.recipe import make


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    data, _ = parse_argument(argument)
    return make(
        "flexmatch",
        argument,
        algorithm={"name": "flexmatch"},
        settings={"data.ratio": 7},
        presets={
            "torchssl": TORCHSSL_IMAGENET if data == "tfds:imagenet2012" else {},
            "usb": {},
        },
    )
