"""SimMatchV2 with RandAugment (Zheng et al., ICCV 2023, https://arxiv.org/abs/2308.06692).

jaxmatch train --config=configs/simmatch_v2.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/simmatch_v2.py:tfds:cifar10,labels=40,seed=1

On MNIST-5k 1,500 steps of 256 images through networks end at a test accuracy of 95.4 ± 2.1 % with
40 and 57.5 ± 11.1 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

The authors release settings for ImageNet only (the defaults of the algorithm). Here threshold and
ratio are SimMatch's at this scale, the weights are 1 and the queue holds about one pass of the
unlabeled images: untuned choices of ours.
"""

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.recipe import make

QUEUE_BATCHES = {"mnist5k": 32, "digits": 8}


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    data, _ = parse_argument(argument)
    algorithm = {
        "name": "simmatch_v2",
        "threshold": 0.95,
        "unlabeled_weight": 1.0,
        "edge_edge_weight": 1.0,
        "node_edge_weight": 1.0,
        "queue_batches": QUEUE_BATCHES.get(data, 128),
    }
    settings = {"data.ratio": 7, "ema.statistics": "averaged"}
    return make("simmatch_v2", argument, algorithm=algorithm, settings=settings)
