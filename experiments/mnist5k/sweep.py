"""The runs of the README beside this file: every method at 40 and at 10 labels, seeds 0 to 2.

jaxmatch sweep --config=experiments/mnist5k/sweep.py --workdir=runs/mnist5k --run
"""

from collections.abc import Iterator

# By the number of images a step passes through the network, so that most results come early.
METHODS = (
    "supervised",
    "pseudo_label",
    "pi_model",
    "mean_teacher",
    "temporal_ensembling",
    "vat",
    "vat_entmin",
    "mixmatch",
    "remixmatch",
    "fixmatch",
    "fixmatch_ctaugment",
    "uda",
    "dash",
    "flexmatch",
    "freematch",
    "softmatch",
    "adamatch",
    "simmatch",
    "fixmatch_eman",
    "selfmatch",
    "simmatch_v2",
    "comatch",
    "s4l_rotation",
)
# Rows that are another method's config with a change.
VARIANTS = {
    "vat": ("vat", {"algorithm.entropy_weight": 0.0}),
    "vat_entmin": ("vat", {"algorithm.entropy_weight": 0.06}),
    "fixmatch_ctaugment": ("fixmatch", {"augment": "ctaugment"}),
}


def sweep() -> Iterator[dict[str, object]]:
    """Seed 0 of all first."""
    for seed in range(3):
        for labels in (40, 10):
            for method in METHODS:
                config, changes = VARIANTS.get(method, (method, {}))
                yield {
                    "config": f"{config}:mnist5k,labels={labels},seed={seed}",
                    "workdir": f"{method}-{labels}-s{seed}",
                    **changes,
                }
