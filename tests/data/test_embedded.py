from __future__ import annotations

import hashlib

import torch

from pwoa_plugin.data import mnist_sample


def rows(images: torch.Tensor) -> list[bytes]:
    return [row.tobytes() for row in images.mul(255).round().byte().numpy()]


def test_split_is_stratified_disjoint_and_whole() -> None:
    to_prune, to_judge = mnist_sample()
    assert (len(to_prune), len(to_judge)) == (4000, 1000)
    assert to_prune.tensors[1].bincount().tolist() == [400] * 10
    assert to_judge.tensors[1].bincount().tolist() == [100] * 10
    x, y = to_judge[0]
    assert x.shape == (1, 28, 28)
    assert x.dtype == torch.float32
    assert 0 <= float(x.min()) < float(x.max()) <= 1
    assert y.dtype == torch.int64
    pruning, judged = rows(to_prune.tensors[0]), rows(to_judge.tensors[0])
    assert not set(pruning) & set(judged)
    assert to_judge.tensors[1][:20].unique().numel() > 4  # shuffled, not sorted by label


def test_split_never_moves() -> None:
    """The shipped LeNet was trained without just these 1,000 images."""
    judged = sorted(rows(mnist_sample()[1].tensors[0]))
    assert (
        hashlib.sha256(b"".join(judged)).hexdigest()
        == "9dec903c7085b34468d1a72db123d981a1016115d73fa14fc636785f75f10c7d"
    )


def test_another_seed_is_another_draw() -> None:
    assert set(rows(mnist_sample(1)[1].tensors[0])) != set(rows(mnist_sample(0)[1].tensors[0]))
