"""What ships is judged by what it allows, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin import evaluate
from pwoa_plugin.errors import InputError
from pwoa_plugin.export import Choices, ONNXNetwork, export_onnx, make_format
from pwoa_plugin.export.judging import Shipped, judge_exported
from pwoa_plugin.robustness import Report

HOW = {"eps": 0.2, "attacks": ["FGSM", "PGD-10"], "progress": False}


@pytest.fixture
def few(images: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return images[0][:40], images[1][:40]


def test_a_float_file_has_the_networks_verdicts(trained: nn.Module, few: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    export_onnx(trained, tmp_path / "net.onnx", few[0][:2])
    shipped = judge_exported(trained, ONNXNetwork(tmp_path / "net.onnx"), few, **HOW)
    assert shipped.attacked is not None
    assert (shipped.clean.same, shipped.attacked.same) == (40, 40)
    assert shipped.clean.difference < 1e-4
    expected = evaluate(trained, few, **HOW)
    assert torch.equal(shipped.judged.worst_case.robust, expected.worst_case.robust)
    assert 0 < expected.worst_case.n_robust < 40
    assert "figures are therefore the file's" in " ".join(shipped.sentences)


def test_a_file_with_other_answers_is_not_given_the_networks_figures(
    trained: nn.Module, few: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(1)
    other = type(trained)().eval()
    shipped = judge_exported(trained, other, few, **HOW)
    assert shipped.clean.same < 40
    assert "not quite the file's" in " ".join(shipped.sentences)


def test_a_quantized_file_is_judged_by_transfer_and_square(
    trained: nn.Module, few: tuple[Tensor, Tensor], images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    choices = Choices(quantize="int8", calibration=images[0][:64])
    make_format("onnx").write(trained, tmp_path / "net.onnx", few[0][:2], choices)
    file = ONNXNetwork(tmp_path / "net.onnx")
    with pytest.raises(InputError, match="PGD-10 needs gradients"):
        evaluate(file, few, **HOW | {"attacks": "PGD-10"})
    shipped = judge_exported(trained, file, few, how="transfer and Square", queries=50, **HOW)
    assert list(shipped.judged.attacks) == ["FGSM, transferred", "PGD-10, transferred", "Square"]
    assert list(shipped.network["attacks"]) == ["FGSM", "PGD-10", "Square"]  # like is compared with like
    # The images of the transferred attack are the float network's: they break the file nearly as often.
    white = evaluate(trained, few, **HOW)
    moved = shipped.judged.attacks["PGD-10, transferred"].n_robust
    assert abs(moved - white.attacks["PGD-10"].n_robust) <= 6
    assert moved < shipped.judged.clean_correct.sum()
    said = " ".join(shipped.sentences)
    assert said.count("Not a white-box figure") == 1
    assert Shipped(**shipped.to_dict()).sentences == shipped.sentences


def test_attacks_without_gradients_that_are_named_take_squares_place(
    trained: nn.Module, few: tuple[Tensor, Tensor]
) -> None:
    square = {"attack": "Square", "queries": 5, "name": "Square-5"}
    how = HOW | {"attacks": ["FGSM", square]}
    shipped = judge_exported(trained, trained, few, how="transfer and Square", **how)
    assert list(shipped.judged.attacks) == ["FGSM, transferred", "Square-5"]


def test_a_transferred_autoattack_is_not_taken_for_autoattack_on_the_file(
    trained: nn.Module, few: tuple[Tensor, Tensor]
) -> None:
    how = HOW | {"attacks": "AutoAttack"}
    shipped = judge_exported(trained, trained, few, how="transfer and Square", queries=20, **how)
    assert shipped.file is not None
    assert Report.from_dict(shipped.network).autoattack is not None
    assert list(shipped.judged.attacks) == ["AutoAttack, transferred", "Square"]
    assert shipped.judged.autoattack is None
