"""The vocabulary of the methods: losses, memories, graphs; arrays in, arrays out.

What reads a setting, a file or a device does not belong here.
"""
