from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from in_ranks import network
from torch import nn

from pwoa_plugin import PwoALoss
from pwoa_plugin.errors import InputError
from pwoa_plugin.method.checkpointing import blocks_of, checkpointed
from pwoa_plugin.models.make import make_model


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5, dropout=0.1)


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        (network(), ["blocks.0", "blocks.1"]),
        (make_model("resnet18-cifar", num_classes=5), [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]),
        (vit(), ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]),
        (
            torchvision.models.convnext_tiny(num_classes=5),
            [f"features.{i}.{j}" for i, many in ((1, 3), (3, 3), (5, 9), (7, 3)) for j in range(many)],
        ),
    ],
    ids=["plain", "resnet", "vit", "convnext"],
)
def test_blocks_are_the_repeated_parts(model: nn.Module, blocks: list[str]) -> None:
    names = {module: name for name, module in model.named_modules()}
    assert [names[block] for block in blocks_of(model)] == blocks


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="checkpoint: the model has no blocks"):
        blocks_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)))


@pytest.mark.parametrize(
    ("make", "shape", "gradient_weight"),
    [
        (lambda: network(norm=True), (1, 8, 8), 0.0),
        (lambda: network(norm=True), (1, 8, 8), 0.1),
        (vit, (3, 32, 32), 0.0),
    ],
    ids=["norm", "differentiated twice", "vit"],
)
def test_loss_gradients_and_statistics_are_the_same(
    make: Callable[[], nn.Module], shape: tuple[int, ...], gradient_weight: float
) -> None:
    torch.manual_seed(0)
    model, x, y = make(), torch.rand(6, *shape), torch.randint(3, (6,))
    teacher = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    distillation = {"gradient_weight": gradient_weight, "gradient_share": 1, "feature_share": 1}
    hsic = {"lambda_x": 0.5, "lambda_y": 0.1, "share": 1}
    loss = PwoALoss(teacher, eps=0.1, hsic=hsic, distillation=distillation)

    def step(student: nn.Module, wanted: bool) -> torch.Tensor:
        loss.prepare(student.train(), x)
        torch.manual_seed(1)
        with checkpointed(blocks_of(student) if wanted else []):
            value = loss(student, x, y)
            value.backward()
        return value.detach()

    plain, again = copy.deepcopy(model), copy.deepcopy(model)
    assert torch.equal(step(plain, False), step(again, True))
    for (name, one), (_, other) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        assert one.grad is not None, name
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-7)
    for (name, one), (_, other) in zip(plain.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(one, other), name  # not updated a second time
    assert all("forward" not in vars(module) for module in again.modules())


def test_activations_inside_blocks_are_not_kept() -> None:
    model = network(norm=True)
    x, kept = torch.rand(4, 1, 8, 8), {}
    for wanted in (False, True):
        saved: list[int] = []

        def pack(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        with (
            checkpointed(blocks_of(model) if wanted else []),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        ):
            model(x).sum()
        kept[wanted] = sum(saved)
    assert kept[True] < 0.7 * kept[False]
