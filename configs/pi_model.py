"""Π-Model (Laine & Aila, ICLR 2017, https://arxiv.org/abs/1610.02242).

jaxmatch train --config=configs/pi_model.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/pi_model.py:tfds:cifar10,labels=250,seed=1

On MNIST-5k 1,500 steps of 48 images through networks end at a test accuracy of 81.4 ± 5.6 % with 40
and 30.0 ± 9.1 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

Weight 10 after a ramp over 0.4 of the run, ratio 1: FixMatch's baseline, TorchSSL and USB alike, so
that their presets add nothing for this method.
"""

from ml_collections import ConfigDict

from jaxmatch.config.recipe import make


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    return make(
        "pi_model",
        argument,
        algorithm={"name": "pi_model"},
        settings={"data.ratio": 1},
        presets={"google": {}, "torchssl": {}, "usb": {}},
    )
