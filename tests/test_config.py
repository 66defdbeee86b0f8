from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwoa_plugin import PwoAConfig
from pwoa_plugin.config import ConfigError, HSICConfig, ScheduleConfig

BAD = [
    ({"sparsity": 0.0}, r"sparsity=0.0 is outside \(0, 1\)"),
    ({"sparsity": 1.5}, r"sparsity=1.5 is outside"),
    ({}, "sparsity is missing"),
    ({"sparsity": 0.5, "sparsty": 0.5}, "sparsty: unknown key; did you mean sparsity"),
    ({"sparsity": 0.5, "colour": 1}, "colour: unknown key; known: sparsity, train_loader"),
    ({"sparsity": 0.5, "hsic": {"lambda": 1}}, "hsic.lambda: unknown key; did you mean lambda_"),
    ({"sparsity": 0.5, "optimizer": {"lr": 0}}, "^optimizer.lr=0: input should be greater than 0"),
    ({"sparsity": 0.5, "optimizer": {"lr": float("inf")}}, "^optimizer.lr=inf: input should be a finite number"),
    ({"sparsity": 0.5, "admm": {"optimizer": {"lr": 0}}}, "^admm.optimizer.lr=0"),
    ({"sparsity": 0.5, "admm": {"schedule": {"name": "multistep"}}}, "^admm.schedule.milestones is empty"),
    ({"sparsity": 0.5, "epochs": [[1] * 99] * 9}, r"^epochs=\[\[1, 1"),
    ({"sparsity": 0.5, "epochs": 0}, "epochs=0: input should be greater than or equal to 1"),
    ({"sparsity": 0.5, "epochs": "many"}, "epochs='many'"),
    ({"sparsity": 0.5, "allocation": "fair"}, "allocation='fair' is unknown; use one of uniform, erk, lamp, global"),
    ({"sparsity": 0.5, "granularity": "row"}, "granularity='row' is unknown"),
    ({"sparsity": 0.6, "granularity": "2:4"}, "contradicts granularity='2:4'"),
    ({"sparsity": 0.5, "perturbation": {"kind": "pgd"}}, "^perturbation.kind='pgd' is unknown; use one of patterns"),
    ({"sparsity": 0.5, "eps": 8.0}, "eps=8 is as wide as the pixel range"),
    ({"sparsity": 0.5, "eps": -0.1}, "eps=-0.1"),
    ({"sparsity": 0.5, "pixel_range": (1.0, 0.0)}, "pixel_range=.* is empty"),
    ({"sparsity": 0.5, "device": "gpu"}, "device='gpu' cannot be used here"),
    ({"sparsity": 0.5, "epochs": 3, "admm": {"epochs": 4}}, "admm.epochs=4 is more than epochs=3"),
    ({"sparsity": 0.5, "admm": {"rho": 2.0, "rho_max": 1.0}}, "^admm.rho=2.0 is above"),
    ({"sparsity": 0.5, "schedule": {"name": "multistep"}}, "^schedule.milestones is empty"),
    ({"sparsity": 0.5, "seed": -1}, "seed=-1"),
]


@pytest.mark.parametrize(("fields", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_one_line_that_names_field_and_cure(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        PwoAConfig(**fields)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError):
        PwoAConfig(0.5)  # type: ignore[call-arg]


def test_a_field_that_is_set_later_is_checked_too() -> None:
    config = PwoAConfig(sparsity=0.5)
    config.sparsity = 0.75
    with pytest.raises(ConfigError, match="sparsity=7"):
        config.sparsity = 7.0
    assert config.sparsity == 0.75
    with pytest.raises(ConfigError, match="lambda_x=-1"):
        config.hsic.lambda_x = -1.0
    with pytest.raises(ConfigError, match="eps=5"):
        config.eps = 5.0  # refused by a check of the whole config
    assert config.eps is None
    config.epochs = 7


def test_sections_are_not_shared_between_configs() -> None:
    a, b = PwoAConfig(sparsity=0.5), PwoAConfig(sparsity=0.5)
    a.hsic.lambda_x = 0.5
    assert b.hsic.lambda_x == HSICConfig().lambda_x != 0.5


@given(
    sparsity=st.floats(0.01, 0.99),
    epochs=st.integers(1, 100),
    allocation=st.sampled_from(["uniform", "erk", "lamp", "global"]),
    schedule=st.sampled_from(["constant", "cosine", "linear"]),
)
def test_json_round_trip(sparsity: float, epochs: int, allocation: str, schedule: Any) -> None:
    config = PwoAConfig(sparsity=sparsity, epochs=epochs, allocation=allocation, schedule=ScheduleConfig(name=schedule))
    again = PwoAConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.admm_epochs == epochs // 4


def test_names_may_be_one_string() -> None:
    assert PwoAConfig(sparsity=0.5, exclude="fc").exclude == ("fc",)
    assert PwoAConfig(sparsity=0.5, include=["a", "b"]).include == ("a", "b")
    assert HSICConfig(layers="fc").layers == ("fc",)
    assert HSICConfig(layers="auto").layers == "auto"


def test_paper_is_what_was_published() -> None:
    config = PwoAConfig.paper("mnist", sparsity=0.9375)
    assert (config.epochs, config.admm_epochs, config.batch_size) == (150, 50, 128)
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


def test_paper_in_fewer_epochs_cuts_phases_and_milestones_in_proportion() -> None:
    config = PwoAConfig.paper("mnist", epochs=12, sparsity=0.5)
    assert (config.epochs, config.admm_epochs, config.admm.interval) == (12, 4, 3)
    assert config.schedule.milestones == (6, 7)
    assert PwoAConfig.paper("mnist", sparsity=0.5, seed=3).seed == 3
    with pytest.raises(ConfigError, match="the paper has mnist, cifar10, cifar100"):
        PwoAConfig.paper("svhn", sparsity=0.5)  # type: ignore[arg-type]
