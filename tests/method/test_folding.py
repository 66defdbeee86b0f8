from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pwoa_plugin import PwoAConfig, PwoALoss
from pwoa_plugin.method.compression import Compression
from pwoa_plugin.method.distillation import frozen_copy
from pwoa_plugin.method.folding import fold_batch_norms
from pwoa_plugin.method.hidden import Around, find_hidden_layers, read_hidden
from pwoa_plugin.models.resnet import ResNetCIFAR


def trained(model: nn.Module) -> nn.Module:
    """With BatchNorm statistics and factors that are not 0 and 1; frozen."""
    random = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.bias):
                tensor.data.normal_(0, 0.1, generator=random)  # type: ignore[union-attr]
            for tensor in (module.running_var, module.weight):
                tensor.data.uniform_(0.5, 1.5, generator=random)  # type: ignore[union-attr]
    return frozen_copy(model)


def images(side: int = 32) -> Tensor:
    return torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def small() -> nn.Module:
    torch.manual_seed(0)
    return trained(ResNetCIFAR((1, 1, 1, 1), channels=4))


@pytest.mark.parametrize(
    ("name", "left"),
    [("resnet18", 0), ("mobilenet_v2", 0), ("vgg11_bn", 0), ("shufflenet_v2_x0_5", 0), ("densenet121", 62)],
)
def test_answers_are_the_same(name: str, left: int) -> None:
    torch.manual_seed(0)
    model = trained(torchvision.models.get_model(name, num_classes=10)).double()
    folded = fold_batch_norms(model, images(64).double())
    assert norms(folded) == left < norms(model)
    expected, got = model(images(64).double()), folded(images(64).double())
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12 * expected.abs().max().item())


def test_hidden_layers_are_the_same_and_keep_their_names() -> None:
    model, x = small(), images()
    folded = fold_batch_norms(model, x)
    assert norms(folded) == 0
    assert [name for name, _ in folded.named_modules()] == [name for name, _ in model.named_modules()]
    layers = find_hidden_layers(model, x)
    assert find_hidden_layers(folded, x) == layers
    with read_hidden(model, layers) as expected, read_hidden(folded, layers) as got:
        model(x), folded(x)
    for name in layers:
        assert torch.allclose(got[name], expected[name], rtol=1e-4, atol=1e-5), name


def test_the_model_is_untouched_and_what_is_not_folded_is_shared() -> None:
    model, x = small(), images()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold_batch_norms(model, x)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert folded.get_parameter("linear.weight") is model.get_parameter("linear.weight")
    assert folded.get_parameter("conv1.weight") is not model.get_parameter("conv1.weight")
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_a_kept_module_has_its_input() -> None:
    model, x = small(), images()
    folded = fold_batch_norms(model, x, keep=("layer2.0.bn1",))
    assert norms(folded) == 1
    with read_hidden(model, ["layer2.0.bn1"]) as expected, read_hidden(folded, ["layer2.0.bn1"]) as got:
        model(x), folded(x)
    assert torch.allclose(got["layer2.0.bn1"], expected["layer2.0.bn1"], rtol=1e-4, atol=1e-5)


def test_names_to_keep_are_those_inside_a_wrapper() -> None:
    class Wrapper(Around):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.module(x)
            return answer

    folded = fold_batch_norms(Wrapper(small()).eval(), images(), keep=("bn1",))
    assert norms(folded) == 1
    assert isinstance(folded.get_submodule("module.bn1"), nn.BatchNorm2d)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.other = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3))  # type: ignore[no-any-return]


class OutputReadTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return (self.norm(out) + out).mean((2, 3))  # type: ignore[no-any-return]


class NormTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.conv(x)) + self.norm(self.other(x))).mean((2, 3))  # type: ignore[no-any-return]


class ConvolutionTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.conv(x)) + self.conv(x)).mean((2, 3))  # type: ignore[no-any-return]


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.other.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.conv(x)) + self.other(x)).mean((2, 3))  # type: ignore[no-any-return]


class WeightReadElsewhere(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3)) + self.conv.weight.sum()  # type: ignore[no-any-return]


class ActivationBetween(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).relu()).mean((2, 3))  # type: ignore[no-any-return]


class Untraceable(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else -super().forward(x)


class OtherInEval(Net):
    """Tracing sees one branch, the images another."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if isinstance(x, torch.fx.Proxy) else self.conv(x).mean((2, 3))


class NoStatistics(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)


@pytest.mark.parametrize(
    "kind",
    [
        OutputReadTwice,
        NormTwice,
        ConvolutionTwice,
        Tied,
        WeightReadElsewhere,
        ActivationBetween,
        Untraceable,
        OtherInEval,
    ],
)
def test_what_cannot_be_folded_is_left(kind: type[Net]) -> None:
    model = trained(kind())
    assert fold_batch_norms(model, images()) is model
    assert norms(fold_batch_norms(trained(Net()), images())) == 0  # the same net without the obstacle


def test_statistics_of_the_batch_are_left() -> None:
    model = frozen_copy(NoStatistics())
    assert fold_batch_norms(model, images()) is model


def test_hooks_are_left_alone() -> None:
    model = trained(Net())
    seen: list[Tensor] = []
    model.get_submodule("conv").register_forward_hook(lambda _, __, out: seen.append(out))
    assert fold_batch_norms(model, images()) is model
    assert not seen


def test_a_run_asks_the_folded_teacher_and_shows_the_whole_one() -> None:
    torch.manual_seed(0)
    x, y = images(), torch.tensor([0, 1, 2])
    run = Compression(ResNetCIFAR((1, 1, 1, 1), channels=4), PwoAConfig(sparsity=0.5, train_loader=(x, y), epochs=1))
    objective, _ = run._look()
    assert norms(objective.teacher) == 0
    assert norms(run.teacher) == 12


def test_the_loss_is_what_it_is_unfolded_and_moves_with_its_module() -> None:
    model, x, y = small().double(), images().double(), torch.tensor([0, 1, 2])
    student = trained(ResNetCIFAR((1, 1, 1, 1), channels=4)).double()
    losses = []
    for obstacle in (False, True):
        teacher = frozen_copy(model)
        if obstacle:
            teacher.register_forward_hook(lambda _, __, out: out)
        loss = PwoALoss(teacher, perturbation={"kind": "none"})
        losses.append(loss(student, x, y))
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-4)
    assert loss._objective is not None
    assert norms(loss._objective.teacher) == 12
    loss = PwoALoss(model, perturbation={"kind": "none"})
    loss(student, x, y)
    loss.float()
    assert loss._objective is not None
    assert norms(loss._objective.teacher) == 0
    assert {tensor.dtype for tensor in loss._objective.teacher.parameters()} == {torch.float32}
    assert loss(student.float(), x.float(), y).isfinite()


def test_a_hidden_layer_that_is_a_batch_norm_is_read_before_it() -> None:
    model, x, y = small(), images(), torch.tensor([0, 1, 2])
    loss = PwoALoss(model, hsic={"layers": "layer1.0.bn1"}, perturbation={"kind": "none"})
    loss(model, x, y)
    assert loss.terms["features"].item() == pytest.approx(0, abs=1e-6)
