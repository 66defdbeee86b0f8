"""Natural images from whatever holds them, as batches ``(x, y or None)`` on a device."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from .. import _ranks
from .._data import (
    as_images,
    as_labels,
    check_classes,
    check_first,
    collates_plainly,
    is_whole,
    loader_of,
    refuse_no_batches,
    samples_of,
    scale_note,
    split_batch,
    whole_set,
)
from .._random import random_state, set_random_state
from .._reading import retold
from ..errors import InputError
from .shares import Share, read_from, share_of

_logger = logging.getLogger(__name__)


class _TensorLoader:
    """Images ``x``, with or without labels ``y``, in a new order in each epoch."""

    def __init__(self, x: Tensor, y: Tensor | None, batch_size: int) -> None:
        self.x, self.y, self.batch_size = x, y, batch_size

    @property
    def sizes(self) -> list[int]:
        """Images in each batch."""
        return [min(self.batch_size, len(self.x) - at) for at in range(0, len(self.x), self.batch_size)]

    def batches_from(self, start: int, shared: bool = False) -> Iterator[tuple[Tensor, Tensor | None]]:
        """An epoch from batch ``start`` on; draws the order of the whole epoch at once.

        ``shared``: this process's part of each batch, in the order of rank 0.
        """
        order = torch.randperm(len(self.x))
        if shared:
            order = _ranks.from_main(order)
        whole = order.to(self.x.device).split(self.batch_size)[start:]
        parts = map(_ranks.own_part, whole) if shared else whole
        return ((self.x[index], None if self.y is None else self.y[index]) for index in parts)


def _divided(images: int, size: int) -> tuple[int, int]:
    """The number of batches, and of those with one image."""
    whole, rest = divmod(images, size)
    return whole + (rest > 0), whole if size == 1 else int(rest == 1)


class Batches:
    """Batches of natural images, read again in every epoch.

    A batch of one image is left out if there are others: BatchNorm cannot train on it, and HSIC is not defined.

    Args:
        source: a DataLoader or another iterable of batches that can be read again; a Dataset; or ``(x, y)`` or ``x``
            whole. A batch is ``(x, y)``, ``(x, y, ...)``, ``x`` or a dict; ``x`` and ``y`` as `_data` reads them.
        batch_size: for a Dataset, and for images given whole; or a function of the number of images.
        device: of the batches.
        dtype: of the images that come out, the model's.
        pixel_range: ``(low, high)`` of a valid image.
        labels_because: why labels are needed; None: they are not.
        reads_labels: read labels where the data has some, needed or not; otherwise ``y`` is None.
        name: of the source in messages.
        shared: whether each process of several gets its share (see `shares`), rather than all images.

    Attributes:
        classes: the number of logits, against which labels are checked; None until it is known.
        read: batches of this epoch that were read, including those left out.
        weight: of the mean over the last batch's images in the mean over those of all processes.

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
        reads_labels: bool = False,
        name: str = "train_loader",
        shared: bool = False,
    ) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self.pixel_range, self.labels_because = pixel_range, labels_because
        self._reads_labels = reads_labels or labels_because is not None
        self.classes: int | None = None
        self.read, self.weight = 0, 1.0
        self._said: str | None = None
        if is_whole(source):
            x, y = whole_set(source, name, labelled=labels_because is not None)
            size = batch_size if isinstance(batch_size, int) else batch_size(len(x))
            source = _TensorLoader(x, y if self._reads_labels else None, size)
        elif (samples := samples_of(source)) is not None:
            if (count := len(samples)) == 0:
                raise InputError(f"{name}: the data set is empty; give natural images")
            size = batch_size if isinstance(batch_size, int) else batch_size(count)
            labelled, of_one = labels_because is not None, count > 1 and count % size == 1
            source = loader_of(samples, size, name, labelled=labelled, shuffle=True, drop_last=of_one)
        elif isinstance(refuse_no_batches(source, name), Iterator):
            raise InputError(f"{name} is an iterator that can be read once only; give a DataLoader or a list")
        self._source = source
        self._share = share_of(source, name) if shared and _ranks.several() else None

    def __len__(self) -> int:
        """Batches in an epoch, without those left out; InputError if there is none."""
        there, of_one = self._counts
        return there - of_one if there > 1 else 1

    @cached_property
    def _counts(self) -> tuple[int, int]:
        """The number of batches, and of those with one image as far as the source tells."""
        if self._share is not None:
            return self._count_shared(self._share), 0
        there, of_one = self._count()
        if there == 0:
            raise InputError(f"{self.name} is empty; give at least one batch of natural images")
        if of_one == there > 1:
            raise InputError(
                f"{self.name} gives batches of one image, which neither BatchNorm nor HSIC can use; give "
                "batches of 2 or more"
            )
        return there, of_one

    def _count_shared(self, share: Share) -> int:
        sizes = share.sizes()
        least = min(_ranks.gathered(self._count()[0])) if sizes is None else len(sizes)
        if least == 0:
            raise InputError(
                f"{self.name} gives no batch of two images for each of {_ranks.size()} processes; give larger ones"
            )
        return least

    def _count(self) -> tuple[int, int]:
        source = self._source
        if isinstance(source, _TensorLoader):
            return _divided(len(source.x), source.batch_size)
        with contextlib.suppress(TypeError):  # no length after all
            # The user's own collate_fn may make anything of a batch.
            if isinstance(source, DataLoader) and source.batch_size and collates_plainly(source):
                images: Any = source.dataset if isinstance(source.dataset, IterableDataset) else source.sampler
                counted = _divided(len(images), source.batch_size)
                if counted[0] == len(source):
                    return counted
            if not isinstance(source, (list, tuple)):
                return len(source), 0
        sizes = [len(x) if hasattr(x, "__len__") else 0 for x, _ in self._raw(0, {})]
        return len(sizes), sizes.count(1)

    def _raw(self, start: int, random_state: Mapping[str, Tensor], alone: bool = False) -> Iterator[tuple[Any, Any]]:
        if self._share is not None and not alone:
            batches = self._share.batches_from(start)
        elif hasattr(self._source, "batches_from"):  # skips without reading
            batches = self._source.batches_from(start)
        else:
            batches = read_from(self._source, start)
        if start:
            self.set_random_state(random_state)
        for batch in retold(batches, self.name):
            yield split_batch(batch, self.name, labelled=self.labels_because is not None)

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
        self,
        *,
        check: bool = False,
        start: int = 0,
        random_state: Mapping[str, Tensor] | None = None,
        alone: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """One epoch of batches.

        Args:
            check: check images and labels of every batch (InputError). For images on a GPU this waits for the device;
                runs do it in their first epoch only.
            start: skip this many batches, counted as in `read`. The order is drawn as for a whole epoch.
            random_state: set after the skipped batches.
            alone: give this process all images, and ask nothing of the others.
        """
        share = None if alone else self._share
        there = self._counts[0] if share is self._share else 2
        self.read = start
        for x, y in self._raw(start, random_state or {}, alone):
            self._log_scale(x)
            x = as_images(x, self.pixel_range, self.name, check=check)
            labels = None
            if y is None and self.labels_because is not None:
                raise InputError(f"{self.name} gives no labels, and {self.labels_because}")
            if y is not None and self._reads_labels:
                labels = as_labels(y, len(x), self.name, check=check)
                if check:
                    check_classes(labels, self.classes, self.name)
            self.read += 1
            if len(x) == 1 and there > 1:
                continue
            if share is not None:
                self.weight = len(x) * _ranks.size() / share.of_all(self.read - 1, len(x))
            x = x.to(self.device, self.dtype, non_blocking=True)
            yield x, None if labels is None else labels.classes.to(self.device, non_blocking=True)

    def set_epoch(self, epoch: int) -> None:
        """Tell sources that draw by it, as `DistributedSampler` does, the number of the epoch to come."""
        if self._share is not None:
            self._share.set_epoch(epoch)

    def _log_scale(self, x: Any) -> None:
        said = scale_note(x, self.pixel_range)
        if said is not None and said != self._said:
            _logger.info("%s: %s", self.name, said)
        self._said = said

    def first(self, images: int) -> Tensor:
        """``images`` images, or all if there are fewer, from the start of an epoch: checked, on the device.

        Of several processes, each reads its own.

        Raises:
            InputError: images or labels cannot be used, or all pixels are within a grey level of the lowest value.
        """
        found: list[Tensor] = []
        for x, _ in self.epoch(check=True, alone=True):
            found.append(x)
            if sum(map(len, found)) >= images:
                break
        if not found:
            raise InputError(f"{self.name} gave no batch of two images or more; give at least one")
        there = torch.cat(found)
        check_first(there, self.pixel_range, self.name)
        return there[:images]
