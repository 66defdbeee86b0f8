"""NNI's evaluators in two processes; Lightning's is in `test_lightning`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import in_ranks
import pytest
from launched import launch


@pytest.mark.parametrize(
    ("train", "folder"), [(in_ranks.train_by_torch_evaluator, False), (in_ranks.train_by_transformers, True)]
)
def test_processes_end_with_the_same_weights_and_masks(train: Callable[..., Any], folder: bool, tmp_path: Path) -> None:
    first, second = launch(train, *([tmp_path] if folder else []))
    assert first == second
    assert first["trained"]
