"""Augmentation on the device: transforms of images [b h w c] with levels 0..255.

The policies and views are here; what moves or changes pixels is in ``pixels/``. Crops on the host
are in the room ``data``.
"""
