"""Alarms: what shows that robust accuracies are too high because the attacks were blinded (Carlini et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise, permutations, product

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn import functional as F

from .._logits import are_probabilities
from .._random import seeded
from ..data.split import stratified_order
from .alarm import Alarm, make_alarm
from .attacks import CW, FGSM, PGD, Attack, AttackSettings, AutoAttack
from .estimator import Logits, input_gradients, is_right, predict
from .journal import Journal
from .report import AttackReport
from .sharing import dealt
from .statistics import paired

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
    attacks: Sequence[Attack],
    columns: Mapping[str, AttackReport],
) -> tuple[Alarm, ...]:
    """What looks wrong, by a few probes of at most 32 images, drawn by class, and by the columns of a report.

    Probes run in the evaluation's norm at its ``eps``; the one with every pixel free always runs in Linf.

    Args:
        estimator: on the model, which is in eval mode.
        correct: bool ``(N,)``, which images are right when clean.
        attacks: that were run.
        columns: what they found, by name.
    """
    settings = replace(settings, journal=Journal(), step_size=None)
    view = estimator.model
    with seeded(settings.seed):
        order = stratified_order(labels, settings.seed)
        probed, classes = images[order[:_PROBED]], labels[order[:_PROBED]]
        found = _of_output(view, probed, classes, settings)
        chosen = order[correct[order]][:_PROBED]
        if len(chosen) and all(alarm.name != "no-gradients" for alarm in found):
            found += _of_attacks(estimator, images[chosen], labels[chosen], settings)
            answers = predict(view, probed, settings.batch_size).argmax(1).unique()
            if len(answers) == 1 < len(classes.unique()):
                collapsed = make_alarm("one-class", answer=int(answers), n=len(probed))
                found = [collapsed if alarm.name == "survives-any-eps" else alarm for alarm in found]
    by_name: dict[str, Alarm] = {}
    for alarm in [*found, *_of_columns(attacks, columns)]:
        by_name.setdefault(alarm.name, alarm)
    return tuple(by_name.values())


def _many(count: int, n: int) -> bool:
    return count > max(2, _SHARE * n)


def _contradiction(kind: str, before: Tensor, after: Tensor, share: float = _SHARE, **names: object) -> list[Alarm]:
    """An alarm if the second verdicts hold more images than the first; none if they are few, or may be chance."""
    pair = paired(before, after)
    count = pair.second_only - pair.first_only
    if count > share * pair.n and pair.beyond_chance:
        return [make_alarm(kind, count=count, n=pair.n, **names)]
    return []


def _of_output(view: Logits, images: Tensor, labels: Tensor, settings: AttackSettings) -> list[Alarm]:
    found = []
    logits, again = (predict(view, images, settings.batch_size) for _ in range(2))
    largest = float(logits[logits.isfinite()].abs().amax()) if bool(logits.isfinite().any()) else 1.0
    moved = float((logits - again).nan_to_num().abs().amax())
    if moved > 1e-3 * max(largest, 1e-12):
        found.append(make_alarm("stochastic-output", moved=moved, largest=largest))
    if are_probabilities(logits):
        found.append(make_alarm("probabilities"))
    best = logits.topk(2).values
    gaps = best[:, 0] - best[:, 1]
    underflow = _UNDERFLOW[settings.norm]
    if (count := int((gaps > underflow).sum())) > _SHARE * len(logits):
        squared = ", or none that can be squared" if settings.norm == "L2" else ""
        figures = {"count": count, "n": len(logits), "lead": underflow, "median": float(gaps.median())}
        found.append(make_alarm("saturated-logits", squared=squared, **figures))
    batches = zip(images.split(settings.batch_size), labels.split(settings.batch_size), strict=True)
    gradients = dealt([partial(_gradient, view, *batch) for batch in batches])
    whole = [gradient for gradient in gradients if gradient is not None]
    if len(whole) < len(gradients):
        return [*found, make_alarm("no-gradients")]
    # What attacks use: its signs in Linf, its length in L2, whose squares are 0 where it is small.
    length = torch.cat(whole).flatten(1).norm(p=2 if settings.norm == "L2" else float("inf"), dim=1)
    if (count := int(length.eq(0).sum())) > _SHARE * len(images):
        what = "length of the gradient" if settings.norm == "L2" else "gradient"
        found.append(make_alarm("zero-gradients", count=count, n=len(images), what=what))
    return found


def _gradient(view: Logits, images: Tensor, labels: Tensor) -> Tensor | None:
    """Of the cross-entropy with respect to the images; None where the logits carry none."""
    classes = labels.to(view.device)
    return input_gradients(view, images, lambda logits: F.cross_entropy(logits, classes, reduction="sum"))


def _of_attacks(estimator: PyTorchClassifier, images: Tensor, labels: Tensor, settings: AttackSettings) -> list[Alarm]:
    n = len(images)
    low, high = settings.pixel_range
    span = high - low

    def holds(attack: Attack, **changed: object) -> Tensor:
        """Which images the model still has right."""
        found = attack.run(estimator, images, labels, replace(settings, **changed)).images  # type: ignore[arg-type]
        return is_right(predict(estimator.model, found, settings.batch_size), labels)

    found = []
    few_steps, many_steps = f"PGD-{_FEW_STEPS}", f"PGD-{_MANY_STEPS}"
    widest = span if settings.norm == "Linf" else span * images[0].numel() ** 0.5
    radii = [settings.eps / 2, settings.eps, min(2 * settings.eps, widest)]
    free, many, margin, black, one, *curve = dealt(
        [
            partial(holds, PGD(steps=20), eps=span, norm="Linf"),
            partial(holds, PGD(steps=_MANY_STEPS)),
            partial(holds, CW(steps=_FEW_STEPS)),
            partial(holds, AutoAttack(name="Square", parts=["square"], queries=_QUERIES)),
            partial(holds, FGSM()),
            *(partial(holds, PGD(steps=_FEW_STEPS), eps=eps) for eps in radii),
        ]
    )
    if (anything := int(free.sum())) > max(1, _SURVIVORS * n):
        found.append(make_alarm("survives-any-eps", eps=span, count=anything, n=n))
    for (less, before), (more, after) in pairwise(zip(radii, curve, strict=True)):
        found += _contradiction("rises-with-eps", before, after, attack=few_steps, less=less, more=more)
    few = curve[1]
    found += _contradiction("more-steps-weaker", one, few, fewer="FGSM", more=few_steps)
    found += _contradiction("more-steps-weaker", few, many, fewer=few_steps, more=many_steps)
    found += _contradiction("not-converged", many, few, _STEEP, fewer=few_steps, more=many_steps)
    found += _contradiction("margin-stronger", margin, few, margin=f"CW-{_FEW_STEPS}", entropy=few_steps)
    white = few & many & margin
    if _many(count := int((white & ~black).sum()), n):
        square = f"Square with {_QUERIES} queries"
        found.append(make_alarm("black-box-stronger", black=square, white="PGD and CW", count=count, n=n))
    return found


def _of_columns(attacks: Sequence[Attack], columns: Mapping[str, AttackReport]) -> list[Alarm]:
    found = []
    ran = [attack for attack in attacks if attack.name in columns]
    for black in ran:
        column = columns[black.name]
        n = len(column.robust)
        others = [columns[white.name].robust for white in ran if white.bounded and not white.black_box]
        if black.black_box and others:
            count, white = int((torch.stack(others).all(0) & ~column.robust).sum()), "the white-box attacks"
            if _many(count, n):
                found.append(make_alarm("black-box-stronger", black=black.name, white=white, count=count, n=n))
        count, white = column.felled.get("square", 0), "the white-box attacks before it"
        if len(column.felled) > 1 and _many(count, n):
            square = f"Square in {black.name}"
            found.append(make_alarm("black-box-stronger", black=square, white=white, count=count, n=n))
    stepped = sorted(
        (attack for attack in ran if isinstance(attack, PGD) and attack.step_size is None),
        key=lambda attack: attack.steps,
    )
    plain = [attack for attack in stepped if not isinstance(attack, CW) and not attack.targets]
    by_steps: list[tuple[Attack, Attack]] = [*product((one for one in ran if isinstance(one, FGSM)), plain)]
    by_steps += [(fewer, more) for fewer, more in combinations(stepped, 2) if _kind(fewer) == _kind(more)]
    for fewer, more in by_steps:
        held, by_more = columns[fewer.name].robust, columns[more.name].robust
        found += _contradiction("more-steps-weaker", held, by_more, fewer=fewer.name, more=more.name)
    for margin, entropy in permutations(stepped, 2):
        alike = margin.steps == entropy.steps and _kind(margin)[1:] == _kind(entropy)[1:]
        if alike and isinstance(margin, CW) and not isinstance(entropy, CW):
            held, by_entropy = columns[margin.name].robust, columns[entropy.name].robust
            found += _contradiction("margin-stronger", held, by_entropy, margin=margin.name, entropy=entropy.name)
    return found


def _kind(attack: PGD) -> tuple[type, int, int]:
    return type(attack), attack.restarts, attack.targets
