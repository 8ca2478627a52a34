"""SimCLR, without any label (Chen et al., ICML 2020, https://arxiv.org/abs/2002.05709).

jaxmatch train --config=configs/simclr.py:mnist5k,seed=0
jaxmatch train --config=configs/simclr.py:tfds:cifar10,seed=0

On MNIST-5k 1,560 steps of 256 images through networks end at 93.1 ± 0.5 % by k-NN and 96.4 ± 0.5 %
by a linear probe, both with all labels, and fine-tuning on 40 labels at 82.7 ± 5.2 %, seeds 0 to 2
(experiments/mnist5k_pretraining).

The result is an encoder: `jaxmatch probe --workdir=RUN` tells what it is worth, and
`--config.init_from=RUN` starts another method from it.

At CIFAR scale: the authors' views, temperature and 1,000 passes over the data with a warm-up of
ten, in batches of 512; momentum SGD at 0.3 * 512 / 256 instead of LARS, since the large weights
that LARS leaves do not suit fine-tuning by SGD (README of github.com/google-research/simclr). A
step count is a multiple of the evaluation period, so that 1,000 passes are 999 to 1,007.
Data sets that are not listed take CIFAR's steps.

On ImageNet: the published settings, of 1,001 epochs with LARS as in the authors' code, whose weight
decay of 1e-4 stands in their README (1e-6 in the paper). Images are not standardised.

On MNIST-5k the crop keeps at least a third of the area, since a smaller one often cuts a stroke
that makes a 6 or an 8 what it is; the images are grey, so neither hue, saturation nor greying
apply; and left and right differ.
"""

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.own import method_settings
from jaxmatch.config.recipe import make

CIFAR = {
    "steps": 98_304,  # 1,007 passes over 50,000 images
    "data.batch_size": 512,
    "data.ratio": 1,
    "model.bn_decay": 0.99,
    "optim.learning_rate": 0.6,
    "optim.schedule": "cosine",
    "optim.warmup_steps": 977,
    "optim.weight_decay": 1e-4,
}
DIGITS = {
    **CIFAR,
    "steps": 1_500,
    "data.batch_size": 128,
    "optim.learning_rate": 0.15,
    "optim.warmup_steps": 150,
    "views.contrast.area": (0.35, 1.0),
    "views.contrast.grayscale": 0.0,
    "views.contrast.hue": 0.0,
    "views.contrast.saturation": 0.0,
}
IMAGENET = {
    "steps": 312_320,  # 1,001 epochs of 312 steps
    "data.batch_size": 4096,
    "data.ratio": 1,
    "data.image_size": 224,
    "data.mean": (0.0,),
    "data.std": (1.0,),
    "algorithm.temperature": 0.1,
    "algorithm.norm": True,
    "model.name": "resnet50",
    "model.zero_gamma": True,
    "views.contrast.method": "bicubic",
    "views.contrast.brightness": 0.8,
    "views.contrast.contrast": 0.8,
    "views.contrast.saturation": 0.8,
    "views.contrast.hue": 0.2,
    "views.contrast.blur": 0.5,
    "optim.name": "lars",
    "optim.rate_inside_momentum": True,
    "optim.nesterov": False,
    "optim.learning_rate": 4.8,  # 0.075 sqrt(4096)
    "optim.schedule": "cosine",
    "optim.warmup_steps": 3_120,
    "optim.weight_decay": 1e-4,
}
SETTINGS = {
    "mnist5k": DIGITS,
    "digits": DIGITS,
    "tfds:svhn_cropped": {
        **CIFAR,
        "steps": 143_360,  # 1,002 passes over 73,257 images
        "optim.warmup_steps": 1_431,
    },
    "tfds:stl10": {
        **CIFAR,
        "steps": 204_800,  # 999 passes over 105,000 images
        "optim.warmup_steps": 2_051,
        "views.contrast.brightness": 0.8,
        "views.contrast.contrast": 0.8,
        "views.contrast.saturation": 0.8,
        "views.contrast.hue": 0.2,
        "views.contrast.blur": 0.5,
    },
    "tfds:imagenet2012": IMAGENET,
}


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,seed=S][,preset=P]``."""
    settings = method_settings(SETTINGS, parse_argument(argument), CIFAR)
    return make(
        "simclr",
        argument,
        algorithm={"name": "simclr"},
        settings=settings,
        # For the network and scale of the method that starts from this encoder.
        presets={"google": {}, "torchssl": {}, "usb": {}},
    )
