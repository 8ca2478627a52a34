"""Read and write a run folder: settings, data, metrics, curves.

Nothing here trains or evaluates a network.
"""
