"""SwAV, without any label (Caron et al., NeurIPS 2020, https://arxiv.org/abs/2006.09882).

jaxmatch train --config=configs/swav.py:mnist5k,seed=0
jaxmatch train --config=configs/swav.py:tfds:cifar10,seed=0

On MNIST-5k 1,560 steps of 768 images through networks end at 96.5 ± 0.4 % by k-NN and 97.9 ± 0.5 %
by a linear probe, both with all labels, and fine-tuning on 40 labels at 83.2 ± 4.9 %, seeds 0 to 2
(experiments/mnist5k_pretraining).

The result is an encoder: `jaxmatch probe --workdir=RUN` tells what it is worth, and
`--config.init_from=RUN` starts another method from it.

At CIFAR scale: solo-learn's settings for CIFAR (github.com/vturrisi/solo-learn,
scripts/pretrain/cifar/swav.yaml), 1,000 passes over the data in batches of 256 with clipped LARS at
0.6 and a warm-up of ten passes, a queue of 3,840 from the fiftieth pass, and prototypes that rest
for two. The crops, two of 32 pixels and six of 18, on STL-10 three times as large, are those of its
scripts/pretrain/cifar-multicrop/swav.yaml, which has other colours. A step count is a multiple of
the evaluation period. Data sets that are not listed take CIFAR's steps.

On ImageNet: the authors' 800 passes in batches of 4,096 (github.com/facebookresearch/swav) with
their LARC, whose rate here starts and ends at 0 instead of 0.3 and 0.0048.

On MNIST-5k large views, rate and momentum SGD are those of configs/simclr.py. Four small views of
20 pixels cost as much as one and a half large ones, and show a fifth to a half of the digit. The
prototypes are fewer than the images of a batch, which needs no queue; they rest for a pass. With
epsilon 0.03 the embeddings spread, and the loss falls, sooner than with the published 0.05.
"""

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.own import method_settings
from jaxmatch.config.recipe import make

COMMON = {
    "data.ratio": 1,
    "optim.schedule": "cosine",
    "optim.nesterov": False,
}
CIFAR = {
    **COMMON,
    "steps": 195_584,  # 1,001 passes over 50,000 images
    "data.batch_size": 256,
    "algorithm.queue": 3_840,
    "algorithm.queue_start": 0.05,
    "algorithm.freeze": 0.002,
    "model.bn_decay": 0.99,
    "views.contrast.area": (0.2, 1.0),
    "views.contrast.brightness": 0.8,
    "views.contrast.contrast": 0.8,
    "views.contrast.saturation": 0.8,
    "views.contrast.hue": 0.2,
    "views.contrast.blur": 0.5,
    "views.small.size": 18,
    "views.small.area": (0.08, 0.5),
    "views.small.brightness": 0.8,
    "views.small.contrast": 0.8,
    "views.small.saturation": 0.8,
    "views.small.hue": 0.2,
    "views.small.blur": 0.5,
    "optim.name": "lars",
    "optim.trust_ratio": "clipped",
    "optim.trust_coefficient": 0.02,
    "optim.learning_rate": 0.6,
    "optim.warmup_steps": 1_953,
    "optim.weight_decay": 1e-6,
}
DIGITS = {
    **COMMON,
    "steps": 1_500,
    "data.batch_size": 128,
    "algorithm.epsilon": 0.03,
    "algorithm.prototypes": 100,
    "algorithm.hidden": 1_024,
    "algorithm.small_crops": 4,
    "algorithm.freeze": 0.02,
    "model.bn_decay": 0.99,
    "optim.learning_rate": 0.15,
    "optim.nesterov": True,
    "optim.warmup_steps": 150,
    "optim.weight_decay": 1e-4,
    "views.contrast.area": (0.35, 1.0),
    "views.contrast.grayscale": 0.0,
    "views.contrast.hue": 0.0,
    "views.contrast.saturation": 0.0,
    "views.small.size": 20,
    "views.small.area": (0.2, 0.5),
    "views.small.grayscale": 0.0,
    "views.small.hue": 0.0,
    "views.small.saturation": 0.0,
}
IMAGENET = {
    **COMMON,
    "steps": 249_600,  # 800 passes over 1,281,167 images
    "data.batch_size": 4_096,
    "data.image_size": 224,
    "data.mean": (0.485, 0.456, 0.406),
    "data.std": (0.228, 0.224, 0.225),
    "algorithm.freeze": 313 / 249_600,
    "model.name": "resnet50",
    "views.contrast.area": (0.14, 1.0),
    "views.contrast.brightness": 0.8,
    "views.contrast.contrast": 0.8,
    "views.contrast.saturation": 0.8,
    "views.contrast.hue": 0.2,
    "views.contrast.blur": 0.5,
    "views.small.size": 96,
    "views.small.area": (0.05, 0.14),
    "views.small.brightness": 0.8,
    "views.small.contrast": 0.8,
    "views.small.saturation": 0.8,
    "views.small.hue": 0.2,
    "views.small.blur": 0.5,
    "optim.name": "lars",
    "optim.trust_ratio": "separate",
    "optim.adapted": "all",
    "optim.decay": "all",
    "optim.learning_rate": 4.8,
    "optim.warmup_steps": 3_120,
    "optim.weight_decay": 1e-6,
}
SETTINGS = {
    "mnist5k": DIGITS,
    "digits": DIGITS,
    "tfds:svhn_cropped": {
        **CIFAR,
        "steps": 286_720,  # 1,002 passes over 73,257 images
        "optim.warmup_steps": 2_861,
    },
    "tfds:stl10": {
        **CIFAR,
        "steps": 410_624,  # 1,001 passes over 105,000 images
        "optim.warmup_steps": 4_101,
        "views.small.size": 54,
    },
    "tfds:imagenet2012": IMAGENET,
}


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,seed=S][,preset=P]``."""
    settings = method_settings(SETTINGS, parse_argument(argument), CIFAR)
    return make(
        "swav",
        argument,
        algorithm={"name": "swav"},
        settings=settings,
        # For the network and scale of the method that starts from this encoder.
        presets={"google": {}, "torchssl": {}, "usb": {}},
    )
