"""To add something is one class and one line: each kind is tried with a toy, as docs/architecture.md says."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import FastGradientMethod
from art.estimators.classification import PyTorchClassifier
from conftest import TinyNet
from safetensors.torch import load_file
from torch import Tensor, nn

from pwoa_plugin import PwoAConfig, PwoALoss, PwoAPruner, evaluate
from pwoa_plugin._files import write_tensors
from pwoa_plugin.backends import BACKENDS, MaskBackend, backend_of
from pwoa_plugin.cli import main
from pwoa_plugin.export import FORMATS, Choices, Format
from pwoa_plugin.method.allocation import ALLOCATIONS, Allocation, LayerGroups
from pwoa_plugin.method.hsic import ESTIMATORS, HSIC
from pwoa_plugin.method.perturbation import PERTURBATIONS, Perturbation
from pwoa_plugin.method.phases import Phase
from pwoa_plugin.method.sparsity import SPARSITY_SETS, SparsitySet
from pwoa_plugin.method.trainer import Trainer
from pwoa_plugin.models import SOURCES, Own, Source, Wanted
from pwoa_plugin.robustness import Attack, AttackSettings, Cost, attacks
from pwoa_plugin.runs.network import make_network, own_of

Pair = tuple[Tensor, Tensor]


def config(images: Pair, **fields: Any) -> PwoAConfig:
    values: dict[str, Any] = {"sparsity": 0.5, "train_loader": images, "batch_size": 64, "epochs": 2, "eps": 0.1}
    return PwoAConfig(**values | {"progress": False} | fields)


class Halves(SparsitySet):
    """The first and the second half of each filter's weights."""

    def scores(self, weight: Tensor) -> Tensor:
        first, second = weight.flatten(1).tensor_split(2, dim=1)
        return torch.cat([first.square().sum(1), second.square().sum(1)])

    def expand(self, keep: Tensor, shape: torch.Size) -> Tensor:
        first, second = torch.empty(shape).flatten(1).tensor_split(2, dim=1)
        one, other = keep.view(2, -1, 1)
        return torch.cat([one.expand_as(first), other.expand_as(second)], 1).reshape(shape)


def test_a_sparsity_set(trained: TinyNet, images: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPARSITY_SETS, "halves", Halves)
    PwoAPruner(trained, config(images, granularity="halves")).compress()
    first, second = trained.fc1.weight.tensor_split(2, dim=1)
    for half in (first, second):
        assert torch.equal(half.ne(0).any(1), half.ne(0).all(1))
    assert 0.4 < float((trained.fc1.weight != 0).float().mean()) < 0.6


class FirstLayerDense(Allocation):
    def ideal(self, layers: Sequence[LayerGroups], budget: float) -> list[float]:
        first, *others = layers
        share = (budget - first.weights) / sum(layer.weights for layer in others)
        return [first.groups, *(share * layer.groups for layer in others)]


def test_an_allocation(trained: TinyNet, images: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALLOCATIONS, "first-dense", FirstLayerDense())
    pruner = PwoAPruner(trained, config(images, allocation="first-dense"))
    assert pruner.allocation["conv"].density == 1
    assert pruner.allocation["fc1"].density < 0.5


class Darker(Perturbation):
    """All pixels darker by the same share of the radius."""

    def __init__(self, *, radius: float, pixel_range: tuple[float, float] = (0.0, 1.0), strength: float = 1.0) -> None:
        super().__init__(radius=radius, pixel_range=pixel_range)
        self.strength = strength

    def direction(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.full_like(x, -self.strength)


def test_a_perturbation_with_an_option(
    trained: TinyNet, images: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PERTURBATIONS, "darker", Darker)
    file = tmp_path / "prune.yaml"
    file.write_text("sparsity: 0.5\nperturbation: {kind: darker, options: {strength: 0.5}}\n")
    section = PwoAConfig.from_yaml(file).perturbation
    loss = PwoALoss(trained, perturbation=section, eps=0.1)
    loss(trained, *images)
    assert isinstance(loss.perturbation.options, dict)
    assert isinstance(loss._perturb, Darker)
    assert loss._perturb.strength == 0.5
    with pytest.raises(ValueError, match="Darker has no option 'strenth'; it has strength"):
        PwoAConfig(sparsity=0.5, perturbation={"kind": "darker", "options": {"strenth": 1}})


def test_an_estimator(trained: TinyNet, images: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(HSIC):
        def measure(self, references: Tensor, hidden: Tensor) -> Tensor:
            return 2 * super().measure(references, hidden)

    monkeypatch.setitem(ESTIMATORS, "twice", Twice)
    terms = {}
    for name in ("hsic", "twice"):
        loss = PwoALoss(trained, hsic={"estimator": name, "share": 1}, perturbation={"kind": "none"})
        loss(trained, *images)
        terms[name] = float(loss.terms["hsic_y"])
    assert terms["twice"] == pytest.approx(2 * terms["hsic"]) != 0


class Brighter(Attack):
    """ART's fast gradient method with a step of an option's size."""

    needs_gradients = True

    def __init__(self, *, name: str = "Brighter", share: float = 1.0) -> None:
        super().__init__(name=name)
        self.share = share

    def cost(self, n_classes: int) -> Cost:
        return Cost(1, 1)

    def parameters(self, settings: AttackSettings) -> dict[str, Any]:
        return {"share": self.share}

    def build(self, estimator: PyTorchClassifier, settings: AttackSettings) -> EvasionAttack:
        eps = self.share * settings.eps
        return FastGradientMethod(estimator, norm=settings.art_norm, eps=eps, eps_step=eps)


def test_an_attack(
    trained: TinyNet, images: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attacks, "ATTACKS", {**attacks.ATTACKS, "Brighter": Brighter})
    few = images[0][:20], images[1][:20]
    report = evaluate(trained, few, attacks=[{"attack": "Brighter", "share": 0.5}], eps=0.1, alarms=False)
    assert report.attacks["Brighter"].forwards > 0
    assert report.config.attacks == {"Brighter": {"share": 0.5}}
    assert f"(Brighter {4 * int(report.clean_correct.sum())})" in capsys.readouterr().err
    monkeypatch.setattr(trained, "forward", torch.no_grad()(trained.forward))
    with pytest.raises(ValueError, match="attacks: Brighter needs gradients, and the model's logits carry none"):
        evaluate(trained, few, attacks="Brighter", eps=0.1, progress=False)


class Noise(Phase):
    """Adds a little noise to what is left, at every step."""

    name = "noise"

    def __init__(self, model: nn.Module, length: int) -> None:
        super().__init__(length)
        self.model = model

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        for parameter in self.model.parameters():
            parameter.add_(1e-3)


class WithNoise(Trainer):
    """A trainer whose list of phases has one more line."""

    def phases(self, per_epoch: int, check: Callable[[], None]) -> list[Phase]:
        return [*super().phases(per_epoch, check), Noise(self.model, per_epoch)]


def test_a_phase(trained: TinyNet, images: Pair) -> None:
    trainer = WithNoise(trained, config(images, epochs=4, gradual={"epochs": 1}))
    trainer.fit()
    assert [entry["phase"] for entry in trainer.history] == ["gradual", "noise", "fine-tune", "fine-tune"]
    assert trainer.schedule is not None
    assert [phase.done for phase in trainer.schedule.phases] == [3, 3, 6]
    assert torch.equal(trained.fc1.weight != 0, trainer.masks["fc1"])


def test_a_toolkit(trained: TinyNet, images: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    class Toolkit(MaskBackend):
        """Masks, by a toolkit of its own."""

    class Single(SparsitySet):
        backend = "toolkit"

        def scores(self, weight: Tensor) -> Tensor:
            return weight.flatten().square()

        def expand(self, keep: Tensor, shape: torch.Size) -> Tensor:
            return keep.view(shape)

    door = types.ModuleType("pwoa_plugin.toolkit")
    vars(door)["Toolkit"] = Toolkit
    monkeypatch.setitem(sys.modules, "pwoa_plugin.toolkit", door)
    monkeypatch.setitem(SPARSITY_SETS, "single", Single)
    monkeypatch.setitem(BACKENDS, "toolkit", "toolkit:Toolkit")
    assert isinstance(backend_of(config(images, granularity="single")), Toolkit)


def test_a_format(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Whole(Format):
        suffix = ".whole"

        def write(self, model: nn.Module, path: str | os.PathLike[str], images: Tensor, choices: Choices) -> None:
            write_tensors(path, model.state_dict(), {})

        def read(self, path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
            model.load_state_dict(load_file(path))
            return model

        def loading(self, name: str, new: str, removed: bool) -> str:
            return f"load_file({name!r})"

    home = types.ModuleType("pwoa_plugin.export.whole")
    vars(home)["Whole"] = Whole
    monkeypatch.setitem(sys.modules, "pwoa_plugin.export.whole", home)
    monkeypatch.setitem(FORMATS, "whole", "whole:Whole")
    assert main(["export", str(finished), str(tmp_path / "net.whole"), "--quiet"]) == 0
    assert "load_file('net.whole')" in (tmp_path / "net.whole.md").read_text()


class Toys(Source):
    def build(self, name: str, wanted: Wanted) -> nn.Module:
        return TinyNet(channels=wanted.channels, classes=wanted.classes)

    def describe(self, name: str) -> Own:
        return Own(mean=(0.5,), std=(2.0,))


def test_a_source_of_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pwoa_plugin.models.toys", types.ModuleType("toys"))
    monkeypatch.setattr(sys.modules["pwoa_plugin.models.toys"], "Toys", Toys, raising=False)
    monkeypatch.setitem(SOURCES, "toys", "toys:Toys")
    made = make_network("toys:small", classes=3, channels=1, data="mnist")
    assert isinstance(made, TinyNet)
    assert PwoAConfig(sparsity=0.5, model={"arch": "toys:small", "checkpoint": "a.pt"}).model is not None
    assert own_of("toys:small", "a.pt").mean == (0.5,)
