"""IOMatch with RandAugment (Li et al., ICCV 2023, https://arxiv.org/abs/2308.13168).

jaxmatch train --config=configs/iomatch.py:mnist5k,labels=40,seed=0
jaxmatch train --config=iomatch:mnist5k,labels=12 --config.data.known_classes='("0","1","2")'

For unlabeled images of which some are of none of the classes. The settings are those of the paper,
section 4.2.1, and of its code (github.com/nukezil/IOMatch, a branch of USB), which turns alignment
off on CIFAR-10.
"""

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.recipe import make


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    data, _ = parse_argument(argument)
    aligned = {"algorithm.alignment_length": 0} if data == "tfds:cifar10" else {}
    return make(
        "iomatch",
        argument,
        algorithm={"name": "iomatch"},
        settings={"data.ratio": 7, **aligned},
    )
