"""The images that a config names: batches to train and validate with, tensors to judge with."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .. import _ranks
from .augment import crop_and_flip, draw_crops_and_flips
from .config import DATASETS, DataConfig
from .images import DataError, ImageSet
from .split import stratified_order


def data_set(config: DataConfig) -> type[ImageSet]:
    """The class of a config's data set."""
    module, _, name = DATASETS[config.name].partition(":")
    found: type[ImageSet] = getattr(importlib.import_module(f".{module}", __package__), name)
    return found


class Loader:
    """Batches of the images at the positions ``index``, read again in every epoch.

    A shuffled or augmented epoch draws one number from torch's global generator when it begins; its order, crops and
    flips follow from that. So the same global state gives the same batches, whatever else draws in between and with
    any number of workers. Other epochs draw nothing. When shuffled, a last batch of one image is dropped: batch norm
    cannot train on it.
    """

    def __init__(
        self, images: ImageSet, index: Tensor, *, batch_size: int, shuffle: bool = False, augment: bool = False
    ) -> None:
        self._images, self._index, self._batch_size = images, index, batch_size
        self._shuffle, self._augment = shuffle, augment

    @property
    def images(self) -> int:
        """The number of images to draw from."""
        return len(self._index)

    def __len__(self) -> int:
        whole, rest = divmod(len(self._index), self._batch_size)
        return whole + (rest > (1 if self._shuffle and whole else 0))

    @property
    def sizes(self) -> list[int]:
        """Images in each batch."""
        return [len(batch) for batch in self._index.split(self._batch_size)][: len(self)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches_from(0)

    def batches_from(self, start: int, shared: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch from batch ``start`` on; earlier batches are not read. Draws as a whole epoch does.

        ``shared``: this process's part of each batch, in the order of rank 0.

        A batch is ``(x, y)``: ``x`` float32 ``(N, C, H, W)`` in [0, 1], ``y`` int64 ``(N,)``.
        """
        generator = torch.Generator()
        if self._shuffle or self._augment:
            seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
            generator.manual_seed(_ranks.number_from_main(seed) if shared else seed)
        index = self._index
        if self._shuffle:
            index = index[torch.randperm(len(index), generator=generator)]
        changes = None
        if self._augment:
            corners, flips = draw_crops_and_flips(len(index), generator)
            changes = list(zip(corners.split(self._batch_size), flips.split(self._batch_size), strict=True))[start:]
        batches = list(index.split(self._batch_size)[start : len(self)])
        if shared:
            batches = list(map(_ranks.own_part, batches))
            changes = changes and [(_ranks.own_part(corner), _ranks.own_part(flip)) for corner, flip in changes]
        return self._make_batches(batches, changes)

    def _make_batches(
        self, batches: list[Tensor], changes: list[tuple[Tensor, Tensor]] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for number, (index, x) in enumerate(zip(batches, self._read(batches), strict=True)):
            if changes is not None:
                x = crop_and_flip(x, *changes[number])
            yield x.float().div_(255), self._images.labels[index]

    def _read(self, batches: list[Tensor]) -> Iterator[Tensor]:
        if self._images.workers == 0:
            yield from map(self._images.read, batches)
            return
        reading: DataLoader[Any] = DataLoader(
            batches,  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=self._read_in_worker,
            num_workers=min(self._images.workers, len(batches)),
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # or the global one would be drawn from, to seed the workers
        )
        for x in reading:
            if isinstance(x, DataError):
                raise x
            yield x

    def _read_in_worker(self, index: Any) -> Tensor | DataError:
        try:
            return self._images.read(index)
        except DataError as error:  # raised in a worker, it would arrive as a page of traceback
            return DataError(str(error))


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group; the run itself stops, and its workers with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class TrainingData(NamedTuple):
    """What a run trains with. The validation batches have a fixed order and are not augmented."""

    train: Loader
    validation: Loader | None
    classes: int
    shape: tuple[int, int, int]  # (C, H, W) of an image


def load_training(config: DataConfig, *, batch_size: int | Callable[[int], int]) -> TrainingData:
    """The training images, and those held out of them for validation.

    ``images`` are drawn by class first; the ``validation`` share is taken out of them, so ``images`` counts both.
    ``batch_size`` may be a function of the number of images to train with.
    """
    source = data_set(config)(config, train=True)
    classes, shape = source.describe(config)
    there = len(source.labels)
    used = there if config.images is None else config.images
    if used > there:
        raise DataError(f"data.images={used} is more than the {there} training images; leave it out to use them all")
    held_out = max(1, round(config.validation * used)) if config.validation else 0
    if used - held_out < 2:
        raise DataError(
            f"data.validation={config.validation:g} leaves {used - held_out} of {used} images to train on; "
            "lower it, or raise data.images"
        )
    if not isinstance(batch_size, int):
        batch_size = batch_size(used - held_out)
    order = stratified_order(source.labels, config.split_seed)[:used]
    augment = source.augmented if config.augment is None else config.augment
    train = Loader(source, order[held_out:], batch_size=batch_size, shuffle=True, augment=augment)
    validation = Loader(source, order[:held_out], batch_size=batch_size) if held_out else None
    return TrainingData(train, validation, classes, shape)


def load_test(
    config: DataConfig, *, images: int | None = None, at_most: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Test images ``(N, C, H, W)``, float32 in [0, 1], and labels ``(N,)``, int64, for `pwoa_plugin.evaluate`.

    Args:
        config: names the data.
        images: how many, drawn by class, in the order of the draw; None: all, in the data's own order. A value takes
            four bytes: 10,000 images of 3x224x224 are 6 GB.
        at_most: in place of ``images``: this many, or all if there are fewer.
        seed: of the draw.
    """
    source = data_set(config)(config, train=False)
    there = len(source.labels)
    if images is not None and not 1 <= images <= there:
        raise DataError(f"images={images} (--sample): the test set of {config.name} has {there}; give 1 to {there}")
    if images is None and at_most is not None and at_most < there:
        images = at_most
    index = torch.arange(there) if images is None else stratified_order(source.labels, seed)[:images]
    x = torch.empty(len(index), *source.describe(config)[1])
    done = 0
    for batch, _ in Loader(source, index, batch_size=256):  # batches in place: the images are in memory once
        x[done : done + len(batch)] = batch
        done += len(batch)
    return x, source.labels[index]
