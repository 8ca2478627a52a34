"""Devices, hosts, compiled calls, checkpoints and paths.

Nothing here knows a method or a configuration.
"""
