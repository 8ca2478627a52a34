"""Runs that are killed, terminated and interrupted at random, and what is left of them."""
