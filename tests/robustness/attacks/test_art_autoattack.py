from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from pwoa_plugin.robustness import ARTAutoAttack, AttackSettings, evaluate


def test_it_is_not_named_as_the_standard_one_and_drops_what_two_classes_cannot_have() -> None:
    attack = ARTAutoAttack()
    assert attack.name == "ART-AutoAttack"
    names = {n: attack.parameters(AttackSettings(eps=0.1, n_classes=n))["attacks"] for n in (2, 3)}
    assert names[2] == ["apgd cross_entropy", "deepfool", "square"]
    assert names[3] == ["apgd cross_entropy", "apgd difference_logits_ratio", "deepfool", "square"]


def test_two_classes(
    make_model: Callable[[int], nn.Module],
    digits: Callable[[int], tuple[Tensor, Tensor]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("multiprocess")
    images, labels = (part[-12:] for part in digits(2))
    report = evaluate(make_model(2), (images, labels), eps=0.45, attacks=["PGD-20", "ART-AutoAttack"], progress=False)
    assert any("APGD on the DLR loss left out" in note for note in report.notes)
    assert report.attacks["ART-AutoAttack"].n_robust <= report.attacks["PGD-20"].n_robust < 12
    assert capfd.readouterr() == ("", "")
