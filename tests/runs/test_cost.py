from __future__ import annotations

import pytest
import torch
from torch import nn

from pwoa_plugin.models import LeNet, robust_lenet
from pwoa_plugin.runs.cost import CostReport, cost_report


def test_cost_is_of_both_networks_and_changes_neither() -> None:
    dense = robust_lenet().train()
    pruned = LeNet().eval().to(memory_format=torch.channels_last)
    pruned.fc1 = nn.Linear(1568, 16)
    pruned.fc2 = nn.Linear(16, 10)
    found = cost_report(dense, pruned, torch.rand(1, 1, 28, 28))
    assert isinstance(found, CostReport)
    # 5x5 kernels at 28x28 and 14x14, biases, then matrices; Torch-Pruning counts an operation of a bias, too.
    convolutions = 28 * 28 * 16 * 25 + 14 * 14 * 32 * 16 * 25 + 28 * 28 * 16 + 14 * 14 * 32
    assert found.dense.macs == convolutions + 1568 * 256 + 256 + 256 * 10 + 10
    assert found.pruned.macs == convolutions + 1568 * 16 + 16 + 16 * 10 + 10
    assert found.dense.parameters == 417_482
    assert 4 * 417_482 < found.dense.file_bytes < 4 * 417_482 + 2000
    assert set(found.speedup) == set(found.dense.latency_ms) == {"1", "128"}
    assert all(ms > 0 for ms in found.pruned.latency_ms.values())
    assert dense.training
    assert not pruned.training
    assert pruned.conv2.weight.is_contiguous(memory_format=torch.channels_last)


class SmallBatchesOnly(nn.Module):
    """Runs out of memory, as a large network does at batch 128."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.fc, self.error = nn.Linear(4, 2), error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            raise self.error("out of memory")
        return self.fc(x)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_batch_that_does_not_fit_has_no_latency(error: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    found = cost_report(SmallBatchesOnly(error), nn.Linear(4, 2), torch.rand(1, 4))
    assert found.dense.latency_ms["128"] is found.pruned.latency_ms["128"] is found.speedup["128"] is None
    assert found.dense.latency_ms["1"] is not None
    assert found.dense.macs > 0
    assert "latency of batch 128 is left out: out of memory" in caplog.text
