"""Studies whose numbers anyone can produce again."""
