"""Which images to label next: rules that choose a batch by features and probabilities.

``typiclust`` takes the most typical image of each large cluster of features that has few labels:
Hacohen et al., "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets", ICML
2022, https://arxiv.org/abs/2202.02794. ``clue`` clusters the features, weighted by the uncertainty
of the predictions, and takes the image nearest to each centre: Prabhu et al., "Active Domain
Adaptation via Clustering Uncertainty-weighted Embeddings", ICCV 2021,
https://arxiv.org/abs/2010.08666. ``badge`` draws images with large and different gradients of the
classifier: Ash et al., "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds",
ICLR 2020, https://arxiv.org/abs/1906.03671. ``margin`` takes the smallest differences of the two
largest probabilities: Scheffer et al., "Active Hidden Markov Models for Information Extraction",
IDA 2001. ``random`` is what they are compared with.

A rule takes a :class:`Pool` of n images, the number of images to choose, at most n, and a seed.
Equal seeds give equal choices.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from sklearn.cluster import KMeans

# What a certain image weighs in a clustering, as a share of the mean: clusters must exist even
# where a network is certain of almost all images.
LEAST_WEIGHT = 1e-3
ITERATIONS = 100  # of k-means, at most
MOST_CLUSTERS = 500  # of TypiClust, as its authors have it
NEIGHBOURS = 20  # whose mean distance says how typical an image is
COMPARED = 5_000  # images of a cluster among which neighbours are looked for
FEW_LABELS = 10  # of a class, on average, up to which typical images are chosen
NONE = np.zeros(0, np.int64)


class Pool(NamedTuple):
    """What is known of the images that a rule chooses from.

    Attributes:
        features: [n d] float32.
        probabilities: [n C].
        labeled: [l d] float32, the features of the labeled images.
    """

    features: np.ndarray
    probabilities: np.ndarray
    labeled: np.ndarray


class Choice(NamedTuple):
    """The images that a rule chooses, the most useful ones first.

    Attributes:
        positions: [k] int64, all different.
        similar: [k] int64, the number of images that each one stands for; empty if the rule forms
            no groups.
    """

    positions: np.ndarray
    similar: np.ndarray = NONE


Rule = Callable[[Pool, int, int], Choice]


def usual_rule(labels: int, classes: int) -> str:
    """The name of the rule for a run with some labels: ``typiclust``, with many ``clue``.

    Typical images are worth more while labels are few, and uncertain ones later (Hacohen et al.).
    Where the one turns into the other depends on the data; :data:`FEW_LABELS` is a guess.
    """
    return "typiclust" if labels <= FEW_LABELS * classes else "clue"


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """The entropy [n] in nats of probabilities [n C]."""
    p = probabilities.astype(np.float64)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(1)


def margins(probabilities: np.ndarray) -> np.ndarray:
    """The difference [n] of the two largest of probabilities [n C]; 0 is the most uncertain."""
    top = np.sort(probabilities, axis=1)
    return top[:, -1] - top[:, -2]


def typiclust(pool: Pool, count: int, seed: int) -> Choice:
    """The most typical images of ``count`` clusters, large ones without labeled images first.

    All images, labeled ones too, form as many clusters as there will be labels. The next image is
    always from the cluster with the fewest labeled and chosen images, and among these from the
    largest. It is the one with the smallest mean distance to its neighbours in the cluster. The
    distances are those of features of length 1.
    """
    features = _normalized(np.concatenate([pool.features, pool.labeled]))
    unlabeled = len(pool.features)
    clusters = min(len(pool.labeled) + count, MOST_CLUSTERS, len(features))
    cluster = _k_means(features, clusters, seed).labels_
    taken = np.bincount(cluster[unlabeled:], minlength=clusters)
    members = [np.flatnonzero(cluster[:unlabeled] == number) for number in range(clusters)]
    size = np.array([len(each) for each in members])
    random = np.random.default_rng([seed, 1])
    waiting: dict[int, list[int]] = {}
    chosen: list[int] = []
    origin: list[int] = []
    while len(chosen) < count:
        left = [n for n in range(clusters) if n not in waiting or waiting[n]]
        number = min((n for n in left if size[n]), key=lambda n: (taken[n], -size[n]))
        if number not in waiting:
            distance = neighbour_distance(features[members[number]], random)
            waiting[number] = members[number][np.argsort(distance, kind="stable")].tolist()
        chosen.append(waiting[number].pop(0))
        origin.append(number)
        taken[number] += 1
    return Choice(np.array(chosen, np.int64), size[origin])


def neighbour_distance(features: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The mean distance [n] of each of features [n d] to its nearest others; 0 of a single one.

    Of many, only some at random can be neighbours.
    """
    from sklearn.neighbors import NearestNeighbors

    if len(features) == 1:
        return np.zeros(1)
    others = features
    if len(features) > COMPARED:
        others = features[random.permutation(len(features))[:COMPARED]]
    number = min(NEIGHBOURS + 1, len(others))  # with itself, at distance 0
    found, _ = (
        NearestNeighbors(n_neighbors=number, algorithm="brute").fit(others).kneighbors(features)
    )
    return found.mean(1)


def _normalized(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _k_means(
    features: np.ndarray, clusters: int, seed: int, weights: np.ndarray | None = None
) -> "KMeans":
    from sklearn.cluster import KMeans  # takes a second to import
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # threads add in another order each time
        found = KMeans(clusters, n_init=1, max_iter=ITERATIONS, random_state=seed)
        return found.fit(np.ascontiguousarray(features, np.float32), None, weights)


def clue(pool: Pool, count: int, seed: int) -> Choice:
    """The images nearest to the centres of ``count`` clusters of uncertainty-weighted features.

    The centres minimise the sum, over all images, of the entropy of the prediction times the
    squared distance of the features to the nearest centre (the paper's equation 3). So an image is
    chosen where many images are uncertain and alike, and none because it is far from all others.
    The clusters with the largest sums of entropy come first.
    """
    weights = entropy(pool.probabilities)
    mean = weights.mean()
    weights = weights / mean + LEAST_WEIGHT if mean > 0 else np.ones(len(weights))
    found = _k_means(pool.features, count, seed, weights)
    heaviest = np.argsort(-np.bincount(found.labels_, weights, count), kind="stable")
    return Choice(
        nearest_in_turn(pool.features, found.cluster_centers_[heaviest]),
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


def badge(pool: Pool, count: int, seed: int) -> Choice:
    """Images drawn by k-means++ on the gradients of the classifier's kernel.

    The gradient of an image is taken as if its predicted class were true. It is the outer product
    of (probabilities - one-hot prediction) and features, so that distances of gradients follow from
    inner products of both, and no array [n C d] is needed. The first image is that of the largest
    gradient; each next one is drawn with a probability proportional to the squared distance of its
    gradient to the nearest chosen one (algorithm 1 of the paper).
    """
    random = np.random.default_rng(seed)
    features = pool.features
    errors = pool.probabilities.astype(np.float64)
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


def margin(pool: Pool, count: int, seed: int) -> Choice:
    """The images whose two most probable classes are closest; no diversity."""
    return Choice(np.argsort(margins(pool.probabilities), kind="stable")[:count])


def draw(pool: Pool, count: int, seed: int) -> Choice:
    """Images at random, all equally likely."""
    return Choice(np.random.default_rng(seed).permutation(len(pool.features))[:count])


RULES: MappingProxyType[str, Rule] = MappingProxyType(
    {"typiclust": typiclust, "clue": clue, "badge": badge, "margin": margin, "random": draw}
)
