"""Dash with RandAugment (Xu et al., ICML 2021, https://arxiv.org/abs/2109.00650).

jaxmatch train --config=configs/dash.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/dash.py:tfds:cifar10,labels=40,seed=1

On MNIST-5k 1,500 steps of 240 images through networks end at a test accuracy of 96.2 ± 0.3 % with
40 and 57.8 ± 24.4 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

Constants and clock of the authors' script, but FixMatch's normaliser (--config.algorithm.dash_norm)
and learning rate. USB's threshold starts near log C, without a warm-up here: its supervised one
measures the test loss of the initial weights. MNIST-5k has a warm-up of 90 and a period of 20
steps.
"""

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.own import method_settings
from jaxmatch.config.recipe import make

SHORT = {"warmup_steps": 90, "rho_period_steps": 20}
DATASETS = {"mnist5k": SHORT, "digits": SHORT}
USB = {"warmup_steps": 0, "rho_initial": 1.0001, "rho_period_steps": 10 * 1024}


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    scaled = method_settings(DATASETS, parse_argument(argument), {})
    usb = {**USB, "rho_period_steps": scaled.get("rho_period_steps", USB["rho_period_steps"])}
    return make(
        "dash",
        argument,
        algorithm={"name": "dash", **scaled},
        settings={"data.ratio": 7},
        presets={"usb": {f"algorithm.{key}": value for key, value in usb.items()}},
    )
