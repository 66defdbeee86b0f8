from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.utils.prune
import torchvision
from torch import nn

from pwoa_plugin.method.layers import prunable_layers, warn_of_uncounted
from pwoa_plugin.models import LeNet


def test_every_convolution_and_linear_layer() -> None:
    assert list(prunable_layers(LeNet())) == ["conv1", "conv2", "fc1", "fc2"]
    assert len(prunable_layers(torchvision.models.resnet18())) == 21


def test_include_and_exclude_take_names_and_patterns() -> None:
    assert list(prunable_layers(LeNet(), include=["conv*", "fc2"])) == ["conv1", "conv2", "fc2"]
    assert list(prunable_layers(LeNet(), exclude=["conv1", "fc?"])) == ["conv2"]
    assert list(prunable_layers(torchvision.models.resnet18(), include=["layer4.1.*"])) == [
        "layer4.1.conv1",
        "layer4.1.conv2",
    ]


def test_a_shared_module_is_listed_once() -> None:
    shared = nn.Linear(3, 3)
    assert list(prunable_layers(nn.Sequential(shared, nn.ReLU(), shared))) == ["0"]


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"exclude: 'fc9' matches no .* did you mean fc"):
        prunable_layers(LeNet(), exclude=["fc9"])
    with pytest.raises(ValueError, match=r"include: 'head' matches no .*; it has conv1, conv2, fc1\.\.\."):
        prunable_layers(LeNet(), include=["head"])
    with pytest.raises(ValueError, match="no prunable layer is left"):
        prunable_layers(LeNet(), exclude=["*"])
    with pytest.raises(ValueError, match="the model has no prunable layer"):
        prunable_layers(nn.Sequential(nn.ReLU()))
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"0.weight and 1.weight are one tensor, .*; untie them, or exclude 1"):
        prunable_layers(tied)
    assert list(prunable_layers(tied, exclude=["1"])) == ["0"]
    with pytest.raises(ValueError, match=r"0.weight is a tensor \(3, 3\) of torch.complex64, .*; exclude the layer"):
        prunable_layers(nn.Sequential(nn.Linear(3, 3, dtype=torch.complex64)))
    with pytest.raises(ValueError, match=r"0.weight is a tensor \(0, 3\) of torch.float32, .*; exclude the layer"):
        prunable_layers(nn.Sequential(nn.Linear(3, 0, bias=False)))
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"1.weight has no values yet; run the model once"):
        prunable_layers(lazy)


def test_matrices_outside_layers_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_uncounted(LeNet())
    assert not caplog.messages
    warn_of_uncounted(nn.TransformerEncoderLayer(8, 2, dim_feedforward=16))  # 3 of 8 parts are in_proj_weight's
    (said,) = caplog.messages
    assert said.startswith(
        "38 % of the network's weights are in no convolution and no linear layer (self_attn.in_proj_"
    )


@pytest.mark.parametrize(
    ("wrap", "cure"),
    [
        (lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5), r"prune\.remove\(layer, 'weight'\)"),
        (torch.nn.utils.parametrizations.weight_norm, r"remove_parametrizations\(layer, 'weight'\)"),
        (torch.nn.utils.spectral_norm, r"remove_spectral_norm\(layer\)"),
    ],
)
def test_a_computed_weight_is_refused_with_the_cure(wrap: Callable[[nn.Module], object], cure: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    wrap(model[1])
    with pytest.raises(ValueError, match=rf"1: its weight is computed from others .*{cure}, or exclude the layer"):
        prunable_layers(model)
