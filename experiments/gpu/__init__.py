"""One command that measures on a GPU what no other machine can tell."""
