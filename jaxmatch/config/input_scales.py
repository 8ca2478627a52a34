"""Mean and standard deviation of the channels of data sets, of images in [0, 1].

The code bases that the presets reproduce normalise the input of a network by them.
"""

CIFAR10 = ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))
CIFAR100 = ((129.3 / 255, 124.1 / 255, 112.4 / 255), (68.2 / 255, 65.4 / 255, 70.4 / 255))
SVHN = ((0.4380, 0.4440, 0.4730), (0.1751, 0.1771, 0.1744))
STL10 = ((112.4 / 255, 109.1 / 255, 98.6 / 255), (68.4 / 255, 66.6 / 255, 68.5 / 255))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,), (0.5,))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def of_pretrained(network: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation on which the published weights of a network were trained, if known.

    Those of MAE have the names of plain networks, but ImageNet's scale.

    Args:
        network: its name, as ``config.model.name``.
    """
    if "dinov2" in network:
        return IMAGENET
    if "_clip_" in network:
        return CLIP
    return HALF if network.startswith("vit_") else None
