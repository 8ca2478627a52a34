"""The rules that choose images to label, against explicit gradients and brute force."""

from itertools import combinations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import pairwise_distances

from jaxmatch.evaluation import acquisition
from jaxmatch.evaluation.acquisition import RULES, Choice, Pool


def pool(count=60, width=5, classes=3, seed=0):
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, width)).astype(np.float32)
    probabilities = softmax(3 * random.normal(size=(count, classes)), axis=1).astype(np.float32)
    return Pool(features, probabilities, random.normal(size=(4, width)).astype(np.float32))


def plain(features, probabilities=None):
    """A pool without labeled images."""
    probabilities = np.ones((len(features), 1)) if probabilities is None else probabilities
    return Pool(np.asarray(features, np.float32), np.asarray(probabilities), np.zeros(
        (0, np.shape(features)[1]), np.float32))  # fmt: skip


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("count", [1, 7, 60])
def test_a_rule_chooses_different_images_and_the_same_ones_for_a_seed(name, count):
    some = pool()
    kept = some.probabilities.copy()
    one, again, other = (RULES[name](some, count, seed) for seed in (3, 3, 4))
    assert len(one.positions) == len(set(one.positions.tolist())) == count
    np.testing.assert_array_equal(one.positions, again.positions)
    if name in ("badge", "random") and count == 7:
        assert one.positions.tolist() != other.positions.tolist()
    np.testing.assert_array_equal(some.probabilities, kept)


def test_entropies_and_margins():
    probabilities = pool().probabilities
    found = acquisition.entropy(probabilities)
    np.testing.assert_allclose(found, scipy_entropy(probabilities, axis=1), rtol=1e-6)
    np.testing.assert_allclose(acquisition.entropy(np.eye(3)), 0, atol=1e-12)
    rows = np.array([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2]])
    np.testing.assert_allclose(acquisition.margins(rows), [0.2, 0.7, 0.0], atol=1e-12)
    chosen = acquisition.margin(plain(np.zeros((3, 1)), rows), 2, 0)
    assert chosen.positions.tolist() == [2, 0]


class Recorded:
    """Replays the draws of k-means++ and keeps the probabilities that it was given."""

    def __init__(self, draws):
        self.draws, self.given = iter(draws), []

    def choice(self, count, p):
        self.given.append(p)
        return next(self.draws)


def test_badge_draws_in_proportion_to_squared_distances_of_explicit_gradients(monkeypatch):
    some = pool(count=12)
    features, probabilities = some.features, some.probabilities
    recorded = Recorded([4, 9, 1])
    monkeypatch.setattr(np.random, "default_rng", lambda seed: recorded)
    found = acquisition.badge(some, 4, 0).positions
    one_hot = np.eye(3)[probabilities.argmax(1)]
    gradients = np.einsum("nc,nd->ncd", probabilities - one_hot, features).reshape(12, -1)
    chosen = [int(np.linalg.norm(gradients, axis=1).argmax())]
    for given, drawn in zip(recorded.given, [4, 9, 1], strict=True):
        squared = pairwise_distances(gradients, gradients[chosen]).min(1) ** 2
        np.testing.assert_allclose(given, squared / squared.sum(), rtol=1e-4, atol=1e-6)
        chosen.append(drawn)
    assert found.tolist() == chosen


def test_badge_fills_up_where_all_gradients_are_equal():
    chosen = acquisition.badge(plain(np.ones((5, 2)), np.eye(2)[[0, 0, 0, 0, 0]]), 4, 0)
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
    found = acquisition.clue(plain(features, probabilities), 2, 0)
    assert found.positions.tolist() == expected
    assert found.similar.tolist() == [len(group) for group in best]


def test_clue_weighs_uncertain_images_more():
    """Of two groups on a line, the chosen image moves to the uncertain side of each."""
    features = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]], np.float32)
    sure, unsure = [0.999, 0.001], [0.5, 0.5]
    chosen = acquisition.clue(plain(features, [sure, sure, unsure, unsure, sure, sure]), 2, 0)
    assert sorted(chosen.positions.tolist()) == [2, 3]


def test_clue_clusters_what_a_network_is_certain_of_too():
    features = np.repeat(np.array([[0.0], [5.0], [9.0]], np.float32), 4, 0)
    chosen = acquisition.clue(plain(features, np.repeat([[1.0, 0.0]], 12, 0)), 3, 0)
    assert sorted(features[chosen.positions, 0].tolist()) == [0, 5, 9]


def test_centres_that_share_their_nearest_image_get_different_ones():
    features = np.array([[0.0], [1.0], [5.0]], np.float32)
    found = acquisition.nearest_in_turn(features, np.array([[0.1], [0.0], [0.2]]))
    assert found.tolist() == [0, 1, 2]


def circle(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def test_typiclust_takes_typical_images_of_large_clusters_without_labels(monkeypatch):
    """Three bundles of directions, of 7, 5 and 4 images; the largest one has the label."""
    monkeypatch.setattr(acquisition, "NEIGHBOURS", 2)
    bundles = [0, 1, 2, 3, 4, 5, 6], [100, 101, 103, 109, 110], [200, 201, 202.5, 210]
    lengths = np.random.default_rng(0).uniform(1, 9, (16, 1))  # which do not count
    features = (circle(*bundles[0], *bundles[1], *bundles[2]) * lengths).astype(np.float32)
    some = Pool(features, np.ones((16, 1)), circle(3.5))
    chosen = acquisition.typiclust(some, 2, 0)
    expected = []
    for start, degrees in ((7, bundles[1]), (12, bundles[2])):
        points = circle(*degrees)
        nearest = np.sort(pairwise_distances(points), axis=1)[:, 1:3].mean(1)
        expected.append(start + int(nearest.argmin()))
    assert chosen.positions.tolist() == expected
    assert chosen.similar.tolist() == [5, 4]


def test_typiclust_goes_round_clusters_if_there_are_fewer_than_images(monkeypatch):
    monkeypatch.setattr(acquisition, "MOST_CLUSTERS", 2)
    features = circle(0, 1, 2, 3, 90, 91, 92)
    chosen = acquisition.typiclust(plain(features), 6, 0).positions
    assert [position < 4 for position in chosen] == [True, False] * 3
    assert len(set(chosen.tolist())) == 6
    whole = acquisition.typiclust(plain(features), 7, 0).positions
    assert sorted(whole.tolist()) == list(range(7))


def test_neighbours_are_looked_for_among_some_of_many(monkeypatch):
    random = np.random.default_rng(0)
    features = random.normal(size=(300, 3)).astype(np.float32)
    exact = np.sort(pairwise_distances(features), axis=1)[:, : acquisition.NEIGHBOURS + 1].mean(1)
    found = acquisition.neighbour_distance(features, random)
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(acquisition, "COMPARED", 150)
    some = acquisition.neighbour_distance(features, random)
    assert np.corrcoef(some, exact)[0, 1] > 0.9
    assert acquisition.neighbour_distance(features[:1], random).tolist() == [0]


def test_the_usual_rule_follows_the_labels():
    assert acquisition.usual_rule(100, 10) == "typiclust"
    assert acquisition.usual_rule(101, 10) == "clue"


def test_random_images_are_equally_likely():
    some = pool(count=10)
    drawn = [RULES["random"](some, 3, seed).positions for seed in range(2000)]
    shares = np.bincount(np.concatenate(drawn), minlength=10) / 2000
    np.testing.assert_allclose(shares, 0.3, atol=0.05)


def test_a_choice_without_groups_says_so():
    assert not len(Choice(np.array([1])).similar)
