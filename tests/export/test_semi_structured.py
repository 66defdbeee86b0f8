from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pwoa_plugin import to_semi_structured
from pwoa_plugin.export import semi_structured
from pwoa_plugin.method.oneshot import prune_once
from pwoa_plugin.method.sparsity import NofM


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 64, 3)
        self.attention = nn.MultiheadAttention(64, 4)
        self.computed = parametrizations.spectral_norm(nn.Linear(64, 64))
        self.fc1 = nn.Linear(64, 128)
        self.tied = nn.Linear(64, 128, bias=False)
        self.tied.weight = self.fc1.weight
        self.free = nn.Linear(64, 128)
        self.head = nn.Linear(128, 10)

    def pruned(self) -> Net:
        for module in (self.conv, self.attention.out_proj, self.fc1, self.head):
            with torch.no_grad():
                module.weight.mul_(NofM(2, 4).mask(module.weight, module.weight.numel() // 2))
        return self.bfloat16()


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Torch's conversion, which needs a GPU, replaced by a copy; the tensors that it was given."""
    given: list[Tensor] = []

    def convert(weight: Tensor) -> Tensor:
        given.append(weight)
        return weight.clone()

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", convert)
    monkeypatch.setattr(semi_structured, "_check_device", lambda device: None)
    monkeypatch.setattr(torch.sparse.SparseSemiStructuredTensor, "_FORCE_CUTLASS", False)
    return given


def test_linear_layers_that_are_2_4_are_converted_and_others_named(converted: list[Tensor]) -> None:
    torch.manual_seed(0)
    net = Net().pruned()
    weight, x = net.fc1.weight, torch.rand(3, 64, dtype=torch.bfloat16)
    before = net.fc1(x)
    report = to_semi_structured(net)
    assert report.converted == ("fc1", "tied")
    assert report.dense == {
        "conv": "torch has 2:4 kernels for linear layers only",
        "attention.out_proj": "torch's fused attention reads its weight",
        "computed": "its weights are not 2:4",
        "free": "its weights are not 2:4",
        "head": "10 x 128 is no multiple of 16 x 16",
    }
    assert repr(report) == (
        "2 of 7 layers run on 2:4 kernels; dense: conv (torch has 2:4 kernels for linear layers only); "
        "attention.out_proj (torch's fused attention reads its weight); computed, free (its weights are not 2:4); "
        "head (10 x 128 is no multiple of 16 x 16)"
    )
    assert len(converted) == 1
    assert torch.equal(converted[0], weight)
    assert net.fc1.weight is net.tied.weight is not weight
    assert not net.fc1.weight.requires_grad
    assert torch.equal(net.fc1(x), before)


def test_a_network_that_was_pruned_2_4_is_converted_whole(converted: list[Tensor]) -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    prune_once(model, 0.5, granularity="2:4")
    assert repr(to_semi_structured(nn.DataParallel(model.half()))) == "2 of 2 layers run on 2:4 kernels"
    assert len(converted) == 2


@pytest.mark.parametrize("cutlass", [True, False])
def test_sides_are_those_that_torchs_kernels_need(
    converted: list[Tensor], monkeypatch: pytest.MonkeyPatch, cutlass: bool
) -> None:
    monkeypatch.setattr(torch.sparse.SparseSemiStructuredTensor, "_FORCE_CUTLASS", cutlass)
    model = nn.Sequential(nn.Linear(64, 16, bias=False), nn.Linear(128, 64, bias=False)).half()
    for layer in model:
        nn.init.zeros_(layer.weight)
    report = to_semi_structured(model)
    assert report.dense == ({"0": "16 x 64 is no multiple of 32 x 64"} if cutlass else {})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda net: net.float(), r"no layer can be converted: .*fc1, tied, head \(float32; call model.bfloat16\(\)"),
        (lambda net: nn.init.ones_(net.fc1.weight), r"no layer can be converted: .*head \(10 x 128 is no multiple"),
        (
            lambda net: [nn.init.ones_(p) for p in net.parameters()],
            "no layer's weights are 2:4; prune with granularity",
        ),
    ],
)
def test_a_network_without_a_layer_to_convert_is_refused(converted: list[Tensor], change: Any, said: str) -> None:
    net = Net().pruned()
    change(net)
    before = dict(net.named_parameters())
    with pytest.raises(ValueError, match=f"^to_semi_structured: {said}") as refused:
        to_semi_structured(net)
    assert "\n" not in str(refused.value)
    assert all(parameter is before[name] for name, parameter in net.named_parameters())
    assert not converted


def test_what_torch_refuses_leaves_the_network_as_it_was(
    converted: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    prune_once(model, 0.5, granularity="2:4")
    weights = [layer.weight for layer in model.half()]

    def convert(weight: Tensor) -> Tensor:
        if weight.data_ptr() == weights[1].data_ptr():
            raise RuntimeError("not\nhere")
        return weight.clone()

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", convert)
    with pytest.raises(ValueError, match=r"torch cannot convert 1 \(not here\)"):
        to_semi_structured(model)
    assert [layer.weight for layer in model] == weights


@pytest.mark.parametrize(
    ("capability", "device", "said"),
    [
        (
            None,
            "cpu",
            "the model is on cpu, and 2:4 kernels need an NVIDIA GPU of compute capability 8.0 or more; this",
        ),
        ((9, 0), "cpu", "the model is on cpu, .*; move the model there"),
        ((7, 5), "cuda:0", "A card has 7.5; 2:4 kernels need an NVIDIA GPU of compute capability 8.0 or more"),
        ((8, 0), "cuda:0", None),
    ],
)
def test_a_machine_without_such_kernels_is_named(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, device: str, said: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    if said is None:
        semi_structured._check_device(torch.device(device))
        return
    with pytest.raises(ValueError, match=said) as refused:
        semi_structured._check_device(torch.device(device))
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_a_2_4_network_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^to_semi_structured: the model is on cpu, and 2:4 kernels need"):
        to_semi_structured(Net().pruned())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with 2:4 kernels")
def test_on_a_gpu_the_output_is_within_bf16s_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    prune_once(model, 0.5, granularity="2:4")
    model, x = model.bfloat16().cuda(), torch.rand(64, 64, dtype=torch.bfloat16, device="cuda")
    with torch.inference_mode():
        before = model(x).float()
        assert len(to_semi_structured(model).converted) == 2
        assert (model(x).float() - before).abs().max() <= 2**-7 * before.abs().max()
