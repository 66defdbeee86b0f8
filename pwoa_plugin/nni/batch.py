"""An evaluator's batches: their images and labels, and a network's answer to a batch with other images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .._wrapped import NetworkWrapper
from ..errors import InputError

#: From an evaluator's batch to images and labels.
TakeBatch = Callable[[Any], tuple[Tensor, Tensor | None]]

#: NNI's ``teacher_predict``: from a batch and a network to the network's answer.
Predict = Callable[[Any, nn.Module], Any]


def take_images_and_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    """``(x, y)`` of a loader's batch: a tuple or list, a dict of ``pixel_values`` and ``labels``, or ``x`` alone."""
    x = y = None
    if isinstance(batch, Tensor):
        x = batch
    elif isinstance(batch, Mapping):
        x, y = batch.get("pixel_values", batch.get("x")), batch.get("labels", batch.get("y"))
    elif isinstance(batch, (tuple, list)):
        x, y = (*batch, None, None)[:2]
    if not isinstance(x, Tensor):
        what = f"keys {list(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise InputError(f"no images in a batch ({what}); pass take_batch=, a function from your batch to (x, y)")
    return x, y


def with_images(batch: Any, images: Tensor, x: Tensor) -> Any:
    """A batch of the same form with ``x`` in place of its ``images``; its other tensors are cut to ``len(x)``."""

    def put(value: Any) -> Any:
        if value is images:
            return x
        return value[: len(x)] if isinstance(value, Tensor) and value.shape[:1] == images.shape[:1] else value

    return tree_map(put, dict(batch) if isinstance(batch, Mapping) else batch)


class BatchAdapter(NetworkWrapper):
    """A network that answers images through ``predict``, which takes a batch."""

    def __init__(self, module: nn.Module, predict: Predict) -> None:
        super().__init__()
        self.module, self.predict = module, predict
        self._batch: tuple[Any, Tensor] | None = None

    @contextmanager
    def about(self, batch: Any, images: Tensor) -> Iterator[None]:
        """Put images meanwhile into ``batch``, in place of its own ``images``."""
        self._batch = (batch, images)
        try:
            yield
        finally:
            self._batch = None

    def forward(self, x: Tensor) -> Any:
        if self._batch is None:
            raise RuntimeError("no batch to put images into; call inside about()")
        return self.predict(with_images(*self._batch, x), self.module)
