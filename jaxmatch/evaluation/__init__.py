"""Trained networks on images: predictions, metrics, probes of the features, and baselines.

Nothing here changes a network.
"""
