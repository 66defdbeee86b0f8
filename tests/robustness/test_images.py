"""Images as they are collected and drawn; what is refused is in test_evaluation.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.robustness.images import Images, collect

Pair = tuple[Tensor, Tensor]


def test_all_forms_collect_to_the_same_images(held_out: Pair) -> None:
    images, labels = held_out
    expected = collect(held_out, (0.0, 1.0))
    assert torch.equal(expected.pixels, images)
    assert expected.width is None
    one_hot = collect([(images, nn.functional.one_hot(labels, 10).bool())], (0.0, 1.0))
    assert one_hot.width == 10
    for other in (one_hot, collect([(images.double(), labels.int())], (0.0, 1.0))):
        assert torch.equal(other.pixels, expected.pixels)
        assert torch.equal(other.labels, labels)


def test_a_draw_keeps_images_and_labels_together(held_out: Pair) -> None:
    whole = Images(*held_out, width=10)
    drawn = whole.drawn(30, seed=1)
    assert drawn.width == 10
    for pixels, label in zip(drawn.pixels, drawn.labels, strict=True):
        at = (whole.pixels == pixels).flatten(1).all(1)
        assert label in whole.labels[at]
    assert torch.equal(whole.drawn(200, seed=1).pixels, whole.pixels)


def test_classes_are_checked_against_the_model(held_out: Pair) -> None:
    Images(*held_out).check_classes(10)
    with pytest.raises(ValueError, match="labels reach from 0 to 9, and the model has 9 classes"):
        Images(*held_out).check_classes(9)
    with pytest.raises(ValueError, match="one-hot over 11 classes, and the model has 10"):
        Images(*held_out, width=11).check_classes(10)
