"""Encoders that are trained here on Fashion-MNIST's images without labels, and what they are worth.

jaxmatch sweep --config=experiments/pretrained/fashion.py:encoders --workdir=runs/fashion --run
jaxmatch sweep --config=experiments/pretrained/fashion.py --workdir=runs/fashion --run
jaxmatch sweep --config=experiments/pretrained/fashion.py:seeds --workdir=runs/fashion --run
python -m experiments.pretrained.fashion_results runs/fashion

From the repository's root, since later runs name the folders of the encoders. The second command
has seed 0 of everything, the third seeds 1 and 2.
"""

from collections.abc import Iterator
from typing import Any

RUNS = "runs/fashion"
PRETRAINING = ("simclr", "byol", "swav")
ENCODER = "simclr"  # the comparison begins from it, whatever the others reach
LABELS = (40, 100, 400)
STEPS = {"pretraining": 1500, "supervised": 300, "semi": 600}
ADAMW = {"optim.name": "adamw", "optim.weight_decay": 0.05, "optim.decay": "not_vectors"}
NETWORKS: dict[str, dict[str, Any]] = {
    "wrn": {},  # the one that a run on a CPU chooses
    "vit": {
        **{"model.name": "vit", "model.patch": 7, "model.width": 96, "model.depth": 4},
        **{"model.heads": 4, "model.pool": "average", **ADAMW},
    },
}
RATES = {"wrn": {}, "vit": {"optim.learning_rate": 1e-3}}
FITTED = {"classifier_init": "logistic"}
# By the name in the table: the recipe, whether it begins from the encoder, and its settings.
WAYS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "supervised from scratch": ("supervised", False, {}),
    "classifier alone": ("supervised", True, {**FITTED, "optim.train": "head"}),
    "LoRA": ("supervised", True, {**FITTED, "optim.train": "lora", "model.lora_rank": 8}),
    "all weights": ("supervised", True, FITTED),
    "FixMatch from scratch": ("fixmatch", False, {}),
    "FixMatch": ("fixmatch", True, FITTED),
    "SoftMatch from scratch": ("softmatch", False, {}),
    "SoftMatch": ("softmatch", True, FITTED),
}


def sweep(argument: str = "") -> Iterator[dict[str, Any]]:
    """The encoders, seed 0 of the comparison, or its other seeds."""
    if argument == "encoders":
        yield from encoders()
        return
    for seed in (1, 2) if argument == "seeds" else (0,):
        for labels in LABELS:
            for network in NETWORKS:
                for way in WAYS:
                    if way != "LoRA" or network == "vit":
                        yield run(network, way, labels, seed)


def encoders() -> Iterator[dict[str, Any]]:
    """Each network by each method, seed 0."""
    for method in PRETRAINING:
        for network, settings in NETWORKS.items():
            yield {
                "config": f"{method}:fashion_mnist,seed=0",
                "workdir": f"{method}-{network}",
                "steps": STEPS["pretraining"],
                **settings,
                **RATES[network],
                # The patch divides these small crops.
                **({"views.small.size": 14} if (method, network) == ("swav", "vit") else {}),
            }


def run(network: str, way: str, labels: int, seed: int) -> dict[str, Any]:
    """One run of the comparison."""
    recipe, pretrained, settings = WAYS[way]
    return {
        "config": f"{recipe}:fashion_mnist,labels={labels},seed={seed}",
        "workdir": name(network, way, labels, seed),
        "steps": STEPS["supervised" if recipe == "supervised" else "semi"],
        **NETWORKS[network],
        **RATES[network],
        **({"init_from": f"{RUNS}/{ENCODER}-{network}"} if pretrained else {}),
        **settings,
    }


def name(network: str, way: str, labels: int, seed: int) -> str:
    """The folder of a run."""
    return f"{network}-{way.lower().replace(' ', '_')}-{labels}-s{seed}"
