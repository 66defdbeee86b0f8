"""Data sets."""

from .config import DATASETS, DataConfig
from .embedded import mnist_sample
from .images import DataError, ImageSet
from .load import Loader, TrainingData, data_set, load_test, load_training

__all__ = [
    "DATASETS",
    "DataConfig",
    "DataError",
    "ImageSet",
    "Loader",
    "TrainingData",
    "data_set",
    "load_test",
    "load_training",
    "mnist_sample",
]
