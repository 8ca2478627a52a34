"""What a run folder holds, written and read: settings, data, metrics, curves.

What a run computes does not belong here.
"""
