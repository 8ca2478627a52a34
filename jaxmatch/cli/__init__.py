"""The command line ``jaxmatch``.

Each command calls the library and prints; what it computes is in the other rooms.
"""
