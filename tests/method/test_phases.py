"""ADMM, gradual pruning and fine-tuning as phases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pwoa_plugin.method.phases import ADMMConfig, ADMMPhase, GradualConfig, GradualPhase, TuningPhase, phase_lengths
from pwoa_plugin.method.snapshot import StateError
from pwoa_plugin.method.targets import MaskTarget, mask_target


def target_of(model: nn.Module, sparsity: float = 0.75) -> MaskTarget:
    target = mask_target(model, sparsity)
    target.begin()
    return target


@pytest.mark.parametrize(
    ("total", "admm", "gradual", "one_cut", "per_epoch", "expected"),
    [
        (12, {}, {}, False, 1, (0, 6)),
        (120, {}, {}, False, 10, (0, 60)),
        (120, {"rho": 0.2}, {}, False, 10, (30, 0)),
        (120, {"epochs": 3}, {}, False, 10, (30, 0)),
        (120, {"epochs": 3}, {"epochs": 2}, False, 10, (30, 20)),
        (120, {}, {}, True, 10, (30, 0)),
        (1, {}, {}, False, 1, (0, 0)),
    ],
)
def test_lengths_are_the_same_share_in_epochs_and_in_steps(
    total: int, admm: dict[str, Any], gradual: dict[str, Any], one_cut: bool, per_epoch: int, expected: tuple[int, int]
) -> None:
    found = phase_lengths(total, ADMMConfig(**admm), GradualConfig(**gradual), one_cut=one_cut, per_epoch=per_epoch)
    assert found == expected


def test_rho_reaches_its_cap_within_the_phase(trained: nn.Module) -> None:
    phase = ADMMPhase(target_of(trained), ADMMConfig(rho=0.1, rho_max=10.0), 20)
    phase.begin()
    for _ in range(20):
        phase.after_step()
    assert phase.admm is not None
    assert phase.admm.rho == pytest.approx(10.0)
    assert phase.done == 20


def test_the_penalty_is_what_is_added_to_gradients(trained: nn.Module) -> None:
    phase = ADMMPhase(target_of(trained), ADMMConfig(), 4)
    assert phase.penalty() is None
    phase.begin()
    penalty = phase.penalty()
    assert penalty is not None
    assert penalty > 0
    weight = trained.fc1.weight
    (by_autograd,) = torch.autograd.grad(penalty, weight)
    weight.grad = torch.zeros_like(weight)
    phase.after_backward()
    torch.testing.assert_close(weight.grad, by_autograd)


def test_dual_updates_end_where_they_are_told_to(trained: nn.Module) -> None:
    phase = ADMMPhase(target_of(trained), ADMMConfig(), 9, interval=2, last_update=4)
    phase.begin()
    updates = []
    for _ in range(9):
        phase.after_step()
        assert phase.admm is not None
        updates.append(phase.admm.updates)
    assert updates == [0, 1, 1, 2, 2, 2, 2, 2, 2]
    phase.finish()
    assert phase.admm is None
    assert phase.residual is not None
    assert 0 < phase.residual < 1


def test_cuts_on_the_way_and_none_at_the_end(trained: nn.Module) -> None:
    target, checks = target_of(trained), []
    phase = GradualPhase(target, GradualConfig(interval=2), 6, check=lambda: checks.append(phase.done))
    phase.begin()
    zeros = []
    for _ in range(6):
        phase.after_step()
        zeros.append(float((trained.fc1.weight == 0).float().mean()))
    assert checks == [2, 4]
    assert zeros[0] == 0 < zeros[1] == zeros[2] < zeros[3] == zeros[5]
    assert not target.done


def test_a_state_is_of_its_own_phase(trained: nn.Module) -> None:
    target = target_of(trained)
    phase = ADMMPhase(target, ADMMConfig(), 8)
    phase.begin()
    for _ in range(3):
        phase.after_step()
    again = ADMMPhase(target, ADMMConfig(), 8)
    again.load_state(phase.state())
    assert (again.done, again.rho, again.residual) == (phase.done, phase.rho, phase.residual)
    assert again.admm is not None
    assert phase.admm is not None
    assert all(torch.equal(u, again.admm.u[name]) for name, u in phase.admm.u.items())
    with pytest.raises(StateError, match="in phase admm"):
        TuningPhase(3).load_state(phase.state())


@pytest.mark.parametrize(
    ("given", "steps", "interval"), [(None, 1000, 20), (None, 4800, 100), (None, 16, 1), (None, 0, 1), (7, 9, 7)]
)
def test_about_48_cuts_by_default(trained: nn.Module, given: int | None, steps: int, interval: int) -> None:
    assert GradualPhase(target_of(trained), GradualConfig(interval=given), steps).interval == interval
