from __future__ import annotations

import argparse
import copy
import logging
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from pwoa_plugin.models import (
    CheckpointError,
    LeNet,
    WideResNet,
    load_checkpoint,
    normalise_inputs,
    read_checkpoint,
    robust_lenet,
)


class Net(nn.Module):
    """Every kind of entry: weights, a shortcut's names within names, batch norm's buffers."""

    def __init__(self, classes: int = 3, *, branch: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, classes)
        if branch:
            self.branch = nn.Linear(4, 4)


State = dict[str, Tensor]


@pytest.fixture
def source() -> State:
    torch.manual_seed(1)
    net = Net()
    net.bn1.num_batches_tracked += 7
    net.bn1.running_mean.uniform_()
    return net.state_dict()


@pytest.fixture
def net() -> Net:
    torch.manual_seed(2)
    return Net()


def prefixed(state: State, prefix: str) -> State:
    return OrderedDict((prefix + name, value) for name, value in state.items())


def same(left: State, right: State) -> bool:
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


def refused(path: str | os.PathLike[str], net: nn.Module) -> str:
    """The one line of an error that leaves the network as it was."""
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(net, path)
    assert same(net.state_dict(), before)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "net.", "module.model.", "model._orig_mod."])
@pytest.mark.parametrize(
    "nest", [(), ("state_dict",), ("model_state_dict",), ("model",), ("net",), ("model", "state_dict"), ("mine",)]
)
def test_prefixes_and_nesting_are_undone_and_noted(
    tmp_path: Path, source: State, net: Net, prefix: str, nest: tuple[str, ...]
) -> None:
    saved: Any = prefixed(source, prefix)
    for key in reversed(nest):
        saved = {"epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(())}}, "param_groups": []}, key: saved}
    torch.save(saved, tmp_path / "found.pt")
    notes = load_checkpoint(net, tmp_path / "found.pt")
    assert same(net.state_dict(), source)
    said = " ".join(notes)
    for part in filter(None, prefix.split(".")):
        assert f"{part}." in said
    if nest:
        assert f"took the weights from '{'.'.join(nest)}'" in said
    if not nest and not prefix:
        assert notes == ()


def test_safetensors_and_the_old_format_load(tmp_path: Path, source: State, net: Net) -> None:
    save_file(prefixed(source, "module."), tmp_path / "a.pt")  # the content counts, not the name
    torch.save(source, tmp_path / "old.tar", _use_new_zipfile_serialization=False)
    for name in ("a.pt", "old.tar"):
        fresh = Net()
        load_checkpoint(fresh, tmp_path / name)
        assert same(fresh.state_dict(), source)


def test_wrappers_inside_a_name_are_removed(tmp_path: Path, net: Net, source: State) -> None:
    """As `DataParallel` on a part of the network leaves it."""
    torch.save({name.replace("layer.", "layer.module."): value for name, value in source.items()}, tmp_path / "a.pt")
    assert "took 'module.' off the names" in load_checkpoint(net, tmp_path / "a.pt")
    assert same(net.state_dict(), source)


def test_a_network_with_its_own_module_keeps_the_name(tmp_path: Path) -> None:
    source, target = (nn.ModuleDict({"module": nn.Linear(2, 2)}) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "a.pt")
    assert load_checkpoint(target, tmp_path / "a.pt") == ()
    assert same(target.state_dict(), source.state_dict())


def robustness_library(source: State) -> dict[str, Any]:
    """As MadryLab's library saves: a normaliser, and the network once more inside the attacker."""
    normaliser = {"new_mean": torch.tensor([0.5, 0.4, 0.3]), "new_std": torch.tensor([0.2, 0.2, 0.2])}
    state = {
        **prefixed({name: value.view(3, 1, 1) for name, value in normaliser.items()}, "module.normalizer."),
        **prefixed(source, "module.model."),
        **prefixed(normaliser, "module.attacker.normalize."),
        **prefixed(source, "module.attacker.model."),
    }
    return {"model": state, "epoch": 150, "nat_prec1": np.float64(87.0), "adv_prec1": torch.tensor(53.5)}


def test_the_robustness_library_s_checkpoints_load_with_a_warning_about_the_normaliser(
    tmp_path: Path, source: State, net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(robustness_library(source), tmp_path / "cifar_linf_8.pt")
    with caplog.at_level(logging.INFO, "pwoa_plugin"):
        notes = load_checkpoint(net, tmp_path / "cifar_linf_8.pt")
    assert same(net.state_dict(), source)
    assert any("attacker.model.conv1.weight" in note for note in notes)
    (loud,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "normalizer.new_mean=(0.5, 0.4, 0.3)" in loud.getMessage()
    assert "give model.mean and model.std" in loud.getMessage()
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == list(notes)


def test_a_normaliser_beside_the_layers_is_no_warning_if_mean_and_std_are_given(
    tmp_path: Path, source: State, net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"mean": torch.full((1, 3, 1, 1), 0.5), "std": torch.full((1, 3, 1, 1), 0.2), **source}, tmp_path / "a")
    assert "give model.mean" in load_checkpoint(net, tmp_path / "a")[0]
    caplog.clear()
    (note,) = load_checkpoint(normalise_inputs(net, (0.5,) * 3, (0.2,) * 3), tmp_path / "a")
    assert "mean=(0.5, 0.5, 0.5)" in note
    assert "model.mean and model.std are given" in note
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_second_copy_of_the_network_is_left_out(tmp_path: Path, source: State, net: Net, prefix: str) -> None:
    average = {f"ema.{name}": value + 1 for name, value in source.items()}
    torch.save(prefixed(source | average, prefix), tmp_path / "a.pt")
    assert "left out" in load_checkpoint(net, tmp_path / "a.pt")[-1]
    assert same(net.state_dict(), source)


def test_trades_s_unused_block_is_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = WideResNet(10, 1), WideResNet(10, 1)
    trades = source.state_dict() | prefixed(source.block1.state_dict(), "sub_block1.")
    torch.save(prefixed(trades, "module."), tmp_path / "trades.pt")
    notes = load_checkpoint(target, tmp_path / "trades.pt")
    assert same(target.state_dict(), source.state_dict())
    assert "left out sub_block1.layer.0.bn1.weight" in " ".join(notes)


def test_a_deeper_network_s_checkpoint_does_not_fit_its_part(tmp_path: Path, net: Net, source: State) -> None:
    """All of ResNet-50 is in ResNet-101, and without the rest it is neither."""
    deeper = source | {"layer.2.weight": torch.ones(4, 4, 1, 1)}
    for prefix in ("", "module.", "model."):
        torch.save(prefixed(deeper, prefix), tmp_path / "a.pt")
        said = refused(tmp_path / "a.pt", net)
        assert "1 not in the network (layer.2.weight (4, 4, 1, 1))" in said


def test_missing_counters_of_old_checkpoints_become_zero(tmp_path: Path, net: Net, source: State) -> None:
    net.bn1.num_batches_tracked += 5
    torch.save({k: v for k, v in source.items() if "num_batches" not in k}, tmp_path / "a.pt")
    assert load_checkpoint(net, tmp_path / "a.pt") == ("set 2 missing num_batches_tracked to 0",)
    assert net.bn1.num_batches_tracked == 0
    assert torch.equal(net.bn1.running_mean, source["bn1.running_mean"])


def test_other_dtypes_are_cast_and_noted(tmp_path: Path, net: Net, source: State) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in source.items()}
    half["fc.bias"] = torch.tensor([1, 2, 3])
    torch.save(half, tmp_path / "a.pt")
    notes = load_checkpoint(net, tmp_path / "a.pt")
    assert set(notes) == {"cast 13 tensors from float16 to float32", "cast 1 tensor from int64 to float32"}
    assert net.fc.bias.tolist() == [1.0, 2.0, 3.0]
    assert torch.equal(net.conv1.weight, source["conv1.weight"].half().float())


def test_mismatches_list_names_and_shapes_of_both_sides(tmp_path: Path, source: State) -> None:
    net = Net(5, branch=True)
    torch.save(source | {"head.weight": torch.ones(2, 2)}, tmp_path / "a.pt")
    said = refused(tmp_path / "a.pt", net)
    assert "fc.weight is (3, 4) in the file and (5, 4) in the network" in said
    assert "2 missing in the file (branch.weight (4, 4), branch.bias (4,))" in said
    assert "1 not in the network (head.weight (2, 2))" in said
    assert "give the model.arch and model.num_classes" in said


def test_another_architecture_s_names_are_shown_as_they_are(tmp_path: Path, net: Net) -> None:
    torch.save(LeNet().state_dict(), tmp_path / "a.pt")
    said = refused(tmp_path / "a.pt", net)
    assert "conv1.weight is (16, 1, 5, 5) in the file and (4, 3, 3, 3) in the network" in said
    assert "and 9 more" in said
    assert "conv2.weight (32, 16, 5, 5)" in said


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, net: Net, source: State, wrong: float) -> None:
    source["fc.weight"][1, 2:] = wrong
    torch.save(source, tmp_path / "a.pt")
    assert "2 values of fc.weight are not finite" in refused(tmp_path / "a.pt", net)


def test_entries_beside_the_weights_are_ignored(tmp_path: Path, net: Net, source: State) -> None:
    beside = {"args": argparse.Namespace(lr=0.1), "best": np.float32(0.5), "losses": np.arange(3.0)}
    torch.save({"state_dict": source, "ema": source, **beside}, tmp_path / "a.pt")
    assert load_checkpoint(net, tmp_path / "a.pt") == (
        "took the weights from 'state_dict'; also there and not used: 'ema' (model.key chooses)",
    )
    assert same(net.state_dict(), source)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("old", [False, True])
def test_a_payload_does_not_run(tmp_path: Path, net: Net, source: State, old: bool) -> None:
    mark, file = tmp_path / "mark", tmp_path / "a.pt"
    pickle.loads(pickle.dumps(Payload(mark)))  # noqa: S301 - the payload is real
    mark.unlink()
    torch.save({"state_dict": source, "x": Payload(mark)}, file, _use_new_zipfile_serialization=not old)
    said = refused(file, net)
    assert "holds Python objects (io.open), and loading those would run code" in said
    assert "safetensors" in said
    file.write_bytes(pickle.dumps(Payload(mark)))
    assert "holds Python objects" in refused(file, net)
    assert not mark.exists()


def test_a_pickled_network_is_refused(tmp_path: Path, net: Net) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    assert "holds Python objects (torch.nn.modules.linear.Linear)" in refused(tmp_path / "a.pt", net)
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "a.pt")
    assert "is a TorchScript program" in refused(tmp_path / "a.pt", net)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is damaged"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page"),
        (b"\n <HTML>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer"),
        (b"hello\n", "not a PyTorch or safetensors file"),
        (b"PK\x03\x04 and so on", "not a PyTorch or safetensors file"),
        (b"\x10\0\0\0\0\0\0\0{}", "is no usable safetensors file"),
    ],
)
def test_other_kinds_of_file_give_a_one_line_error(tmp_path: Path, net: Net, content: bytes, said: str) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    assert said in refused(tmp_path / "a.pt", net)


def test_there_must_be_a_file(tmp_path: Path, net: Net) -> None:
    assert "is missing" in refused(tmp_path / "none.pt", net)
    assert "is a state dict, not a file; call model.load_state_dict" in refused(net.state_dict(), net)  # type: ignore[arg-type]
    for path in (None, 3, ["a.pt"]):
        with pytest.raises(ValueError, match=rf"^checkpoint={re.escape(repr(path))} names no file or folder; give its"):
            load_checkpoint(net, path)  # type: ignore[arg-type]
    assert "is an address; download it, and give the file" in refused("https://x.org/a.pt", net)
    assert "is not a regular file" in refused(tmp_path, net)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refused(tmp_path / "pipe", net)


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ([1, 2], "it is a list, not a state dict"),
        ({"a": 1, "b": {"c": 2}}, "holds no state dict but a, b"),
        ({}, "holds no state dict but nothing"),
        (torch.ones(3), "it is a Tensor, not a state dict"),
    ],
)
def test_there_must_be_a_state_dict(tmp_path: Path, net: Net, saved: Any, said: str) -> None:
    torch.save(saved, tmp_path / "a.pt")
    assert said in refused(tmp_path / "a.pt", net)


def test_a_checkpoint_that_contains_itself_is_refused(tmp_path: Path, net: Net) -> None:
    saved: dict[str, Any] = {"tensor": torch.ones(1)}
    saved["model"] = saved
    torch.save(saved, tmp_path / "a.pt")
    assert "is a dict, not a state dict" in refused(tmp_path / "a.pt", net)


@given(share=st.floats(0, 0.999), kind=st.sampled_from(["safetensors", "zip", "old"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_files_give_a_one_line_error(tmp_path: Path, share: float, kind: str) -> None:
    net, file = Net(), tmp_path / "a.pt"
    if kind == "safetensors":
        save_file(net.state_dict(), file)
    else:
        torch.save(net.state_dict(), file, _use_new_zipfile_serialization=kind == "zip")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refused(file, net)


def test_reading_alone_keeps_names_and_dtypes(tmp_path: Path, source: State) -> None:
    torch.save({"net": prefixed({k: v.half() for k, v in source.items()}, "module.")}, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt")
    assert found.notes == ("took the weights from 'net'",)
    assert list(found.tensors) == [f"module.{name}" for name in source]
    assert {value.dtype for value in found.tensors.values()} == {torch.float16}


def test_shipped_checkpoints_load_by_name() -> None:
    model = LeNet()
    assert load_checkpoint(model, "shipped:robust_lenet_mnist") == ()
    assert same(model.state_dict(), robust_lenet().state_dict())
    assert "there is shipped:robust_lenet_mnist" in refused("shipped:robust_lenet", model)


def test_an_averaged_models_counter_is_left_out(net: Net, source: State, tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(net)
    averaged.module.load_state_dict(source)
    torch.save({"model": averaged.state_dict()}, tmp_path / "ema.pt")
    notes = load_checkpoint(net, tmp_path / "ema.pt")
    assert all(torch.equal(value, source[key]) for key, value in net.state_dict().items())
    assert any("n_averaged, the counter of an AveragedModel" in note for note in notes)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_masks_of_torchs_pruning_are_multiplied_in(net: Net, source: State, tmp_path: Path, prefix: str) -> None:
    pruned = Net()
    pruned.load_state_dict(source)
    prune.l1_unstructured(pruned.conv1, "weight", 0.5)
    prune.random_unstructured(pruned.fc, "bias", 0.5)
    save_file({prefix + key: value for key, value in pruned.state_dict().items()}, tmp_path / "pruned.safetensors")
    notes = load_checkpoint(net, tmp_path / "pruned.safetensors")
    assert torch.equal(net.conv1.weight, pruned.conv1.weight)
    assert torch.equal(net.fc.bias, pruned.fc.bias)
    assert any("multiplied 2 masks of torch.nn.utils.prune" in note for note in notes)


def _popup(net: Net) -> State:
    return net.state_dict() | {"conv1.popup_scores": torch.zeros_like(net.conv1.weight)}


def _weight_norm(net: Net) -> State:
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(net.conv1)
    return net.state_dict()


def _parametrized(net: Net) -> State:
    torch.nn.utils.parametrizations.weight_norm(net.conv1)
    return net.state_dict()


def _spectral_norm(net: Net) -> State:
    torch.nn.utils.spectral_norm(net.conv1)
    return net.state_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_popup, "conv1.popup_scores: HYDRA prunes by these scores"),
        (_weight_norm, r"conv1.weight is computed by torch.nn.utils.weight_norm .*; call remove_weight_norm"),
        (_spectral_norm, r"conv1.weight is computed by torch.nn.utils.spectral_norm .*remove_spectral_norm"),
        (_parametrized, r"conv1.parametrizations.*; call torch.nn.utils.parametrize.remove_parametrizations"),
    ],
)
def test_weights_that_are_computed_are_refused_with_the_cure(net: Net, tmp_path: Path, make: Any, message: str) -> None:
    before = copy.deepcopy(net.state_dict())
    torch.save({f"module.{key}": value for key, value in make(Net()).items()}, tmp_path / "computed.pt")
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(net, tmp_path / "computed.pt")
    assert "\n" not in str(raised.value)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_key_chooses_between_weights(net: Net, source: State, tmp_path: Path) -> None:
    file, ema = tmp_path / "both.pt", Net().state_dict()
    torch.save({"state_dict": source, "ema": {"shadow": ema}}, file)
    assert any("not used: 'ema" in note for note in load_checkpoint(net, file))
    assert torch.equal(net.fc.weight, source["fc.weight"])
    load_checkpoint(net, file, key="ema.shadow")
    assert torch.equal(net.fc.weight, ema["fc.weight"])
    with pytest.raises(CheckpointError, match=r"has no 'swa'; it has state_dict, ema; model.key \(--key\) names"):
        load_checkpoint(net, file, key="swa")
    with pytest.raises(CheckpointError, match=r"has no 'state_dit'; did you mean state_dict\?"):
        load_checkpoint(net, file, key="state_dit")


@pytest.mark.parametrize("key", ["ema.model", "ema"])
def test_a_key_may_have_dots_or_begin_the_names(net: Net, source: State, tmp_path: Path, key: str) -> None:
    beside = {f"ema.{name}": value for name, value in source.items()} | Net().state_dict()
    torch.save({"ema.model": source, "state_dict": Net().state_dict()} if "." in key else beside, tmp_path / "both.pt")
    load_checkpoint(net, tmp_path / "both.pt", key=key)
    assert torch.equal(net.fc.weight, source["fc.weight"])


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel, torch.compile])
def test_a_wrapped_network_is_loaded(source: State, tmp_path: Path, wrap: Any) -> None:
    inside = Net()
    save_file(source, tmp_path / "plain.safetensors")
    around = wrap(inside)
    load_checkpoint(around, tmp_path / "plain.safetensors")
    loaded = around.module if hasattr(around, "n_averaged") else inside
    assert torch.equal(loaded.fc.weight, source["fc.weight"])
