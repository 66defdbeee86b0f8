from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pwoa_plugin.models import WideResNet, wrn_34_10


def test_wrn_34_10_has_the_published_count_and_names() -> None:
    with torch.device("meta"):
        model = wrn_34_10()
    assert sum(parameter.numel() for parameter in model.parameters()) == 46_160_474  # RobustBench's table: 46.16M
    names = model.state_dict()
    assert tuple(names["block1.layer.0.bn1.weight"].shape) == (16,)
    assert tuple(names["block1.layer.0.convShortcut.weight"].shape) == (160, 16, 1, 1)
    assert tuple(names["block3.layer.4.conv2.weight"].shape) == (640, 640, 3, 3)
    assert tuple(names["bn1.weight"].shape) == (640,)
    assert tuple(names["fc.weight"].shape) == (10, 640)
    assert not [name for name in names if "layer.1.convShortcut" in name]


def test_forward_is_the_equations() -> None:
    """Written out by parameter names: y = shortcut + conv2(relu(bn2(conv1(relu(bn1(x))))))."""
    torch.manual_seed(0)
    model = WideResNet(16, 2, num_classes=4).eval()
    state = model.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        at = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *at))

    x = torch.rand(2, 3, 16, 16)
    out = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage, stride in (("block1", 1), ("block2", 2), ("block3", 2)):
        for block in ("layer.0", "layer.1"):
            name = f"{stage}.{block}"
            stride = stride if block == "layer.0" else 1
            before = norm(out, f"{name}.bn1")
            hidden = norm(F.conv2d(before, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn2")
            shortcut = state.get(f"{name}.convShortcut.weight")
            kept = out if shortcut is None else F.conv2d(before, shortcut, stride=stride)
            out = kept + F.conv2d(hidden, state[f"{name}.conv2.weight"], padding=1)
    pooled = norm(out, "bn1").mean((2, 3))
    torch.testing.assert_close(model(x), F.linear(pooled, state["fc.weight"], state["fc.bias"]))


def test_depth_must_be_a_wide_resnet_s() -> None:
    with pytest.raises(ValueError, match=r"depth=30 is not 6n \+ 4; give 28 or 34"):
        WideResNet(30, 2)
