"""The command line ``jaxmatch``.

Each command calls a function of another room and prints the result; nothing is computed here.
"""
