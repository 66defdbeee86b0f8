"""Stratified draws."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """A random permutation whose first n images, for every n, have nearly the class shares of all.

    The same seed, an integer in [0, 2**32), gives the same order with every numpy, on every machine.
    """
    # RandomState's stream is frozen by numpy.
    order = np.random.RandomState(seed).permutation(len(labels))
    of_order = labels.numpy()[order]
    place = np.empty(len(labels))  # of each image within its class, from 0 to 1
    for label in np.unique(of_order):
        (of_class,) = np.nonzero(of_order == label)
        place[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    return torch.from_numpy(order[np.argsort(place, kind="stable")].astype(np.int64))
