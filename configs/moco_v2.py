"""MoCo v2, without any label (Chen et al., 2020, https://arxiv.org/abs/2003.04297).

jaxmatch train --config=configs/moco_v2.py:mnist5k,seed=0
jaxmatch train --config=configs/moco_v2.py:tfds:cifar10,seed=0

On MNIST-5k 1,560 steps of 256 images through networks end at 84.1 % by k-NN and 94.7 % by a linear
probe, both with all labels, and fine-tuning on 40 labels at 75.6 %, seed 0
(experiments/mnist5k_pretraining).

The result is an encoder: `jaxmatch probe --workdir=RUN` tells what it is worth, and
`--config.init_from=RUN` starts another method from it.

At CIFAR scale: solo-learn's settings for CIFAR (github.com/vturrisi/solo-learn,
scripts/pretrain/cifar/mocov2plus.yaml) with a blur in half of the views, 1,000 passes over the data
in batches of 256 at 0.3, a warm-up of ten passes and a queue of 32,768; its loss goes both ways
with two queues, ours one way as published. Teacher decay 0.999 and embeddings of 128 are the
paper's; the head's hidden layer is as wide as the features (solo-learn: 2048). Temperature and
plain momentum are those of both. A step count is a multiple of the evaluation period. Data sets
that are not listed take CIFAR's steps.

The paper's keys come from BatchNorm batches shuffled among eight devices, lest the statistics of
the batch give the positive away. At CIFAR scale and below the teacher runs in eval mode with
averaged statistics instead, which needs no shuffle (EMAN; Cai et al., CVPR 2021,
https://arxiv.org/abs/2101.08482).

On ImageNet: the published settings, of 200 epochs; the shuffled BatchNorm batches of eight devices
are groups of the batch, on any number of devices. `preset=eman` is MoCo-EMAN, which FixMatch-EMAN
starts from: a teacher in eval mode and a warm-up of ten epochs. Its authors average the student's
statistics after its next forward pass; here it is those at the end of the step.

On MNIST-5k views and rate are those of configs/simclr.py, the queue is a fourth of the images, so
that few negatives are earlier views of the image itself, and the teacher's decay is MNIST-5k's.
"""

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.input_scales import IMAGENET as SCALE
from jaxmatch.config.own import method_settings
from jaxmatch.config.recipe import make

CIFAR = {
    "steps": 195_584,  # 1,001 passes over 50,000 images
    "data.batch_size": 256,
    "data.ratio": 1,
    "algorithm.queue": 32_768,
    "model.bn_decay": 0.99,
    "views.contrast.blur": 0.5,
    "optim.learning_rate": 0.3,
    "optim.schedule": "cosine",
    "optim.warmup_steps": 1_953,
    "optim.nesterov": False,
    "optim.weight_decay": 1e-4,
    "ema.statistics": "averaged",
}
DIGITS = {
    **CIFAR,
    "steps": 1_500,
    "data.batch_size": 128,
    "algorithm.queue": 1_024,
    "optim.learning_rate": 0.15,
    "optim.warmup_steps": 150,
    "views.contrast.area": (0.35, 1.0),
    "views.contrast.blur": 0.0,
    "views.contrast.grayscale": 0.0,
    "views.contrast.hue": 0.0,
    "views.contrast.saturation": 0.0,
}
IMAGENET = {
    "steps": 1_000_448,  # 200 epochs of 5,004 steps
    "data.batch_size": 256,
    "data.ratio": 1,
    "data.image_size": 224,
    "data.mean": SCALE[0],
    "data.std": SCALE[1],
    "algorithm.shuffle": True,
    "model.name": "resnet50",
    "model.bn_groups": 8,
    "views.contrast.area": (0.2, 1.0),
    "views.contrast.blur": 0.5,
    "optim.learning_rate": 0.03,
    "optim.schedule": "cosine",
    "optim.period_steps": 5_004,
    "optim.nesterov": False,
    "optim.weight_decay": 1e-4,
    "optim.decay": "all",
    "ema.statistics": "own",
}
EMAN = {
    "algorithm.shuffle": False,
    "optim.warmup_steps": 50_040,
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
        "moco_v2",
        argument,
        algorithm={"name": "moco_v2"},
        settings=method_settings(SETTINGS, (data, chosen), CIFAR),
        presets={**presets, "eman": EMAN} if data == "tfds:imagenet2012" else presets,
    )
