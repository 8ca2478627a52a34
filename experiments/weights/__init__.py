"""Weights of other code bases for this one."""
