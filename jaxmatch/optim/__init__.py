"""The optimizer, the moving average of the teacher, and schedules over the steps.

What a method alone needs does not belong here.
"""
