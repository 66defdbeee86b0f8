from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pwoa_plugin import speedup
from pwoa_plugin.masks import bake, check_masks, load_masks, save_masks


def masks_of(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    random = torch.Generator().manual_seed(0)
    return {
        name: {
            target: torch.randint(0, 2, parameter.shape, generator=random).float()
            for target, parameter in module.named_parameters(recurse=False)
        }
        for name, module in model.named_modules()
        if list(module.named_parameters(recurse=False))
    }


def assert_same(got: dict[str, dict[str, Tensor]], wanted: dict[str, dict[str, Tensor]]) -> None:
    assert [(m, list(t)) for m, t in got.items()] == [(m, list(t)) for m, t in wanted.items()]
    for module, targets in wanted.items():
        for target, mask in targets.items():
            assert got[module][target].dtype == torch.float32
            assert torch.equal(got[module][target], mask.float())


def test_what_is_saved_is_loaded(trained: nn.Module, tmp_path: Path) -> None:
    masks = masks_of(trained)
    save_masks(masks, tmp_path / "deep" / "a.safetensors")
    loaded = load_masks(tmp_path / "deep" / "a.safetensors")
    assert_same(loaded, masks)
    check_masks(trained, loaded)
    assert (tmp_path / "deep" / "a.safetensors").stat().st_size < 4096  # a byte a weight


def test_nnis_own_forms(tmp_path: Path) -> None:
    masks: Any = defaultdict(dict)
    masks["fc"] = {"weight": torch.ones(2, 3, dtype=torch.bool).t(), "bias": None, "_output_0": torch.eye(2).long()}
    save_masks(masks, tmp_path / "a")
    wanted = {"fc": {"weight": torch.ones(3, 2), "_output_0": torch.eye(2)}}
    assert_same(load_masks(tmp_path / "a"), wanted)


def test_a_model_that_is_one_layer(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    save_masks(masks_of(model), tmp_path / "a")
    check_masks(model, load_masks(tmp_path / "a"))


def test_what_is_no_mask_is_not_saved(tmp_path: Path) -> None:
    for masks, message in [
        ({}, "there is none to save"),
        ({"a": {"weight": None}}, "there is none to save"),
        ({"a": {"weight": torch.tensor([0.5])}}, r"a\.weight is no dense tensor of zeros and ones"),
        ({"a": {"weight": torch.tensor([float("nan")])}}, r"a\.weight is no dense tensor"),
        ({"a": {"b.c": torch.ones(1)}, "a.b": {"c": torch.ones(1)}}, r"two masks have the name a\.b\.c"),
    ]:
        with pytest.raises(ValueError, match=message):
            save_masks(masks, tmp_path / "a")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def header(targets: Any = (("a", "weight"),), **changed: str) -> dict[str, str]:
    return {"format": "pwoa-masks", "version": "1", "targets": json.dumps(targets), **changed}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"a.weight": torch.ones(2)}, None, "a safetensors file of something else"),
        ({"a.weight": torch.ones(2, dtype=torch.bool)}, header(version="2"), "its version is '2'"),
        ({"a.weight": torch.ones(2, dtype=torch.bool)}, header(targets=[]), "does not name the masks"),
        ({"a.weight": torch.ones(2, dtype=torch.bool)}, header([["a", "weight"]] * 2), "does not name the masks"),
        ({"a.weight": torch.ones(2, dtype=torch.bool)}, header({"a": 1}), "lists no modules and targets"),
        ({"a.weight": torch.ones(2, dtype=torch.bool)}, header(targets=[["a"]]), "lists no modules and targets"),
        ({"a.weight": torch.ones(2, dtype=torch.bool)}, header() | {"targets": "[" * 9999}, "lists no modules"),
        ({"a.weight": torch.ones(2)}, header(), r"a\.weight is no mask of zeros and ones"),
        ({"a.weight": torch.full((2,), 3, dtype=torch.uint8)}, header(), r"a\.weight is no mask"),
    ],
)
def test_foreign_files(tmp_path: Path, tensors: dict[str, Tensor], metadata: Any, message: str) -> None:
    save_file(tensors, tmp_path / "a", metadata=metadata)
    with pytest.raises(ValueError, match=message) as caught:
        load_masks(tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "a") in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file of masks"):
        load_masks(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no usable file of masks"):
        load_masks(tmp_path)
    (tmp_path / "empty").touch()
    torch.save({"a": {"weight": torch.ones(2)}}, tmp_path / "pickled")
    for name in ("empty", "pickled"):
        with pytest.raises(ValueError, match="no usable file of masks"):
            load_masks(tmp_path / name)


@given(cut=st.integers(0, 500), at=st.integers(0, 500), byte=st.integers(0, 255))
def test_damaged_files_are_told_or_still_masks(tmp_path_factory: Any, cut: int, at: int, byte: int) -> None:
    path = tmp_path_factory.mktemp("masks") / "a"
    save_masks({"conv": {"weight": torch.ones(3, 5), "bias": torch.zeros(3)}}, path)
    whole = path.read_bytes()
    damaged = bytearray(whole[: len(whole) - cut])
    if at < len(damaged):
        damaged[at] = byte
    path.write_bytes(damaged)
    said = ""
    try:
        for targets in load_masks(path).values():
            assert all(((mask == 0) | (mask == 1)).all() for mask in targets.values())
    except ValueError as error:
        said = str(error)
    assert "\n" not in said


def test_masks_of_another_model(trained: nn.Module) -> None:
    check_masks(trained, {"conv": {"weight": torch.ones(6, 1, 3, 3), "bias": None, "_input_0": torch.ones(9)}})
    with pytest.raises(ValueError, match=r"masks: the model has no module 'fc3'; did you mean fc[12] or fc[12]\?"):
        check_masks(trained, {"fc3": {"weight": torch.ones(2)}})
    with pytest.raises(ValueError, match=r"masks: conv\.gain is no parameter of the model"):
        check_masks(trained, {"conv": {"gain": torch.ones(2)}})
    with pytest.raises(ValueError, match=r"masks: conv\.weight is \(6,\), and the parameter is \(6, 1, 3, 3\)"):
        check_masks(trained, {"conv": {"weight": torch.ones(6)}})


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (None, "give NNI's format"),
        ({"0": torch.ones(4, 1, 3, 3)}, "give NNI's format"),
        ({"conv": {"weight": torch.ones(4, 1, 3, 3)}}, "no module 'conv'; are they another model's"),
        ({"0": {"weight": torch.ones(4)}}, r"0.weight is \(4,\), and the parameter is \(4, 1, 3, 3\)"),
        ({"0": {"weight": [1, 0]}}, "0.weight is no dense tensor of zeros and ones"),
        ({"0": {"weight": torch.full((4, 1, 3, 3), 0.5)}}, "0.weight is no dense tensor of zeros and ones"),
        ({"0": {"_output_0": torch.ones(4)}}, "0._output_0 is no parameter"),
        ({"2": {"weight": torch.ones(4)}}, "2.weight is no parameter"),
    ],
)
def test_what_is_no_mask_of_parameters(masks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"masks: .*{message}") as raised:
        check_masks(net(), masks, parameters_only=True)
    assert "\n" not in str(raised.value)


def test_a_computed_weight_is_refused_where_masks_go_into_parameters() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)))
    masks = {"0": {"weight": torch.ones(3, 3)}}
    with pytest.raises(ValueError, match=r"0.weight is computed from other parameters"):
        check_masks(model, masks, parameters_only=True)
    assert check_masks(model, masks).keys() == masks.keys()


def test_masks_that_are_none_are_left_out() -> None:
    mask = torch.ones(4, 1, 3, 3)
    assert check_masks(net(), {"0": {"weight": mask, "bias": None}, "3": {"weight": None}})["0"].keys() == {"weight"}
    assert "3" not in check_masks(net(), {"3": {"weight": None}})


def test_bake_zeroes_also_what_is_not_finite() -> None:
    model = net()
    model[0].weight.data[1] = float("nan")
    mask = torch.ones(4, 1, 3, 3, dtype=torch.bool)
    mask[1] = False
    before = model[0].weight.detach().clone()
    bake(model, {"0": {"weight": mask}})
    assert (model[0].weight[1] == 0).all()
    assert torch.equal(model[0].weight[[0, 2, 3]], before[[0, 2, 3]])


@pytest.mark.parametrize("bad", [0.5, 2.0, -1.0, float("nan")])
@pytest.mark.parametrize("target", ["weight", "_input_0"])
def test_masks_of_other_values_are_of_no_model(trained: nn.Module, target: str, bad: float) -> None:
    mask = torch.ones_like(trained.fc1.weight)
    check_masks(trained, {"fc1": {target: mask}})
    check_masks(trained, {"fc1": {target: mask.bool()}})
    mask[0, 0] = bad
    with pytest.raises(ValueError, match=rf"masks: fc1\.{target} is no dense tensor of zeros and ones"):
        check_masks(trained, {"fc1": {target: mask}})
    with pytest.raises(ValueError, match="no dense tensor of zeros and ones"):
        check_masks(trained, {"fc1": {target: [1.0]}})


@pytest.mark.parametrize(
    "masks",
    [None, "a.safetensors", [{}], (nn.Linear(2, 2), {}), {"0": torch.ones(2, 2)}, {0: {"weight": torch.ones(2, 2)}}],
)
def test_other_forms_are_refused_alike(masks: Any, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for door in (lambda: save_masks(masks, tmp_path / "a"), lambda: speedup(model, masks, torch.rand(1, 2))):
        with pytest.raises(ValueError, match=r"^masks: give NNI's format"):
            door()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("mask", [torch.ones(2, 2, device="meta"), torch.eye(2).to_sparse()])
def test_masks_without_dense_numbers_are_refused_alike(mask: Tensor, tmp_path: Path) -> None:
    model, masks = nn.Sequential(nn.Linear(2, 2)), {"0": {"weight": mask}}
    for door in (lambda: save_masks(masks, tmp_path / "a"), lambda: speedup(model, masks, torch.rand(1, 2))):
        with pytest.raises(ValueError, match=r"^masks: 0.weight is no dense tensor of zeros and ones"):
            door()
