"""Run compiled programs on devices and hosts, and save their state.

Nothing here knows a method or a configuration.
"""
