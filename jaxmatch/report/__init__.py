"""Pages, tables and sheets for people: of runs, of a configuration, of an augmentation.

What is measured is in :mod:`jaxmatch.evaluation`.
"""
