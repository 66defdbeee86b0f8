"""What a model answers to an image must not depend on what else it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin.robustness import Report, compare, evaluate, security_curve

Pair = tuple[Tensor, Tensor]


class Cheat(nn.Module):
    """An honest model, and one that knows the test images; ``knows`` says which of them answers a batch."""

    def __init__(self, model: nn.Module, data: Pair, knows: Callable[[Cheat, Tensor], bool]) -> None:
        super().__init__()
        self.model, self.images, self.labels, self.knows = model, data[0].flatten(1), data[1], knows
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        honest: Tensor = self.model(x)
        if not self.knows(self, x):
            return honest
        nearest = torch.cdist(x.detach().flatten(1), self.images).argmin(1)
        return F.one_hot(self.labels[nearest], 10) * 10.0 + 0 * honest


class Around(nn.Module):
    def __init__(self, model: nn.Module, change: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.model, x)


def over_the_batch(model: nn.Module, x: Tensor) -> Tensor:
    return model(F.batch_norm(x, None, None, training=True) / 4 + 0.3)


KNOWING: dict[str, Callable[[Cheat, Tensor], bool]] = {
    "batches of 64": lambda cheat, x: len(x) == 64,
    "batches, not one": lambda cheat, x: len(x) > 1,
    "every other call": lambda cheat, x: cheat.calls % 2 == 0,
    "after 12 calls": lambda cheat, x: cheat.calls > 12,
    "without gradients": lambda cheat, x: not torch.is_grad_enabled(),
    "images without gradient": lambda cheat, x: not x.requires_grad,
}


def judged(model: nn.Module, data: Pair, eps: float, **arguments: Any) -> Report:
    return evaluate(
        model, data, eps=eps, **({"attacks": ["FGSM", "PGD-10"], "batch_size": 64, "progress": False} | arguments)
    )


def names(report: Report) -> set[str]:
    return {alarm.name for alarm in report.alarms or ()}


@pytest.mark.parametrize("knows", KNOWING)
@pytest.mark.parametrize("alarms", [True, False])
def test_a_model_that_knows_the_answers_at_times_raises_an_alarm(
    model: nn.Module, held_out: Pair, eps: float, knows: str, alarms: bool
) -> None:
    data = held_out[0][:128], held_out[1][:128]
    assert "batch-dependent" in names(judged(Cheat(model, data, KNOWING[knows]), data, eps, alarms=alarms))


@pytest.mark.parametrize("knows", ["without gradients", "images without gradient", "batches, not one"])
def test_what_is_asked_one_by_one_decides(model: nn.Module, held_out: Pair, eps: float, knows: str) -> None:
    honest, cheat = (judged(net, held_out, eps) for net in (model, Cheat(model, held_out, KNOWING[knows])))
    assert cheat.clean <= honest.clean + 0.01


def in_the_order(labels: Tensor) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, x: F.one_hot(labels[torch.arange(len(x)) % len(labels)], 10) * 10.0 + 0 * model(x)


@pytest.mark.parametrize("by_position", [True, False])
def test_a_model_that_goes_by_position_or_normalises_over_the_batch(
    model: nn.Module, held_out: Pair, eps: float, by_position: bool
) -> None:
    dependent = Around(model, in_the_order(held_out[1]) if by_position else over_the_batch)
    report = judged(dependent, held_out, eps, batch_size=256)
    assert "batch-dependent" in names(report)
    assert report.worst_case.accuracy < (0.05 if by_position else 0.8)
    curve = security_curve(dependent, held_out, eps=[eps / 2, eps], attack="FGSM", progress=False)
    assert [alarm.name for alarm in curve.alarms] == ["batch-dependent"]


def test_a_model_that_takes_no_single_image_is_refused_before_any_attack(model: nn.Module, held_out: Pair) -> None:
    alone = Around(model, lambda net, x: F.batch_norm(net(x), None, None, training=True))
    for judge in (
        lambda: judged(alone, held_out, 0.1),
        lambda: compare({"a": alone}, held_out, eps=0.1, progress=False),
    ):
        with pytest.raises(
            ValueError, match=r"model takes images in batches of .* and not of 1 .*have it answer"
        ) as said:
            judge()
        assert "\n" not in str(said.value)


def int8(model: nn.Module) -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


HONEST: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float32": lambda model: model,
    "bf16": lambda model: model.bfloat16(),
    "float16": lambda model: model.half(),
    "int8": int8,
    "log-softmax": lambda model: Around(model, lambda net, x: F.log_softmax(net(x), 1)),
    "steep": lambda model: Around(model, lambda net, x: 1000 * net(x)),
    "flat": lambda model: Around(model, lambda net, x: 1e-4 * net(x)),
    "far from 0": lambda model: Around(model, lambda net, x: net(x) + 1000),
    "a class that cannot be": lambda model: Around(model, lambda net, x: net(x) - 1e4 * (torch.arange(10) == 9)),
}


@pytest.mark.parametrize("kind", HONEST)
@pytest.mark.parametrize("batch_size", [1, 2, 37, 256])
def test_rounding_is_no_other_answer(model: nn.Module, held_out: Pair, eps: float, kind: str, batch_size: int) -> None:
    data = held_out[0][:60], held_out[1][:60]
    square = {"attacks": "Square" if kind == "int8" else "FGSM", "alarms": False, "batch_size": batch_size}
    if kind == "int8":
        from pwoa_plugin.robustness import AutoAttack

        square["attacks"] = AutoAttack(name="Square", parts=["square"], queries=5)
    assert names(judged(HONEST[kind](model), data, eps, **square)) == set()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["all", "label 0"])
def test_logits_that_are_not_finite_are_no_answer(
    model: nn.Module, held_out: Pair, eps: float, value: float, where: str
) -> None:
    def change(net: nn.Module, x: Tensor) -> Tensor:
        return torch.where((torch.arange(10) == 0) | (where == "all"), value, net(x))

    report = judged(Around(model, change), held_out, eps)
    assert (report.clean, report.worst_case.accuracy) == (0, 0)
    assert "not-finite" in names(report)


def test_an_image_that_an_attack_drives_to_infinity_is_not_robust(model: nn.Module, held_out: Pair, eps: float) -> None:
    clean = {tuple(image.flatten().tolist()) for image in held_out[0]}

    def change(net: nn.Module, x: Tensor) -> Tensor:
        known = torch.tensor([tuple(image.flatten().tolist()) in clean for image in x])
        return torch.where(known[:, None], net(x), net(x) + torch.inf * held_out[0].new_ones(10))

    report = judged(Around(model, change), held_out, eps, alarms=False)
    assert report.clean > 0.8
    assert report.worst_case.accuracy == 0
    assert "not-finite" in names(report)
