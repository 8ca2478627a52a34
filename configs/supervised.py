"""Supervised baseline: the labeled images alone.

    jaxmatch train --config=configs/supervised.py:mnist5k,labels=40,seed=0

Optimizer, schedule and EMA are FixMatch's (Sohn et al., NeurIPS 2020, section 4 and appendix B).
"""

from ml_collections import ConfigDict

from jaxmatch.config.recipe import make


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    return make(
        "supervised",
        argument,
        algorithm={"name": "supervised"},
        settings={"data.ratio": 0},
        presets={"google": {}, "torchssl": {}, "usb": {}},
    )
