"""The vocabulary of the methods: losses, memories, graphs; arrays in, arrays out.

Code that reads a setting, a file or a device does not belong here.
"""
