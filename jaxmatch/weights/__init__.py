"""A network's variables from elsewhere and to elsewhere: other runs, PyTorch's files.

Networks themselves are in :mod:`jaxmatch.models`.
"""
