"""Which images to label next: rules that choose a batch by features and probabilities.

``clue`` clusters the features, weighted by the uncertainty of the predictions, and takes the image
nearest to each centre: Prabhu et al., "Active Domain Adaptation via Clustering Uncertainty-weighted
Embeddings", ICCV 2021, https://arxiv.org/abs/2010.08666. ``badge`` draws images with large and
different gradients of the classifier: Ash et al., "Deep Batch Active Learning by Diverse, Uncertain
Gradient Lower Bounds", ICLR 2020, https://arxiv.org/abs/1906.03671. ``margin`` takes the smallest
differences of the two largest probabilities: Scheffer et al., "Active Hidden Markov Models for
Information Extraction", IDA 2001. ``random`` is what they are compared with.

A rule takes features [n d] float32, probabilities [n C], the number of images, at most n, and a
seed. Equal seeds give equal choices.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

# What a certain image weighs in a clustering, as a share of the mean: clusters must exist even
# where a network is certain of almost all images.
LEAST_WEIGHT = 1e-3
ITERATIONS = 100  # of k-means, at most
NONE = np.zeros(0, np.int64)


class Choice(NamedTuple):
    """The images that a rule chooses, the most useful ones first.

    Attributes:
        positions: [k] int64, all different.
        similar: [k] int64, the number of images that each one stands for; empty if the rule forms
            no groups.
    """

    positions: np.ndarray
    similar: np.ndarray = NONE


Rule = Callable[[np.ndarray, np.ndarray, int, int], Choice]


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """The entropy [n] in nats of probabilities [n C]."""
    p = probabilities.astype(np.float64)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(1)


def margins(probabilities: np.ndarray) -> np.ndarray:
    """The difference [n] of the two largest of probabilities [n C]; 0 is the most uncertain."""
    top = np.sort(probabilities, axis=1)
    return top[:, -1] - top[:, -2]


def clue(features: np.ndarray, probabilities: np.ndarray, count: int, seed: int) -> Choice:
    """The images nearest to the centres of ``count`` clusters of uncertainty-weighted features.

    The centres minimise the sum, over all images, of the entropy of the prediction times the
    squared distance of the features to the nearest centre (the paper's equation 3). So an image is
    chosen where many images are uncertain and alike, and none because it is far from all others.
    The clusters with the largest sums of entropy come first.
    """
    from sklearn.cluster import KMeans  # takes a second to import
    from threadpoolctl import threadpool_limits

    weights = entropy(probabilities)
    mean = weights.mean()
    weights = weights / mean + LEAST_WEIGHT if mean > 0 else np.ones(len(weights))
    features = np.ascontiguousarray(features, np.float32)
    with threadpool_limits(1):  # threads add in another order each time
        found = KMeans(count, n_init=1, max_iter=ITERATIONS, random_state=seed)
        found.fit(features, None, weights)
    heaviest = np.argsort(-np.bincount(found.labels_, weights, count), kind="stable")
    return Choice(
        nearest_in_turn(features, found.cluster_centers_[heaviest]),
        np.bincount(found.labels_, minlength=count)[heaviest],
    )


def nearest_in_turn(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest of features [n d] to each of centres [k d] in turn, each at most once: [k]."""
    squares = np.einsum("nd,nd->n", features, features)
    found: list[int] = []
    for centre in centres:
        distance = squares - 2 * features @ centre
        distance[found] = np.inf
        found.append(int(distance.argmin()))
    return np.array(found, np.int64)


def badge(features: np.ndarray, probabilities: np.ndarray, count: int, seed: int) -> Choice:
    """Images drawn by k-means++ on the gradients of the classifier's kernel.

    The gradient of an image is taken as if its predicted class were true. It is the outer product
    of (probabilities - one-hot prediction) and features, so that distances of gradients follow from
    inner products of both, and no array [n C d] is needed. The first image is that of the largest
    gradient; each next one is drawn with a probability proportional to the squared distance of its
    gradient to the nearest chosen one (algorithm 1 of the paper).
    """
    random = np.random.default_rng(seed)
    errors = probabilities.astype(np.float64)
    errors[np.arange(len(errors)), errors.argmax(1)] -= 1
    norms = np.einsum("nc,nc->n", errors, errors) * np.einsum("nd,nd->n", features, features)
    chosen = [int(norms.argmax())]
    nearest = np.full(len(norms), np.inf)
    while len(chosen) < count:
        last = chosen[-1]
        inner = (errors @ errors[last]) * (features @ features[last])
        nearest = np.minimum(nearest, np.maximum(norms + norms[last] - 2 * inner, 0))
        nearest[chosen] = 0
        if not (total := nearest.sum()) > 0:  # all others have the gradient of a chosen one
            rest = np.setdiff1d(np.arange(len(norms)), chosen)
            chosen += random.permutation(rest)[: count - len(chosen)].tolist()
            break
        chosen.append(int(random.choice(len(norms), p=nearest / total)))
    return Choice(np.array(chosen, np.int64))


def margin(features: np.ndarray, probabilities: np.ndarray, count: int, seed: int) -> Choice:
    """The images whose two most probable classes are closest; no diversity."""
    return Choice(np.argsort(margins(probabilities), kind="stable")[:count])


def draw(features: np.ndarray, probabilities: np.ndarray, count: int, seed: int) -> Choice:
    """Images at random, all equally likely."""
    return Choice(np.random.default_rng(seed).permutation(len(features))[:count])


RULES: MappingProxyType[str, Rule] = MappingProxyType(
    {"clue": clue, "badge": badge, "margin": margin, "random": draw}
)
