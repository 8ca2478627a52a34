"""A study: see the README beside this file."""
