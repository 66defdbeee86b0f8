from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pwoa_plugin.robustness import CW, PGD, evaluate


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    true = F.one_hot(labels, logits.shape[1]).bool()
    return (logits.masked_fill(true, -1e9).amax(1) - logits[true]).sum()


def plain_pgd(model: nn.Module, images: Tensor, labels: Tensor, eps: float, loss: object) -> Tensor:
    """Twenty steps from a random start, written without ART."""
    generator = torch.Generator().manual_seed(1)
    x = images + eps * (2 * torch.rand(images.shape, generator=generator) - 1)
    x = x.clamp(0, 1)
    for _ in range(20):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(x), labels), x)  # type: ignore[operator]
        x = x.detach() + 2.5 * eps / 20 * gradient.sign()
        x = images + (x - images).clamp(-eps, eps)
        x = x.clamp(0, 1)
    return x


@pytest.mark.parametrize(("attack", "loss"), [(PGD(steps=20), F.cross_entropy), (CW(), margin)])
def test_strength_agrees_with_plain_torch(
    model: nn.Module, held_out: tuple[Tensor, Tensor], eps: float, attack: PGD, loss: object
) -> None:
    images, labels = held_out
    report = evaluate(model, held_out, eps=eps, attacks=attack, progress=False)
    model.eval()
    found = plain_pgd(model, images, labels, eps, loss)
    expected = (model(images).argmax(1) == labels) & (model(found).argmax(1) == labels)
    ours = report.attacks[attack.name].n_robust
    assert 20 < int(expected.sum()) < int(report.clean_correct.sum()) - 20
    assert abs(ours - int(expected.sum())) <= 3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # ART's, on restarts
def test_restarts_fell_more_and_never_fewer(model: nn.Module, held_out: tuple[Tensor, Tensor], eps: float) -> None:
    once = PGD(steps=2, step_size=0.3 * eps, name="once")
    often = PGD(steps=2, step_size=0.3 * eps, restarts=20, name="often")
    report = evaluate(model, held_out, eps=eps, attacks=[once, often], progress=False)
    assert report.attacks["often"].n_robust < report.attacks["once"].n_robust


def test_the_seed_changes_the_random_start(model: nn.Module, held_out: tuple[Tensor, Tensor], eps: float) -> None:
    kept = [
        evaluate(model, held_out, eps=eps, attacks=PGD(steps=1, step_size=0.1 * eps), seed=seed, progress=False)
        for seed in (0, 1)
    ]
    assert not torch.equal(kept[0].attacks["PGD-1"].robust, kept[1].attacks["PGD-1"].robust)
