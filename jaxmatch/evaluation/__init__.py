"""What a trained network says of images: accuracy, predictions, probes of its features.

Nothing here trains.
"""
