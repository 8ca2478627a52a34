"""Supervised baseline: the labeled images alone.

    jaxmatch train --config=configs/supervised.py:mnist5k,labels=40,seed=0

On MNIST-5k 1,500 steps of 16 images through networks end at a test accuracy of 80.1 ± 5.3 % with 40
and 30.2 ± 8.9 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

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
