"""What tests of pruned networks look at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pwoa_plugin.torch_pruning import PwoAGroupPruner


def widths(model: nn.Module) -> dict[str, int]:
    return {
        name: len(module.weight) for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    }


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "asked": [parameter.requires_grad for parameter in model.parameters()],
        "ids": [id(parameter) for parameter in model.parameters()],
    }


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    assert after["tensors"].keys() == before["tensors"].keys()
    assert all(torch.equal(tensor, before["tensors"][name]) for name, tensor in after["tensors"].items())
    assert [after[key] for key in ("modes", "asked", "ids")] == [before[key] for key in ("modes", "asked", "ids")]


def assert_refused(match: str, model: nn.Module, inputs: Any, **fields: Any) -> None:
    """`PwoAGroupPruner` refuses it in one line, and leaves the model alone."""
    before = state_of(model)
    with pytest.raises(ValueError, match=match) as error:
        PwoAGroupPruner(model, inputs, **fields)
    assert "\n" not in str(error.value)
    assert_untouched(model, before)
