"""Pseudo-Label (Lee, ICML 2013 workshop) with a confidence threshold of 0.95.

The presets have the network and the input of a code base alone.

jaxmatch train --config=configs/pseudo_label.py:mnist5k,labels=40,seed=0

On MNIST-5k 1,500 steps of 32 images through networks end at a test accuracy of 86.8 ± 4.6 % with 40
and 25.6 ± 6.7 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).
"""

from ml_collections import ConfigDict

from jaxmatch.config.recipe import make


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    return make(
        "pseudo_label",
        argument,
        algorithm={"name": "pseudo_label"},
        settings={"data.ratio": 1},
        presets={"google": {}, "torchssl": {}, "usb": {}},
    )
