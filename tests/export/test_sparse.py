from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pwoa_plugin import load_sparse, save_sparse
from pwoa_plugin._sparse import Packed, form_bytes, pack, unpack
from pwoa_plugin.models import load_checkpoint
from pwoa_plugin.models.training_aids import CheckpointError
from pwoa_plugin.runs.size import size_report


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def sparse_(tensor: Tensor, density: float, seed: int = 0) -> None:
    kept = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed)) < density
    with torch.no_grad():
        tensor.masked_fill_(~kept, 0)


class Mixed(nn.Module):
    """A weight for each form, tied weights, buffers, integers, a scalar and nothing at all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Linear(400, 300)
        self.dense = nn.Linear(30, 20)
        self.tied = nn.Linear(30, 20, bias=False)
        self.tied.weight = self.dense.weight
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("table", torch.arange(6).reshape(2, 3))
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("eye", torch.eye(9, dtype=torch.float64))
        self.register_buffer("flags", torch.tensor([True, False]))
        sparse_(self.conv.weight, 0.4)
        sparse_(self.wide.weight, 0.01)


@pytest.fixture
def mixed() -> Mixed:
    torch.manual_seed(0)
    return Mixed()


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["pwoa-sparse"])


@given(
    shape=st.one_of(
        st.lists(st.integers(0, 7), min_size=2, max_size=4).map(tuple),
        st.sampled_from([(2, 65_537), (300, 3), (1, 256), (1, 257), (70_000, 2)]),
    ),
    density=st.floats(0, 1) | st.just(0.01),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
@settings(deadline=None, max_examples=80)
def test_every_tensor_comes_back_bit_equal_in_the_bytes_that_the_rule_counts(
    shape: tuple[int, ...], density: float, dtype: torch.dtype
) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    if tensor.numel() > 2:
        tensor.view(-1)[:3] = torch.tensor([math.nan, math.inf, -math.inf])
    sparse_(tensor, density)
    form, parts = pack(tensor)
    packed = Packed(form=form, shape=shape, dtype=str(dtype)[6:])
    assert bits(unpack(packed, parts)) == bits(tensor)
    sizes = form_bytes(tensor, int(np.count_nonzero(tensor.double().numpy())))
    assert sum(part.nbytes for part in parts.values()) == sizes[form] == min(sizes.values())


def test_a_network_loads_bit_equal_and_has_the_bytes_of_the_size_report(mixed: Mixed, tmp_path: Path) -> None:
    path = tmp_path / "new" / "small.safetensors"
    save_sparse(mixed, path)
    header = header_of(path)
    assert header["version"] == 1
    assert {name: packed["form"] for name, packed in header["packed"].items()} == {
        "conv.weight": "bitmap",
        "wide.weight": "csr",
        "eye": "bitmap",
    }
    assert header["tied"] == {"tied.weight": "dense.weight"}
    stored = load_file(path)
    saved = sum(stored[f"eye:{part}"].nbytes for part in ("bitmap", "values")) - mixed.eye.nbytes
    assert sum(tensor.nbytes for tensor in stored.values()) == size_report(mixed).sparse_bytes + saved
    other = Mixed()
    load_sparse(other, path)
    expected = mixed.state_dict()
    assert {name: bits(tensor) for name, tensor in other.state_dict().items()} == {
        name: bits(tensor) for name, tensor in expected.items()
    }
    assert other.tied.weight is other.dense.weight
    first = path.read_bytes()
    save_sparse(other, path)
    assert path.read_bytes() == first


def test_a_zero_loses_its_sign_and_nothing_else(tmp_path: Path) -> None:
    layer = nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(64, 64) < 0.1)  # as masks do: zeros of both signs
    save_sparse(layer, tmp_path / "a")
    other = nn.Linear(64, 64)
    load_sparse(other, tmp_path / "a")
    assert (bits(layer.weight) == bits(other.weight)) is False
    assert bits(layer.weight + 0.0) == bits(other.weight)


@pytest.mark.parametrize("values", ["float16", "bfloat16"])
def test_values_are_rounded_once_and_nothing_else_is(mixed: Mixed, tmp_path: Path, values: str) -> None:
    save_sparse(mixed, tmp_path / "a", values=values)
    other = Mixed()
    load_sparse(other, tmp_path / "a")
    narrow = getattr(torch, values)
    for name, tensor in mixed.state_dict().items():
        cast = tensor.to(narrow).to(tensor.dtype) if tensor.is_floating_point() and tensor.dim() > 1 else tensor
        assert bits(other.state_dict()[name]) == bits(cast), name
    assert load_file(tmp_path / "a")["dense.weight:values"].dtype == narrow
    half = Mixed().to(narrow)
    save_sparse(half, tmp_path / "half")
    load_sparse(other.to(narrow), tmp_path / "half")
    assert bits(other.wide.weight) == bits(half.wide.weight)


def test_values_beyond_the_range_are_refused_before_anything_is_written(mixed: Mixed, tmp_path: Path) -> None:
    with torch.no_grad():
        mixed.wide.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"^save_sparse: wide.weight has values beyond float16's range; give values="):
        save_sparse(mixed, tmp_path / "a", values="float16")
    with torch.no_grad():
        mixed.wide.weight[0, 0] = 3.4e38
    with pytest.raises(ValueError, match=r"wide.weight has values beyond bfloat16's range; give values='float32'$"):
        save_sparse(mixed, tmp_path / "a", values="bfloat16")
    with pytest.raises(ValueError, match="values='int4' is unknown; use float32, float16, bfloat16"):
        save_sparse(mixed, tmp_path / "a", values="int4")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("compression", "share"), [(16, 8), (100, 50)])
def test_a_file_is_nearly_as_much_smaller_as_the_network(tmp_path: Path, compression: int, share: int) -> None:
    model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.Linear(1024, 512), nn.Conv2d(128, 128, 3), nn.Linear(512, 10))
    for i, module in enumerate(model):
        sparse_(module.weight, 1 / compression, i)
    save_file(model.state_dict(), tmp_path / "dense")
    save_sparse(model, tmp_path / "sparse")
    assert (tmp_path / "sparse").stat().st_size <= (tmp_path / "dense").stat().st_size / share


def test_wrappers_are_left_out(mixed: Mixed, tmp_path: Path) -> None:
    save_sparse(nn.DataParallel(mixed), tmp_path / "a")
    other = nn.DataParallel(Mixed())
    load_sparse(other, tmp_path / "a")
    assert bits(other.module.wide.weight) == bits(mixed.wide.weight)


def rewritten(path: Path, header: dict[str, Any] | str, **changed: Tensor | None) -> None:
    tensors = {name: tensor for name, tensor in (load_file(path) | changed).items() if tensor is not None}
    save_file(tensors, path, {"pwoa-sparse": header if isinstance(header, str) else json.dumps(header)})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut short": (cut, "is no usable sparse file"),
    "a pickle": (lambda path: torch.save({"a": torch.zeros(2)}, path), "is no usable sparse file"),
    "another safetensors file": (lambda path: save_file({"a": torch.zeros(2)}, path), "of something else"),
    "a later version": (lambda path: rewritten(path, header_of(path) | {"version": 2}), "version is 2, this release"),
    "no JSON": (lambda path: rewritten(path, "{"), "no usable JSON"),
    "a list": (lambda path: rewritten(path, "[]"), "version is None"),
    "a flipped bit": (flipped, "its bytes are not those"),
    "a part is missing": (lambda path: rewritten(path, header_of(path), **{"conv.weight:bitmap": None}), "not name"),
    "tied to nothing": (lambda path: rewritten(path, header_of(path) | {"tied": {"a": "b"}}), "not name"),
    "one name twice": (lambda path: rewritten(path, header_of(path) | {"tied": {"scale": "table"}}), "not name"),
    "a part of two": (
        lambda path: rewritten(path, header_of(path), **{"wide.weight": torch.zeros(300, 400)}),
        "not name",
    ),
    "an unknown form": (
        lambda path: rewritten(path, json.dumps(header_of(path)).replace('"csr"', '"coo"')),
        "header.packed.wide.weight.form",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(mixed: Mixed, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    save_sparse(mixed, path)
    spoil, said = DAMAGES[damage]
    spoil(path)
    other = Mixed()
    before = {name: bits(tensor) for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"a.safetensors: is no usable sparse file") as refused:
        load_sparse(other, path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {name: bits(tensor) for name, tensor in other.state_dict().items()} == before


@pytest.mark.parametrize(
    ("form", "shape", "parts", "said"),
    [
        ("bitmap", (2, 4), {"bitmap": [3, 0]}, "its bitmap are (2,), and must be (1,)"),
        ("bitmap", (2, 2), {"bitmap": [3 + 64]}, "more bits than"),
        ("bitmap", (2, 4), {"bitmap": [7]}, "its values are (2,), and must be (3,)"),
        ("csr", (2, 4), {"columns": [0, 4], "rows": [0, 1, 2]}, "a column is beyond the 4"),
        ("csr", (2, 4), {"columns": [0, 1], "rows": [0, 2, 1]}, "row pointers"),
        ("csr", (2, 4), {"columns": [0, 1], "rows": [0, 1, 3]}, "row pointers"),
        ("csr", (2, 4), {"columns": [0, 1], "rows": [0, 2]}, "its rows are (2,), and must be (3,)"),
        ("csr", (2, 4), {"columns": [1, 1], "rows": [0, 2, 2]}, "do not rise"),
        ("csr", (2, 4), {"columns": [0.0, 1.0], "rows": [0, 2, 2]}, "its columns are torch.float32"),
        ("dense", (3, 1), {}, "its values are (2,), and must be (3,)"),
        ("dense", (2**40, 2**40), {}, "is too large"),
        ("csr", (1, 2**52), {"columns": [0] * 14, "rows": [0, 2]}, "columns are (14,), and must be (16,)"),
        ("csr", (1, 2**52), {"columns": [0] * 8 + [1] + [0] * 7, "rows": [0, 2]}, "does not fit into memory"),
    ],
)
def test_parts_that_are_no_tensors_are_refused(
    form: Any, shape: tuple[int, ...], parts: dict[str, list[float]], said: str
) -> None:
    stored = {
        name: torch.tensor(numbers) if isinstance(numbers[0], float) else torch.tensor(numbers, dtype=torch.uint8)
        for name, numbers in parts.items()
    }
    with pytest.raises(ValueError, match=r".") as refused:
        unpack(Packed(form=form, shape=shape, dtype="float32"), {**stored, "values": torch.ones(2)})
    assert said in str(refused.value)


def named_differently() -> nn.Module:
    model = Mixed()
    model.register_buffer("more", torch.zeros(1))
    return model


def shaped_differently() -> nn.Module:
    model = Mixed()
    model.conv = nn.Conv2d(3, 8, 5)
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (named_differently, "more is not in the file"),
        (shaped_differently, r"conv.weight is \(8, 3, 3, 3\) in the file and \(8, 3, 5, 5\) in the network"),
        (
            lambda: Mixed().half(),
            "conv.bias is torch.float32 in the file and torch.float16 in the network.*and 13 more",
        ),
        (lambda: nn.Linear(3, 3), "bias is not in the file, and 18 more"),
    ],
)
def test_another_network_is_refused_and_unchanged(
    mixed: Mixed, tmp_path: Path, make: Callable[[], nn.Module], said: str
) -> None:
    save_sparse(mixed, tmp_path / "a")
    other = make()
    before = {name: bits(tensor) for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=said):
        load_sparse(other, tmp_path / "a")
    assert {name: bits(tensor) for name, tensor in other.state_dict().items()} == before


class WithExtra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": 3}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Linear(3, 3, device="meta"), "model: weight is on the meta device"),
        (nn.LazyLinear(3), "model: weight has no values yet"),
        (WithExtra(2, 2), "save_sparse: _extra_state is a dict"),
    ],
)
def test_a_network_that_no_file_can_hold_is_refused(tmp_path: Path, model: nn.Module, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        save_sparse(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_missing_files_and_folders_are_named(mixed: Mixed, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such sparse file"):
        load_sparse(mixed, tmp_path / "nothing")
    (tmp_path / "file").write_text("a file, and no folder")
    with pytest.raises(OSError, match="cannot be written"):
        save_sparse(mixed, tmp_path / "file" / "a")


def test_a_sparse_file_is_a_checkpoint(mixed: Mixed, tmp_path: Path) -> None:
    path = tmp_path / "pruned.sparse.safetensors"
    save_sparse(mixed, path)
    other = Mixed()
    load_checkpoint(other, path)
    assert all(bits(other.state_dict()[name]) == bits(tensor) for name, tensor in mixed.state_dict().items())
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_checkpoint(nn.Linear(3, 3), path)
    flipped(path)
    with pytest.raises(CheckpointError, match=r"is no usable sparse file .its bytes are not those"):
        load_checkpoint(other, path)
