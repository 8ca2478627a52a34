"""Graphs with one edge from each image: to the most similar other one."""

import jax
import jax.numpy as jnp

from jaxmatch.functional.similarity import NEVER, inner_products
from jaxmatch.types import Array


def nearest_neighbor(embeddings: Array) -> Array:
    """The most similar other row of each unit row [b d]: [b] int32, of equally similar the first.

    A lone row is its own neighbor. No gradient passes.
    """
    scores = inner_products(embeddings, embeddings)
    itself = jnp.eye(len(embeddings), dtype=bool)
    return jnp.where(itself, NEVER, scores).argmax(1).astype(jnp.int32)


def connected_components(neighbor: Array) -> Array:
    """Labels [b] int32, equal where undirected edges i - neighbor[i] connect two nodes.

    Whoever follows the edges ends in a cycle, and a component has exactly one; the label is its
    smallest node. Pointer jumping, which doubles the paths at each round, finds it in ceil(log2 b)
    rounds (Wyllie, "The Complexity of Parallel Computations", 1979).

    Args:
        neighbor: [b] integers in 0..b-1.
    """
    rounds = (len(neighbor) - 1).bit_length()

    def jump(_: int, paths: tuple[Array, Array]) -> tuple[Array, Array]:
        end, least = paths  # of the 2^k edges from each node, and among the 2^k nodes after it
        return end[end], jnp.minimum(least, least[end])

    neighbor = neighbor.astype(jnp.int32)
    end, least = jax.lax.fori_loop(0, rounds, jump, (neighbor, neighbor))
    return least[end]
