"""Small real models and images that the tests share."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# One thread a process, so that workers do not wait for each other and sums do not depend on the machine's cores.
# Set before torch is imported; processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
# W&B reads its environment once in a process, at its first run there.
os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from undrawn import save_empty

from pwoa_plugin import PwoAConfig
from pwoa_plugin.cli import main

torch.set_num_threads(1)  # in case a pytest plugin has imported torch already

# Every run draws the same examples and none is late, so that a change alone makes a test fail.
# `--hypothesis-profile default` draws others.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


#: HSIC and hidden features in every step, where a test compares what is computed.
EVERY_STEP: dict[str, Any] = {"hsic": {"share": 1}, "distillation": {"feature_share": 1}}


class TinyNet(nn.Module):
    """A convolution and two linear layers for 8x8 images, ReLU as a function."""

    def __init__(self, channels: int = 1, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, padding=1)
        self.fc1 = nn.Linear(96, 16)
        self.fc2 = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def make_images(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three classes of noisy 8x8 images, told apart by where they are bright."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=random)
    x = torch.rand(n, 1, 8, 8, generator=random) * 0.4
    for i, label in enumerate(y.tolist()):
        x[i, 0, :, 2 * label : 2 * label + 3] += 0.5
    return x.clamp(0, 1), y


@pytest.fixture(autouse=True)
def fresh_log_level() -> None:
    """The command line sets the package's level, and `--quiet` in one test would silence the next."""
    logging.getLogger("pwoa_plugin").setLevel(logging.NOTSET)


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    return make_images(192)


@pytest.fixture(scope="session")
def trained_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model, (x, y) = TinyNet(), make_images(512)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.95
    return model.state_dict()


@pytest.fixture
def trained(trained_state: dict[str, Tensor]) -> TinyNet:
    """A network that classifies `images` well."""
    model = TinyNet()
    model.load_state_dict(trained_state)
    return model


@pytest.fixture
def known_cifar(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | os.PathLike[str]], None]:
    """Called with a folder of CIFAR files that a test wrote: torchvision takes them for the published ones."""
    from data.files import cifar_sums

    def known(root: str | os.PathLike[str]) -> None:
        for reader, attribute, value in cifar_sums(root):
            monkeypatch.setattr(reader, attribute, value)

    return known


# -- runs in folders ----

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
    from data.files import write_mnist

    root = tmp_path_factory.mktemp("mnist")
    write_mnist(root, n_train=60, n_test=30)
    return root


@pytest.fixture
def config_file(tmp_path: Path, mnist_root: Path) -> Path:
    """A run of the small LeNet on images in MNIST's own files: 3 steps of ADMM, 6 of fine-tuning."""
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


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are empty; see `undrawn.py`."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_empty)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, mnist_root: Path) -> Path:
    """The folder of a finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    config = folder / "prune.yaml"
    config.write_text(CONFIG.replace("ROOT", str(mnist_root)))
    assert main(["prune", str(config), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"
