"""Networks and masks to remove, and the oracle: the masked model in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Masks = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="session")
def nontrivial() -> Callable[..., nn.Module]:
    def make(model: nn.Module, seed: int = 0) -> nn.Module:
        """Weights from a seed, BatchNorm statistics and parameters as training leaves them; in eval mode."""
        random = torch.Generator().manual_seed(seed)
        for module in model.modules():
            if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
                fan = module.weight[0].numel()
                module.weight.data = torch.randn(module.weight.shape, generator=random) * (2 / fan) ** 0.5
                if module.bias is not None:
                    module.bias.data = torch.randn(module.bias.shape, generator=random) * 0.3
            if isinstance(module, _BatchNorm):
                shape = module.running_mean.shape
                module.running_mean = torch.randn(shape, generator=random) * 0.3
                module.running_var = torch.rand(shape, generator=random) + 0.5
                module.weight.data = torch.rand(shape, generator=random) + 0.5
                module.bias.data = torch.randn(shape, generator=random) * 0.3
        return model.eval()

    return make


@pytest.fixture(scope="session")
def filter_masks() -> Callable[..., Masks]:
    def make(model: nn.Module, share: float = 0.5, seed: int = 0, exclude: Iterable[str] = ()) -> Masks:
        """A share of the filters of each layer dead at random, one kept at least."""
        random = torch.Generator().manual_seed(seed)
        masks: Masks = {}
        for name, module in model.named_modules():
            if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and name not in exclude:
                keep = torch.rand(len(module.weight), generator=random) >= share
                keep[torch.randint(len(keep), (1,), generator=random)] = True
                masks[name] = {"weight": torch.ones_like(module.weight)}
                masks[name]["weight"][~keep] = 0
        return masks

    return make


@pytest.fixture(scope="session")
def masked() -> Callable[[nn.Module, Masks], nn.Module]:
    def bake(model: nn.Module, masks: Masks) -> nn.Module:
        baked = copy.deepcopy(model)
        for name, targets in masks.items():
            for target, mask in targets.items():
                baked.get_submodule(name).get_parameter(target).data.mul_(mask)
        return baked

    return bake


@pytest.fixture(scope="session")
def difference() -> Callable[[nn.Module, nn.Module, Tensor], float]:
    @torch.no_grad()
    def relative(model: nn.Module, other: nn.Module, x: Tensor) -> float:
        """Largest difference of two models' eval outputs in float64, over the first one's largest value."""
        one, two = (copy.deepcopy(each).eval().double()(x.double()) for each in (model, other))
        return ((one - two).abs().max() / one.abs().max().clamp_min(1e-30)).item()

    return relative
