"""FixMatch with RandAugment (Sohn et al., NeurIPS 2020, https://arxiv.org/abs/2001.07685).

jaxmatch train --config=configs/fixmatch.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/fixmatch.py:tfds:cifar10,labels=250,seed=1

With --config.augment=ctaugment, as preset=google has it, strong views follow CTAugment's policy.
"""

from ml_collections import ConfigDict

from jaxmatch.config import make


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    return make(
        "fixmatch",
        argument,
        algorithm={"name": "fixmatch"},
        settings={"data.ratio": 7},
        presets={"google": {"augment": "ctaugment"}, "torchssl": {}, "usb": {}},
    )
