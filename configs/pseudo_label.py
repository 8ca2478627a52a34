"""Pseudo-Label (Lee, ICML 2013 workshop) with a confidence threshold of 0.95.

jaxmatch train --config=configs/pseudo_label.py:mnist5k,labels=40,seed=0
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
