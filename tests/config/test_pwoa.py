from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwoa_plugin import PwoAConfig
from pwoa_plugin.config import ConfigError, HSICConfig, ScheduleConfig

OFF = {"distillation": {"alpha": 0, "feature_weight": 0}, "hsic": {"lambda_x": 0, "lambda_y": 0}}
BAD = [
    ({"sparsity": 0.0}, r"sparsity=0.0 is outside \(0, 1\)"),
    ({"sparsity": 1.5}, r"sparsity=1.5 is outside"),
    ({}, "sparsity is missing"),
    ({"sparsity": 0.5, "eps": "8/255", "pixel_range": (0, 255)}, r"eps=0.031.* is next to nothing .*did you mean 8\?"),
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
    ({"sparsity": 0.5, "eps": 8.0}, r"eps=8 is outside \(0, 1\); eps is in pixel units"),
    ({"sparsity": 0.5, "eps": -0.1}, "eps=-0.1"),
    ({"sparsity": 0.5, "pixel_range": (1.0, 0.0)}, "pixel_range=.* is empty"),
    ({"sparsity": 0.5, "device": "gpu"}, "device='gpu' cannot be used here"),
    ({"sparsity": 0.5, "epochs": 3, "admm": {"epochs": 4}}, "^admm.epochs=4: more than epochs=3"),
    ({"sparsity": 0.5, "epochs": 3, "gradual": {"epochs": 4}}, "^gradual.epochs=4: more than epochs=3"),
    (
        {"sparsity": 0.5, "epochs": 3, "admm": {"epochs": 2}, "gradual": {"epochs": 2}},
        "^admm.epochs=2 and gradual.epochs=2: more than epochs=3",
    ),
    ({"sparsity": 0.5, "gradual": {"interval": 0}}, "^gradual.interval=0"),
    ({"granularity": "2:4", "gradual": {"epochs": 1}}, "^gradual: .*does not go with granularity='2:4'"),
    ({"granularity": "2:4", "gradual": {"interval": 5}}, "^gradual: .*does not go with granularity='2:4'"),
    (
        {"sparsity": 0.5, "granularity": "structured", "gradual": {"epochs": 1}},
        "^gradual: .*does not go with granularity='structured'",
    ),
    ({"sparsity": 0.5, "admm": {"rho": 2.0, "rho_max": 1.0}}, "^admm.rho=2.0 is above"),
    ({"sparsity": 0.5, "schedule": {"name": "multistep"}}, "^schedule.milestones is empty"),
    ({"sparsity": 0.5, "seed": -1}, "seed=-1"),
    ({"sparsity": 0.5, "eps": "8/0"}, "eps='8/0'"),
    ({"sparsity": 0.5, "data": {"name": "imagenet"}}, "^data.name='imagenet' is unknown; use one of mnist, cifar10"),
    ({"sparsity": 0.5, "data": {"name": "folder"}}, "^data.image_size is missing"),
    ({"sparsity": 0.5, "data": {"name": "mnist", "image_size": 28}}, "^data.image_size=28 goes with name='folder'"),
    ({"sparsity": 0.5, "data": {"name": "mnist", "validation": 1.0}}, "^data.validation=1.0"),
    ({"sparsity": 0.5, "data": {"name": "mnist", "worker": 2}}, "^data.worker: unknown key; did you mean workers"),
    ({"sparsity": 0.5, "data": "mnist"}, "^data='mnist'"),
    ({"sparsity": 0.5, "model": {"arch": "lenet"}}, "^model.checkpoint=.*: field required"),
    ({"sparsity": 0.5, "distillation": {"gradient_share": 0}}, "^distillation.gradient_share=0: "),
    ({"sparsity": 0.5, "distillation": {"gradient_weight": -1}}, "^distillation.gradient_weight=-1: "),
    ({"sparsity": 0.5, "model": {"arch": "os:system", "checkpoint": "x"}}, "^model.arch='os:system' names code, and"),
    ({"sparsity": 0.5, "model": {"arch": "a", "checkpoint": "x", "mean": [0.5]}}, "^model.mean and std go together"),
    (
        {"sparsity": 0.5, "model": {"arch": "a", "checkpoint": "x", "mean": [0], "std": [0]}},
        r"^model.std=\(0.0,\) is not positive",
    ),
    ({"sparsity": 0.5, **OFF}, "^distillation, hsic: all weights are 0, .* nothing is trained; set distillation.alpha"),
    ({"sparsity": 0.5, "eps": 0.1, "adversarial": {"weight": 0}, **OFF}, "and adversarial is not on in all epochs"),
    ({"sparsity": 0.5, "eps": 0.1, "adversarial": {"epochs": 1}, **OFF}, "adversarial without epochs$"),
    (
        {"sparsity": 0.5, "hsic": {"gather": True}, "accumulate": 2},
        "^hsic.gather: does not go with accumulate; leave one of them out",
    ),
    ({"sparsity": 0.5, "accumulate": 0}, "^accumulate=0"),
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
    assert (again.admm_epochs, again.gradual_epochs) == (config.admm_epochs, config.gradual_epochs)


def test_names_may_be_one_string() -> None:
    assert PwoAConfig(sparsity=0.5, exclude="fc").exclude == ("fc",)
    assert PwoAConfig(sparsity=0.5, include=["a", "b"]).include == ("a", "b")
    assert HSICConfig(layers="fc").layers == ("fc",)
    assert HSICConfig(layers="auto").layers == "auto"


def test_yaml_round_trip(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "data": {"name": "folder", "image_size": 32, "root": "my images"},
        "model": {"arch": "resnet18", "checkpoint": "a.pt", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
        "admm": {"epochs": 1, "optimizer": {"name": "sgd", "lr": 1e-5}},
    }
    for config in (
        PwoAConfig(granularity="2:4", eps="8/255", perturbation={"radius": "4/255"}, **sections),  # type: ignore[arg-type]
        PwoAConfig.paper("cifar100", sparsity=0.9),
    ):
        text = config.to_yaml(tmp_path / "new" / "prune.yaml")
        assert (tmp_path / "new" / "prune.yaml").read_text() == text
        assert PwoAConfig.from_yaml(tmp_path / "new" / "prune.yaml") == config
    assert config.eps is None
    images = object()
    assert PwoAConfig.from_yaml(tmp_path / "new" / "prune.yaml", train_loader=images).train_loader is images


PRESETS = sorted(Path(str(entry)) for entry in (files("pwoa_plugin") / "configs").iterdir())


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_can_be_read(path: Path) -> None:
    config = PwoAConfig.from_yaml(path)
    assert config.data is not None
    assert config.model is not None
    assert config.eps in (0.3, 8 / 255, 4 / 255)
    if path.stem.startswith("paper-"):
        dataset: Any = path.stem.removeprefix("paper-")
        assert config.data.name == dataset
        own = {"sparsity": config.sparsity, "eps": config.eps, "data": config.data, "model": config.model}
        assert config == PwoAConfig.paper(dataset, **own)
    elif path.stem.startswith("mnist"):
        own = {"sparsity": config.sparsity, "eps": config.eps, "data": config.data, "model": config.model}
        assert config == PwoAConfig(**own)
