"""WCL, without any label (Zheng et al., ICCV 2021, https://arxiv.org/abs/2110.04770).

jaxmatch train --config=configs/wcl.py:mnist5k,seed=0
jaxmatch train --config=configs/wcl.py:tfds:cifar10,seed=0

On MNIST-5k 1,560 steps of 256 images through networks end at 95.0 % by k-NN and 97.3 % by a linear
probe, both with all labels, and fine-tuning on 40 labels at 82.1 %, seed 0
(experiments/mnist5k_pretraining).

The result is an encoder: `jaxmatch probe --workdir=RUN` tells what it is worth, and
`--config.init_from=RUN` starts another method from it.

On ImageNet: the published settings for 200 epochs and the paper's heads of 2048-2048-128, where the
code has 4096-4096-256. During its warm-up of ten epochs the authors' code has the milder views of
MoCo v2; here all epochs have SimCLR's. Its LARS also adapts and decays the scales of BatchNorm in
shortcuts; here none. The multi-crops of the paper are not in the code, nor here.

The paper trains on no other data set. There all but the head is as in configs/simclr.py; the
temperature is WCL's. On MNIST-5k the head is narrower, as the network is.
"""

from ml_collections import ConfigDict

from jaxmatch.config.flags import load_module
from jaxmatch.config.input_scales import IMAGENET as SCALE
from jaxmatch.config.own import method_settings
from jaxmatch.config.recipe import make, parse_argument

DIGITS = {"algorithm.hidden": 512}
IMAGENET = {
    "steps": 62_464,  # 200 epochs of 312 steps
    "data.batch_size": 4096,
    "data.ratio": 1,
    "data.image_size": 224,
    "data.mean": SCALE[0],
    "data.std": SCALE[1],
    "model.name": "resnet50",
    "views.contrast.brightness": 0.8,
    "views.contrast.contrast": 0.8,
    "views.contrast.saturation": 0.8,
    "views.contrast.hue": 0.2,
    "views.contrast.blur": 0.5,
    "optim.name": "lars",
    "optim.nesterov": False,
    "optim.learning_rate": 4.8,  # 0.075 sqrt(4096)
    "optim.schedule": "cosine",
    "optim.warmup_steps": 3_120,
    "optim.weight_decay": 1e-6,
}


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,seed=S][,preset=P]``."""
    data, chosen = parse_argument(argument)
    simclr = load_module("simclr")
    settings = method_settings(simclr.SETTINGS, (data, chosen), simclr.CIFAR)
    if data in ("mnist5k", "digits"):
        settings = settings | DIGITS
    return make(
        "wcl",
        argument,
        algorithm={"name": "wcl"},
        settings=IMAGENET if data == "tfds:imagenet2012" else settings,
        # For the network and scale of the method that starts from this encoder.
        presets={"google": {}, "torchssl": {}, "usb": {}},
    )
