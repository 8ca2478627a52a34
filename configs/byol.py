"""BYOL, without any label (Grill et al., NeurIPS 2020, https://arxiv.org/abs/2006.07733).

jaxmatch train --config=configs/byol.py:mnist5k,seed=0
jaxmatch train --config=configs/byol.py:tfds:cifar10,seed=0

On MNIST-5k 1,560 steps of 512 images through networks end at 90.3 % by k-NN and 95.2 % by a linear
probe, both with all labels, and fine-tuning on 40 labels at 82.8 %, seed 0
(experiments/mnist5k_pretraining).

The result is an encoder: `jaxmatch probe --workdir=RUN` tells what it is worth, and
`--config.init_from=RUN` starts another method from it.

At CIFAR scale: solo-learn's settings for CIFAR (github.com/vturrisi/solo-learn,
scripts/pretrain/cifar/byol.yaml), 1,000 passes over the data in batches of 256 with clipped LARS at
1.0 and a warm-up of ten passes, teacher decay from 0.99 to 1, saturation 0.2, no blur, and a fifth
of the second views solarized. As in the paper each view is a BatchNorm batch of its own and the
teacher runs in train mode. A step count is a multiple of the evaluation period. Data sets that are
not listed take CIFAR's steps.

On ImageNet: the authors' 1,000 passes in batches of 4,096 (github.com/google-deepmind/
deepmind-research, byol), LARS at 0.2 * 4,096 / 256, and their two pipelines. `preset=eman` is
BYOL-EMAN (github.com/amazon-research/exponential-moving-average-normalization): 200 passes in
batches of 512, BatchNorm over each eighth of a batch, a teacher in eval mode. Its authors decay and
adapt the scale of the head's BatchNorm, too; here it has neither decay nor trust ratio.

On MNIST-5k views, rate and momentum SGD are those of configs/simclr.py, and the head is narrower,
as the network is; solarizing would swap ink and paper.
"""

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.own import method_settings
from jaxmatch.config.recipe import make

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

COMMON = {
    "data.ratio": 1,
    "forward": "separate",
    "model.bn_decay": 0.99,
    "optim.schedule": "cosine",
    "optim.nesterov": False,
    "ema.decay": 0.99,
    "ema.schedule": "cosine",
    "ema.statistics": "own",
}
CIFAR = {
    **COMMON,
    "steps": 195_584,  # 1,001 passes over 50,000 images
    "data.batch_size": 256,
    "views.contrast.saturation": 0.2,
    "views.second.saturation": 0.2,
    "views.second.solarize": 0.2,
    "optim.name": "lars",
    "optim.trust_ratio": "clipped",
    "optim.trust_coefficient": 0.02,
    "optim.learning_rate": 1.0,
    "optim.warmup_steps": 1_953,
    "optim.weight_decay": 1e-5,
}
DIGITS = {
    **COMMON,
    "steps": 1_500,
    "data.batch_size": 128,
    "algorithm.hidden": 1_024,
    "algorithm.projection": 128,
    "optim.learning_rate": 0.15,
    "optim.nesterov": True,
    "optim.warmup_steps": 150,
    "optim.weight_decay": 1e-4,
    "views.contrast.area": (0.35, 1.0),
    "views.contrast.grayscale": 0.0,
    "views.contrast.hue": 0.0,
    "views.contrast.saturation": 0.0,
    "views.second.area": (0.35, 1.0),
    "views.second.grayscale": 0.0,
    "views.second.hue": 0.0,
    "views.second.saturation": 0.0,
}
IMAGENET = {
    **COMMON,
    "steps": 312_000,  # 1,000 passes over 1,281,167 images
    "data.batch_size": 4_096,
    "data.image_size": 224,
    "data.mean": MEAN,
    "data.std": STD,
    "model.name": "resnet50",
    "model.bn_decay": 0.9,
    "views.contrast.method": "bicubic",
    "views.contrast.saturation": 0.2,
    "views.contrast.blur": 1.0,
    "views.second.method": "bicubic",
    "views.second.saturation": 0.2,
    "views.second.blur": 0.1,
    "views.second.solarize": 0.2,
    "optim.name": "lars",
    "optim.learning_rate": 3.2,
    "optim.warmup_steps": 3_120,
    "optim.weight_decay": 1.5e-6,
    "ema.decay": 0.996,
}
EMAN = {
    "steps": 500_416,  # 200 epochs of 2,502 steps, and a whole number of calls
    "data.batch_size": 512,
    "model.bn_groups": 8,
    "views.contrast.area": (0.2, 1.0),
    "views.contrast.method": "bilinear",
    "views.second.area": (0.2, 1.0),
    "views.second.method": "bilinear",
    "optim.learning_rate": 1.8,
    "optim.period_steps": 2_502,
    "optim.rate_inside_momentum": True,
    "optim.trust_ratio": "separate",
    "optim.warmup_steps": 25_020,
    "optim.weight_decay": 1e-6,
    "ema.decay": 0.98,
    "ema.statistics": "averaged",
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
    },
    "tfds:imagenet2012": IMAGENET,
}


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,seed=S][,preset=P]``."""
    data, chosen = parse_argument(argument)
    # The usual ones are for the network and scale of the method that starts from this encoder.
    presets = {"google": {}, "torchssl": {}, "usb": {}}
    return make(
        "byol",
        argument,
        algorithm={"name": "byol"},
        settings=method_settings(SETTINGS, (data, chosen), CIFAR),
        presets={**presets, "eman": EMAN} if data == "tfds:imagenet2012" else presets,
    )
