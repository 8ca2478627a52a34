"""Data: sources of images, label splits, and sets that live on the device."""
