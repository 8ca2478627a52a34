"""The runs of the README beside this file: pre-training, and what starts from it.

jaxmatch sweep --config=experiments/mnist5k_pretraining/sweep.py \
    --workdir=runs/mnist5k_pretraining --run

From the repository's root, since later runs name the folders of earlier ones.
"""

from collections.abc import Iterator
from pathlib import Path

METHODS = ("simclr", "simclr_v2", "moco_v2", "byol", "swav", "pcl", "wcl")
RUNS = Path("runs/mnist5k_pretraining")
STEPS = 1_560  # of 128 images: 199,680 drawn
BEST = ("swav", "simclr")  # by the results of seed 0; these get the other seeds
# Those whose authors fine-tune from the first layer of the head.
MIDDLE = {"simclr_v2": {"model.head_layers": 1, "model.zero_classifier": True}}


def sweep() -> Iterator[dict[str, object]]:
    """All methods with seed 0, then the two best with the others."""
    yield from runs(METHODS, 0)
    for seed in (1, 2):
        yield from runs(BEST, seed)


def runs(methods: tuple[str, ...], seed: int) -> Iterator[dict[str, object]]:
    """Pre-training of ``methods``, then fine-tuning, then FixMatch."""
    for method in methods:
        config = f"{method}:mnist5k,seed={seed}"
        yield {"config": config, "steps": STEPS, "workdir": f"{method}-s{seed}"}
    for kind, labels in (("finetune", 40), ("finetune", 10), ("fixmatch", 10)):
        for method in methods:
            yield {
                "config": f"{kind}:mnist5k,labels={labels},seed={seed}",
                "init_from": str(RUNS / f"{method}-s{seed}"),
                "workdir": f"{method}-{kind}{labels}-s{seed}",
                **(MIDDLE.get(method, {}) if kind == "finetune" else {}),
            }
