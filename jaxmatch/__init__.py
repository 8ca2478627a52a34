"""Semi-supervised image classification in functional JAX: FixMatch and after."""

from jaxmatch.classifier import Classifier, Predictions, load
from jaxmatch.loop import train

__all__ = ["Classifier", "Predictions", "load", "train"]
