"""FixMatch-EMAN with RandAugment (Cai et al., CVPR 2021, https://arxiv.org/abs/2101.08482).

jaxmatch train --config=configs/fixmatch_eman.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/fixmatch_eman.py:tfds:cifar10,labels=250,seed=1
"""

from ml_collections import ConfigDict

from jaxmatch.config import make


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    settings = {"data.ratio": 7, "ema.statistics": "averaged"}
    return make("fixmatch_eman", argument, algorithm={"name": "fixmatch_eman"}, settings=settings)
