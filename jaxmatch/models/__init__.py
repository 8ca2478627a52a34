"""Networks, their layers and heads, and the wrapper through which algorithms call them.

What loads or saves weights does not belong here.
"""
