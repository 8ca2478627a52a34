"""Weights in and out: from other runs and other code bases, and to files for other programs.

The networks themselves do not belong here.
"""
