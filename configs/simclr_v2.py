"""SimCLR v2, without any label (Chen et al., NeurIPS 2020, https://arxiv.org/abs/2006.10029).

jaxmatch train --config=configs/simclr_v2.py:mnist5k,seed=0
jaxmatch train --config=configs/simclr_v2.py:tfds:cifar10,seed=0

On MNIST-5k 1,560 steps of 256 images through networks end at 93.1 % by k-NN and 97.1 % by a linear
probe, both with all labels, and fine-tuning on 40 labels at 74.6 %, seed 0
(experiments/mnist5k_pretraining).

The result is an encoder and its head: `jaxmatch probe --workdir=RUN` tells what the encoder is
worth, and `--config.init_from=RUN` starts another method from it.

On ImageNet: the published settings for a ResNet-50 of 801 epochs, without the paper's memory.
Views, network and LARS are those of configs/simclr.py, the rate 0.1 sqrt(4096) and the warm-up 5 %.
The paper has no other data set: there all is as in configs/simclr.py, the temperature included, so
that only the head differs.
"""

from ml_collections import ConfigDict

from jaxmatch.config.flags import load_module
from jaxmatch.config.own import method_settings
from jaxmatch.config.recipe import make, parse_argument

IMAGENET = {
    "steps": 249_856,  # 801 epochs of 312 steps
    "optim.learning_rate": 6.4,
    "optim.warmup_steps": 12_493,
}


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,seed=S][,preset=P]``."""
    data, chosen = parse_argument(argument)
    simclr = load_module("simclr")
    settings = {
        "algorithm.temperature": 0.5,
        **method_settings(simclr.SETTINGS, (data, chosen), simclr.CIFAR),
    }
    settings.pop("algorithm.norm", None)
    return make(
        "simclr_v2",
        argument,
        algorithm={"name": "simclr_v2"},
        settings=settings | (IMAGENET if data == "tfds:imagenet2012" else {}),
        # For the network and scale of the method that starts from this encoder.
        presets={"google": {}, "torchssl": {}, "usb": {}},
    )
