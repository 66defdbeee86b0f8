"""Networks that cannot lose channels as they are: the message names layer, parameter and a cure, and the cure works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin import PwoAConfig
from pwoa_plugin.removal import speedup
from pwoa_plugin.torch_pruning import PwoAGroupPruner

Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions, ``between`` them an operation with a parameter ``p``, and ``after`` them another."""

    def __init__(self, shape: tuple[int, ...], between: Any, after: Any = lambda net, r: r, reads: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(reads, 12, 3), nn.Linear(12 * 16, 3)
        if shape:
            self.p = nn.Parameter(torch.randn(shape))
        self.between, self.after = between, after

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.after(self, self.two(self.between(self, self.one(x)))).relu().flatten(1))


def gated(net: Net, r: Tensor) -> Tensor:
    first, second = r.chunk(2, 1)
    return first * second.sigmoid()


CASES: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any] | None]] = {
    "position": (
        lambda: Net((1, 8, 6, 6), lambda net, r: r + net.p),
        r"p, a parameter of shape \(1, 8, 6, 6\), goes with the channels of one.*give unwrapped_parameters=\{'p': 1\}",
        {"unwrapped_parameters": {"p": 1}},
    ),
    "position in a module": (
        lambda: nn.Sequential(Net((8, 6, 6), lambda net, r: r + net.p)),
        r"0\.p, a parameter.*unwrapped_parameters=\{'0\.p': 0\}.*or list 0\.one in ignored_layers",
        {"unwrapped_parameters": {"0.p": 0}},
    ),
    "square position": (
        lambda: Net((1, 8, 8, 8), lambda net, r: r + net.p[:, :, :6, :6]),
        r"unwrapped_parameters=\{'p': 1\}",
        {"unwrapped_parameters": {"p": 1}},
    ),
    "of no channel": (
        lambda: Net((1, 1, 6, 6), lambda net, r: r + net.p),
        "p, a parameter of shape .*; list p in ignored_layers, or list one in ignored_layers",
        {"ignored_layers": "p"},
    ),
    "concatenated": (
        lambda: Net((1, 4, 6, 6), lambda net, r: torch.cat([r, net.p.expand(len(r), -1, -1, -1)], 1), reads=12),
        "p, a parameter of shape .*; list p in ignored_layers",
        {"ignored_layers": ["p"]},
    ),
    "layer scale by a view": (
        lambda: Net((12,), lambda net, r: r, lambda net, r: net.p.view(1, -1, 1, 1) * r),
        r"p, a parameter.* goes with the channels of two by a view or reshape.*index it, as in gamma\[None",
        None,
    ),
    "einsum": (
        lambda: Net((8, 8), lambda net, r: torch.einsum("bchw,cd->bdhw", r, net.p)),
        "^one: with fewer channels .*or with p, a parameter.*keep weights in modules",
        None,
    ),
    "weight of a function": (
        lambda: Net((8, 8, 3, 3), lambda net, r: F.conv2d(r, net.p, padding=1)),
        r"^one: .*it cannot make p, a parameter of shape \(8, 8, 3, 3\), smaller .*; keep weights in modules",
        None,
    ),
    "chunk": (lambda: Net((), gated, reads=4), r"one: the code splits.*out_channel_groups=\{'one': 2\}", None),
    "slices": (
        lambda: Net((), lambda net, r: r[:, :4] * r[:, 4:], reads=4),
        r"one: the code splits .* sizes that follow the input.*out_channel_groups=\{'one': 2\}",
        None,
    ),
    "sizes": (lambda: Net((), lambda net, r: r.reshape(-1, 8, 6, 6)), "^one: with fewer channels .*sizes are", None),
    "repeat": (lambda: Net((), lambda net, r: r.repeat(1, 2, 1, 1), reads=16), "^one: with fewer channels two", None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_layer_the_parameter_and_the_cure(case: str, x: Tensor) -> None:
    make, match, cure = CASES[case]
    with pytest.raises(ValueError, match=match) as refused:
        PwoAGroupPruner(make(), x)
    said = str(refused.value)
    assert not any(inner in said for inner in ("Unwrapped", "Op_", "Op(", "\n"))
    layers = said.split("list ")[-1].split(" in ignored_layers")[0].split(", ")
    for options in ({"ignored_layers": layers}, cure):
        if options is not None:
            model = make()
            PwoAGroupPruner(model, x, **options).step()
            assert model(x).shape == (4, 3)


def test_parts_that_go_together(x: Tensor) -> None:
    model = Net((), gated, reads=4)
    PwoAGroupPruner(model, x, out_channel_groups={"one": 2}).step()
    assert (model.one.out_channels, model.two.in_channels) == (4, 2)
    assert model(x).shape == (4, 3)


def test_an_indexed_layer_scale(x: Tensor) -> None:
    model = Net((12,), lambda net, r: r, lambda net, r: net.p[None, :, None, None] * r)
    PwoAGroupPruner(model, x).step()
    assert model.p.shape == (6,)


def test_a_config_names_its_own_field(x: Tensor) -> None:
    def make(**changes: Any) -> PwoAConfig:
        return PwoAConfig(sparsity=0.5, granularity="structured", train_loader=x, eps=0.1, **changes)

    model = Net((1, 8, 6, 6), lambda net, r: r + net.p)
    with pytest.raises(ValueError, match=r"unwrapped_parameters=\{'p': 1\} to PwoAGroupPruner, or list one in exclude"):
        PwoAGroupPruner(model, config=make())
    PwoAGroupPruner(model, config=make(exclude=("one",)))
    PwoAGroupPruner(model, config=make(), unwrapped_parameters={"p": 1})


def test_a_trace_that_is_lost(x: Tensor) -> None:
    model = Net((), lambda net, r: r.detach())
    with pytest.raises(ValueError, match="one: no gradient comes from the model's output to it"):
        PwoAGroupPruner(model, x)
    PwoAGroupPruner(model, x, ignored_layers="one").step()


@torch.no_grad()
def test_speedup_of_split_channels(x: Tensor) -> None:
    """Torch-Pruning brings the other parts along: that once had no end."""
    model = Net((), gated, reads=4).eval()
    masks = {"one": {"weight": torch.ones(8, 1, 3, 3), "bias": torch.ones(8)}}
    for mask in masks["one"].values():
        mask[[0, 2]] = 0
    small = speedup(model, masks, x)
    assert small.one.out_channels == 4
    model.one.weight *= masks["one"]["weight"]
    model.one.bias *= masks["one"]["bias"]
    assert torch.allclose(small(x), model(x), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("xcit_nano_12_p16_224", {"depth": 1}),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}),
        ("swin_tiny_patch4_window7_224", {"img_size": 56, "depths": (1, 1), "num_heads": (2, 4), "embed_dim": 16}),
        ("mobilevit_xxs", {}),
    ],
)
def test_timm_networks_follow_the_cure(name: str, options: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm")
    x = torch.rand(2, 3, options.get("img_size", 64), options.get("img_size", 64))

    def make() -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=3, **options)

    with pytest.raises(ValueError, match=r"or list .* in ignored_layers$") as refused:
        PwoAGroupPruner(make(), x)
    said = str(refused.value)
    assert not any(inner in said for inner in ("Unwrapped", "Op_", "\n"))
    model, before = make(), sum(each.numel() for each in make().parameters())
    PwoAGroupPruner(model, x, ignored_layers=said.split("or list ")[-1].split(" in ignored")[0].split(", ")).step()
    assert sum(each.numel() for each in model.parameters()) < before
    assert model(x).shape == (2, 3)
