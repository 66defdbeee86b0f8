"""Natural images from whatever holds them, as batches ``(x, y or None)`` on a device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from .._logits import described
from .._pixels import GREY_LEVEL
from .._random import random_state, set_random_state
from ..errors import InputError


def check_images(x: Any, pixel_range: tuple[float, float], where: str) -> None:
    """InputError unless ``x`` is a float tensor ``(N, C, H, W)``, finite and within ``pixel_range``."""
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
        raise InputError(f"{where}: images are {described(x)}; give float tensors (N, C, H, W), as ToTensor() does")
    if len(x) == 0:
        raise InputError(f"{where} gives an empty batch; give natural images")
    low, high = pixel_range
    least, most = (value.item() for value in x.aminmax())
    if not (low - 1e-4 <= least and most <= high + 1e-4):
        raise InputError(
            f"{where}: pixels reach from {least:.4g} to {most:.4g}, outside pixel_range={pixel_range}; "
            "scale the images and leave normalisation to the model, or set pixel_range"
        )


def check_labels(y: Any, images: int, classes: int | None, where: str) -> None:
    """InputError unless ``y`` is an integer tensor ``(images,)`` with values in ``[0, classes)``."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.shape != (images,):
        raise InputError(f"{where}: labels are {described(y)}; give int64 class indices of shape ({images},)")
    least, most = (int(value) for value in y.aminmax())
    if classes is not None and not (least >= 0 and most < classes):
        raise InputError(
            f"{where}: labels reach from {least} to {most}, and the model has {classes} classes; "
            f"give indices from 0 to {classes - 1}"
        )


class _TensorLoader:
    """Images ``x``, with or without labels ``y``, in a new order in each epoch."""

    def __init__(self, x: Tensor, y: Tensor | None, batch_size: int) -> None:
        self.x, self.y, self.batch_size = x, y, batch_size

    def batches_from(self, start: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """An epoch from batch ``start`` on; draws the order of the whole epoch at once."""
        order = torch.randperm(len(self.x)).to(self.x.device)
        return (
            (self.x[index], None if self.y is None else self.y[index]) for index in order.split(self.batch_size)[start:]
        )


def _is_pair(source: Any) -> bool:
    """Whether this is one pair of tensors, not a list of batches of images."""
    if not isinstance(source, (tuple, list)) or not source or not all(isinstance(p, Tensor) for p in source[:2]):
        return False
    return isinstance(source, tuple) or (len(source) == 2 and source[1].dim() == 1)


def _divided(images: int, size: int) -> tuple[int, int]:
    """The number of batches, and of those with one image."""
    whole, rest = divmod(images, size)
    return whole + (rest > 0), whole if size == 1 else int(rest == 1)


class Batches:
    """Batches of natural images, read again in every epoch.

    A batch of one image is left out if there are others: BatchNorm cannot train on it, and HSIC is not defined.

    Args:
        source: a DataLoader or another iterable that can be read again and gives ``(x, y)``, ``(x, ...)`` or ``x``;
            a Dataset; or tensors ``(x, y)`` or ``x``.
        batch_size: for a Dataset or tensors; or a function of the number of images.
        device: of the batches.
        dtype: of the images that come out, the model's.
        pixel_range: ``(low, high)`` of a valid image.
        labels_because: why labels are needed; None: they are not, and ``y`` is None.
        name: of the source in messages.

    Attributes:
        classes: the number of logits, against which labels are checked; None until it is known.
        read: batches of this epoch that were read, including those left out.

    Raises:
        InputError: the source is missing, empty, or can be read only once.
    """

    def __init__(
        self,
        source: Any,
        *,
        batch_size: int | Callable[[int], int],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        pixel_range: tuple[float, float] = (0.0, 1.0),
        labels_because: str | None = None,
        name: str = "train_loader",
    ) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self.pixel_range, self.labels_because = pixel_range, labels_because
        self.classes: int | None = None
        self.read = 0
        if isinstance(source, Tensor):
            source = (source,)
        if _is_pair(source):
            x, y = source[0], source[1] if len(source) > 1 else None
            if y is not None and len(x) != len(y):
                raise InputError(f"{name}: {len(x)} images and {len(y)} labels; give as many of each")
            source = _TensorLoader(x, y, batch_size if isinstance(batch_size, int) else batch_size(len(x)))
        elif isinstance(source, Dataset) and not isinstance(source, IterableDataset):
            size = len(source)  # type: ignore[arg-type]
            if size == 0:
                raise InputError(f"{name}: the data set is empty; give natural images")
            batch_size = batch_size if isinstance(batch_size, int) else batch_size(size)
            source = DataLoader(source, batch_size, shuffle=True, drop_last=size > 1 and size % batch_size == 1)
        elif not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
            what = "missing" if source is None else f"a {type(source).__name__}"
            raise InputError(f"{name} is {what}; give a DataLoader, a Dataset or tensors of natural images")
        elif isinstance(source, Iterator):
            raise InputError(f"{name} is an iterator that can be read once only; give a DataLoader or a list")
        self._source = source

    def __len__(self) -> int:
        """Batches in an epoch, without those left out; InputError if there is none."""
        there, of_one = self._counts
        return there - of_one if there > 1 else 1

    @cached_property
    def _counts(self) -> tuple[int, int]:
        """The number of batches, and of those with one image as far as the source tells."""
        there, of_one = self._count()
        if there == 0:
            raise InputError(f"{self.name} is empty; give at least one batch of natural images")
        if of_one == there > 1:
            raise InputError(
                f"{self.name} gives batches of one image, which neither BatchNorm nor HSIC can use; give "
                "batches of 2 or more"
            )
        return there, of_one

    def _count(self) -> tuple[int, int]:
        source = self._source
        if isinstance(source, _TensorLoader):
            return _divided(len(source.x), source.batch_size)
        with contextlib.suppress(TypeError):  # no length after all
            # The user's own collate_fn may make anything of a batch.
            if isinstance(source, DataLoader) and source.batch_size and source.collate_fn is default_collate:
                counted = _divided(len(source.sampler), source.batch_size)  # type: ignore[arg-type]
                if counted[0] == len(source):
                    return counted
            if not isinstance(source, (list, tuple)):
                return len(source), 0
        sizes = [len(x) if isinstance(x, Tensor) and x.dim() else 0 for x, _ in self._raw(0, {})]
        return len(sizes), sizes.count(1)

    def _raw(self, start: int, random_state: Mapping[str, Tensor]) -> Iterator[tuple[Any, Any]]:
        if hasattr(self._source, "batches_from"):  # skips without reading
            batches = self._source.batches_from(start)
        else:
            batches = iter(self._source)
            for _ in range(start):
                next(batches, None)
        if start:
            self.set_random_state(random_state)
        for batch in batches:
            if isinstance(batch, Mapping):
                raise InputError(
                    f"{self.name} gives a dict with keys {list(batch)}; give (x, y) tuples "
                    "(map the loader, or set its collate_fn)"
                )
            if isinstance(batch, (tuple, list)):
                yield batch[0], batch[1] if len(batch) > 1 else None
            else:
                yield batch, None

    def random_state(self) -> dict[str, Tensor]:
        """The state of the global generators, and of those of a DataLoader and its samplers."""
        return random_state() | {f"loader.{i}": own.get_state() for i, own in enumerate(self._generators())}

    def set_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `random_state` returned."""
        set_random_state(state)
        for i, own in enumerate(self._generators()):
            if f"loader.{i}" in state:
                own.set_state(state[f"loader.{i}"])

    def _generators(self) -> list[torch.Generator]:
        sampler, batch_sampler = (getattr(self._source, name, None) for name in ("sampler", "batch_sampler"))
        places = (self._source, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
        found = [getattr(place, "generator", None) for place in places]
        return list(dict.fromkeys(generator for generator in found if isinstance(generator, torch.Generator)))

    def epoch(
        self, *, check: bool = False, start: int = 0, random_state: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """One epoch of batches.

        Args:
            check: check images and labels of every batch (InputError). For images on a GPU this waits for the device;
                runs do it in their first epoch only.
            start: skip this many batches, counted as in `read`. The order is drawn as for a whole epoch.
            random_state: set after the skipped batches.
        """
        there, _ = self._counts
        self.read = start
        for x, y in self._raw(start, random_state or {}):
            if check:
                check_images(x, self.pixel_range, self.name)
            if self.labels_because is None:
                y = None
            elif check and y is None:
                raise InputError(f"{self.name} gives no labels, and {self.labels_because}")
            elif check:
                check_labels(y, len(x), self.classes, self.name)
            self.read += 1
            if len(x) == 1 and there > 1:
                continue
            x = x.to(self.device, self.dtype, non_blocking=True)
            yield x, None if y is None else y.to(self.device, torch.int64, non_blocking=True)

    def first(self, images: int) -> Tensor:
        """``images`` images, or all if there are fewer, from the start of an epoch: checked, on the device.

        Raises:
            InputError: images or labels cannot be used, or all pixels are within a grey level of the lowest value.
        """
        found: list[Tensor] = []
        for x, _ in self.epoch(check=True):
            found.append(x)
            if sum(map(len, found)) >= images:
                break
        if not found:
            raise InputError(f"{self.name} gave no batch of two images or more; give at least one")
        there = torch.cat(found)
        (low, high), most = self.pixel_range, there.max().item()
        if low < most <= low + GREY_LEVEL * (high - low):
            raise InputError(
                f"{self.name}: pixels reach {most:.4g} at most, a 255th of pixel_range={self.pixel_range} or less, as "
                "if divided by 255 once too often; give them in that range, or set pixel_range"
            )
        return there[:images]
