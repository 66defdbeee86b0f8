"""What the tests of NNI's compressors share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nni
import pytest
import torch
from nni.compression import TorchEvaluator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pwoa_plugin import PwoAConfig, PwoAPruner
from pwoa_plugin.masks import Masks

Pair = tuple[Tensor, Tensor]
MakeEvaluator = Callable[..., TorchEvaluator]
ENTRIES = [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.75}]


def config(images: Pair, **fields: Any) -> PwoAConfig:
    return PwoAConfig(**{"sparsity": 0.8, "train_loader": images, "epochs": 4, "eps": 0.1, "progress": False} | fields)


def zeros(model: nn.Module, name: str) -> float:
    return model.get_submodule(name).weight.eq(0).float().mean().item()


def assert_masked(model: nn.Module, masks: Masks) -> None:
    """A plain model's weights are 0 exactly where the masks are."""
    assert not any(hasattr(module, "_nni_wrapper") for module in model.modules())
    assert set(masks) == {"conv", "fc1", "fc2"}
    for name, targets in masks.items():
        assert torch.equal(model.get_submodule(name).weight != 0, targets["weight"].bool()), name


def torch_evaluator(
    model: nn.Module,
    images: tuple[Tensor, Tensor],
    *,
    step: Callable[[Any, nn.Module], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    seen: Callable[[nn.Module, Tensor], None] | None = None,
) -> TorchEvaluator:
    """An evaluator as NNI's users write it; ``seen(model, loss)`` is called after each step, 6 an epoch."""
    loader = DataLoader(TensorDataset(*images), batch_size=32, shuffle=True)

    def training_step(batch: Any, model: nn.Module) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def train(
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: Callable[..., Tensor],
        scheduler: Any,
        max_steps: int | None,
        max_epochs: int | None,
    ) -> None:
        done = 0
        limit = max_steps if max_steps is not None else (max_epochs or 0) * len(loader)
        model.train()
        while done < limit:
            for batch in loader:
                optimizer.zero_grad()
                loss = step(batch, model)
                loss.backward()
                optimizer.step()
                if seen is not None:
                    seen(model, loss.detach())
                done += 1
                if done == limit:
                    return

    def evaluate(model: nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            return float((model(images[0]).argmax(1) == images[1]).float().mean())

    traced = optimizer or nni.trace(torch.optim.Adam)(model.parameters(), lr=5e-3)
    return TorchEvaluator(train, traced, step or training_step, evaluating_func=evaluate)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)  # loaders shuffle, and perturbations are drawn


@pytest.fixture
def evaluator() -> MakeEvaluator:
    """`torch_evaluator`: from a model and ``(x, y)`` to an evaluator that trains it."""
    return torch_evaluator


@pytest.fixture
def pruned(trained: nn.Module, images: Pair, evaluator: MakeEvaluator) -> tuple[PwoAPruner, Masks]:
    """A pruner of `trained`, still wrapped, and its masks."""
    pruner = PwoAPruner(trained, ENTRIES, evaluator(trained, images), eps=0.1)
    _, masks = pruner.compress(24)
    assert masks["fc1"]["weight"].mean() == pytest.approx(0.25, abs=0.01)
    return pruner, masks


class ConvNet(nn.Module):
    """Two convolutions with BatchNorm, and a linear layer, for 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        return self.fc(F.relu(self.bn2(self.conv2(x))).flatten(1))


@pytest.fixture
def conv_net(images: tuple[Tensor, Tensor]) -> ConvNet:
    """A trained `ConvNet` whose BatchNorm has means, variances, scales and shifts that are not trivial."""
    torch.manual_seed(0)
    model = ConvNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(images[0]), images[1]).backward()
        optimizer.step()
    for module in (model.bn1, model.bn2):
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.uniform_(module.bias, 0.1, 0.6)
    return model.eval()
