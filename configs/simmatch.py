"""SimMatch with RandAugment (Zheng et al., CVPR 2022, https://arxiv.org/abs/2203.06915).

jaxmatch train --config=configs/simmatch.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/simmatch.py:tfds:cifar10,labels=40,seed=1
"""

from ml_collections import ConfigDict

from jaxmatch.config import make, parse_argument

# The instance loss starts after what the reference calls an epoch: 1024 steps, 15 on MNIST-5k.
DATASETS = {"mnist5k": {"instance_start_step": 15}, "digits": {"instance_start_step": 15}}


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    data, _ = parse_argument(argument)
    algorithm = {"name": "simmatch", **DATASETS.get(data, {})}
    return make(
        "simmatch",
        argument,
        algorithm=algorithm,
        settings={"data.ratio": 7},
        presets={"usb": {}},
    )
