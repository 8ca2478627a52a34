"""FlexMatch with RandAugment (Zhang et al., NeurIPS 2021, https://arxiv.org/abs/2110.08263).

jaxmatch train --config=configs/flexmatch.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/flexmatch.py:tfds:cifar10,labels=40,seed=1

The settings are those of the authors' code (TorchSSL), which USB shares: threshold 0.95 with
threshold warm-up for every data set.
"""

from ml_collections import ConfigDict

from jaxmatch.config.recipe import make


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    return make(
        "flexmatch",
        argument,
        algorithm={"name": "flexmatch"},
        settings={"data.ratio": 7},
        presets={"torchssl": {}, "usb": {}},
    )
