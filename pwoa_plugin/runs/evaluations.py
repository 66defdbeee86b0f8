"""All evaluations of a run, and the pair of networks that its headline is about."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from .._checked import Record
from ..errors import InputError

if TYPE_CHECKING:
    from ..robustness import Report

Network = Literal["pruned", "dense"]


class Evaluation(Record):
    """One network, judged once; ``report`` is what `Report.to_dict` gave."""

    network: Network
    report: dict[str, JsonValue]

    @cached_property
    def judged(self) -> Report:
        from ..robustness import Report  # not at the top: brings ART

        return Report.from_dict(self.report)


def setting_of(report: Report) -> str:
    """What two reports must have in common to be compared: images, ball, seed and attacks."""
    config = report.config
    ball = config.eps, config.norm, config.pixel_range
    return json.dumps(
        [config.n_images, config.images_sha256, ball, config.seed, config.attacks, list(report.attacks)], sort_keys=True
    )


def alike(evaluations: Iterable[Evaluation]) -> list[dict[Network, Evaluation]]:
    """The evaluations in groups of like ones, each of one pruned and one dense network, or of one alone."""
    groups: list[tuple[str, dict[Network, Evaluation]]] = []
    for evaluation in evaluations:
        setting = setting_of(evaluation.judged)
        for known, group in groups:
            if known == setting and evaluation.network not in group:
                group[evaluation.network] = evaluation
                break
        else:
            groups.append((setting, {evaluation.network: evaluation}))
    return [group for _, group in groups]


def strength(report: Report, eps: object) -> tuple[float, ...]:
    """How much an evaluation says about a run for radius ``eps``; the larger, the more.

    What counts, in this order: the run's own radius in Linf; the standard AutoAttack; Linf before L2; the radius;
    images through the model for each image, which grow with the attacks' steps; the number of images.
    """
    config = report.config
    own = config.norm == "Linf" and isinstance(eps, (int, float)) and math.isclose(config.eps, eps)
    effort = sum(column.forwards for column in report.attacks.values()) / max(1, config.n_images)
    return own, report.autoattack is not None, config.norm == "Linf", config.eps, effort, config.n_images


def for_headline(evaluations: Sequence[Evaluation], eps: object) -> tuple[list[Evaluation], list[Evaluation]]:
    """The strongest pair of pruned and dense networks, judged alike, else the strongest alone; and the rest."""
    groups = alike(evaluations)
    if not groups:
        return [], []

    def rank(group: Mapping[Network, Evaluation]) -> tuple[float, ...]:
        some = next(iter(group.values()))
        return len(group), "pruned" in group, *strength(some.judged, eps)

    first = max(groups, key=rank)
    chosen = [first[name] for name in ("pruned", "dense") if name in first]
    rest = sorted((group for group in groups if group is not first), key=rank, reverse=True)
    return chosen, [group[name] for group in rest for name in ("pruned", "dense") if name in group]


def parsed(evaluation: Evaluation, where: str) -> Report:
    """The evaluation's report; an InputError says ``where`` it is."""
    try:
        return evaluation.judged
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
