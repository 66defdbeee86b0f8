"""Each process's share of the training batches: every image of an epoch goes to one process, and none to two.

Rank 0 draws the order. A batch is of all processes together: each takes a slice of it, and slices differ by one image
at most. A batch of fewer than two images for each process is left out, as one image is in one process.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from .. import _ranks
from .._data import split_batch
from ..errors import InputError

_logger = logging.getLogger(__name__)

# WebDataset's stages of which each process reads its own part, or draws its own; the last refuses several processes.
_SPLITTING = ("split_by_node", "ResampledShards", "resampled_", "single_node_only")


def is_enough(images: int) -> bool:
    """Whether a batch has two images or more for each process."""
    return images >= 2 * _ranks.size()


def read_from(source: Any, start: int) -> Iterator[Any]:
    """The batches of a source from number ``start`` on; those before are read now."""
    batches: Iterator[Any] = iter(source)
    for _ in range(start):
        next(batches, None)
    return batches


class Share(ABC):
    """This process's part of a source of batches."""

    @abstractmethod
    def sizes(self) -> list[int] | None:
        """Images in each batch, of all processes together; None: each process has batches of its own."""

    @abstractmethod
    def batches_from(self, start: int) -> Iterator[Any]:
        """This process's part of the batches of a new epoch, from batch ``start`` on; all processes call it."""

    def of_all(self, number: int, own: int) -> float:
        """Images of all processes in batch ``number`` of the epoch, of which ``own`` are this process's."""
        sizes = self.sizes()
        return own * _ranks.size() if sizes is None else sizes[number]

    def set_epoch(self, epoch: int) -> None:  # noqa: B027 (most draw anew by themselves)
        """Called before each epoch."""


class _OfParts(Share):
    """A share of a source that takes its part itself: ``batches_from(start, shared=True)``, of batches of ``sizes``."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def sizes(self) -> list[int]:
        return list(filter(is_enough, self._source.sizes))  # only the last is smaller

    def batches_from(self, start: int) -> Iterator[Any]:
        return islice(self._source.batches_from(start, shared=True), len(self.sizes()) - start)


class _OfList(Share):
    """A share of batches in a list, which is the same in all processes."""

    def __init__(self, batches: Sequence[Any], name: str) -> None:
        pairs = (split_batch(batch, name) for batch in batches)
        self._batches = [(x, y) for x, y in pairs if is_enough(len(x))]

    def sizes(self) -> list[int]:
        return [len(x) for x, _ in self._batches]

    def batches_from(self, start: int) -> Iterator[Any]:
        for x, y in self._batches[start:]:
            yield _ranks.own_part(x), None if y is None else _ranks.own_part(y)


class _OrderOfMain:
    """The batches of positions that rank 0's batch sampler draws; this process's part of each."""

    def __init__(self, of_all: Any) -> None:
        self._of_all = of_all
        self.sizes: list[int] | None = None
        if type(of_all) is BatchSampler:  # another has to be asked, which may draw
            images, size = len(of_all.sampler), of_all.batch_size  # type: ignore[arg-type]
            whole, rest = divmod(images, size)
            sizes = [size] * whole + [rest] * (rest > 0 and not of_all.drop_last)
            self.sizes = list(filter(is_enough, sizes))

    def whole(self) -> list[list[int]]:
        return [positions for positions in map(list, self._of_all) if is_enough(len(positions))]

    def __len__(self) -> int:
        return len(self._of_all)

    def __iter__(self) -> Iterator[list[int]]:
        batches = _ranks.from_main(self.whole() if _ranks.is_main() else [])
        self.sizes = [len(positions) for positions in batches]
        return map(_ranks.own_part, batches)


class _OfLoader(Share):
    """A share of a DataLoader, read by its own workers."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._order = _OrderOfMain(loader.batch_sampler)
        self._loader = copy.copy(loader)  # a DataLoader refuses another batch_sampler, and may be of a subclass
        vars(self._loader)["batch_sampler"] = self._order

    def sizes(self) -> list[int]:
        if self._order.sizes is None:
            self._order.sizes = _ranks.on_main(lambda: [len(positions) for positions in self._order.whole()])
        return self._order.sizes

    def batches_from(self, start: int) -> Iterator[Any]:
        return read_from(self._loader, start)


class _Own(Share):
    """Batches that are split before they come here: a stream, or a DataLoader with a `DistributedSampler`.

    Processes may have batches of different number: an epoch ends for all where the first has none left.
    """

    def __init__(self, loader: Any, name: str) -> None:
        self._loader, self._name = loader, name

    def sizes(self) -> None:
        return None

    def batches_from(self, start: int) -> Iterator[Any]:
        batches = read_from(self._loader, start)
        while True:
            batch = next(batches, None)
            there = _ranks.gathered(0 if batch is None else len(split_batch(batch, self._name)[0]))
            if min(there) == 0:
                if max(there) > 0:
                    _logger.info("%s: an epoch ends early: rank %d has no batch left", self._name, there.index(0))
                return
            if min(there) > 1:
                yield batch

    def set_epoch(self, epoch: int) -> None:
        for holder in (getattr(self._loader, "sampler", None), getattr(self._loader, "dataset", None)):
            if holder is not None and hasattr(holder, "set_epoch"):
                holder.set_epoch(epoch)


def share_of(source: Any, name: str) -> Share:
    """This process's share of a source that `Batches` reads.

    Raises:
        InputError: it cannot be split; the line says what to do.
    """
    if hasattr(source, "batches_from"):
        return _OfParts(source)
    if isinstance(source, (list, tuple)):
        return _OfList(source, name)
    if _is_said(source):
        return _Own(source, name)
    if isinstance(source, DataLoader) and not isinstance(source.dataset, IterableDataset):
        if source.batch_sampler is None:
            raise InputError(f"{name}: a DataLoader with batch_size=None cannot be split among processes; set it")
        return _OfLoader(source)
    return _stream(source, name)


def _is_said(source: Any) -> bool:
    """Whether a source says that each process reads only its own part, as one that Accelerate prepared does."""
    sampled = isinstance(getattr(source, "sampler", None), DistributedSampler)
    return (
        sampled
        or "accelerate" in _packages(source)
        or bool(getattr(getattr(source, "dataset", source), "sharded", False))
    )


def _stream(source: Any, name: str) -> Share:
    """The share of a stream: by the splitting that WebDataset and Hugging Face's ``datasets`` have themselves."""
    data = getattr(source, "dataset", source)
    if _is_split(data):
        return _Own(source, name)
    cure = "set its attribute sharded = True once each process reads only its own part"
    if "datasets" in _packages(data):
        cure = "split it by datasets.distributed.split_dataset_by_node(data, rank, world_size)"
    elif "webdataset" in _packages(data):
        cure = f"give it wds.split_by_node (as nodesplitter), or {cure}"
    raise InputError(
        f"{name}: a {type(data).__name__} cannot be split among {_ranks.size()} processes; give a Dataset, a "
        f"DataLoader of one, or tensors, or {cure}"
    )


def _is_split(data: Any) -> bool:
    """Whether a stream, or a stage of WebDataset's pipeline, gives each process its own part."""
    if _is_said(data) or ("datasets" in _packages(data) and getattr(data, "_distributed", None) is not None):
        return True
    if isinstance(data, DataLoader):  # of a WebLoader
        return _is_split(data.dataset)
    if "webdataset" in _packages(data):
        if mixed := getattr(data, "datasets", None):
            return all(map(_is_split, mixed))
        if stages := getattr(data, "pipeline", None):
            return any(map(_is_split, stages))
    function = getattr(data, "f", getattr(data, "func", data))  # of a stage or a partial with arguments
    names = {getattr(kind, "__name__", "") for kind in (function, *type(data).__mro__)}
    return not names.isdisjoint(_SPLITTING)


def _packages(data: Any) -> set[str]:
    """The packages that the classes of an object are from."""
    return {base.__module__.partition(".")[0] for base in type(data).__mro__}


def rows_of(x: Tensor, y: Tensor | None, parts: int) -> list[tuple[Tensor, Tensor | None]]:
    """A batch in so many parts, or fewer, so that each has two images or more."""
    parts = max(1, min(parts, len(x) // 2))
    if parts == 1:
        return [(x, y)]
    of_y = [None] * parts if y is None else y.tensor_split(parts)
    return list(zip(x.tensor_split(parts), of_y, strict=True))
