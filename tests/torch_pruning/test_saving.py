"""Pruned networks in files."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pwoa_plugin import load_sparse, save_sparse
from pwoa_plugin.models import CheckpointError, load_checkpoint, robust_lenet
from pwoa_plugin.torch_pruning import PwoAGroupPruner, load_pruned, save_pruned


@pytest.fixture
def saved(small: nn.Module, x: Tensor, tmp_path: Path) -> Path:
    pruner = PwoAGroupPruner(small, x, pruning_ratio=0.5, iterative_steps=2)
    pruner.step()
    pruner.step()
    with torch.no_grad():  # as training would
        for parameter in small.parameters():
            parameter.mul_(1.5)
    small.bn1.running_mean += 1
    save_pruned(pruner, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_it_comes_back_to_the_bit(small: nn.Module, saved: Path, x: Tensor) -> None:
    fresh = type(small)().eval()
    dense = copy.deepcopy(fresh)
    loaded = load_pruned(fresh, saved)
    assert torch.equal(loaded(x), small.eval()(x))
    assert {key: t.shape for key, t in loaded.state_dict().items()} == {
        key: t.shape for key, t in small.state_dict().items()
    }
    assert not loaded.training
    assert loaded.conv1.out_channels == 4
    # The model that was given is not touched.
    assert all(torch.equal(one, other) for one, other in zip(fresh.parameters(), dense.parameters(), strict=True))


def test_a_fresh_process_that_has_the_class_loads_it(tmp_path: Path) -> None:
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    model = robust_lenet()
    pruner = PwoAGroupPruner(model, x, pruning_ratio=0.75)
    pruner.step()
    save_pruned(pruner, tmp_path / "lenet.safetensors")
    code = """
import sys, torch
from pwoa_plugin.models import LeNet
from pwoa_plugin.torch_pruning import load_pruned
model = load_pruned(LeNet().eval(), sys.argv[1])
x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
print(model(x).double().flatten().tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "lenet.safetensors")], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == pytest.approx(model(x).double().flatten().tolist(), abs=1e-6)


def test_under_inference_mode_it_can_still_be_trained(small: nn.Module, saved: Path, x: Tensor) -> None:
    fresh = type(small)()
    with torch.inference_mode():
        loaded = load_pruned(fresh, saved)
    assert loaded.training
    loaded(x).sum().backward()


def test_there_is_no_pickle_and_the_history_is_json(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        (content,) = file.metadata().values()  # one: the order of several is not fixed, and files would differ
    header = json.loads(content)
    assert {layer for layer, _, _ in header["removals"]} == {"conv2", "conv3", "fc1"}  # conv1 goes with conv2
    assert header["inputs"] == {"tensor": [4, 1, 8, 8], "dtype": "float32"}


def test_nothing_removed_is_nothing_to_save(small: nn.Module, x: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is removed yet"):
        save_pruned(PwoAGroupPruner(small, x), tmp_path / "file.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values", ["float32", "bfloat16"])
def test_a_sparse_file_says_what_was_removed(
    small: nn.Module, saved: Path, x: Tensor, tmp_path: Path, values: Any
) -> None:
    loaded = load_pruned(type(small)().eval(), saved)
    save_sparse(loaded, tmp_path / "a", values=values)
    if values == "bfloat16":
        for parameter in loaded.parameters():
            if parameter.dim() > 1:
                parameter.data = parameter.data.bfloat16().float()
    again = load_pruned(type(small)().eval(), tmp_path / "a", example_inputs=x)
    assert torch.equal(again(x), loaded(x))
    save_sparse(again, tmp_path / "b", values=values)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_a_sparse_file_that_cannot_be_loaded_so_is_told_in_one_line(
    small: nn.Module, saved: Path, x: Tensor, tmp_path: Path
) -> None:
    whole, file = type(small)(), tmp_path / "a"
    save_sparse(small, file)
    with pytest.raises(ValueError, match=r"a: does not describe the pruner's example inputs; give example_inputs$"):
        load_pruned(whole, file)
    with pytest.raises(ValueError, match=r"of another network: .*; channels were removed from it: load_pruned\(\)"):
        load_sparse(whole, file)
    with pytest.raises(CheckpointError, match=r"channels were removed; give its run's folder, or load it with"):
        load_checkpoint(whole, file)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"a: is no usable file of a pruned network \(its bytes are not those"):
        load_pruned(whole, file, example_inputs=x)
    save_sparse(whole, file)
    with pytest.raises(ValueError, match=r"\(nothing was removed from its network, which load_sparse\(\) loads\)"):
        load_pruned(whole, file, example_inputs=x)


def test_half_precision(small: nn.Module, x: Tensor, tmp_path: Path) -> None:
    pruner = PwoAGroupPruner(small, x)
    pruner.step()
    small.half()
    save_pruned(pruner, tmp_path / "half.safetensors")
    loaded = load_pruned(type(small)().half(), tmp_path / "half.safetensors")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in small.state_dict().items())


def test_inputs_by_keyword(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, scale: float) -> Tensor:
            return self.fc2(self.fc1(x)) * scale

    inputs = {"x": torch.rand(2, 4), "scale": 2.0}
    model = Two()
    pruner = PwoAGroupPruner(model, inputs)
    pruner.step()
    save_pruned(pruner, tmp_path / "two.safetensors")
    loaded = load_pruned(Two(), tmp_path / "two.safetensors")
    assert torch.equal(loaded(**inputs), model(**inputs))


class TestPrunersOneAfterTheOther:
    """The file tells what all of them removed."""

    @staticmethod
    def assert_loads(model: nn.Module, path: Path, x: Tensor) -> None:
        loaded = load_pruned(type(model)().eval(), path)
        assert torch.equal(loaded(x), model.eval()(x))

    def test_of_one_model(self, small: nn.Module, x: Tensor, tmp_path: Path) -> None:
        first = PwoAGroupPruner(small, x, pruning_ratio=0.25)
        first.step()
        second = PwoAGroupPruner(small, x, pruning_ratio=0.5)
        second.step()
        assert small.conv3.out_channels < 9
        assert second.removals[: -len(second.own_removals)]
        for pruner in (first, second):
            save_pruned(pruner, tmp_path / "small.safetensors")
            self.assert_loads(small, tmp_path / "small.safetensors", x)

    @pytest.mark.parametrize("copied", [False, True])
    def test_of_a_model_that_was_loaded(self, small: nn.Module, saved: Path, x: Tensor, copied: bool) -> None:
        loaded = load_pruned(type(small)().eval(), saved)
        loaded = copy.deepcopy(loaded) if copied else loaded
        pruner = PwoAGroupPruner(loaded, x, pruning_ratio=0.5)
        pruner.step()
        assert loaded.conv1.out_channels == 2
        save_pruned(pruner, saved)
        self.assert_loads(loaded, saved, x)


class TestRefused:
    def test_no_file(self, small: nn.Module, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
            load_pruned(small, tmp_path / "none.safetensors")

    def test_another_architecture(self, saved: Path, tmp_path: Path) -> None:
        from pwoa_plugin.models import LeNet

        with pytest.raises(ValueError, match="does not fit this LeNet"):
            load_pruned(LeNet(), saved)

    def test_other_precision(self, small: nn.Module, saved: Path) -> None:
        with pytest.raises(ValueError, match=r"conv1.weight is torch.float32 in the file.*model.to\(torch.float32\)$"):
            load_pruned(type(small)().half(), saved)

    def test_inputs_that_do_not_fit(self, small: nn.Module, saved: Path) -> None:
        with pytest.raises(ValueError, match=r"example_inputs: conv1 .* fails on them"):
            load_pruned(type(small)(), saved, example_inputs=torch.rand(2, 3, 8, 8))

    def test_a_network_that_is_pruned_already(self, small: nn.Module, saved: Path) -> None:
        with pytest.raises(ValueError, match="as it was before pruning"):
            load_pruned(small, saved)

    @pytest.mark.parametrize(
        "change",
        [
            "[[",
            "[]",
            "{}",
            {"version": 9},
            {"removals": "[["},
            {"removals": [["conv1", True, ["0"]]]},
            {"removals": [["conv1", True, [0, 0]]]},
            {"removals": [["conv1", True, [99]]]},
            {"removals": [["conv1", True, [-1]]]},
            {"removals": [["conv1", True, [0, 1, 2, 3, 4, 5, 6, 7]]]},
            {"removals": [["", True, [0]]]},
            {"removals": [["relu", True, [0]]]},
            {"removals": {}},
            {"inputs": {"tensor": [4, 1, 8, 8], "dtype": "save"}},
            {"inputs": {"tensor": "no"}},
            {"inputs": []},
        ],
    )
    def test_damaged_headers(self, small: nn.Module, saved: Path, change: str | dict[str, Any]) -> None:
        with safe_open(saved, framework="pt") as file:
            ((key, content),) = file.metadata().items()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(
            tensors, saved, {key: change if isinstance(change, str) else json.dumps(json.loads(content) | change)}
        )
        with pytest.raises(ValueError, match=r"small\.safetensors") as error:
            load_pruned(type(small)(), saved)
        assert "\n" not in str(error.value)

    def test_another_file(self, small: nn.Module, saved: Path) -> None:
        save_file({"a": torch.zeros(1)}, saved)
        with pytest.raises(ValueError, match="a safetensors file of something else"):
            load_pruned(type(small)(), saved)

    def test_another_version(self, small: nn.Module, saved: Path) -> None:
        save_file({"a": torch.zeros(1)}, saved, {"pwoa-pruned": json.dumps({"version": 1})})
        with pytest.raises(ValueError, match=r"its version is 1, this release reads 2"):
            load_pruned(type(small)(), saved)

    def test_as_a_checkpoint(self, small: nn.Module, saved: Path) -> None:
        with pytest.raises(CheckpointError, match=r"channels were removed; give its run's folder, or load it with"):
            load_checkpoint(type(small)(), saved)

    def test_damaged_bytes(self, small: nn.Module, saved: Path) -> None:
        saved.write_bytes(saved.read_bytes()[:-40])
        with pytest.raises(ValueError, match="no usable file of a pruned network"):
            load_pruned(type(small)(), saved)


def test_a_network_in_place_of_the_pruner_is_refused(small: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_pruned: pruner is of type SmallNet; give the PwoAGroupPruner"):
        save_pruned(small, tmp_path / "a.safetensors")  # type: ignore[arg-type]
