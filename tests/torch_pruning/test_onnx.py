"""Pruned networks as ONNX, compiled and exported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.models import robust_lenet
from pwoa_plugin.torch_pruning import PwoAGroupPruner, export_onnx


@pytest.fixture
def pruned(small: nn.Module, x: Tensor) -> nn.Module:
    PwoAGroupPruner(small, x, pruning_ratio=0.5).step()
    return small.eval()


def test_the_file_is_smaller_and_answers_the_same(tmp_path: Path) -> None:
    import onnxruntime

    x = torch.rand(4, 1, 28, 28)
    model = robust_lenet()
    export_onnx(model, tmp_path / "dense.onnx", x)
    PwoAGroupPruner(model, x, pruning_ratio=0.75).step()
    export_onnx(model, tmp_path / "pruned.onnx", x)
    assert (tmp_path / "pruned.onnx").stat().st_size < 0.1 * (tmp_path / "dense.onnx").stat().st_size
    assert {file.name for file in tmp_path.iterdir()} == {"dense.onnx", "pruned.onnx"}

    session = onnxruntime.InferenceSession(tmp_path / "pruned.onnx", providers=["CPUExecutionProvider"])
    images = torch.rand(3, 1, 28, 28)  # another number of them
    output = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(output), model(images), atol=1e-4)


def test_mode_is_kept_and_keywords_and_fixed_batches_do(pruned: nn.Module, x: Tensor, tmp_path: Path) -> None:
    pruned.train()
    export_onnx(pruned, tmp_path / "fixed.onnx", {"x": x}, batch=False)
    assert pruned.training
    assert (tmp_path / "fixed.onnx").exists()


def test_what_cannot_be_exported_leaves_no_file(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if float(x.sum()) > 0 else x

    with pytest.raises(ValueError, match=r"torch\.onnx\.export fails on it"):
        export_onnx(Odd(), tmp_path / "odd.onnx", torch.rand(2, 4))
    with pytest.raises(ValueError, match="example_inputs: fc"):
        export_onnx(Odd(), tmp_path / "odd.onnx", torch.rand(2, 5))
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(
    pruned: nn.Module, x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(ModuleNotFoundError, match=r"needs onnxscript.*pwoa-plugin\[onnx\]"):
        export_onnx(pruned, tmp_path / "file.onnx", x)


def test_torch_compile(pruned: nn.Module, x: Tensor) -> None:
    """aot_eager: traced, and differentiated, by torch.compile; no C++ compiler is asked for."""
    torch._dynamo.reset()
    compiled = torch.compile(pruned, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), pruned(x), atol=1e-6)
    compiled(x).sum().backward()
    assert pruned.conv1.weight.grad.shape == (4, 1, 3, 3)


def test_torch_export(pruned: nn.Module, x: Tensor) -> None:
    exported = torch.export.export(pruned, (x,))
    assert torch.allclose(exported.module()(x), pruned(x), atol=1e-6)
