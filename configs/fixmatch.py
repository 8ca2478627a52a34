"""FixMatch with RandAugment (Sohn et al., NeurIPS 2020, https://arxiv.org/abs/2001.07685).

jaxmatch train --config=configs/fixmatch.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/fixmatch.py:tfds:cifar10,labels=250,seed=1

On MNIST-5k 1,500 steps of 240 images through networks end at a test accuracy of 95.9 ± 0.3 % with
40 and 56.2 ± 17.1 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

With --config.augment=ctaugment, as preset=google has it, strong views follow CTAugment's policy.

On ImageNet (`fixmatch:tfds:imagenet2012,labels=128116,split=10percent.txt`) the settings of the run
in the authors' README: 3,000 passes over the labeled images with a warm-up over 50, the rate
divided by ten after each 500, a teacher that averages BatchNorm's statistics too. Its L2 penalty
has no 1/2, hence the weight decay, which the classifier's bias has, too. Its crops are bicubic and
shared by weak and strong views; here they are bilinear and independent. RandAugment's table is
EMAN's, which has the same ops: theirs are applied with probability 1/2 and move by up to 100
pixels. preset=torchssl has TorchSSL's batches of 32, threshold, weights, optimizer and two million
steps there; its crop has the same area, but a random aspect.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.presets import TENTH, TORCHSSL_IMAGENET, imagenet
from jaxmatch.config.recipe import make

BATCH = 1024


def large(labels: str) -> dict[str, Any]:
    """The settings on ImageNet."""
    count = int(labels) if labels.isdecimal() else TENTH
    steps = 50 * max(1, round(3_000 * count / BATCH / 50))
    return {
        **imagenet(1, 5 * BATCH, labels),
        "steps": steps,
        "data.batch_size": BATCH,
        "data.ratio": 5,
        "data.include_labeled": True,
        "data.mean": (0.5,),
        "data.std": (0.5,),
        "views.weak.area": (0.08, 1.0),
        "views.strong.table": "eman",
        "algorithm.threshold": 0.7,
        "algorithm.unlabeled_weight": 10.0,
        "optim.learning_rate": 0.1 * BATCH / 256,
        "optim.schedule": "steps",
        "optim.drops": tuple(part / 6 for part in range(1, 6)),
        "optim.warmup_steps": steps // 60,
        "optim.weight_decay": 6e-4,
        "optim.decay": "not_batch_norm",
        "ema.statistics": "averaged",
    }


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    data, chosen = parse_argument(argument)
    on_imagenet = data == "tfds:imagenet2012"
    return make(
        "fixmatch",
        argument,
        algorithm={"name": "fixmatch"},
        settings=large(chosen.get("labels", "")) if on_imagenet else {"data.ratio": 7},
        presets={
            "google": {} if on_imagenet else {"augment": "ctaugment"},
            "torchssl": TORCHSSL_IMAGENET if on_imagenet else {},
            "usb": {},
        },
    )
