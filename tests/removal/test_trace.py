"""Traces, and what their errors say."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.removal import speedup
from pwoa_plugin.removal.inputs import ForwardError
from pwoa_plugin.removal.trace import Tracing, grouping_errors
from pwoa_plugin.torch_pruning import PwoAGroupPruner


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.first, self.dropout, self.last = nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2)

    def forward(self, x: Tensor, *, double: bool = False) -> dict[str, Tensor]:
        y = self.last(self.dropout(self.first(x)) * self.scale)
        return {"y": 2 * y if double else y, "x": x}


def test_a_graph_leaves_the_model_as_it_is() -> None:
    model, x = Scaled(), torch.rand(2, 3)
    model.last.eval().requires_grad_(False)
    with torch.no_grad():
        graph = Tracing(x, unwrapped_parameters={model.scale: 0}).graph(model)
    assert set(graph.module2node) >= {model.first, model.last}
    assert model.first.training
    assert not model.last.training
    assert model.first.weight.requires_grad
    assert not model.last.weight.requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_run_is_in_eval_mode_without_gradients_by_the_users_forward() -> None:
    model, x = Scaled(), torch.rand(2, 3)
    tracing = Tracing(x, forward_fn=lambda model, inputs: model(inputs, double=True)["y"])
    (output,) = tracing.run(model)
    assert torch.equal(output, 2 * model.eval()(x)["y"])
    assert not output.requires_grad
    model.train()
    tracing.run(model)
    assert model.training


def test_a_run_that_fails_says_where() -> None:
    with pytest.raises(ForwardError, match=r"^first \(Linear\): RuntimeError"):
        Tracing(torch.rand(2, 5)).run(Scaled())


@pytest.mark.parametrize("form", [dict, lambda pairs: list(pairs.items())])
def test_both_forms_of_unwrapped_parameters(form: type) -> None:
    model = Scaled()
    assert Tracing(None, unwrapped_parameters=form({model.scale: 0})).unwrapped() == [(model.scale, 0)]
    assert Tracing(None).unwrapped() is None


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * float(self.fc(x).sum().requires_grad and _fail())


def _fail() -> float:
    raise ValueError("not\nhere")


def test_the_innermost_module_that_fails_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(Inner()))
    with pytest.raises(ValueError, match=r"model: Torch-Pruning cannot trace 1\.0 \(Inner\) \(ValueError: not here\)"):
        Tracing(torch.rand(2, 3)).graph(model)


def test_other_errors_than_an_index_pass() -> None:
    with pytest.raises(ValueError, match="cannot tell which channels go together"), grouping_errors():
        raise IndexError("list index out of range")
    with pytest.raises(KeyError), grouping_errors():
        raise KeyError("a")


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gru = nn.Conv2d(1, 16, 3, padding=1), nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.conv(x).relu().mean(3).transpose(1, 2))[0][:, -1])


def test_what_torch_pruning_cannot_group() -> None:
    x = torch.rand(4, 1, 8, 8)
    said = "Torch-Pruning cannot tell which channels go together .* as with a GRU"
    model = Gated()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"^conv: {said}"):
        PwoAGroupPruner(model, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    mask = torch.ones_like(model.conv.weight)
    mask[:4] = 0
    with pytest.raises(ValueError, match=said):
        speedup(model, {"conv": {"weight": mask}}, x)
