"""Every pre-training at an equal number of images on MNIST-5k, and what it is worth."""
