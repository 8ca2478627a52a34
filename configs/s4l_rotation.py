"""S4L-Rotation (Zhai et al., ICCV 2019, https://arxiv.org/abs/1905.03670).

jaxmatch train --config=configs/s4l_rotation.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/s4l_rotation.py:tfds:cifar10,labels=250,seed=1

On MNIST-5k 1,500 steps of 512 images through networks end at a test accuracy of 61.0 ± 2.6 % with
40 and 28.6 ± 7.8 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

Weight 1 as in the authors' code. They published ImageNet alone: ratio, optimizer and the teacher
that is evaluated are those of FixMatch's family. Every image passes four times, so that a step
costs twice FixMatch's. On digits the copies of a 6 and of a 9 look alike, yet have two labels.
"""

from ml_collections import ConfigDict

from jaxmatch.config.recipe import make


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,split=FILE]``."""
    return make(
        "s4l_rotation", argument, algorithm={"name": "s4l_rotation"}, settings={"data.ratio": 7}
    )
