from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.robustness import evaluate, security_curve

Pair = tuple[Tensor, Tensor]


def test_a_curve_starts_clean_falls_and_is_raw(model: nn.Module, held_out: Pair, eps: float) -> None:
    curve = security_curve(model, held_out, eps=[eps, eps / 4, 3 * eps], attack="PGD-3", progress=False)
    report = evaluate(model, held_out, eps=eps, attacks="PGD-3", progress=False, alarms=False)
    assert curve.eps == (0.0, eps / 4, eps, 3 * eps)
    assert curve.accuracy[0] == report.clean
    assert curve.n_robust[2] == report.attacks["PGD-3"].n_robust
    assert list(curve.accuracy) == sorted(curve.accuracy, reverse=True)
    assert all(low <= accuracy <= high for accuracy, (low, high) in zip(curve.accuracy, curve.intervals, strict=True))
    assert curve.alarms == ()


def test_a_curve_that_rises_says_so(model: nn.Module, held_out: Pair, eps: float) -> None:
    class Shy(nn.Module):
        """Has no gradient once an image is far from where it was."""

        def forward(self, x: Tensor) -> Tensor:
            before = images[torch.cdist(x.detach().flatten(1), images.flatten(1)).argmin(1)]
            far = (x - before).abs().flatten(1).amax(1) > 0.15
            return torch.where(far[:, None], model(before), model(x))

    images, labels = held_out
    keep = (model.eval()(images).argmax(1) == labels).nonzero().squeeze(1)[:60]
    images, labels = images[keep], labels[keep]
    curve = security_curve(Shy(), (images, labels), eps=[0.1, 0.3], attack="FGSM", progress=False)
    assert curve.accuracy[2] > curve.accuracy[1]
    (alarm,) = curve.alarms
    assert alarm.name == "rises-with-eps"
    assert "at eps = 0.3 than at 0.1" in str(alarm)


@pytest.mark.parametrize("eps", [0.1, "1/10", torch.tensor(0.1), ["1/10"], torch.tensor([0.1])])
def test_one_radius_may_stand_alone(model: nn.Module, held_out: Pair, eps: Any) -> None:
    found = security_curve(model, held_out, eps=eps, attack="FGSM", sample=8, progress=False)
    assert found.eps == pytest.approx((0.0, 0.1))


def test_a_curve_checks_what_it_is_given(model: nn.Module, held_out: Pair) -> None:
    with pytest.raises(ValueError, match=r"^eps is missing"):
        security_curve(model, held_out, eps=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^atacks: unknown key; did you mean attacks"):
        security_curve(model, held_out, eps=0.1, atacks="FGSM")
    for eps in (-1, True, [0.1, "x"]):
        with pytest.raises(ValueError, match=r"^eps=[^;]* is not a positive number; give it in pixel units[^;]*$"):
            security_curve(model, held_out, eps=eps)
    with pytest.raises(ValueError, match=r"^eps is empty"):
        security_curve(model, held_out, eps=[])
    wide = nn.functional.one_hot(held_out[1], 13)
    with pytest.raises(ValueError, match=r"^data: labels are one-hot over 13 classes, and the model has 10"):
        security_curve(model, (held_out[0], wide), eps=[0.1], attack="FGSM", progress=False)
