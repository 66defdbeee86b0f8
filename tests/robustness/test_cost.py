from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin._progress import Rows
from pwoa_plugin.robustness import (
    PGD,
    Attack,
    AttackSettings,
    AutoAttack,
    compare,
    evaluate,
    make_attack,
    make_estimator,
)
from pwoa_plugin.robustness.cost import cost_of, idle_text
from pwoa_plugin.robustness.estimator import Logits

Pair = tuple[Tensor, Tensor]

ATTACKS = [
    *map(make_attack, ["FGSM", "PGD-10", "CW", "PGD-5-T", "APGD-CE", "APGD-T", "FAB-T"]),
    PGD(steps=3, restarts=4),
    AutoAttack(name="Square", parts=["square"], queries=100),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
@pytest.mark.parametrize("n_classes", [10, 4])
def test_the_cost_is_what_is_counted_where_nothing_is_broken(attack: Attack, n_classes: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, n_classes))
    x = torch.rand(4, 1, 4, 4)
    view = Logits(net)
    estimator = make_estimator(view, n_classes=n_classes, input_shape=(1, 4, 4))
    settings = AttackSettings(eps=1e-7, n_classes=n_classes)
    attack.run(estimator, x, net(x).argmax(1), settings)
    cost = cost_of(attack, n_classes)
    assert cost is not None
    assert view.n_forwards / 4 <= cost.forwards <= 1.1 * view.n_forwards / 4 + 4
    assert cost.passes >= cost.forwards


@pytest.mark.parametrize(
    ("images", "batch_size", "processes", "best"),
    [(200, 256, 2, 25), (200, 100, 2, None), (3, 1, 8, None), (5, 5, 8, 1)],
)
def test_processes_without_a_batch_are_told(images: int, batch_size: int, processes: int, best: int | None) -> None:
    said = idle_text(images, batch_size, processes)
    assert (said is None) if best is None else (said or "").endswith(f"give a batch_size of about {best}")


def test_the_cost_is_said_before(
    model: nn.Module, held_out: Pair, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(model, held_out, eps=0.1, attacks=["FGSM", "PGD-10"], sample=20)
    said = capsys.readouterr().err.splitlines()[0]
    assert said.startswith("judging 20 images: at most ")
    assert "images through the model (FGSM " in said
    assert said.endswith("as fast as the first batches")
    caplog.set_level("INFO")
    compare({"a": model, "b": model}, held_out, eps=0.1, attacks="FGSM", sample=20, curve=[0.1], progress=False)
    assert capsys.readouterr().err == ""
    assert "comparing 2 models on 20 images: at most " in caplog.text
    assert caplog.text.index("comparing 2") < caplog.text.index("judging 20 images")


def test_progress_advances_inside_a_batch_and_tells_the_time_left(
    model: nn.Module, held_out: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float | None]] = []
    monkeypatch.setattr(Rows, "update", lambda _, share, left: seen.append((share, left)))
    attack = AutoAttack(parts=["apgd-ce", "square"], queries=300)
    evaluate(model, held_out, eps=0.05, attacks=attack, sample=50, alarms=False)  # a batch of each of the two
    shares = [share for share, _ in seen]
    assert len(set(shares)) > 200
    assert all(0 <= share <= 1 for share in shares)
    assert all(left is not None and left >= 0 for _, left in seen)
