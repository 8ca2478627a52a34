"""Differences between two programs over seeds, and how many seeds a claim needs."""
