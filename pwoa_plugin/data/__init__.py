"""Data sets."""

from .embedded import mnist_sample
from .images import DataError, ImageSet
from .load import DATASETS, Loader, TrainingData, load_test, load_training

__all__ = [
    "DATASETS",
    "DataError",
    "ImageSet",
    "Loader",
    "TrainingData",
    "load_test",
    "load_training",
    "mnist_sample",
]
