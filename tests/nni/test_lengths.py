"""Lengths that the doors refuse."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pwoa_plugin import PwoADistiller, PwoAPruner, make_evaluator


@pytest.mark.parametrize("kind", ["pruner", "distiller"])
@pytest.mark.parametrize("field", ["max_steps", "max_epochs"])
def test_bad_lengths_are_refused(trained: nn.Module, images: tuple[Tensor, Tensor], kind: str, field: str) -> None:
    evaluator = make_evaluator(trained, DataLoader(TensorDataset(*images), batch_size=32))
    compressor: Any = (
        PwoAPruner(trained, [{"op_types": ["Linear"], "sparse_ratio": 0.5}], evaluator)
        if kind == "pruner"
        else PwoADistiller(trained, [], evaluator, trained)
    )
    compressor.unwrap_model()
    for length in (0, -3, "30", 1.5, True):
        with pytest.raises(ValueError, match=rf"^compress: {field}={length!r}; give an int of at least 1$"):
            compressor.compress(**{field: length})
    with pytest.raises(ValueError, match="give max_steps or max_epochs"):
        compressor.compress(3, 3)
    assert not compressor._is_wrapped
