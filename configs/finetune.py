"""Fine-tuning of a pre-trained encoder on the labeled images alone.

jaxmatch train --config=configs/finetune.py:mnist5k,labels=40 --config.init_from=RUN
jaxmatch train --config=byol+finetune:mnist5k,labels=40,seed=0

RUN is a run of any method. For small images no source publishes a recipe: here SGD at 0.01, ten
times that for the new classifier, along a cosine, for 200 passes over the labeled images but at
least 5,000 steps (on MNIST-5k the 1,500 of its other methods).

`--config.data.pseudo_labels=FILE` adds the unlabeled images with the labels of `jaxmatch
pseudo-label`; `--config.classifier_init=logistic` starts the classifier from the labeled features.

On ImageNet the recipe of the method that made the encoder is a preset, such as
`--config=finetune:tfds:imagenet2012,labels=12811,split=FILE,preset=swav`; the number of labels sets
its steps. moco_v2 (the default): github.com/amazon-science/
exponential-moving-average-normalization; simclr: Chen et al., ICML 2020, appendix B.5; simclr_v2:
github.com/google-research/simclr, from the first layer of the head, as the authors of wcl do, with
LARS on all layers but the classifier; byol:
Grill et al., NeurIPS 2020, appendix D, with a rate between those they tried; swav:
github.com/facebookresearch/swav, also for pcl, whose authors publish none.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.input_scales import IMAGENET
from jaxmatch.config.own import published
from jaxmatch.config.presets import IMAGENET_IMAGES, TENTH
from jaxmatch.config.recipe import make

Settings = dict[str, Any]

SWAV_STD = (0.228, 0.224, 0.225)  # as its encoder was trained
PLAIN = {"data.mean": (0.0,), "data.std": (1.0,)}  # SimCLR's input is not standardised
DROPS = {"optim.schedule": "steps", "optim.drops": (0.6, 0.8), "optim.nesterov": False}
COSINE = {"optim.schedule": "cosine"}
COMMON = {"data.ratio": 0, "ema.decay": 0.0, "optim.weight_decay": 0.0}
SMALL = {
    **COMMON,
    **COSINE,
    "optim.learning_rate": 0.01,
    "optim.classifier_rate": 10.0,
    "optim.weight_decay": 5e-4,
}
LARGE = {
    **COMMON,
    "steps_per_call": 1,
    "model.name": "resnet50",
    "data.image_size": 224,
    "data.labels": str(TENTH),
    "data.mean": IMAGENET[0],
    "data.std": IMAGENET[1],
    "views.weak.area": (0.08, 1.0),
}
MOCO_V2 = {
    **DROPS,
    "data.batch_size": 256,
    "optim.learning_rate": 0.001,
    "optim.classifier_rate": 100.0,
    "optim.weight_decay": 1e-4,
    "optim.decay": "all",
}
SIMCLR = {**COSINE, **PLAIN, "data.batch_size": 4096, "optim.learning_rate": 0.8}
WCL = {
    **COSINE,
    "data.batch_size": 1024,
    "optim.name": "lars",
    "optim.nesterov": False,
    "optim.rate_inside_momentum": True,
    "optim.learning_rate": 0.16,
    "optim.adapted": "hidden_kernels",
    "model.head_layers": 1,
    "model.zero_classifier": True,
}
SIMCLR_V2 = {**WCL, **PLAIN}
BYOL = {**COSINE, "data.batch_size": 1024, "optim.learning_rate": 0.02}


def swav(rate: float, classifier_rate: float) -> Settings:
    """SwAV's recipe with the rate of the trunk and, as a multiple, that of the classifier."""
    return {
        **DROPS,
        "data.batch_size": 256,
        "optim.drop_factor": 0.2,
        "optim.learning_rate": rate,
        "optim.classifier_rate": classifier_rate,
    }


# Settings and passes over the labeled images: with 1% of the labels, and with 10%.
PCL = ((swav(0.02, 250.0), 20), (swav(0.01, 20.0), 20))
SWAV = tuple(({**values, "data.std": SWAV_STD}, passes) for values, passes in PCL)
RECIPES = {
    "moco_v2": ((MOCO_V2, 50), (MOCO_V2, 50)),
    "simclr": ((SIMCLR, 60), (SIMCLR, 30)),
    "simclr_v2": ((SIMCLR_V2, 60), (SIMCLR_V2, 30)),
    "wcl": ((WCL, 60), (WCL, 30)),
    "byol": ((BYOL, 50), (BYOL, 30)),
    "swav": SWAV,
    "pcl": PCL,
}
# Labeled images of "labels=all".
SIZES = {
    "tfds:cifar10": 50_000,
    "tfds:cifar100": 50_000,
    "tfds:svhn_cropped": 73_257,
    "tfds:stl10": 5_000,
    "tfds:imagenet2012": IMAGENET_IMAGES,
}


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    data, chosen = parse_argument(argument)
    labels = chosen.get("labels", "")
    count = int(labels) if labels.isdecimal() else SIZES.get(data, 0) if labels == "all" else 0
    presets: dict[str, Settings] = {}
    if data == "tfds:imagenet2012":
        count = count or TENTH
        for name, recipes in RECIPES.items():
            recipe, passes = recipes[count > TENTH // 2]  # tells 1% and 10% apart
            steps = max(1, round(count * passes / recipe["data.batch_size"]))
            presets[name] = {**recipe, "steps": steps, "log_every": 1, "eval_every": steps}
        usual = {} if chosen.get("preset") in presets else presets["moco_v2"]
        settings = {**LARGE, **usual}
    else:
        settings = SMALL
        if data not in ("mnist5k", "digits") and published(data, chosen.get("size", "")):
            passes = -(-200 * count // 64)  # batches of 64
            settings = {**SMALL, "steps": max(5_120, -(-passes // 1_024) * 1_024)}
        presets = {"google": {}, "torchssl": {}, "usb": {}}
    return make(
        "finetune", argument, algorithm={"name": "supervised"}, settings=settings, presets=presets
    )
