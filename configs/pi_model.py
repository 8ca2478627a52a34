"""Π-Model (Laine & Aila, ICLR 2017, https://arxiv.org/abs/1610.02242).

jaxmatch train --config=configs/pi_model.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/pi_model.py:tfds:cifar10,labels=250,seed=1

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
