"""The optimizer, the moving average of the teacher, and schedules over the steps.

A part that only one method needs does not belong here.
"""
