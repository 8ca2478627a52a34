"""FixMatch-EMAN with RandAugment (Cai et al., CVPR 2021, https://arxiv.org/abs/2101.08482).

jaxmatch train --config=configs/fixmatch_eman.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/fixmatch_eman.py:tfds:cifar10,labels=250,seed=1

On MNIST-5k 1,500 steps of 240 images through networks end at a test accuracy of 96.1 ± 0.4 % with
40 and 45.2 ± 5.9 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

On ImageNet (`fixmatch_eman:tfds:imagenet2012,labels=12811,split=1percent.txt`) the settings of the
authors' README: 100 epochs over the unlabeled images, the rate divided by ten after 60 and 80, and
BatchNorm over each eighth of a batch. With 1% of the labels they start from MoCo-EMAN:
`--config=moco_v2+fixmatch_eman:tfds:imagenet2012,labels=12811,split=1percent.txt,preset=eman`, or
`--config.init_from=RUN` for a run of `moco_v2:tfds:imagenet2012,preset=eman`.

Short runs have the authors' BatchNorm decay of 0.9, and an EMA that warms up. The teacher's
statistics are an average of the student's, which are an average, too. With the values of other
short runs the two keep their initial values for hundreds of steps (experiments/mnist5k).
"""

from typing import Any

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.own import method_settings
from jaxmatch.config.presets import imagenet
from jaxmatch.config.recipe import make

USUAL = {"data.ratio": 7}
SHORT = {**USUAL, "model.bn_decay": 0.9, "ema.schedule": "warmup"}


def large(labels: str) -> dict[str, Any]:
    """The settings on ImageNet."""
    epochs = 100
    values = imagenet(epochs, 320, labels)
    return {
        **values,
        "data.batch_size": 64,
        "data.ratio": 5,
        "views.weak.area": (0.08, 1.0),
        "model.bn_groups": 8,
        "views.strong.table": "eman",
        "algorithm.threshold": 0.7,
        "algorithm.unlabeled_weight": 10.0,
        "optim.schedule": "steps",
        "optim.drops": (0.6, 0.8),
        "optim.warmup_steps": 5 * values["steps"] // epochs,
        "optim.nesterov": False,
    }


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    data, chosen = parse_argument(argument)
    on_imagenet = data == "tfds:imagenet2012"
    settings = (
        large(chosen.get("labels", ""))
        if on_imagenet
        else method_settings({"mnist5k": SHORT, "digits": SHORT}, (data, chosen), USUAL)
    )
    settings |= {"ema.statistics": "averaged"}
    return make("fixmatch_eman", argument, algorithm={"name": "fixmatch_eman"}, settings=settings)
