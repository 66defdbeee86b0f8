"""RobustBench's own code, with weights put where it looks for them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pwoa_plugin.config import ConfigError, PwoAConfig
from pwoa_plugin.models import CheckpointError
from pwoa_plugin.models.robustbench import _importable, load_robustbench, robustbench_spec
from pwoa_plugin.runs.network import network_name

needs_robustbench = pytest.mark.skipif(
    importlib.util.find_spec("robustbench") is None, reason="robustbench is not installed"
)
NAME = "Wong2020Fast"  # a PreActResNet-18 of the zoo


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that weights are looked for in, empty; and no network, wherever the test runs."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    return tmp_path / "robustbench"


@pytest.fixture
def placed(cache: Path) -> Path:
    """Weights of a network with its architecture, as their authors saved them."""
    with _importable():
        from robustbench.model_zoo.architectures.resnet import PreActBlock, PreActResNet

    torch.manual_seed(0)
    network = PreActResNet(PreActBlock, [2, 2, 2, 2])
    path = cache / "cifar10" / "Linf" / f"{NAME}.pt"
    path.parent.mkdir(parents=True)
    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, path)
    return path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("robustbench:A", ("cifar100", "L2", "A")),
        ("robustbench:cifar10/Linf/A-b_C", ("cifar10", "Linf", "A-b_C")),
    ],
)
def test_specs(source: str, expected: tuple[str, str, str]) -> None:
    assert robustbench_spec(source, dataset="cifar100", threat="L2") == expected


def test_a_folder_of_images_means_imagenet() -> None:
    assert robustbench_spec("robustbench:A", dataset="folder")[0] == "imagenet"
    with pytest.raises(ValueError, match=r"\(data set mnist-sample, .*: give robustbench:DATASET/"):
        robustbench_spec("robustbench:A", dataset="mnist-sample")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("robustbench:", "'robustbench:' "),
        ("robustbench:cifar10/A", "'robustbench:cifar10/A' "),
        ("robustbench:mnist/Linf/A", "'robustbench:mnist/Linf/A' "),
        ("robustbench:cifar10/L1/A", "'robustbench:cifar10/L1/A' "),
    ],
)
def test_a_malformed_spec_is_refused(source: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"{said}.*give robustbench:DATASET/THREAT/NAME with one of cifar10.* Linf"):
        robustbench_spec(source)


def test_without_robustbench_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "robustbench", None)  # importing it fails
    for name in ("robustbench.utils", "robustbench.model_zoo"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'needs robustbench; pip install "pwoa-plugin\[robustbench\]"'):
        load_robustbench("robustbench:A")


IMPORTS = """
import importlib.util, sys
assert importlib.util.find_spec("autoattack") is None
before = set(sys.modules)
from pwoa_plugin.models.robustbench import load_robustbench
try:
    load_robustbench("robustbench:Wong2020Fat")
except ValueError as error:
    assert "did you mean Wong2020Fast" in str(error), error
import robustbench.eval, robustbench.loaders
left = {name.split(".")[0] for name in sys.modules} & {"autoattack", "pkg_resources"}
assert not left, left
import pyautoattack
assert robustbench.eval.AutoAttack is pyautoattack.AutoAttack
helper = robustbench.loaders.pkg_resources.resource_filename("robustbench.loaders", "helper_files")
import os
assert os.path.isdir(helper), helper
"""


@needs_robustbench
def test_it_imports_after_a_plain_install_and_nothing_is_left_patched() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(IMPORTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_robustbench
def test_the_zoo_loads_the_weights_in_the_cache(placed: Path) -> None:
    model = load_robustbench(f"robustbench:{NAME}")
    assert not model.training
    state = torch.load(placed, weights_only=True)
    assert torch.equal(model.conv1.weight, state["module.conv1.weight"])  # type: ignore[union-attr]
    x = torch.rand(2, 3, 32, 32)
    assert model(x).shape == (2, 10)
    with torch.no_grad():  # images in [0, 1] go in: it normalises inside, as its authors trained it
        mean, std = (getattr(model, name).clone() for name in ("mu", "sigma"))
        expected = model(x)
        model.mu.zero_(), model.sigma.fill_(1)  # type: ignore[union-attr,operator]
        assert torch.allclose(model((x - mean) / std), expected, atol=1e-4)


@needs_robustbench
def test_an_unknown_name_is_refused_with_the_nearest(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"no such network for cifar10, Linf; did you mean Wong2020Fast") as refused:
        load_robustbench("robustbench:Wong2020")
    assert "\n" not in str(refused.value)
    assert not cache.exists()


@needs_robustbench
def test_without_a_network_one_line_says_where_the_file_goes(cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be downloaded .* or put the file at ") as refused:
        load_robustbench(f"robustbench:{NAME}")
    assert "\n" not in str(refused.value)
    assert str(cache / "cifar10" / "Linf" / f"{NAME}.pt") in str(refused.value)
    assert not list(cache.rglob("*.p*"))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code from a checkpoint ran')",))


@needs_robustbench
def test_a_file_that_holds_code_or_other_weights_is_refused(placed: Path) -> None:
    torch.save({"state_dict": Evil()}, placed)
    with pytest.raises(CheckpointError):
        load_robustbench(f"robustbench:{NAME}")
    torch.save({"conv1.weight": torch.zeros(3)}, placed)
    with pytest.raises(CheckpointError, match="do not load into RobustBench's network"):
        load_robustbench(f"robustbench:{NAME}")
    placed.write_text("<!doctype html><p>quota exceeded")
    with pytest.raises(CheckpointError, match="is a web page; download the file itself"):
        load_robustbench(f"robustbench:{NAME}")


def test_a_config_takes_network_and_weights_in_one() -> None:
    model = {"checkpoint": f"robustbench:{NAME}"}
    config = PwoAConfig(sparsity=0.5, model=model, data={"name": "cifar10"})
    assert config.model is not None
    assert config.model.arch is None
    for more in ({"arch": "resnet18-cifar"}, {"num_classes": 10}, {"mean": [0.5] * 3, "std": [1.0] * 3}):
        with pytest.raises(ConfigError, match=rf"does not go with robustbench:{NAME}, which has its own"):
            PwoAConfig(sparsity=0.5, model=model | more)
    with pytest.raises(ConfigError, match="arch is missing; name the network"):
        network_name(PwoAConfig(sparsity=0.5, model={"checkpoint": "a.pt"}))


@needs_robustbench
@pytest.mark.usefixtures("undrawn")
def test_prune_and_evaluate_from_the_command_line(
    placed: Path,
    known_cifar: Callable[[Path], None],
    pwoa: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from data.files import write_cifar10

    root = tmp_path / "data"
    write_cifar10(root, n_train=20, n_test=8)
    known_cifar(root)
    monkeypatch.chdir(tmp_path)
    source = f"robustbench:{NAME}"
    attacks = ["--attacks", "FGSM", "--sample", 4, "--quiet"]
    data = ["--data", "cifar10", "--data-root", root, "--eps", "8/255"]
    status, out, err = pwoa("evaluate", source, *data, *attacks)
    assert status == 0, err
    assert f"{NAME}: 4 images, Linf eps = 8/255" in out
    Path("prune.yaml").write_text(
        f"sparsity: 0.9\neps: 8/255\nepochs: 1\nbatch_size: 10\nadmm: {{epochs: 0}}\n"
        f"data: {{name: cifar10, root: '{root}', validation: 0, augment: false}}\nmodel: {{checkpoint: '{source}'}}\n"
    )
    status, _, err = pwoa("prune", "prune.yaml", "--out", "run", "--quiet")
    assert status == 0, err
    assert json.loads(Path("run/run.json").read_text())["model"]["arch"] == source
    status, out, err = pwoa("evaluate", "run", "--dense", *attacks)
    assert status == 0, err
    assert "dense: 4 images" in out
