"""ExecuTorch's programs, where the package is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn

from pwoa_plugin.errors import MissingPackageError
from pwoa_plugin.export import compared, make_format
from pwoa_plugin.export.base import Choices
from pwoa_plugin.export.pte import PTENetwork, export_pte


def test_a_program_answers_as_the_network(trained: nn.Module, images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    pte = make_format("pte")
    pte.write(trained, tmp_path / "net.pte", images[0][:4], Choices())
    agreement = compared(trained, pte.read(tmp_path / "net.pte", trained), images[0][:50])
    assert agreement.same == 50
    assert agreement.difference < 1e-4
    assert [file.name for file in tmp_path.iterdir()] == ["net.pte"]


def test_a_program_takes_the_examples_number_of_images_and_is_asked_in_several_calls(
    trained: nn.Module, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    pytest.importorskip("executorch")
    export_pte(trained, tmp_path / "net.pte", images[0][:20])
    network = PTENetwork(tmp_path / "net.pte")
    assert network.images == 20
    assert compared(trained, network, images[0][:50]).difference < 1e-4  # 20, 20, and 10 with 10 copies


def test_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"executorch; pip install \"pwoa-plugin\[executorch\]\""):
        make_format("pte").require("format pte")
