from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin import PwoAConfig, PwoAPruner
from pwoa_plugin.method.layout import channels_last_is_safe, lay_out
from pwoa_plugin.models import LeNet
from pwoa_plugin.runs.network import laid_out


@pytest.mark.parametrize(
    ("layer", "safe"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), False),
        (nn.Conv2d(15, 8, 1, stride=(1, 2)), False),
        (nn.Conv2d(32, 32, 1, stride=2, groups=4), False),
        (nn.Conv2d(16, 8, 1, stride=2), True),
        (nn.Conv2d(4, 8, 1), True),
        (nn.Conv2d(4, 8, 3, stride=2), True),
        (nn.Linear(4, 8), True),
    ],
    ids=str,
)
def test_what_is_safe(layer: nn.Module, safe: bool) -> None:
    assert channels_last_is_safe(nn.Sequential(layer)) is safe


def test_the_shipped_network_is_laid_out() -> None:
    assert channels_last_is_safe(LeNet())


NARROW = """
import torch
from pwoa_plugin import PwoAConfig, PwoAPruner
from pwoa_plugin.models.resnet import ResNetCIFAR

torch.manual_seed(0)
contiguous, channels_last = torch.contiguous_format, torch.channels_last
for layout, gradient_weight in ((contiguous, 0), (channels_last, 0), (channels_last, 1)):
    data = torch.rand(8, 3, 32, 32).contiguous(memory_format=layout), torch.arange(8) % 10
    model = ResNetCIFAR((1, 1, 1, 1), channels=4)
    term = {"gradient_weight": gradient_weight, "gradient_share": 1}
    settings = {"epochs": 2, "batch_size": 4, "progress": False, "distillation": term}
    PwoAPruner(model, PwoAConfig(sparsity=0.5, train_loader=data, **settings)).compress()
    assert all(p.isfinite().all() for p in model.parameters()), (layout, gradient_weight)
"""


def test_a_narrow_network_is_pruned_where_onednn_would_write_beyond_its_workspace() -> None:
    run = subprocess.run([sys.executable, "-c", NARROW], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


class Viewing(nn.Module):
    """Flattens as PyTorch's tutorials do, which a map in channels last does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3), nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu())
        return self.head(x.view(x.size(0), -1))


def test_channels_last_where_the_forward_takes_it() -> None:
    x = torch.rand(2, 1, 8, 8)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3), nn.Flatten())
    for network, safe, layout in (
        (plain, True, torch.channels_last),
        (plain, False, torch.contiguous_format),
        (Viewing(), True, torch.contiguous_format),
    ):
        before = network(x)
        assert lay_out(network, x, safe=safe) == layout
        *_, last = (module for module in network.modules() if isinstance(module, nn.Conv2d))
        assert last.weight.is_contiguous(memory_format=layout)
        torch.testing.assert_close(network(x), before)


def test_a_network_that_views_is_pruned_and_judged(images: tuple[Tensor, Tensor]) -> None:
    model = Viewing()
    _, masks = PwoAPruner(model, PwoAConfig(sparsity=0.5, train_loader=images, epochs=2, progress=False)).compress()
    assert set(masks) == {"first", "second", "head"}
    assert laid_out(model, images[0], None)(images[0][:4]).shape == (4, 3)
