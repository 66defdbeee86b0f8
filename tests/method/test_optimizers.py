"""Optimizers and learning rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pwoa_plugin.method.optimizers import OPTIMIZERS, OptimizerConfig, ScheduleConfig, ScheduledOptimizer, lr_factor
from pwoa_plugin.method.snapshot import StateError


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "constant"}, [1, 1, 1, 1]),
        ({"name": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"name": "cosine"}, [1, 0.853553, 0.5, 0.146447]),
        ({"name": "multistep", "milestones": (1,), "gamma": 0.5}, [1, 1, 0.5, 0.5]),
        ({"name": "cycle", "factors": (1.0, 0.2)}, [1, 1, 0.2, 0.2]),
        ({"name": "constant", "warmup": 0.5}, [0.5, 1, 1, 1]),
    ],
)
def test_schedules(schedule: dict[str, Any], expected: list[float]) -> None:
    got = [lr_factor(ScheduleConfig(**schedule), 4, 2, step) for step in range(4)]
    assert got == pytest.approx(expected, abs=1e-6)


def make(name: str, done: int = 0) -> tuple[nn.Linear, ScheduledOptimizer]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    config = OptimizerConfig(name=name, lr=0.1, weight_decay=0.01)
    made = ScheduledOptimizer(list(layer.parameters()), config, ScheduleConfig(), steps=8, per_epoch=2, done=done)
    return layer, made


def step(layer: nn.Linear, made: ScheduledOptimizer) -> float:
    made.optimizer.zero_grad()
    layer(torch.ones(1, 3)).square().sum().backward()
    made.optimizer.step()
    return made.next_lr()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimizer_goes_on_to_the_same_bits(name: str) -> None:
    straight, optimizer = make(name)
    rates = [step(straight, optimizer) for _ in range(3)]
    resumed, again = make(name, done=3)
    resumed.load_state_dict(straight.state_dict())
    again.load_state(optimizer.state())
    rates += [step(straight, optimizer) for _ in range(2)]
    assert [step(resumed, again) for _ in range(2)] == rates[3:]
    assert torch.equal(straight.weight, resumed.weight)
    assert rates[0] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)


def test_a_state_of_other_parameters_is_refused() -> None:
    layer, made = make("adam")
    step(layer, made)
    saved = made.state()
    saved.tensors["7.exp_avg"] = torch.zeros(2)
    with pytest.raises(StateError, match=r"'7.exp_avg' fits no parameter"):
        made.load_state(saved)
