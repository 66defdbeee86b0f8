"""When a training updates and prunes, and what it takes out of a batch."""

from __future__ import annotations

from typing import Any

import pytest

from pwoa_plugin.config import ADMMConfig
from pwoa_plugin.nni.training import Plan, plan_alone, plan_scheduled


@pytest.mark.parametrize(
    ("fields", "steps", "per_epoch", "plan"),
    [
        ({}, 40, None, Plan(0, 9, 10)),  # a quarter of the steps is ADMM's
        ({}, 7, None, None),  # which leaves a single step: prune at once
        ({"epochs": 0}, 40, 6, None),
        ({"epochs": 3}, 40, 6, Plan(0, 17, 18)),
    ],
)
def test_alone(fields: dict[str, Any], steps: int, per_epoch: int | None, plan: Plan | None) -> None:
    assert plan_alone(ADMMConfig(**fields), steps, per_epoch) == plan


@pytest.mark.parametrize(
    ("steps", "prune"),
    [(50, 50), (51, 50), (54, 52), (200, 60), (30, 50), (None, 60)],
)
def test_in_a_scheduler_the_weights_get_time_to_follow_the_last_update(steps: int | None, prune: int) -> None:
    plan = plan_scheduled(interval=10, times=5, steps=steps)
    assert plan == Plan(10, 50, prune, scheduled=True)
    assert steps is None or steps < 50 or steps - plan.prune >= plan.prune - plan.last_update
