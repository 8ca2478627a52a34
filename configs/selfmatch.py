"""SelfMatch: SimCLR, then FixMatch from its encoder (Kim et al. 2021, arXiv 2101.06480).

jaxmatch train --config=configs/selfmatch.py:mnist5k,labels=40,seed=0
jaxmatch train --config=configs/selfmatch.py:tfds:cifar10,labels=40,seed=0

On MNIST-5k 1,500 steps, 450 of them SimCLR's, end at a test accuracy of 95.8 ± 0.5 % with 40 and
54.8 ± 19.6 % with 10 labels, over seeds 0 to 2 (experiments/mnist5k).

The first stage is configs/simclr.py, the second configs/fixmatch.py, each in a folder of its own;
`--config.stages.simclr.steps=N` and the like change a value of one stage. The paper tells the two
stages and no more. FixMatch gets the encoder with its BatchNorm statistics; classifier, optimizer
and teacher start anew. On ImageNet it has SimCLR's scale of the input, too.

On MNIST-5k and the digits both stages together draw as many images as FixMatch alone does there,
450 + 1,050 steps of 128: the share was chosen on seeds 3 to 5 (experiments/mnist5k).
"""

from ml_collections import ConfigDict

from jaxmatch.config.argument import parse_argument
from jaxmatch.config.flags import load_module
from jaxmatch.config.stages import make_stages

SMALL, IMAGENET = ("mnist5k", "digits"), "tfds:imagenet2012"


def get_config(argument: str = "mnist5k") -> ConfigDict:
    """The configuration for ``DATA[,labels=N][,seed=S][,preset=P][,split=FILE]``."""
    data, chosen = parse_argument(argument)
    words = ("seed", "preset", "views", "size")
    label_free = [f"{key}={chosen[key]}" for key in words if key in chosen]
    simclr = load_module("simclr").get_config(",".join([data, *label_free]))
    fixmatch = load_module("fixmatch").get_config(argument)
    if data == IMAGENET:  # the encoder's
        fixmatch.data.mean, fixmatch.data.std = simclr.data.mean, simclr.data.std
    if data in SMALL:
        simclr.steps, fixmatch.steps = 450, 1050
        simclr.optim.warmup_steps = 45
    return make_stages("selfmatch", {"simclr": simclr, "fixmatch": fixmatch})
