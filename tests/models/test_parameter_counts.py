"""Parameters of a ResNet-50 with each method's own heads, as the methods' tables list them."""

import jax
import jax.numpy as jnp
import pytest

from jaxmatch.algorithms.byol import BYOL
from jaxmatch.algorithms.comatch import CoMatch
from jaxmatch.algorithms.moco_v2 import MoCoV2
from jaxmatch.algorithms.simclr import SimCLR
from jaxmatch.algorithms.simclr_v2 import SimCLRv2
from jaxmatch.algorithms.simmatch import SimMatch
from jaxmatch.algorithms.supervised import Supervised
from jaxmatch.algorithms.swav import SwAV
from jaxmatch.algorithms.wcl import WCL
from jaxmatch.models.heads import DeepProjection
from jaxmatch.models.resnet import ResNet

# Spec of the similarity family, section 1.1: in training, with a classifier of 1000 classes.
COUNTS = {
    "supervised": (Supervised().heads, 25_557_032),
    "simmatch": (SimMatch().heads, 30_015_656),
    "comatch": (CoMatch(projection=128, activation="relu").heads, 30_015_656),
    "moco_v2": (MoCoV2().heads, 30_015_656),
    "simclr": (SimCLR(norm=True).heads, 30_017_704),
    "simclr_v2": (SimCLRv2().heads, 34_216_104),
    "pcl_v1": ({"projection": DeepProjection(layers=1, features=128)}, 25_819_304),
    # The table counts one of WCL's two heads.
    "wcl": ({"projection": WCL().heads["projection"]}, 34_220_200),
    "wcl_both": (WCL().heads, 42_883_368),
    "byol": (BYOL().heads, 37_115_944),
    "swav": (SwAV().heads, 30_403_752),
}


# None, and those of the most common and of the oddest head.
DIFFERENT = ("supervised", "simmatch", "swav")


@pytest.mark.parametrize(
    "method",
    [pytest.param(each, marks=() if each in DIFFERENT else pytest.mark.slow) for each in COUNTS],
)
def test_parameters_of_the_published_table(method):
    heads, count = COUNTS[method]
    model = ResNet(classes=1000, extra_heads=heads)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
