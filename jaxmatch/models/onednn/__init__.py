"""Convolutions and sums on a CPU by oneDNN, as calls that XLA's compiled programs make.

Here belong the C++ sources, how they are compiled and loaded, and where a program may call them.
What they compute for which operation of JAX belongs to :mod:`jaxmatch.models`.
"""

from jaxmatch.models.onednn.loading import Library, library
from jaxmatch.models.onednn.lowering import call, suits

__all__ = ["Library", "call", "library", "suits"]
