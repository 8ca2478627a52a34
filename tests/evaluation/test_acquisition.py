"""The rules that choose images to label, against explicit gradients and brute force."""

from itertools import combinations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import pairwise_distances

from jaxmatch.evaluation import acquisition
from jaxmatch.evaluation.acquisition import RULES, Choice


def pool(count=60, width=5, classes=3, seed=0):
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, width)).astype(np.float32)
    return features, softmax(3 * random.normal(size=(count, classes)), axis=1).astype(np.float32)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("count", [1, 7, 60])
def test_a_rule_chooses_different_images_and_the_same_ones_for_a_seed(name, count):
    features, probabilities = pool()
    kept = probabilities.copy()
    one, again, other = (RULES[name](features, probabilities, count, seed) for seed in (3, 3, 4))
    assert len(one.positions) == len(set(one.positions.tolist())) == count
    np.testing.assert_array_equal(one.positions, again.positions)
    if name in ("badge", "random") and count == 7:
        assert one.positions.tolist() != other.positions.tolist()
    np.testing.assert_array_equal(probabilities, kept)


def test_entropies_and_margins():
    _, probabilities = pool()
    found = acquisition.entropy(probabilities)
    np.testing.assert_allclose(found, scipy_entropy(probabilities, axis=1), rtol=1e-6)
    np.testing.assert_allclose(acquisition.entropy(np.eye(3)), 0, atol=1e-12)
    rows = np.array([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2]])
    np.testing.assert_allclose(acquisition.margins(rows), [0.2, 0.7, 0.0], atol=1e-12)
    chosen = acquisition.margin(np.zeros((3, 1)), rows, 2, 0)
    assert chosen.positions.tolist() == [2, 0]


class Recorded:
    """Replays the draws of k-means++ and keeps the probabilities that it was given."""

    def __init__(self, draws):
        self.draws, self.given = iter(draws), []

    def choice(self, count, p):
        self.given.append(p)
        return next(self.draws)


def test_badge_draws_in_proportion_to_squared_distances_of_explicit_gradients(monkeypatch):
    features, probabilities = pool(count=12)
    recorded = Recorded([4, 9, 1])
    monkeypatch.setattr(np.random, "default_rng", lambda seed: recorded)
    found = acquisition.badge(features, probabilities, 4, 0).positions
    one_hot = np.eye(3)[probabilities.argmax(1)]
    gradients = np.einsum("nc,nd->ncd", probabilities - one_hot, features).reshape(12, -1)
    chosen = [int(np.linalg.norm(gradients, axis=1).argmax())]
    for given, drawn in zip(recorded.given, [4, 9, 1], strict=True):
        squared = pairwise_distances(gradients, gradients[chosen]).min(1) ** 2
        np.testing.assert_allclose(given, squared / squared.sum(), rtol=1e-4, atol=1e-6)
        chosen.append(drawn)
    assert found.tolist() == chosen


def test_badge_fills_up_where_all_gradients_are_equal():
    chosen = acquisition.badge(np.ones((5, 2), np.float32), np.eye(2)[[0, 0, 0, 0, 0]], 4, 0)
    assert len(set(chosen.positions.tolist())) == 4


def inertia(features, weights, groups):
    """The weighted sum of squared distances of groups of points to their weighted means."""
    total = 0.0
    for group in groups:
        w = weights[list(group)][:, None]
        mean = (w * features[list(group)]).sum(0) / w.sum()
        total += float((w * np.square(features[list(group)] - mean)).sum())
    return total


def test_clue_finds_the_best_of_all_partitions_and_the_images_nearest_to_its_centres():
    random = np.random.default_rng(1)
    features = random.normal(size=(9, 2)).astype(np.float32)
    features[:4] += 4
    probabilities = softmax(2 * random.normal(size=(9, 3)), axis=1)
    weights = scipy_entropy(probabilities, axis=1)
    everything = set(range(9))
    halves = [set(some) for size in range(1, 5) for some in combinations(range(9), size)]
    best = min(([half, everything - half] for half in halves),
               key=lambda groups: inertia(features, weights, groups))  # fmt: skip
    best = sorted(best, key=lambda group: -weights[list(group)].sum())
    centres = [np.average(features[list(group)], 0, weights[list(group)]) for group in best]
    expected = [int(np.linalg.norm(features - centre, axis=1).argmin()) for centre in centres]
    found = acquisition.clue(features, probabilities, 2, 0)
    assert found.positions.tolist() == expected
    assert found.similar.tolist() == [len(group) for group in best]


def test_clue_weighs_uncertain_images_more():
    """Of two groups on a line, the chosen image moves to the uncertain side of each."""
    features = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]], np.float32)
    sure, unsure = [0.999, 0.001], [0.5, 0.5]
    chosen = acquisition.clue(features, np.array([sure, sure, unsure, unsure, sure, sure]), 2, 0)
    assert sorted(chosen.positions.tolist()) == [2, 3]


def test_clue_clusters_what_a_network_is_certain_of_too():
    features = np.repeat(np.array([[0.0], [5.0], [9.0]], np.float32), 4, 0)
    chosen = acquisition.clue(features, np.repeat([[1.0, 0.0]], 12, 0), 3, 0)
    assert sorted(features[chosen.positions, 0].tolist()) == [0, 5, 9]


def test_centres_that_share_their_nearest_image_get_different_ones():
    features = np.array([[0.0], [1.0], [5.0]], np.float32)
    found = acquisition.nearest_in_turn(features, np.array([[0.1], [0.0], [0.2]]))
    assert found.tolist() == [0, 1, 2]


def test_random_images_are_equally_likely():
    features, probabilities = pool(count=10)
    drawn = [RULES["random"](features, probabilities, 3, seed).positions for seed in range(2000)]
    shares = np.bincount(np.concatenate(drawn), minlength=10) / 2000
    np.testing.assert_allclose(shares, 0.3, atol=0.05)


def test_a_choice_without_groups_says_so():
    assert not len(Choice(np.array([1])).similar)
