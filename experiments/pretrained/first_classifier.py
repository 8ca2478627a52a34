"""FixMatch from a SimCLR encoder, with a random and with a fitted first classifier, on MNIST-5k.

jaxmatch train --config=simclr:mnist5k --workdir=runs/pretrained/encoder \
    --config.steps=780 --config.steps_per_call=26 --config.log_every=26 --config.eval_every=390 \
    --config.save_every=390
jaxmatch sweep --config=experiments/pretrained/first_classifier.py --workdir=runs/pretrained --run
"""

from collections.abc import Iterator
from typing import Any

ENCODER = "runs/pretrained/encoder"
KINDS = ("random", "means", "logistic")
RATES = (0.03, 0.003)  # of the recipe, and one at which pretrained networks are fine-tuned
SEEDS = (0, 1, 2)
STEPS = 300


def sweep() -> Iterator[dict[str, Any]]:
    """Seed 0 of all first."""
    for seed in SEEDS:
        for rate in RATES:
            for kind in KINDS:
                yield {
                    "config": f"fixmatch:mnist5k,labels=40,seed={seed}",
                    "init_from": ENCODER,
                    "classifier_init": kind,
                    "optim.learning_rate": rate,
                    "steps": STEPS,
                    "log_every": 15,
                    "save_every": STEPS,
                    "workdir": f"{kind}-lr{rate}-s{seed}",
                }
