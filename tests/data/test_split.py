from __future__ import annotations

import hashlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from pwoa_plugin.data.split import stratified_order


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_every_beginning_has_the_classes_in_their_shares(labels: list[int], seed: int, data: st.DataObject) -> None:
    y = torch.tensor(labels)
    order = stratified_order(y, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    n = data.draw(st.integers(1, len(labels)))
    drawn = y[order[:n]].bincount(minlength=5)
    shares = y.bincount(minlength=5) * n / len(labels)
    # By the middles of their places, each class is within half an image, and all together settle the rest.
    assert (drawn - shares).abs().max() <= len(set(labels)) / 2 + 1e-9


def test_even_classes_stay_even() -> None:
    y = torch.arange(200) % 10
    assert y[stratified_order(y, 3)[:50]].bincount().tolist() == [5] * 10


def test_the_draw_never_moves() -> None:
    order = stratified_order(torch.arange(1000) % 7, 5)
    assert (
        hashlib.sha256(order.numpy().astype("<i8").tobytes()).hexdigest()
        == "ee1c4d154ca03b213f14bb1cd61366c21fc63c94a269415749afe3c436749f88"
    )
    assert not torch.equal(order, stratified_order(torch.arange(1000) % 7, 6))
