"""Networks as ONNX, as programs of torch.export, and in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.errors import FileError, InputError
from pwoa_plugin.export import Choices, ONNXNetwork, compared, export_onnx, export_pt2, make_format, quantize_onnx
from pwoa_plugin.export.session import open_session
from pwoa_plugin.models.normalisation import normalise_inputs

EXPORTS = {".onnx": export_onnx, ".pt2": export_pt2}


@pytest.mark.parametrize("suffix", EXPORTS)
def test_a_file_answers_as_the_network_for_any_number_of_images(
    suffix: str, trained: nn.Module, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    normalise_inputs(trained, mean=[0.4], std=[0.2])  # a hook on the network itself
    path = tmp_path / f"net{suffix}"
    EXPORTS[suffix](trained, path, images[0][:1])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    found = make_format(suffix[1:]).read(path, trained)
    for count in (1, 2, 50):
        agreement = compared(trained, found, images[0][:count])
        assert (agreement.images, agreement.same) == (count, count)
        assert agreement.difference < 1e-4


def test_a_program_holds_its_example_and_not_the_images_beside_it(trained: nn.Module, tmp_path: Path) -> None:
    images = torch.rand(2000, 1, 8, 8)  # 512 kB
    export_pt2(trained, tmp_path / "net.pt2", images[:2])
    assert (tmp_path / "net.pt2").stat().st_size < 100_000


@pytest.mark.parametrize("suffix", EXPORTS)
def test_a_file_that_answers_something_else_is_not_put_in_place(
    suffix: str, trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"as it was")
    monkeypatch.setattr("pwoa_plugin.export.traced.largest_difference", lambda *_: 0.5)
    with pytest.raises(InputError, match=r"output differs by 5\.0e-01"):
        EXPORTS[suffix](trained, path, torch.rand(2, 1, 8, 8))
    assert path.read_bytes() == b"as it was"
    assert len(list(tmp_path.iterdir())) == 1


class Odd(nn.Module):
    """Looks at values, which no trace can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if float(x.sum()) > 0 else -x.flatten(1)


def write_int8(model: nn.Module, path: Path, images: Tensor) -> None:
    make_format("onnx").write(model, path, images, Choices(quantize="int8", calibration=images))


@pytest.mark.parametrize("write", [*EXPORTS.values(), write_int8])
def test_what_cannot_be_written_leaves_nothing(write: Callable[..., Any], trained: nn.Module, tmp_path: Path) -> None:
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(InputError, match=r"export fails on it"):
        write(Odd(), tmp_path / "odd", x)
    (tmp_path / "a-file").touch()
    with pytest.raises(FileError, match="cannot be written"):
        write(trained, tmp_path / "a-file" / "net", x)
    with pytest.raises(FileError, match="it is a folder"):
        write(trained, tmp_path, x)
    assert [file.name for file in tmp_path.iterdir()] == ["a-file"]


def test_int8_is_smaller_keeps_zeros_and_nearly_agrees(
    trained: nn.Module, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    import onnx
    from onnx import numpy_helper

    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 3))
    with torch.no_grad():
        wide[1].weight[:, ::2] = 0
    export_onnx(wide, tmp_path / "float.onnx", images[0][:2])
    quantize_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", images[0][:64])
    sizes = {file.stem: file.stat().st_size for file in tmp_path.iterdir()}
    assert sizes["int8"] < 0.4 * sizes["float"]
    tensors = [numpy_helper.to_array(each) for each in onnx.load(tmp_path / "int8.onnx").graph.initializer]
    (weight,) = [each for each in tensors if each.dtype == "int8" and 512 in each.shape and 64 in each.shape]
    zeros = (weight == 0).mean()
    assert zeros >= 0.5
    scales = [each for each in tensors if each.shape == (512,) and each.dtype == "float32"]
    assert scales  # one for each output channel
    write_int8(trained, tmp_path / "trained.onnx", images[0][:64])
    agreement = compared(trained, ONNXNetwork(tmp_path / "trained.onnx"), images[0])
    assert agreement.same >= 0.9 * agreement.images
    assert 1e-5 < agreement.difference < 0.2


def test_bad_files_are_told_in_one_line(trained: nn.Module, tmp_path: Path) -> None:
    export_onnx(trained, tmp_path / "net.onnx", torch.rand(2, 1, 8, 8))
    whole = (tmp_path / "net.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    for name, said in {
        "cut.onnx": r"cut\.onnx: is no usable ONNX file",
        "ne.onnx": r"no such ONNX file; did you mean net\.onnx\?",
    }.items():
        with pytest.raises(InputError, match=said) as raised:
            open_session(tmp_path / name)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"net\.onnx: does not take images \(3, 9, 9\)"):
        quantize_onnx(tmp_path / "net.onnx", tmp_path / "out.onnx", torch.rand(4, 3, 9, 9))
    assert not (tmp_path / "out.onnx").exists()
