from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pwoa_plugin import to_semi_structured
from pwoa_plugin.export import make_format, semi_structured
from pwoa_plugin.export.base import Choices
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
        "conv": "torch has no 2:4 kernels for convolutions; unfold=True makes them products of matrices",
        "attention.out_proj": "torch's fused attention reads its weight",
        "computed": "its weights are not 2:4",
        "free": "its weights are not 2:4",
        "head": "10 x 128 is no multiple of 16 x 16",
    }
    assert repr(report) == (
        "2 of 7 layers run on 2:4 kernels; dense: conv (torch has no 2:4 kernels for convolutions; unfold=True makes "
        "them products of matrices); attention.out_proj (torch's fused attention reads its weight); computed, free "
        "(its weights are not 2:4); head (10 x 128 is no multiple of 16 x 16)"
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


# -- torch's own tensors, with a product on the CPU in the place of the GPU's ----

STAND_IN = """
import torch
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass as dense

torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS = True
torch.sparse.SparseSemiStructuredTensorCUTLASS._validate_device_dim_dtype_shape = classmethod(lambda cls, tensor: None)
library = torch.library.Library("aten", "IMPL")
library.impl("_sparse_semi_structured_mm", lambda packed, meta, x: dense(packed, meta) @ x, "CPU")
library.impl(
    "_sparse_semi_structured_addmm", lambda bias, packed, meta, x: dense(packed, meta) @ x + bias[:, None], "CPU"
)
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    tensor, cutlass = torch.sparse.SparseSemiStructuredTensor, torch.sparse.SparseSemiStructuredTensorCUTLASS
    monkeypatch.setattr(semi_structured, "_check_device", lambda device: None)
    monkeypatch.setattr(tensor, "_FORCE_CUTLASS", tensor._FORCE_CUTLASS)
    monkeypatch.setattr(cutlass, "_validate_device_dim_dtype_shape", cutlass._validate_device_dim_dtype_shape)
    names: dict[str, Any] = {}
    exec(STAND_IN, names)
    yield
    names["library"]._destroy()


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(64, 64, 3, stride=2, padding=(1, 2)),
        nn.ReLU(),
        nn.Conv2d(64, 64, 1, stride=2, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.Linear(64, 3),
    )
    prune_once(model, 0.5, granularity="2:4", exclude=["6"])
    return model.bfloat16().eval()


@pytest.mark.parametrize(("unfold", "converted"), [(False, ("2", "5")), (True, ("0", "2", "5"))])
@torch.no_grad()
def test_convolutions_as_products_answer_as_they_did(stand_in: None, unfold: bool, converted: tuple[str, ...]) -> None:
    model, x = convolutional(), torch.rand(5, 64, 9, 8).bfloat16()
    before = model(x).float()
    assert to_semi_structured(model, unfold=unfold).converted == converted
    assert all(isinstance(model[int(i)].weight, torch.sparse.SparseSemiStructuredTensor) for i in converted)
    assert (model(x).float() - before).abs().max() <= 2**-6 * before.abs().max()


def test_a_program_is_written_and_its_cards_lines_load_it_elsewhere(stand_in: None, tmp_path: Path) -> None:
    model, x = convolutional(), torch.rand(5, 64, 9, 8).bfloat16()
    path, made = tmp_path / "net.pt2", make_format("semi-structured")
    made.write(model, path, x[:2], Choices())
    assert not isinstance(model[5].weight, torch.sparse.SparseSemiStructuredTensor)
    torch.save(x, tmp_path / "x.pt")
    code = f"{STAND_IN}\nimages = torch.load({str(tmp_path / 'x.pt')!r})\n{made.loading(str(path), '', False)}"
    code = code.replace('"cuda"', '"cpu"') + f"\ntorch.save(logits, {str(tmp_path / 'logits.pt')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    with torch.no_grad():
        expected = model(x).float()
    found = torch.load(tmp_path / "logits.pt").float()
    assert (found - expected).abs().max() <= 2**-6 * expected.abs().max()


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
