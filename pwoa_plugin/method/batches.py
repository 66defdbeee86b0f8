"""Natural images as users hold them, as batches ``(x, y or None)`` on a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from .._pixels import GREY_LEVEL
from .._random import random_state, set_random_state
from ..errors import InputError


def _is_pair(source: Any) -> bool:
    """Whether this is one pair of tensors, and not a list of batches of images."""
    if not isinstance(source, (tuple, list)) or not source or not all(isinstance(p, Tensor) for p in source[:2]):
        return False
    return isinstance(source, tuple) or (len(source) == 2 and source[1].dim() == 1)


def check_images(x: Any, pixel_range: tuple[float, float], where: str) -> None:
    """Refuse what is no batch of images in range.

    Raises:
        ValueError: ``x`` is no float tensor ``(N, C, H, W)``, is empty, or is not finite and within ``pixel_range``.
    """
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
        what = f"a tensor {tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InputError(f"{where}: images are {what}; give float tensors (N, C, H, W), as ToTensor() does")
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
    """Refuse what are no class indices for so many images.

    Raises:
        ValueError: ``y`` is no integer tensor ``(images,)``, or has a label outside ``[0, classes)``.
    """
    if not isinstance(y, Tensor) or y.is_floating_point() or y.shape != (images,):
        what = f"a tensor {tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise InputError(f"{where}: labels are {what}; give int64 class indices of shape ({images},)")
    least, most = (int(value) for value in y.aminmax())
    if classes is not None and not (least >= 0 and most < classes):
        raise InputError(
            f"{where}: labels reach from {least} to {most}, and the model has {classes} classes; "
            f"give indices from 0 to {classes - 1}"
        )


def _divided(images: int, size: int) -> tuple[int, int]:
    """Batches that so many images make, and how many of them have one image."""
    whole, rest = divmod(images, size)
    return whole + (rest > 0), whole if size == 1 else int(rest == 1)


class Batches:
    """Batches of natural images, read again at every epoch.

    A batch of one image is left out where there are others: BatchNorm cannot train on it, and HSIC is not defined.

    Args:
        source: a DataLoader or another iterable that can be read again and gives ``(x, y)``, ``(x, ...)`` or ``x``;
            a Dataset; or tensors ``(x, y)`` or ``x``.
        batch_size: where ``source`` does not batch by itself.
        device: where batches go.
        dtype: of the images that come out, the model's.
        pixel_range: what images are checked against.
        labels_because: why labels are needed, or None where they are not; ``y`` is None then if missing.
        name: of the source in messages.

    Attributes:
        read: batches of this epoch that were read so far, with those left out.

    Raises:
        ValueError: the source is missing, empty, can be read once only, or holds something else than images.
    """

    def __init__(
        self,
        source: Any,
        *,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        pixel_range: tuple[float, float] = (0.0, 1.0),
        labels_because: str | None = None,
        name: str = "train_loader",
    ) -> None:
        self.name = name
        if source is None:
            raise InputError(f"{self.name} is missing; give a DataLoader, a Dataset or tensors of natural images")
        self.device, self.dtype = device, dtype
        self.pixel_range, self.labels_because = pixel_range, labels_because
        self.classes: int | None = None  # once known, labels are checked against it
        self._tensors: tuple[Tensor, Tensor | None] | None = None
        self._batch_size = batch_size
        if isinstance(source, Tensor):
            source = (source,)
        if _is_pair(source):
            x, y = source[0], source[1] if len(source) > 1 else None
            if y is not None and len(x) != len(y):
                raise InputError(f"{self.name}: {len(x)} images and {len(y)} labels; give as many of each")
            self._tensors = (x, y)
        if self._tensors is None and isinstance(source, Dataset) and not isinstance(source, IterableDataset):
            if not isinstance(source, Sized) or len(source) == 0:
                raise InputError(f"{self.name}: the data set is empty; give natural images")
            source = DataLoader(
                source, batch_size=batch_size, shuffle=True, drop_last=len(source) > 1 and len(source) % batch_size == 1
            )
        if self._tensors is None and not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
            raise InputError(f"{self.name} is a {type(source).__name__}; give a DataLoader, a Dataset or tensors")
        if self._tensors is None and isinstance(source, Iterator):
            raise InputError(f"{self.name} is an iterator that can be read once only; give a DataLoader or a list")
        self._source = source
        self._length: int | None = None
        self._there = 0
        self.read = 0

    def __len__(self) -> int:
        """Batches in an epoch, without those left out; counted by reading them where the source does not know.

        Raises:
            ValueError: there is none, or each has one image.
        """
        if self._length is None:
            self._there, of_one = self._count()
            if self._there == 0:
                raise InputError(f"{self.name} is empty; give at least one batch of natural images")
            if of_one == self._there > 1:
                raise InputError(
                    f"{self.name} gives batches of one image, which neither BatchNorm nor HSIC can use; give "
                    "batches of 2 or more"
                )
            self._length = self._there - of_one if self._there > 1 else 1
        return self._length

    def _count(self) -> tuple[int, int]:
        """How many batches there are, and how many of them have one image (as far as the source tells)."""
        source = self._source
        with contextlib.suppress(TypeError):  # of what has no length after all
            if self._tensors is not None:
                return _divided(len(self._tensors[0]), self._batch_size)
            if not isinstance(source, (list, tuple)):
                there, of_one = len(source), 0
                # A collate_fn of one's own may make anything of a batch.
                if isinstance(source, DataLoader) and source.batch_size and source.collate_fn is default_collate:
                    counted = _divided(len(source.sampler), source.batch_size)  # type: ignore[arg-type]
                    of_one = counted[1] if counted[0] == there else 0
                return there, of_one
        sizes = [len(x) if isinstance(x, Tensor) and x.dim() else 0 for x, _ in self._raw(0, {})]
        return len(sizes), sizes.count(1)

    def _raw(self, start: int, random_state: Mapping[str, Tensor]) -> Iterator[tuple[Any, Any]]:
        if self._tensors is not None:
            x, y = self._tensors
            order = torch.randperm(len(x)).to(x.device)
            if start:
                self.set_random_state(random_state)
            for index in order.split(self._batch_size)[start:]:
                yield x[index], None if y is None else y[index]
            return
        if hasattr(self._source, "batches_from"):  # our own loaders begin later without reading what is left out
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
                if not batch:
                    raise InputError(f"{self.name} gives an empty tuple; give (x, y) or x")
                yield batch[0], batch[1] if len(batch) > 1 else None
            else:
                yield batch, None

    def _checked(self, x: Any, y: Any) -> tuple[Tensor, Tensor | None]:
        check_images(x, self.pixel_range, self.name)
        if self.labels_because is None:
            return x, None
        if y is None:
            raise InputError(f"{self.name} gives no labels, and {self.labels_because}")
        check_labels(y, len(x), self.classes, self.name)
        return x, y

    def random_state(self) -> dict[str, Tensor]:
        """The state of all that the source may draw from: global generators, a DataLoader's own and its samplers'."""
        return random_state() | {f"loader.{i}": own.get_state() for i, own in enumerate(self._generators())}

    def _generators(self) -> list[torch.Generator]:
        """Those of a DataLoader and of its samplers; what a data set or a sampler hides elsewhere is not known here."""
        sampler, batch_sampler = (getattr(self._source, name, None) for name in ("sampler", "batch_sampler"))
        places = (self._source, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
        found = [getattr(place, "generator", None) for place in places]
        return list(dict.fromkeys(generator for generator in found if isinstance(generator, torch.Generator)))

    def set_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `random_state` gave."""
        set_random_state(state)
        for i, own in enumerate(self._generators()):
            if f"loader.{i}" in state:
                own.set_state(state[f"loader.{i}"])

    def epoch(
        self, *, check: bool = False, start: int = 0, random_state: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """One epoch of batches.

        Args:
            start: leave out this many batches at the beginning, counted as `read` does. Order and the like are drawn as
                in a whole epoch.
            random_state: the one to set after these.
            check: look at every batch's range and labels, not only at its form. On a GPU loader this waits for the
                device, so runs ask for it in their first epoch only.
        """
        len(self)
        self.read = start
        for x, y in self._raw(start, random_state or {}):
            if check:
                x, y = self._checked(x, y)
            elif self.labels_because is None:
                y = None
            self.read += 1
            if len(x) == 1 and self._there > 1:
                continue
            x = x.to(self.device, self.dtype, non_blocking=True)
            yield x, None if y is None else y.to(self.device, torch.int64, non_blocking=True)

    def first(self, images: int) -> Tensor:
        """About ``images`` images from the start of an epoch, checked, ``(N, C, H, W)`` on the device.

        Raises:
            ValueError: there are none, or they are not as stated.
        """
        found: list[Tensor] = []
        for x, _ in self.epoch(check=True):
            found.append(x)
            if sum(map(len, found)) >= images:
                break
        if not found:
            raise InputError(f"{self.name} is empty; give at least one batch of natural images")
        there = torch.cat(found)
        (low, high), most = self.pixel_range, there.max().item()
        if low < most <= low + GREY_LEVEL * (high - low):
            raise InputError(
                f"{self.name}: pixels reach {most:.4g} at most, a 255th of pixel_range={self.pixel_range} or less, as "
                "if divided by 255 once too often; give them in that range, or set pixel_range"
            )
        return there[:images]
