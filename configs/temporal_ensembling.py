"""Temporal Ensembling (Laine & Aila, ICLR 2017, https://arxiv.org/abs/1610.02242).

jaxmatch train --config=configs/temporal_ensembling.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/temporal_ensembling.py:tfds:cifar10,labels=250,seed=1

On MNIST-5k 1,500 steps of 32 images through networks end at a test accuracy of 79.8 ± 4.6 % with 40
and 33.4 ± 7.1 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

The paper's momentum of 0.6 with weight, ramp and ratio of the Π-Model (10, 0.4 of the run, 1): no
code base of this family has the method, so there is no preset and no number to compare with.
"""

from ml_collections import ConfigDict

from jaxmatch.config.recipe import make


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,split=FILE]``."""
    return make(
        "temporal_ensembling",
        argument,
        algorithm={"name": "temporal_ensembling"},
        settings={"data.ratio": 1},
    )
