"""The sections of the method together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pwoa_plugin import PwoALoss
from pwoa_plugin.config import ConfigError, PwoAConfig
from pwoa_plugin.method.settings import TrainingConfig
from pwoa_plugin.method.trainer import Trainer


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


@pytest.mark.parametrize(
    ("fields", "share"),
    [
        ({}, 0.25),
        ({"optimizer": {"name": "adamw"}, "admm": {"epochs": 1, "optimizer": {"name": "adam"}}}, 0.25),
        ({"optimizer": {"name": "sgd"}}, 1.0),
        ({"admm": {"epochs": 1, "optimizer": {"name": "sgd"}}}, 1.0),
    ],
)
def test_sgd_has_all_terms_in_every_step(fields: dict[str, Any], share: float, trained: nn.Module) -> None:
    images = torch.rand(8, 1, 8, 8)
    config = PwoAConfig(sparsity=0.5, train_loader=images, epochs=2, hsic={"lambda_y": 0}, **fields)
    run = Trainer(trained, config)
    assert run.loss.default_share == share
    assert PwoALoss(trained).default_share == 1.0


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


@pytest.mark.parametrize(
    ("images", "fields", "epochs", "steps"),
    [
        (54_000, {}, 12, 422),
        (20_000, {}, 12, 157),
        (16_000, {}, 12, 125),
        (15_000, {}, 13, 118),
        (1_300, {"batch_size": 100}, 116, 13),
        (1_300, {"epochs": 12}, 12, 11),
        (100, {}, 375, 4),  # of 25 images
        (100, {"epochs": 5}, 5, 1),
        (20, {"batch_size": 32}, 1500, 1),
        (9, {}, 1500, 1),
    ],
)
def test_epochs_by_the_number_of_steps(
    images: int, fields: dict[str, Any], epochs: int, steps: int, trained: nn.Module
) -> None:
    x = torch.zeros(images, 1, 1, 1).expand(-1, 1, 8, 8)
    for source in (x, TensorDataset(x)):
        config = PwoAConfig(sparsity=0.5, train_loader=source, hsic={"lambda_y": 0}, **fields)
        trainer = Trainer(trained, config)
        assert (trainer.epochs, len(trainer.batches)) == (epochs, steps)
        assert trainer.config.gradual_epochs == epochs // 2
        few = config.epochs is None and epochs > 12
        assert trainer.loss.distillation.tau == trainer.config.distillation.tau == (4 if few else 30)
        assert config.epochs == fields.get("epochs")  # the user's own is not changed


def test_phases_longer_than_the_default_are_refused_before_training(trained: nn.Module) -> None:
    x = torch.zeros(16_000, 1, 1, 1).expand(-1, 1, 8, 8)
    config = PwoAConfig(sparsity=0.5, train_loader=x, hsic={"lambda_y": 0}, admm={"epochs": 13})
    with pytest.raises(ConfigError, match=r"^admm.epochs=13: more than epochs=12, .*; raise epochs"):
        Trainer(trained, config)
    few = Trainer(trained, PwoAConfig(**dict(config) | {"train_loader": x[:1000]}))
    assert (few.epochs, few.config.admm_epochs) == (188, 13)


def test_a_source_that_does_not_tell_its_length_is_counted(trained: nn.Module) -> None:
    class Source:
        def __iter__(self) -> Iterator[Tensor]:
            return (torch.rand(10, 1, 8, 8) for _ in range(40))

    before = torch.get_rng_state()
    trainer = Trainer(trained, PwoAConfig(sparsity=0.5, train_loader=Source(), hsic={"lambda_y": 0}))
    assert trainer.epochs == 38
    assert torch.equal(torch.get_rng_state(), before)
