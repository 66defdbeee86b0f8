"""Runs of the small LeNet on a few images in MNIST's own files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pwoa_plugin import PwoAConfig
from pwoa_plugin.cli import main
from data.files import write_mnist

Run = Callable[..., tuple[int, str, str]]

CONFIG = """
sparsity: 0.9
epochs: 3
batch_size: 16
admm: {epochs: 1}
eps: 0.3
data: {name: mnist, root: ROOT, validation: 0.2, download: false}
model: {arch: lenet, checkpoint: "shipped:robust_lenet_mnist"}
"""


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mnist")
    write_mnist(root, n_train=60, n_test=30)
    return root


@pytest.fixture
def config_file(tmp_path: Path, mnist_root: Path) -> Path:
    """Twelve steps: 4 of ADMM, 8 of fine-tuning."""
    path = tmp_path / "prune.yaml"
    path.write_text(CONFIG.replace("ROOT", str(mnist_root)))
    return path


@pytest.fixture
def config(config_file: Path) -> PwoAConfig:
    return PwoAConfig.from_yaml(config_file)


@pytest.fixture
def pwoa(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line here; exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = int(exit.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, mnist_root: Path) -> Path:
    """The folder of a finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    config = folder / "prune.yaml"
    config.write_text(CONFIG.replace("ROOT", str(mnist_root)))
    assert main(["prune", str(config), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"
