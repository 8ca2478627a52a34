"""Data: sources of images, label splits, records of what a run used, and the batches of a step.

Augmentation on the device is in the room ``augment``; which data a configuration chooses is in the
room ``record``.
"""
