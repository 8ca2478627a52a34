"""SimMatch with RandAugment (Zheng et al., CVPR 2022, https://arxiv.org/abs/2203.06915).

jaxmatch train --config=configs/simmatch.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/simmatch.py:tfds:cifar10,labels=40,seed=1

On MNIST-5k 1,500 steps of 240 images through networks end at a test accuracy of 96.9 ± 0.4 % with
40 and 55.3 ± 11.8 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

On ImageNet (`simmatch:tfds:imagenet2012,labels=12811,split=1percent.txt`) the settings of the
authors' commands, the same for 1% and 10%: 400 epochs over the unlabeled images, MoCo v2's views as
the strong ones, a teacher whose embeddings fill the bank and which normalises each eighth of a
batch by itself; `--config.algorithm.shuffle=True` shuffles the batch first, as they do.

At CIFAR scale RandAugment and the input's scale are those of the other methods here (the authors
have the table simmatch), and the bank normalises each embedding, where their code normalises each
feature over the batch.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.own import method_settings
from jaxmatch.config.presets import bank_on_imagenet
from jaxmatch.config.recipe import make

# The instance loss starts after what the reference calls an epoch: 1024 steps, 15 on MNIST-5k.
DATASETS = {"mnist5k": {"instance_start_step": 15}, "digits": {"instance_start_step": 15}}


def large(labels: str) -> dict[str, Any]:
    """The settings on ImageNet."""
    values = bank_on_imagenet(400, labels)
    return {
        **values,
        "algorithm.threshold": 0.7,
        "algorithm.unlabeled_weight": 10.0,
        "algorithm.instance_weight": 5.0,
        "algorithm.instance_start_step": values["optim.period_steps"],  # an epoch
        "algorithm.alignment_length": 256,
        "algorithm.teacher": True,
        "algorithm.bank_momentum": 0.0,  # the teacher's embeddings replace the old ones
    }


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    data, chosen = parse_argument(argument)
    on_imagenet = data == "tfds:imagenet2012"
    algorithm = {"name": "simmatch", **method_settings(DATASETS, (data, chosen), {})}
    return make(
        "simmatch",
        argument,
        algorithm=algorithm,
        settings=large(chosen.get("labels", "")) if on_imagenet else {"data.ratio": 7},
        presets={"usb": {}},
    )
