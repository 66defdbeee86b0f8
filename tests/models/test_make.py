from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from pwoa_plugin.models import ARCHITECTURES, load_architecture, make_model, normalise_inputs


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arch", "classes", "channels", "size"),
    [("lenet", 10, 1, 28), ("lenet3", 7, 1, 28), ("resnet18-cifar", 10, 3, 32), ("vgg16-cifar", 100, 3, 32)],
)
def test_networks_give_logits(arch: str, classes: int, channels: int, size: int) -> None:
    model = make_model(arch, num_classes=classes, in_channels=channels).eval()
    assert model(torch.rand(2, channels, size, size)).shape == (2, classes)


def test_torchvision_networks_load_by_name_without_auxiliary_heads() -> None:
    model = make_model("mobilenet_v3_small", num_classes=5).eval()
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 5)
    with torch.device("meta"):
        for arch in ("googlenet", "inception_v3"):
            assert not [name for name in make_model(arch, num_classes=5).state_dict() if "aux" in name.lower()]


@pytest.mark.parametrize(
    ("arch", "cure"),
    [
        ("resnet18-cifr", "did you mean resnet18-cifar"),
        ("ResNet50", "resnet50"),
        ("fasterrcnn_resnet50_fpn", "is unknown"),
        ("qqq", r"lenet, lenet3, .*list_models"),
    ],
)
def test_an_unknown_network_gives_a_one_line_error(arch: str, cure: str) -> None:
    with pytest.raises(ValueError, match=cure) as error:
        make_model(arch, num_classes=10)
    assert "\n" not in str(error.value)


def test_torchvision_takes_three_channels() -> None:
    with pytest.raises(ValueError, match=r"model\.arch='resnet18' takes images of 3 channels, and these have 1"):
        make_model("resnet18", num_classes=10, in_channels=1)


def test_the_architectures_of_a_config() -> None:
    assert set(ARCHITECTURES) == {"lenet", "lenet3", "resnet18-cifar", "vgg16-cifar", "wrn-34-10"}


def test_normalisation_is_inside_and_renames_nothing() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    torch.manual_seed(0)
    plain = make_model("resnet18-cifar", num_classes=3).eval()
    model = normalise_inputs(copy.deepcopy(plain), mean, std)
    x = torch.rand(2, 3, 32, 32)
    by_hand = torch.stack([(x[:, i] - mean[i]) / std[i] for i in range(3)], 1)
    torch.testing.assert_close(model(x), plain(by_hand))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]


def test_normalisation_is_copied_with_the_network_and_follows_dtype() -> None:
    model = make_model("lenet", num_classes=3, in_channels=1, mean=(0.5,), std=(0.1,))
    x = torch.rand(2, 1, 28, 28)
    with torch.inference_mode():
        expected = model(x)
    copied = copy.deepcopy(model)
    (hook,) = copied._forward_pre_hooks.values()
    (original,) = model._forward_pre_hooks.values()
    assert hook is not original
    torch.testing.assert_close(copied(x.requires_grad_()), expected.clone())  # gradients after inference mode
    hook.mean = (0.0,)
    copied.double()
    assert copied(x.double()).dtype == torch.float64
    assert not torch.allclose(copied(x.double()).float(), expected.clone())
    torch.testing.assert_close(model(x), expected.clone())  # the copy's change is the copy's


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ((0.5,), (0.2,), r"model\.mean=\(0\.5,\), .*give one number for each channel \(3\)"),
        ((0.5,) * 3, (0.2,) * 2, r"model\.std=\(0\.2, 0\.2\): give one number for each channel"),
        ((0.5,) * 3, None, r"model\.std=None: give one number for each channel"),
        ((0.5,) * 3, (0.2, 0.0, 0.2), r"model\.std=.* is not positive"),
    ],
)
def test_normalisation_must_fit(mean: tuple[float, ...], std: tuple[float, ...] | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_model("resnet18-cifar", num_classes=10, mean=mean, std=std)


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module in the current directory, with a name of its own."""
    module = f"nets_{abs(hash(request.node.name))}"
    (tmp_path / f"{module}.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, num_classes=4, in_channels=2):\n"
        "        super().__init__(in_channels, num_classes)\n"
        "def plain():\n"
        "    return nn.Linear(5, 6)\n"
        "def keywords(**options):\n"
        "    return nn.Linear(5, 6)\n"
        "def wrong():\n"
        "    return 3\n"
        "def failing():\n"
        "    raise RuntimeError('two\\nlines')\n"
        "def needing(width):\n"
        "    return nn.Linear(5, width)\n"
        "constant = 3\n"
    )
    (tmp_path / f"{module}_broken.py").write_text("import surely_not_there\n")
    monkeypatch.chdir(tmp_path)
    return module


def test_your_own_architectures_load_from_the_current_directory(nets: str) -> None:
    import sys

    before = list(sys.path)
    net = load_architecture(f"{nets}:Net", num_classes=9, in_channels=3)
    assert tuple(net.weight.shape) == (9, 3)
    assert tuple(load_architecture(f"{nets}:Net").weight.shape) == (4, 3)
    assert tuple(load_architecture(f"{nets}:plain", num_classes=9).weight.shape) == (6, 5)
    assert tuple(load_architecture(f"{nets}:keywords", num_classes=9).weight.shape) == (6, 5)
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{}", "give package.module:function"),
        (":Net", "give package.module:function"),
        ("{}_missing:Net", "importing it fails .ModuleNotFoundError: No module named .*_missing"),
        ("{}_broken:Net", "importing it fails .ModuleNotFoundError: No module named 'surely_not_there'"),
        ("{}:Nett", "importing it fails .AttributeError: .* has no attribute 'Nett'.*did you mean Net\\?"),
        ("{}s:Net", "importing it fails .ModuleNotFoundError: .*did you mean {}\\?"),
        ("{}:constant", "calling it fails .TypeError: 3 is not a callable object"),
        ("{}:wrong", "wrong' returns a int; it must return a torch.nn.Module"),
        ("{}:failing", "calling it fails .RuntimeError: two lines"),
        ("{}:needing", "calling it fails .TypeError: .*width"),
    ],
)
def test_wrong_architectures_give_a_one_line_error(nets: str, spec: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("{}", nets)) as error:
        load_architecture(spec.format(nets), num_classes=10)
    assert "\n" not in str(error.value)
