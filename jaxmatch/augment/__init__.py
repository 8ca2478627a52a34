"""Augmentation on the device: transforms of [b h w c] images with levels 0..255."""
