from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pwoa_plugin.errors import InputError
from pwoa_plugin.method.snapshot import Snapshot
from pwoa_plugin.runs.state_file import read_state, write_state


def a_state() -> Snapshot:
    torch.manual_seed(0)
    tensors: dict[str, Any] = {
        "model.conv": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
        "model.half": torch.randn(5).bfloat16(),
        "mask.conv": torch.rand(4, 3) > 0.5,
        "random.torch": torch.get_rng_state(),
        "optimizer.0.step": torch.tensor(3.0),
        "empty": torch.zeros(0, 2),
    }
    return Snapshot(tensors, {"status": {"step": 3, "lr": 0.1 + 0.2}, "history": [{"loss": 1e-300}], "residual": None})


def test_round_trip_to_the_bit(tmp_path: Path) -> None:
    state = a_state()
    write_state(tmp_path / "new" / "a.safetensors", state)
    again = read_state(tmp_path / "new" / "a.safetensors")
    assert again.facts == state.facts
    assert again.tensors.keys() == state.tensors.keys()
    for name, tensor in state.tensors.items():
        assert torch.equal(tensor, again.tensors[name])
        assert tensor.dtype == again.tensors[name].dtype


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_byte_that_has_changed_is_found_wherever_it_is(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_state(path, a_state())
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found, said = None, ""
    try:
        found = read_state(path)
    except InputError as error:
        said = str(error)
    if found is None:
        assert said.startswith(f"{path}: ")
        assert len(said.splitlines()) == 1
        return
    # Padding, or a space in the header: nothing that is read has changed.
    expected = a_state()
    assert found.facts == expected.facts
    assert all(torch.equal(tensor, found.tensors[name]) for name, tensor in expected.tensors.items())


@pytest.mark.parametrize(
    ("there", "instead", "damaged"),
    [(b'"shape":[0,2]', b'"shape":[0,3]', "empty"), (b'"F32","shape":[]', b'"I32","shape":[]', "optimizer.0.step")],
)
def test_another_shape_or_dtype_of_the_same_bytes_is_found(
    there: bytes, instead: bytes, damaged: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    write_state(path, a_state())
    content = path.read_bytes()
    assert content.count(there) == 1
    path.write_bytes(content.replace(there, instead))
    with pytest.raises(InputError, match=f"{damaged} is damaged"):
        read_state(path)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_state(tmp_path / "missing")
    save_file({"a": torch.zeros(2)}, tmp_path / "weights")
    with pytest.raises(InputError, match="is no training state"):
        read_state(tmp_path / "weights")
    (tmp_path / "text").write_text("text")
    with pytest.raises(InputError):
        read_state(tmp_path / "text")


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_state(path, a_state())
    bad = a_state()
    bad.facts["loss"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_state(path, bad)
    assert read_state(path).facts == a_state().facts
    assert os.listdir(tmp_path) == ["a.safetensors"]
