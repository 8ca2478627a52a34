"""What the TPU compiler makes of a step, on a machine without a TPU."""
