"""Security curves: robust accuracy by the radius of the ball."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from .._files import named_path
from .._notebook import fragment
from .._progress import say
from ..errors import InputError
from ..pages import Table
from ..pages.text import interval_text
from .alarm import Alarm, make_alarm
from .attacks import AnyAttack
from .evaluation import judge_task
from .report import Written
from .settings import JudgeOptions, JudgeSettings, Task, check_known, radii_of, radius_of_curve
from .sharing import agree, in_processes, is_main
from .statistics import wilson_interval

_RISE = 0.01  # of the images: a smaller rise is a few draws of the attack


class Curve(Written):
    """Robust accuracy by radius, as it was measured.

    Attributes:
        attack: its name.
        norm: of the ball.
        n_images: that were judged.
        eps: radii in pixel units, rising; the first is 0, where the images are clean.
        n_robust: robust images at each.
        alarms: where robust accuracy rises with eps, or the model's answers depend on the batch.
    """

    attack: str
    norm: str
    n_images: int
    eps: tuple[float, ...]
    n_robust: tuple[int, ...]
    alarms: tuple[Alarm, ...]

    @property
    def accuracy(self) -> tuple[float, ...]:
        """Robust accuracy at each radius, in [0, 1]."""
        return tuple(n / self.n_images for n in self.n_robust)

    @property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """95 % Wilson intervals of `accuracy`."""
        return tuple(wilson_interval(n, self.n_images) for n in self.n_robust)

    def _repr_html_(self) -> str:
        points = zip(self.eps, self.accuracy, self.intervals, strict=True)
        rows = [(f"{eps:.6g}", f"{accuracy:.2%}", interval_text(*interval)) for eps, accuracy, interval in points]
        table = Table("Security curve", (f"eps ({self.norm})", "accuracy", "95 % interval"), rows)
        return fragment(f"{self.attack}, {self.n_images:,} images.", table, [str(alarm) for alarm in self.alarms])


def security_curve(
    model: nn.Module,
    data: Iterable[Any],
    *,
    eps: float | str | Sequence[float | str],
    attack: AnyAttack = "PGD-20",
    state: str | os.PathLike[str] | None = None,
    progress: bool | str = True,
    processes: int | None = None,
    **options: Any,
) -> Curve:
    """Robust accuracy under one attack at several radii, with one seed, and nothing smoothed.

    Args:
        model: see `evaluate`.
        data: see `evaluate`; read once.
        eps: radii in pixel units, or one; 0 is added, where it is not among them.
        attack: one attack, as in ``attacks`` of `evaluate`.
        state, progress, processes: see `evaluate`.
        options: of `evaluate`, but for ``attacks``, ``protocol`` and ``alarms``.

    Raises:
        ValueError: ``eps`` is empty, or an argument cannot be used; see `evaluate`.
    """
    if state is not None:
        named_path("state", state)
    check_known(options, JudgeOptions.__annotations__)
    if eps is None or not (radii := radii_of(eps)):
        given = "missing" if eps is None else "empty"
        raise InputError(f"eps is {given}; give the radii of the curve, such as [2/255, 4/255, 8/255]")
    radii = tuple(radius_of_curve("eps", radius) for radius in radii)
    above = next(filter(None, radii), 0.0)
    of_curve = {"attacks": attack, "eps": above, "curve": radii, "curve_attack": attack}
    task = JudgeSettings.of({**options, **of_curve}).bind(data).for_processes(processes, model)
    return in_processes(processes, draw_curve, model, task, state=state, progress=progress)


def draw_curve(
    model: nn.Module, task: Task, *, state: str | os.PathLike[str] | None = None, progress: bool | str = True
) -> Curve:
    """See `security_curve`."""
    settings, images = task
    radii = sorted(set(settings.curve) - {0.0})
    n, attack = len(images.labels), settings.curve_attack
    tasks = [Task(settings.at(radius, attack), images) for radius in radii]
    progress = progress if is_main() else False
    agree({"curve": radii}, "start all with the same")
    if progress:
        names = f"{progress}: " if isinstance(progress, str) else ""
        say(f"{names}security curve of {len(radii)} radii, each of which is judged as follows")
    reports = [judge_task(model, task, state=state, progress=progress) for task in tasks]
    n_robust = (int(reports[0].clean_correct.sum()), *(report.attacks[attack.name].n_robust for report in reports))
    found = {alarm.name: alarm for report in reports for alarm in report.alarms or ()}
    alarms = [*found.values()]
    for (less, before), (more, after) in pairwise(zip((0.0, *radii), n_robust, strict=True)):
        if after - before > max(1, _RISE * n):
            figures = {"less": less, "more": more, "count": after - before, "n": n}
            alarms.append(make_alarm("rises-with-eps", attack=attack.name, **figures))
    eps = (0.0, *radii)
    return Curve(attack=attack.name, norm=settings.norm, n_images=n, eps=eps, n_robust=n_robust, alarms=tuple(alarms))
