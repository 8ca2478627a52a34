"""Classifiers of tiny networks with random weights, as the tests of exports take them."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from helpers import SIDE, quick_jit
from tiny_runs import settled_configuration, write_data

from jaxmatch.data.facts import Facts
from jaxmatch.evaluation.classifier import Classifier
from jaxmatch.models.build import build_model
from jaxmatch.models.network import make_network
from jaxmatch.program import Program

CLASSES = ("cat", "dog|", "bird", "wörm")
VIT = {"name": "vit", "depth": 2, "width": 16, "heads": 2, "patch": 4}
NETWORKS = {
    "wide_resnet": {"name": "wide_resnet", "depth": 10, "width": 1, "padding": "torch"},
    "resnet18": {"name": "resnet18", "width": 4},  # its stem pools, with a border
    "resnet50": {"name": "resnet50", "width": 2, "feature_norm": "layer"},
    "resnet50_v2": {"name": "resnet50_v2", "width": 2},  # its stem pools before any ReLU
    "vit": VIT,
    "vit_average": {**VIT, "pool": "average", "registers": 2, "layer_scale": 0.5},
    "vit_lora": {**VIT, "lora_rank": 2},
}


def random_classifier(folder, network, **changed):
    """The checkpoint of a run that nobody trained; its folder is empty."""
    config = settled_configuration(write_data(folder / "data.npz"), **changed)
    facts = Facts(classes=CLASSES, image_shape=(SIDE, SIDE, 3), labels=(0, 1, 2, 3), unlabeled=64)
    model = build_model(NETWORKS[network], classes=len(CLASSES), heads={})
    program = replace(Program.build(config, facts), model=model, network=make_network(model))
    start = quick_jit(lambda key: model.init(key, jnp.zeros((1, SIDE, SIDE, 3)), train=False))
    variables = randomized({"batch_stats": {}, **start(jax.random.key(0))})
    return Classifier(
        folder=folder,
        config=config,
        classes=CLASSES,
        image_shape=facts.image_shape,
        step=3,
        state=SimpleNamespace(teacher=variables),  # pyright: ignore[reportArgumentType]
        program=program,
    )


def randomized(variables):
    """Other values of the same shapes; variances stay positive."""
    random = np.random.default_rng(0)

    def other(leaf):
        scaled = leaf * random.uniform(0.5, 1.5, leaf.shape)
        return (scaled + random.uniform(0, 0.2, leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(other, jax.device_get(variables))


def images(count, seed=0):
    """Random images [count h w 3] uint8."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)
