from __future__ import annotations

import torch

from pwoa_plugin import evaluate
from pwoa_plugin.data import mnist_sample
from pwoa_plugin.models import LeNet, LeNet3, robust_lenet


def test_lenet_has_the_shape_that_is_stated() -> None:
    model = LeNet()
    assert sum(parameter.numel() for parameter in model.parameters()) == 417_482
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_lenet3_has_the_paper_s_shapes() -> None:
    shapes = {name: tuple(value.shape) for name, value in LeNet3().state_dict().items() if name.endswith("weight")}
    assert shapes == {
        "conv1.weight": (32, 1, 5, 5),
        "conv2.weight": (64, 32, 5, 5),
        "fc1.weight": (1024, 7 * 7 * 64),
        "fc2.weight": (10, 1024),
    }
    assert sum(parameter.numel() for parameter in LeNet3().parameters()) == 3_274_634


def test_shipped_lenet_is_robust_on_images_it_never_saw() -> None:
    model = robust_lenet()
    assert not model.training
    x, y = mnist_sample()[1].tensors
    report = evaluate(model, (x[:200], y[:200]), eps=0.3, attacks=("FGSM", "PGD-20"), progress=False)
    assert report.clean > 0.95
    assert report.worst_case.accuracy > 0.85
