"""What labels on suggested images are worth, against as many on images drawn at random."""
