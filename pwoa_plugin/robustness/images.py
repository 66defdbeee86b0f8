"""The images that a model is judged by, checked before any attack runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._pixels import GREY_LEVEL
from ..data.split import stratified_order
from ..errors import InputError

_ROUNDING = 1e-6  # of the pixel range: what resizing or a dtype may add to a valid image


class Images(NamedTuple):
    """Images and their classes.

    Attributes:
        pixels: ``(N, C, H, W)`` float32, on the CPU.
        labels: ``(N,)`` int64, on the CPU.
        width: number of columns of one-hot labels; None where labels were given as integers.
    """

    pixels: Tensor
    labels: Tensor
    width: int | None = None

    def drawn(self, n: int, seed: int) -> Images:
        """``n`` of the images, drawn by class; the same seed draws the same ones. All keep their order."""
        if n == len(self.pixels):
            return self
        chosen = stratified_order(self.labels, seed)[:n]
        return Images(self.pixels[chosen], self.labels[chosen], self.width)

    def check_classes(self, n_classes: int) -> None:
        """Check that the labels are classes of a model with ``n_classes`` logits."""
        if self.width not in (None, n_classes):
            raise InputError(
                f"data: labels are one-hot over {self.width} classes, and the model has {n_classes}; give as many"
            )
        least, most = int(self.labels.min()), int(self.labels.max())
        if least < 0 or most >= n_classes:
            raise InputError(
                f"data: labels span {least}..{most}, the model has classes 0..{n_classes - 1}; number them from 0"
            )


def collect(data: Any, pixel_range: tuple[float, float]) -> Images:
    """All images ``(N, C, H, W)`` and labels, ``(N,)`` or one-hot, in the order they come: from a pair of tensors or
    arrays, or from an iterable of such pairs, such as a ``DataLoader``."""
    batches = [data] if _is_pair_of_arrays(data) else data
    images, labels, width = [], [], None
    for batch in batches:
        if not _is_pair_of_arrays(batch):
            raise InputError(f"data: a batch is a {type(batch).__name__}, not a pair of tensors (images, labels)")
        x, y = torch.as_tensor(batch[0]), torch.as_tensor(batch[1])
        if y.dim() == 2 and y.shape[1] > 1:
            width, y = y.shape[1], _from_one_hot(y)
        _check_batch(x, y)
        images.append(x.detach().to("cpu", torch.float32))
        labels.append(y.detach().to("cpu", torch.int64))
    if not images or not sum(map(len, images)):
        raise InputError("data holds no images; give at least one (an exhausted iterator gives none)")
    if len(shapes := {tuple(x.shape[1:]) for x in images}) > 1:
        raise InputError(f"data: images have shapes {sorted(shapes)}; resize them to one")
    # Contiguous, since pyautoattack views gradients as rows.
    pixels = _checked_pixels(torch.cat(images).contiguous(), pixel_range)
    return Images(pixels, torch.cat(labels), width)


def _from_one_hot(y: Tensor) -> Tensor:
    if not ((y == 0) | (y == 1)).all() or not (y != 0).sum(1).eq(1).all():
        raise InputError(f"data: labels have shape {tuple(y.shape)} and are not one-hot; give labels.argmax(1)")
    return y.to(torch.uint8).argmax(1)


def _is_pair_of_arrays(item: object) -> bool:
    arrays = (Tensor, np.ndarray)
    return isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(part, arrays) for part in item)


def _check_batch(x: Tensor, y: Tensor) -> None:
    if x.dim() != 4:
        cure = "wrap the Dataset in a DataLoader" if x.dim() == 3 else "reshape them"
        raise InputError(f"data: images have shape {tuple(x.shape)}, not (N, C, H, W); {cure}")
    if not x.is_floating_point():
        raise InputError(
            f"data: images are {x.dtype}; convert them to float32 in pixel_range (0 to 255: divide by 255)"
        )
    if y.dim() != 1:
        cure = "labels.squeeze(1)" if y.dim() == 2 else "one class for each image"
        raise InputError(f"data: labels have shape {tuple(y.shape)}, not (N,); give {cure}")
    if y.is_floating_point() or y.dtype == torch.bool:
        raise InputError(f"data: labels are {y.dtype}; give the classes as int64")
    if len(x) != len(y):
        raise InputError(f"data: {len(x)} images come with {len(y)} labels; give one label for each image")


def _checked_pixels(images: Tensor, pixel_range: tuple[float, float]) -> Tensor:
    low, high = pixel_range
    if not images.isfinite().all():
        raise InputError("data: images hold NaN or infinite pixels; mend or leave out those images")
    least, most = float(images.min()), float(images.max())
    rounding = _ROUNDING * (high - low)
    if least < low - rounding or most > high + rounding:
        eight_bit = pixel_range == (0.0, 1.0) and least >= 0 and 8 < most <= 255  # normalised images are below 0 too
        cure = "give images that are not normalised, and mean and std, or give the pixel_range of these images"
        if eight_bit:
            cure = "divide them by 255"
        raise InputError(f"data: images span [{least:.4g}, {most:.4g}], outside pixel_range={pixel_range}; {cure}")
    if most - low <= GREY_LEVEL * (high - low):
        raise InputError(
            f"data: images span [{least:.4g}, {most:.4g}], a 255th of pixel_range={pixel_range} or less, as if divided "
            "by 255 once too often; give them in that range, or give the pixel_range of these images"
        )
    return images.clamp(low, high)
