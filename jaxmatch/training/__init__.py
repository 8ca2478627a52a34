"""Training runs from a configuration to a summary: one run, stages, or several seeds at once.

The train step itself is in :mod:`jaxmatch.step`.
"""
