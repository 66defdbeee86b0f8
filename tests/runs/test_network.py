from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pwoa_plugin import PwoAConfig
from pwoa_plugin.config import ConfigError
from pwoa_plugin.models import LeNet, robust_lenet
from pwoa_plugin.runs.network import load_weights, network_name, network_of


def config(**model: Any) -> PwoAConfig:
    return PwoAConfig(sparsity=0.9, model={"checkpoint": "shipped:robust_lenet_mnist", **model} if model else None)


def test_the_network_and_its_weights() -> None:
    settings = config(arch="lenet")
    made = network_of(settings, arch=None, classes=10, channels=1)
    assert isinstance(made, LeNet)
    assert not made.training
    load_weights(made, "shipped:robust_lenet_mnist")
    shipped = robust_lenet().state_dict()
    assert all(torch.equal(tensor, shipped[name]) for name, tensor in made.state_dict().items())


def test_the_name_is_the_one_given_the_config_s_or_the_checkpoint_s() -> None:
    assert network_name(config(arch="lenet"), "resnet18-cifar") == "resnet18-cifar"
    assert network_name(config(arch="lenet")) == "lenet"
    assert network_name(config(checkpoint="robustbench:Standard")) == "robustbench:Standard"
    with pytest.raises(ConfigError, match="model is missing"):
        network_name(config())


def test_a_number_of_classes_in_the_config_takes_precedence() -> None:
    made = network_of(config(arch="lenet", num_classes=7), arch=None, classes=10, channels=1)
    assert made(torch.rand(1, 1, 28, 28)).shape == (1, 7)


def own_network(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, num_classes))


def test_code_of_your_own_normalises_by_itself() -> None:
    name = f"{__name__}:own_network"
    with pytest.raises(ConfigError, match=r"model\.mean cannot be used with your own --arch"):
        network_of(config(arch="lenet", mean=[0.5], std=[0.5]), arch=name, classes=3, channels=1)
