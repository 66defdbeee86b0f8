"""Masks live in the wrappers' own weights: whoever reads the weights reads zeros."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin import PwoAPruner, load_masks, save_masks
from pwoa_plugin.masks import Masks

from .conftest import ENTRIES, MakeEvaluator, Pair, assert_masked


def test_state_dict_and_deepcopy_of_the_wrapped_model(
    trained: nn.Module, images: Pair, pruned: tuple[PwoAPruner, Masks]
) -> None:
    _, masks = pruned
    state = trained.state_dict()
    for name, targets in masks.items():
        assert torch.equal(state[f"{name}.weight"], state[f"{name}._nni_wrapper.weight"])
        assert torch.equal(state[f"{name}.bias"], state[f"{name}._nni_wrapper.bias"])
        assert torch.equal(state[f"{name}._nni_wrapper.weight"] != 0, targets["weight"].bool())
        assert torch.equal(state[f"{name}._nni_wrapper.weight_mask"], targets["weight"])
    copy.deepcopy(trained)  # straight after training
    x = images[0][:8]
    before = trained.eval()(x)
    other = copy.deepcopy(trained)
    assert torch.equal(other(x), before)
    with torch.no_grad():
        other.fc1._nni_wrapper.weight.zero_()
    assert not torch.equal(other(x), trained(x))
    other.load_state_dict(state)
    assert torch.equal(other(x), trained(x))


@pytest.mark.parametrize("strict", [True, False])
def test_a_plain_checkpoint_reaches_the_wrapped_weights(
    trained: nn.Module, trained_state: dict[str, Tensor], pruned: tuple[PwoAPruner, Masks], strict: bool
) -> None:
    pruner, masks = pruned
    dense = dict(trained_state)
    if strict:  # NNI's masks are keys, too
        dense |= {key: value for key, value in trained.state_dict().items() if key.endswith("_mask")}
        dense |= {f"{n}._nni_wrapper.bias": trained_state[f"{n}.bias"] for n in masks}
    trained.load_state_dict(dense, strict=strict)
    for module in (trained.fc1, trained.fc1._nni_wrapper):  # before any forward
        assert torch.equal(module.weight != 0, masks["fc1"]["weight"].bool())
    pruner.unwrap_model()
    assert_masked(trained, masks)
    torch.testing.assert_close(trained.fc1.weight, trained_state["fc1.weight"] * masks["fc1"]["weight"])
    torch.testing.assert_close(trained.fc1.bias, trained_state["fc1.bias"] * masks["fc1"]["bias"])


@pytest.mark.parametrize(
    ("admm", "expected"),
    [
        (None, [0.75 * (1 - (1 - n / 8) ** 3) for n in range(1, 8)] + [0.75] * 9),
        ({"rho": 0.2}, [0.0] * 3 + [0.75] * 13),
    ],
)
def test_masks_in_every_step(
    trained: nn.Module, images: Pair, evaluator: MakeEvaluator, admm: dict[str, Any] | None, expected: list[float]
) -> None:
    zeros: list[float] = []

    def look(model: nn.Module, _: Tensor) -> None:
        zeros.append(float((model.fc1._nni_wrapper.weight == 0).float().mean()))

    PwoAPruner(trained, ENTRIES, evaluator(trained, images, seen=look), eps=0.1, admm=admm).compress(16)
    assert zeros == pytest.approx(expected, abs=1e-3)


def test_masks_in_a_file_and_back(
    trained: nn.Module,
    trained_state: dict[str, Tensor],
    images: Pair,
    evaluator: MakeEvaluator,
    pruned: tuple[PwoAPruner, Masks],
    tmp_path: Path,
) -> None:
    _, masks = pruned
    save_masks(masks, tmp_path / "masks.safetensors")
    loaded = load_masks(tmp_path / "masks.safetensors")
    assert {name: list(targets) for name, targets in loaded.items()} == {n: list(t) for n, t in masks.items()}
    for is_wrapped in (True, False):
        other = type(trained)()
        other.load_state_dict(trained_state)
        pruner = PwoAPruner(other, ENTRIES, evaluator(other, images))
        if not is_wrapped:
            pruner.unwrap_model()
        pruner.update_masks(loaded)
        if is_wrapped:
            assert torch.equal(other.fc1.weight != 0, loaded["fc1"]["weight"].bool())
        pruner.unwrap_model()
        assert_masked(other, masks)
    del loaded["fc2"]
    pruner.update_masks(loaded)  # it is pruned: some may change
    other = type(trained)()
    pruner = PwoAPruner(other, ENTRIES, evaluator(other, images))
    for bad, said in (
        (loaded, "no mask for fc2.weight, which config_list selects"),
        ({"fc9": loaded["fc1"]}, "no module 'fc9'"),
        ({"fc2": loaded["fc1"]}, "masks: fc2.weight is"),
    ):
        with pytest.raises(ValueError, match=said):
            pruner.update_masks(bad)
    other = type(trained)()
    few = PwoAPruner(other, [{"op_names": ["fc1"], "sparse_ratio": 0.5}], evaluator(other, images))
    with pytest.raises(ValueError, match=r"conv\.weight is not pruned here"):
        few.update_masks(masks)
