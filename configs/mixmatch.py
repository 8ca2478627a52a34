"""MixMatch (Berthelot et al., NeurIPS 2019, https://arxiv.org/abs/1905.02249).

jaxmatch train --config=configs/mixmatch.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/mixmatch.py:tfds:cifar10,labels=250,seed=1

On MNIST-5k 1,500 steps of 80 images through networks end at a test accuracy of 96.2 ± 0.8 % with
40 and 47.3 ± 11.5 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

The weight of the unlabeled loss by data set, alpha 0.75 and a ramp of 2^14 of 2^20 steps are those
of the authors' scripts (google-research/mixmatch), with FixMatch's optimizer in place of Adam.
MNIST-5k has CIFAR-10's weight and, like all short runs, USB's ramp of 0.4 of the run, chosen on
seeds 3 to 5 (experiments/mnist5k). Own images have a third of the weight in short runs, likewise
chosen (experiments/fashion_mnist), since at 75 four times as many labels did not help. With USB's
alpha 0.5 and weight 100 in addition it is preset=usb; google and torchssl have them, too, and
BatchNorm by interleaved chunks. Of TorchSSL and USB the presets do not reproduce the one weight of
MixUp for a whole batch, of USB nor the separate passes over labeled and unlabeled images.
"""

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.own import method_settings
from jaxmatch.config.presets import DATASETS
from jaxmatch.config.recipe import make

CIFAR10_WEIGHT, OWN_WEIGHT = 75.0, 25.0
WEIGHTS = {"tfds:cifar100": 150.0, "tfds:svhn_cropped": 250.0, "tfds:stl10": 50.0}
SHORT = {"algorithm.ramp": 0.4}
USB_WEIGHTS = {"tfds:cifar100": 150.0}


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    data, chosen = parse_argument(argument)
    short = method_settings({"mnist5k": SHORT, "digits": SHORT}, (data, chosen), {})
    usual = OWN_WEIGHT if short and data not in DATASETS else CIFAR10_WEIGHT
    flags = {"algorithm.alpha": 0.5, "algorithm.unlabeled_weight": 100.0}
    return make(
        "mixmatch",
        argument,
        algorithm={"name": "mixmatch", "unlabeled_weight": WEIGHTS.get(data, usual)},
        settings={"data.ratio": 1, **short},
        presets={
            "google": {**flags, "algorithm.ramp": 1 / 64, "algorithm.batch_norm": "interleave"},
            "torchssl": {**flags, "algorithm.ramp": 0.4, "algorithm.batch_norm": "interleave"},
            "usb": {
                **flags,
                "algorithm.unlabeled_weight": USB_WEIGHTS.get(data, 100.0),
                "algorithm.ramp": 0.4,
            },
        },
    )
