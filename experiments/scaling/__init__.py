"""What a step costs on many devices: its compiled program, made from shapes alone."""
