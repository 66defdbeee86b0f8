"""What the authors published."""

from __future__ import annotations

from typing import Any

import pytest

from pwoa_plugin import PwoAConfig
from pwoa_plugin.config import ConfigError


def test_paper_is_what_was_published() -> None:
    config = PwoAConfig.paper("mnist", sparsity=0.9375)
    assert (config.epochs, config.admm_epochs, config.gradual_epochs, config.batch_size) == (150, 50, 0, 128)
    assert (config.allocation, config.perturbation.kind, config.granularity) == ("uniform", "none", "unstructured")
    assert (config.distillation.alpha, config.distillation.temperature) == (10, 30)
    assert config.distillation.feature_weight == 0
    assert (config.hsic.lambda_x, config.hsic.lambda_y, config.hsic.sigma) == (2e-4, 5e-5, 5)
    admm = config.admm
    assert (admm.interval, admm.rho, admm.growth, admm.rho_max, admm.hsic) == (3, 0.01, 1.35, 1.0, False)
    assert not admm.rescale
    assert (admm.optimizer.name, admm.optimizer.lr) == ("adam", 5e-4)  # type: ignore[union-attr]
    assert (admm.schedule.name, admm.schedule.factors) == ("cycle", (1.0, 0.1, 0.01))
    assert (config.optimizer.name, config.optimizer.lr) == ("adam", 1e-3)
    assert (config.schedule.name, config.schedule.milestones, config.schedule.gamma) == ("multistep", (75, 90), 0.1)


@pytest.mark.parametrize(
    ("dataset", "lambdas", "alpha"), [("cifar10", (2e-5, 1e-4), 10), ("cifar100", (5e-7, 2e-6), 100)]
)
def test_paper_on_cifar(dataset: Any, lambdas: tuple[float, float], alpha: float) -> None:
    config = PwoAConfig.paper(dataset, sparsity=0.5)
    assert (config.hsic.lambda_x, config.hsic.lambda_y) == lambdas
    assert config.distillation.alpha == alpha
    for optimizer, lr in ((config.admm.optimizer, 0.01), (config.optimizer, 0.005)):
        assert optimizer is not None
        assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("sgd", lr, 0.9, 1e-4)
    assert config.schedule.name == "cosine"


def test_paper_has_its_terms_in_every_step() -> None:
    sections = {"hsic": {"lambda_y": 0.0}, "distillation": {"feature_weight": 1.0}}
    for config in (PwoAConfig.paper("mnist", sparsity=0.5), PwoAConfig.paper("mnist", sparsity=0.5, **sections)):
        assert config.hsic.share == 1
    assert config.distillation.feature_share == 1
    assert PwoAConfig.paper("mnist", sparsity=0.5, hsic={"share": 0.5}).hsic.share == 0.5


def test_paper_in_fewer_epochs_cuts_phases_and_milestones_in_proportion() -> None:
    config = PwoAConfig.paper("mnist", epochs=12, sparsity=0.5)
    assert (config.epochs, config.admm_epochs, config.admm.interval) == (12, 4, 3)
    assert config.schedule.milestones == (6, 7)
    assert PwoAConfig.paper("mnist", sparsity=0.5, seed=3).seed == 3
    with pytest.raises(ConfigError, match="the paper has mnist, cifar10, cifar100"):
        PwoAConfig.paper("svhn", sparsity=0.5)  # type: ignore[arg-type]
