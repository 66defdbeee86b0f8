"""The images that a model is judged by, checked before any attack runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .._data import Labels, as_images, as_labels, check_classes, check_contrast, raw_batches, scale_note
from .._digest import digest_of_tensors
from ..data.split import stratified_order
from ..errors import InputError

_BATCH = 256  # samples of a Dataset that are read at once


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their classes.

    Attributes:
        pixels: ``(N, C, H, W)`` float32, on the CPU.
        labels: ``(N,)`` int64, on the CPU.
        width: number of columns of one-hot labels; None where labels were given as integers.
        notes: what reading did to the pixels, for the report.
        floats: what the labels were, if they were given as floats of 0 and 1.
    """

    pixels: Tensor
    labels: Tensor
    width: int | None = None
    notes: tuple[str, ...] = ()
    floats: str = ""

    @cached_property
    def sha256(self) -> str:
        """Of images and labels, in order."""
        return digest_of_tensors(images=self.pixels, labels=self.labels)

    def drawn(self, n: int, seed: int) -> Images:
        """``n`` of the images, drawn by class; the same seed draws the same ones. All keep their order."""
        if n == len(self.pixels):
            return self
        chosen = stratified_order(self.labels, seed)[:n]
        return replace(self, pixels=self.pixels[chosen], labels=self.labels[chosen])

    def check_classes(self, n_classes: int) -> None:
        """Check that the labels are classes of a model with ``n_classes`` logits."""
        check_classes(Labels(self.labels, self.width, self.floats), n_classes, "data")


def collect(data: Any, pixel_range: tuple[float, float]) -> Images:
    """All images and labels, in the order they come; ``data`` as `evaluate` takes it."""
    images, labels, width, floats = [], [], None, ""
    notes: dict[str, None] = {}
    for number, (x, y) in enumerate(raw_batches(data, "data", _BATCH)):
        if note := scale_note(x, pixel_range):
            notes[note] = None
        pixels = as_images(x, pixel_range, "data")
        if y is None:
            raise InputError(f"data gives no labels (batch {number}); give (images, labels), to judge by")
        found = as_labels(y, len(pixels), "data")
        width, floats = found.width or width, found.floats or floats
        images.append(pixels.detach().to("cpu", torch.float32))
        labels.append(found.classes.detach().to("cpu"))
    if not images:
        raise InputError("data holds no images; give at least one (an exhausted iterator gives none)")
    if len(shapes := {tuple(x.shape[1:]) for x in images}) > 1:
        raise InputError(f"data: images have shapes {sorted(shapes)}; resize them to one")
    # Contiguous, since pyautoattack views gradients as rows.
    whole = torch.cat(images).contiguous()
    check_contrast(float(whole.max()), pixel_range, "data")
    return Images(whole, torch.cat(labels), width, tuple(notes), floats)
