from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.nni.batch import BatchAdapter, take_images_and_labels, with_images

X, Y, NEW = torch.zeros(4, 1, 2, 2), torch.arange(4), torch.ones(3, 1, 2, 2)


@pytest.mark.parametrize(
    ("batch", "kind"), [((X, Y, "id"), tuple), ([X, Y], list), ({"x": X, "y": Y, "id": 7}, dict), (X, Tensor)]
)
def test_a_batch_with_other_images_has_the_same_form(batch: Any, kind: type) -> None:
    made = with_images(batch, X, NEW)
    assert isinstance(made, kind)
    if kind is Tensor:
        assert made is NEW
        return
    x, y, *rest = made.values() if kind is dict else made
    assert x is NEW
    assert torch.equal(y, Y[:3])
    assert rest == (list(batch.values()) if kind is dict else list(batch))[2:]


def test_an_adapter_puts_images_into_a_batch() -> None:
    adapter = BatchAdapter(nn.Flatten(), lambda batch, model: model(batch[0]) + batch[1][:, None])
    with adapter.about((X, Y), X):
        assert torch.equal(adapter(NEW), torch.ones(3, 4) + Y[:3, None])
    with pytest.raises(RuntimeError, match="no batch"):
        adapter(NEW)


def test_images_and_labels_of_a_batch() -> None:
    x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    batches: list[Any] = [(x, y), [x, y, "a path"], {"pixel_values": x, "labels": y}, {"x": x, "y": y}]
    for batch in batches:
        images, labels = take_images_and_labels(batch)
        assert images is x
        assert labels is y
    assert take_images_and_labels(x) == (x, None)
    assert take_images_and_labels([x]) == (x, None)
    for bad in ({"input_ids": y}, "text", []):
        with pytest.raises(ValueError, match="pass take_batch="):
            take_images_and_labels(bad)
