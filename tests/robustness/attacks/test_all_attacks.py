"""What every attack owes: one table over all of them."""

from __future__ import annotations

import copy
import importlib.util
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pwoa_plugin.robustness import AttackRun, AttackSettings, Report, evaluate, make_attack, make_estimator

needs_multiprocess = pytest.mark.skipif(
    importlib.util.find_spec("multiprocess") is None, reason="ART's ensemble needs multiprocess"
)
ENSEMBLES = ["AutoAttack", pytest.param("ART-AutoAttack", marks=needs_multiprocess)]
STEPPED = ["FGSM", "PGD-10", "PGD-40", "CW", "PGD-10-T", "CW-5-T"]
SINGLE = [*STEPPED, "APGD-CE", "APGD-T", "FAB-T", "Square"]
NORMS = {"Linf": 1.0, "L2": 6.0}  # a radius that fools about as often
N_CLASSES = 5
SEED = 11
N_IMAGES = 24


class Case(NamedTuple):
    """One attack on the images that the model classifies correctly: by itself, and by `evaluate`."""

    norm: str
    eps: float
    model: nn.Module
    images: Tensor
    correct: Tensor
    run: AttackRun
    still_correct: Tensor
    report: Report
    progress: list[float]
    modes_kept: bool
    random_state_kept: bool


@pytest.fixture(scope="module", params=NORMS)
def norm(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module", params=[*SINGLE, *ENSEMBLES])
def case(
    request: pytest.FixtureRequest,
    make_model: Callable[[int], nn.Module],
    digits: Callable[[int], tuple[Tensor, Tensor]],
    eps: float,
    norm: str,
) -> Case:
    if request.param not in STEPPED:
        eps = 0.35  # fells nearly all images at once: those that survive take seconds; test_autoattack.py has them
    eps *= NORMS[norm]
    images, labels = (part[-N_IMAGES:] for part in digits(N_CLASSES))
    model = make_model(N_CLASSES)
    in_eval_mode = copy.deepcopy(model).eval()
    with torch.no_grad():
        correct = in_eval_mode(images).argmax(1) == labels
    estimator = make_estimator(model, n_classes=N_CLASSES, input_shape=(1, 8, 8))
    settings = AttackSettings(eps=eps, norm=norm, n_classes=N_CLASSES, batch_size=10, seed=SEED)
    attack = make_attack(request.param)
    progress: list[float] = []
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    run = attack.run(estimator, images[correct], labels[correct], settings, progress.append)
    now = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    modes_kept = modes == [module.training for module in model.modules()]
    random_state_kept = torch.equal(states[0], now[0]) and states[1:] == now[1:]
    arguments = {"attacks": request.param, "batch_size": 10, "seed": SEED, "progress": False, "alarms": False}
    report = evaluate(model, (images, labels), norm=norm, eps=eps, **arguments)
    still_correct = correct.clone()
    with torch.no_grad():
        still_correct[correct] = in_eval_mode(run.images).argmax(1) == labels[correct]
    return Case(norm, eps, model, images, correct, run, still_correct, report, progress, modes_kept, random_state_kept)


def test_images_stay_in_the_ball_and_in_range_and_some_move(case: Case) -> None:
    found, images = case.run.images, case.images[case.correct]
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    moved = (found - images).flatten(1)
    assert moved.norm(p=float("inf") if case.norm == "Linf" else 2, dim=1).max() <= case.eps + 1e-5
    assert found.min() >= -1e-6
    assert found.max() <= 1 + 1e-6
    assert (found != images).flatten(1).any(1).sum() > 2


def test_the_same_seed_finds_the_same_images(case: Case) -> None:
    fooled = ~case.still_correct[case.correct]
    expected = case.images.clone()
    expected[case.correct & ~case.still_correct] = case.run.images[fooled]
    assert torch.equal(case.report.adversarial, expected)
    assert torch.equal(case.report.worst_case.robust, case.still_correct)


def test_it_fools_the_model(case: Case) -> None:
    (column,) = case.report.attacks.values()
    assert column.n_robust < int(case.report.clean_correct.sum())
    assert column.forwards >= int(case.report.clean_correct.sum())


def test_the_model_comes_back_as_it_was(case: Case) -> None:
    assert case.modes_kept
    assert all(p.grad is None and p.requires_grad for p in case.model.parameters())


def test_global_random_states_come_back_as_they_were(case: Case) -> None:
    assert case.random_state_kept


def test_verdicts_are_the_models_answers_to_the_images_found(case: Case) -> None:
    (column,) = case.report.attacks.values()
    assert torch.equal(case.report.clean_correct, case.correct)
    assert torch.equal(column.robust, case.still_correct)


def test_progress_grows_up_to_all_images(case: Case) -> None:
    assert case.progress == sorted(case.progress)
    assert len(case.progress) > 1
    assert 0 < case.progress[-1] <= N_IMAGES


@pytest.mark.parametrize("name", [*(name for name in SINGLE if name != "Square"), "AutoAttack"])
@pytest.mark.parametrize("pixel_range", [(0.0, 1.0), (-20.0, 235.0)])
@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_are_the_truth_where_that_is_known(name: str, norm: str, pixel_range: tuple[float, float]) -> None:
    """Logits are the pixels: robust is what leads by more than 2 eps (1.414 eps in L2), and nothing else."""
    if (name, norm) == ("AutoAttack", "L2"):
        pytest.skip("Square's windows in L2 are of 3x3 pixels, and these images have one row")
    low, high = pixel_range
    generator = torch.Generator().manual_seed(0)
    images = low + (high - low) * (0.2 + 0.6 * torch.rand(32, 1, 1, 5, generator=generator))
    eps = 0.05 * (high - low)
    best = images.flatten(1).topk(2).values
    lead = best[:, 0] - best[:, 1]
    report = evaluate(
        nn.Sequential(nn.Flatten(), Scale(10 / (high - low))),
        (images, images.flatten(1).argmax(1)),
        norm=norm,
        eps=eps,
        attacks=name,
        pixel_range=pixel_range,
        progress=False,
        alarms=False,
    )
    robust = report.attacks[name].robust
    assert report.clean == 1
    reach = (2 if norm == "Linf" else 2**0.5) * eps
    assert bool(robust[lead > reach].all())
    # The margin loss moves one rival at a time, and in L2 the cross-entropy's gradient goes for all rivals at once: a
    # few steps may miss what is only just in reach.
    sure = name in ("AutoAttack", "APGD-T", "FAB-T") or (norm == "Linf" and "CW" not in name)
    assert not bool(robust[lead < (0.999 if sure else 0.75) * reach].any())
    assert 5 < robust.sum() < 27


class Scale(nn.Module):
    """Multiplies by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x
