"""Optimizers that NNI can rebuild, and tasks around their steps."""

from __future__ import annotations

import nni
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, SequentialLR, StepLR

from pwoa_plugin.nni.evaluators.optimizers import check_optimizer, check_scheduler, patch_step


@pytest.mark.parametrize("with_closure", [False, True])
def test_tasks_run_around_each_step_with_its_gradients(with_closure: bool) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told: list[tuple[str, bool]] = []
    start = model.weight.detach().clone()

    def note(name: str) -> None:
        told.append((name, torch.equal(model.weight, start)))
        assert model.weight.grad is not None

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(3, 2)).sum()
        loss.backward()
        return loss

    patch_step(optimizer, [lambda: note("before")], [lambda: note("after")])
    if with_closure:
        assert optimizer.step(closure) is not None
    else:
        closure()
        optimizer.step()
    assert told == [("before", True), ("after", False)]


def test_what_nni_can_rebuild() -> None:
    model = nn.Linear(2, 1)
    optimizer = nni.trace(torch.optim.Adam)(model.parameters(), lr=0.1)
    check_optimizer(optimizer, model)
    for scheduler in (None, nni.trace(LambdaLR)(optimizer, lr_lambda=lambda step: 1.0)):
        check_scheduler(scheduler)
    with pytest.raises(ValueError, match=r"this Adam is not traced, .* nni\.trace\(torch\.optim\.Adam\)"):
        check_optimizer(torch.optim.Adam(model.parameters()), model)
    with pytest.raises(ValueError, match="this StepLR is not traced"):
        check_scheduler(StepLR(optimizer, 1))
    with pytest.raises(ValueError, match="cannot rebuild a SequentialLR"):
        check_scheduler(SequentialLR(optimizer, [StepLR(optimizer, 1), StepLR(optimizer, 1)], milestones=[3]))
