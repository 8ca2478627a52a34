"""Convolutions and sums on a CPU by oneDNN, which XLA's compiled programs call.

The C++ sources, their compilation and loading, and the rules where a program may call them belong
here. The operations of JAX that use them belong to :mod:`jaxmatch.models`.
"""

from jaxmatch.models.onednn.loading import Library, library
from jaxmatch.models.onednn.lowering import call, suits

__all__ = ["Library", "call", "library", "suits"]
