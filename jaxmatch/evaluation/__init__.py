"""Trained networks on images: predictions, metrics, probes of the features.

Nothing here changes a network.
"""
