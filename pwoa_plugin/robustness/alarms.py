"""Alarms: what shows that robust accuracies are too high because the attacks were blinded (Carlini et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, permutations

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn import functional as F

from .._random import seeded
from ..data.split import stratified_order
from .alarm import Alarm, make_alarm, rises_with_eps
from .attacks import CW, FGSM, PGD, Attack, AttackSettings, AutoAttack
from .estimator import Logits, predict
from .journal import Journal
from .report import AttackReport
from .statistics import paired

__all__ = ["find_alarms"]

_PROBED = 32  # images, and as many correct ones
_FEW_STEPS, _MANY_STEPS = 10, 40
_QUERIES = 100  # of the black-box probe
_SHARE = 0.05  # of the images: no alarm below it
_UNDERFLOW = {"Linf": 87.0, "L2": 43.5}  # float32 holds a softmax of e^-87 at last, and L2 squares what it gives
_STEEP = 0.15  # of the images: if more steps fool the model on more, fewer had not converged
_SURVIVORS = 0.1  # of the images, where every pixel may take any value


def find_alarms(
    estimator: PyTorchClassifier,
    images: Tensor,
    labels: Tensor,
    correct: Tensor,
    settings: AttackSettings,
    attacks: Sequence[Attack] = (),
    columns: Mapping[str, AttackReport] | None = None,
) -> tuple[Alarm, ...]:
    """What looks wrong, by a few probes of at most 32 images, drawn by class, and by the columns of a report.

    Probes run in the evaluation's norm at its ``eps``; the one with every pixel free always runs in Linf.

    Args:
        estimator: on the model, which is in eval mode.
        images: ``(N, C, H, W)``.
        labels: ``(N,)``.
        correct: bool ``(N,)``, which images are right when clean.
        settings: of the evaluation.
        attacks: that were run.
        columns: what they found, by name.
    """
    settings = replace(settings, journal=Journal(), step_size=None)
    view = estimator.model
    with seeded(settings.seed), torch.inference_mode(False):
        order = stratified_order(labels, settings.seed)
        # Indexing copies, and tensors made in inference mode are of no use to autograd.
        found = _of_output(view, images[order[:_PROBED]], labels[order[:_PROBED]], settings)
        chosen = order[correct[order]][:_PROBED]
        blind = any(alarm.name == "no-gradients" for alarm in found)
        if len(chosen) and not blind:
            found += _of_attacks(estimator, images[chosen], labels[chosen], settings)
            if any(alarm.name == "survives-any-eps" for alarm in found):
                answers = predict(view, images[order[:_PROBED]], settings.batch_size).argmax(1).unique()
                if len(answers) == 1 < len(labels[order[:_PROBED]].unique()):
                    n = min(len(order), _PROBED)
                    saw = f"The model answers {int(answers)} to each of {n} images of several classes"
                    collapsed = make_alarm("one-class", saw)
                    found = [collapsed if alarm.name == "survives-any-eps" else alarm for alarm in found]
    found += _of_columns(attacks, columns or {})
    by_name: dict[str, Alarm] = {}
    for alarm in found:
        by_name.setdefault(alarm.name, alarm)
    return tuple(by_name.values())


def _many(count: int, n: int) -> bool:
    return count > max(2, _SHARE * n)


def _more(first: Tensor, second: Tensor, share: float = _SHARE) -> int:
    """How many more images the second verdicts hold than the first; 0 where they are few, or may be chance."""
    pair = paired(first, second)
    more = pair.second_only - pair.first_only
    return more if more > share * pair.n and pair.beyond_chance else 0


def _of_output(view: Logits, images: Tensor, labels: Tensor, settings: AttackSettings) -> list[Alarm]:
    found = []
    logits, again = (predict(view, images, settings.batch_size) for _ in range(2))
    largest = float(logits[logits.isfinite()].abs().amax()) if bool(logits.isfinite().any()) else 1.0
    moved = float((logits - again).nan_to_num().abs().amax())
    if moved > 1e-3 * max(largest, 1e-12):
        found.append(
            make_alarm(
                "stochastic-output",
                f"Asked twice, the model gives different logits for the same images: up to {moved:.3g} apart, of "
                f"{largest:.3g}",
            )
        )
    low, high, sums = float(logits.min()), float(logits.max()), logits.sum(1)
    if low > -1e-5 and high < 1 + 1e-5 and bool(((sums - 1).abs() < 1e-4).all()):
        saw = "The outputs are probabilities, not logits: losses on them have next to no gradient"
        found.append(make_alarm("probabilities", saw))
    best = logits.topk(2).values
    gaps = best[:, 0] - best[:, 1]
    underflow = _UNDERFLOW[settings.norm]
    n_saturated = int((gaps > underflow).sum())
    if n_saturated > _SHARE * len(logits):
        found.append(
            make_alarm(
                "saturated-logits",
                f"On {n_saturated} of {len(logits)} images the largest logit leads by more than {underflow:g} "
                f"(median lead {float(gaps.median()):.3g}): the cross-entropy has no gradient left in float32"
                + ", or none that can be squared"
                * (settings.norm == "L2"),
            )
        )
    batches = zip(images.split(settings.batch_size), labels.split(settings.batch_size), strict=True)
    gradients = [_gradient(view, *batch) for batch in batches]
    whole = [gradient for gradient in gradients if gradient is not None]
    if len(whole) < len(gradients):
        return [*found, make_alarm("no-gradients", "The logits carry no gradient to the images at all")]
    # What attacks use: its signs in Linf, its length in L2, whose squares are 0 where it is small.
    length = torch.cat(whole).flatten(1).norm(p=2 if settings.norm == "L2" else float("inf"), dim=1)
    if (n_zero := int(length.eq(0).sum())) > _SHARE * len(images):
        what = "length of the gradient" if settings.norm == "L2" else "gradient"
        saw = f"On {n_zero} of {len(images)} images the {what} of the loss is exactly 0 in float32"
        found.append(make_alarm("zero-gradients", saw))
    return found


def _gradient(view: Logits, images: Tensor, labels: Tensor) -> Tensor | None:
    """Of the cross-entropy with respect to the images; None where the logits carry none."""
    x = images.clone().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(view(x), labels.to(view.device), reduction="sum")
        return torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None


def _of_attacks(estimator: PyTorchClassifier, images: Tensor, labels: Tensor, settings: AttackSettings) -> list[Alarm]:
    n = len(images)
    low, high = settings.pixel_range
    span = high - low

    def holds(attack: Attack, **changed: object) -> Tensor:
        """Which images the model still has right."""
        found = attack.run(estimator, images, labels, replace(settings, **changed)).images  # type: ignore[arg-type]
        logits = predict(estimator.model, found, settings.batch_size)
        held: Tensor = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
        return held

    found = []
    anything = int(holds(PGD(steps=20), eps=span, norm="Linf").sum())
    if anything > max(1, _SURVIVORS * n):
        found.append(
            make_alarm(
                "survives-any-eps",
                f"With every pixel free to take any value (PGD-20, eps = {span:g}), {anything} of {n} images are still "
                "right, where none can be",
            )
        )
    widest = span if settings.norm == "Linf" else span * images[0].numel() ** 0.5
    radii = [settings.eps / 2, settings.eps, min(2 * settings.eps, widest)]
    curve = [holds(PGD(steps=_FEW_STEPS), eps=eps) for eps in radii]
    for (less, before), (more, after) in pairwise(zip(radii, curve, strict=True)):
        if rise := _more(before, after):
            found.append(rises_with_eps(f"PGD-{_FEW_STEPS}", less, more, rise, n))
    one, few, many = holds(FGSM()), curve[1], holds(PGD(steps=_MANY_STEPS))
    if lost := _more(one, few):
        found.append(_more_steps_weaker("FGSM", f"PGD-{_FEW_STEPS}", lost, n))
    if lost := _more(few, many):
        found.append(_more_steps_weaker(f"PGD-{_FEW_STEPS}", f"PGD-{_MANY_STEPS}", lost, n))
    if won := _more(many, few, _STEEP):
        saw = f"PGD-{_MANY_STEPS} fools the model on {won} of {n} images more than PGD-{_FEW_STEPS}"
        found.append(make_alarm("not-converged", saw))
    margin = holds(CW(steps=_FEW_STEPS))
    if missed := _more(margin, few):
        found.append(_margin_stronger(f"CW-{_FEW_STEPS}", f"PGD-{_FEW_STEPS}", missed, n))
    white = few & many & margin
    black = holds(AutoAttack(name="Square", parts=["square"], queries=_QUERIES))
    if _many(missed := int((white & ~black).sum()), n):
        found.append(_black_box_stronger(f"Square with {_QUERIES} queries", "PGD and CW", missed, n))
    return found


def _of_columns(attacks: Sequence[Attack], columns: Mapping[str, AttackReport]) -> list[Alarm]:
    found = []
    ran = [attack for attack in attacks if attack.name in columns]
    for black in ran:
        column = columns[black.name]
        n = len(column.robust)
        others = [columns[white.name].robust for white in ran if not white.black_box]
        if black.black_box and others:
            missed = int((torch.stack(others).all(0) & ~column.robust).sum())
            if _many(missed, n):
                found.append(_black_box_stronger(black.name, "the white-box attacks", missed, n))
        felled = column.felled.get("square", 0)
        if len(column.felled) > 1 and _many(felled, n):
            found.append(_black_box_stronger(f"Square in {black.name}", "the white-box attacks before it", felled, n))
    stepped = sorted(
        (attack for attack in ran if isinstance(attack, PGD) and attack.step_size is None),
        key=lambda attack: attack.steps,
    )
    by_steps: list[tuple[Attack, Attack]] = [
        (one, more)
        for one in ran
        for more in stepped
        if isinstance(one, FGSM) and not isinstance(more, CW) and not more.targets
    ]
    by_steps += [
        (fewer, more)
        for fewer, more in combinations(stepped, 2)
        if (type(fewer), fewer.restarts, fewer.targets) == (type(more), more.restarts, more.targets)
    ]
    for weaker, stronger in by_steps:
        if lost := _more(columns[weaker.name].robust, columns[stronger.name].robust):
            found.append(_more_steps_weaker(weaker.name, stronger.name, lost, len(columns[weaker.name].robust)))
    for margin, entropy in permutations(stepped, 2):
        same = (margin.steps, margin.restarts, margin.targets) == (entropy.steps, entropy.restarts, entropy.targets)
        if same and isinstance(margin, CW) and not isinstance(entropy, CW):
            held = columns[margin.name].robust
            if missed := _more(held, columns[entropy.name].robust):
                found.append(_margin_stronger(margin.name, entropy.name, missed, len(held)))
    return found


def _more_steps_weaker(fewer: str, more: str, count: int, n: int) -> Alarm:
    return make_alarm("more-steps-weaker", f"{more} fools the model on {count} of {n} images fewer than {fewer}")


def _margin_stronger(margin: str, entropy: str, count: int, n: int) -> Alarm:
    saw = f"{margin}, whose loss is the margin, fools the model on {count} of {n} images more than {entropy}"
    return make_alarm("margin-stronger", saw)


def _black_box_stronger(black: str, white: str, count: int, n: int) -> Alarm:
    saw = f"{black}, which sees no gradient, fools the model on {count} of {n} images that withstand {white}"
    return make_alarm("black-box-stronger", saw)
