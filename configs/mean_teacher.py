"""Mean Teacher (Tarvainen & Valpola, NeurIPS 2017, https://arxiv.org/abs/1703.01780).

jaxmatch train --config=configs/mean_teacher.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/mean_teacher.py:tfds:cifar10,labels=250,seed=1

On MNIST-5k 1,500 steps of 48 images through networks end at a test accuracy of 80.9 ± 5.0 % with 40
and 31.7 ± 9.6 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

Weight 50 after a ramp over 0.4 of the run, ratio 1: FixMatch's baseline, TorchSSL and USB alike, so
that their presets add nothing for this method. USB's unsupervised loss, which its code leaves at 0,
works here.
"""

from ml_collections import ConfigDict

from jaxmatch.config.recipe import make


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    return make(
        "mean_teacher",
        argument,
        algorithm={"name": "mean_teacher"},
        settings={"data.ratio": 1},
        presets={"google": {}, "torchssl": {}, "usb": {}},
    )
