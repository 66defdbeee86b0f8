"""Runs that are interrupted, and how they end after they are resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.runs.callbacks import read_metrics


class InterruptAt(Callback):
    """KeyboardInterrupt after this step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, status: Status) -> None:
        if status.step == self.step:
            raise KeyboardInterrupt


def same_end(a: Path, b: Path, files: Sequence[str] = ("pruned.safetensors", "masks.safetensors")) -> None:
    """Bit-equal masks and weights, and the same figures on the way there."""
    for file in files:
        first, second = load_file(a / file), load_file(b / file)
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())

    def figures(folder: Path) -> list[dict[str, Any]]:
        clocks = {"seconds", "images_per_second"}
        return [{k: v for k, v in line.items() if k not in clocks} for line in read_metrics(folder / "metrics.jsonl")]

    assert figures(a) == figures(b)
