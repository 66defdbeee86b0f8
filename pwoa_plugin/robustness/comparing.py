"""Judge several models on the same images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Unpack

from torch import nn

from .._files import named_path
from .._text import short, visible
from ..errors import FileError, InputError
from .attacks import Cost
from .comparison import Broken, Comparison
from .cost import announce, cost_text, costs_of, total
from .curve import Curve, draw_curve
from .evaluation import check_model, judge_task
from .report import Report
from .settings import CompareOptions, JudgeSettings, Task, check_known, takes
from .sharing import agree, in_processes, is_main
from .weights import count_weights


@takes(CompareOptions)
def compare(
    models: Mapping[str, nn.Module],
    data: Iterable[Any],
    *,
    state: str | os.PathLike[str] | None = None,
    progress: bool = True,
    processes: int | None = None,
    **options: Unpack[CompareOptions],
) -> Comparison:
    """Judge models on the same images with the same attacks.

    Args:
        models: by name; the others are compared with the first, the dense one say.
        data: see `evaluate`; read once.
        state, progress, processes: see `evaluate`.
        options: how to judge; all are described below.

    Raises:
        ValueError: there is no model, or an argument cannot be used; see `evaluate`.
    """
    if state is not None:
        named_path("state", state)
    check_known(options, CompareOptions.__annotations__)
    if not isinstance(models, Mapping) or not models:
        given = "empty" if isinstance(models, Mapping) else f"of type {type(models).__name__}"
        raise InputError(f"models is {given}; give at least one by its name, as {{'dense': model}}")
    for name in models:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"models: {short(name)} is no name; give a text for each, as {{'dense': model}}")
    task = JudgeSettings.of(options, protocol="standard").bind(data)
    task = task.for_processes(processes, next(iter(models.values())))
    return in_processes(processes, compare_task, dict(models), task, state=state, progress=progress)


def compare_task(
    models: Mapping[str, nn.Module],
    task: Task,
    *,
    state: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Comparison:
    """See `compare`."""
    settings, n_images = task.settings, len(task.images.labels)
    progress = progress and is_main()
    agree({"models": list(models), "curve": settings.curve}, "start all with the same")
    costs: dict[str, Cost | None] = {}
    for name, model in models.items():  # all of them, before hours go into the first
        with _named(name):
            n_classes = check_model(model, task)
        of_attacks = costs_of(settings.attacks, n_images, n_classes, alarms=settings.alarms)
        of_radius = costs_of([settings.curve_attack], n_images, n_classes, alarms=False)
        costs[name] = total([*of_attacks.values(), *[*of_radius.values()] * len(settings.curve)])
    if len(models) > 1:
        announce(cost_text(f"comparing {len(models)} models on {n_images:,} images", costs), shown=progress)
    reports: dict[str, Report] = {}
    curves: dict[str, Curve] = {}
    broken: list[Broken] = []
    for name, model in models.items():
        shown = name if progress else False
        with _named(name):
            reports[name] = judge_task(model, task, state=state, progress=shown)
        if task.settings.curve:
            curves[name] = draw_curve(model, task, state=state, progress=shown)
        if len(reports) > 1:
            broken += Broken.of(name, reports[name], next(iter(reports.values())), task.images.pixels)
    dense = next(iter(models.values()))
    weights = {name: count_weights(model, dense) for name, model in models.items()}
    return Comparison(reports=reports, weights=weights, curves=curves, broken=tuple(broken))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put a model's name before an error about it."""
    try:
        yield
    except FileError:  # of the journal, not of the model
        raise
    except InputError as error:
        raise InputError(f"{visible(name)}: {error}") from error
