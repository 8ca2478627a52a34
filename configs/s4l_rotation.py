"""S4L-Rotation (Zhai et al., ICCV 2019, https://arxiv.org/abs/1905.03670).

jaxmatch train --config=configs/s4l_rotation.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/s4l_rotation.py:tfds:cifar10,labels=250,seed=1

On MNIST-5k 1,500 steps of 512 images through networks end at a test accuracy of 61.0 ± 2.6 % with
40 and 28.6 ± 7.8 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

Weight 1 as in the authors' code. They published ImageNet alone: elsewhere ratio, optimizer and the
teacher that is evaluated are those of FixMatch's family. Every image passes four times, so that a
step costs twice FixMatch's. On digits the copies of a 6 and of a 9 look alike, yet have two labels.

On ImageNet (`s4l_rotation:tfds:imagenet2012,labels=128116,split=10percent.txt`) the settings of the
authors' code for 10%: 200 passes over the labeled images, of which five warm up, the rate divided
by ten after 140, 160 and 180. With labels=12811 they are those of their supervised runs with 1%:
1,000 passes, drops after 700, 800 and 900. The network is theirs, a ResNet-50 of version 2. To
start from a usual one give `--config.model.name=resnet50`, in a chain `moco_v2+s4l_rotation:...`
`--config.stages.s4l_rotation.model.name=resnet50`.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.presets import IMAGENET_IMAGES, TENTH, imagenet
from jaxmatch.config.recipe import make

BATCH = 256


def large(labels: str) -> dict[str, Any]:
    """The settings on ImageNet, in passes over the labeled images."""
    count = int(labels) if labels.isdecimal() else IMAGENET_IMAGES if labels == "all" else TENTH
    passes, rate, decay = (200, 0.03, 1e-3) if count > TENTH // 2 else (1000, 0.01, 1e-2)
    epoch = max(1, count // BATCH)
    steps = passes * epoch
    return {
        **imagenet(1, BATCH, labels),
        "steps": steps,
        "eval_every": steps // 20,
        "save_every": steps // 20,
        "data.batch_size": BATCH,
        "data.ratio": 1,
        "data.include_labeled": True,
        "data.mean": (0.5,),
        "data.std": (0.5,),
        "views.weak.area": (0.05, 1.0),
        "model.name": "resnet50_v2",
        "optim.learning_rate": rate,
        "optim.schedule": "steps",
        "optim.drops": (0.7, 0.8, 0.9),
        "optim.warmup_steps": 5 * epoch,
        "optim.nesterov": False,
        "optim.weight_decay": decay,
        "optim.decay": "kernels",
        "ema.decay": 0.0,
    }


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,split=FILE]``."""
    data, chosen = parse_argument(argument)
    on_imagenet = data == "tfds:imagenet2012"
    settings = large(chosen.get("labels", "")) if on_imagenet else {"data.ratio": 7}
    return make("s4l_rotation", argument, algorithm={"name": "s4l_rotation"}, settings=settings)
