"""The sections of the method together."""

from __future__ import annotations

from typing import Any

import pytest

from pwoa_plugin.config import PwoAConfig
from pwoa_plugin.method.settings import TrainingConfig


@pytest.mark.parametrize(
    ("fields", "admm", "gradual"),
    [
        ({"epochs": 12}, 0, 6),
        ({"epochs": 1}, 0, 0),
        ({"epochs": 12, "admm": {"epochs": 0}}, 0, 0),  # at once
        ({"epochs": 12, "admm": {"rho": 0.3}}, 3, 0),  # whoever sets ADMM wants it
        ({"epochs": 12, "gradual": {"epochs": 0}}, 3, 0),
        ({"epochs": 12, "gradual": {"epochs": 9}}, 0, 9),
        ({"epochs": 12, "gradual": {"interval": 5}}, 0, 6),
        ({"epochs": 12, "admm": {"rho": 0.3}, "gradual": {"interval": 5}}, 3, 6),
        ({"epochs": 12, "admm": {"epochs": 2}, "gradual": {"epochs": 4}}, 2, 4),
        ({"epochs": 12, "granularity": "2:4"}, 3, 0),
        ({"epochs": 2, "granularity": "structured"}, 1, 0),
    ],
)
def test_phases_that_nothing_is_said_of(fields: dict[str, Any], admm: int, gradual: int) -> None:
    config = PwoAConfig(**({} if fields.get("granularity") == "2:4" else {"sparsity": 0.5}) | fields)
    assert (config.admm_epochs, config.gradual_epochs) == (admm, gradual)


def test_the_default_allocation_is_that_of_the_sparsity_set() -> None:
    assert TrainingConfig(sparsity=0.5).allocation == "lamp"
    assert TrainingConfig(sparsity=0.5, granularity="structured").allocation == "uniform"
    assert TrainingConfig(sparsity=0.5, granularity="structured", allocation="erk").allocation == "erk"


def test_options_of_kinds_are_checked_before_training() -> None:
    made = TrainingConfig(sparsity=0.5, perturbation={"kind": "block", "options": {"scales": [3]}})
    assert made.perturbation.options == {"scales": [3]}
    for fields, message in (
        ({"perturbation": {"options": {"scale": 3}}}, "perturbation.*Patterns has no option 'scale'; it has scales"),
        ({"perturbation": {"options": {"scales": [0]}}}, "perturbation.*scales=.* 1 pixel or more"),
        ({"hsic": {"options": {"width": 3}}}, "hsic.*NormalizedHSIC has no option 'width'; it has none"),
        ({"hsic": {"estimator": "mutual"}}, "hsic.estimator='mutual' is unknown; use one of nhsic, hsic"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainingConfig(sparsity=0.5, **fields)
