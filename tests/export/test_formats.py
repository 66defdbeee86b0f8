"""Formats by name and by suffix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.errors import InputError
from pwoa_plugin.export import FORMATS, Choices, format_of, make_format, zeros


@pytest.mark.parametrize(
    ("file", "given", "meant"),
    [
        ("a.sparse.safetensors", None, "sparse"),
        ("a.onnx", None, "onnx"),
        ("dir/a.pt2", None, "pt2"),
        ("a.pt2", "semi-structured", "semi-structured"),
        ("a.bin", "onnx", "onnx"),
    ],
)
def test_the_suffix_says_the_format(file: str, given: str | None, meant: str) -> None:
    assert format_of(file, given) == meant


@pytest.mark.parametrize(
    ("file", "given", "said"),
    [
        ("a.safetensors", None, "suffix names no format; end it in .sparse.safetensors, .onnx, .pt2, .pte, or"),
        ("a.onnx", "onx", "format='onx' is unknown; did you mean onnx?"),
        ("a.onnx", "tflite", "known are sparse, onnx"),
        ("a.onnx", "pt2", "has the suffix of onnx, and format='pt2' is given; end it in .pt2"),
        (" ", None, "names no file"),
    ],
)
def test_what_names_no_format(file: str, given: str | None, said: str) -> None:
    with pytest.raises(InputError) as raised:
        format_of(file, given)
    assert said in str(raised.value)


def test_every_format_can_be_made() -> None:
    for name in FORMATS:
        made = make_format(name)
        assert made.suffix.startswith(".")
        for removed in (False, True):
            compile(made.loading("it's.x", "make_network('lenet')", removed), name, "exec")


@pytest.mark.parametrize(("values", "exact"), [(None, True), ("float32", True), ("bfloat16", False)])
def test_sparse_files_answer_as_the_network(
    values: str | None, exact: bool, trained: nn.Module, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    sparse, path = make_format("sparse"), tmp_path / "a.sparse.safetensors"
    sparse.write(trained, path, images[0][:2], Choices(values=values))
    twin = sparse.read(path, trained)
    assert twin is not trained
    assert torch.equal(twin(images[0]), trained(images[0])) is exact


def test_semi_structured_files_hold_what_is_left(
    trained: nn.Module, images: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="2:4"):
        make_format("semi-structured").write(trained, tmp_path / "a.pt2", images[0][:2], Choices())
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(zeros, "to_semi_structured", lambda model: model.fc1.weight.data.mul_(2))
    make_format("semi-structured").write(trained, tmp_path / "a.pt2", images[0][:2], Choices())
    loaded = make_format("pt2").read(tmp_path / "a.pt2", trained)
    trained.fc1.weight.data.mul_(2)  # was not changed before
    assert torch.allclose(loaded(images[0]), trained(images[0]), atol=1e-5)
