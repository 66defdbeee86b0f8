"""What is tried before training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.config import PwoAConfig
from pwoa_plugin.method.callback import Callback, Status
from pwoa_plugin.method.probe import find_classes
from pwoa_plugin.method.trainer import Trainer

Pair = tuple[Tensor, Tensor]


class Spy(Callback):
    def __init__(self) -> None:
        self.steps = 0

    def on_step(self, status: Status) -> None:
        self.steps += 1


def fit(model: nn.Module, images: Pair, spy: Spy | None = None, **fields: Any) -> None:
    values: dict[str, Any] = {"sparsity": 0.8, "train_loader": images, "batch_size": 64, "epochs": 2, "eps": 0.1}
    Trainer(model, PwoAConfig(**values | {"progress": False} | fields)).fit([spy] if spy else [])


class Attending(nn.Module):
    """Attention over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.squeeze(1)
        return self.head(self.attention(rows, rows, rows, need_weights=False)[0].mean(1))


class Centring(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.sub_(0.5))


class Blind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.detach().mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Attending(), "attention.*not implemented.*sdpa_kernel"), (Blind(), "does not require grad")],
    ids=["attention", "detached images"],
)
def test_a_network_without_input_gradients_is_refused_before_training(
    model: nn.Module, reason: str, images: Pair
) -> None:
    spy = Spy()
    wanted = {"gradient_weight": 2, "gradient_share": 0.01}
    with pytest.raises(ValueError, match=rf"^distillation.gradient_weight=2 needs .*{reason}"):
        fit(model, images, spy, hsic={"lambda_x": 0, "lambda_y": 0}, distillation=wanted)
    assert spy.steps == 0


def test_running_out_of_memory_is_told_as_such(
    trained: nn.Module, images: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.autograd, "grad", full)
    with pytest.raises(torch.OutOfMemoryError):
        fit(trained, images, distillation={"gradient_weight": 1})


def test_a_network_that_changes_its_images_is_refused(trained: nn.Module, images: Pair) -> None:
    before = images[0].clone()
    with pytest.raises(ValueError, match=r"^the model changes its input images in place"):
        fit(Centring(trained), images)
    assert torch.equal(images[0], before)


def test_classes_are_counted(trained: nn.Module, images: Pair) -> None:
    assert find_classes(trained, images[0]) == 3
