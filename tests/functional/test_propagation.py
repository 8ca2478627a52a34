"""Label propagation against the dense inverse, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit

from jaxmatch.functional.memory import Bank
from jaxmatch.functional.propagation import first_row_of_resolvent, propagate

CLASSES, WIDTH, ROWS = 3, 5, 7
jit_propagate = quick_jit(propagate, static_argnames=("neighbors", "temperature", "share"))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def toy(filled=(True,) * ROWS, seed=0):
    """Embeddings [4 d], predictions [4 C] and a bank."""
    random = np.random.default_rng(seed)
    prediction = random.dirichlet(np.ones(CLASSES), 4)
    labels = random.integers(0, CLASSES, ROWS)
    bank = Bank(
        jnp.asarray(unit(random.normal(size=(ROWS, WIDTH)))),
        jnp.asarray(labels),
        jnp.asarray(filled),
    )
    return jnp.asarray(unit(random.normal(size=(4, WIDTH)))), jnp.asarray(prediction), bank


def by_inverse(embedding, prediction, bank, neighbors, temperature, share):
    """First row of (1 - share) (I - share W)^-1 Y for one image, as the paper has it."""
    rows = [row for row in range(ROWS) if bank.filled[row]]
    rows.sort(key=lambda row: -np.dot(embedding, bank.embeddings[row]))
    rows = np.array(rows[:neighbors])
    nodes = np.concatenate([embedding[None], bank.embeddings[rows]])
    weights = np.exp(nodes @ nodes.T / temperature)
    np.fill_diagonal(weights, 0)
    walk = weights / weights.sum(1, keepdims=True)
    labels = np.concatenate([prediction[None], np.eye(CLASSES)[bank.labels[rows]]])
    return (1 - share) * (np.linalg.inv(np.eye(len(nodes)) - share * walk) @ labels)[0]


@pytest.mark.parametrize(
    ("share", "neighbors"),
    [(0.9, 3)]
    + [pytest.param(*each, marks=pytest.mark.slow)
       for each in ((0.1, 100), (0.1, 1), (0.1, 3), (0.9, 1), (0.9, 100))],
)  # fmt: skip
def test_it_is_the_first_row_of_the_inverse(neighbors, share):
    with jax.enable_x64(True):
        embeddings, prediction, bank = toy(filled=(True, True, False, True, True, False, True))
        options = {"neighbors": neighbors, "temperature": 0.2, "share": share}
        found = jit_propagate(embeddings, prediction, bank, **options)
    bank = jax.tree.map(np.asarray, bank)
    for row, image in zip(found, zip(embeddings, prediction, strict=True), strict=True):
        expected = by_inverse(*map(np.asarray, image), bank, **options)
        np.testing.assert_allclose(row, expected, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(found).sum(1), 1, rtol=1e-12)


@pytest.mark.slow  # a case of the inverse
def test_one_neighbor_by_hand():
    """The walk goes to and fro: 1 / (1 + share) stays, share / (1 + share) is the neighbor's."""
    bank = Bank(jnp.eye(2), jnp.array([1, 0]), jnp.array([True, True]))
    options = {"neighbors": 1, "temperature": 0.1, "share": 0.25}
    prediction = jnp.array([[0.5, 0.3, 0.2]])
    found = jit_propagate(jnp.array([[0.8, 0.6]]), prediction, bank, **options)
    np.testing.assert_allclose(found[0], [0.4, 0.3 * 0.8 + 0.2, 0.16], rtol=1e-6)


@pytest.mark.slow  # a case of the inverse
def test_share_zero_gives_the_prediction_back():
    embeddings, prediction, bank = toy()
    found = jit_propagate(embeddings, prediction, bank, neighbors=3, temperature=0.1, share=0.0)
    np.testing.assert_allclose(found, prediction, rtol=1e-6)


def test_an_empty_bank_gives_the_prediction_back():
    embeddings, prediction, bank = toy(filled=(False,) * ROWS)
    found = jit_propagate(embeddings, prediction, bank, neighbors=3, temperature=0.1, share=0.5)
    np.testing.assert_allclose(found, prediction, rtol=1e-6)


@pytest.mark.slow  # the inverse above has some
def test_unfilled_rows_are_no_nodes():
    embeddings, prediction, bank = toy(filled=(True, True) + (False,) * 5)
    options = {"neighbors": 4, "temperature": 0.1, "share": 0.5}
    found = jit_propagate(embeddings, prediction, bank, **options)
    changed = bank._replace(embeddings=jnp.where(bank.filled[:, None], bank.embeddings, 9.0))
    np.testing.assert_array_equal(jit_propagate(embeddings, prediction, changed, **options), found)


@pytest.mark.parametrize("share", [1e-3, 0.1, 0.5, 0.99])
def test_the_iteration_is_as_exact_as_the_precision(share):
    random = np.random.default_rng(1)
    walk = random.dirichlet(np.ones(9), (2, 9))
    expected = (1 - share) * np.linalg.inv(np.eye(9) - share * walk)[:, 0]
    with jax.enable_x64(True):
        exact = first_row_of_resolvent(jnp.asarray(walk), share)
    np.testing.assert_allclose(exact, expected, atol=1e-13)
    single = first_row_of_resolvent(jnp.asarray(walk, jnp.float32), share)
    np.testing.assert_allclose(single, expected, atol=2e-6)
