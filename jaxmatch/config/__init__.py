"""Configurations: recipes, presets, the command line's overrides, and checks without data.

What is made of a configuration is in :mod:`jaxmatch.program`.
"""
