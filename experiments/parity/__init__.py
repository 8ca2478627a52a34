"""Holds the library against numbers recorded from PyTorch code."""
