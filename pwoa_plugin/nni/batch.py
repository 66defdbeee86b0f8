"""An evaluator's batches: their images and labels, and a network's answer to a batch with other images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .._data import dims, split_batch
from .._logits import described
from .._wrapped import NetworkWrapper
from ..errors import InputError

#: From an evaluator's batch to images and labels.
TakeBatch = Callable[[Any], tuple[Any, Any]]

#: NNI's ``teacher_predict``: from a batch and a network to the network's answer.
Predict = Callable[[Any, nn.Module], Any]


def take_images_and_labels(batch: Any) -> tuple[Any, Any]:
    """``(x, y or None)`` of a loader's batch as it holds them: a tuple or list, a dict, or ``x`` alone."""
    cure = "pass take_batch=, a function from your batch to (x, y)"
    try:
        x, y = split_batch(batch, "a batch")
    except InputError as error:
        raise InputError(f"{error}, or {cure}") from None
    if dims(x) is None:
        raise InputError(f"no images in a batch ({described(x)}); {cure}")
    return x, y


def with_images(batch: Any, images: Any, x: Tensor) -> Any:
    """A batch of the same form with ``x`` in place of its ``images``; its other tensors are cut to ``len(x)``."""

    def put(value: Any) -> Any:
        if value is images:
            return x
        return value[: len(x)] if isinstance(value, Tensor) and value.shape[:1] == (len(images),) else value

    whole = dict(batch) if isinstance(batch, Mapping) else batch
    return tree_map(put, whole, is_leaf=lambda value: value is images)


class BatchAdapter(NetworkWrapper):
    """A network that answers images through ``predict``, which takes a batch."""

    def __init__(self, module: nn.Module, predict: Predict) -> None:
        super().__init__()
        self.module, self.predict = module, predict
        self._batch: tuple[Any, Any] | None = None

    @contextmanager
    def about(self, batch: Any, images: Any) -> Iterator[None]:
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
