"""One definition of the weights that count."""

from __future__ import annotations

import torch
from torch import nn

from pwoa_plugin._weights import counted_weights
from pwoa_plugin.robustness.weights import count_weights
from pwoa_plugin.runs.size import size_report


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.embedding, self.free = nn.Embedding(9, 4), nn.Parameter(torch.ones(5, 5))


def test_comparisons_and_sizes_count_the_same_weights() -> None:
    torch.manual_seed(0)
    computed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    transformer = nn.TransformerEncoderLayer(16, 2, 32)
    for model, total in ((transformer, 2 * 16 * 32 + 16 * 16), (Tied(), 36), (computed, 24)):
        size, weights = size_report(model), count_weights(model)
        assert weights.total == size.weights == total
        assert weights.nonzero == size.nonzero
        assert list(counted_weights(model)) == [layer.name for layer in size.layers if layer.tied_to is None]
