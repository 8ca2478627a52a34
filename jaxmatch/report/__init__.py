"""Pages, tables and pictures for people: of runs, of a configuration, of an augmentation.

Reports show results; :mod:`jaxmatch.evaluation` measures them.
"""
