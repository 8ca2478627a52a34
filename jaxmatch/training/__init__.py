"""Runs: their loop, their stages, several at once.

The step itself is in :mod:`jaxmatch.step`.
"""
