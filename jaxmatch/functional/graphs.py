"""Graphs with one edge from each image, to the most similar other image."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxmatch.functional.similarity import NEVER, inner_products
from jaxmatch.types import Array


def nearest_neighbor(embeddings: Float[Array, "b d"]) -> Int[Array, "b"]:
    """The most similar other row of each unit row; of equally similar ones the first.

    A lone row is its own neighbor. No gradient passes.

    >>> print(nearest_neighbor(jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])))
    [1 0 1]
    """
    scores = inner_products(embeddings, embeddings)
    itself = jnp.eye(len(embeddings), dtype=bool)
    return jnp.where(itself, NEVER, scores).argmax(1).astype(jnp.int32)


def connected_components(neighbor: Int[Array, "b"]) -> Int[Array, "b"]:
    """Labels that are equal where undirected edges i - neighbor[i] connect two nodes.

    A walk along the edges ends in a cycle, and a component has exactly one cycle. Its smallest
    node is the label. Pointer jumping doubles the length of all walks in each round, so
    ceil(log2 b) rounds find it (Wyllie, "The Complexity of Parallel Computations", 1979).

    >>> print(connected_components(jnp.array([1, 0, 3, 2, 3])))
    [0 0 2 2 2]

    Args:
        neighbor: integers in 0..b-1.
    """
    rounds = (len(neighbor) - 1).bit_length()

    def jump(_: Array | int, paths: tuple[Array, Array]) -> tuple[Array, Array]:
        end, least = paths  # of the walks of 2^k edges: the last node, and the least one passed
        return end[end], jnp.minimum(least, least[end])

    neighbor = neighbor.astype(jnp.int32)
    end, least = jax.lax.fori_loop(0, rounds, jump, (neighbor, neighbor))
    return least[end]
